"""Which modules of the package a piece of code rests on, found by reading, and one hash of what they say."""

from __future__ import annotations

import ast
import functools
import hashlib
from importlib import resources
from pathlib import Path

PACKAGE = "medsynth"
# what a configuration says enters a hash by its values; another section of a profile changes nothing that is made
SETTINGS = ("medsynth.config",)


def imported_modules(code: ast.Module, package: Path) -> dict[str, Path]:
    """Modules of the package that `code` imports, directly or through one another, late imports included: name -> file."""
    found: dict[str, Path] = {}
    waiting = sorted(_imports(code, "", package))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = path = _file_of(name, package)
            inside = name if path.name == "__init__.py" else name.rpartition(".")[0]
            waiting += sorted(_imports(ast.parse(path.read_text()), inside, package))
    return dict(sorted(found.items()))


def _imports(code: ast.Module, inside: str, package: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # one dot is the package itself, every further dot its parent
            parts = inside.split(".")[: len(inside.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    ours = {name for name in names if name.split(".")[0] == PACKAGE}
    # importing a.b.c runs a, a.b and a.b.c
    chains = {".".join(name.split(".")[: k + 1]) for name in ours for k in range(name.count(".") + 1)}
    return {name for name in chains if _file_of(name, package).exists()}


def _file_of(name: str, package: Path) -> Path:
    path = package.joinpath(*name.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def program(path: Path) -> str:
    """What a module says; comments and layout change no result and are left out."""
    return ast.dump(ast.parse(path.read_text()))


@functools.cache
def code_hash(module: str) -> str:
    """blake2b-64 of a module and of what it imports of the package, settings aside: what other code made is another thing."""
    modules = imported_modules(ast.parse(f"import {module}"), Path(str(resources.files(PACKAGE))))
    digest = hashlib.blake2b(digest_size=8)
    for name, path in modules.items():
        if name in SETTINGS:
            continue
        digest.update(f"{name} {program(path)}\n".encode())
    return digest.hexdigest()

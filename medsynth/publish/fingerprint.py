"""What a chapter depends on, found without running it: its cells, the modules it imports, their data, its part of the profile."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from medsynth.publish.notebook import read_notebook
from medsynth.store.dependencies import imported_modules, program
from medsynth.store.hashes import file_hash, json_hash


def fingerprint(
    source: Path, *, package: Path, profile: Path, data: Mapping[str, Path] | None = None, until: str = ""
) -> dict[str, str]:
    """Name of each thing the chapter `source` depends on -> hash of its content.

    package: the folder of the library; profile: the yaml file; data: the reader's files, or folders of `.npz` files, by the
    parameter that takes them. until: the last cell of an arm, which nobody reads, so that its prose does not count.
    """
    code = code_of(source, until)
    modules = imported_modules(code, package)
    found = {"notebook": json_hash([cell for cell in _cells(source, until) if not until or cell[0] == "code"])}
    found |= {name: json_hash(program(path.read_text())) for name, path in modules.items()}
    found |= {str(path.relative_to(package.parent)): file_hash(path) for path in data_files(modules.values(), package)}
    sections = yaml.safe_load(profile.read_text()) or {}
    named = profile_sections(code)
    found |= {f"profile.{key}": json_hash(value) for key, value in sections.items() if named is None or key in named}
    return found | {parameter: _content(path) for parameter, path in (data or {}).items()}


def changes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Names whose content differs between two fingerprints."""
    return sorted(key for key in {*before, *now} if before.get(key) != now.get(key))


def code_of(source: Path, until: str = "") -> ast.Module:
    """The code cells of a notebook as one program, without % and ! lines; ValueError names a cell that does not parse."""
    body: list[ast.stmt] = []
    cells = [c for c in read_notebook(source, until).cells if c.cell_type == "code"]
    for number, cell in enumerate(cells, 1):
        lines = [line for line in cell.source.splitlines() if not line.lstrip().startswith(("%", "!"))]
        try:
            body += ast.parse("\n".join(lines)).body
        except SyntaxError as error:
            raise ValueError(f"{source}: code cell {number} is not valid Python ({error.msg}, line {error.lineno})") from error
    return ast.Module(body=body, type_ignores=[])


def data_files(modules: Iterable[Path], package: Path) -> list[Path]:
    """Files of the package's data folders (those without Python files) that a module names in a text constant."""
    folders = [p for p in package.iterdir() if p.is_dir() and p.name != "__pycache__" and not any(p.glob("*.py"))]
    texts = {
        node.value for path in modules for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }  # fmt: skip
    return sorted(file for folder in folders if folder.name in texts for file in folder.rglob("*") if file.is_file())


def profile_sections(code: ast.Module) -> set[str] | None:
    """Sections of the profile that a chapter reads, as in `chapter.settings.thorax`; None if it may read all.

    `p = load_profile(profile)` and `p.thorax` serve too. What a `Chapter` reads by itself counts as well.
    """
    holders = {called(node.value): target.id for node, target in _assigned(code)}
    found = {"seeds", "thorax"} if "Chapter" in holders else set()
    for node, parent in ((child, owner) for owner in ast.walk(code) for child in ast.iter_child_nodes(owner)):
        name = node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) else ""
        whole = name == holders.get("load_profile") and name
        whole = whole or (isinstance(node, ast.Attribute) and node.attr == "settings" and _of(node) == holders.get("Chapter"))
        if whole and not isinstance(parent, ast.Attribute):
            # a profile handed on whole may be read anywhere
            return None
        if whole:
            found.add(parent.attr)
    return found if holders else None


def _assigned(code: ast.Module) -> list[tuple[ast.Assign, ast.Name]]:
    """Names that a profile, or a chapter that holds one, is bound to."""
    return [
        (node, target)
        for node in ast.walk(code)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and called(node.value) in ("load_profile", "Chapter")
        for target in node.targets
        if isinstance(target, ast.Name)
    ]


def _of(attribute: ast.Attribute) -> str:
    return attribute.value.id if isinstance(attribute.value, ast.Name) else ""


def called(call: ast.Call) -> str:
    """The last name of what is called, "" where it has none."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _content(path: Path) -> str:
    return json_hash({p.name: file_hash(p) for p in path.glob("*.npz")}) if path.is_dir() else file_hash(path)


def _cells(source: Path, until: str) -> list[list[object]]:
    return [[c.cell_type, c.source, list(c.metadata.get("tags", []))] for c in read_notebook(source, until).cells]

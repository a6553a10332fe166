"""What a piece of code rests on, found by reading: the package's modules that it uses, and one hash of what they do."""

from __future__ import annotations

import ast
import copy
import functools
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from medsynth.store.hashes import bytes_hash

PACKAGE = "medsynth"
# settings enter a hash by their values; a ledger writes down what was read, and changes nothing that is made of it
UNCOUNTED = ("medsynth.settings.config", "medsynth.settings.profile", "medsynth.store.dependencies", "medsynth.ledger")
_LOGGERS = ("log", "logger", "logging", "warnings", "ledger")
_UNREAD = ("__version__", "__all__")


@functools.cache
def program(text: str) -> str:
    """What a source text does, as text: no comments, layout, docstrings, imports, annotations, words of errors, logs and ledger.

    A text is read once: most modules are used by many.
    """
    return _said(_Meaning().visit(ast.parse(text)))


def _said(node: object) -> str:
    """As `ast.dump`, without fields that are empty: which of them there are depends on the Python that reads."""
    if isinstance(node, list):
        return f"[{', '.join(map(_said, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [f"{name}={_said(value)}" for name, value in ast.iter_fields(node) if value is not None and value != []]
    return f"{type(node).__name__}({', '.join(fields)})"


def imported_modules(code: ast.Module, package: Path, uncounted: tuple[str, ...] = ()) -> dict[str, Path]:
    """Modules of the package that `code` uses, directly or through one another, late imports included: name -> file.

    An import that binds a name nobody reads is none. Of `uncounted` modules neither they nor what they use is followed.
    """
    found: dict[str, Path] = {}
    waiting = sorted(_used(_bindings(code, ""), package))
    while waiting:
        name = waiting.pop()
        if name not in found and name not in uncounted:
            found[name] = path = _file_of(name, package)
            inside = name if path.name == "__init__.py" else name.rpartition(".")[0]
            waiting += sorted(_used(_bindings_of(path.read_text(), inside), package))
    return dict(sorted(found.items()))


@functools.cache
def code_hash(module: str) -> str:
    """blake2b-64 of what a module and the modules it uses do, whatever they are called: what other code made is another thing.

    An imported name counts by what it is bound to, so that importing it from another module of other content is a change.
    """
    package = Path(str(resources.files(PACKAGE)))
    modules = imported_modules(ast.parse(f"import {module} as m\nm"), package, UNCOUNTED)
    parts = sorted(_content(name, path, package) for name, path in modules.items())
    return bytes_hash("\n".join(parts).encode(), bits=64)


@dataclass(frozen=True)
class _Binding:
    """A name that an import binds: `from module import name`, or a whole module where `name` is empty."""

    module: str
    name: str


class _Meaning(ast.NodeTransformer):
    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if _for_types(node) else self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        # that a field is declared counts, and in which order; of which type does not
        node.annotation = ast.Constant("")
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        return None if set(names) & set(_UNREAD) else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        node.cause = None
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        if isinstance(node.value, ast.Constant):
            return None  # a docstring, or a text or number that stands alone
        call = node.value.func if isinstance(node.value, ast.Call) else None
        if isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name) and call.value.id in _LOGGERS:
            return None
        return self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        super().generic_visit(node)
        if isinstance(getattr(node, "body", None), list) and not node.body and not isinstance(node, ast.Module):
            node.body = [ast.Pass()]  # a body that held words alone
        return node


def _for_types(node: ast.If) -> bool:
    test = node.test
    return (test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")) == "TYPE_CHECKING"


def _bindings(code: ast.Module, inside: str) -> dict[str, list[_Binding]]:
    """Local name -> what imports bind to it, of names that are read when the code runs; type-only imports are left out."""
    found: dict[str, list[_Binding]] = {}
    waiting: list[ast.AST] = [code]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and _for_types(node):
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                # without `as` the first name is bound, and all that follow can be reached through it
                found.setdefault(alias.asname or alias.name.split(".")[0], []).append(_Binding(alias.name, ""))
        elif isinstance(node, ast.ImportFrom):
            # one dot is the package itself, every further dot its parent
            parts = inside.split(".")[: len(inside.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                found.setdefault(alias.asname or alias.name, []).append(_Binding(base, alias.name))
        waiting += ast.iter_child_nodes(node)
    read = {node.id for node in ast.walk(_Meaning().visit(copy.deepcopy(code))) if isinstance(node, ast.Name)} | {"*"}
    return {name: bound for name, bound in found.items() if name in read}


@functools.cache
def _bindings_of(text: str, inside: str) -> dict[str, list[_Binding]]:
    return _bindings(ast.parse(text), inside)


def _used(bindings: dict[str, list[_Binding]], package: Path) -> set[str]:
    bound = [b for several in bindings.values() for b in several]
    names = {b.module for b in bound} | {f"{b.module}.{b.name}" for b in bound if b.name}
    ours = {name for name in names if name.split(".")[0] == PACKAGE}
    # importing a.b.c runs a, a.b and a.b.c
    chains = {".".join(name.split(".")[: k + 1]) for name in ours for k in range(name.count(".") + 1)}
    return {name for name in chains if _file_of(name, package).exists()}


def _content(name: str, path: Path, package: Path) -> str:
    """What a module does, and what the names are that it imports: of our modules by their content, of others by name."""
    inside = name if path.name == "__init__.py" else name.rpartition(".")[0]
    text = path.read_text()
    lines = sorted(f"{local} = {_target(b, package)}" for local, bound in _bindings_of(text, inside).items() for b in bound)
    return "\n".join([program(text), *lines])


def _target(binding: _Binding, package: Path) -> str:
    whole = f"{binding.module}.{binding.name}" if binding.name else binding.module
    for name, rest in ((whole, ""), (binding.module, binding.name)):
        if name.split(".")[0] == PACKAGE and _file_of(name, package).exists():
            what = name if name in UNCOUNTED else program(_file_of(name, package).read_text())
            return f"{bytes_hash(what.encode(), bits=64)} {rest}"
    return whole


def _file_of(name: str, package: Path) -> Path:
    path = package.joinpath(*name.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")

"""The floor plan: no import runs upward, none in a circle, and some rooms keep to themselves."""

import ast
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import medsynth

PACKAGE = Path(medsynth.__file__).parent
# from the ground up; a room may use what stands before it, and its own
FLOORS = (
    "language", "store.hashes", "settings", "store", "attributes", "imageset", "resample", "training", "results", "mechanism",
    "ledger", "figures", "phantoms", "data", "models", "evaluation", "diffusion", "downstream", "privacy.gate", "privacy.release",
    "privacy.dp", "privacy.selection", "privacy.attacks", "pretrain", "explore", "chapter", "publish", "cli",
)  # fmt: skip


def _modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name not in ("__init__.py", "__main__.py")
    }


def _imports(path: Path, known: set[str]) -> set[str]:
    """Modules of the package that a file imports anywhere, for types as well."""
    named = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
    return {name.removeprefix("medsynth.") for name in named} & known


MODULES = _modules()
GRAPH = {name: _imports(path, set(MODULES)) for name, path in MODULES.items()}


def _floor(module: str) -> int:
    return next(i for i, room in enumerate(FLOORS) if module == room or module.startswith(f"{room}."))


def test_every_module_has_a_floor():
    assert {name for name in MODULES if not any(name == room or name.startswith(f"{room}.") for room in FLOORS)} == set()


def test_no_import_runs_upward():
    upward = {(name, used) for name, uses in GRAPH.items() for used in uses if _floor(used) > _floor(name)}
    assert upward == set()


def test_no_import_runs_in_a_circle():
    assert len(list(TopologicalSorter(GRAPH).static_order())) == len(MODULES)


def test_publish_is_imported_by_the_command_line_alone():
    users = {name for name, uses in GRAPH.items() for used in uses if used.startswith("publish.")}
    assert {name.split(".")[0] for name in users if not name.startswith("publish.")} == {"cli"}


def test_no_module_is_longer_than_a_reader_can_hold():
    assert {name: n for name, path in MODULES.items() if (n := len(path.read_text().splitlines())) > 350} == {}


def test_a_room_has_at_most_ten_modules():
    rooms = Counter(name.rpartition(".")[0] for name in MODULES)
    # the hall, which holds the nouns that every room speaks of, is one
    assert {room or "hall": count for room, count in rooms.items() if count > 10} == {}

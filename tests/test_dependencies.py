import ast
import importlib.util
import shutil
from pathlib import Path

import pytest

import medsynth
from medsynth.publish.fingerprint import data_files
from medsynth.store import dependencies
from medsynth.store.dependencies import code_hash, imported_modules, program

PACKAGE = Path(medsynth.__file__).parent


def test_the_real_library_closes_over_itself():
    found = imported_modules(ast.parse("from medsynth.models.weights import load_card as x\nx"), PACKAGE)
    assert {"medsynth", "medsynth.models", "medsynth.models.weights", "medsynth.settings.config", "medsynth.store.runs"} <= set(
        found
    )
    assert "medsynth.cli" not in found
    assert all(file.parent.name == "weights" for file in data_files(found.values(), PACKAGE))


def test_what_is_not_counted_exists():
    assert all(importlib.util.find_spec(name) for name in dependencies.UNCOUNTED)


CODE = """
from medsynth import b, config

SCALE = 2.0

def f(x):
    if x < 0:
        raise ValueError(f"x is {x}")
    return b.g(x) * SCALE
"""


def test_a_program_is_the_same_whichever_python_reads_it():
    # of Python 3.11, 3.12 and 3.13 each has empty fields of its own in a syntax tree
    read = program("def f(a: int = 0):\n    return {**a, None: ...}\n")
    assert read == (
        "Module(body=[FunctionDef(name='f', args=arguments(args=[arg(arg='a')], defaults=[Constant(value=0)]), "
        "body=[Return(value=Dict(keys=[None, Constant()], values=[Name(id='a', ctx=Load()), Constant(value=Ellipsis)]))])])"
    )


@pytest.fixture
def hash_of(tmp_path, monkeypatch):
    """code_hash of module a of a small package, with some files changed."""
    monkeypatch.setattr(dependencies.resources, "files", lambda _: tmp_path)
    monkeypatch.setattr(dependencies, "UNCOUNTED", ("medsynth.config",))
    plain = {"__init__": "", "a": CODE, "b": "def g(x): return x\n", "c": "def g(x): return x + 1\n", "config": "x = 1\n"}

    def hash_of(name="a", **changed):
        code_hash.cache_clear()
        for module, text in (plain | changed).items():
            (tmp_path / f"{module}.py").write_text(text)
        return code_hash(f"medsynth.{name}")

    yield hash_of
    code_hash.cache_clear()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SCALE = 2.0", "SCALE  =  2.0  # why"),
        ("SCALE = 2.0", '"""What this is."""\nSCALE = 2.0'),
        ("def f(x):", 'def f(x):\n    """Doubled."""'),
        ("def f(x):", "def f(x: float) -> float:"),
        ("SCALE = 2.0", "SCALE: float = 2.0"),
        ('f"x is {x}"', '"negative"'),
        ('ValueError(f"x is {x}")', 'ValueError(f"x is {x}") from None'),
        ("return b.g(x)", 'log.info("step %d", x)\n    return b.g(x)'),
        ("return b.g(x)", 'ledger.read(x, stage="f")\n    return b.g(x)'),
        ("from medsynth import b, config", "from medsynth import b, c, config\nimport numpy as np"),
        ("from medsynth import b, config", "import medsynth.b as b"),
        (
            "from medsynth import b, config",
            "from . import b\nif TYPE_CHECKING:\n    import medsynth.c",
        ),
    ],
)
def test_words_imports_and_annotations_are_no_change(hash_of, old, new):
    before = hash_of()
    assert old in CODE
    text = CODE.replace(old, new)
    # an annotated assignment is another kind of statement, so it is held against itself
    before = hash_of(a=CODE.replace("SCALE = 2.0", "SCALE: int = 2.0")) if "SCALE: float" in new else before
    assert hash_of(a=text) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SCALE = 2.0", "SCALE = 3.0"),
        ("* SCALE", "+ SCALE"),
        ("x < 0", "x <= 0"),
        ("ValueError", "TypeError"),
        ("def f(x):", "def f(x=1):"),
        ("return b.g(x)", "b.log(x)\n    return b.g(x)"),
        ("from medsynth import b, config", "from medsynth import c as b"),
        ("from medsynth import b, config", "import numpy as b"),
    ],
)
def test_constants_code_and_what_a_name_is_bound_to_are_a_change(hash_of, old, new):
    assert old in CODE
    assert hash_of(a=CODE.replace(old, new)) != hash_of()


def test_what_a_module_uses_counts_and_what_it_does_not_use_does_not(hash_of):
    before = hash_of()
    assert hash_of(b="def g(x): return x + 0\n") != before
    assert hash_of(b="def g(x):\n    # why\n    return x\n") == before
    assert hash_of(c="x = 2\n") == before
    # a setting counts by its value, which its users hash
    assert hash_of(config="x = 2\n") == before


def test_a_name_bound_to_another_module_counts_even_where_both_are_used_anyway(hash_of):
    both = "from medsynth import b, c\nfrom medsynth.b import g\ny = b.g(1) + c.g(1) + g(1)\n"
    assert hash_of(a=both) != hash_of(a=both.replace("medsynth.b import", "medsynth.c import"))


def test_a_moved_module_is_the_same(hash_of):
    before = hash_of()
    moved = {"d": "def g(x): return x\n", "b": "y = 7\n"}
    assert hash_of(a=CODE.replace("import b, config", "import d as b"), **moved) == before
    assert hash_of("e", e=CODE) == before


def test_a_dataclass_keeps_its_fields_and_their_order(hash_of):
    fields = "class A:\n    x: int\n    y: int = 1\n"
    assert hash_of(a=fields) == hash_of(a=fields.replace("int", "float"))
    assert hash_of(a=fields) != hash_of(a="class A:\n    y: int = 1\n    x: int\n")
    assert hash_of(a=fields) != hash_of(a=fields.replace("= 1", "= 2"))


def test_a_word_more_in_the_ledger_or_a_docstring_in_an_image_set_orphans_no_network(tmp_path, monkeypatch):
    package = tmp_path / "medsynth"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    monkeypatch.setattr(dependencies.resources, "files", lambda _: package)
    trained = (
        "medsynth.diffusion.train",
        "medsynth.downstream.restoration",
        "medsynth.diffusion.sample",
        "medsynth.phantoms.thorax.thorax",
    )

    def hashes():
        code_hash.cache_clear()
        return {module: code_hash(module) for module in trained}

    before = hashes()
    for name, old, new in (
        ("ledger", '"It was made from public images alone."', '"It was made of public images."'),
        ("mechanism", '"none": ((), ()),', '"none": ((), ()),\n    "another": ((), ()),'),
        ("downstream/restoration", 'stage="train restoration net"', 'stage="train another net"'),
        ("imageset", '"""The one type', '"""The type'),
        ("imageset", "is empty; expected", "is empty: expected"),
        ("training", "%.3g s each", "%.3g seconds each"),
    ):
        file = package / f"{name}.py"
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))
    assert hashes() == before
    file = package / "training.py"
    file.write_text(file.read_text() + "\nEXTRA = 1\n")
    changed = {module for module, now in hashes().items() if now != before[module]}
    assert {"medsynth.diffusion.train", "medsynth.downstream.restoration"} <= changed < set(trained)
    code_hash.cache_clear()

import ast
from pathlib import Path

import medsynth
from medsynth import dependencies
from medsynth.dependencies import code_hash, imported_modules
from medsynth.fingerprint import data_files

PACKAGE = Path(medsynth.__file__).parent


def test_the_real_library_closes_over_itself():
    found = imported_modules(ast.parse("from medsynth.models.shipped import load_card"), PACKAGE)
    assert {"medsynth", "medsynth.models", "medsynth.models.shipped", "medsynth.config", "medsynth.runs"} <= set(found)
    assert "medsynth.cli" not in found
    assert all(file.parent.name == "weights" for file in data_files(found.values(), PACKAGE))


def test_code_hash_follows_what_a_module_and_its_imports_say_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(dependencies.resources, "files", lambda _: tmp_path)

    def hash_with(a="from medsynth import b, config\n", b="x = 1\n", c="x = 1\n", config="x = 1\n"):
        code_hash.cache_clear()
        for name, text in {"__init__": "", "a": a, "b": b, "c": c, "config": config}.items():
            (tmp_path / f"{name}.py").write_text(text)
        return code_hash("medsynth.a")

    first = hash_with()
    assert hash_with(b="x  =  1  # why\n") == first
    assert hash_with(c="x = 2\n") == first
    # a setting counts by its value, which its users hash
    assert hash_with(config="x = 2\n") == first
    assert hash_with(b="x = 2\n") != first
    assert hash_with(a="from medsynth import b, c\n") != first
    code_hash.cache_clear()

"""One set of pins, written down three times, and nothing in the tree that only one machine has."""

import re
import sys
import tomllib
from importlib.metadata import distributions, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
LINES = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]
LOCK = {canonicalize_name(name): exact for name, _, exact in (line.partition("==") for line in LINES)}
INDEX = "download.pytorch.org/whl/cpu"
TEXTS = ["README.md", "Makefile", "Snakefile", "environment.yml", ".ci/run", ".github/workflows/book.yml", "data/README.md"]


def test_conda_users_get_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert pip == ["-c requirements.lock", *PINS, "-e ."]
    assert f"python {PROJECT['requires-python']}" in conda


@pytest.mark.parametrize("pin", [*PINS, *PROJECT["optional-dependencies"]["slurm"]])
def test_every_pin_holds_the_locked_version(pin):
    requirement = Requirement(pin)
    locked = LOCK[canonicalize_name(requirement.name)]
    assert re.fullmatch(r"==\d+\.\d+\.\*", str(requirement.specifier))
    assert locked in requirement.specifier


def test_the_lock_is_exact_and_names_no_build():
    assert len(LOCK) == len(LINES)
    assert all(re.fullmatch(r"[0-9][\w.]*", exact) for exact in LOCK.values())
    assert LOCK["torch"].startswith("2.13.")
    assert "torchvision" not in LOCK


def test_every_supported_python_may_install_what_is_locked():
    oldest = str(min(s.version for s in SpecifierSet(PROJECT["requires-python"]) if s.operator == ">="))
    refuses = [
        f"{d.name} {d.version}: {wanted}"
        for d in distributions()
        if canonicalize_name(d.name) in LOCK and (wanted := d.metadata.get("Requires-Python"))
        if not SpecifierSet(wanted).contains(f"{oldest}.0")
    ]
    assert refuses == []


def test_this_environment_is_the_locked_one():
    wrong = {name: (version(name), LOCK[name]) for pin in PINS if (name := canonicalize_name(Requirement(pin).name))}
    assert {k: v for k, v in wrong.items() if v[0].partition("+")[0] != v[1]} == {}


def test_this_python_is_supported():
    assert ".".join(map(str, sys.version_info[:3])) in SpecifierSet(PROJECT["requires-python"])


@pytest.mark.parametrize("name", TEXTS)
def test_the_only_index_named_is_that_of_the_cpu_build(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"/(root|home|tmp|Users)/", text)
    hosts = re.findall(r"https?://([^\s)\"'`]+)", text)
    assert [h for h in hosts if "whl" in h or "pypi" in h or "simple" in h] == [h for h in hosts if h.startswith(INDEX)]


def test_torch_comes_first_and_alone():
    steps = [line for line in (ROOT / "Makefile").read_text().splitlines() if "-m pip install" in line]
    assert len(steps) == 2
    assert "^torch==" in steps[0]
    assert "-c requirements.lock" in steps[1]


def test_every_chapter_declares_the_common_parameters():
    from medsynth.publish.notebook import declared_parameters
    from medsynth.publish.plan import chapter_sources

    for path in chapter_sources(ROOT).values():
        declared = {p.name: p.kind for p in declared_parameters(path).values()}
        assert {"profile": "str", "seed": "int", "out": "str"}.items() <= declared.items(), path.name


def test_versions_agree():
    import medsynth

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert medsynth.__version__ == PROJECT["version"] == citation["version"]

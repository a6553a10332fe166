from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from medsynth.settings import config
from medsynth.settings.config import (
    AutoencoderConfig,
    DenoiserConfig,
    DiffusionConfig,
    SamplingConfig,
    ThoraxConfig,
)
from medsynth.settings.parse import parse
from medsynth.settings.profile import Profile, load_profile, project_root

PROFILES = ("full", "laptop", "paper", "smoke")
CONFIGS = [*(c for c in vars(config).values() if is_dataclass(c)), Profile]


@dataclass(frozen=True)
class Nested:
    """A config with every kind of value that `parse` knows."""

    count: int
    rate: float
    inner: ThoraxConfig
    limit: float | None = None
    flags: tuple[bool, ...] = ()
    name: str = "x"


INNER = {"size": 8, "private_patients": 2, "test_patients": 3}
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@given(st.builds(
    Nested, st.integers(), FLOATS, st.builds(ThoraxConfig, *[st.integers(0, 99)] * 4), st.none() | FLOATS,
    st.lists(st.booleans()).map(tuple), st.text(),
))  # fmt: skip
def test_parse_inverts_asdict_also_through_json_and_yaml(c):
    assert parse(Nested, asdict(c), "t") == c
    assert parse(Nested, json.loads(json.dumps(asdict(c))), "t") == c
    assert parse(Nested, yaml.safe_load(yaml.safe_dump(json.loads(json.dumps(asdict(c))))), "t") == c


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda c: c.__name__)
def test_a_misspelt_key_is_answered_with_the_right_one(cls):
    for f in fields(cls):
        typo = f.name[0] + f.name[1:].replace(f.name[-1], "", 1) + "q"
        with pytest.raises(ValueError, match=f"here: unknown key '{typo}'; did you mean '\\w+'") as error:
            parse(cls, {typo: 1}, "here")
        if len(f.name) > 4:
            assert f"'{f.name}'?" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qqq": 1}, "t: unknown key 'qqq'; expected one of count, rate, inner"),
        ({"count": 1.5}, "t.count: found float 1.5; expected int"),
        ({"count": True}, "t.count: found bool True; expected int"),
        ({"count": "3"}, "t.count: found str '3'; expected int"),
        ({"rate": "fast"}, "t.rate: found str 'fast'; expected float"),
        ({"rate": True}, "t.rate: found bool True; expected float"),
        ({"rate": None}, "t.rate: found NoneType None; expected float"),
        ({"name": 3}, "t.name: found int 3; expected str"),
        ({"flags": [True, 1]}, r"t.flags\[1\]: found int 1; expected bool"),
        ({"flags": True}, "t.flags: found True; expected a list of bool"),
        ({"limit": "low"}, "t.limit: found str 'low'; expected float"),
        ({"inner": 3}, "t.inner: found int 3; expected a mapping with keys size, private_patients"),
        ({"inner": {"size": 8}}, "t.inner: missing key 'private_patients'; expected int"),
        ({"inner": INNER | {"sizes": 8}}, "t.inner: unknown key 'sizes'; did you mean 'size'"),
    ],
)
def test_errors_name_the_key_and_what_was_expected(change, message):
    with pytest.raises(ValueError, match=message):
        parse(Nested, {"count": 1, "rate": 0.5, "inner": INNER} | change, "t")


def test_numbers_are_read_as_meant():
    made = parse(Nested, {"count": 1, "rate": 2, "inner": INNER, "limit": "1e-4"}, "t")
    assert (made.rate, type(made.rate), made.limit) == (2.0, float, 1e-4)
    with pytest.raises(ValueError, match="t: missing key 'count'; expected int"):
        parse(Nested, {}, "t")


@pytest.mark.parametrize("name", PROFILES)
def test_the_profiles_load_and_fit_the_networks(project: Path, name: str):
    profile = load_profile(name, project / "profiles")
    assert profile.name == name and isinstance(profile, Profile)
    assert profile == parse(Profile, asdict(profile), "again")
    denoiser = profile.denoiser
    assert len(denoiser.channels) == len(denoiser.attention)
    assert all(c % 32 == 0 and c >= 64 for c in (*denoiser.channels, *AutoencoderConfig().channels))
    assert profile.thorax.size % 2 ** len(AutoencoderConfig().channels) == 0
    assert profile.cardiac.slices % 8 == 0
    assert profile.sampling.steps <= profile.diffusion.timesteps
    assert profile.diffusion.warmup < profile.diffusion.steps


def test_profiles_grow(project: Path):
    by_size = [load_profile(n, project / "profiles") for n in ("smoke", "laptop", "full", "paper")]
    for count in (lambda p: p.diffusion.steps, lambda p: p.thorax.private_patients, lambda p: p.sampling.images):
        assert sorted(map(count, by_size)) == list(map(count, by_size))
    assert {p.name for p in by_size} == {f.stem for f in (project / "profiles").glob("*.yaml")}


def test_bad_profiles_are_named(tmp_path: Path, project: Path):
    folder = tmp_path / "profiles"
    folder.mkdir()
    with pytest.raises(ValueError, match="profile 'x' does not exist in profiles/; there are none"):
        load_profile("x", folder)
    text = (project / "profiles" / "smoke.yaml").read_text()
    for name, content in {
        "typo": text.replace("patients: 4", "patiens: 4"), "empty": "", "list": "- 1\n",
        "renamed": "name: other\n" + text,
    }.items():  # fmt: skip
        (folder / f"{name}.yaml").write_text(content)
    with pytest.raises(ValueError, match="profile 'tipo' does not exist in profiles/; did you mean 'typo'"):
        load_profile("tipo", folder)
    with pytest.raises(ValueError, match=r"profiles/typo.yaml.cardiac: unknown key 'patiens'; did you mean 'patients'"):
        load_profile("typo", folder)
    with pytest.raises(ValueError, match=r"profiles/empty.yaml: missing key 'thorax'; expected ThoraxConfig"):
        load_profile("empty", folder)
    with pytest.raises(ValueError, match=r"profiles/list.yaml: found list \[1\]; expected a mapping"):
        load_profile("list", folder)
    with pytest.raises(ValueError, match=r"profiles/renamed.yaml: unknown key 'name'"):
        load_profile("renamed", folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps: 40, batch", "steps: 0, batch", r"mine\.yaml\.diffusion\.steps: found 0; expected at least 1"),
        ("steps: 40, batch", "steps: -1, batch", r"diffusion\.steps: found -1; expected at least 1"),
        ("batch: 32", "batch: 0", r"diffusion\.batch: found 0"),
        ("size: 32, private", "size: -32, private", r"thorax\.size: found -32"),
        ("warmup: 10", "warmup: -1", r"diffusion\.warmup: found -1; expected at least 0"),
        ("warmup: 10", "learning_rate: .nan", r"diffusion\.learning_rate: found nan; expected a finite number, above 0"),
        ("warmup: 10", "learning_rate: 0.0", r"diffusion\.learning_rate: found 0\.0"),
        ("[1.0, 2.0]", "[1.0, .inf]", r"evaluation\.guidances: found inf; expected a finite number, not below 0"),
        ("denoiser: {}", "denoiser: {channels: [64, 0]}", r"denoiser\.channels: found 0"),
        ("denoiser: {}", "denoiser: {}\ndenoiser: {}", r"not YAML that can be read: line 5: 'denoiser' stands there twice"),
        ("warmup: 10", "batch: 4", r"not YAML that can be read: line 5: 'batch' stands there twice"),
        ("denoiser: {}", "denoiser: {", r"not YAML that can be read: line 6: expected ',' or '}'"),
    ],
)
def test_a_profile_in_which_nothing_would_be_trained(tmp_path: Path, project: Path, old: str, new: str, message: str):
    mine = tmp_path / "mine.yaml"
    text = (project / "profiles" / "smoke.yaml").read_text()
    assert old in text
    mine.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message) as error:
        load_profile(str(mine))
    assert f"{tmp_path.name}/mine.yaml" in str(error.value) and len(str(error.value).splitlines()) == 1


def test_what_may_be_zero_in_a_profile(tmp_path: Path, project: Path):
    mine = tmp_path / "mine.yaml"
    mine.write_text((project / "profiles" / "smoke.yaml").read_text().replace("warmup: 10, checkpoint_every: 20", "warmup: 0"))
    assert load_profile(str(mine)).diffusion.warmup == 0
    mine.write_text(mine.read_text().replace("warmup: 0", "checkpoint_every: 0, label_dropout: 0.0"))
    assert load_profile(str(mine)).diffusion.checkpoint_every == 0


def test_a_profile_of_ones_own_is_named_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Path):
    mine = tmp_path / "sizes" / "mine.yaml"
    mine.parent.mkdir()
    mine.write_text((project / "profiles" / "smoke.yaml").read_text().replace("size: 32", "size: 48"))
    found = load_profile(str(mine))
    assert (found.name, found.thorax.size) == ("mine", 48)
    monkeypatch.chdir(mine.parent)
    assert load_profile("mine.yaml") == found
    with pytest.raises(ValueError, match=r"profile '\.\./mine.yaml': no such file; expected a \.yaml file, or the name of one"):
        load_profile("../mine.yaml")
    mine.write_text("thorx: {}")
    with pytest.raises(ValueError, match=r"sizes/mine.yaml: unknown key 'thorx'; did you mean 'thorax'"):
        load_profile("mine.yaml")
    # where a folder is given, a path is the name of nothing in it
    with pytest.raises(ValueError, match=r"profile 'mine.yaml' does not exist in profiles/"):
        load_profile("mine.yaml", project / "profiles")


def test_the_project_is_found_from_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Path):
    root = tmp_path / "p"
    for sub in ("profiles", "notebooks", "book/deep"):
        (root / sub).mkdir(parents=True)
    (root / "profiles" / "smoke.yaml").write_text((project / "profiles" / "smoke.yaml").read_text())
    assert project_root(root / "book" / "deep") == root.resolve()
    monkeypatch.chdir(root / "notebooks")
    assert project_root() == root.resolve()
    assert load_profile("smoke").name == "smoke"
    # a folder of profiles alone is not a project
    (root / "book" / "profiles").mkdir()
    assert project_root(root / "book") == root.resolve()
    with pytest.raises(FileNotFoundError, match="no folder with profiles/ and notebooks/ at or above"):
        project_root(tmp_path)


def test_defaults_are_valid():
    assert DiffusionConfig(steps=1).prediction == "v_prediction"
    assert SamplingConfig(images=1).guidance == 1
    assert len(DenoiserConfig().channels) == len(DenoiserConfig().attention)

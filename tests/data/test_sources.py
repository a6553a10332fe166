from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medsynth.data import sources
from medsynth.data.hearts import hearts_of
from medsynth.data.sources import cached_thorax, private_and_test
from medsynth.imageset import ImageSet
from medsynth.models.weights import denoiser_kind
from medsynth.settings.config import DPConfig, PrivacyConfig, ThoraxConfig

CONFIG = ThoraxConfig(size=8, private_patients=5, test_patients=3, scans=2)


@pytest.fixture
def drawn(monkeypatch, make_set, cache) -> list[dict]:
    """A stand-in for the phantom that notes what it was asked for; patient numbers start high and come unsorted."""
    calls = []

    def thorax(*, patients, scans, size, modality, population, seed, jobs) -> ImageSet:
        calls.append({"patients": patients, "modality": modality, "population": population, "seed": seed})
        n = patients * scans
        numbers = 1000 + np.arange(n)[::-1] // scans
        return make_set(n, (1, size, size), seed, patient=numbers, split=None, role=population, name="phantom", modality=modality)

    monkeypatch.setattr(sources, "thorax", thorax)
    return calls


def write(folder: Path, name: str = "mine", **changes: object) -> str:
    n = 20
    rng = np.random.default_rng(3)
    arrays = {"image": rng.integers(0, 256, (n, 16, 16), dtype=np.uint8), "patient": np.arange(n) // 2} | changes
    np.savez(folder / f"{name}.npz", **{k: v for k, v in arrays.items() if v is not None})
    return str(folder / f"{name}.npz")


def test_phantoms_are_drawn_once(drawn, cache):
    first, again = private_and_test(CONFIG), private_and_test(CONFIG)
    assert drawn == [{"patients": 8, "modality": "xray", "population": "private", "seed": 0}]
    assert again.private.content_hash == first.private.content_hash
    private_and_test(CONFIG, seed=1)
    private_and_test(CONFIG, modality="ct")
    assert len(drawn) == 3
    assert len(list((cache / "sets").glob("*.npz"))) == 3


def test_phantoms_are_drawn_again_when_the_code_that_draws_them_changes(drawn, monkeypatch):
    for code in ("a", "a", "b"):
        monkeypatch.setattr(sources, "code_hash", lambda module, code=code: f"{module} {code}")
        cached_thorax(patients=2, scans=1, size=4, modality="xray", population="public", seed=0)
    assert len(drawn) == 2


def test_phantom_test_patients_are_of_the_private_population_and_never_trained_on(drawn):
    s = private_and_test(CONFIG)
    assert (s.private.dataset, s.test.dataset, s.private.modality) == ("phantom-xray", "phantom-xray", "xray")
    assert (s.private.patients, s.test.patients) == (5, 3)
    assert (len(s.private), len(s.test)) == (10, 6)
    assert not set(s.private.patient.tolist()) & set(s.test.patient.tolist())
    assert (s.private.role, s.test.role) == ("private", "eval")
    assert not set(s.private.row_hashes) & set(s.test.row_hashes)


def test_hearts_of_a_rehearsal_play_private_and_are_of_another_hospital(cache):
    training = PrivacyConfig(steps=1, batch=2)
    config = DPConfig(3, 2, 1, (1.0,), training, training, slices=8, size=32)
    s, private = hearts_of(config, "rehearsal"), hearts_of(config)
    assert (s.private.dataset, s.private.role, s.private.patients) == ("rehearsal-heart", "private", 3)
    assert (s.asked.role, s.test.role, s.asked.patients, s.test.patients) == ("eval", "eval", 1, 2)
    assert not set(s.asked.patient.tolist()) & set(s.test.patient.tolist())
    assert private.private.dataset == "phantom-heart" and not set(s.private.row_hashes) & set(private.private.row_hashes)
    assert not s.private.people


def test_the_start_of_the_denoiser_depends_on_whether_images_are_real(drawn, make_set):
    assert denoiser_kind(private_and_test(CONFIG).private) == "phantom"
    # a licence says nothing of where images come from
    for s in (make_set(origin="scan"), make_set(origin="synthetic"), make_set(origin="synthetic", people=True)):
        assert denoiser_kind(s) == "real"
    assert denoiser_kind(make_set(origin="synthetic", people=False)) == "phantom"


def test_a_file_without_splits_is_split_by_patient(tmp_path):
    s = private_and_test(CONFIG, write(tmp_path))
    assert (s.private.patients, s.test.patients) == (7, 3)
    assert not set(s.private.patient.tolist()) & set(s.test.patient.tolist())
    assert (s.private.role, s.test.role) == ("private", "eval")
    assert s.private.spatial == s.test.spatial == (8, 8)
    assert (s.private.dataset, s.test.name) == ("mine", "mine/test")
    other = private_and_test(CONFIG, write(tmp_path), seed=1)
    assert set(other.test.patient.tolist()) != set(s.test.patient.tolist())


def test_the_splits_of_a_file_are_respected(tmp_path):
    split = np.array(["train"] * 10 + ["val"] * 4 + ["test"] * 6)
    s = private_and_test(CONFIG, write(tmp_path, split=split))
    assert sorted(set(s.private.patient.tolist())) == [0, 1, 2, 3, 4]
    assert sorted(set(s.test.patient.tolist())) == [7, 8, 9]


def test_roles_by_row_give_the_unseen_patients(tmp_path, public_sets_of):
    public_sets_of(20, 10)
    role = np.array(["public"] * 4 + ["private"] * 8 + ["eval"] * 8)
    split = np.array(["train"] * 12 + ["val"] * 4 + ["test"] * 4)
    s = private_and_test(CONFIG, write(tmp_path, "cxr_kermany_128", role=role, split=split, subtype=np.zeros(20, int)))
    assert sorted(set(s.private.patient.tolist())) == [2, 3, 4, 5]
    assert sorted(set(s.test.patient.tolist())) == [8, 9]
    assert denoiser_kind(s.private) == "real" and s.private.data_licence == "CC BY 4.0"


def test_files_of_our_own_work_too(tmp_path, make_set):
    path = replace(make_set(20, role="private"), name="saved").save(tmp_path / "saved.npz")
    s = private_and_test(CONFIG, str(path))
    assert (s.private.role, s.test.role) == ("private", "eval")
    assert set(s.private.split.tolist()) == {"train"} and set(s.test.split.tolist()) == {"test"}


@pytest.mark.parametrize(("missing", "parts"), [("test", ["train", "val"]), ("train", ["val", "test"])])
def test_nothing_to_train_on_or_to_measure_against_is_said(tmp_path, missing, parts):
    path = write(tmp_path, split=np.repeat(parts, 10))
    with pytest.raises(ValueError, match=f"mine.npz: no '{missing}' rows; its `split` holds"):
        private_and_test(CONFIG, path)


def test_unknown_modality_and_missing_file(tmp_path):
    with pytest.raises(ValueError, match="modality 'mri'; expected one of"):
        private_and_test(CONFIG, modality="mri")
    with pytest.raises(FileNotFoundError, match=r"did you mean 'mine.npz'"):
        private_and_test(CONFIG, write(tmp_path).replace("mine", "mime"))


def test_ct_that_may_be_published_freely_goes_first(tmp_path):
    hounsfield = np.random.default_rng(0).integers(-1000, 400, (20, 16, 16)).astype(np.int16)
    licence = np.array(["CC BY 3.0"] * 12 + ["CC BY-NC 4.0"] * 8)
    s = private_and_test(CONFIG, write(tmp_path, image=hounsfield, license=licence), "ct")
    assert s.private.patients + s.test.patients == 6 and s.private.data_licence == s.test.data_licence == "CC BY 3.0"
    assert (s.private.unit, s.private.role, s.private.spatial) == ("HU", "private", (8, 8))
    only = private_and_test(CONFIG, write(tmp_path, "nc", image=hounsfield, license=np.full(20, "CC BY-NC 4.0")), "ct")
    assert only.private.patients + only.test.patients == 10 and only.private.data_licence == "CC BY-NC 4.0"
    with pytest.raises(ValueError, match="mine: images in '1'; CT is read in Hounsfield units"):
        private_and_test(CONFIG, write(tmp_path), "ct")


def test_stacks_become_slices_of_patients(tmp_path):
    stacks = np.random.default_rng(0).integers(1, 256, (20, 6, 16, 16), dtype=np.uint8)
    stacks[:, 4:] = 0
    s = private_and_test(CONFIG, write(tmp_path, image=None, volume=stacks), "mr")
    # the middle two of four planes, of two stacks for each of ten patients
    assert (len(s.private), s.private.patients, len(s.test), s.test.patients) == (28, 7, 12, 3)
    assert s.private.spatial == (8, 8) and not set(s.private.patient.tolist()) & set(s.test.patient.tolist())
    with pytest.raises(ValueError, match="expected square 2D images"):
        private_and_test(CONFIG, write(tmp_path, image=None, volume=stacks))

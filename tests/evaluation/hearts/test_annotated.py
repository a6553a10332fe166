"""Labels that a file holds beside its stacks: they go to the grid as the images do, say volumes, and teach a segmenter."""

from dataclasses import replace

import numpy as np
import pytest

from medsynth.data.hearts import hearts_of
from medsynth.data.npz import load_npz
from medsynth.evaluation.hearts import annotated
from medsynth.evaluation.hearts import labels as heart_labels
from medsynth.evaluation.hearts.annotated import (
    labels_of,
    nominal_spacing,
    segmenter_error,
    segmenter_for,
    with_volumes,
)
from medsynth.evaluation.hearts.labels import SegmenterConfig
from medsynth.ledger import Ledger
from medsynth.phantoms.heart.heart import cardiac, cardiac_labels
from medsynth.resample import stacks_at
from medsynth.settings.config import DPConfig, PrivacyConfig

PEOPLE = {"patients": 10, "slices": 16, "size": 64, "population": "private", "seed": 4}
TINY = SegmenterConfig(patients=4, slices=8, size=32, reach=1, channels=(16,) * 6, steps=3, batch=4)
ONE = PrivacyConfig(steps=1, batch=1)
GRID = DPConfig(private_patients=0, test_patients=4, asked_patients=4, epsilons=(1.0,), training=ONE, scratch=ONE, size=32)


@pytest.fixture(scope="module")
def truth():
    return cardiac(**PEOPLE), cardiac_labels(**PEOPLE)


@pytest.fixture(scope="module")
def arrays(truth):
    images, labels = truth
    return {
        "volume": (images.images[:, 0] * 255).round().astype(np.uint8), "label": labels, "patient": images.patient,
        "phase": np.array(["ED", "ES"])[images.attributes["phase"].to_numpy(int)],
        "split": np.repeat(["train"] * 6 + ["test"] * 4, 2),
    }  # fmt: skip


@pytest.fixture
def file(arrays, tmp_path):
    np.savez(tmp_path / "scans.npz", **arrays)
    return tmp_path / "scans.npz"


def test_labels_of_a_file_on_its_own_grid_are_its_labels(file, truth):
    images = load_npz(file, modality="mr")
    np.testing.assert_array_equal(labels_of(file, images), truth[1])
    few = images.of_patients(np.unique(images.patient)[3:5])
    np.testing.assert_array_equal(labels_of(file, few), truth[1][6:10])


def test_labels_go_to_the_grid_of_a_chapter_as_its_images_do(file, truth):
    """Against a naive reference: planes by place, then the structure of most of the four pixels; ties are left out."""
    private, asked, test = hearts_of(GRID, str(file))
    assert (private.spatial, private.patients, asked.patients, test.patients) == ((8, 32, 32), 6, 2, 2)
    found, labels = labels_of(file, test), truth[1][16:]
    volumes = truth[0].images[16:, 0]
    for stack in range(len(test)):
        shown = np.flatnonzero((volumes[stack] * 255).round().max((1, 2)) > 0)
        for k, plane in enumerate(np.linspace(shown[0], shown[-1], 8).round().astype(int)):
            block = labels[stack, plane].reshape(32, 2, 32, 2).transpose(0, 2, 1, 3).reshape(32, 32, 4)
            counts = np.stack([(block == c).sum(-1) for c in range(4)])
            clear = np.sort(counts, 0)[-1] > np.sort(counts, 0)[-2]
            np.testing.assert_array_equal(found[stack, k][clear], counts.argmax(0)[clear])
    assert (found == 3).sum() > 100


def test_a_file_without_labels_has_none(file, arrays):
    np.savez(file, **{k: v for k, v in arrays.items() if k != "label"})
    images = load_npz(file, modality="mr")
    assert labels_of(file, images) is None
    assert with_volumes(images, None) is images and labels_of("", images) is None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"label": lambda a: a["label"][:, :8]}, r"label of shape \(20, 8, 64, 64\), up to 3; expected \(20, 16, 64, 64\)"),
        ({"label": lambda a: a["label"] + np.uint8(1)}, "up to 4"),
        ({"volume": lambda a: a["volume"][::-1]}, "its images are not those"),
        ({"patient": lambda a: np.where(a["patient"] == a["patient"][0], 7, a["patient"])}, "expected all, in order"),
    ],
)
def test_labels_of_other_images_are_refused(file, arrays, change, match):
    images = load_npz(file, modality="mr")
    np.savez(file, **arrays | {key: make(arrays) for key, make in change.items()})
    with pytest.raises(ValueError, match=match):
        labels_of(file, images)


def test_volumes_of_labels_are_the_phantoms_own_where_the_spacing_is_known(truth):
    images, labels = truth
    bare = replace(images, attributes=images.attributes[["phase"]])
    found = with_volumes(bare, labels).attributes
    for name in ("lvedv", "lvesv", "lvef", "rvedv", "rvesv", "rvef", "wall_ed", "wall_es", "angle"):
        np.testing.assert_allclose(found[name].astype(float), images.attributes[name].astype(float), rtol=1e-6, err_msg=name)


def test_without_a_spacing_volumes_are_nominal_and_ejection_fractions_true(truth):
    images, labels = truth
    bare = replace(images, spacing=None, attributes=images.attributes[["phase"]])
    found, true = with_volumes(bare, labels).attributes, images.attributes
    assert nominal_spacing((16, 64, 64)) == (6.0, 3.0, 3.0)
    ratio = (found["lvedv"] / true["lvedv"]).to_numpy(float)
    np.testing.assert_allclose(ratio, 6 * 9 / np.prod(images.spacing), rtol=1e-6)
    np.testing.assert_allclose(found["lvef"].astype(float), true["lvef"].astype(float), rtol=1e-6)


def test_a_patient_without_a_phase_has_no_volume_of_it(truth):
    images, labels = truth
    few = replace(images, attributes=images.attributes[["phase"]]).select([0, 2, 3])
    found = with_volumes(few, labels[[0, 2, 3]]).attributes
    assert found["lvesv"].isna().tolist() == [True, False, False] and not found["lvedv"].isna().any()


def test_a_segmenter_of_scans_leaves_a_line_and_one_of_phantoms_none(file, cache, monkeypatch):
    private, *unseen = hearts_of(GRID, str(file))
    ledger = Ledger()
    _, found = segmenter_for(private, unseen, str(file), TINY, ledger=ledger, seed=0)
    (line,) = ledger.entries(private)
    assert (line.stage, line.mechanism.name) == ("train segmenter", "none") and "not released" in line.output
    assert set(found) == {"Dice RV", "Dice myocardium", "Dice LV", "lv ratio"}
    assert all(0 <= e.low <= e.value <= e.high for e in found.values()) and found["Dice LV"].n == 4
    monkeypatch.setattr(annotated, "heart_segmenter", lambda config: config)
    assert segmenter_for(private, unseen, "", TINY, ledger=ledger, seed=0) == (TINY, {})
    assert len(ledger.entries(private)) == 1


def test_the_error_of_true_labels_is_none(truth, monkeypatch):
    images, labels = truth
    monkeypatch.setattr(annotated, "segment", lambda *_: labels)
    found = segmenter_error(None, images, labels, seed=0)
    assert {e.value for e in found.values()} == {1.0} and found["Dice RV"].n == 10
    # half of each left ventricle taken for background
    worse = np.where((labels == 3) & (np.arange(64) % 2 == 0), 0, labels)
    monkeypatch.setattr(annotated, "segment", lambda *_: worse)
    found = segmenter_error(None, images, labels, seed=0)
    assert 0.6 < found["Dice LV"].value < 0.73 and found["Dice RV"].value == 1.0 and 0.45 < found["lv ratio"].value < 0.55


def test_the_numbers_of_structures_are_those_of_the_phantoms():
    assert tuple(heart_labels.STRUCTURES) == (1, 2, 3)
    assert stacks_at(cardiac(patients=1, slices=8, size=32), 8, 32).spatial == (8, 32, 32)

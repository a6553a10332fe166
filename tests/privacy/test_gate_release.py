"""What a threshold on other people must not be found on: the private set's people, and one image of theirs twice."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from shared import RootMeanSquare

from medsynth.data.sources import cached_thorax
from medsynth.imageset import ImageSet
from medsynth.ledger import Ledger
from medsynth.privacy.gate.calibration import calibrate
from medsynth.privacy.gate.feature_maps import feature_map
from medsynth.privacy.release.gate_release import gate_release

MISS = 0.2  # of copies: with it, few other people are enough
OTHERS = 15


@pytest.fixture(scope="module")
def people() -> list[ImageSet]:
    """Private patients, other people, and candidates of noise, which is nobody."""
    drawn = cached_thorax(patients=6 + OTHERS, scans=1, size=32, modality="xray", population="private", seed=5)
    private, others = drawn.select(np.arange(6)), drawn.select(np.arange(6, 6 + OTHERS))
    noise = np.random.default_rng(0).random((2, *drawn.images.shape[1:]), dtype=np.float32)
    candidates = replace(drawn.select([0, 1]).with_images(noise), name="drawn", origin="synthetic")
    return [replace(private, role="private", name="ward"), replace(others, role="eval", name="others"), candidates]


def jpeg(image: np.ndarray) -> np.ndarray:
    """An image (h, w) of 0..1 as it comes back from a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return np.asarray(Image.open(file)) / 255


SAVED_AGAIN = {
    "8 bit": lambda x: np.rint(x * 255) / 255,
    "JPEG": jpeg,
    "half a code brighter": lambda x: np.clip(x + 0.5 / 255, 0, 1),
    "mirrored": lambda x: jpeg(x[:, ::-1]),
    "on its side": lambda x: jpeg(np.rot90(x)),
    "inverted": lambda x: jpeg(1 - x),
}


def with_one(others: ImageSet, image: np.ndarray) -> ImageSet:
    """The others, the last of whom shows `image` (h, w)."""
    images = others.images.copy()
    images[-1, 0] = image
    return others.with_images(images)


def release(people, others, out):
    private, _, candidates = people
    return gate_release(candidates, private, out=out, ledger=Ledger(), phi="pixels", others=others, miss=MISS)


@pytest.fixture(scope="module")
def found(people):
    """The threshold that is found on the others."""
    return calibrate(feature_map("pixels"), people[1], seed=0, miss=MISS, pair_miss=0.5)


@pytest.fixture
def once(found, monkeypatch):
    """One image more or less hardly moves it, so it is found once."""
    monkeypatch.setattr("medsynth.privacy.release.gate_release.calibrate", lambda *_, **__: found)


@pytest.mark.parametrize("saved", SAVED_AGAIN)
def test_a_private_person_among_the_others_is_found_however_she_was_saved(people, saved, tmp_path, cache, once):
    private, others, _ = people
    with pytest.raises(ValueError, match=r"^--others: (row 14 show|1 of 15 images are in the private set)") as error:
        release(people, with_one(others, SAVED_AGAIN[saved](private.images[2, 0])), tmp_path / "out")
    assert len(str(error.value).splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("saved", SAVED_AGAIN)
def test_one_image_of_two_of_the_others_is_found(people, saved, tmp_path, cache, once):
    others = people[1]
    with pytest.raises(ValueError, match=r"^--others: row 3 and row 14 are one image of, as it is said, two people"):
        release(people, with_one(others, SAVED_AGAIN[saved](others.images[3, 0])), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def apart(found, monkeypatch, make_set):
    """A map and a threshold that tell noise from noise: 24 private images, 24 of other people, and two candidates."""
    monkeypatch.setattr("medsynth.privacy.release.gate_release.feature_map", lambda _: RootMeanSquare())
    given = {"tau": 0.1}
    monkeypatch.setattr("medsynth.privacy.release.gate_release.calibrate", lambda *_, **__: replace(found, **given))
    one_each = {"n": 24, "patient": np.arange(24), "split": None}
    sets = [make_set(**one_each, seed=seed, name=name, role=role) for seed, name, role in
            ((1, "ward", "private"), (2, "others", "eval"))]  # fmt: skip
    return (*sets, replace(make_set(2, seed=3), origin="synthetic"), given)


def test_the_private_set_altered_cannot_stand_for_others(apart, tmp_path, cache):
    private, others, candidates, given = apart
    noise = np.random.default_rng(0).normal(0, 0.02, private.images.shape)
    altered = others.with_images(np.clip(private.images + noise, 0, 1))
    for tau, said in ((0.1, "row 0 and row 1 show what"), (0.05, "24 of 24 images lie within the threshold of private ones")):
        given["tau"] = tau
        with pytest.raises(ValueError, match=f"^--others: {said}"):
            release((private, others, candidates), altered, tmp_path / "out")
    # the refusal says how near private images lie, so the ledger has its line, although nothing is released
    (line,) = [e for e in Ledger().entries() if (e.role, e.stage) == ("private", "gate")]
    assert "share of other people" in line.output
    assert release((private, others, candidates), others, tmp_path / "out").released == 2
    # where everybody is like everybody, it proves nothing of anyone; the gate then lets nothing pass
    given["tau"] = 4.0
    with pytest.raises(ValueError, match="none of 2 candidates was accepted"):
        release((private, others, candidates), others, tmp_path / "again")


def test_others_are_people_and_no_candidates(apart, tmp_path, cache):
    private, others, candidates, _ = apart
    with pytest.raises(ValueError, match=r"^--others: others is synthetic, and a synthetic image is nobody's"):
        release((private, others, candidates), replace(others, origin="synthetic"), tmp_path / "out")
    with pytest.raises(ValueError, match=r"^--others: row 23 stand among the candidates too \(1 of 24\)"):
        release((private, others, candidates), with_one(others, np.rot90(candidates.images[1, 0])), tmp_path / "out")


def test_two_images_of_one_of_the_others_count_once(people, tmp_path, cache):
    others = people[1]
    patient = others.patient.copy()
    patient[-1] = patient[3]
    twice = replace(with_one(others, others.images[3, 0]), patient=patient)
    assert "one image each of 14 other" in release(people, twice, tmp_path / "out").certificate.tau.how


def test_other_people_are_let_pass(people, tmp_path, cache):
    done = release(people, people[1], tmp_path / "out")
    assert done.released == 2 and "15 other" in done.certificate.tau.how

"""What a threshold on other people must not be found on: the private set's people, and one image of theirs twice."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from medsynth.data.sources import cached_thorax
from medsynth.imageset import ImageSet
from medsynth.ledger import Ledger
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


@pytest.mark.parametrize("saved", SAVED_AGAIN)
def test_a_private_person_among_the_others_is_found_however_she_was_saved(people, saved, tmp_path, cache):
    private, others, _ = people
    with pytest.raises(ValueError, match=r"^--others: (row 14 show|1 of 15 images are in the private set)") as error:
        release(people, with_one(others, SAVED_AGAIN[saved](private.images[2, 0])), tmp_path / "out")
    assert len(str(error.value).splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("saved", ["8 bit", "JPEG", "half a code brighter"])
def test_one_image_of_two_of_the_others_is_found(people, saved, tmp_path, cache):
    others = people[1]
    with pytest.raises(ValueError, match=r"^--others: row 3 and row 14 are one image of, as it is said, two people"):
        release(people, with_one(others, SAVED_AGAIN[saved](others.images[3, 0])), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_images_of_one_of_the_others_count_once(people, tmp_path, cache):
    others = people[1]
    patient = others.patient.copy()
    patient[-1] = patient[3]
    twice = replace(with_one(others, others.images[3, 0]), patient=patient)
    assert "one image each of 14 other" in release(people, twice, tmp_path / "out").certificate.tau.how


def test_other_people_are_let_pass(people, tmp_path, cache):
    done = release(people, people[1], tmp_path / "out")
    assert done.released == 2 and "15 other" in done.certificate.tau.how

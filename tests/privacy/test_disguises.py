"""Private images that once passed: negatives, oblong ones on their side, stacks moved by a plane or with strangers' planes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medsynth.data.sources import cached_thorax
from medsynth.imageset import ImageSet
from medsynth.phantoms.heart.heart import cardiac
from medsynth.privacy.gate.alterations import attacked, inverted
from medsynth.privacy.gate.feature_maps import feature_map
from medsynth.privacy.gate.gate import Gate, PixelCopies
from medsynth.privacy.gate.thresholds import threshold_for

N = 4


@pytest.fixture(scope="module")
def people() -> ImageSet:
    """Twice as many as are private."""
    return cached_thorax(patients=2 * N, scans=1, size=64, modality="ct", population="private", seed=77)


@pytest.fixture(scope="module")
def hearts() -> ImageSet:
    return cardiac(patients=2 * N, slices=8, size=64, phases=("ED",), population="private", seed=77)


def halves(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    return images.select(np.arange(N)), images.select(np.arange(N, 2 * N))


def gate_around(private: ImageSet, name: str, kind: str) -> Gate:
    phi = feature_map(name)
    return Gate(private, phi, threshold_for(phi, len(private.spatial), kind).tau)


@pytest.fixture(scope="module")
def heart_gate(hearts) -> Gate:
    return gate_around(halves(hearts)[0], "encoder_3d", "phantom-heart")


def resampled(images: np.ndarray, spatial: tuple[int, int]) -> np.ndarray:
    return torch.nn.functional.interpolate(torch.from_numpy(images.copy()), size=spatial, mode="bilinear").numpy()


def test_a_negative_of_a_private_image_is_refused(people):
    private, strangers = halves(people)
    gate = gate_around(private, "encoder", "phantom-ct")
    negatives = private.with_images(inverted(private))
    found = gate.judge(negatives)
    assert set(found.reason) == {"copy"} and found.patient.tolist() == private.patient.tolist()
    # and of one that was altered, so that no pixel is the same
    altered = gate.judge(private.with_images(inverted(attacked(private, "shift", seed=0))))
    assert set(altered.reason) == {"too close"} and altered.patient.tolist() == private.patient.tolist()
    assert not gate.accepts(negatives).any()
    assert gate.accepts(strangers).all() and gate.accepts(strangers.with_images(inverted(strangers))).all()


@pytest.mark.parametrize("turns", [1, 3])
def test_an_oblong_image_that_was_laid_on_its_side_and_resized_is_refused(people, turns):
    oblong = people.with_images(people.images[..., 8:-8, :], spacing=people.spacing)
    private, strangers = halves(oblong)
    gate = gate_around(private, "encoder", "phantom-ct")
    laid = private.with_images(resampled(np.rot90(private.images, turns, axes=(2, 3)), private.spatial))
    found = gate.judge(laid)
    assert set(found.reason) == {"too close"} and found.patient.tolist() == private.patient.tolist()
    assert not gate.accepts(laid).any() and gate.accepts(strangers).all()


@pytest.mark.parametrize("moved", ["edge", "empty"])
def test_a_heart_that_was_moved_by_a_plane_is_refused(hearts, heart_gate, moved):
    private, strangers = halves(hearts)
    images = np.roll(private.images, 1, axis=2)
    images[:, :, 0] = 0 if moved == "empty" else images[:, :, 1]
    # noise, so that no plane is the same pixel by pixel and the feature map has to see it
    shifted = attacked(private.with_images(images), "noise", seed=0)
    assert not PixelCopies(private).owners(shifted)
    found = heart_gate.judge(shifted)
    assert set(found.reason) == {"too close"} and found.patient.tolist() == private.patient.tolist()
    assert heart_gate.accepts(strangers).all()


@pytest.mark.parametrize("planes", [1, 6])
def test_a_heart_that_holds_a_private_plane_is_refused(hearts, heart_gate, planes):
    private, strangers = halves(hearts)
    images = strangers.images.copy()
    images[:, :, 1 : 1 + planes] = private.images[:, :, 2 : 2 + planes, ::-1]
    mixed = strangers.with_images(images)
    found = heart_gate.judge(mixed)
    assert set(found.reason) == {"copy"} and found.patient.tolist() == private.patient.tolist() and not found.distance.any()
    # what is empty is nobody's
    assert np.ptp(hearts.images, axis=(1, 3, 4)).min() == 0
    assert not PixelCopies(private).owners(strangers)

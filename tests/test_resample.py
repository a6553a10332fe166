from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medsynth.imageset import ImageSet
from medsynth.resample import pad_square, resize, slices_of, stacks_at


def image_set(images: np.ndarray, **changes: object) -> ImageSet:
    n = len(images)
    fields = {"images": images, "patient": np.arange(n), "unit": "1", "range": (0.0, 1.0), "name": "s", "role": "private"}
    return ImageSet(**(fields | changes))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 9))
def test_whole_factors_are_block_means(size, factor, seed):
    x = np.random.default_rng(seed).random((3, 2, size * factor, size * factor), dtype=np.float32)
    made = resize(image_set(x, spacing=(0.5, 0.75)), size)
    naive = np.zeros((3, 2, size, size))
    for i in range(size):
        for j in range(size):
            naive[:, :, i, j] = x[:, :, factor * i : factor * (i + 1), factor * j : factor * (j + 1)].mean((2, 3), np.float64)
    np.testing.assert_allclose(made.images, naive, atol=1e-6)
    assert made.spacing == (0.5 * factor, 0.75 * factor)
    assert made.role == "private" and made.patient.tolist() == [0, 1, 2]


@given(st.integers(2, 12), st.integers(2, 12), st.floats(0, 1))
def test_any_size_keeps_flat_images_and_the_range(before, after, value):
    flat = resize(image_set(np.full((1, 1, before, before), value, np.float32)), after)
    assert flat.spatial == (after, after)
    np.testing.assert_allclose(flat.images, value, atol=1e-6)
    noisy = np.random.default_rng(before).random((2, 1, before, before), dtype=np.float32)
    assert resize(image_set(noisy), after).images.mean() == pytest.approx(noisy.mean(), abs=0.25)


def test_odd_factors_follow_a_ramp_and_do_not_alias():
    x = np.broadcast_to((np.arange(12, dtype=np.float32) + 0.5) / 12, (1, 1, 12, 12))
    made = resize(image_set(x), 5).images[0, 0, 2]
    np.testing.assert_allclose(made, (np.arange(5) + 0.5) / 5, atol=0.04)
    stripes = np.broadcast_to(np.arange(12, dtype=np.float32) % 2, (1, 1, 12, 12))
    assert np.abs(resize(image_set(stripes), 5).images - 0.5).max() < 0.2


def test_same_size_is_the_same_set_and_other_shapes_are_refused(make_set):
    s = make_set()
    assert resize(s, 16) is s
    for shape in ((1, 16, 8), (1, 4, 4, 4)):
        with pytest.raises(ValueError, match=r"tiny: spatial shape .*; expected square 2D images"):
            resize(make_set(4, shape), 4)


@given(hnp.array_shapes(min_dims=2, max_dims=4, max_side=7))
def test_padding_is_centred(shape):
    x = np.random.default_rng(0).random(shape)
    made = pad_square(x)
    h, w = shape[-2:]
    side = max(h, w)
    assert made.shape == (*shape[:-2], side, side)
    top, left = (side - h) // 2, (side - w) // 2
    np.testing.assert_array_equal(made[..., top : top + h, left : left + w], x)
    assert made.sum() == pytest.approx(x.sum())


@pytest.mark.parametrize("interval", [(0.0, 1.0), (-1000.0, 400.0), (-0.1, 0.3)])
def test_slices_are_planes_of_their_volume_and_patient(interval):
    low, high = interval
    x = np.random.default_rng(0).random((3, 1, 5, 4, 6)) * 0.9 + 0.1
    x[1, :, 2:] = 0
    images = np.clip((x * (high - low) + low).astype(np.float32), low, high)
    images[0, 0, 0, 0, 0] = high
    images[1, :, 2:] = low
    volumes = image_set(images, range=interval, patient=np.array([7, 8, 9]), spacing=(8.0, 1.5, 1.5))
    made = slices_of(volumes)
    expected = [(i, z) for i in range(3) for z in range(5) if not (i == 1 and z >= 2)]
    assert made.images.shape == (len(expected), 1, 6, 6)
    for image, patient, (i, z) in zip(made.images, made.patient, expected, strict=True):
        assert patient == 7 + i
        np.testing.assert_array_equal(image[0, 1:5], volumes.images[i, 0, z])
        np.testing.assert_array_equal(image[0, [0, 5]], np.float32(low))
    assert made.spacing == (1.5, 1.5) and made.role == "private" and made.name == "s-slices"
    some = slices_of(volumes, range(1, 5, 3))
    assert some.patient.tolist() == [7, 7, 8, 9, 9]


@pytest.mark.parametrize(("share", "planes"), [(1.0, [0, 1, 2, 3]), (0.5, [1, 2]), (0.7, [0, 1, 2]), (0.01, [1])])
def test_the_middle_of_a_stack_is_that_of_the_planes_that_show_something(share, planes):
    images = np.zeros((2, 1, 6, 4, 4), np.float32)
    images[0, 0, :4] = np.linspace(0.2, 0.8, 4, dtype=np.float32)[:, None, None]  # two planes of padding at the end
    made = slices_of(image_set(images), middle=share)
    np.testing.assert_array_equal(made.images[:, 0, 0, 0], images[0, 0, planes, 0, 0])


def test_volumes_without_content_are_named():
    with pytest.raises(ValueError, match=r"s: no plane of range\(0, 3\) holds anything above 0 1; nothing to slice"):
        slices_of(image_set(np.zeros((2, 1, 3, 4, 4), np.float32)))


def test_a_stack_of_another_size_is_its_planes_that_show_something_evenly_spaced_and_its_middle():
    x = np.random.default_rng(0).random((2, 1, 7, 70, 90)).astype(np.float32)
    x[0, :, 5:] = 0
    table = pd.DataFrame({"n_slices": pd.array([5, 7], dtype="Int64")})
    made = stacks_at(image_set(x, attributes=table, spacing=(8.0, 1.5, 1.5)), 3, 32)
    assert made.images.shape == (2, 1, 3, 32, 32) and made.spacing is None and made.attributes["n_slices"].tolist() == [3, 3]
    for i, planes in enumerate(([0, 2, 4], [0, 3, 6])):
        cut = x[i, 0, planes, 3:67, 13:77].reshape(3, 32, 2, 32, 2).mean(axis=(2, 4))
        np.testing.assert_allclose(made.images[i, 0], cut, atol=1e-6)
    assert stacks_at(made, 3, 32) is made
    with pytest.raises(ValueError, match=r"spatial shape \(7, 70, 90\); expected stacks of planes of at least 128 pixels"):
        stacks_at(image_set(x), 3, 128)

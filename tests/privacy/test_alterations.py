from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from medsynth.imageset import ImageSet
from medsynth.privacy.gate import alterations as transforms
from medsynth.privacy.gate.alterations import (
    ATTACKS,
    GALLERY,
    Variant,
    attack_pairs,
    attacked,
    every_way,
    inverted,
    orientations,
    presentations,
    transformed_copies,
    varied,
)


@pytest.fixture(scope="module")
def smooth(make_set) -> ImageSet:
    """Images without detail finer than a few pixels, in HU, so that interpolation and units are both seen."""
    noise = np.random.default_rng(0).random((6, 1, 32, 32))
    images = ndimage.gaussian_filter(noise, (0, 0, 2, 2), mode="nearest")
    unit = (images - images.min()) / np.ptp(images)
    return make_set(6, images=(unit * 1200 - 900).astype(np.float32), range=(-1000, 400), unit="HU")


# poses


def test_a_pose_agrees_with_scipy(smooth):
    """Against scipy's affine_transform, whose matrix maps output to input coordinates."""
    pose = Variant(angle=7, zoom=1.08, down=0.05, right=-0.03, mirrored=True)
    a = np.radians(7)
    turn = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) / 1.08
    turn = np.diag([1.0, -1.0]) @ turn
    centre = np.array([15.5, 15.5])
    offset = centre - turn @ (centre + np.array([0.05, -0.03]) * 32)
    made = varied(smooth, pose)
    for image, ours in zip(smooth.images[:, 0], made[:, 0], strict=True):
        theirs = ndimage.affine_transform(image.astype(float), turn, offset, order=1, mode="nearest")
        np.testing.assert_allclose(ours, theirs, atol=0.02)


def test_directions(smooth):
    """Right is right, down is down, a zoom above 1 enlarges, and a mirrored image is mirrored."""
    spot = np.zeros((1, 1, 33, 33), dtype=np.float32)
    spot[0, 0, 16, 20] = 1
    image = ImageSet(images=spot, patient=np.zeros(1, int), unit="1", range=(0, 1), name="spot")

    def peak(**pose) -> tuple[int, int]:
        return np.unravel_index(varied(image, Variant(**pose))[0, 0].argmax(), (33, 33))

    assert peak(down=2 / 33, right=3 / 33) == (18, 23)
    assert peak(zoom=1.5) == (16, 22)
    assert peak(mirrored=True) == (16, 12)
    assert peak(angle=90) == (20, 16)


def test_an_exposure_is_gain_then_offset_then_clipping(smooth):
    unit = (smooth.images.astype(float) + 1000) / 1400
    made = varied(smooth, Variant(gain=1.1, offset=0.15))
    np.testing.assert_allclose((made + 1000) / 1400, np.clip(unit * 1.1 + 0.15, 0, 1), atol=1e-5)
    assert (made == 400).any() and made.dtype == np.float32
    assert str(Variant(offset=-0.15)) == "gain 1, offset -0.15"


def test_the_gallery_is_fixed_and_begins_with_the_images_themselves(smooth):
    copies = list(transformed_copies(smooth))
    names = [n for n, _ in copies]
    assert len(set(names)) == len(names) == len(GALLERY) and names[0] == "copy" and "flip" in names
    assert copies[0][1] is smooth
    flipped = dict(copies)["flip"]
    np.testing.assert_array_equal(flipped.images, smooth.images[..., ::-1])
    for _, images in copies:
        np.testing.assert_array_equal(images.patient, smooth.patient)
        assert images.role == smooth.role and images.images.min() >= -1000 and images.images.max() <= 400


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_a_copy_does_not_depend_on_the_other_rows(smooth, rows):
    chosen = smooth.select(rows)
    for variant in (*GALLERY[1:4], GALLERY[-1]):
        np.testing.assert_array_equal(varied(chosen, variant), varied(smooth, variant)[rows])


def test_planes_of_a_volume_move_together(make_set):
    plane = np.random.default_rng(0).random((3, 1, 1, 16, 16), dtype=np.float32)
    volumes = make_set(3, images=np.repeat(plane, 4, axis=2))
    for made in (
        varied(volumes, GALLERY[1]),
        *(attacked(volumes, n, seed=0).images for n in ("rotation", "blur", "gamma", "jpeg")),
    ):
        assert made.shape == volumes.images.shape
        assert (made == made[:, :, :1]).all()
    assert not (attacked(volumes, "noise", seed=0).images.std(2) == 0).all()


# attacks


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_changes_the_image_only_as_it_says(smooth, name):
    made = attacked(smooth, name, seed=1)
    assert made.images.shape == smooth.images.shape and made.range == smooth.range
    np.testing.assert_array_equal(made.patient, smooth.patient)
    if name == "copy":
        assert made is smooth
        return
    assert all((made.images != smooth.images).reshape(6, -1).mean(1) > 0.5)
    correlation = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(made.images, smooth.images, strict=True)]
    if name != "flip":
        assert min(correlation) > 0.3
    np.testing.assert_array_equal(attacked(smooth, name, seed=1).images, made.images)
    if name not in ("flip", "jpeg"):
        assert not np.array_equal(attacked(smooth, name, seed=2).images, made.images)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_does_not_depend_on_the_other_rows(smooth, name):
    rows = [4, 1]
    np.testing.assert_array_equal(attacked(smooth.select(rows), name, seed=1).images, attacked(smooth, name, seed=1).images[rows])


def test_the_bounds_are_those_stated(make_set):
    flat = make_set(400, images=np.tile(np.linspace(0.3, 0.6, 256, dtype=np.float32).reshape(1, 1, 16, 16), (400, 1, 1, 1)))
    flat = flat.with_images(flat.images + np.arange(400, dtype=np.float32).reshape(-1, 1, 1, 1) * 1e-5)
    unit = flat.images.astype(float)
    made = attacked(flat, "gamma", seed=0).images
    exponent = (np.log(made) / np.log(unit)).mean((1, 2, 3))
    assert 0.7 <= exponent.min() < 0.72 and 1.35 < exponent.max() <= 1.4 + 1e-5
    at_bound = attacked(flat, "gamma", seed=0, strength="bound").images
    exponent = (np.log(at_bound) / np.log(unit)).mean((1, 2, 3))
    assert np.isclose(exponent[:, None], [0.7, 1.4], rtol=1e-4).any(1).all()
    noise = attacked(flat, "noise", seed=0).images - unit
    assert noise.std() == pytest.approx(0.05, rel=0.02) and abs(noise.mean()) < 1e-3
    made = attacked(flat, "gain and offset", seed=0).images
    gain = (made[:, 0, -1, -1] - made[:, 0, 0, 0]) / (unit[:, 0, -1, -1] - unit[:, 0, 0, 0])
    offset = made[:, 0, 0, 0] - gain * unit[:, 0, 0, 0]
    assert 0.8 <= gain.min() < 0.82 and 1.18 < gain.max() <= 1.2 + 1e-4
    assert -0.2 <= offset.min() < -0.18 and 0.18 < offset.max() <= 0.2 + 1e-4


def test_what_was_not_seen_is_filled_both_ways(make_set):
    bright = make_set(60, images=np.random.default_rng(0).uniform(0.6, 0.7, (60, 1, 32, 32)).astype(np.float32))
    made = attacked(bright, "shift", seed=0, strength="bound").images
    black = (made == 0).any((1, 2, 3))
    assert 0.3 < black.mean() < 0.7
    # a shift of 8 % of 32 pixels leaves 2.56 rows and columns unseen; half a pixel beyond the last centre is still inside: 3
    share = (made[black] == 0).mean((1, 2, 3))
    np.testing.assert_allclose(share, 1 - (29 / 32) ** 2, atol=0.01)


def test_orientations_and_their_mirror_images_are_all_ways_to_lay_an_image(make_set):
    # rows and columns change places in oblong images too, other axes where that keeps the shape
    for shape, ways in (((1, 4, 4), 8), ((1, 4, 5), 8), ((2, 3, 4, 4), 16), ((1, 3, 3, 3), 48), ((1, 3, 4, 3), 24)):
        images = make_set(2, shape)
        laid = dict(orientations(images))
        assert next(iter(laid)) == "as it is" and laid["as it is"] is images
        both = [x for s in laid.values() for x in (s.images[1], s.images[1][..., ::-1])]
        assert len({x.tobytes() for x in both}) == len(both) == ways
        assert {tuple(sorted(x.shape)) for x in both} == {tuple(sorted(shape))}
        assert all(np.sort(x.ravel()).tolist() == np.sort(both[0].ravel()).tolist() for x in both)
    turned = dict(orientations(make_set(1, images=np.arange(9.0).reshape(1, 1, 3, 3) / 9)))
    assert list(turned) == ["as it is", "axes 0 1, reversed 0", "axes 1 0", "axes 1 0, reversed 0"]
    # a quarter turn, up to a mirror
    assert (turned["axes 1 0, reversed 0"].images[0, 0] * 9).round().tolist() == [[2, 5, 8], [1, 4, 7], [0, 3, 6]]


def test_every_way_is_every_orientation_mirrored_and_inverted(smooth):
    shown = [images.images for images in every_way(smooth)]
    assert len({x.tobytes() for x in shown}) == len(shown) == 2 * len(list(presentations(smooth)))
    assert any(np.array_equal(x, smooth.images[..., ::-1]) for x in shown)


def test_every_orientation_is_shown_in_both_polarities(smooth):
    shown, laid = dict(presentations(smooth)), dict(orientations(smooth))
    assert list(shown)[:2] == ["as it is", "as it is, inverted"] and len(shown) == 2 * len(laid)
    for name, images in laid.items():
        np.testing.assert_array_equal(shown[name].images, images.images)
        np.testing.assert_allclose(shown[f"{name}, inverted"].images, -600 - images.images, atol=1e-4)
    back = smooth.with_images(inverted(smooth))
    assert back.images.min() >= -1000 and back.images.max() <= 400
    np.testing.assert_allclose(inverted(back), smooth.images, atol=1e-4)


def test_what_lies_on_its_side_keeps_its_pixels_sizes(make_set):
    oblong = make_set(2, (1, 4, 5), spacing=(2.0, 3.0))
    laid = dict(orientations(oblong))
    assert laid["axes 1 0"].spacing == (3.0, 2.0) and laid["axes 0 1, reversed 0"].spacing == (2.0, 3.0)
    np.testing.assert_array_equal(laid["axes 1 0"].images, oblong.images.swapaxes(2, 3))


# stacks


def test_stacks_move_by_whole_planes_and_the_rest_is_the_outermost_or_empty(make_set):
    stacks = make_set(2, images=np.broadcast_to((1 + np.arange(16.0))[:, None, None] / 16, (2, 1, 16, 4, 4)))
    copies = dict(transformed_copies(stacks))
    assert len(copies) == len(GALLERY) + 8 * 22
    shown = {name: (copies[name].images[0, 0, :, 0, 0] * 16).round().tolist() for name in copies if name.startswith("depth")}
    assert shown == {
        "depth +0.125": [1, 1, *range(1, 15)], "depth -0.125": [*range(3, 17), 16, 16],
        "depth +0.0625": [1, *range(1, 16)], "depth -0.0625": [*range(2, 17), 16],
        "depth +0.125, empty": [0, 0, *range(1, 15)], "depth -0.125, empty": [*range(3, 17), 0, 0],
        "depth +0.0625, empty": [0, *range(1, 16)], "depth -0.0625, empty": [*range(2, 17), 0],
    }  # fmt: skip
    # with eight planes half a step is the same step
    eight = dict(transformed_copies(make_set(1, (1, 8, 4, 4))))
    assert len(eight) == len(GALLERY) + 4 * 22 and "depth +0.0625" not in eight
    both = varied(stacks, Variant(through=1 / 8, mirrored=True))
    np.testing.assert_array_equal(both, copies["depth +0.125"].images[..., ::-1])
    assert transforms.gallery_hash(2) == "67fa49a214c0666b" != transforms.gallery_hash(3)


def test_the_suite_moves_stacks_by_planes_and_leaves_images_alone(make_set):
    stacks = make_set(120, (1, 16, 4, 4))
    seen = set()
    for image, moved in zip(stacks.images[:, 0], attacked(stacks, "planes", seed=0).images[:, 0], strict=True):
        (k,) = [k for k in (-2, -1, 1, 2) if all((moved[i + k] == image[i]).all() for i in range(16) if 0 <= i + k < 16)]
        rest = moved[:k] if k > 0 else moved[k:]
        assert (rest == 0).all() or (rest == image[0 if k > 0 else -1]).all()
        seen.add((k, bool((rest == 0).all())))
    assert seen == {(k, fill) for k in (-2, -1, 1, 2) for fill in (False, True)}
    at_bound = attacked(stacks, "planes", seed=0, strength="bound").images
    assert all(
        (m[:, 2:] == x[:, :-2]).all() or (m[:, :-2] == x[:, 2:]).all() for m, x in zip(at_bound, stacks.images, strict=True)
    )
    with pytest.raises(ValueError, match="attacks \\['planes'\\]"):
        attacked(make_set(2), "planes", seed=0)
    assert len(attack_pairs(3)) == 45


# several


def test_several_attacks_follow_each_other_in_the_order_of_the_suite(smooth):
    both = attacked(smooth, ("jpeg", "flip"), seed=3)
    one = attacked(attacked(smooth, "flip", seed=3), "jpeg", seed=3)
    np.testing.assert_allclose(both.images, one.images, atol=0.01)
    pairs = attack_pairs()
    assert len(pairs) == len(set(pairs)) == 36 and all("copy" not in p for p in pairs)


def test_jpeg_is_the_codec(make_set):
    """Blocks of 8 x 8 that are constant and on the codec's grid of grey values survive; noise does not."""
    flat = make_set(1, images=np.full((1, 1, 16, 16), 128 / 255, dtype=np.float32))
    np.testing.assert_allclose(attacked(flat, "jpeg", seed=0).images, flat.images, atol=1e-6)
    noisy = make_set(1, shape=(1, 16, 16))
    assert 0.02 < np.abs(attacked(noisy, "jpeg", seed=0).images - noisy.images).mean() < 0.2


def test_unknown_names_are_refused(smooth):
    with pytest.raises(ValueError, match="attacks \\['squeeze'\\]"):
        attacked(smooth, "squeeze", seed=0)
    with pytest.raises(ValueError, match="strength 'most'"):
        attacked(smooth, "flip", seed=0, strength="most")
    assert str(Variant(angle=-5, mirrored=True)) == "flip, rotation -5" and transforms.STRENGTHS == ("drawn", "bound")

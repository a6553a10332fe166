"""Alterations by kind: nothing at strength 0, more with more, the same whatever else is altered, and each what it is called."""

import numpy as np
import pytest

from medsynth.phantoms.heart.heart import cardiac
from medsynth.phantoms.thorax.thorax import thorax
from medsynth.privacy.gate.kinds import ALTERATIONS, KINDS, altered, kind_of_alteration


@pytest.fixture(scope="module")
def chests():
    return thorax(patients=12, size=64, modality="xray", population="public")


@pytest.fixture(scope="module")
def strangers():
    return thorax(patients=9, size=64, modality="xray", population="public", seed=5)


def correlation(a, b):
    return np.array([np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a.images, b.images, strict=True)])


@pytest.mark.parametrize("name", list(ALTERATIONS))
def test_more_strength_alters_more_and_none_alters_nothing(name, chests, strangers):
    made = {s: altered(chests, name, s, seed=0, strangers=strangers) for s in (0, 0.2, 1)}
    assert made[0] is chests
    weak, strong = (np.abs(made[s].images - chests.images).mean() for s in (0.2, 1))
    assert 0 < weak <= strong and (weak < strong or name == "inversion")
    assert correlation(made[1], chests).mean() < (0.9995 if name not in ("gamma", "window") else 1)
    for images in made.values():
        assert images.images.dtype == np.float32 and images.images.min() >= 0 and images.images.max() <= 1
        assert (images.patient == chests.patient).all()


@pytest.mark.parametrize("name", list(ALTERATIONS))
def test_a_draw_depends_on_the_image_the_name_and_the_seed_alone(name, chests, strangers):
    every = altered(chests, name, 0.7, seed=3, strangers=strangers)
    some = altered(chests.select([7, 2]), name, 0.7, seed=3, strangers=strangers)
    np.testing.assert_array_equal(some.images, every.images[[7, 2]])
    if name not in ("inversion", "blur", "jpeg", "equalisation", "resolution"):
        assert (altered(chests, name, 0.7, seed=4, strangers=strangers).images != every.images).any()


def test_an_inversion_is_its_own_way_back_and_a_blend_holds_its_share(chests, strangers):
    np.testing.assert_allclose(
        altered(altered(chests, "inversion", 1, seed=0), "inversion", 1, seed=0).images, chests.images, atol=1e-6
    )
    one = strangers.select([0])
    np.testing.assert_allclose(
        altered(chests, "blend", 0.8, seed=0, strangers=one).images, 0.6 * chests.images + 0.4 * one.images, atol=1e-6
    )
    halves = altered(chests, "half", 1, seed=0, strangers=one).images
    theirs = (halves == one.images).reshape(12, -1).mean(1)
    assert ((theirs > 0.45) & (theirs < 0.75)).all()


def test_a_crop_and_an_aspect_show_what_was_there(chests):
    ramp = np.broadcast_to(np.linspace(0, 1, 64, dtype=np.float32), chests.images.shape)
    # each a little different, so that each has a draw of its own
    flat = chests.with_images(ramp * (1 - 0.001 * np.arange(12, dtype=np.float32)[:, None, None, None]))
    for name, lowest in (("crop", 0.54), ("aspect", 0.6)):
        widths = np.ptp(altered(flat, name, 1, seed=0).images, axis=-1).mean((1, 2))
        assert (widths > lowest).all() and widths.min() < 0.9


def test_the_planes_of_a_stack_share_one_draw():
    hearts = cardiac(patients=2, slices=8, size=32)
    same = hearts.with_images(np.repeat(hearts.images[:, :, :1], 8, axis=2))
    for name in ("affine", "elastic", "box", "shading"):
        made = altered(same, name, 1, seed=0).images
        np.testing.assert_allclose(made, np.repeat(made[:, :, :1], 8, axis=2), atol=1e-6)


def test_every_alteration_is_of_one_kind():
    names = [name for named in KINDS.values() for name in named]
    assert sorted(names) == sorted(ALTERATIONS) and len(set(names)) == len(names)
    assert kind_of_alteration("crop") == "geometry"


@pytest.mark.parametrize(
    ("name", "strength", "said"),
    [("elastik", 0.5, "did you mean 'elastic'"), ("crop", 1.1, "strength 1.1"), ("blend", 0.5, "needs strangers of shape")],
)
def test_what_cannot_be_altered_is_said(name, strength, said, chests):
    with pytest.raises(ValueError, match=said):
        altered(chests, name, strength, seed=0)

"""Scores of stacks against loops over planes, and a published variant of FID against FID itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsynth.evaluation.diversity import ms_ssim_pairs
from medsynth.evaluation.fidelity import frechet_distance, kid
from medsynth.evaluation.hearts.volumes import DAUM_FID, daum_fid, volume_features, volume_kid, volume_ms_ssim
from medsynth.imageset import ImageSet


class Moments:
    """An extractor that can be done by hand: mean and spread of the pixels of a plane."""

    name, dim = "moments", 2

    def __call__(self, images: ImageSet, *, batch: int = 256) -> np.ndarray:
        flat = images.scaled().reshape(len(images), -1).astype(np.float64)
        return np.stack([flat.mean(1), flat.std(1)], 1)


def stacks(n: int = 12, depth: int = 8, side: int = 8, seed: int = 0, scale: float = 1.0) -> ImageSet:
    rng = np.random.default_rng(seed)
    images = scale * rng.random((n, 1, depth, side, side)) * rng.random((n, 1, depth, 1, 1))
    return ImageSet(
        images=images, patient=np.arange(n) // 2, unit="1", range=(0, 1), name="stacks", spacing=(8, 2, 2), orientation="SAR"
    )


def test_thirds_are_means_over_neighbouring_planes_of_each_stack():
    images, planes = stacks(), range(8)
    found = volume_features(images, Moments())
    for i, stack in enumerate(images.scaled()[:, 0].astype(float)):
        single = np.array([[stack[z].mean(), stack[z].std()] for z in planes])
        expected = [single[:3].mean(0), single[3:6].mean(0), single[6:].mean(0)]
        np.testing.assert_allclose(found[i], np.concatenate(expected), rtol=1e-6)
    np.testing.assert_allclose(
        volume_features(images, Moments(), pool="mean")[:, 0], images.scaled().mean((1, 2, 3, 4)), rtol=1e-5
    )


def test_thirds_see_a_stack_upside_down_and_a_mean_does_not():
    images = stacks(40)
    ramp = images.with_images(images.images * np.linspace(0.2, 1, 8)[None, None, :, None, None])
    turned = ramp.with_images(ramp.images[:, :, ::-1])
    options = {"seed": 0, "replicates": 50}
    assert volume_kid(ramp, turned, Moments(), pool="thirds", **options).low > 0
    blind = volume_kid(ramp, turned, Moments(), pool="mean", **options)
    assert blind.low <= 0 <= blind.high


def test_volume_kid_is_kid_of_the_features_with_patients_as_units():
    real, other = stacks(seed=0), stacks(seed=1, scale=0.7)
    found = volume_kid(real, other, Moments(), seed=3, replicates=50)
    features = [volume_features(s, Moments()) for s in (real, other)]
    assert found == kid(*features, patient=real.patient, synthetic_patient=other.patient, seed=3, replicates=50)
    assert found.n == 6


def test_stacks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="expected stacks"):
        volume_features(stacks().with_images(np.zeros((12, 1, 8, 8)), spacing=None, orientation=None), Moments())
    with pytest.raises(ValueError, match="expected at least 3"):
        volume_features(stacks(depth=2), Moments())
    with pytest.raises(ValueError, match="pool 'halves'"):
        volume_features(stacks(), Moments(), pool="halves")
    with pytest.raises(ValueError, match=r"expected \(8, 8, 8\)"):
        volume_kid(stacks(), stacks(depth=9), Moments(), seed=0)


def test_ms_ssim_of_volumes_is_the_mean_over_planes_that_show_something():
    images = stacks(4, depth=4, side=24)
    pixels = images.images.copy()
    pixels[:, :, 3] = 0
    pixels[0, :, 2] = 0
    images = images.with_images(pixels, patient=np.arange(4))
    expected = []
    for a in range(4):
        for b in range(a):
            planes = [z for z in range(4) if pixels[a, 0, z].any() or pixels[b, 0, z].any()]
            assert len(planes) == 3
            x, y = (2 * pixels[i, 0, planes][:, None] - 1 for i in (a, b))
            expected.append(ms_ssim_pairs(x, y).mean())
    found = volume_ms_ssim(images, seed=0, replicates=20)
    assert found.value == pytest.approx(np.mean(expected), rel=1e-5)
    # with its padding the set would look less diverse than it is
    padded = ms_ssim_pairs(*(2 * np.zeros((1, 1, 24, 24)) - 1 for _ in range(2)))[0]
    assert padded == pytest.approx(1) and found.value < 0.9


def test_one_stack_again_and_again_has_ms_ssim_one():
    images = stacks(6, side=24)
    same = images.with_images(np.repeat(images.images[:1], 6, axis=0))
    found = volume_ms_ssim(same, seed=0, pairs=8, replicates=20)
    assert found.value == pytest.approx(1) and found.n == 3
    assert volume_ms_ssim(images, seed=0, pairs=8, replicates=20).value < 0.5


def test_ms_ssim_of_volumes_needs_two_patients_and_tissue():
    images = stacks(4, side=24)
    with pytest.raises(ValueError, match="different patients"):
        volume_ms_ssim(images.with_images(images.images, patient=np.zeros(4, dtype=int)), seed=0)
    with pytest.raises(ValueError, match="without any tissue"):
        volume_ms_ssim(images.with_images(np.zeros_like(images.images)), seed=0)


def test_the_published_variant_differs_from_fid_by_an_order_of_magnitude_on_a_mean_shift():
    real = np.random.default_rng(0).normal(size=(400, 64))
    shifted = real + 0.5
    # FID: sum of squares, 64 * 0.25. Variant: mean of sizes, 0.5, and the trace term of equal covariances is 0 in both
    assert frechet_distance(real, shifted) == pytest.approx(16)
    assert daum_fid(real, shifted) == pytest.approx(0.5)
    assert frechet_distance(real, shifted) > 10 * daum_fid(real, shifted)
    assert DAUM_FID != "FID"


def test_the_trace_term_of_the_variant_is_right_only_where_covariances_commute():
    rng = np.random.default_rng(0)
    x = np.linalg.qr(rng.normal(size=(50, 3)) - 0)[0]
    x = np.linalg.qr(x - x.mean(0))[0] * 7  # covariance exactly the identity, mean exactly 0
    straight, turned = np.diag([3.0, 1.0, 0.2]), np.linalg.qr(rng.normal(size=(3, 3)))[0]
    scaled = x @ straight
    assert daum_fid(x, scaled) == pytest.approx(frechet_distance(x, scaled), abs=1e-9)
    crossed = scaled @ turned
    assert abs(daum_fid(scaled, crossed) - frechet_distance(scaled, crossed)) > 0.05


@given(st.integers(0, 1000), st.integers(2, 6))
def test_the_variant_is_symmetric_and_never_negative(seed, dim):
    rng = np.random.default_rng(seed)
    x, y = (rng.normal(size=(30, dim)) @ rng.normal(size=(dim, dim)) for _ in range(2))
    assert daum_fid(x, y) == pytest.approx(daum_fid(y, x), rel=1e-6, abs=1e-6)
    assert daum_fid(x, y) > -1e-9
    assert daum_fid(x, x) == pytest.approx(0, abs=1e-6)


def test_the_variant_needs_one_extractor():
    with pytest.raises(ValueError, match="same extractor"):
        daum_fid(np.zeros((5, 2)), np.zeros((5, 3)))


def test_joined_features_are_those_of_each_plane_in_order():
    rng = np.random.default_rng(0)
    images = rng.random((3, 1, 4, 16, 16), dtype=np.float32)
    stacks = ImageSet(images=images, patient=np.arange(3), unit="1", range=(0, 1), name="s")

    def extractor(planes, *, batch=256):
        return planes.images.reshape(len(planes), -1)[:, :5].astype(np.float64)

    joined = volume_features(stacks, extractor, pool="planes")
    np.testing.assert_array_equal(joined, images.reshape(3, 4, 256)[:, :, :5].reshape(3, 20))

"""Pixel errors against formulas written out, and their refusal of sets that do not match."""

import numpy as np
import pytest
from shared import pixels_in_hu

from medsynth.evaluation.image_quality import psnr, rmse, ssim


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    clean = rng.uniform(-900, 300, (6, 1, 16, 16))
    return pixels_in_hu(clean), pixels_in_hu(np.clip(clean + rng.normal(0, 50, clean.shape), -1000, 400), name="noisy")


def test_psnr_and_rmse_are_means_over_images_in_the_units_of_the_reference(pair):
    clean, noisy = pair
    mse = ((clean.images.astype(float) - noisy.images) ** 2).mean((1, 2, 3))
    assert psnr(clean, noisy, seed=0).value == pytest.approx((10 * np.log10(1400**2 / mse)).mean())
    assert rmse(clean, noisy, seed=0).value == pytest.approx(np.sqrt(mse).mean())
    assert 40 < rmse(clean, noisy, seed=0).value < 55
    assert psnr(clean, noisy, seed=0).n == 3


def test_known_answers():
    flat = pixels_in_hu(np.zeros((4, 1, 16, 16)))
    off = pixels_in_hu(np.full((4, 1, 16, 16), 14.0))
    assert rmse(flat, off, seed=0).value == pytest.approx(14)
    assert psnr(flat, off, seed=0).value == pytest.approx(40)
    assert ssim(flat, flat, seed=0).value == pytest.approx(1)


def test_ssim_falls_with_noise_and_is_symmetric(pair):
    clean, noisy = pair
    assert ssim(clean, clean, seed=0).value == pytest.approx(1)
    assert ssim(clean, noisy, seed=0).value < 0.999
    assert ssim(clean, noisy, seed=0).value == pytest.approx(ssim(noisy, clean, seed=0).value)


@pytest.mark.parametrize("measure", [psnr, rmse, ssim])
def test_sets_that_do_not_match_are_refused(pair, measure):
    clean, noisy = pair
    with pytest.raises(ValueError, match="noisy: shape"):
        measure(clean, noisy.select([0, 1]), seed=0)
    with pytest.raises(ValueError, match=r"expected .* in HU"):
        measure(clean, pixels_in_hu(noisy.images, unit="SUV"), seed=0)

"""Classical methods: they help where they should, keep what a set is, and interpolation is exact where it can be."""

import numpy as np
import pytest

from medsynth.downstream.baselines import best_strength, bicubic, non_local_means, total_variation
from medsynth.downstream.degrade import truncate_kspace
from medsynth.imageset import ImageSet
from medsynth.phantoms.thorax.thorax import thorax

STRENGTHS = (0.02, 0.05, 0.1, 0.3)


@pytest.fixture(scope="module")
def clean():
    return thorax(patients=3, size=32, modality="ct", population="private")


@pytest.fixture(scope="module")
def degraded(clean):
    noise = np.random.default_rng(0).normal(0, 100, clean.images.shape)
    return clean.with_images(np.clip(clean.images + noise, *clean.range), name="noisy")


def error(a, b):
    return np.sqrt(((a.images.astype(float) - b.images) ** 2).mean())


@pytest.mark.parametrize(("method", "suffix"), [(total_variation, "tv"), (non_local_means, "nlm")])
def test_denoisers_denoise_and_keep_everything_but_pixels(method, suffix, clean, degraded):
    best = best_strength(method, degraded, clean, STRENGTHS)
    restored = method(degraded, best)
    assert error(restored, clean) < 0.9 * error(degraded, clean)
    assert all(error(restored, clean) <= error(method(degraded, s), clean) for s in STRENGTHS)
    assert (restored.name, restored.role, restored.range) == (f"noisy-{suffix}", "private", clean.range)
    assert np.array_equal(restored.patient, clean.patient) and restored.attributes.equals(clean.attributes)


@pytest.mark.parametrize("method", [total_variation, non_local_means])
def test_denoisers_leave_a_flat_image_flat_and_know_their_unit(method, degraded):
    flat = degraded.with_images(np.full_like(degraded.images, -300.0))
    assert method(flat, 0.1).images == pytest.approx(-300, abs=0.01)
    unit = ImageSet(images=(degraded.images + 1000) / 1400, patient=degraded.patient, unit="1", range=(0, 1), name="unit")
    assert method(unit, 0.1).images * 1400 - 1000 == pytest.approx(method(degraded, 0.1).images, abs=0.1)


@pytest.mark.parametrize("factor", [2, 4])
def test_bicubic_keeps_the_pixels_it_starts_from_and_comes_near_sinc(factor):
    mr = thorax(patients=2, size=32, modality="mr")
    low = truncate_kspace(mr, factor=factor)
    found = bicubic(low, factor)
    assert found.images[..., ::factor, ::factor] == pytest.approx(low.images[..., ::factor, ::factor], abs=1e-5)
    assert error(found, low) < 0.05 and not np.array_equal(found.images, low.images)
    assert found.name == f"{low.name}-bicubic"


def test_bicubic_of_a_slow_wave_is_that_wave():
    wave = 0.5 + 0.4 * np.cos(2 * np.pi * np.arange(32) / 32)
    images = ImageSet(images=np.tile(wave, (1, 1, 32, 1)), patient=np.array([0]), unit="1", range=(0, 1), name="wave")
    assert bicubic(images, 2).images == pytest.approx(images.images, abs=1e-3)


def test_what_does_not_fit_is_refused(clean, degraded):
    for method in (total_variation, non_local_means):
        for strength in (0, -1, float("nan")):
            with pytest.raises(ValueError, match="expected a positive number, 1 being the width of the range"):
                method(degraded, strength)
    for factor in (1, 2.5, 33):
        with pytest.raises(ValueError, match="noisy: factor"):
            bicubic(degraded, factor)
    volume = ImageSet(images=np.zeros((1, 1, 4, 8, 8)), patient=np.array([0]), unit="1", range=(0, 1), name="volume")
    with pytest.raises(ValueError, match=r"volume: images are .* expected 2D slices"):
        total_variation(volume, 0.1)
    with pytest.raises(ValueError, match="at strengths"):
        best_strength(total_variation, degraded, clean, ())
    with pytest.raises(ValueError, match=r"noisy: \(3, 1, 32, 32\) against \(1, 1, 32, 32\)"):
        best_strength(total_variation, degraded, clean.select([0]), STRENGTHS)

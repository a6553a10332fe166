"""Noise that follows the dose, counts and frequencies that are kept, and rows that depend on their seed and place alone."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsynth.downstream.degrade import (
    LowDose,
    fewer_counts,
    kspace_mask,
    low_dose_ct,
    measure,
    scanner_of,
    truncate_kspace,
)
from medsynth.downstream.fanbeam import FanBeam, attenuation, projector
from medsynth.imageset import ImageSet
from medsynth.phantoms.thorax.thorax import thorax

QUICK = LowDose(reconstruction="fbp")


@pytest.fixture(scope="module")
def ct():
    return thorax(patients=4, scans=5, size=16, modality="ct", population="private")


@pytest.fixture(scope="module")
def mr():
    return thorax(patients=3, size=32, modality="mr")


@pytest.fixture(scope="module")
def pet():
    return thorax(patients=3, size=16, modality="pet")


def disc_set(size=32, hu=0.0):
    x = (np.arange(size) - size / 2 + 0.5) * 409.6 / size
    inside = np.hypot(x[:, None], x[None, :]) < 150
    image = np.where(inside, hu, -1000.0)
    return ImageSet(images=image[None, None], patient=np.array([1]), unit="HU", range=(-1000, 400), name="disc")


@pytest.mark.parametrize("photons", [1e3, 1e4, 1e5])
def test_noise_of_log_projections_follows_the_dose(photons):
    """Var(-log N) = exp(P) / photons while counts are many; a sample variance of m normal values has the chi-square law."""
    p, m = 2.0, 20_000
    noise = measure(np.full(m, p), LowDose(photons=photons), np.random.default_rng(1)) - p
    expected = np.exp(p) / photons
    # relative: 4 standard errors of a variance, plus the next term of the expansion
    assert noise.var() == pytest.approx(expected, rel=4 * np.sqrt(2 / m) + 1.5 * expected)
    # the logarithm of a count is biased by half its variance
    assert noise.mean() == pytest.approx(expected / 2, abs=4 * np.sqrt(expected / m))


def test_electronic_noise_adds_its_variance_over_the_squared_counts():
    p, m, dose = 3.0, 20_000, LowDose(photons=1e4, electronic=40.0)
    counts = dose.photons * np.exp(-p)
    noise = measure(np.full(m, p), dose, np.random.default_rng(2)) - p
    assert noise.var() == pytest.approx(1 / counts + 40.0**2 / counts**2, rel=4 * np.sqrt(2 / m) + 0.02)


def test_a_cell_that_saw_nothing_counts_as_one_photon():
    seen = measure(np.full(100, 50.0), LowDose(photons=1e4), np.random.default_rng(0))
    assert seen == pytest.approx(np.log(1e4))
    blind = measure(np.full(1000, 50.0), LowDose(photons=1e4, electronic=5.0), np.random.default_rng(0))
    assert np.isfinite(blind).all() and blind.max() == pytest.approx(np.log(1e4))


def test_image_noise_falls_with_dose_and_is_the_noise_of_the_projections():
    clean = disc_set()
    runs = {d: low_dose_ct(clean, seed=0, dose=replace(QUICK, photons=d)).images for d in (1e4, 1e6)}
    still = low_dose_ct(clean, seed=0, dose=replace(QUICK, photons=1e12)).images
    spread = {d: (image - still)[0, 0, 10:22, 10:22].std() for d, image in runs.items()}
    # one realisation of 144 correlated pixels: a ratio of 10 within a third
    assert spread[1e4] / spread[1e6] == pytest.approx(10, rel=1 / 3)
    assert 5 < spread[1e4] < 200


def test_low_dose_keeps_everything_but_pixels(ct):
    low = low_dose_ct(ct, seed=0, dose=QUICK)
    assert (low.unit, low.range, low.role, low.spacing, low.name) == (
        "HU",
        ct.range,
        "private",
        ct.spacing,
        f"{ct.name}-low-dose",
    )
    assert np.array_equal(low.patient, ct.patient) and low.attributes.equals(ct.attributes)
    assert low.images.shape == ct.images.shape
    assert np.abs(low.images - ct.images).mean() > 5


@settings(max_examples=4)
@given(st.integers(1, 1000), st.integers(1, 19))
def test_rows_depend_on_seed_and_place_alone(ct, pet, seed, n):
    whole, part = (low_dose_ct(s, seed=seed, dose=QUICK) for s in (ct, ct.select(range(n))))
    assert np.array_equal(whole.images[:n], part.images)
    assert not np.array_equal(low_dose_ct(ct.select([0]), seed=0, dose=QUICK).images, whole.images[:1])
    k = min(n, len(pet))
    assert np.array_equal(
        fewer_counts(pet, counts=5, seed=seed).images[:k], fewer_counts(pet.select(range(k)), counts=5, seed=seed).images
    )


def test_equal_slices_get_different_noise(ct):
    twice = low_dose_ct(ct.select([0, 0]), seed=3, dose=QUICK)
    assert not np.array_equal(twice.images[0], twice.images[1])


def test_reconstruction_is_that_of_the_projector(ct):
    few, dose = ct.select([0, 1]), LowDose(photons=1e12, iterations=3, subsets=6)
    scanner = projector(scanner_of(few), 16)
    expected = scanner.sart(scanner.forward(attenuation(few.images[:, 0])), iterations=3, subsets=6)
    found = low_dose_ct(few, seed=0, dose=dose).images[:, 0]
    assert attenuation(found) == pytest.approx(np.clip(expected, 0, attenuation(np.array(400.0))), abs=1e-3)


def test_the_scanner_fits_the_images(ct):
    assert scanner_of(ct) == FanBeam().for_size(16, field_mm=16 * ct.spacing[0])
    assert scanner_of(disc_set()).field_mm == 409.6
    assert scanner_of(ct, views=40).views == 40
    with pytest.raises(ValueError, match=r"16 pixels of .* mm are not the geometry's field of 409\.6 mm; use scanner_of"):
        low_dose_ct(ct, seed=0, dose=QUICK, geometry=FanBeam().for_size(16))
    assert len(low_dose_ct(ct.select([]), seed=0)) == 0


@pytest.mark.parametrize("factor", [2, 4])
def test_truncated_kspace_keeps_the_centre_and_nothing_else(mr, factor):
    mask = kspace_mask(32, factor)
    low = truncate_kspace(mr, factor=factor)
    assert low.name == f"{mr.name}-kspace-{factor}" and low.spacing == mr.spacing

    assert mask.sum() == (32 // factor - 1) ** 2 and mask[0, 0] == 1
    # symmetric, so that a real image stays real
    assert np.array_equal(mask, np.roll(mask[::-1, ::-1], 1, axis=(0, 1)))
    # a smooth image has nothing outside the centre, and comes back as it was
    smooth = truncate_kspace(low.with_images(low.images * 0.5 + 0.25), factor=factor)
    again = truncate_kspace(smooth, factor=factor)
    assert again.images == pytest.approx(smooth.images, abs=1e-5)
    lost = ((low.images - mr.images) ** 2).mean()
    assert 1e-5 < lost < 0.02


def test_a_wave_passes_or_vanishes():
    x = np.arange(32)
    waves = [0.5 + 0.4 * np.cos(2 * np.pi * k * x / 32) for k in (3, 4, 7, 8)]
    images = np.stack([np.tile(w, (32, 1)) for w in waves])[:, None]
    waves = ImageSet(images=images, patient=np.arange(4), unit="1", range=(0, 1), name="waves")
    by_two, by_four = (truncate_kspace(waves, factor=f).images for f in (2, 4))
    assert by_two[:3] == pytest.approx(waves.images[:3], abs=1e-6) and by_two[3] == pytest.approx(0.5, abs=1e-6)
    assert by_four[:1] == pytest.approx(waves.images[:1], abs=1e-6) and by_four[1:] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("counts", [2.0, 50.0])
def test_pet_noise_has_the_variance_of_its_counts(counts):
    flat = ImageSet(
        images=np.full((4, 1, 64, 64), 3.0), patient=np.arange(4), unit="SUV", range=(0, 50), name="flat", role="private"
    )
    noisy = fewer_counts(flat, counts=counts, seed=0)
    m = flat.images.size
    assert noisy.images.mean() == pytest.approx(3, abs=4 * np.sqrt(3 / counts / m))
    assert noisy.images.var() == pytest.approx(3 / counts, rel=5 * np.sqrt(2 / m) + 2 / (3 * counts * np.sqrt(m)))
    assert (noisy.role, noisy.name) == ("private", "flat-low-count")


def test_pet_of_a_phantom_gets_noisier_with_fewer_counts(pet):
    errors = [np.abs(fewer_counts(pet, counts=c, seed=0).images - pet.images).mean() for c in (1, 10, 100)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0
    assert len(fewer_counts(pet.select([]), counts=1, seed=0)) == 0


def test_what_cannot_be_degraded_is_refused(ct, mr, pet):
    with pytest.raises(ValueError, match="unit is '1'; low-dose CT is simulated from Hounsfield units"):
        low_dose_ct(mr, seed=0)
    volume = ImageSet(images=np.zeros((1, 1, 4, 8, 8)), patient=np.array([0]), unit="1", range=(0, 1), name="volume")
    for function in (lambda s: truncate_kspace(s, factor=2), lambda s: fewer_counts(s, counts=1, seed=0), scanner_of):
        with pytest.raises(ValueError, match=r"volume: images are \(1, 4, 8, 8\); expected square 2D slices"):
            function(volume)
    for factor in (1, 2.0, 17):
        with pytest.raises(ValueError, match="k-space: factor"):
            truncate_kspace(mr, factor=factor)
    with pytest.raises(ValueError, match="range starts at -1000"):
        fewer_counts(ct, counts=1, seed=0)
    for counts in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="expected a positive number"):
            fewer_counts(pet, counts=counts, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"photons": 0.5}, r"0\.5 photons per ray"), ({"photons": float("nan")}, "nan photons"),
        ({"electronic": -1.0}, "electronic noise of -1.0 counts"), ({"reconstruction": "iradon"}, "reconstruction 'iradon'"),
    ],
)  # fmt: skip
def test_impossible_doses_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        LowDose(**change)

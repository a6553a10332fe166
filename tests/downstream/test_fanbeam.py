"""The projector against rays traced one by one, known integrals, its own transpose, and images that come back."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsynth.downstream import fanbeam
from medsynth.downstream.fanbeam import MU_WATER, FanBeam, Projector, attenuation, hounsfield, projector
from medsynth.phantoms.thorax.thorax import thorax

SMALL = FanBeam().for_size(16)
SIZE = 64


@pytest.fixture(scope="module")
def scanner():
    return projector(FanBeam().for_size(SIZE, field_mm=384.0), SIZE)


@pytest.fixture(scope="module")
def slices():
    return thorax(patients=3, size=SIZE, modality="ct")


def disc(size, field, radius, centre=(0.0, 0.0)):
    """Share of every pixel inside a disc, from 8 x 8 points in it; lengths in mm."""
    fine = (np.arange(8 * size) + 0.5) * field / (8 * size) - field / 2
    x, y = np.meshgrid(fine, -fine)
    inside = np.hypot(x - centre[0], y - centre[1]) < radius
    return inside.reshape(size, 8, size, 8).mean(axis=(1, 3))


def ray_of(g, view, detector):
    """Source and unit direction of a ray, in mm."""
    beta = 2 * np.pi * view / g.views
    gamma = g.first + (g.last - g.first) * detector / (g.detectors - 1)
    source = g.source_mm * np.array([np.cos(beta), np.sin(beta)])
    return source, -np.array([np.cos(beta + gamma), np.sin(beta + gamma)])


def traced(g, size, view, detector):
    """Length in cm of one ray in every pixel: where it crosses each grid line, and which pixel lies between two crossings."""
    source, along = ray_of(g, view, detector)
    half, pixel = g.field_mm / 2, g.field_mm / size
    lines = np.linspace(-half, half, size + 1)
    crossings = np.sort(np.concatenate([(lines - source[k]) / along[k] for k in (0, 1) if abs(along[k]) > 1e-12]))
    lengths = np.zeros((size, size))
    for a, b in itertools.pairwise(crossings):
        x, y = source + along * (a + b) / 2
        column, row = int(np.floor((x + half) / pixel)), int(np.floor((half - y) / pixel))
        if 0 <= column < size and 0 <= row < size:
            lengths[row, column] += (b - a) / 10
    return lengths


def test_the_published_scanner_and_how_it_shrinks():
    g = FanBeam()
    assert (g.views, g.detectors, g.source_mm, g.field_mm) == (1152, 672, 570.0, 409.6)
    assert (g.first, g.last) == (-0.4560, 0.4526)
    assert g.for_size(512) == g.for_size(256) == g
    half = g.for_size(128, field_mm=384.0)
    assert (half.views, half.detectors, half.field_mm) == (576, 336, 384.0)
    assert (half.first, half.last, half.source_mm) == (g.first, g.last, g.source_mm)
    assert g.for_size(128, views=60).views == 60
    assert g.covered_mm == pytest.approx(570 * np.sin(0.4526))
    assert g.step == pytest.approx(0.9086 / 671)


def test_hounsfield_units_and_attenuation():
    assert attenuation(np.array([-1024.0, -1000.0, 0.0, 1000.0])) == pytest.approx([0, 0, MU_WATER, 2 * MU_WATER])
    assert hounsfield(attenuation(np.array([-1000.0, -500.0, 400.0]))) == pytest.approx([-1000, -500, 400])


@pytest.mark.parametrize("view", [0, 3, 9, 17, 20, 35, 71])
def test_the_matrix_holds_the_lengths_of_rays_traced_one_by_one(view):
    g = replace(SMALL, views=72, detectors=22)
    rows = projector(g, 16).matrix.toarray().reshape(72, 22, 16, 16)[view]
    expected = np.stack([traced(g, 16, view, d) for d in range(22)])
    # a ray along a grid line may be counted to either side of it
    assert np.abs(rows - expected).max() < 1e-6
    assert rows.sum() > 100


def test_rays_along_grid_lines_keep_their_length_and_those_beside_the_image_have_none():
    g = FanBeam(views=72, detectors=41, first=-np.pi / 9, last=np.pi / 9, field_mm=100.0)
    lengths = projector(g, 16).matrix.sum(1).reshape(72, 41)
    # the central rays of views 0, 18, ... run along the line between the two middle rows or columns
    assert lengths[::18, 20] == pytest.approx(10.0, abs=1e-5)
    # from 20 degrees, the first ray runs parallel to the x axis, 195 mm above it
    assert lengths[4, 0] == 0


def test_the_matrix_does_not_depend_on_how_many_rays_are_traced_at_once(monkeypatch):
    whole = Projector(SMALL, 16).matrix
    monkeypatch.setattr(fanbeam, "_CROSSINGS", 1000)
    parts = Projector(SMALL, 16).matrix
    for name in ("data", "indices", "indptr"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))


def test_a_disc_of_water_of_20_cm_has_the_line_integral_of_20_cm_of_water(scanner):
    g = scanner.geometry
    rays = scanner.forward(MU_WATER * disc(SIZE, g.field_mm, 100.0)[None])[0]
    gamma = g.first + g.step * np.arange(g.detectors)
    chord = 2 * np.sqrt(np.maximum(100.0**2 - (g.source_mm * np.sin(gamma)) ** 2, 0)) / 10
    assert rays[:, np.abs(gamma).argmin()] == pytest.approx(0.192 * 20, rel=0.01)
    # the pixels of the rim blur it
    clear = np.abs(np.abs(gamma) - np.arcsin(100 / g.source_mm)) > 2 * g.step
    assert rays.mean(0)[clear] == pytest.approx(MU_WATER * chord[clear], abs=0.05)


def test_a_disc_off_centre_falls_on_the_detectors_that_face_it(scanner):
    g, centre = scanner.geometry, (90.0, 40.0)
    rays = scanner.forward(disc(SIZE, g.field_mm, 15.0, centre)[None])[0]
    for view in range(0, g.views, 17):
        beta = 2 * np.pi * view / g.views
        source = g.source_mm * np.array([np.cos(beta), np.sin(beta)])
        towards = np.array(centre) - source
        angle = (np.arctan2(towards[1], towards[0]) - np.arctan2(-source[1], -source[0]) + np.pi) % (2 * np.pi) - np.pi
        found = (rays[view] * (g.first + g.step * np.arange(g.detectors))).sum() / rays[view].sum()
        assert found == pytest.approx(angle, abs=g.step)


@settings(max_examples=5)
@given(st.floats(-3, 3), st.floats(-3, 3), st.integers(0, 100))
def test_every_step_is_linear_and_treats_images_on_their_own(a, b, seed):
    p = projector(SMALL, 16)
    x, y = np.random.default_rng(seed).random((2, 1, 16, 16))
    rx, ry = p.forward(x), p.forward(y)
    for function in (p.forward, lambda v: p.fbp(p.forward(v)), lambda v: p.sart(p.forward(v), iterations=2, subsets=4)):
        assert function(a * x + b * y) == pytest.approx(a * function(x) + b * function(y), abs=2e-4)
    both = np.concatenate([rx, ry])
    for back in (p.fbp, lambda r: p.sart(r, iterations=2, subsets=4)):
        assert np.array_equal(back(both)[1:], back(ry))


@pytest.mark.parametrize(("method", "rmse"), [("ramp", 20.0), ("hann", 60.0), ("sart", 12.0)])
def test_a_noiseless_round_trip_brings_phantom_slices_back(scanner, slices, method, rmse):
    rays = scanner.forward(attenuation(slices.images[:, 0]))
    back = scanner.sart(rays) if method == "sart" else scanner.fbp(rays, window=method)
    hu = np.clip(hounsfield(back), *slices.range)
    error = np.sqrt(((hu - slices.images[:, 0]) ** 2).mean((1, 2)))
    print(f"round trip, {method}: RMSE {error.round(1)} HU, PSNR {(20 * np.log10(1400 / error)).round(1)} dB")
    assert (error < rmse).all()


@pytest.mark.parametrize("window", ["ramp", "hann"])
def test_filtered_back_projection_keeps_the_level_of_water(scanner, window):
    water = MU_WATER * disc(SIZE, scanner.geometry.field_mm, 150.0)[None]
    back = scanner.fbp(scanner.forward(water), window=window)[0]
    inside = disc(SIZE, scanner.geometry.field_mm, 110.0) == 1
    assert back[inside].mean() == pytest.approx(MU_WATER, rel=0.003)
    assert back[~scanner.covered] == pytest.approx(0)


def test_hann_lets_less_noise_through_than_the_ramp(scanner):
    noise = np.random.default_rng(0).standard_normal((1, scanner.geometry.views, scanner.geometry.detectors))
    assert scanner.fbp(noise, window="hann").std() < 0.6 * scanner.fbp(noise).std()


def test_sart_comes_closer_with_every_iteration():
    # some rays miss the image
    g = replace(FanBeam().for_size(32), field_mm=380.0)
    p, image = projector(g, 32), attenuation(-1000 + 1000 * disc(32, 380.0, 120.0))[None]
    assert (p.matrix.sum(1) == 0).any()
    rays = p.forward(image)
    errors = [np.abs(p.sart(rays, iterations=k) - image).mean() for k in (1, 4, 16)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert np.abs(p.sart(rays, iterations=4, relaxation=0.2) - image).mean() > errors[1]


def test_projectors_are_shared():
    assert projector(SMALL, 16) is projector(SMALL, 16)
    assert Projector(SMALL, 16) == projector(SMALL, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views": 30}, "30 views x 672 detectors; expected a multiple of 4"),
        ({"detectors": 1}, "1152 views x 1 detectors"),
        ({"first": 0.1}, "fan from 0.1 to 0.4526 rad"),
        ({"last": 1.6}, "fan from -0.456 to 1.6 rad"),
        ({"field_mm": 900.0}, "would turn inside an image of 900.0 mm"),
    ],
)
def test_impossible_scanners_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        FanBeam(**change)


def test_arrays_and_options_that_do_not_fit_are_refused():
    p = projector(SMALL, 16)
    rays = np.zeros((1, SMALL.views, SMALL.detectors))
    with pytest.raises(ValueError, match=r"attenuation have shape \(16, 16\); expected \(n, 16, 16\)"):
        p.forward(np.zeros((16, 16)))
    for function in (p.fbp, p.sart):
        with pytest.raises(ValueError, match="line integrals have shape"):
            function(rays[:, 1:])
    with pytest.raises(ValueError, match=r"window 'cosine'; expected one of \('ramp', 'hann'\)"):
        p.fbp(rays, window="cosine")
    with pytest.raises(ValueError, match="SART: 0 subsets"):
        p.sart(rays, subsets=0)

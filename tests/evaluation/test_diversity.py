"""Precision, recall, density, coverage and MS-SSIM against naive loops and a reference implementation."""

import numpy as np
import pytest
import torch

from medsynth.evaluation.diversity import _cross_pairs, authenticity, ms_ssim, ms_ssim_pairs, ms_ssim_scales, prdc, vendi
from medsynth.evaluation.statistics import generator
from medsynth.imageset import ImageSet


def naive_prdc(real, fake, k_pr, k_dc):
    def ball(points, i, k):
        return sorted(np.linalg.norm(points[i] - p) for j, p in enumerate(points) if j != i)[k - 1]

    def covered(point, points, k):
        return [np.linalg.norm(point - p) <= ball(points, i, k) for i, p in enumerate(points)]

    return (
        np.mean([any(covered(f, real, k_pr)) for f in fake]),
        np.mean([any(covered(r, fake, k_pr)) for r in real]),
        np.mean([sum(covered(f, real, k_dc)) / k_dc for f in fake]),
        np.mean([any(np.linalg.norm(r - f) <= ball(real, i, k_dc) for f in fake) for i, r in enumerate(real)]),
    )


@pytest.mark.parametrize(("k_pr", "k_dc"), [(1, 2), (3, 5)])
def test_prdc_equals_the_definitions(k_pr, k_dc):
    real, fake = generator(0).normal(size=(20, 3)), generator(1).normal(size=(25, 3)) * 0.8 + 0.3
    found = prdc(real, fake, patient=np.arange(20), seed=0, k_pr=k_pr, k_dc=k_dc)
    np.testing.assert_allclose([e.value for e in found], naive_prdc(real, fake, k_pr, k_dc))
    assert all(e.low <= e.value <= e.high for e in found)


def test_prdc_of_copies_of_the_real_set_and_of_a_far_set():
    real = generator(0).normal(size=(60, 4))
    same = prdc(real, real, patient=np.arange(60) // 3, seed=0)
    assert same.precision.value == same.recall.value == same.coverage.value == 1
    assert (same.precision.n, same.recall.n) == (60, 20)
    assert [e.n_of for e in same] == ["images", "patients", "images", "patients"]
    far = prdc(real, real + 100, patient=np.arange(60), seed=0)
    assert [e.value for e in far] == [0, 0, 0, 0]


def test_a_collapsed_set_has_precision_but_neither_recall_nor_coverage():
    real = generator(0).normal(size=(100, 4))
    collapsed = prdc(real, np.repeat(real[:1], 50, axis=0), patient=np.arange(100), seed=0)
    assert collapsed.precision.value == 1
    assert collapsed.recall.value <= 0.02 and collapsed.coverage.value < 0.2


def test_prdc_needs_a_kth_neighbour():
    with pytest.raises(ValueError, match="no 5-th neighbour"):
        prdc(np.zeros((5, 2)), np.zeros((9, 2)), patient=np.arange(5), seed=0)


def images_of(arrays, patient=None):
    arrays = np.asarray(arrays, dtype=np.float32)
    patient = np.arange(len(arrays)) if patient is None else patient
    return ImageSet(images=arrays, patient=patient, unit="1", range=(0, 1), name="test")


def smooth(n, side, seed):
    coarse = torch.from_numpy(generator(seed).random((n, 1, 8, 8)))
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1).numpy()


def naive_ms_ssim(x, y):
    """Wang et al. (2003) in float64, a window at a time; images (h, w) in [0, 1]."""
    scales = ms_ssim_scales(x.shape)
    exponents = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333][:scales])
    taps = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / taps.sum() ** 2
    product = 1.0
    for scale, exponent in enumerate(exponents / exponents.sum()):
        values = []
        for i, j in np.ndindex(x.shape[0] - 10, x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb, both = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum(), (window * (a - ma) * (b - mb)).sum()
            contrast = (2 * both + 0.03**2) / (va + vb + 0.03**2)
            luminance = (2 * ma * mb + 0.01**2) / (ma**2 + mb**2 + 0.01**2)
            values.append(contrast * (luminance if scale == scales - 1 else 1))
        product *= max(0, np.mean(values)) ** exponent
        x, y = (z[: len(z) // 2 * 2, : z.shape[1] // 2 * 2].reshape(len(z) // 2, 2, -1, 2).mean((1, 3)) for z in (x, y))
    return product


@pytest.mark.parametrize("shape", [(22, 30), (48, 45), (90, 88)])
def test_ms_ssim_equals_the_definition(shape):
    """Two, three and four scales; at 88 px MONAI's own loop over scales gives up."""
    x = smooth(2, 96, 0)[..., : shape[0], : shape[1]]
    y = np.clip(0.7 * x + 0.3 * smooth(2, 96, 1)[..., : shape[0], : shape[1]] + 0.02, 0, 1)
    # flat regions: their variances are differences of nearly equal numbers, in single precision
    y[1, 0, :11] = x[1, 0, :11] = 0.4
    expected = [naive_ms_ssim(a, b) for a, b in zip(x[:, 0], y[:, 0], strict=True)]
    np.testing.assert_allclose(ms_ssim_pairs(x * 2 - 1, y * 2 - 1), expected, rtol=5e-5)


def test_ms_ssim_equals_monai_at_five_scales():
    from monai.metrics import MultiScaleSSIMMetric

    x, y = smooth(3, 192, 0), smooth(3, 192, 1) * 0.5 + smooth(3, 192, 0) * 0.5
    metric = MultiScaleSSIMMetric(spatial_dims=2, data_range=1.0, kernel_size=11, kernel_sigma=1.5)
    expected = metric(torch.from_numpy(x), torch.from_numpy(y)).double().numpy()[:, 0]
    # it takes the published exponents as they are, which sum to 1.0001
    np.testing.assert_allclose(ms_ssim_pairs(x * 2 - 1, y * 2 - 1), expected, rtol=1e-3)


def test_ms_ssim_of_equal_images_is_one_and_of_inverted_ones_is_low():
    x = smooth(4, 32, 0) * 2 - 1
    np.testing.assert_allclose(ms_ssim_pairs(x, x), 1)
    assert (ms_ssim_pairs(x, -x) < 0.3).all()
    np.testing.assert_allclose(ms_ssim_pairs(x, -x, batch=3), ms_ssim_pairs(x, -x))


def test_scales_follow_the_size():
    assert [ms_ssim_scales((s, 300)) for s in (22, 32, 44, 64, 88, 128, 176, 512)] == [2, 2, 3, 3, 4, 4, 5, 5]
    for side in (8, 21):
        with pytest.raises(ValueError, match="at least 22 px"):
            ms_ssim_scales((side, 64))


def test_a_repetitive_set_scores_higher_than_a_varied_one():
    varied = smooth(30, 32, 0)
    repetitive = np.concatenate([varied[:10], np.repeat(varied[:1], 20, axis=0)])
    a, b = (ms_ssim(images_of(x), seed=0, pairs=300) for x in (varied, repetitive))
    assert a.low < a.value < a.high < b.value and a.n == 30
    assert a == ms_ssim(images_of(varied), seed=0, pairs=300)


def test_only_pairs_of_different_patients_count():
    unit = np.repeat(np.arange(5), [1, 1, 1, 1, 30])
    first, second = _cross_pairs(unit, 500, 0)
    assert len(first) == 500 and (unit[first] != unit[second]).all()
    # every cross pair of rows is equally likely: the big patient is in 120 of the 126
    assert ((unit[first] == 4) | (unit[second] == 4)).mean() == pytest.approx(120 / 126, abs=0.04)


def test_ms_ssim_refuses_volumes_and_single_patients():
    with pytest.raises(ValueError, match="takes 2D images"):
        ms_ssim(images_of(np.zeros((3, 1, 4, 32, 32))), seed=0)
    with pytest.raises(ValueError, match="different patients"):
        ms_ssim(images_of(np.zeros((3, 1, 32, 32)), np.zeros(3, dtype=int)), seed=0)


def test_authenticity_is_its_definition_and_copies_have_none():
    training, drawn = generator(0).normal(size=(40, 3)), generator(1).normal(size=(30, 3))

    def authentic(row):
        near = min(range(40), key=lambda j: np.linalg.norm(row - training[j]))
        own = min(np.linalg.norm(training[near] - training[j]) for j in range(40) if j != near)
        return np.linalg.norm(row - training[near]) > own

    found = authenticity(training, drawn, seed=0)
    assert found.value == np.mean([authentic(row) for row in drawn]) and (found.n, found.n_of) == (30, "images")
    assert authenticity(training, training[:20], seed=0).value == 0
    with pytest.raises(ValueError, match="1 training row"):
        authenticity(training[:1], drawn, seed=0)


def test_of_new_images_of_the_population_about_half_are_authentic():
    training, drawn = generator(0).normal(size=(2000, 4)), generator(1).normal(size=(2000, 4))
    assert abs(authenticity(training, drawn, seed=0).value - 0.5) < 0.06


@pytest.mark.parametrize("dim", [3, 40])
def test_vendi_counts_what_is_different(dim):
    rows = np.eye(dim)
    assert vendi(np.repeat(rows[:1], 9, axis=0)) == pytest.approx(1)
    assert vendi(np.repeat(rows[:3], 7, axis=0)) == pytest.approx(3)
    x = generator(0).normal(size=(25, dim))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    share = np.linalg.eigvalsh(unit @ unit.T / 25).clip(min=1e-300)
    assert vendi(x) == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert vendi(x * generator(1).uniform(0.1, 9, (25, 1))) == pytest.approx(vendi(x))
    with pytest.raises(ValueError, match="row 2 is all zeros"):
        vendi(np.array([[1.0, 0], [0, 1], [0, 0]]))

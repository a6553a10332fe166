"""FID and KID against naive references, closed forms and the rules about sample size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.stats import special_ortho_group

from medsynth.evaluation import fidelity as fi
from medsynth.evaluation.statistics import generator, patient_halves


def naive_fid(x, y):
    sx, sy = (np.atleast_2d(np.cov(a, rowvar=False)) for a in (x, y))
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sx + sy - 2 * sqrtm(sx @ sy).real)


def naive_kid(x, y, patient):
    def k(a, b):
        return (a @ b / len(a) + 1) ** 3

    real = [k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if patient[i] != patient[j]]
    fake = [k(y[i], y[j]) for i in range(len(y)) for j in range(len(y)) if i != j]
    return np.mean(real) + np.mean(fake) - 2 * np.mean([k(a, b) for a in x for b in y])


def sample(n, d, *key):
    rng = generator(*key)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


@given(st.integers(1, 6), st.integers(0, 3), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_fid_equals_the_definition_with_a_matrix_square_root(d, extra, seed):
    x, y = sample(12 * d + 5, d, seed, 0), sample(12 * d + 5 + extra, d, seed, 1)
    expected = naive_fid(x, y)
    assert fi.frechet_distance(x, y) == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_fid_is_exact_with_fewer_rows_than_dimensions():
    x, y = sample(9, 30, 0), sample(7, 30, 1)
    values = np.linalg.eigvals(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False)).real
    trace = np.sqrt(np.sort(values)[-6:]).sum()  # rank of the smaller covariance
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.cov(x.T).trace() + np.cov(y.T).trace() - 2 * trace
    assert fi.frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_fid_of_gaussians_approaches_the_closed_form():
    rng, n = generator(0), 200_000
    a, b = np.array([1.0, 2.0, 0.5]), np.array([2.0, 1.0, 1.5])
    x, y = rng.normal(size=(n, 3)) * a, rng.normal(size=(n, 3)) * b + [1, 0, -1]
    assert fi.frechet_distance(x, y) == pytest.approx(2 + ((a - b) ** 2).sum(), rel=0.02)


def test_the_bias_of_fid_is_about_d_squared_over_2n():
    d, n = 32, 640
    values = [fi.frechet_distance(generator(s, 0).normal(size=(n, d)), generator(s, 1).normal(size=(n, d))) for s in range(10)]
    assert np.mean(values) == pytest.approx(d**2 / (2 * n), rel=0.15)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_fid_and_kid_are_symmetric_and_ignore_row_order_and_rotation(seed):
    x, y = sample(24, 4, seed, 0), sample(20, 4, seed, 1)
    q = special_ortho_group.rvs(4, random_state=seed)
    order = generator(seed).permutation(24)
    px, py = np.arange(24), np.arange(20)
    assert fi.frechet_distance(x, y) == pytest.approx(fi.frechet_distance(y, x), rel=1e-7, abs=1e-9)
    assert fi.frechet_distance(x[order] @ q, y @ q) == pytest.approx(fi.frechet_distance(x, y), rel=1e-7, abs=1e-9)
    assert fi.frechet_distance(x, x) == pytest.approx(0, abs=1e-9 * np.var(x) * 4)
    assert fi.kid_value(x, y, px) == pytest.approx(fi.kid_value(y, x, py), rel=1e-7)
    assert fi.kid_value(x[order] @ q, y @ q, px) == pytest.approx(fi.kid_value(x, y, px), rel=1e-7)


@given(st.integers(0, 1000), st.booleans())
@settings(max_examples=15, deadline=None)
def test_kid_equals_the_double_loop_without_pairs_of_one_patient(seed, repeated):
    x, y = sample(12, 3, seed, 0), sample(9, 3, seed, 1)
    patient = generator(seed).integers(0, 5, 12) if repeated else np.arange(12)
    assert fi.kid_value(x, y, patient) == pytest.approx(naive_kid(x, y, patient), rel=1e-9)


def test_kid_takes_patients_on_both_sides():
    x, y = sample(12, 3, 0), sample(12, 3, 1)
    p, q = np.repeat([4, 8, 2], 4), np.repeat([1, 9], 6)
    k = (y @ y.T / 3 + 1) ** 3
    without = k[q[:, None] != q[None]].mean() - k[~np.eye(12, dtype=bool)].mean()
    assert fi.kid_value(x, y, p, q) == pytest.approx(fi.kid_value(x, y, p) + without)


def test_kid_of_one_distribution_is_zero_on_average_even_with_similar_images_of_a_patient():
    values = []
    for s in range(60):
        rng = generator(s)
        x = np.repeat(rng.normal(size=(15, 4)), 4, axis=0) + 0.1 * rng.normal(size=(60, 4))
        values.append(fi.kid_value(x, rng.normal(size=(60, 4)) * np.sqrt(1.01), np.repeat(np.arange(15), 4)))
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(60)
    assert min(values) < 0


def test_kid_interval_holds_zero_for_equal_and_not_for_shifted_sets():
    x, y = generator(0).normal(size=(150, 8)), generator(1).normal(size=(150, 8))
    equal = fi.kid(x, y, patient=np.arange(150), seed=0)
    assert equal.low <= 0 <= equal.high and equal.n == 150
    shifted = fi.kid(x, y + 0.5, patient=np.arange(150) // 2, seed=0)
    assert 0 < shifted.low < shifted.value < shifted.high and shifted.n == 75


def test_kid_bootstrap_replicates_equal_the_formula_on_resampled_patients():
    x, y = sample(10, 3, 0), sample(6, 3, 1)
    unit = np.repeat(np.arange(5), 2)
    blocks = fi._Blocks.of(x, unit, y)
    drawn_r, drawn_s = np.array([2, 0, 1, 1, 1]), np.array([1, 1, 0, 3, 0, 1])
    rows, fake = np.repeat(np.arange(10), drawn_r[unit]), np.repeat(np.arange(6), drawn_s)

    def mean(a, b, ia, ib, same):
        k = (a[ia] @ b[ib].T / 3 + 1) ** 3
        return k[~same].mean()

    different = np.zeros((len(rows), len(fake)), dtype=bool)
    expected = (
        mean(x, x, rows, rows, unit[rows][:, None] == unit[rows])
        + mean(y, y, fake, fake, fake[:, None] == fake)
        - 2 * mean(x, y, rows, fake, different)
    )
    assert blocks.mmd2(drawn_r[None], drawn_s[None])[0] == pytest.approx(expected)


def test_kid_subsets_is_the_mean_over_subsets_and_wider_for_smaller_ones():
    x, y = generator(0).normal(size=(200, 4)), generator(1).normal(size=(150, 4)) + 0.3
    small, large = (fi.kid_subsets(x, y, seed=0, size=s, subsets=40) for s in (20, 100))
    assert small.high - small.low > large.high - large.low
    assert large.value == pytest.approx(fi.kid_value(x, y, np.arange(200)), abs=0.1)
    with pytest.raises(ValueError, match="subsets of 151 rows"):
        fi.kid_subsets(x, y, seed=0, size=151)


def test_fid_refuses_small_and_unequal_sets():
    x, y = sample(20, 10, 0), sample(19, 10, 1)
    with pytest.raises(ValueError, match=r"at least 20 rows on both sides; found 20 real and 19.*report KID"):
        fi.fid(x, y, patient=np.arange(20), seed=0)
    with pytest.raises(ValueError, match="subsample"):
        fi.fid(x, sample(25, 10, 1), patient=np.arange(20), seed=0)
    with pytest.raises(ValueError, match="same extractor"):
        fi.frechet_distance(x, y[:, :9])
    with pytest.raises(ValueError, match="ask for at most 19"):
        fi.subsample(y, 20, seed=0)
    with pytest.raises(ValueError, match="1 real and 19 synthetic units"):
        fi.kid(x, y, patient=np.zeros(20), seed=0)


def test_fid_interval_surrounds_the_value_and_weights_equal_repeated_rows():
    x, y = sample(60, 3, 0), sample(60, 3, 1)
    e = fi.fid(x, y, patient=np.arange(60) // 2, seed=0)
    assert e.low < e.value < e.high and e.value == fi.frechet_distance(x, y) and e.n == 30
    w = generator(2).integers(0, 3, 60)
    assert fi.frechet_distance(x, y, w) == pytest.approx(fi.frechet_distance(np.repeat(x, w, axis=0), y))
    assert fi.fid(x, x, patient=np.arange(60), seed=0).low == 0


def test_floor_and_synthetic_are_compared_at_one_size_and_a_perfect_sampler_has_ratio_one():
    rng = generator(0)
    real, perfect, poor = rng.normal(size=(240, 8)), rng.normal(size=(500, 8)), rng.normal(size=(500, 8)) + 0.5
    patient = np.arange(240)
    good = fi.fidelity(real, patient, perfect, seed=0, splits=20)
    assert good.rows == 120 and good.fid.n == 240
    assert good.fid_ratio.value == pytest.approx(1, abs=0.15)
    assert good.fid_floor == fi.real_floor(real, patient, seed=0, splits=20).fid
    assert good.kid_ratio.value < 1
    bad = fi.fidelity(real, patient, poor, seed=0, splits=20)
    assert bad.fid_ratio.low > 2 and bad.kid_ratio.low > 2
    assert {row["metric"] for row in bad.table()} == {"fid", "fid_floor", "fid_ratio", "kid", "kid_floor", "kid_ratio"}
    assert all(row["rows"] == 120 for row in bad.table())


def test_intervals_hold_the_value_of_an_endless_sample():
    """Halves of one sample say how much halves differ: their spread held the true KID in one study of three."""
    held = []
    for study in range(60):
        rng = generator(9, study)
        # one dimension, a shift of 0.6: MMD^2 of (xy + 1)^3 follows from the first three moments
        real, made = rng.normal(size=(120, 1)), rng.normal(size=(100, 1)) + 0.6
        e = fi.fidelity(real, np.arange(120), made, seed=study, splits=5).kid
        held.append(e.low <= 5.533056 <= e.high)
    assert 0.85 <= np.mean(held) <= 1


def test_a_small_synthetic_set_lowers_the_size_on_both_sides_and_drops_fid():
    rng = generator(1)
    real, few = rng.normal(size=(240, 8)), rng.normal(size=(15, 8))
    report = fi.fidelity(real, np.arange(240), few, seed=0, splits=20)
    assert report.rows == 15 and report.fid is None and report.fid_floor is None
    assert {row["metric"] for row in report.table()} == {"kid", "kid_floor", "kid_ratio"}


def test_a_floor_below_zero_is_no_yardstick():
    """With few splits every one of them may fall below zero; a ratio to that would be negative, its interval reversed."""
    rng = generator(3)
    real, made = rng.normal(size=(60, 4)), rng.normal(size=(60, 4)) + 0.5
    reports = [fi.fidelity(real, np.arange(60), made, seed=seed, splits=1) for seed in range(20)]
    below = [r for r in reports if r.kid_floor.high <= 0]
    assert 0 < len(below) < 20
    assert all((r.kid_ratio is None) == (r.kid_floor.high <= 0) for r in reports)
    assert all("kid_ratio" not in {row["metric"] for row in r.table()} for r in below)
    assert all(r.kid_ratio.low <= r.kid_ratio.value <= r.kid_ratio.high for r in reports if r.kid_ratio)


def test_floor_is_the_mean_over_patient_halves():
    x, patient = sample(40, 2, 0), np.arange(40) // 4
    floor = fi.real_floor(x, patient, seed=1, splits=6, rows=16)
    halves = patient_halves(patient, seed=1, splits=6, n=16)
    assert floor.fid.value == pytest.approx(np.mean([naive_fid(x[a], x[b]) for a, b in halves]))
    assert floor.rows == 16 and floor.kid.n == 10

"""FID and KID against naive references and closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import special_ortho_group
from shared import naive_fid

from medsynth.evaluation import fidelity as fi
from medsynth.evaluation.statistics import generator


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
    blocks = fi._Blocks.of(x, unit, y, np.arange(6))
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


def test_sets_that_cannot_be_compared_are_refused():
    x, y = sample(20, 10, 0), sample(19, 10, 1)
    with pytest.raises(ValueError, match="same extractor"):
        fi.frechet_distance(x, y[:, :9])
    with pytest.raises(ValueError, match="ask for at most 19"):
        fi.subsample(y, 20, seed=0)
    with pytest.raises(ValueError, match="1 real and 19 synthetic units"):
        fi.kid(x, y, patient=np.zeros(20), seed=0)


def test_weights_equal_repeated_rows():
    x, y = sample(60, 3, 0), sample(60, 3, 1)
    w, v = generator(2).integers(0, 3, 60), generator(3).integers(0, 3, 60)
    assert fi.frechet_distance(x, y, w) == pytest.approx(fi.frechet_distance(np.repeat(x, w, axis=0), y))
    both = fi.frechet_distance(np.repeat(x, w, axis=0), np.repeat(y, v, axis=0))
    assert fi.frechet_distance(x, y, w, v) == pytest.approx(both)


def test_kid_of_pairs_leaves_out_whatever_is_of_one_patient():
    x, patient = sample(18, 3, 0), np.repeat([4, 8, 2, 9, 5, 1], 3)
    made = 0.9 * x + 0.1 * sample(18, 3, 1)
    other = patient[:, None] != patient[None]
    expected = sum(sign * ((a @ b.T / 3 + 1) ** 3)[other].mean() for a, b, sign in ((x, x, 1), (made, made, 1), (x, made, -2)))
    found = fi.kid_of_pairs(x, made, patient=patient, seed=0)
    assert found.value == pytest.approx(expected) and found.n == 6
    # an image beside what was made of it would look nearer than it is to what was made of others
    assert fi.kid(x, made, patient=patient, synthetic_patient=patient, seed=0).value < expected


def test_a_replicate_of_pairs_draws_a_patient_on_both_sides(monkeypatch):
    x, patient = sample(8, 3, 0), np.repeat(np.arange(4), 2)
    made, drawn = 1.1 * x + 0.2, np.array([2, 0, 1, 1])
    rows = np.repeat(np.arange(8), drawn[patient])
    expected = fi.kid_of_pairs(x[rows], made[rows], patient=patient[rows], seed=0, replicates=1)
    monkeypatch.setattr(fi, "resample", lambda units, **_: np.repeat(drawn[None], 5, axis=0))
    found = fi.kid_of_pairs(x, made, patient=patient, seed=0, replicates=5)
    assert found.low == found.high == pytest.approx(expected.value)


def test_what_is_made_of_images_has_a_narrower_interval_than_others_like_it():
    x, patient = generator(0).normal(size=(80, 4)), np.arange(80)
    pairs = fi.kid_of_pairs(x, x + 0.3, patient=patient, seed=0)
    apart = fi.kid(x, generator(1).normal(size=(80, 4)) + 0.3, patient=patient, seed=0)
    assert 0 < pairs.low < pairs.value < pairs.high
    assert pairs.high - pairs.low < 0.7 * (apart.high - apart.low)


def test_kid_draws_the_patients_of_both_sides():
    x, y = generator(0).normal(size=(90, 4)), np.repeat(generator(1).normal(size=(30, 4)), 3, axis=0)
    person = np.repeat(np.arange(30), 3)
    rows, people = (fi.kid(x, y, patient=np.arange(90), synthetic_patient=p, seed=0) for p in (None, person))
    assert people.value == pytest.approx(fi.kid_value(x, y, np.arange(90), person))
    # copies of one image are no evidence of their own, and as rows of different people they look like a distance
    assert people.high - people.low > 1.2 * (rows.high - rows.low) and people.value < rows.value

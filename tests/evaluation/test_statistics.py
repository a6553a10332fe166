"""Bootstrap, exact binomial intervals and patient-disjoint halves, against theory and naive references."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medsynth.evaluation.statistics import (
    Estimate,
    bootstrap,
    bootstrap_mean,
    bootstrap_weighted,
    clopper_pearson,
    generator,
    patient_halves,
    percentile_interval,
    resample,
)


def test_the_three_bootstraps_agree_because_they_draw_the_same_patients():
    rng = generator(0)
    values, patient = rng.normal(size=40), rng.integers(0, 12, 40) * 7
    options = {"seed": 3, "replicates": 50}
    by_rows = bootstrap(lambda rows: values[rows].mean(), patient, **options)
    by_weights = bootstrap_weighted(lambda w: float(w @ values / w.sum()), patient, **options)
    np.testing.assert_allclose(by_rows[:4], by_weights[:4])
    np.testing.assert_allclose(by_rows[:4], bootstrap_mean(values, patient, **options)[:4])
    assert by_rows.n == len(np.unique(patient))


def test_interval_covers_the_mean_about_as_often_as_stated_when_rows_of_a_patient_agree():
    covered = 0
    for trial in range(200):
        rng = generator(1, trial)
        # five identical rows a patient: an interval over rows would be far too narrow
        values, patient = np.repeat(rng.normal(size=40), 5), np.repeat(np.arange(40), 5)
        e = bootstrap_mean(values, patient, seed=trial, replicates=200)
        covered += e.low <= 0 <= e.high
    low, high = clopper_pearson(covered, 200, level=0.999)[1:3]
    assert low <= 0.95 <= high or covered / 200 > 0.9


def test_resample_does_not_depend_on_how_many_replicates_are_drawn():
    np.testing.assert_array_equal(resample(9, seed=5, replicates=3), resample(9, seed=5, replicates=20)[:3])
    assert (resample(9, seed=5, replicates=20).sum(1) == 9).all()
    assert (resample(9, seed=5, replicates=3) != resample(9, seed=6, replicates=3)).any()


def test_one_patient_has_no_interval():
    with pytest.raises(ValueError, match="at least 2 patients"):
        bootstrap_mean(np.ones(5), np.zeros(5, dtype=int), seed=0)


def test_undefined_statistics_are_left_out_when_rare_and_refused_when_not():
    values = np.concatenate([np.full(2, np.nan), np.arange(98.0)])
    assert percentile_interval(1.0, values, 5).low == pytest.approx(np.quantile(values[2:], 0.025))
    with pytest.raises(ValueError, match="undefined in 10 of 20"):
        percentile_interval(1.0, np.concatenate([np.full(10, np.nan), np.ones(10)]), 5)
    with pytest.raises(ValueError, match="level 95"):
        percentile_interval(1.0, values, 5, level=95)


@given(st.integers(1, 60), st.data(), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
@settings(max_examples=60, deadline=None)
def test_clopper_pearson_ends_have_the_stated_tail_probabilities(trials, data, level):
    k = data.draw(st.integers(0, trials))
    e = clopper_pearson(k, trials, level=level)
    tail = (1 - level) / 2
    assert e.low <= e.value <= e.high
    if k:
        assert stats.binom.sf(k - 1, trials, e.low) == pytest.approx(tail, rel=1e-6)
    else:
        assert e.low == 0
    if k < trials:
        assert stats.binom.cdf(k, trials, e.high) == pytest.approx(tail, rel=1e-6)
    else:
        assert e.high == 1


def test_clopper_pearson_knows_the_rule_of_three_and_refuses_nonsense():
    assert clopper_pearson(9, 9, n_of="images")[3:] == (9, "images", 0.95)
    assert clopper_pearson(0, 100, level=0.9).high == pytest.approx(1 - 0.05 ** (1 / 100))
    with pytest.raises(ValueError, match="5 successes in 4 trials"):
        clopper_pearson(5, 4)


@given(st.lists(st.integers(0, 15), min_size=2, max_size=80).filter(lambda p: len(set(p)) > 1), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_halves_are_disjoint_in_patients_and_of_one_size(patients, seed):
    patient = np.array(patients)
    halves = patient_halves(patient, seed=seed, splits=5)
    assert len({len(h) for pair in halves for h in pair}) == 1
    for a, b in halves:
        assert len(a) >= 1 and len(set(a)) == len(a) and len(set(b)) == len(b)
        assert not set(patient[a]) & set(patient[b])


def test_halves_of_single_image_patients_use_every_row_and_keep_a_requested_size():
    patient = np.arange(20)
    for a, b in patient_halves(patient, seed=0, splits=4):
        assert sorted([*a, *b]) == list(range(20))
    assert {len(h) for pair in patient_halves(patient, seed=0, splits=4, n=7) for h in pair} == {7}
    with pytest.raises(ValueError, match="have 10; ask for fewer"):
        patient_halves(patient, seed=0, splits=4, n=11)
    with pytest.raises(ValueError, match="at least 2"):
        patient_halves(np.zeros(6), seed=0, splits=1)


def test_an_estimate_reads_well():
    assert str(Estimate(0.51234, 0.4, 0.6, 12)) == "0.5123 [0.4, 0.6], n=12"

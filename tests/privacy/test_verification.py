"""Same-patient pairs: weights, threshold and interval against loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from medsynth.privacy.attacks import verification as identification
from medsynth.privacy.attacks.verification import identify


def scans(patients: int, per: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of patients scanned `per` times, with spread around unit-variance centres."""
    rng = np.random.default_rng(seed)
    centre = np.repeat(rng.normal(size=(patients, 8)), per, 0)
    return centre + spread * rng.normal(size=centre.shape), np.repeat(np.arange(patients), per)


def loop(x: np.ndarray, patient: np.ndarray, fpr: float) -> tuple[float, float]:
    """(TPR, threshold) with every patient, and every pair of patients, weighing 1."""
    same, other = [], []
    for i, j in itertools.combinations(range(len(x)), 2):
        d = np.linalg.norm(x[i] - x[j])
        n, m = (patient == patient[i]).sum(), (patient == patient[j]).sum()
        if patient[i] == patient[j]:
            same.append((d, 2 / (n * (n - 1))))
        else:
            other.append((d, 1 / (n * m)))
    mass, threshold = 0.0, -np.inf
    total = sum(w for _, w in other)
    for d, w in sorted(other):
        mass += w
        if mass > fpr * total:
            threshold = d
            break
    return sum(w for d, w in same if d < threshold) / sum(w for _, w in same), threshold


@settings(max_examples=15)
@given(st.lists(st.integers(1, 4), min_size=5, max_size=9), st.integers(0, 99), st.sampled_from([0.03, 0.11, 0.4]))
def test_against_a_loop(sizes, seed, fpr):
    sizes = [2, 3, 2, 2, *sizes]
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(len(sizes)), sizes)
    x = rng.normal(size=(len(patient), 3))
    found = identify(x, patient, seed=0, fpr=fpr, replicates=20)
    tpr, threshold = loop(x, patient, fpr)
    assert found.tpr.value == pytest.approx(tpr) and found.threshold == pytest.approx(threshold)
    assert found.tpr.n == sum(n > 1 for n in sizes) and found.same_pairs == sum(n * (n - 1) // 2 for n in sizes)


def test_known_ends():
    x, patient = scans(30, 2, 1e-3)
    perfect = identify(x, patient, seed=0, replicates=50)
    assert perfect.tpr.value == 1 and perfect.tpr.low == 1 and perfect.auc == pytest.approx(1, abs=1e-6)
    rng = np.random.default_rng(0)
    blind = identify(rng.normal(size=(300, 8)), np.repeat(np.arange(150), 2), seed=0, replicates=50)
    assert blind.tpr.value < 0.06 and blind.auc == pytest.approx(0.5, abs=0.08)


def test_area_and_curve_agree_with_scikit_learn():
    x, patient = scans(40, 2, 1.2)
    found = identify(x, patient, seed=0, replicates=20)
    i, j = np.triu_indices(len(x), 1)
    d = np.linalg.norm(x[i] - x[j], axis=1)
    assert found.auc == pytest.approx(roc_auc_score(patient[i] == patient[j], -d), abs=0.005)
    assert (np.diff(found.curve, axis=0) >= 0).all() and found.curve[0].tolist() == [0, 0] and found.curve[-1].tolist() == [1, 1]


def test_the_interval_is_the_bootstrap_over_patients(monkeypatch):
    """The kept part of the pairs gives what all of them give."""
    x, patient = scans(40, 3, 0.9)
    found = identify(x, patient, seed=3, fpr=0.05, replicates=60)
    assert found.tpr.low < found.tpr.value < found.tpr.high
    monkeypatch.setattr(identification, "_KEPT", 1000)
    assert identify(x, patient, seed=3, fpr=0.05, replicates=60).tpr == found.tpr
    monkeypatch.setattr(identification, "_KEPT", 1)
    assert identify(x, patient, seed=3, fpr=0.05, replicates=60).tpr == found.tpr


def test_one_patient_with_many_images_decides_nothing():
    x, patient = scans(20, 2, 0.01)
    rng = np.random.default_rng(1)
    crowd = np.concatenate([x, 5 * rng.normal(size=(60, 8))])
    found = identify(crowd, np.concatenate([patient, np.full(60, 99)]), seed=0, replicates=20)
    assert found.tpr.value > 20 / 21 - 0.01


def test_too_few_patients_are_refused():
    with pytest.raises(ValueError, match="1 patients have several images"):
        identify(np.eye(3), np.array([0, 0, 1]), seed=0)


def test_rates_and_curve_are_named_as_rows_and_plots_call_them():
    x, patient = scans(20, 3, 0.5)
    found = identify(x, patient, seed=0, fpr=0.02, replicates=20)
    assert found.rates["TPR at 2 % FPR"] == found.tpr and list(found.rates) == ["TPR at 2 % FPR", "AUC"]
    auc = found.rates["AUC"]
    assert (auc.value, auc.n, auc.n_of) == (found.auc, 20, "patients") and np.isnan([auc.low, auc.high]).all()
    np.testing.assert_array_equal(found.roc[["false positive rate", "value"]].to_numpy(), found.curve)

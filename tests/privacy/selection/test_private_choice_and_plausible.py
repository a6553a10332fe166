"""The exponential mechanism against its own definition, and plausible deniability where densities are exact."""

import math

import numpy as np
import pytest

from medsynth.privacy.selection.plausible import Deniability, deniable
from medsynth.privacy.selection.private_choice import choose, mechanism, patients_near


def test_patients_near_are_counted_once_each():
    private, patient = np.array([[0.0], [0.1], [0.2], [5.0]]), np.array([7, 7, 9, 11])
    assert patients_near(np.array([[0.0], [5.1], [9.0]]), private, patient, 0.25).tolist() == [2, 1, 0]


def test_choices_are_as_frequent_as_the_mechanism_says():
    crowded, epsilon, cap = np.array([0, 1, 2, 9]), 1.5, 3
    weight = np.exp(-epsilon * np.minimum(crowded, cap) / 2)
    chosen = choose(np.tile(crowded, (40_000, 1)), epsilon=epsilon, cap=cap, seed=0)
    np.testing.assert_allclose(np.bincount(chosen, minlength=4) / 40_000, weight / weight.sum(), atol=0.01)


def test_no_patient_changes_the_odds_of_a_choice_by_more_than_epsilon():
    rng, epsilon = np.random.default_rng(0), 0.7
    for _ in range(200):
        crowded = rng.integers(0, 6, 5)
        for change in (rng.integers(0, 2, 5), -rng.integers(0, 2, 5), rng.integers(-1, 2, 5)):
            odds = [np.exp(-epsilon * np.minimum(m, 4) / 2) for m in (crowded, np.maximum(crowded + change, 0))]
            p, q = (o / o.sum() for o in odds)
            assert np.abs(np.log(p / q)).max() <= epsilon + 1e-12


def test_the_ledger_adds_up_what_all_choices_cost():
    line = mechanism(200, 0.05)
    assert (line.name, line.unit, line.steps) == ("exponential mechanism", "patient", 200) and line.epsilon == pytest.approx(10)
    with pytest.raises(ValueError, match="expected an epsilon above 0"):
        choose(np.zeros((2, 3), int), epsilon=0, cap=1, seed=0)


class Around:
    """Outputs are normal around their source, with a standard deviation of one."""

    def log_density(self, output, sources):
        return -((sources - output) ** 2).sum(1) / 2 - sources.shape[1] / 2 * math.log(2 * math.pi)


def test_an_image_of_somebody_who_stands_alone_is_not_released_and_one_of_a_crowd_is():
    rng = np.random.default_rng(0)
    sources = np.concatenate([0.3 * rng.normal(size=(200, 2)), [[40.0, 40.0]]])
    source = np.concatenate([np.arange(100), np.full(100, 200)])
    outputs = sources[source] + rng.normal(size=(200, 2))
    passed = deniable(Around(), outputs, sources, source, Deniability(20, 2.0, 1.0), seed=0)
    assert passed[:100].mean() > 0.8 and passed[100:].sum() == 0


def test_what_is_proved_of_a_test_is_the_theorem():
    found = Deniability(others=50, ratio=2.0, epsilon=1.0).costs(tested=3)
    assert found.shape == (49, 2)
    for t in (1, 20, 49):
        epsilon, delta = 3 * (1 + math.log(1 + 2 / t)), 3 * math.exp(-(50 - t))
        assert found[t - 1] == pytest.approx([epsilon, delta])


def test_a_generator_without_an_exact_density_is_refused():
    with pytest.raises(ValueError, match="object has no exact density; plausible deniability is proved for nothing else"):
        deniable(object(), np.zeros((1, 2)), np.zeros((3, 2)), np.zeros(1, int), Deniability(2, 2.0, 1.0), seed=0)
    with pytest.raises(ValueError, match="expected at least 2 others"):
        deniable(Around(), np.zeros((1, 2)), np.zeros((3, 2)), np.zeros(1, int), Deniability(1, 2.0, 1.0), seed=0)

"""The Image Retrieval Score against known answers, the likelihood with its Stirling numbers, and simulated retrievals."""

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from medsynth.evaluation.retrieval import distinct, reachable, retrieval_score, retrieved


@cache
def stirling(n: int, k: int) -> int:
    """Partitions of n things into k groups, by their recurrence."""
    if n == k or k == 1:
        return 1 if n and k else int(n == k)
    return 0 if k > n or k == 0 else k * stirling(n - 1, k) + stirling(n - 1, k - 1)


def likelihood(s: int, k: int, n: int) -> float:
    """Of hitting k of s images in n draws, exactly."""
    return stirling(n, k) * math.perm(s, k) / s**n


@pytest.mark.parametrize(("k", "s"), [(90, 105), (120, 176), (150, 328), (190, 1923)])
def test_known_answers_of_two_hundred_draws(k, s):
    assert reachable(k, 200, 10**6).value == s


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 60))
@settings(max_examples=200, deadline=None)
def test_the_estimate_is_the_most_likely_number_and_the_interval_holds_what_is_nearly_as_likely(k, n, most):
    if not k <= min(n, most):
        with pytest.raises(ValueError, match="expected at least 1, and no more than of either"):
            reachable(k, n, most)
        return
    every = {s: likelihood(s, k, n) for s in range(k, most + 1)}
    assert sum(likelihood(most, j, n) for j in range(1, n + 1)) == pytest.approx(1)
    found = reachable(k, n, most)
    assert every[int(found.value)] == pytest.approx(max(every.values()), rel=1e-9)
    inside = [s for s, p in every.items() if 2 * math.log(max(every.values()) / p) <= 3.841458]
    assert (found.low, found.high) == (min(inside), max(inside))


def test_where_every_draw_hits_another_image_all_are_reachable():
    found = reachable(50, 50, 1000)
    assert found.value == found.high == 1000 and 50 < found.low < 1000


def test_the_interval_covers_the_truth_in_at_least_93_of_100_simulated_sets():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(500):
        s, n = int(rng.integers(50, 2000)), int(rng.integers(100, 2000))
        found = reachable(len(np.unique(rng.integers(s, size=n))), n, 5000)
        covered += found.low <= s <= found.high
    assert covered >= 0.93 * 500


def test_distinct_images_of_fewer_draws_are_the_mean_over_all_choices():
    counts = np.array([5, 1, 3, 1, 2])
    draws = np.repeat(np.arange(5), counts)
    rng = np.random.default_rng(0)
    simulated = np.mean([len(np.unique(rng.choice(draws, 4, replace=False))) for _ in range(20_000)])
    assert distinct(counts, 4) == pytest.approx(simulated, abs=0.02)
    assert distinct(counts, 12) == pytest.approx(5) and distinct(counts, 1) == pytest.approx(1)
    with pytest.raises(ValueError, match="13 of 12 draws"):
        distinct(counts, 13)


def test_the_nearest_training_image_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    training, synthetic = rng.normal(size=(300, 20)), rng.normal(size=(500, 20))
    np.testing.assert_array_equal(retrieved(training, synthetic), cdist(synthetic, training).argmin(1))
    with pytest.raises(ValueError, match="of 20 and 19 dimensions"):
        retrieved(training, synthetic[:, :19])


def test_half_of_the_modes_reach_half_as_much_and_a_real_set_as_much_as_another():
    rng = np.random.default_rng(0)
    training = rng.normal(size=(400, 8))

    def near(rows, n):
        return training[rng.choice(rows, n)] + 0.01 * rng.normal(size=(n, 8))

    test, real, half = near(400, 3000), near(400, 2000), near(200, 2000)
    like, less = retrieval_score(training, real, test), retrieval_score(training, half, test)
    assert like.adjusted.low <= 1 <= like.adjusted.high and like.score.value > 0.95 and not like.censored
    assert less.adjusted.low <= 0.5 <= less.adjusted.high and less.adjusted.high < 0.6
    assert (less.score.n, less.score.n_of) == (2000, "images")
    # a set that shows one image reaches one
    assert retrieval_score(training, np.repeat(training[:1], 50, 0), test).score.value == pytest.approx(1 / 400)
    assert retrieval_score(training, training[:50], test).censored
    # one draw hits one image, also where it is one of many
    assert retrieval_score(training, training[:1], test).censored and distinct(np.ones(3000, int), 7) == pytest.approx(7)
    assert all(1 <= distinct(rng.integers(1, 9, size=60), n) <= min(n, 60) for n in range(1, 60))

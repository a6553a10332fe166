"""Bounds from one run against published values, slow twins, and mechanisms whose epsilon is known."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from medsynth.privacy.attacks import one_run
from medsynth.privacy.attacks.one_run import (
    ASSUMES,
    Bounds,
    any_mechanism_bound,
    audit,
    audit_counts,
    bounds,
    gaussian_bound,
    independent_bound,
    split_by_coins,
)

COUNTS = st.integers(1, 40).flatmap(
    lambda m: st.integers(0, m).flatmap(lambda g: st.tuples(st.just(m), st.just(g), st.integers(0, g)))
)
DELTAS = st.sampled_from([1e-6, 1e-3, 0.05])


# the same three tests, one number at a time


def naive_p_value(m, r, v, epsilon, delta):
    coin = stats.binom(r, math.exp(epsilon) / (1 + math.exp(epsilon)))
    slack = [(coin.cdf(v - 1) - coin.cdf(v - i - 1)) / i for i in range(1, v + 1)]
    return min(1.0, coin.sf(v - 1) + 2 * m * delta * max(slack, default=0.0))


def naive_mu(epsilon, delta):
    def excess(mu):
        return stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu) - delta

    return optimize.brentq(excess, 1e-9, 60)


def naive_f_dp_rejects(m, g, c, epsilon, delta, alpha=0.05):
    mu = naive_mu(epsilon, delta)
    right, wrong = alpha * c / m, alpha * (g - c) / m
    for i in reversed(range(c)):
        if right >= 1:
            return True
        more = max(wrong, stats.norm.cdf(stats.norm.ppf(right) - mu))
        right, wrong = right + i / (g - i) * (more - wrong), more
    return right + wrong > g / m


def naive_independent_p_value(m, g, u, epsilon, delta):
    """The g most confident of m guesses, integrated over the observation that is the least confident of them."""
    mu = naive_mu(epsilon, delta)

    def tails(t):
        return stats.norm.cdf(-t - mu / 2), stats.norm.cdf(-t + mu / 2)

    if g == m:
        return stats.binom.cdf(u, g, tails(0)[0])

    t = np.linspace(0, mu / 2 + 12, 20001)
    wrong, right = tails(t)
    density = stats.norm.pdf(t - mu / 2) + stats.norm.pdf(t + mu / 2)
    given = stats.binom.cdf(u, g, wrong / (wrong + right))
    return np.trapezoid(stats.beta.pdf(1 - wrong - right, m - g, g + 1) * density * given, t)


def naive_bound(accepted, high=60.0, steps=40):
    if accepted(1e-9):
        return 0.0
    low = 1e-9
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if accepted(middle) else (middle, high)
    return low


@pytest.mark.parametrize(
    ("counts", "delta", "expected"),
    [((1000, 100, 90), 1e-5, 1.6261), ((1000, 100, 90), 0, 1.6308), ((100, 100, 100), 1e-5, 3.4902), ((20, 20, 20), 0, 1.8227)],
)
def test_the_bound_for_any_mechanism_is_the_published_one(counts, delta, expected):
    assert any_mechanism_bound(*counts, delta) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("counts", "delta", "expected"),
    [
        ((1000, 100, 90), 1e-5, 2.4564), ((1000, 1000, 600), 1e-5, 0.5835),
        ((200, 200, 140), 1e-5, 1.2528), ((10000, 1000, 900), 1e-6, 3.1521),
    ],
)  # fmt: skip
def test_the_bound_for_the_gaussian_family_is_the_published_one(counts, delta, expected):
    assert gaussian_bound(*counts, delta) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("counts", "expected"), [((1000, 100, 26), 1.1926), ((1000, 100, 10), 3.1645), ((1000, 1000, 309), 3.6700)]
)
def test_the_bound_for_independent_outcomes_is_the_published_one(counts, expected):
    assert independent_bound(*counts, 1e-5) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("guesses", "expected"), [(20, 1.82), (100, 3.49), (1000, 5.81)])
def test_the_ceiling_is_known(guesses, expected):
    assert any_mechanism_bound(guesses, guesses, guesses, 0) == pytest.approx(expected, abs=5e-3)
    found = audit_counts(1200, guesses, guesses // 2, delta=1e-6)
    assert found.ceiling == audit_counts(1200, guesses, guesses, delta=1e-6).lower


@given(COUNTS, DELTAS)
def test_the_bound_for_any_mechanism_is_that_of_a_loop(counts, delta):
    expected = naive_bound(lambda epsilon: naive_p_value(*counts, epsilon, delta) > 0.05)
    assert any_mechanism_bound(*counts, delta) == pytest.approx(expected, abs=1e-6)


@given(COUNTS, DELTAS)
def test_the_bound_for_the_gaussian_family_is_that_of_a_loop(counts, delta):
    expected = naive_bound(lambda epsilon: not naive_f_dp_rejects(*counts, epsilon, delta))
    assert gaussian_bound(*counts, delta) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("m", "g", "u", "delta"), [(40, 10, 1, 1e-5), (30, 30, 4, 1e-3), (200, 40, 0, 1e-6), (60, 59, 9, 1e-5), (9, 1, 0, 0.02)]
)
def test_the_bound_for_independent_outcomes_is_that_of_an_integral(m, g, u, delta):
    expected = naive_bound(lambda epsilon: naive_independent_p_value(m, g, u, epsilon, delta) > 0.05, high=30.0, steps=22)
    assert independent_bound(m, g, u, delta) == pytest.approx(expected, abs=1e-4)


@given(COUNTS, DELTAS)
def test_chance_wrong_guesses_and_no_guesses_prove_nothing(counts, delta):
    m, g, _ = counts
    for correct in {0, g // 2}:
        assert bounds(m, g, correct, delta) == Bounds(0, 0, 0)


def test_four_right_guesses_may_be_luck_and_five_are_not():
    # (1/2)^4 > 0.05 > (1/2)^5
    assert any_mechanism_bound(9, 4, 4, 0) == 0 and bounds(9, 4, 4, 1e-9) == (0, 0, 0)
    assert any_mechanism_bound(9, 5, 5, 0) == pytest.approx(math.log(0.05**0.2 / (1 - 0.05**0.2)), abs=1e-6)


@given(COUNTS, DELTAS)
def test_a_bound_grows_with_right_guesses_and_falls_with_delta_and_confidence(counts, delta):
    m, g, c = counts
    here = np.array(bounds(m, g, c, delta))
    if c < g:
        assert (np.array(bounds(m, g, c + 1, delta)) >= here - 1e-7).all()
    assert (np.array(bounds(m, g, c, 2 * delta)) <= here + 1e-7).all()
    assert (np.array(bounds(m, g, c, delta, 0.99)) <= here + 1e-7).all()
    # the more is assumed, the more is concluded
    assert here[0] <= here[1] + 1e-7 and here[1] <= here[2] + 1e-7


# mechanisms whose epsilon is known


def too_high(found, truth):
    """How often a bound exceeds the truth, and whether that is more than its confidence allows."""
    misses = np.array([[bound > truth + 1e-6 for bound in audited] for audited in found]).sum(0)
    return misses, misses > stats.binom.ppf(0.999, len(found), 0.05)


@pytest.mark.parametrize("guesses", [60, 200])
def test_randomised_response_is_covered(guesses):
    """Each coin is told truthfully with e^eps / (1 + e^eps): the bound has no room to spare, so it would err if it could."""
    epsilon, found, rng = 1.5, [], np.random.default_rng(0)
    for _ in range(400):
        member = rng.random(200) < 0.5
        told = member ^ (rng.random(200) > math.exp(epsilon) / (1 + math.exp(epsilon)))
        found.append([audit(told, member, guesses=guesses, delta=1e-9).lower.any_mechanism])
    misses, too_many = too_high(found, epsilon)
    # and not because it says nothing
    assert not too_many.any() and misses[0] >= 5 and np.mean(found) > 0.6 * epsilon


@pytest.mark.parametrize(("epsilon", "guesses"), [(1.0, 100), (4.0, 40), (4.0, 400)])
def test_the_gaussian_mechanism_is_covered_by_all_three(epsilon, guesses):
    mu, rng, found = naive_mu(epsilon, 1e-5), np.random.default_rng(0), []
    for _ in range(250):
        member = rng.random(400) < 0.5
        found.append(audit(member * mu + rng.normal(size=400), member, guesses=guesses, delta=1e-5).lower)
    assert not too_high(found, epsilon)[1].any()
    means = np.mean(found, axis=0)
    assert means[0] < means[1] < means[2] and means[2] > 0.25 * epsilon


def test_who_picks_the_number_of_guesses_afterwards_is_not_covered():
    """Planted: the best of twelve numbers of guesses. If this passed for an audit, so would anything."""
    epsilon, rng, bound = 1.5, np.random.default_rng(0), cache(any_mechanism_bound)
    found, several = [], np.geomspace(8, 400, 12).astype(int)
    for _ in range(300):
        right = np.cumsum(rng.random(400) < math.exp(epsilon) / (1 + math.exp(epsilon)))
        found.append([max(bound(400, g, int(right[g - 1]), 0.0) for g in several.tolist())])
    assert too_high(found, epsilon)[1].all()


def test_independence_is_an_assumption_of_the_third_alone():
    """A mechanism that tells all coins at once with probability delta is (0, delta)-DP; its guesses are right together."""
    delta, rng, found = 0.2, np.random.default_rng(1), []
    for _ in range(200):
        member = rng.random(100) < 0.5
        told = member if rng.random() < delta else rng.random(100)
        found.append(audit(told, member, guesses=50, delta=delta).lower)
    _, too_many = too_high(found, 0.0)
    assert too_many[2] and not too_many[0] and set(ASSUMES) == set(Bounds._fields)


# from scores to guesses


def test_guesses_go_to_both_ends_of_the_scores():
    scores = np.array([5.0, -1.0, 3.0, 0.0, 4.0, 1.0])
    member = np.array([True, True, False, False, True, False])
    # in: rows 0 and 4 (right), and 2 (wrong); out: rows 1 (wrong), 3 and 5 (right)
    assert [audit(scores, member, guesses=g, delta=1e-5).correct for g in range(7)] == [0, 1, 1, 2, 3, 3, 4]
    assert audit(-scores, member, guesses=6, delta=1e-5).correct == 2
    found = audit(scores, member, guesses=4, delta=1e-5)
    assert (found.canaries, found.guesses, found.delta, found.confidence) == (6, 4, 1e-5, 0.95)


@given(st.integers(0, 2**32), st.integers(0, 30))
def test_the_naive_count_is_the_same_where_no_scores_are_equal(seed, guesses):
    rng = np.random.default_rng(seed)
    scores, member = rng.permutation(30), rng.random(30) < 0.5
    ranked = sorted(zip(scores, member, strict=True))
    out = guesses // 2
    right = sum(not inside for _, inside in ranked[:out]) + sum(inside for _, inside in ranked[30 - guesses + out :])
    assert audit(scores, member, guesses=guesses, delta=1e-5).correct == right


@pytest.mark.parametrize("first", [True, False])
def test_equal_scores_tell_nothing_though_members_come_first(first):
    member = np.arange(400) < 200 if first else np.arange(400) >= 200
    found = audit(np.zeros(400), member, guesses=400, delta=1e-5)
    assert 160 < found.correct < 240 and found.lower.any_mechanism < 0.1
    # two values, and the coins of half of each
    half = audit(np.arange(400) % 2, member, guesses=300, delta=1e-5)
    assert 110 < half.correct < 190


def test_input_that_cannot_be_is_refused():
    scores, member = np.zeros(4), np.ones(4, dtype=bool)
    with pytest.raises(ValueError, match="5 guesses about 4 patients"):
        audit(scores, member, guesses=5, delta=1e-5)
    with pytest.raises(ValueError, match="1 of 4 scores are not finite"):
        audit(np.array([0, 1, np.nan, 2]), member, guesses=2, delta=1e-5)
    with pytest.raises(ValueError, match=r"member int64 \(4,\); expected"):
        audit(scores, np.ones(4, dtype=np.int64), guesses=2, delta=1e-5)
    with pytest.raises(ValueError, match="delta is 0; expected a number above 0"):
        audit(scores, member, guesses=2, delta=0)
    with pytest.raises(ValueError, match="3 right of 2 guesses"):
        bounds(4, 2, 3, 1e-5)
    with pytest.raises(ValueError, match="expected 0 <= delta < 1"):
        any_mechanism_bound(4, 2, 2, 1.0)


# the coins


def test_coins_are_of_patients_and_send_every_image_to_one_side(make_set):
    images = make_set(n=240, role="private", origin="scan")
    members, others = split_by_coins(images, seed=3)
    assert not set(members.patient) & set(others.patient)
    assert sorted([*members.row_hashes, *others.row_hashes]) == sorted(images.row_hashes)
    assert members.role == others.role == "private" and members.dataset == others.dataset == "tiny"
    assert len(members) == 2 * members.patients
    again, _ = split_by_coins(images, seed=3)
    assert (again.patient == members.patient).all()
    other, _ = split_by_coins(images, seed=4)
    assert set(other.patient) != set(members.patient)


def test_coins_are_fair_and_not_balanced(make_set):
    images = make_set(n=80, shape=(1, 2, 2))
    sizes = [split_by_coins(images, seed=seed)[0].patients for seed in range(120)]
    # of 40 coins: mean 20, standard deviation 3.16; a split into halves would have none
    assert abs(np.mean(sizes) - 20) < 4 * 3.16 / 120**0.5 and 2.4 < np.std(sizes) < 4


def test_a_coin_knows_neither_the_order_nor_the_images_of_a_patient(make_set):
    images = make_set(n=60)
    order = np.random.default_rng(0).permutation(60)
    assert set(split_by_coins(images.select(order), seed=1)[0].patient) == set(split_by_coins(images, seed=1)[0].patient)
    with pytest.raises(ValueError, match="coins of 1 patients fell alike"):
        split_by_coins(make_set(n=2), seed=0)


def test_quadrature_has_converged(monkeypatch):
    few = [independent_bound(300, g, u, 1e-5) for g, u in ((300, 60), (100, 4), (10, 0))]
    monkeypatch.setattr(one_run, "_NODES", 400)
    assert [independent_bound(300, g, u, 1e-5) for g, u in ((300, 60), (100, 4), (10, 0))] == pytest.approx(few, abs=1e-4)

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from medsynth.privacy.dp import accountant
from medsynth.privacy.dp.accountant import (
    Steps,
    checked_delta,
    cross_check,
    default_delta,
    epsilon_of,
    gaussian_epsilon,
    gaussian_mu,
    noise_for,
)

GOLDEN = [Steps(1.5, 0.04, 2250)]
# dp-accounting 0.6.0, privacy loss distribution on a grid of 1e-4
PLD = [
    (GOLDEN, 1e-5, 6.7688),
    ([Steps(10, 1.0, 5), Steps(1.5, 0.04, 200)], 1e-5, 2.0477),
    ([Steps(12.7, 0.25, 120)], 1e-6, 0.9161),
    ([Steps(50, 0.25, 120)], 1e-6, 0.2092),
    ([Steps(0.6, 0.01, 500)], 1e-6, 6.9348),
]


def loss_distribution(event: Steps, delta: float, *, grid: float) -> float:
    """Naive: the privacy loss of one step on a grid, rounded up, convolved step by step; then the definition of delta."""
    sigma, q, steps = event
    # loss of removing a patient: log of (1-q) N(0, s) + q N(1, s) over N(0, s), which rises with x
    x = np.linspace(-14 * sigma, 1 + 14 * sigma, 200_001)
    loss = np.log1p(q * np.expm1((2 * x - 1) / (2 * sigma**2)))
    mass = np.diff((1 - q) * norm.cdf(x / sigma) + q * norm.cdf((x - 1) / sigma))
    cell = np.ceil(loss[1:] / grid).astype(int)
    one = np.bincount(cell - cell.min(), weights=mass)
    total, first = np.ones(1), 0
    for _ in range(steps):
        total, first = np.convolve(total, one), first + cell.min()
    values = (first + np.arange(len(total))) * grid

    def excess(epsilon: float) -> float:
        above = values > epsilon
        return float((total[above] * -np.expm1(epsilon - values[above])).sum()) - delta

    low, high = 0.0, 50.0
    while high - low > 1e-6:
        low, high = ((low + high) / 2, high) if excess((low + high) / 2) > 0 else (low, (low + high) / 2)
    return high


def test_known_answers():
    both = cross_check(GOLDEN, 1e-5)
    assert both == (pytest.approx(6.7791, abs=2e-3), pytest.approx(7.3291, abs=2e-3))
    assert both.rdp == epsilon_of(GOLDEN, 1e-5, accountant="rdp")
    # one step fewer is another number, so steps are counted and never derived
    assert epsilon_of([Steps(1.5, 0.04, 2249)], 1e-5) == pytest.approx(6.7774, abs=2e-3)


@pytest.mark.slow
def test_a_finer_grid_comes_closer_to_the_truth():
    assert epsilon_of(GOLDEN, 1e-5, eps_error=1e-3) == pytest.approx(6.7698, abs=2e-3)


@pytest.mark.parametrize(("events", "delta", "pld"), PLD)
def test_prv_is_above_the_privacy_loss_distribution_by_its_error_at_most(events, delta, pld):
    rdp = epsilon_of(events, delta, accountant="rdp")
    assert -1e-3 <= epsilon_of(events, delta) - pld <= 2 * min(0.01, rdp / 100)
    assert pld < rdp


def test_prv_against_a_naive_convolution():
    event = Steps(1.2, 0.3, 3)
    naive = loss_distribution(event, 1e-5, grid=1e-3)
    # the naive one is rounded up in each step
    assert naive - 3e-3 - 1e-3 <= epsilon_of([event], 1e-5) <= naive + 0.02


@pytest.mark.parametrize(("sigma", "steps"), [(10.0, 20), (2.0, 1), (30.0, 7)])
def test_full_batches_are_plain_gaussian_noise(sigma, steps):
    """Exactly; Opacus at q = 1 says the same up to its error."""
    exact = epsilon_of([Steps(sigma, 1.0, steps)], 1e-5)
    assert exact == pytest.approx(gaussian_epsilon(math.sqrt(steps) / sigma, 1e-5), rel=1e-12)
    opacus = accountant._prv([Steps(sigma, 1.0, steps)], 1e-5, 1e-3)
    assert -1e-4 <= opacus - exact <= 2e-3
    assert exact <= epsilon_of([Steps(sigma, 1.0, steps)], 1e-5, accountant="rdp")


@pytest.mark.parametrize("name", accountant.ACCOUNTANTS)
def test_events_compose_whatever_their_order_and_grouping(name):
    warm, main = Steps(8.0, 1.0, 1), Steps(1.5, 0.1, 60)
    whole = epsilon_of([warm, main], 1e-6, accountant=name)
    assert epsilon_of([main, warm], 1e-6, accountant=name) == pytest.approx(whole, abs=1e-3)
    halves = [warm, main._replace(steps=30), main._replace(steps=30)]
    assert epsilon_of(halves, 1e-6, accountant=name) == pytest.approx(whole, abs=1e-2)
    alone = [epsilon_of([e], 1e-6, accountant=name) for e in (warm, main)]
    assert max(alone) < whole < sum(alone)
    # nothing is remembered from question to question
    assert epsilon_of([warm, main], 1e-6, accountant=name) == whole


def test_nothing_costs_nothing():
    assert epsilon_of([], 1e-6) == epsilon_of([Steps(1.0, 0.1, 0)], 1e-6) == 0


def test_noise_for_known_targets():
    for name, sigma in (("rdp", 1.4160), ("prv", 1.3477)):
        found = noise_for(8, 1e-5, q=0.04, steps=2250, accountant=name)
        assert found == pytest.approx(sigma, abs=1e-3)
        assert 7.99 <= epsilon_of([Steps(found, 0.04, 2250)], 1e-5, accountant=name) <= 8


def promise_is_kept(epsilon, delta, q, steps, before, name):
    sigma = noise_for(epsilon, delta, q=q, steps=steps, before=before, accountant=name)
    achieved = epsilon_of([*before, Steps(sigma, q, steps)], delta, accountant=name)
    assert epsilon - min(0.01, 0.005 * epsilon) <= achieved <= epsilon


@settings(max_examples=12)
@given(
    st.floats(0.3, 20), st.floats(-9, -4), st.floats(-3, 0), st.integers(1, 3000), st.sampled_from([(), (Steps(40.0, 1.0, 2),)])
)
def test_the_promise_is_never_exceeded_by_rdp(epsilon, delta, q, steps, before):
    promise_is_kept(epsilon, 10**delta, 10**q, steps, before, "rdp")


@settings(max_examples=4)
@given(
    st.floats(1, 10), st.floats(-8, -5), st.floats(-2, -0.5), st.integers(20, 200), st.sampled_from([(), (Steps(40.0, 1.0, 2),)])
)
def test_the_promise_is_never_exceeded_by_prv(epsilon, delta, q, steps, before):
    promise_is_kept(epsilon, 10**delta, 10**q, steps, before, "prv")


@settings(max_examples=20)
@given(st.floats(0.01, 50), st.floats(-10, -3), st.integers(1, 500))
def test_the_promise_is_never_exceeded_by_full_batches(epsilon, delta, steps):
    promise_is_kept(epsilon, 10**delta, 1.0, steps, (), "prv")


def test_what_was_spent_before_leaves_less():
    options = {"q": 0.1, "steps": 50, "accountant": "rdp"}
    assert noise_for(2, 1e-6, before=[Steps(8.0, 1.0, 1)], **options) > noise_for(2, 1e-6, **options)
    with pytest.raises(ValueError, match=r"epsilon 2 is spent: the events before cost 5\.\d+; allow more"):
        noise_for(2, 1e-6, before=[Steps(1.0, 1.0, 1)], **options)


def test_gaussian_known_answers():
    assert gaussian_mu(1, 1e-5) == pytest.approx(0.2681, abs=1e-4)
    assert gaussian_mu(10, 1e-5) == pytest.approx(2.0004, abs=1e-4)
    for times, epsilon in ((1, 0.4970), (5, 1.1994), (20, 2.5944)):
        assert gaussian_epsilon(math.sqrt(times) / (5 * math.sqrt(2)), 1e-5) == pytest.approx(epsilon, abs=1e-4)
    # total variation of two Gaussians that are mu apart
    assert gaussian_mu(0, 2 * norm.cdf(0.15) - 1) == pytest.approx(0.3)
    assert gaussian_epsilon(0, 1e-5) == gaussian_epsilon(1e-6, 1e-5) == 0


@given(st.floats(0.01, 300), st.floats(-30, -1))
def test_mu_and_epsilon_are_inverses(epsilon, exponent):
    delta = 10**exponent
    mu = gaussian_mu(epsilon, delta)
    assert gaussian_epsilon(mu, delta) == pytest.approx(epsilon, rel=1e-6)
    assert gaussian_epsilon(1.01 * mu, delta) > epsilon > gaussian_epsilon(0.99 * mu, delta)


def test_default_delta():
    assert default_delta(100) == 1e-6
    assert default_delta(40_000) == pytest.approx(1.25e-7)
    assert all(default_delta(n) < 1 / n for n in (1, 2, 10, 10**5))
    assert checked_delta(1e-6, 1000) == 1e-6


@pytest.mark.parametrize("delta", [0.0, -1e-6, 1.0, 2.0, math.nan])
def test_a_delta_that_means_nothing_is_refused_even_if_forced(delta):
    message = f"delta is {delta}; expected a number above 0 and below 1"
    for ask in (
        lambda: checked_delta(delta, 10, forced=True),
        lambda: epsilon_of(GOLDEN, delta),
        lambda: noise_for(1, delta, q=0.1, steps=2),
        lambda: gaussian_mu(1, delta),
        lambda: gaussian_epsilon(1, delta),
    ):
        with pytest.raises(ValueError, match=message):
            ask()


def test_a_delta_that_allows_a_patient_to_be_published_is_refused_unless_forced():
    for delta in (1e-3, 0.5):
        with pytest.raises(
            ValueError, match=r"delta is .* for 1000 patients; expected less than 1/1000, .*; use 1e-06, or force"
        ):
            checked_delta(delta, 1000)
        assert checked_delta(delta, 1000, forced=True) == delta
    assert checked_delta(0.9e-3, 1000) == 0.9e-3
    for ask in (lambda: checked_delta(1e-6, 0), lambda: default_delta(0)):
        with pytest.raises(ValueError, match="0 patients; expected at least 1"):
            ask()


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan])
def test_a_target_that_no_noise_meets_is_refused(epsilon):
    with pytest.raises(ValueError, match=f"epsilon is {epsilon}; expected a finite number above 0"):
        noise_for(epsilon, 1e-6, q=0.1, steps=2)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (Steps(0.0, 0.1, 2), "sigma is 0.0; expected a finite number above 0: without noise, epsilon is infinite"),
        (Steps(math.nan, 0.1, 2), "sigma is nan"),
        (Steps(1.0, 0.0, 2), "q is 0.0; expected a rate above 0, at most 1"),
        (Steps(1.0, 1.01, 2), "q is 1.01"),
        (Steps(1.0, 0.1, -1), "steps is -1; expected a whole number"),
        (Steps(1.0, 0.1, 2.5), "steps is 2.5"),
    ],
)
def test_events_that_mean_nothing_are_refused(event, message):
    with pytest.raises(ValueError, match=message):
        epsilon_of([event], 1e-6, accountant="rdp")


def test_what_the_accountants_cannot_say_is_said():
    with pytest.raises(ValueError, match=r"accountant 'pld'; expected one of \('prv', 'rdp'\)"):
        epsilon_of(GOLDEN, 1e-5, accountant="pld")
    with pytest.raises(ValueError, match="beyond the precision of the PRV accountant; use accountant='rdp'"):
        epsilon_of([Steps(0.001, 0.25, 20)], 1e-6)
    with pytest.raises(ValueError, match=r"no sigma up to .* costs epsilon 1e-09; allow another epsilon"):
        noise_for(1e-9, 1e-6, q=0.25, steps=20)


def test_accountants_that_contradict_each_other_are_not_trusted(monkeypatch):
    monkeypatch.setattr(accountant, "_rdp", lambda events, delta: 6.5)
    with pytest.raises(RuntimeError, match=r"epsilon is 6.779 by PRV and 6.5 by RDP, .* use accountant='rdp'"):
        cross_check(GOLDEN, 1e-5)

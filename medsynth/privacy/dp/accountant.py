"""What Gaussian noise costs: epsilon of runs of the Poisson-subsampled Gaussian mechanism, and the noise that a budget needs.

What was spent is data, a sequence of `Steps`. Each question is asked of a fresh accountant, so none can be used for two runs.
All values are for adding or removing one unit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy.optimize import brentq
from scipy.special import log_ndtr

ACCOUNTANTS = ("prv", "rdp")
EPS_ERROR = 0.01  # of the PRV accountant, in epsilon; its answer is an upper bound, at most twice that above the truth
_WIDEST = 12  # logarithm of the largest sigma that is tried, and of the inverse of the least
_TOLERANCE = 0.005  # of epsilon: a budget may be left unused by that share, or by EPS_ERROR if that is less

# Opacus' orders end at 63, which is too early for epsilon below 1
_ORDERS = [*RDPAccountant.DEFAULT_ALPHAS, 80, 128, 256, 512, 1024]


class Steps(NamedTuple):
    """A run of the Poisson-subsampled Gaussian mechanism; q = 1 is the Gaussian mechanism itself."""

    sigma: float  # standard deviation of the noise over the L2 sensitivity
    q: float  # chance of a unit to be in a step
    steps: int


class Epsilons(NamedTuple):
    """The same events by both accountants; both are upper bounds."""

    prv: float
    rdp: float


def epsilon_of(events: Sequence[Steps], delta: float, *, accountant: str = "prv", eps_error: float | None = None) -> float:
    """Epsilon at `delta` of all events together; 0 of none.

    "prv": Gopi et al., arXiv:2106.02848, an upper bound at most about 2 eps_error above the truth; Gaussian events alone have an
    exact answer, which is given. "rdp": Mironov et al., arXiv:1908.10530, looser and far simpler.
    eps_error: by default 0.01, and a hundredth of epsilon where that is less, but not below 0.001.
    Raises ValueError for events or a delta that mean nothing.
    """
    if accountant not in ACCOUNTANTS:
        raise ValueError(f"accountant {accountant!r}; expected one of {ACCOUNTANTS}")
    _check(delta)
    events = [_sound(Steps(*event)) for event in events if event[2] != 0]
    if not events:
        return 0.0
    if accountant == "rdp":
        return _rdp(events, delta)
    gaussian = [event for event in events if event.q == 1]
    if len(gaussian) == len(events):
        return gaussian_epsilon(math.sqrt(sum(e.steps / e.sigma**2 for e in events)), delta)
    return _prv(events, delta, eps_error)


def cross_check(events: Sequence[Steps], delta: float) -> Epsilons:
    """Epsilon of the events by both accountants. RuntimeError where they contradict each other: then neither is to be trusted."""
    both = Epsilons(epsilon_of(events, delta), epsilon_of(events, delta, accountant="rdp"))
    if both.prv > both.rdp + 2 * max(EPS_ERROR, both.rdp / 100):
        raise RuntimeError(
            f"epsilon is {both.prv:.4g} by PRV and {both.rdp:.4g} by RDP, which is looser; expected at most that: the events "
            "are beyond the precision of PRV, so use accountant='rdp'"
        )
    return both


def noise_for(
    epsilon: float,
    delta: float,
    *,
    q: float,
    steps: int,
    before: Sequence[Steps] = (),
    accountant: str = "prv",
) -> float:
    """The least sigma, nearly, with which `steps` at rate q after the events `before` cost at most epsilon at `delta`.

    The epsilon that `epsilon_of` then finds is never above the target, and below it by at most 0.01 or half a percent.
    Raises ValueError for an epsilon that is not positive and finite, and where `before` has spent it already.
    """
    if not 0 < epsilon < math.inf:
        raise ValueError(
            f"epsilon is {epsilon}; expected a finite number above 0 (without privacy there is no noise to solve for)"
        )
    spent = epsilon_of(before, delta, accountant=accountant)
    if spent >= epsilon:
        raise ValueError(f"epsilon {epsilon:g} is spent: the events before cost {spent:.4g}; allow more, or begin with less")

    def cost(log_sigma: float) -> float:
        return epsilon_of([*before, Steps(math.exp(log_sigma), q, steps)], delta, accountant=accountant)

    # RDP is forty times as fast and nearly right, but finds no small epsilon
    here = 0.0 if accountant == "rdp" else math.log(noise_for(max(epsilon, 0.1), delta, q=q, steps=steps, accountant="rdp"))
    low, high = _bracket(cost, epsilon, here, step=1.0 if accountant == "rdp" else 0.1)
    tolerance = min(EPS_ERROR, _TOLERANCE * epsilon)
    for _ in range(60):
        (least, above), (most, below) = low, high
        # epsilon of `high` was computed and is allowed; nothing that is returned was interpolated
        if epsilon - below <= tolerance or most - least < 1e-6:
            break
        # aimed at the middle of what is tolerated, on a line through the last two; halving where that would hug an end
        share = math.log(above / (epsilon - tolerance / 2)) / math.log(above / max(below, epsilon / 1000))
        middle = least + (most - least) * min(max(share, 0.1), 0.9)
        value = cost(middle)
        low, high = (low, (middle, value)) if value <= epsilon else ((middle, value), high)
    return math.exp(high[0])


def default_delta(n: int) -> float:
    """min(1e-6, n^-1.5) for n units: far below 1/n, where delta would allow the release of somebody's record."""
    if n < 1:
        raise ValueError(f"{n} patients; expected at least 1")
    return min(1e-6, n**-1.5)


def checked_delta(delta: float, n: int, *, forced: bool = False) -> float:
    """`delta`, if it means something for n units. ValueError for one outside (0, 1), and for one of 1/n or more unless forced."""
    _check(delta)
    if n < 1:
        raise ValueError(f"{n} patients; expected at least 1")
    if delta >= 1 / n and not forced:
        raise ValueError(
            f"delta is {delta:g} for {n} patients; expected less than 1/{n}, since publishing one patient outright would be "
            f"(0, 1/{n})-DP; use {default_delta(n):.2g}, or force it and let the ledger say so"
        )
    return delta


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The largest mu = sensitivity * sqrt(times) / sd of Gaussian noise that is (epsilon, delta)-DP.

    Source: Balle and Wang, arXiv:1805.06530, theorem 8; mu as in Dong et al., arXiv:1905.02383.
    """
    _check(delta)
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon is {epsilon}; expected a finite number, not below 0")
    high = 1.0
    while _gaussian_delta(epsilon, high) < delta:
        high *= 2
    return brentq(lambda mu: _gaussian_delta(epsilon, mu) - delta, high * 1e-12, high, xtol=high * 1e-13, rtol=1e-12)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon at `delta` of Gaussian noise of sd sensitivity * sqrt(times) / mu, exact; 0 where delta alone allows it."""
    _check(delta)
    if not 0 <= mu < math.inf:
        raise ValueError(f"mu is {mu}; expected a finite number, not below 0")
    if mu == 0 or _gaussian_delta(0, mu) <= delta:
        return 0.0
    high = 1.0
    while _gaussian_delta(high, mu) > delta:
        high *= 2
    return brentq(lambda epsilon: _gaussian_delta(epsilon, mu) - delta, 0, high, xtol=1e-12, rtol=1e-12)


def _gaussian_delta(epsilon: float, mu: float) -> float:
    """Phi(-epsilon/mu + mu/2) - e^epsilon Phi(-epsilon/mu - mu/2), where neither factor may overflow."""
    kept, other = log_ndtr(-epsilon / mu + mu / 2), epsilon + log_ndtr(-epsilon / mu - mu / 2)
    return float(-np.exp(kept) * np.expm1(min(other - kept, 0.0)))


def _rdp(events: list[Steps], delta: float) -> float:
    accountant = RDPAccountant()
    accountant.history = [tuple(event) for event in events]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the")
        # its conversion can fall below zero, and no epsilon does
        return max(0.0, float(accountant.get_epsilon(delta, alphas=_ORDERS)))


def _prv(events: list[Steps], delta: float, eps_error: float | None) -> float:
    if eps_error is None:
        # finer where epsilon is small, coarser where it is so large that the grid would not fit in memory
        rough = _rdp(events, delta)
        eps_error = max(min(EPS_ERROR, rough / 100), EPS_ERROR / 10, rough / 1000)
    accountant = PRVAccountant()
    accountant.history = [tuple(event) for event in events]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # it asks its own RDP accountant how large the grid has to be; log(1 - q) is minus infinity at q = 1
        warnings.filterwarnings("ignore", message="Optimal order is the")
        try:
            epsilon = float(accountant.get_epsilon(delta, eps_error=eps_error))
        except (RuntimeError, ValueError):
            epsilon = math.nan
    if not math.isfinite(epsilon):
        raise ValueError(f"{events} at delta {delta:g} are beyond the precision of the PRV accountant; use accountant='rdp'")
    return epsilon


def _bracket(
    cost: Callable[[float], float], epsilon: float, here: float, step: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Two (log sigma, epsilon), the first above the target, the second not; sought from `here` in steps that double."""
    known = (here, cost(here))
    step = step if known[1] > epsilon else -step
    while abs(known[0]) < _WIDEST:
        found = (known[0] + step, cost(known[0] + step))
        if (known[1] > epsilon) != (found[1] > epsilon):
            return (known, found) if step > 0 else (found, known)
        known, step = found, 2 * step
    raise ValueError(f"no sigma up to {math.exp(known[0]):.2g} costs epsilon {epsilon:g}; allow another epsilon")


def _check(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}; expected a number above 0 and below 1")


def _sound(event: Steps) -> Steps:
    if not 0 < event.sigma < math.inf:
        raise ValueError(f"sigma is {event.sigma}; expected a finite number above 0: without noise, epsilon is infinite")
    if not 0 < event.q <= 1:
        raise ValueError(f"q is {event.q}; expected a rate above 0, at most 1")
    if event.steps < 1 or event.steps != int(event.steps):
        # `90 // 0.04` is 2249: steps are counted, never derived
        raise ValueError(f"steps is {event.steps!r}; expected a whole number")
    return Steps(float(event.sigma), float(event.q), int(event.steps))

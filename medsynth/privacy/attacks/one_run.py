"""Lower bounds on epsilon from one training run: guesses of who was in, each bound beside what it assumes.

Every patient is put in or left out by a fair coin before training; an attack guesses the coins of some. What (epsilon, delta)-DP
allows is a number of right guesses; more than that by a margin that chance explains in 1 - confidence of the audits at most, and
epsilon is larger. How many guesses are made is fixed before scores are seen: who picks the number that gives the largest bound
has tested many times, and the bound no longer holds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.special import bdtr, betainc, betaincinv, gammaln, ndtr, ndtri

from medsynth.evaluation.statistics import generator
from medsynth.imageset import ImageSet
from medsynth.privacy.dp.accountant import gaussian_epsilon

ASSUMES = {
    "any_mechanism": "any (epsilon, delta)-DP mechanism",
    "gaussian": "a mechanism of the Gaussian family",
    "independent": "a mechanism of the Gaussian family whose outcomes are independent between patients",
}
_LARGEST_MU = 40.0  # at which a guess errs once in 1e88: no audit contradicts it
_TOLERANCE = 1e-8
_POINTS = 17  # at which a bracket is looked at, all at once
_NODES = 64  # of the quadrature over the threshold of the most confident guesses


class Bounds(NamedTuple):
    """Lower bounds on epsilon; what each assumes of the mechanism, ASSUMES says."""

    any_mechanism: float  # Steinke et al.
    gaussian: float  # Mahloujifar et al.
    independent: float  # Xiang et al.


class Audit(NamedTuple):
    """What guesses of who was in say of epsilon, per patient, each bound at `confidence` by itself."""

    canaries: int  # patients whose coins were tossed
    guesses: int
    correct: int
    delta: float
    confidence: float
    lower: Bounds
    ceiling: Bounds  # the bounds had every guess been right: the audit cannot contradict a larger epsilon


def split_by_coins(images: ImageSet, *, seed: int) -> tuple[ImageSet, ImageSet]:
    """(members, held out): a fair coin for each patient, tossed before training, sends all its images to one side.

    Members are trained on, nothing else of the set is. Every patient is then a canary, and half of the data is the price. A bound
    holds over these coins: the split is not chosen, repeated until it pleases, stratified or balanced, and nothing that was made
    from the whole set (a scaling, a checkpoint's choice, conditions) enters the model. Raises ValueError if a side is empty.
    """
    people = np.unique(images.patient)
    heads = generator(seed, len(people)).random(len(people)) < 0.5
    if heads.all() or not heads.any():
        raise ValueError(
            f"{images.name}: coins of {len(people)} patients fell alike; expected members and others, give more patients"
        )
    member = np.isin(images.patient, people[heads])
    return images.select(member, f"{images.name}/members"), images.select(~member, f"{images.name}/held out")


def audit(scores: np.ndarray, member: np.ndarray, *, guesses: int, delta: float, confidence: float = 0.95) -> Audit:
    """Guess the coins by the scores (m,), higher for who is taken for a member, and bound epsilon; member: bool (m,), the coins.

    The highest half of `guesses` are guessed in (one more if odd), the lowest out, of the rest nothing is said (Steinke et al.,
    arXiv:2305.08846). Equal scores are put in an order that knows nothing of the coins.
    Raises ValueError for shapes that differ, a score that is not finite, or more guesses than patients.
    """
    scores, member = np.asarray(scores, dtype=np.float64), np.asarray(member)
    m = len(scores)
    if scores.shape != (m,) or member.shape != (m,) or member.dtype != bool:
        raise ValueError(f"scores {scores.shape}, member {member.dtype} {member.shape}; expected (m,) numbers and (m,) booleans")
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} of {m} scores are not finite; expected a number for every patient")
    if not 0 <= guesses <= m:
        raise ValueError(f"{guesses} guesses about {m} patients; expected 0 to {m}")
    # members may come first, and an order of equal scores by row would then be the answer
    order = np.lexsort((generator(m).random(m), scores))
    out = guesses // 2
    correct = int((~member[order[:out]]).sum() + member[order[m - (guesses - out) :]].sum())
    return audit_counts(m, guesses, correct, delta=delta, confidence=confidence)


def audit_counts(canaries: int, guesses: int, correct: int, *, delta: float, confidence: float = 0.95) -> Audit:
    """The audit in which `correct` of `guesses` about `canaries` patients were right."""
    counted = (bounds(canaries, guesses, c, delta, confidence) for c in (correct, guesses))
    return Audit(canaries, guesses, correct, delta, confidence, *counted)


@cache
def bounds(canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95) -> Bounds:
    """The three bounds.

    Raises ValueError for counts that cannot be, and for delta 0, at which no Gaussian mechanism has an epsilon.
    """
    return Bounds(
        any_mechanism_bound(canaries, guesses, correct, delta, confidence),
        gaussian_bound(canaries, guesses, correct, delta, confidence),
        independent_bound(canaries, guesses, guesses - correct, delta, confidence),
    )


def any_mechanism_bound(m: int, r: int, v: int, delta: float, confidence: float = 0.95) -> float:
    """Lower bound on epsilon for any (epsilon, delta)-DP mechanism: v of r guesses about m patients are right.

    The first epsilon whose p-value exceeds 1 - confidence (Steinke, Nasr and Jagielski, arXiv:2305.08846):
    P[B >= v] + 2 m delta max_{1<=i<=v} P[v-i <= B < v] / i, B ~ Bin(r, e^eps / (1 + e^eps)). 0 <= delta < 1.
    """
    alpha = _checked(m, r, v, delta, confidence)
    if not v:
        return 0.0
    # without delta the p-value is a tail of the binomial, and where it crosses known: no later crossing than this
    crossing = betaincinv(v, r - v + 1, alpha)
    if crossing <= 0.5:
        return 0.0
    successes = np.arange(v - 1, -1, -1)
    choices = gammaln(r + 1) - gammaln(successes + 1) - gammaln(r - successes + 1)

    def p_value(epsilon: np.ndarray) -> np.ndarray:
        right, wrong = -np.log1p(np.exp(-epsilon))[:, None], -np.logaddexp(0, epsilon)[:, None]
        window = np.exp(choices + successes * right + (r - successes) * wrong).cumsum(1)
        return betainc(v, r - v + 1, np.exp(right[:, 0])) + 2 * m * delta * (window / np.arange(1, v + 1)).max(1)

    return _first(lambda epsilon: p_value(epsilon) > alpha, float(np.log(crossing) - np.log1p(-crossing)))


def gaussian_bound(m: int, g: int, c: int, delta: float, confidence: float = 0.95) -> float:
    """Lower bound on epsilon for mechanisms no easier to attack than a Gaussian one: c of g guesses about m patients are right.

    Its trade-off curve bounds how often c, c - 1, ... guesses are right (Mahloujifar, Melis and Chaudhuri, arXiv:2410.22235).
    0 < delta < 1.
    """
    alpha = _checked(m, g, c, delta, confidence)

    def not_rejected(mu: np.ndarray) -> np.ndarray:
        right, wrong = np.full_like(mu, alpha * c / m), np.full_like(mu, alpha * (g - c) / m)
        for i in range(c - 1, -1, -1):
            more = np.maximum(wrong, ndtr(ndtri(np.minimum(right, 1.0)) - mu))
            right += i / (g - i) * (more - wrong)
            wrong = more
        return right + wrong <= g / m

    return gaussian_epsilon(_first(not_rejected, _LARGEST_MU), delta)


def independent_bound(m: int, g: int, u: int, delta: float, confidence: float = 0.95) -> float:
    """As `gaussian_bound`, if what is seen of a patient is independent of all others: u of g guesses about m patients are wrong.

    Then guesses err independently, and the g most confident of m likelihood-ratio guesses err least: mistakes are binomial with
    the mean error above a random threshold (Xiang et al., arXiv:2509.08704). 0 < delta < 1.
    """
    alpha = _checked(m, g, g - u, delta, confidence)
    if not g:
        return 0.0
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    # share of all patients whose guess is less confident than the g kept
    below = betaincinv(m - g, g + 1, (nodes + 1) / 2) if m > g else np.zeros(_NODES)

    def not_rejected(mu: np.ndarray) -> np.ndarray:
        return bdtr(u, g, _error_above(below, mu[:, None])) @ weights / 2 > alpha

    return gaussian_epsilon(_first(not_rejected, _LARGEST_MU), delta)


def _error_above(below: np.ndarray, mu: np.ndarray) -> np.ndarray:
    """Mean error of guessing the sign of x ~ N(+-mu/2, 1) where |x| exceeds its quantile `below`."""
    low, high = np.zeros(np.broadcast_shapes(below.shape, mu.shape)), mu / 2 + 37.0
    for _ in range(45):
        threshold = (low + high) / 2
        exceeded = ndtr(-threshold - mu / 2) + ndtr(-threshold + mu / 2) > 1 - below
        low, high = np.where(exceeded, threshold, low), np.where(exceeded, high, threshold)
    wrong, right = ndtr(-low - mu / 2), ndtr(-low + mu / 2)
    return wrong / (wrong + right)


def _first(holds: Callable[[np.ndarray], np.ndarray], high: float) -> float:
    """The least x in [0, high] where `holds` is true, from below and to the tolerance; it is taken to be true at `high`."""
    low = 0.0
    while high - low > _TOLERANCE:
        x = np.linspace(low, high, _POINTS)
        first = int(np.argmax([*holds(x)[:-1], True]))
        if not first:
            return low
        low, high = x[first - 1], x[first]
    return float(low)


def _checked(m: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
    """The level of the test. Raises ValueError for counts that cannot be."""
    if not 0 <= correct <= guesses <= m:
        raise ValueError(f"{correct} right of {guesses} guesses about {m} patients; expected 0 <= right <= guesses <= patients")
    if not 0 <= delta < 1 or not 0 < confidence < 1:
        raise ValueError(f"delta {delta}, confidence {confidence}; expected 0 <= delta < 1 and 0 < confidence < 1")
    return 1 - confidence

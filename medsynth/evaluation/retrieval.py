"""Image Retrieval Score: how many training images a synthetic set reaches (Dombrowski et al., CVPR 2025, arXiv:2411.16171).

Each synthetic image retrieves its nearest training image. If s of them are reachable, all as easily, then n draws hit k distinct
ones with probability S2(n, k) s! / ((s - k)! s^n), where S2 is a Stirling number of the second kind. It does not depend on s, so
neither the most likely s nor the likelihood-ratio interval needs it.

In practice some training images are nearest to much more than others, and the estimate grows with n: compare at equal n only.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import faiss
import numpy as np
from scipy import stats
from scipy.special import gammaln

from medsynth.evaluation.statistics import Estimate


class RetrievalScore(NamedTuple):
    """score: reachable share of the training images; adjusted: over that of as many real test images, which may exceed 1.

    censored: every draw hit another image, so the likelihood rises without end and the score is that of all training images.
    """

    score: Estimate
    adjusted: Estimate
    censored: bool


def retrieved(training: np.ndarray, synthetic: np.ndarray) -> np.ndarray:
    """Row of `training` (m, d) that lies nearest to each row of `synthetic` (n, d), int64 (n,); float32, ties to one of them."""
    if training.shape[1] != synthetic.shape[1]:
        raise ValueError(f"features of {training.shape[1]} and {synthetic.shape[1]} dimensions; expected those of one extractor")
    index = faiss.IndexFlatL2(training.shape[1])
    index.add(np.ascontiguousarray(training, dtype=np.float32))
    return index.search(np.ascontiguousarray(synthetic, dtype=np.float32), 1)[1][:, 0]


def retrieval_score(training: np.ndarray, synthetic: np.ndarray, test: np.ndarray) -> RetrievalScore:
    """Image Retrieval Score of features (n, d) against training features (m, d), and over that of real `test` features (t, d).

    Both are of min(n, t) draws: of the larger set, the mean number of distinct images that so many of its draws hit. n counts
    images. The interval of the ratio combines the two on the log scale (Donner and Zou 2012).
    """
    hits = [np.unique(retrieved(training, rows), return_counts=True)[1] for rows in (synthetic, test)]
    n = min(len(synthetic), len(test))
    found = [distinct(counts, n) for counts in hits]
    of_synthetic, of_test = (reachable(k, n, len(training)) for k in found)
    share = Estimate(*(value / len(training) for value in of_synthetic[:3]), n, "images")
    return RetrievalScore(share, _ratio(of_synthetic, of_test), bool((hits[0] == 1).all()))


def distinct(counts: np.ndarray, n: int) -> float:
    """Mean number of distinct images that n of sum(counts) draws hit; counts: how often each was hit (Hurlbert 1971)."""
    total = int(counts.sum())
    if not 0 < n <= total:
        raise ValueError(f"{n} of {total} draws; expected at least one, and no more than there are")
    # a hit image is missed by chance of C(total - count, n) / C(total, n)
    with np.errstate(divide="ignore"):
        missed = _log_choose(total - counts, n) - _log_choose(np.array(total), n)
    # no more than there are draws, or images that were hit, whatever logarithms round to
    return float(np.clip((1 - np.exp(missed)).sum(), 1, min(n, len(counts))))


def reachable(k: float, n: int, most: int, *, level: float = 0.95) -> Estimate:
    """How many of `most` training images are reachable where n draws hit k distinct ones; interval of the likelihood ratio.

    The most likely integer from k to `most`, which may be either end. k is a mean where it is no integer. n counts images.
    Raises ValueError for k below 1, or above n or `most`.
    """
    if not 1 <= k <= min(n, most):
        raise ValueError(f"{k} distinct of {n} draws and {most} training images; expected at least 1, and no more than of either")
    least = math.ceil(k)

    def rises(s: int) -> bool:
        return s == least or math.log(s) - math.log(s - k) + n * (math.log1p(-1 / s)) >= 0

    best = _last(rises, least, most)
    enough = _log_likelihood(best, k, n) - stats.chi2.ppf(level, 1) / 2

    def likely(s: int) -> bool:
        return _log_likelihood(s, k, n) >= enough

    low = best - (_last(lambda steps: likely(best - steps), 0, best - least))
    high = _last(likely, best, most)
    return Estimate(float(best), float(low), float(high), n, "images", level)


def _last(holds, first: int, last: int) -> int:
    """The largest integer of [first, last] up to which `holds`, which is true of the first and changes once at most."""
    while first < last:
        middle = (first + last + 1) // 2
        first, last = (middle, last) if holds(middle) else (first, middle - 1)
    return first


def _log_likelihood(s: int, k: float, n: int) -> float:
    """Less what does not depend on s."""
    return math.lgamma(s + 1) - math.lgamma(s - k + 1) - n * math.log(s)


def _log_choose(total: np.ndarray, n: int) -> np.ndarray:
    """Log of the binomial coefficient; minus infinity where there are fewer than n."""
    enough = total >= n
    found = gammaln(total + 1) - gammaln(n + 1) - gammaln(np.maximum(total - n, 0) + 1)
    return np.where(enough, found, -np.inf)


def _ratio(above: Estimate, below: Estimate) -> Estimate:
    value = above.value / below.value
    down = math.hypot(math.log(above.value / above.low), math.log(below.high / below.value))
    up = math.hypot(math.log(above.high / above.value), math.log(below.value / below.low))
    return Estimate(value, value * math.exp(-down), value * math.exp(up), above.n, "images", above.level)

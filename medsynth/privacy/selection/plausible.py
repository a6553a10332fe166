"""Plausible deniability: an image leaves only if many other patients could have been its source (arXiv:1708.07975).

The test needs the exact density of an image given its source. A latent diffusion model has none, and no estimate may stand in for
it: the theorem speaks of the density alone. So the test is for generators with a closed-form kernel, and refuses all others.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from medsynth.evaluation.statistics import generator


@runtime_checkable
class ExactDensity(Protocol):
    """A generator of which it is known how likely an output is, given its source."""

    def log_density(self, output: np.ndarray, sources: np.ndarray) -> np.ndarray:
        """Log of the density of one output (d,) given each source (n, d), exactly; (n,)."""
        ...


class Deniability(NamedTuple):
    """What is asked of an output before it is released."""

    others: int  # k: sources that fit as well as its own
    ratio: float  # gamma, above 1: what "as well" means
    epsilon: float  # of the noise on k

    def costs(self, tested: int) -> np.ndarray:
        """(epsilon, delta) of so many tested candidates, (k - 1, 2): each row holds, and the user picks one beforehand.

        (epsilon_0 + ln(1 + gamma / t), exp(-epsilon_0 (k - t)))-DP for each candidate and every integer 1 <= t < k (theorem 1).
        Of each patient one record; a candidate that is refused costs as much.
        """
        t = np.arange(1, self.others)
        epsilon = self.epsilon + np.log1p(self.ratio / t)
        delta = np.exp(-self.epsilon * (self.others - t))
        return tested * np.stack([epsilon, delta], axis=1)


def deniable(
    model: object, outputs: np.ndarray, sources: np.ndarray, source: np.ndarray, rule: Deniability, *, seed: int
) -> np.ndarray:  # fmt: skip
    """Which outputs (m, d) may be released, bool (m,); source: (m,) rows of `sources` (n, d) that they were made from.

    An output passes if the bin of its density given its source, gamma^-(i+1) < p <= gamma^-i, holds of at least k sources, plus
    Laplace noise (mechanism 1). Raises ValueError for a generator without an exact density, for k below 2, and for a ratio of
    at most 1.
    """
    if not isinstance(model, ExactDensity):
        raise ValueError(
            f"{type(model).__name__} has no exact density; plausible deniability is proved for nothing else: "
            "use a distance gate, or a private choice"
        )
    if rule.others < 2 or rule.ratio <= 1 or not rule.epsilon > 0:
        raise ValueError(f"{rule}; expected at least 2 others, a ratio above 1 and an epsilon above 0")
    noise = generator(seed, len(outputs)).laplace(scale=1 / rule.epsilon, size=len(outputs))
    passed = np.zeros(len(outputs), bool)
    for row, output in enumerate(outputs):
        bins = np.floor(-model.log_density(output, sources) / math.log(rule.ratio))
        passed[row] = (bins == bins[source[row]]).sum() >= rule.others + noise[row]
    return passed

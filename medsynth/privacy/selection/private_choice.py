"""Choosing among samples of a private generator so that the choice itself is differentially private.

A gate that refuses what is near a private patient tells of that patient by what is missing. The exponential mechanism makes such
a sample less likely instead (McSherry and Talwar, 2007). It promises no distance: at epsilon 0.1 a copy of one patient loses a
twentieth of its weight.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial.distance import cdist

from medsynth.evaluation.statistics import generator
from medsynth.mechanism import Mechanism


def patients_near(candidates: np.ndarray, private: np.ndarray, patient: np.ndarray, tau: float) -> np.ndarray:
    """How many private patients have an image within tau of each candidate; features (k, d), (n, d), patients (n,)."""
    near = cdist(candidates, private) <= tau
    people, unit = np.unique(patient, return_inverse=True)
    found = np.zeros((len(candidates), len(people)), bool)
    for column, person in enumerate(unit):
        found[:, person] |= near[:, column]
    return found.sum(1)


def choose(crowded: np.ndarray, *, epsilon: float, cap: int, seed: int) -> np.ndarray:
    """One of K candidates for each of n images, int64 (n,); crowded: patients near each candidate, int (n, K).

    Candidate j has weight exp(-epsilon min(m_j, cap) / 2): epsilon-DP for each choice, for adding, removing or replacing a
    patient, who changes each m_j by one at most. `mechanism` says what all choices cost together. K, cap and epsilon are fixed
    beforehand; losing candidates, the numbers `crowded` and how often each won never leave the house.
    Raises ValueError for an epsilon or a cap that is not positive.
    """
    if not (0 < epsilon < math.inf and cap >= 1):
        raise ValueError(f"epsilon {epsilon}, cap {cap}; expected an epsilon above 0 and a cap of at least 1")
    score = -epsilon * np.minimum(crowded, cap) / 2
    # the largest of scores with Gumbel noise is distributed as the mechanism's choice
    gumbel = generator(seed, *crowded.shape).gumbel(size=crowded.shape)
    return (score + gumbel).argmax(1)


def mechanism(choices: int, epsilon: float) -> Mechanism:
    """The line of a ledger for so many choices: their epsilons add up, as every patient may be near all of them."""
    return Mechanism("exponential mechanism", unit="patient", epsilon=choices * epsilon, steps=choices)

"""What an attack does to members, beside what it does to other people, and beside a guess (Giomi et al., arXiv:2211.10459)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from medsynth.evaluation.statistics import Estimate, share_of


class Risk(NamedTuple):
    """attack: how often it is right of members; control: of people whom no generator saw; baseline: of members, by guessing.

    residual: (attack - control) / (1 - control), what the release gives away of those who are in it. All n are patients.
    """

    attack: Estimate
    control: Estimate
    baseline: Estimate
    residual: Estimate

    @property
    def beats_its_baseline(self) -> bool:
        """Whether the attack is better than guessing, with its interval; if not, it shows nothing, not that there is nothing."""
        return self.attack.low > self.baseline.high


def risk_of(attack: np.ndarray, control: np.ndarray, baseline: np.ndarray) -> Risk:
    """From who was attacked with success, bool (n,) each, one entry a patient; exact intervals."""
    found = [share_of(x, n_of="patients") for x in (attack, control, baseline)]
    return Risk(*found, residual(found[0], found[1]))


def residual(attack: Estimate, control: Estimate) -> Estimate:
    """(attack - control) / (1 - control); its interval from the ends of both, which is wider than need be."""

    def over(a: float, b: float) -> float:
        return (a - b) / (1 - b) if b < 1 else 0.0

    low, high = over(attack.low, control.high), over(attack.high, control.low)
    return attack._replace(value=over(attack.value, control.value), low=low, high=high)

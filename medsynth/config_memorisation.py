"""The sizes of the study of what generators remember; `medsynth.config` has all others, and its profiles hold these."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class MemorisationConfig:
    """Generators of few patients: what they remember, by how often they saw them and by what was promised."""

    patients: int  # of each set, at most; half of the planes of each are trained on
    others: int  # held-out patients: how near they come is the measure of a copy
    passes: tuple[int, ...]  # over the patients, each a training without privacy, of all weights
    epsilons: tuple[float, ...]  # each a training with a promise, of few weights; beside them stands one with none
    private_passes: int
    batch: int = 4  # patients that a step expects
    private_batch: int = 10
    learning_rate: float = 1e-3
    private_learning_rate: float = 5e-4
    warmup: int = 10  # steps
    planes: int = 8  # of a half, at most: the depth of stacks, and what a patient may add to a set of images
    size: int = 64  # pixels

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of all that is trained, as passes/NUMBER or epsilon/NUMBER."""
        passes = (f"passes/{n}" for n in self.passes)
        return (*passes, *(f"epsilon/{epsilon:g}" for epsilon in (*self.epsilons, math.inf)))

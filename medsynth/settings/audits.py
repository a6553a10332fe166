"""What audits of a release are told: who is remembered, what is a copy, who is singled out, how varied it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from medsynth.settings.config import PrivacyConfig


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


@dataclass(frozen=True)
class CopiesConfig:
    """Heads that tell people and copies, and what they and a gate refuse of copies that were altered, and of generated ones."""

    public_patients: int  # phantoms, two scans of each, that heads learn from
    altered: int  # private images that are altered
    overfitted_patients: int  # whom a generator learns by heart, anew for each seed
    overfitting: PrivacyConfig  # how: epsilon infinite, all weights
    samples: int  # of each over-fitted generator
    strengths: tuple[float, ...] = (0.25, 0.5, 1.0)
    hidden: int = 64  # units of the attackers that are not linear
    cost: float = 0.05  # share of unseen patients that a filter refuses
    generators: int = 3  # over-fitted ones, each with a seed of its own


@dataclass(frozen=True)
class DiversityConfig:
    """A generator that is asked by words and by images, what is selected of its draws, and classifiers that learn of them."""

    sources: int  # private images, at most one a patient, each of which gets an image
    classifier_steps: int
    candidates: int = 8  # of each source in a round
    rounds: int = 3
    measured: float = 0.8  # share of the sources that all sets are cut to: their number must not say how many were refused
    noise: float = 0.1  # share of the range, in the control that looks varied because it is bad
    few: tuple[int, ...] = (25, 50, 200)  # real patients
    sentences: int = 100
    blocks: tuple[int, ...] = (6, 12, 24, 16)  # of the classifier, by default DenseNet-121
    features: int = 64
    growth: int = 32


@dataclass(frozen=True)
class SinglingOutConfig:
    """Games of an attacker against releases of chests: what is released, and how many others predicates are tried on."""

    released: int  # images of each release
    fitted: int  # phantoms on whom predicates are fitted
    certified: int  # on whom their weight is bounded: 30 for each private patient bound a tenth of 1/n
    weight: float = 0.1  # of a predicate, times 1/n
    epsilons: tuple[float, ...] = (1.0, 10.0)  # of generators with a promise, trained as those of `dp_images`
    private_patients: int = 100  # of a file: all its other people are strangers
    planted: float = 0.05  # share of private images in a release that an attack has to see
    repeats: int = 10  # of that

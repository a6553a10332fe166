"""What is proved of what a reading of private images reveals, and what several such proofs come to together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

RANDOMNESS = ("seeded", "secure")  # noise that a seed gives again, or from the operating system's entropy
UNITS = ("patient", "image")  # what epsilon protects: all images of a patient, or a single one
# mechanism -> (what has to be said of it, what else can be)
MECHANISMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "none": ((), ()),
    "dp-sgd": (("unit", "epsilon", "delta", "accountant", "q", "steps"), ("sigma", "randomness")),
    "gaussian mechanism": (("unit", "epsilon", "delta", "accountant"), ("q", "steps", "sigma", "randomness")),
    "laplace mechanism": (("unit", "epsilon"), ("steps",)),
    "exponential mechanism": (("unit", "epsilon"), ("steps",)),
}
_SOUND = {
    "unit": (lambda v: v in UNITS, f"one of {UNITS}"),
    "epsilon": (lambda v: isinstance(v, int | float) and 0 < v < math.inf, "a finite number above 0"),
    "delta": (lambda v: isinstance(v, int | float) and 0 < v < 1, "a number between 0 and 1"),
    "accountant": (lambda v: isinstance(v, str) and v != "", "the accountant's name, such as 'prv'"),
    "q": (lambda v: isinstance(v, int | float) and 0 < v <= 1, "a share above 0, at most 1"),
    "steps": (lambda v: type(v) is int and v > 0, "a whole number above 0"),
    "sigma": (lambda v: isinstance(v, int | float) and 0 < v < math.inf, "a finite number above 0"),
    "randomness": (lambda v: v in RANDOMNESS, f"one of {RANDOMNESS}"),
}


@dataclass(frozen=True)
class Mechanism:
    """What is proved of what a reading reveals. "none": nothing; of the others, (epsilon, delta)-DP for one `unit`.

    accountant: what found epsilon. q: chance of a unit to be in a step. sigma: sd of the noise, of the most that a unit adds.
    randomness: where the noise came from. None: does not apply.
    Raises ValueError for an unknown name, what is missing, and what contradicts the name.
    """

    name: str = "none"
    unit: str | None = None
    epsilon: float | None = None
    delta: float | None = None
    accountant: str | None = None
    q: float | None = None
    steps: int | None = None
    sigma: float | None = None
    randomness: str | None = None

    def __post_init__(self) -> None:
        if self.name not in MECHANISMS:
            raise ValueError(f"unknown mechanism {self.name!r}; expected one of {tuple(MECHANISMS)}")
        needed, possible = MECHANISMS[self.name]
        for key, (is_sound, expected) in _SOUND.items():
            value = getattr(self, key)
            if value is None and key in needed:
                raise ValueError(f"mechanism {self.name!r}: {key} is missing; expected {expected}")
            if value is not None and key not in (*needed, *possible):
                raise ValueError(f"mechanism {self.name!r}: has no {key}, found {value!r}; leave it out")
            if value is not None and not is_sound(value):
                raise ValueError(f"mechanism {self.name!r}: {key} is {value!r}; expected {expected}")

    def __str__(self) -> str:
        if self.epsilon is None:
            return self.name
        noise = f", {self.randomness} noise" if self.randomness else ""
        return f"{self.name}, ({self.epsilon:g}, {self.delta or 0:g})-DP per {self.unit}{noise}"


NONE = Mechanism()


class Cover(NamedTuple):
    """(epsilon, delta)-DP for one unit."""

    epsilon: float
    delta: float
    unit: str

    def __str__(self) -> str:
        # never less than what is proved
        return f"(epsilon = {math.ceil(100 * self.epsilon) / 100:g}, delta = {self.delta:.3g}) per {self.unit}"


def composed(mechanisms: Sequence[Mechanism]) -> Cover | None:
    """What all of them together prove: sums of epsilons and deltas (basic composition; Dwork & Roth 2014, theorem 3.16).

    What protects patients protects their images, not the other way round. None where there is none, or one that proves nothing.
    """
    if not mechanisms or NONE in mechanisms:
        return None
    unit = "image" if "image" in {m.unit for m in mechanisms} else "patient"
    return Cover(math.fsum(m.epsilon or 0 for m in mechanisms), math.fsum(m.delta or 0 for m in mechanisms), unit)

"""Stacks of hearts by what a study does with the people they are of."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from medsynth.data.sources import private_and_test_hearts
from medsynth.imageset import ImageSet
from medsynth.settings.config import DPConfig


class Hearts(NamedTuple):
    """Stacks of three groups of people: whose privacy is at stake, who are asked for, and whom samples are measured against."""

    private: ImageSet
    asked: ImageSet
    test: ImageSet


def hearts_of(config: DPConfig, data: str = "", seed: int = 0) -> Hearts:
    """Stacks as `private_and_test_hearts` finds them, phantoms or those of a file; held-out people are divided by number."""
    private, held_out = private_and_test_hearts(config, data, seed)
    people = np.unique(held_out.patient)
    first = config.asked(len(people))
    return Hearts(private, held_out.of_patients(people[:first]), held_out.of_patients(people[first:]))

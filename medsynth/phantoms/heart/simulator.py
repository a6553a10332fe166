"""The cardiac phantom as a simulator: hearts by their parameters, in scanners of any kind, that can be varied and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from medsynth.imageset import ImageSet
from medsynth.phantoms.heart.heart import PHASES, _voxel_labels, measure_volumes
from medsynth.phantoms.heart.people import Person, Scanner, draw_person
from medsynth.phantoms.heart.render import paint
from medsynth.phantoms.heart.shape import heart_shape, spacing_of


class Heart(NamedTuple):
    """One candidate of the `HeartSimulator`."""

    person: Person
    scanner: Scanner
    body: int  # seeds what both phases share beside the heart
    noise: int


# What scanners may be as far as the public knows: spans about that of the public phantoms
SCANNERS = Scanner(
    blood=(0.52, 1.04), myocardium=(0.2, 0.4), fat=(0.6, 1.2), noise=(0.0045, 0.04), bias=(0.2, 1.0), blur=(0.2, 0.9),
    window=(97.5, 99.8),
)  # fmt: skip
# Redrawn together, because one follows from the other
_ANATOMY = ("age", "male", "bmi", "condition", "lvedv", "lvef", "rvedv", "rvef", "wall", "length", "asymmetry", "flattening")
_PARAMETERS = [("person", _ANATOMY), *(("person", (key,)) for key in Person._fields if key not in _ANATOMY)]
_PARAMETERS += [("scanner", (key,)) for key in Scanner._fields]
_TOLD = ("age", "male", "bmi", "lvedv", "lvef", "rvedv", "rvef", "wall")


class HeartSimulator:
    """The cardiac phantom: public people in scanners of any kind, both phases of each candidate.

    Of the parameters that a variation redraws, a share `crossover` is another candidate's, so that what is common to all
    patients spreads, such as the scanner; the others are drawn afresh.
    """

    def __init__(self, *, slices: int = 16, size: int = 64, jobs: int = 1, crossover: float = 0.9) -> None:
        self.slices, self.size, self.jobs, self.crossover = slices, size, jobs, crossover

    def first(self, n: int, rng: np.random.Generator) -> list[Heart]:
        """Public people, each in a scanner drawn from SCANNERS."""
        return [_fresh_heart(rng) for _ in range(n)]

    def vary(self, candidates: Sequence[Heart], strength: float, rng: np.random.Generator) -> list[Heart]:
        """Each parameter redrawn with probability `strength`, all seeds anew."""
        varied = []
        for heart in candidates:
            fresh = _fresh_heart(rng)
            parts = {"person": heart.person, "scanner": heart.scanner}
            for part, keys in _PARAMETERS:
                if rng.random() < strength:
                    donor = candidates[rng.integers(len(candidates))] if rng.random() < self.crossover else fresh
                    parts[part] = parts[part]._replace(**{key: getattr(getattr(donor, part), key) for key in keys})
            # seeds are nothing that patients have in common; old ones would make near-copies of siblings
            varied.append(fresh._replace(**parts))
        return varied

    def table(self, candidates: Sequence[Heart]) -> np.ndarray:
        """Parameters (n, k) that images tell of: the scanner's, in logarithms, then the person's."""
        return np.array([[*np.log(h.scanner), *(getattr(h.person, key) for key in _TOLD)] for h in candidates], dtype=float)

    def render(self, candidates: Sequence[Heart]) -> ImageSet:
        """Stacks (2 n, 1, slices, size, size), ED and ES of each, with the attributes of `cardiac`."""
        with ThreadPoolExecutor(self.jobs) as pool:
            scans = list(pool.map(lambda heart: _scan(heart, self.slices, self.size), candidates))
        return ImageSet(
            images=np.concatenate([images for images, _ in scans])[:, None],
            patient=np.repeat(np.arange(len(scans)), len(PHASES)), unit="1", range=(0, 1), name="cardiac-simulated",
            spacing=spacing_of(self.slices, self.size), modality="mr", origin="phantom",
            attributes=pd.DataFrame([row | {"phase": k} for _, row in scans for k in range(len(PHASES))]),
        )  # fmt: skip


def _fresh_heart(rng: np.random.Generator) -> Heart:
    scanner = Scanner(*(float(np.exp(rng.uniform(*np.log(span)))) for span in SCANNERS))
    return Heart(draw_person("public", int(rng.integers(2**31)), 0), scanner, int(rng.integers(2**63)), int(rng.integers(2**63)))


def _scan(heart: Heart, slices: int, size: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Images (2, slices, size, size) of both phases, and what is measured on them and known of the person."""
    (person, scanner, body, noise), spacing = heart, spacing_of(slices, size)
    shapes = [heart_shape(person, phase, slices, size) for phase in PHASES]
    measured = measure_volumes(np.stack([_voxel_labels(shape, slices, size) for shape in shapes]), spacing)
    images = np.zeros((len(PHASES), slices, size, size), np.float32)
    for k, shape in enumerate(shapes):
        images[k, : len(shape.level)] = paint(shape, person, scanner, spacing, body, np.random.default_rng([noise, k]))
    (lvedv, lvesv), (rvedv, rvesv), (wall_ed, wall_es) = (measured[key] for key in ("lv", "rv", "wall"))
    return images, {
        "lvedv": lvedv, "lvesv": lvesv, "lvef": 100 * (lvedv - lvesv) / lvedv, "rvedv": rvedv, "rvesv": rvesv,
        "rvef": 100 * (rvedv - rvesv) / rvedv, "wall_ed": wall_ed, "wall_es": wall_es, "age": person.age,
        "sex": int(person.male), "bmi": person.bmi, "angle": measured["angle"][0], "n_slices": len(shapes[0].level),
        "condition": person.condition, "licence": "generated",
    }  # fmt: skip

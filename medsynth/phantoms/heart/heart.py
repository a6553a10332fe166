"""Cardiac phantom: short-axis cine MR stacks at end-diastole and end-systole, with labels and exact attributes.

A patient is a persistent anatomy. The left ventricle is a truncated prolate ellipsoid inside a second one (the epicardium),
the right ventricle the part of a half-ellipsoid that lies outside the epicardium. Between the phases the valve plane descends
towards a resting apex, the cavities shrink to their end-systolic volumes and the epicardium follows from a conserved
myocardium. The size of each structure is a *target*; every volumetric attribute is then measured on the voxel labels.

Label convention (that of ACDC and of the SCMR consensus for volumetry): papillary muscles and trabeculae belong to the blood
pool, although the images show them dark; the right-ventricular wall is background.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd

from medsynth.imageset import ImageSet
from medsynth.phantoms.heart.people import POPULATIONS, draw_person, random_key
from medsynth.phantoms.heart.render import paint
from medsynth.phantoms.heart.shape import SUBPLANES, Shape, heart_shape, spacing_of

PHASES = ("ED", "ES")
BACKGROUND, RIGHT_VENTRICLE, MYOCARDIUM, LEFT_VENTRICLE = range(4)


def cardiac(
    *, patients: int, slices: int = 16, size: int = 64, phases: tuple[str, ...] = PHASES, population: str = "public",
    seed: int = 0, jobs: int = 1,
) -> ImageSet:  # fmt: skip
    """Short-axis stacks (n, 1, slices, size, size), 0..1, base to apex, of `patients` people in each of `phases`.

    The stack spans 128 x 160 x 160 mm on every grid; planes from the attribute `n_slices` on are zero padding.
    Attributes, equal on all rows of a patient: lvedv, lvesv, rvedv, rvesv (ml), lvef, rvef (%), wall_ed, wall_es (mm) and angle
    (degrees, at ED), as `measure_volumes` finds them in the labels of both phases; age (years), sex (1 male), bmi, n_slices,
    condition, licence. `phase` (0 ED, 1 ES) differs between rows. Patient i is the same person whatever patients, phases and
    jobs, and has the same anatomy on every grid. jobs is a number of threads.
    Raises ValueError naming the argument.
    """
    _check(patients, slices, size, phases, population, seed, jobs)
    results = _each_patient(lambda i: _scan(i, slices, size, phases, population, seed), patients, jobs)
    people = POPULATIONS[population]
    rows = [row | {"phase": PHASES.index(p)} for _, row in results for p in phases]
    return ImageSet(
        images=np.concatenate([images for images, _ in results])[:, None],
        patient=people.first_patient + np.repeat(np.arange(patients), len(phases)),
        unit="1",
        range=(0, 1),
        name=f"cardiac-{population}",
        role=people.role,
        spacing=spacing_of(slices, size),
        modality="mr",
        origin="phantom",
        attributes=pd.DataFrame(rows),
    )


def cardiac_labels(
    *, patients: int, slices: int = 16, size: int = 64, phases: tuple[str, ...] = PHASES, population: str = "public",
    seed: int = 0, jobs: int = 1,
) -> np.ndarray:  # fmt: skip
    """Labels uint8 (n, slices, size, size) of the same rows: 0 background, 1 right ventricle, 2 myocardium, 3 left ventricle."""
    _check(patients, slices, size, phases, population, seed, jobs)

    def labels(i: int) -> np.ndarray:
        person = draw_person(population, seed, i)
        return np.stack([_voxel_labels(heart_shape(person, phase, slices, size), slices, size) for phase in phases])

    return np.concatenate(_each_patient(labels, patients, jobs))


def measure_volumes(labels: np.ndarray, spacing: tuple[float, float, float]) -> pd.DataFrame:
    """Volumetry of label volumes (n, d, h, w) at `spacing` mm: one row each with lv, rv, myo (ml), wall (mm), angle (degrees).

    lv, rv, myo: voxels of the label times the voxel volume. wall: mean over planes of the difference of the equivalent-circle
    radii, sqrt((LV + myo) / pi) - sqrt(LV / pi) of the plane's areas, over the planes that hold myocardium and at least half of
    the largest LV area (further down, planes cut the wall obliquely). angle: direction from the LV to the RV centroid, 0 towards
    the first column, positive towards the first row. NaN where a structure is absent. Raises ValueError for another shape or
    spacing.
    """
    labels = np.asarray(labels)
    if labels.ndim != 4:
        raise ValueError(f"labels have shape {labels.shape}; expected (n, d, h, w)")
    if len(spacing) != 3 or min(spacing) <= 0:
        raise ValueError(f"spacing {spacing}; expected three positive lengths in mm (depth, row, column)")
    millilitre, pixel = math.prod(spacing) / 1000, spacing[1] * spacing[2]
    lv, myo, rv = (labels == k for k in (LEFT_VENTRICLE, MYOCARDIUM, RIGHT_VENTRICLE))
    rows = []
    for i in range(len(labels)):
        cavity, wall = lv[i].sum((1, 2)) * pixel, myo[i].sum((1, 2)) * pixel
        ring = (wall > 0) & (cavity > 0) & (2 * cavity >= cavity.max())
        thickness = np.sqrt((cavity + wall)[ring] / np.pi) - np.sqrt(cavity[ring] / np.pi)
        row = {"lv": lv[i].sum() * millilitre, "rv": rv[i].sum() * millilitre, "myo": myo[i].sum() * millilitre}
        angle = math.nan
        if lv[i].any() and rv[i].any():
            down, right = (np.mean(np.nonzero(rv[i])[k]) - np.mean(np.nonzero(lv[i])[k]) for k in (1, 2))
            angle = math.degrees(math.atan2(-down * spacing[1], -right * spacing[2]))
        rows.append(row | {"wall": thickness.mean() if ring.any() else math.nan, "angle": angle})
    return pd.DataFrame(rows, columns=["lv", "rv", "myo", "wall", "angle"], dtype=float)


def _scan(i: int, slices: int, size: int, phases: tuple[str, ...], population: str, seed: int) -> tuple[np.ndarray, dict]:
    """Images (phases, slices, size, size) of patient i and the attributes of both phases."""
    person = draw_person(population, seed, i)
    shapes = {phase: heart_shape(person, phase, slices, size) for phase in PHASES}
    labels = np.stack([_voxel_labels(shapes[phase], slices, size) for phase in PHASES])
    measured = measure_volumes(labels, spacing_of(slices, size))
    (lvedv, lvesv), (rvedv, rvesv) = measured["lv"], measured["rv"]
    planes = len(shapes["ED"].level)
    body = np.random.default_rng(random_key(population, seed, i, 1)).integers(2**63)
    images = np.zeros((len(phases), slices, size, size), np.float32)
    for k, phase in enumerate(phases):
        noise = np.random.default_rng(random_key(population, seed, i, 2 + PHASES.index(phase)))
        spacing = spacing_of(slices, size)
        images[k, :planes] = paint(shapes[phase], person, POPULATIONS[population].scanner, spacing, int(body), noise)
    return images, {
        "lvedv": lvedv, "lvesv": lvesv, "lvef": 100 * (lvedv - lvesv) / lvedv,
        "rvedv": rvedv, "rvesv": rvesv, "rvef": 100 * (rvedv - rvesv) / rvedv,
        "wall_ed": measured["wall"][0], "wall_es": measured["wall"][1],
        "age": person.age, "sex": int(person.male), "bmi": person.bmi, "phase": 0,
        "angle": measured["angle"][0], "n_slices": planes, "condition": person.condition, "licence": "generated",
    }  # fmt: skip


def _voxel_labels(shape: Shape, slices: int, size: int) -> np.ndarray:
    """The structure that fills most of each voxel, uint8 (slices, size, size)."""
    below, rv_below = shape.ventricle > 0, shape.rv_ventricle > 0
    lv = ((shape.endo > 0) & below).sum(1)
    heart = ((shape.epi > 0) & below).sum(1)
    rv = ((shape.rv > 0) & rv_below).sum(1)
    labels = np.zeros((slices, size, size), np.uint8)
    # first heart or not, then which part: a tie of three would otherwise leave holes in the wall
    part = RIGHT_VENTRICLE + np.stack([rv, heart - lv, lv]).argmax(0)
    labels[: len(lv)] = np.where(2 * (heart + rv) > SUBPLANES, part, BACKGROUND)
    return labels


def _each_patient(work: Callable[[int], Any], patients: int, jobs: int) -> list[Any]:
    # threads: NumPy and SciPy release the interpreter lock in the array operations that take the time
    if jobs == 1:
        return [work(i) for i in range(patients)]
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(work, range(patients)))


def _check(patients: int, slices: int, size: int, phases: Iterable[str], population: str, seed: int, jobs: int) -> None:
    for name, value, least in (
        ("patients", patients, 1), ("slices", slices, 8), ("size", size, 32), ("seed", seed, 0), ("jobs", jobs, 1),
    ):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} is {value!r}; expected an integer of at least {least}")
    if isinstance(phases, str) or not phases or len(set(phases)) != len(phases) or not set(phases) <= set(PHASES):
        raise ValueError(f"phases is {phases!r}; expected a tuple of one or both of {PHASES}")
    if population not in POPULATIONS:
        raise ValueError(f"population is {population!r}; expected one of {tuple(POPULATIONS)}")

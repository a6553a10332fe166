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
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from medsynth.imageset import ImageSet
from medsynth.phantoms.heart.people import POPULATIONS, Person, draw_person, random_key
from medsynth.phantoms.heart.render import paint

PHASES = ("ED", "ES")
BACKGROUND, RIGHT_VENTRICLE, MYOCARDIUM, LEFT_VENTRICLE = range(4)
FIELD_OF_VIEW = (128.0, 160.0, 160.0)  # mm, depth x rows x columns, whatever the grid: volumes mean the same at every size

_BASE = 0.25  # the ellipsoids are cut this fraction of their half-length above their equator
_SHAPE = 1 - (1 + _BASE**3) / (3 * (1 + _BASE))  # volume of a cut ellipsoid / (pi R^2 L)
_BLUNT = 0.45  # squareness of the right ventricle's section: u^2 + v^2 - blunt u^2 v^2 = 1 (Fernandez-Guasti, 1992)
_SUBPLANES = 3  # planes averaged through one thick slice


class Shape(NamedTuple):
    """Signed in-plane distances in mm, positive inside, of one phase; each (planes, subplanes, h, w)."""

    endo: np.ndarray
    epi: np.ndarray
    rv: np.ndarray
    ventricle: np.ndarray  # mm below the left valve plane
    rv_ventricle: np.ndarray
    level: np.ndarray  # 0 at the base, 1 at the apex; (planes, subplanes, 1, 1)
    x: np.ndarray  # mm from the left-ventricular axis, towards the right ventricle
    y: np.ndarray  # mm, across
    radius: np.ndarray  # cavity radius, (planes, subplanes, 1, 1)


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
        spacing=_spacing(slices, size),
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
        return np.stack([_voxel_labels(_shape(person, phase, slices, size), slices, size) for phase in phases])

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
    shapes = {phase: _shape(person, phase, slices, size) for phase in PHASES}
    labels = np.stack([_voxel_labels(shapes[phase], slices, size) for phase in PHASES])
    measured = measure_volumes(labels, _spacing(slices, size))
    (lvedv, lvesv), (rvedv, rvesv) = measured["lv"], measured["rv"]
    planes = len(shapes["ED"].level)
    body = np.random.default_rng(random_key(population, seed, i, 1)).integers(2**63)
    images = np.zeros((len(phases), slices, size, size), np.float32)
    for k, phase in enumerate(phases):
        noise = np.random.default_rng(random_key(population, seed, i, 2 + PHASES.index(phase)))
        spacing = _spacing(slices, size)
        images[k, :planes] = paint(shapes[phase], person, POPULATIONS[population].scanner, spacing, int(body), noise)
    return images, {
        "lvedv": lvedv, "lvesv": lvesv, "lvef": 100 * (lvedv - lvesv) / lvedv,
        "rvedv": rvedv, "rvesv": rvesv, "rvef": 100 * (rvedv - rvesv) / rvedv,
        "wall_ed": measured["wall"][0], "wall_es": measured["wall"][1],
        "age": person.age, "sex": int(person.male), "bmi": person.bmi, "phase": 0,
        "angle": measured["angle"][0], "n_slices": planes, "condition": person.condition, "licence": "generated",
    }  # fmt: skip


def _shape(person: Person, phase: str, slices: int, size: int) -> Shape:
    """The heart of one phase as distance fields on the voxel grid, `_SUBPLANES` planes per slice."""
    depth, _, pixel = _spacing(slices, size)
    apex_wall = 0.75 * person.wall
    long_epi = person.length + apex_wall
    # cross-section as a function of direction, and the mean area it encloses relative to the circle
    directions = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    outline = _outline(person, np.cos(directions), np.sin(directions))
    round_area = np.pi * _SHAPE * 1000**-1 * np.mean(outline**2)  # ml per mm^2 of R^2 and mm of L
    radius = math.sqrt(person.lvedv / (round_area * person.length))
    epi = radius + person.wall
    myocardium = round_area * epi**2 * long_epi - person.lvedv
    ed_epi, top, length, rv_volume, rv_descent = epi, 0.0, person.length, person.rvedv, 0.0
    if phase == "ES":
        top = 4 + 0.16 * person.lvef  # mm of valve-plane descent towards the resting apex
        long_epi -= top
        length = long_epi - 1.25 * apex_wall
        volume = person.lvedv * (1 - person.lvef / 100)
        radius = math.sqrt(volume / (round_area * length))
        epi = math.sqrt((volume + myocardium) / (round_area * long_epi))
        rv_volume, rv_descent = person.rvedv * (1 - person.rvef / 100), 4 + 0.22 * person.rvef
    planes = min(slices, round((person.above + person.length + apex_wall + person.below) / depth))
    z = ((np.arange(planes * _SUBPLANES) + 0.5) / _SUBPLANES * depth - person.above).astype(np.float32)
    z = z.reshape(planes, _SUBPLANES, 1, 1)
    x, y = _heart_frame(person, z, ed_epi, pixel, size)
    distance = np.sqrt(x * x + y * y) + np.float32(1e-3)
    cosine, sine = x / distance, y / distance
    outline = _outline(person, cosine, sine)
    cavity, wall = radius * _profile((z - top) / length), epi * _profile((z - top) / long_epi)
    slope = person.tilt.astype(np.float32)
    ventricle = z - top + slope[0] * x + slope[1] * y
    epi_distance = wall * (outline + np.float32(person.asymmetry * (epi - radius) / epi) * cosine) - distance
    rv_ventricle = ventricle + np.float32(top - rv_descent)
    return Shape(
        endo=cavity * outline - distance, epi=epi_distance,
        rv=_right_ventricle(person, x, y, z, epi_distance, rv_ventricle, epi, rv_volume, depth * pixel**2 / _SUBPLANES),
        ventricle=ventricle, rv_ventricle=rv_ventricle, level=np.clip((z - top) / length, -1, 1.5), x=x, y=y,
        radius=np.maximum(cavity, 0),
    )  # fmt: skip


def _heart_frame(person: Person, z: np.ndarray, epi: float, pixel: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in mm from the left-ventricular axis: x towards the right ventricle, y across (down, at angle 0)."""
    axis = (np.arange(size, dtype=np.float32) - (size - 1) / 2) * pixel
    turn = math.radians(person.angle)
    towards = np.array([-math.cos(turn), -math.sin(turn)])  # image x (right), y (down)
    # the stack is centred on the whole heart, so the left ventricle lies off centre by half the right ventricle's width
    origin = person.centre - towards * (3.4 * person.rvedv ** (1 / 3) + 0.12 * (epi - 33))
    level = z / person.length
    column = axis[None, None, None, :] - (origin[0] + person.drift[0] * level).astype(np.float32)
    row = axis[None, None, :, None] - (origin[1] + person.drift[1] * level).astype(np.float32)
    x = column * np.float32(towards[0]) + row * np.float32(towards[1])
    y = column * np.float32(towards[1]) - row * np.float32(towards[0])
    return x, y


def _outline(person: Person, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
    """Relative radius of the left ventricle by direction (cosine 1 = septum): slightly oval, septum flattened under load."""
    size, direction = person.oval
    c2, s2 = np.float32(size * math.cos(2 * direction)), np.float32(size * math.sin(2 * direction))
    second = c2 * (cosine * cosine - sine * sine) + s2 * (2 * cosine * sine)
    septal = (1 + cosine) * np.float32(0.5)
    return 1 + second - np.float32(person.flattening) * septal * septal * septal


def _profile(level: np.ndarray) -> np.ndarray:
    """Radius of the cut ellipsoid at `level` (0 valve plane, 1 apex), relative to its equator; negative beyond the apex."""
    square = 1 - (np.maximum(level, 0) * (1 + _BASE) - _BASE) ** 2
    return (np.sqrt(np.maximum(square, 0)) + 3 * np.minimum(square, 0)).astype(np.float32)


def _right_ventricle(
    person: Person, x: np.ndarray, y: np.ndarray, z: np.ndarray, epi: np.ndarray, ventricle: np.ndarray,
    epi_radius: float, volume: float, voxel: float,
) -> np.ndarray:  # fmt: skip
    """Signed distance to a blunt half-ellipse that wraps the septum, as wide as holds `volume` ml outside the epicardium."""
    reach = 0.9 * person.length
    depth = np.maximum(z, 0) / reach
    taper = np.sqrt(np.clip(1 - depth * depth, 1e-4, 1)).astype(np.float32)
    half = 1.16 * epi_radius * min(max((person.rvedv / person.lvedv) ** (1 / 3), 1.0), 1.25) * (0.4 + 0.6 * taper)
    back = 0.15 * epi_radius * taper
    # the outflow tract lies at the anterior end of the base, so the section shifts forward there
    across = y / half + (0.2 - 0.35 * depth)
    ahead, inner = x - back, np.clip(across, -1, 1)
    side = inner * inner
    square = 1 - _BLUNT * side
    stretch = taper * np.maximum(1 + np.float32(person.skew) * across, 0.2)
    # width at which the outline passes through each voxel: the order statistic of these is the width that holds the volume
    free = (epi < 0) & (ventricle > 0) & (side < 0.98) & (ahead > 0) & (z < reach)
    needed = (ahead / stretch)[free] * np.sqrt(square[free] / (1 - side[free]))
    hold = round(volume * 1000 / voxel)
    width = float(np.partition(needed, hold)[hold])
    long = np.where(ahead > 0, stretch * np.float32(width), np.float32(0.3 * epi_radius))
    u = np.clip(ahead / long, -1, 1)
    norm = np.sqrt(u * u * square + side) + np.float32(1e-3)
    slope = np.sqrt((u * square / long) ** 2 + (inner * (1 - _BLUNT * u * u) / half) ** 2) + np.float32(1e-3)
    # the curve means nothing outside its unit square, where the distance to the square takes over
    box = np.minimum((1 - np.abs(across)) * half, long - np.abs(ahead))
    inside = np.minimum((1 - norm) * norm / slope, box)
    return np.where(z < reach, np.minimum(inside, -epi), np.float32(-20)).astype(np.float32)


def _voxel_labels(shape: Shape, slices: int, size: int) -> np.ndarray:
    """The structure that fills most of each voxel, uint8 (slices, size, size)."""
    below, rv_below = shape.ventricle > 0, shape.rv_ventricle > 0
    lv = ((shape.endo > 0) & below).sum(1)
    heart = ((shape.epi > 0) & below).sum(1)
    rv = ((shape.rv > 0) & rv_below).sum(1)
    labels = np.zeros((slices, size, size), np.uint8)
    # first heart or not, then which part: a tie of three would otherwise leave holes in the wall
    part = RIGHT_VENTRICLE + np.stack([rv, heart - lv, lv]).argmax(0)
    labels[: len(lv)] = np.where(2 * (heart + rv) > _SUBPLANES, part, BACKGROUND)
    return labels


def _spacing(slices: int, size: int) -> tuple[float, float, float]:
    return FIELD_OF_VIEW[0] / slices, FIELD_OF_VIEW[1] / size, FIELD_OF_VIEW[2] / size


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

"""The shape of a heart: ellipsoids and a wrapped half-ellipse as distance fields on a grid of planes."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from medsynth.phantoms.heart.people import Person

FIELD_OF_VIEW = (128.0, 160.0, 160.0)  # mm, depth x rows x columns, whatever the grid: volumes mean the same at every size
_BASE = 0.25  # the ellipsoids are cut this fraction of their half-length above their equator
_SHAPE = 1 - (1 + _BASE**3) / (3 * (1 + _BASE))  # volume of a cut ellipsoid / (pi R^2 L)
_BLUNT = 0.45  # squareness of the right ventricle's section: u^2 + v^2 - blunt u^2 v^2 = 1 (Fernandez-Guasti, 1992)
SUBPLANES = 3  # planes averaged through one thick slice


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


def spacing_of(slices: int, size: int) -> tuple[float, float, float]:
    """mm per voxel along depth, rows and columns."""
    return FIELD_OF_VIEW[0] / slices, FIELD_OF_VIEW[1] / size, FIELD_OF_VIEW[2] / size


def heart_shape(person: Person, phase: str, slices: int, size: int) -> Shape:
    """The heart of one phase as distance fields on the voxel grid, `SUBPLANES` planes per slice."""
    depth, _, pixel = spacing_of(slices, size)
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
    z = ((np.arange(planes * SUBPLANES) + 0.5) / SUBPLANES * depth - person.above).astype(np.float32)
    z = z.reshape(planes, SUBPLANES, 1, 1)
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
        rv=_right_ventricle(person, x, y, z, epi_distance, rv_ventricle, epi, rv_volume, depth * pixel**2 / SUBPLANES),
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

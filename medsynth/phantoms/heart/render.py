"""Balanced steady-state free-precession (bSSFP) contrast for the cardiac phantom: tissues, thorax, coil, noise.

Fat and water signals are of opposite sign at the usual repetition time, so a voxel that holds both goes dark (the "India ink"
outline of real cine images). Tissues are therefore painted with signed intensities, averaged through the thick slice, and
only then made magnitudes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from medsynth.phantoms.heart.people import Person, Scanner
from medsynth.phantoms.heart.shape import Shape


class _Tissue(NamedTuple):
    """Signals of one scan and noise textures of one body."""

    blood: float
    myocardium: float
    fat: float  # negative: opposed to water
    liver: float
    muscle: float
    lung: float
    fine: np.ndarray  # unit-variance fields, (planes, 1, h, w)
    middle: np.ndarray
    coarse: np.ndarray


def paint(
    shape: Shape, person: Person, scanner: Scanner, spacing: tuple[float, float, float], body: int, noise: np.random.Generator
) -> np.ndarray:
    """Image (planes, h, w) in 0..1 of one phase; `body` seeds what both phases share, `noise` what they do not."""
    rng = np.random.default_rng(body)
    planes, _, h, w = shape.epi.shape
    tissue = _draw_tissue(rng, scanner, (planes, 1, h, w), spacing[1])
    image = _thorax(rng, person, tissue, (planes, h, w), spacing)[:, None]
    image = _heart(image, shape, person, tissue, spacing[1], rng).mean(1)
    image = np.abs(image) * _coil(rng, person, scanner, (planes, h, w), spacing)
    image = gaussian_filter(image, (0, scanner.blur, scanner.blur))
    sigma = scanner.noise * noise.uniform(0.8, 1.25)
    channels = noise.standard_normal((2, *image.shape), dtype=np.float32) * np.float32(sigma)
    image = np.sqrt((image + channels[0]) ** 2 + channels[1] ** 2)  # Rician: magnitude of a complex signal
    return np.clip(image / np.percentile(image, scanner.window), 0, 1)


def _draw_tissue(rng: np.random.Generator, scanner: Scanner, shape: tuple[int, ...], pixel: float) -> _Tissue:
    def texture(sigma: float) -> np.ndarray:
        field = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), (0.5, 0, sigma / pixel, sigma / pixel))
        return field / field.std()

    contrast = rng.normal(0, 0.09)
    myocardium = scanner.myocardium * min(max(1 - contrast + rng.normal(0, 0.2), 0.6), 1.6)
    return _Tissue(
        blood=scanner.blood * (1 + contrast), myocardium=myocardium,
        fat=-scanner.fat * (1 + rng.normal(0, 0.1)), liver=rng.uniform(0.24, 0.4), muscle=rng.uniform(0.18, 0.3),
        lung=rng.uniform(0.04, 0.1), fine=texture(2.2), middle=texture(5.0), coarse=texture(14.0),
    )  # fmt: skip


def _cover(image: np.ndarray, inside: np.ndarray, value: np.ndarray | float, pixel: float) -> np.ndarray:
    """Lay a tissue over the image; voxels within half a pixel of its border hold a share of it (`inside`: signed mm)."""
    share = np.clip(np.float32(0.5) + inside * np.float32(1 / pixel), 0, 1)
    return image + share * (value - image)


def _ellipse(x: np.ndarray, y: np.ndarray, centre: tuple, radii: tuple[float, float], turn: float = 0.0) -> np.ndarray:
    """Signed distance (mm, first order) to an ellipse; the centre may differ by plane."""
    c, s = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    dx, dy = x - centre[0], y - centre[1]
    u, v = (dx * c + dy * s) / radii[0], (dy * c - dx * s) / radii[1]
    norm = np.sqrt(u * u + v * v) + np.float32(1e-3)
    return (1 - norm) * norm / np.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2 + np.float32(1e-8))


def _thorax(
    rng: np.random.Generator, person: Person, tissue: _Tissue, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> np.ndarray:
    """Everything around the heart, (planes, h, w): lung with vessels, diaphragm, liver, stomach, aorta, chest wall, air."""
    planes, h, w = shape
    pixel = spacing[1]
    turn = math.radians(0.8 * (person.angle - 8) + rng.normal(0, 8))
    z = ((np.arange(planes, dtype=np.float32) + 0.5) * spacing[0] - person.above)[:, None, None]
    row, column = ((np.arange(n, dtype=np.float32) - (n - 1) / 2) * pixel for n in (h, w))
    x = column * math.cos(turn) + row[:, None] * math.sin(turn)
    y = row[:, None] * math.cos(turn) - column * math.sin(turn)
    fine, middle, coarse = (t[:, 0] for t in (tissue.fine, tissue.middle, tissue.coarse))
    wobble = 2.5 * coarse + 1.0 * middle
    heart = 34 + 0.05 * (person.lvedv - 140)  # mm, rough half-height of the heart

    vessels = np.clip(fine - 1.4, 0, 1.2) * rng.uniform(0.25, 0.6)
    image = tissue.lung + vessels + 0.01 * middle
    # abdomen: a dome that rises as the planes move towards the apex
    rise = rng.uniform(0.28, 0.55)
    floor = heart + rng.uniform(8, 18) - rise * z
    dome = y - floor - (x - rng.uniform(-40, 5)) ** 2 / rng.uniform(160, 420) + wobble * 0.6
    image = _cover(image, dome, tissue.fat * (0.75 + 0.12 * middle), pixel)
    lift = floor + rng.uniform(30, 42)
    liver = np.minimum(
        _ellipse(x, y, (rng.uniform(-60, -35), lift), (rng.uniform(55, 80), 40.0), rng.normal(0.2, 0.15)), dome - 1.5
    )
    bile = np.clip(fine - 1.9, 0, 1) * 0.25
    image = _cover(image, liver + wobble * 0.4, tissue.liver * (1 + 0.09 * fine + 0.06 * middle) + bile, pixel)
    stomach = (rng.uniform(18, 48), floor + rng.uniform(24, 38))
    edge = _ellipse(x, y, stomach, (rng.uniform(18, 32), rng.uniform(15, 25)), rng.uniform(-0.6, 0.6)) + wobble * 0.5
    image = _cover(image, np.minimum(edge, dome - 2), tissue.muscle * 0.7, pixel)
    image = _cover(image, np.minimum(edge, dome - 2) - 3, rng.uniform(0.14, 0.36) * (1 + 0.25 * middle + 0.2 * fine), pixel)
    spleen = _ellipse(x, y, (rng.uniform(55, 80), floor + rng.uniform(15, 40)), (16, 28), rng.uniform(-0.5, 0.5))
    image = _cover(image, np.minimum(spleen + wobble * 0.4, dome - 2), tissue.liver * 1.25 * (1 + 0.05 * fine), pixel)
    # descending aorta, behind the left ventricle, between lung and spine
    aorta = (rng.uniform(45, 62) - 0.1 * z, rng.uniform(30, 48) + 0.05 * z)
    vessel = _ellipse(x, y, aorta, (rng.uniform(9, 12.5), rng.uniform(9, 12.5)))
    visible = np.where(z < 0.45 * person.length, np.float32(0), np.float32(-20))
    image = _cover(image, vessel + 2.5 + visible, tissue.muscle, pixel)
    image = _cover(image, vessel + visible, tissue.blood * rng.uniform(0.85, 1.15) * (1 + 0.05 * middle), pixel)
    # fat of the mediastinum, between the right ventricle and the sternum, and below the apex
    pad = (rng.uniform(-62, -40), rng.uniform(-15, 25))
    reach = (rng.uniform(18, 34) + 0.9 * (person.bmi - 24), rng.uniform(22, 45))
    pad = _ellipse(x, y, pad, (max(reach[0], 12) + 0.1 * z, reach[1] + 0.15 * z), rng.uniform(-0.7, 0.7)) + 1.5 * wobble
    image = _cover(image, pad, tissue.fat * (0.72 + 0.1 * middle - 0.25 * np.clip(fine - 1, 0, 1.5)), pixel)
    # chest wall: depth below a skin that comes closer towards the apex
    facing = math.radians(rng.uniform(100, 165))  # from image right, counter-clockwise: up to left
    fat = float(np.clip(4 + 1.1 * (person.bmi - 19) * rng.uniform(0.7, 1.3) * (0.8 if person.male else 1.15), 4, 30))
    reach = heart + rng.uniform(28, 36) + 0.55 * fat - rng.uniform(0.3, 0.5) * z - 0.0012 * z * np.abs(z)
    girth = rng.uniform(105, 150)
    skin = (math.cos(facing) * (reach - girth), -math.sin(facing) * (reach - girth))
    depth = girth - np.sqrt((x - skin[0]) ** 2 + (y - skin[1]) ** 2) + 0.8 * wobble
    along = np.arctan2(y - skin[1], x - skin[0]) * girth + rng.uniform(0, 30) + 0.25 * z
    ribs = np.cos(along * np.float32(2 * np.pi / rng.uniform(36, 52)))
    muscle = rng.uniform(9, 13)
    image = _cover(image, fat + muscle - depth, tissue.muscle * (1 + 0.12 * fine), pixel)
    rib = np.minimum(3.6 - np.abs(depth - fat - 0.6 * muscle), 12 * (ribs - 0.35)) + 0.5 * coarse
    image = _cover(image, np.minimum(rib + 1.0, 3), 0.05, pixel)
    image = _cover(image, np.minimum(rib - 0.6, 2), tissue.fat * 0.5 * (1 + 0.2 * fine), pixel)
    image = _cover(image, fat - depth, tissue.fat * (1 + 0.05 * middle - 0.25 * np.clip(fine - 1.3, 0, 1)), pixel)
    image = _cover(image, 1.8 - depth, tissue.muscle, pixel)
    return _cover(image, -depth, 0.0, pixel)


def _heart(
    image: np.ndarray, shape: Shape, person: Person, tissue: _Tissue, pixel: float, rng: np.random.Generator
) -> np.ndarray:
    """Pericardial fat, both ventricles and what lies above the valves, over (planes, 1, h, w) -> (planes, subplanes, h, w)."""
    fine, middle, coarse = tissue.fine, tissue.middle, tissue.coarse
    free_wall = 3.0 if person.condition != "rv-enlarged" else 4.5
    muscle = tissue.myocardium * (1 + 0.05 * fine + 0.05 * middle)
    flow = 1 + 0.06 * coarse + 0.05 * middle + 0.03 * fine
    groove = np.exp(-(shape.epi**2 + shape.rv**2) / 90)
    fat = (
        np.float32(0.08 * (person.bmi - 16) + 0.02 * person.age) * (1 + 1.1 * coarse + 0.4 * middle)
        - 1
        + 6 * groove
        + 3 * np.clip(shape.level, 0, 1)
    )
    outer = np.maximum(shape.epi, shape.rv + free_wall)
    image = _cover(image, outer + np.maximum(fat, 0) + 1.0, tissue.muscle, pixel)  # pericardium
    image = _cover(image, outer + np.maximum(fat, 0), tissue.fat * 0.8, pixel)
    image = _cover(image, shape.rv + free_wall, muscle * 1.1, pixel)
    # trabeculae roughen the blood pool's border, most of all at the apex
    rough = np.clip(shape.level, 0.1, 1)
    comb = np.clip(0.8 * fine + 0.6 * middle, 0, 2.2)
    rv_blood = tissue.blood * rng.uniform(0.82, 0.98) * flow
    below = np.clip(0.5 + shape.ventricle / 3, 0, 1)
    image = _cover(image, shape.rv - (0.8 + 5.0 * rough) * comb, rv_blood, pixel)
    ventricle = _cover(image, shape.epi, muscle, pixel)
    pool = shape.endo - (0.6 + 5 * rough) * comb
    for side in (-1, 1):
        column = _papillary(shape, side * rng.uniform(0.7, 1.15), rng.uniform(0.13, 0.2)) + 0.9 * middle + 0.6 * fine
        pool = np.minimum(pool, -column)
    lv_blood = tissue.blood * rng.uniform(0.98, 1.1) * flow
    ventricle = _cover(ventricle, pool, lv_blood, pixel)
    # above the valves, in the few planes that reach there: left atrium and aortic root
    top = int(np.flatnonzero((below < 1).any((1, 2, 3)))[-1]) + 1
    x, y, epi, below = shape.x[:top], shape.y[:top], shape.epi[:top], below[:top]
    left = _ellipse(x, y, (-8.0, rng.uniform(-4, 8)), (24.0, 27.0))
    chambers = np.maximum(left, _ellipse(x, y, (21.0, -6.0), (13.0, 14.0)))
    atrium = _cover(image[:top], epi, tissue.muscle, pixel)
    atrium = _cover(atrium, chambers + 2, muscle[:top], pixel)
    atrium = _cover(atrium, chambers, lv_blood[:top] * 0.95, pixel)
    ventricle[:top] = below * ventricle[:top] + (1 - below) * atrium
    return ventricle


def _papillary(shape: Shape, direction: float, size: float) -> np.ndarray:
    """Signed distance to one papillary muscle: a column on the free wall from the middle of the ventricle to the apex."""
    at = 0.74 * shape.radius
    x, y = shape.x + at * np.float32(math.cos(direction)), shape.y - at * np.float32(math.sin(direction))
    # muscle is conserved: the columns fill more of the small end-systolic cavity
    thick = (1.6 + size * shape.radius) * np.clip(1.4 - 6 * (shape.level - 0.55) ** 2 / 0.25, -1, 1)
    return thick - np.sqrt(x * x + y * y)


def _coil(
    rng: np.random.Generator, person: Person, scanner: Scanner, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> np.ndarray:
    """Smooth sensitivity of a chest coil: strongest up and left, in the patient's frame."""
    planes, h, w = shape
    facing = math.radians(rng.uniform(110, 170) - person.angle)
    row, column = (np.linspace(-0.5, 0.5, n, dtype=np.float32) for n in (h, w))
    near = column * math.cos(facing) - row[:, None] * math.sin(facing)
    bend = rng.normal(0, 0.25, 3)
    curve = bend[0] * column * row[:, None] + bend[1] * (column**2 - 1 / 12) + bend[2] * (row[:, None] ** 2 - 1 / 12)
    along = np.linspace(-0.1, 0.1, planes, dtype=np.float32)[:, None, None] * rng.normal(0.5, 0.5)
    return np.exp(scanner.bias * (near + curve + along)).astype(np.float32)

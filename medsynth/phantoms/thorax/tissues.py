"""The tissue model of an axial slice: layers of tissue from the skin inwards, and what each is worth in CT, MR and PET."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medsynth.phantoms.thorax import anatomy as an
from medsynth.phantoms.thorax import surfaces
from medsynth.phantoms.thorax.anatomy import Anatomy
from medsynth.phantoms.thorax.pathology import Lesion, consolidation, effusion, nodule
from medsynth.phantoms.thorax.sampling import splat
from medsynth.phantoms.thorax.surfaces import fraction

SLAB = 5.0  # slice thickness, mm


@dataclass(frozen=True)
class Tissue:
    """Mean values of one tissue in each modality and how strongly the patient's own coarse and fine noise shows in it (HU)."""

    hu: float
    t2: float
    suv: float
    coarse: float = 0.0
    fine: float = 0.0
    enhances: float = 0.0  # HU added by a full dose of contrast agent


TISSUES = {
    "skin": Tissue(20, 0.35, 0.4),
    "fat": Tissue(-102, 0.78, 0.25, 10, 12),
    "septa": Tissue(-20, 0.5, 0.4),
    "muscle": Tissue(52, 0.24, 0.7, 8, 14, 12),
    "gland": Tissue(15, 0.6, 0.9, 20, 30),
    "mediastinal fat": Tissue(-92, 0.72, 0.5, 22, 26),
    "lung": Tissue(-845, 0.05, 0.45, 22, 26),
    "vessel": Tissue(42, 0.2, 1.5, 0, 0, 190),
    "blood": Tissue(42, 0.14, 1.7, 3, 4, 230),
    "myocardium": Tissue(45, 0.36, 2.6, 6, 8, 55),
    "wall": Tissue(-20, 0.3, 0.9),
    "air": Tissue(-985, 0.01, 0.1),
    "oesophagus": Tissue(32, 0.4, 1.3, 8, 10),
    "liver": Tissue(58, 0.36, 2.4, 5, 8, 55),
    "stomach": Tissue(20, 0.6, 1.2, 12, 12, 10),
    "cortex": Tissue(620, 0.05, 0.8, 60, 80),
    "marrow": Tissue(175, 0.5, 1.6, 45, 95),
    "cartilage": Tissue(110, 0.3, 0.6, 15, 15),
    "canal": Tissue(22, 0.95, 0.7),
    "cord": Tissue(40, 0.5, 1.3),
    "disc": Tissue(85, 0.55, 0.7, 10, 10),
    "fluid": Tissue(10, 0.98, 0.6, 3, 3),
    "consolidation": Tissue(32, 0.75, 2.8, 25, 30, 45),
    "nodule": Tissue(130, 0.6, 6.5, 25, 30, 40),
}

Layer = tuple[str, np.ndarray]


def layers(
    anatomy: Anatomy, lesion: Lesion, x: np.ndarray, y: np.ndarray, z: np.float32, pixel: float, coarse: np.ndarray,
    fine: np.ndarray,
) -> Iterator[Layer]:  # fmt: skip
    """(tissue, share) from the skin inwards; a later layer covers an earlier one."""
    edge = pixel
    a, b, cy = (float(v) for v in an.cage(anatomy, z))
    p = anatomy.squareness
    qx, qy = np.abs(x / a) ** (p / 2), np.abs((y - cy) / b) ** (p / 2)
    q = np.sqrt(qx * qx + qy * qy)
    scale = np.hypot(x, y - cy) / np.maximum(q ** (2 / p), 1e-3)
    cage = (q ** (2 / p) - 1) * scale
    phi = np.arctan2(qx, np.where(y > cy, qy, -qy))
    side = np.sign(x)
    muscle, fat = an.wall_thickness(anatomy, phi, side, z)
    sx, sy = (float(v) for v in an.spine_line(anatomy, z))
    # the groove over the spinous processes, and a back flattened by lying on it
    groove = 7 * np.exp(-(((x - sx) / 16) ** 2)) * (y > cy)
    skin = cage - (8 + muscle + fat - groove)
    skin = -surfaces.blend(-skin, cy + b + 28 + 0.55 * anatomy.fat + 0.4 * anatomy.muscle - y, 30.0)
    if anatomy.breast:
        skin = np.minimum(skin, _breast_distance(anatomy, x, y, z))
    yield "skin", fraction(skin, edge)
    yield "fat", fraction(skin + 2.0, edge)
    yield "septa", 0.35 * fraction(skin + 4, edge) * np.clip(1 - np.abs(fine) / 0.16, 0, 1)
    if anatomy.breast:
        gland = fraction(_breast_distance(anatomy, x, y, z) + 9, edge) * fraction(-cage + muscle + 8, edge)
        yield "gland", gland * np.clip(0.3 + 0.8 * coarse + 0.4 * fine - 0.012 * (anatomy.age - 45), 0, 0.9)
    flesh = cage - (6 + muscle)
    yield "muscle", fraction(flesh, edge)
    yield from _planes(anatomy, cage, muscle, phi, flesh, edge, coarse, fine)
    yield "fat", fraction(np.abs(cage - 1.0) - 0.7, max(edge, 2)) * 0.6
    yield from _ribs(anatomy, cage, phi, x - sx, z, edge)
    yield from _scapula(anatomy, cage, muscle, phi, z, edge)
    inside = fraction(cage, edge)
    yield "mediastinal fat", inside
    yield from _abdomen(anatomy, x, y, z, inside, edge)
    lung_sdf = surfaces.lung_distance(anatomy, x, y, z)
    lung = fraction(lung_sdf, edge)
    yield "lung", lung
    yield from _bronchovascular(anatomy, x, y, float(z), lung, pixel)
    yield from _heart(anatomy, x, y, z, edge)
    for capsule in anatomy.vessels:
        if surfaces.capsule_box(capsule, edge, x, y, z):
            yield "blood", fraction(surfaces.capsule_distance(capsule, x, y, z), edge)
    for capsule in anatomy.airways:
        if not surfaces.capsule_box(capsule, edge, x, y, z):
            continue
        tube = surfaces.capsule_distance(capsule, x, y, z)
        yield "wall", fraction(tube - 1.6, edge)
        yield "air", fraction(tube, edge)
    yield "oesophagus", fraction(np.hypot((x - 6) / 1.4, y - (sy - 27)) - 6, edge)
    yield from _vertebra(anatomy, x - sx, y - sy, float(z), edge)
    yield from _lesion(anatomy, lesion, x, y, z, lung, edge)


def _breast_distance(anatomy: Anatomy, x: np.ndarray, y: np.ndarray, z: np.float32) -> np.ndarray:
    r = 44 + 0.5 * anatomy.breast
    drop = float(np.clip(1 - ((z + 45 + 0.3 * anatomy.breast) / (1.5 * r)) ** 2, 0, None)) ** 0.5
    forward = anatomy.breast * drop + 4
    q = ((np.abs(x) - 0.58 * anatomy.width) / r) ** 2 + ((y + 0.86 * anatomy.depth) / (forward + 14)) ** 2
    return (np.sqrt(q) - 1) * (forward + 14)


def _planes(
    anatomy: Anatomy, cage: np.ndarray, muscle: np.ndarray, phi: np.ndarray, flesh: np.ndarray, edge: float, coarse: np.ndarray,
    fine: np.ndarray,
) -> Iterator[Layer]:  # fmt: skip
    """Fat planes between muscles, and the bundles of the back muscles."""
    inside = fraction(flesh + 1.5, edge)
    depth = np.clip(cage - 6, 0, None) / np.maximum(muscle, 1)
    sheet = 0.42 + 0.10 * np.sin(3 * phi + anatomy.wall[0, 0]) + 0.07 * coarse
    gap = np.clip(1 - np.abs(depth - sheet) * muscle / 1.6, 0, 1) * (muscle > 14)
    bundle = np.clip(1 - np.abs(phi - 0.42 - 0.05 * anatomy.wall[1, 1]) * 90 / 2.2, 0, 1)
    pectoral = np.clip(1 - np.abs(phi - 1.75 - 0.05 * anatomy.wall[1, 2]) * 110 / 3.5, 0, 1)
    streak = np.clip(1 - np.abs(fine + 0.5 * coarse) / 0.1, 0, 1) * 0.25
    share = np.maximum.reduce([gap * 0.8, bundle * 0.8, pectoral, streak * (1 + (anatomy.age - 50) / 60)])
    yield "fat", np.clip(share, 0, 1) * inside * (cage > 5)


def _ribs(anatomy: Anatomy, cage: np.ndarray, phi: np.ndarray, x: np.ndarray, z: np.float32, edge: float) -> Iterator[Layer]:
    band = np.flatnonzero((np.abs(cage - 4) < 7 + edge).ravel())
    angle = phi.ravel()[band]
    table = np.linspace(0, np.pi, 97)
    height, end = an.rib_lines(anatomy, table)
    slope = np.gradient(height, table, axis=-1) / (0.5 * (anatomy.width + anatomy.depth))
    lean = 1 / np.sqrt(1 + slope**2)
    k = angle * (96 / np.pi)
    k0 = np.clip(k.astype(int), 0, 95)
    t = k - k0
    right = (x.ravel()[band] > 0).astype(int)
    centre = height[right, :, k0] * (1 - t)[:, None] + height[right, :, k0 + 1] * t[:, None]
    dz = (z - centre) * lean[right, :, k0]
    half = 0.5 * anatomy.rib_height
    clear = fraction(20 - np.abs(x.ravel()[band]), edge)
    e = np.sqrt((dz / (half + 1.2)) ** 2 + ((cage.ravel()[band] - 4) / 4.0)[:, None] ** 2)
    distance = (e - 1) * 4.0
    bony = fraction(angle[:, None] - end[None], 0.08)
    for name, share in (
        ("cartilage", fraction(distance, edge) * (1 - bony) * (np.arange(12) < 10)),
        ("cortex", fraction(distance, edge) * bony),
        ("marrow", fraction(distance + 2.0, edge) * bony),
    ):
        out = np.zeros(cage.size, np.float32)
        out[band] = share.max(1) * clear
        yield name, out.reshape(cage.shape)
    front = fraction(np.abs(phi - np.pi) * 0.5 * (anatomy.width + anatomy.depth) - 17, edge)
    if -78 < z < 72:
        yield "cortex", front * fraction(np.abs(cage - 7) - 5.5, edge)
        yield "marrow", front * fraction(np.abs(cage - 7) - 3.5, edge)


def _scapula(
    anatomy: Anatomy, cage: np.ndarray, muscle: np.ndarray, phi: np.ndarray, z: np.float32, edge: float
) -> Iterator[Layer]:
    """A plate in the muscles of the upper back, thicker at its lateral border."""
    t = (anatomy.apex - 10 - z) / 120
    if not 0 < t < 1:
        return
    low, high = 0.62 + 0.05 * anatomy.wall[1, 3], 1.35 - 0.45 * t
    along = fraction(np.maximum(low - phi, phi - high) * 110, edge)
    plate = np.abs(cage - (11 + 0.30 * muscle + 8 * (phi - low))) - (2.2 + 2.2 * np.exp(-(((phi - high) / 0.12) ** 2)))
    yield "cortex", along * fraction(plate, edge)
    yield "marrow", along * fraction(plate + 2.2, edge)


def _abdomen(anatomy: Anatomy, x: np.ndarray, y: np.ndarray, z: np.float32, inside: np.ndarray, edge: float) -> Iterator[Layer]:
    """Diaphragm, liver and a stomach with its air below the domes."""
    below = fraction((z - surfaces.diaphragm(anatomy, x, y)) * 0.85, edge) * inside
    yield "muscle", below
    yield "liver", below * fraction(x - 28 - 0.15 * y, 2 * edge) * fraction((z - surfaces.diaphragm(anatomy, x, y)) + 3, edge)
    left = below * fraction(-x + 34, 2 * edge)
    yield "stomach", left * fraction(np.hypot(x - 0.52 * anatomy.width, y + 10) - 38, edge)
    yield "air", left * fraction(np.hypot(x - 0.5 * anatomy.width, 1.5 * (y + 26)) - 20 - 6 * anatomy.wall[0, 3], edge)


def _bronchovascular(anatomy: Anatomy, x: np.ndarray, y: np.ndarray, z: float, lung: np.ndarray, pixel: float) -> Iterator[Layer]:
    """Vessels that cross the slab, and bronchi beside the larger ones."""
    tree = anatomy.tree
    dz = tree.points[:, 2] - z
    near = np.abs(dz) < 3 * SLAB
    dz, points, radius = dz[near], tree.points[near, :2], tree.radius[near]
    width = np.sqrt(SLAB**2 / 12 + 0.25 * radius**2)
    mass = np.pi * radius**2 * tree.length[near] * np.exp(-0.5 * (dz / width) ** 2) / (width * 2.5066)
    # the grid may be rotated: pixel indices are projections on its two axes
    origin = np.array([x[0, 0], y[0, 0]])
    axes = np.array([[x[0, 1], y[0, 1]], [x[1, 0], y[1, 0]]]) - origin
    area = float(axes[0] @ axes[0])
    column, row = axes @ (points - origin).T / area
    mass /= area
    total, walls = np.zeros_like(lung), np.zeros_like(lung)
    for low, high in ((0, 1.3), (1.3, 2.4), (2.4, 9)):
        pick = (radius >= low) & (radius < high)
        sigma = 0.5 * float(np.sqrt(np.mean(radius[pick] ** 2))) / pixel if pick.any() else 0.0
        density = splat(column[pick], row[pick], mass[pick], lung.shape)
        total += ndimage.gaussian_filter(density, sigma, truncate=3) if sigma > 0.15 else density
        if low > 1:
            beside = splat(column[pick] + 2.0 * radius[pick] / pixel, row[pick] + radius[pick] / pixel, mass[pick], lung.shape)
            ring = ndimage.gaussian_filter(beside, 1.5 * sigma, truncate=3)
            walls += 1.5 * ring - 1.6 * ndimage.gaussian_filter(beside, 0.7 * sigma, truncate=3)
    yield "wall", np.clip(walls * 0.8, 0, 0.6) * lung
    yield "air", np.clip(-walls * 0.8, 0, 0.8) * lung
    yield "vessel", np.clip(1.3 * total, 0, 1) * lung


def _heart(anatomy: Anatomy, x: np.ndarray, y: np.ndarray, z: np.float32, edge: float) -> Iterator[Layer]:
    (c1, m1), (c2, m2) = anatomy.chambers
    left = surfaces.ellipsoid_distance(c1, m1, x, y, z)
    right = surfaces.ellipsoid_distance(c2, m2, x, y, z)
    both = np.minimum(left, right)
    yield "myocardium", fraction(both, edge)
    # a thin coat of fat in the grooves between the chambers
    yield "mediastinal fat", fraction(np.abs(left - right) - 1.5, edge) * fraction(both, edge) * fraction(-both - 6, 3.0)
    yield "blood", fraction(right + 4, edge) * fraction(-left + 3, edge)
    yield "blood", fraction(left + 11, edge)


def _vertebra(anatomy: Anatomy, x: np.ndarray, y: np.ndarray, z: float, edge: float) -> Iterator[Layer]:
    pitch = (anatomy.apex - anatomy.dome + 75) / 12 * 0.98
    phase = (z - anatomy.apex) / pitch
    row = (phase - np.round(phase - 0.5) - 0.5) * pitch  # height above the middle of the nearest vertebra
    size = 1 + 0.3 * np.clip((anatomy.apex - z) / 200, 0, 1.2) + 0.05 * anatomy.wall[2, 3]
    body = (np.sqrt((x / 15.5) ** 2 + (y / 12.5) ** 2) - size) * 13
    arch = np.maximum(np.abs(np.hypot(x / 1.1, y - 20 * size) - 11 * size) - 3, 5 * size - y)
    height = np.exp(-(((row - 2) / 9) ** 2))
    wing = np.maximum(np.hypot(0.0, y - 24 * size - 0.35 * np.abs(x)) - 3.6 * height, np.abs(x) - 34 * size)
    spike = np.maximum(np.hypot(x, 0.0) - 3.2, np.abs(y - 42 * size) - 14)
    if abs(row) > 0.42 * pitch:
        yield "disc", fraction(body, edge)
    else:
        yield "cortex", fraction(body, edge)
        yield "marrow", fraction(body + 2.4, edge)
    posterior = np.minimum.reduce([arch, np.where(np.abs(x) > 9, wing, 99), spike])
    yield "cortex", fraction(posterior, edge)
    yield "marrow", fraction(posterior + 2.2, edge)
    yield "canal", fraction(np.hypot(x, y - 20 * size) - 8.5, edge)
    yield "cord", fraction(np.hypot(x, y - 20 * size) - 4.5, edge)


def _lesion(
    anatomy: Anatomy, lesion: Lesion, x: np.ndarray, y: np.ndarray, z: np.float32, lung: np.ndarray, edge: float
) -> Iterator[Layer]:
    if lesion.finding == "nodule":
        yield "nodule", nodule(lesion, x, y, z, edge) * fraction(0.3 - lung, 0.6)
    elif lesion.finding == "consolidation":
        yield "consolidation", consolidation(lesion, anatomy, x, y, z) * lung
    elif lesion.finding == "effusion":
        yield "fluid", effusion(lesion, anatomy, x, y, z, posture="supine", edge=edge) * lung

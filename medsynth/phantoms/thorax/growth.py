"""Draw a patient's anatomy, grow the vessels of the lungs, and let the chest breathe."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medsynth.phantoms.thorax.anatomy import LATTICE, Anatomy, Tree
from medsynth.phantoms.thorax.surfaces import cage_distance, diaphragm, heart_distance

TREE_LEVELS = 10  # 2**10 terminal vessels per lung: about one per 2.5 ml, below which 128 pixels resolve nothing


def draw_anatomy(rng: np.random.Generator, *, age: float, sex: int, bmi: float) -> Anatomy:
    """A patient's anatomy given demographics; all draws come from `rng` in a fixed order."""
    # Python floats, so that they never widen float32 arrays
    n = rng.standard_normal(24).tolist()
    heavy, old = bmi - 25, age - 50
    anatomy = Anatomy(
        age=age,
        sex=sex,
        bmi=bmi,
        width=(139 if sex else 127) + 7 * n[0] + 0.5 * heavy,
        depth=(86 if sex else 78) + 6.5 * n[1] + 0.5 * heavy + 0.12 * old,
        apex=(100 if sex else 92) + 7 * n[2],
        waist=-70 + 8 * n[4],
        dome=(-104 if sex else -97) + 11 * n[3] + 0.9 * heavy,
        dome_step=9 + 5 * n[5],
        dome_fall=58 + 7 * n[6],
        squareness=2.35 + 0.12 * n[7],
        kyphosis=0.09 + 0.025 * n[8] + 0.0012 * old,
        scoliosis=(abs(4 * n[9]), float(rng.uniform(0, 6.28))),
        fat=max(4.0, 5 + 1.35 * (bmi - 18) * (0.85 if sex else 1.15) + 3 * n[10]),
        muscle=max(6.0, (15 if sex else 10) + 2.5 * n[11] - 0.05 * old),
        breast=0.0 if sex else max(8.0, 30 + 2.2 * heavy + 9 * n[12]),
        wall=rng.standard_normal((3, 4)).astype(np.float32),
        heart=min(max(0.96 + 0.05 * n[13] + 0.004 * heavy, 0.84), 1.08),
        heart_tilt=0.62 + 0.12 * n[14] - 0.012 * heavy,
        heart_shift=np.array([5, 4, 5]) * n[15:18],
        aorta=max(9.0, 12.5 + 0.06 * old + 0.9 * n[18]),
        mediastinal_fat=max(2.0, 7 + 0.5 * heavy + 1.5 * n[19]),
        rib_height=12.5 + 0.9 * n[20],
        rib_drop=82 + 8 * n[21],
        rib_jitter=rng.standard_normal((2, 12, 2)).astype(np.float32),
        bone=min(max(1 + 0.1 * n[22] - 0.006 * old, 0.55), 1.35),
        aeration=min(max(0.79 + 0.03 * n[23] + 0.001 * old, 0.7), 0.87),
        habit=tuple((np.array([6.0, 6.0, 8.0]) * rng.standard_normal(3)).tolist()),
        lattice=rng.standard_normal((LATTICE,) * 3).astype(np.float32),
    )
    return replace(anatomy, tree=_grow(anatomy, rng))


def breathe(anatomy: Anatomy, breath: float) -> Anatomy:
    """The same patient at another lung volume; breath 0 is a full inspiration, 1 about 35 mm of diaphragm higher."""
    rise = 35 * breath
    stretch = (anatomy.apex - anatomy.dome - rise) / (anatomy.apex - anatomy.dome)
    points = anatomy.tree.points.copy()
    points[:, 2] = anatomy.apex - (anatomy.apex - points[:, 2]) * stretch
    return replace(
        anatomy,
        dome=anatomy.dome + rise,
        width=anatomy.width * (1 - 0.035 * breath),
        depth=anatomy.depth * (1 - 0.05 * breath),
        heart=anatomy.heart * (1 + 0.04 * breath),
        heart_tilt=anatomy.heart_tilt - 0.2 * breath,
        aeration=anatomy.aeration - 0.09 * breath,
        tree=replace(anatomy.tree, points=points),
    )


def _grow(anatomy: Anatomy, rng: np.random.Generator) -> Tree:
    """Vessel trees that fill both lungs: targets split in halves again and again, radii by Murray's law."""
    groups = _targets(anatomy, rng)
    node = np.array([[-36.0, 36.0], [8.0, 8.0], [-24.0, -24.0]], np.float32)
    parts = []
    for level in range(1, TREE_LEVELS + 1):
        # the lung is tallest in z and narrowest in x: halves stay compact if the axes take turns in that order
        order = np.argsort(groups[(2, 1, 0)[level % 3 - 1]], axis=1)
        groups = np.take_along_axis(groups, order[None], axis=2).reshape(3, 2 ** (level + 1), -1)
        count = groups.shape[1]
        start = np.repeat(node, 2, axis=1)
        span = (1.0 if level == TREE_LEVELS else 0.5) * (groups.mean(2) - start)
        node = start + span
        length = np.sqrt((span * span).sum(0))
        bow = rng.standard_normal((3, count), dtype=np.float32) * (0.1 * length)
        steps = 24 if level <= 3 else 12 if level <= 6 else 5
        t = (np.arange(steps, dtype=np.float32) + 0.5) / steps
        points = start[..., None] + span[..., None] * t + bow[..., None] * np.sin(np.float32(np.pi) * t)
        radius = 5.2 * 2 ** (-(level - 1) / 3.3) * np.exp(0.12 * rng.standard_normal(count, dtype=np.float32))
        parts.append((points.reshape(3, -1), *np.repeat([radius, length / steps, np.full(count, level)], steps, axis=1)))
    points, radius, length, levels = (np.concatenate(v, axis=-1, dtype=np.float32) for v in zip(*parts, strict=True))
    return Tree(points.T, radius, length, levels)


def _targets(anatomy: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """Uniform points of the right and left lung, (3, 2, 2**TREE_LEVELS)."""
    count = 2**TREE_LEVELS
    height = anatomy.apex - anatomy.dome + anatomy.dome_fall
    box = np.array([anatomy.width - 20, 2 * anatomy.depth, height], np.float32)[:, None, None]
    corner = np.array([20, -anatomy.depth, anatomy.apex - height], np.float32)[:, None, None]
    lungs = [np.zeros((3, 0), np.float32)] * 2
    while min(lung.shape[1] for lung in lungs) < count:
        candidates = corner + box * rng.random((3, 2, 9 * count // 4), dtype=np.float32)
        candidates[0, 0] *= -1
        inside = _aerated(anatomy, *candidates) < -2
        lungs = [np.concatenate([lung, candidates[:, i, inside[i]]], axis=1) for i, lung in enumerate(lungs)]
    return np.stack([lung[:, :count] for lung in lungs], axis=1)


def _aerated(anatomy: Anatomy, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """As `lung_distance` but without great vessels and spine."""
    distance = np.maximum(cage_distance(anatomy, x, y, z), diaphragm(anatomy, x, y) - z)
    return np.maximum(distance, -heart_distance(anatomy, x, y, z))

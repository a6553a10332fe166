"""The finding of a patient: nodule, effusion, consolidation or an enlarged heart, as implicit functions in the anatomy's mm."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from medsynth.language.vocabulary import PHANTOM_FINDINGS
from medsynth.phantoms.thorax.anatomy import Anatomy, cage, turned
from medsynth.phantoms.thorax.sampling import noise
from medsynth.phantoms.thorax.surfaces import capsule_distance, ellipsoid_distance, fraction, heart_distance

SHARES = (0.40, 0.15, 0.15, 0.15, 0.15)
SIDED = ("nodule", "effusion", "consolidation")  # findings that lie on one side


@dataclass(frozen=True, kw_only=True, eq=False)
class Lesion:
    """One patient's finding; every patient has a complete set of draws, so that position and level do not tell the finding."""

    finding: str
    side: int  # -1 right, 1 left
    centre: np.ndarray  # (3,) mm, of nodule or consolidation
    radius: float  # of a nodule
    lobes: np.ndarray  # (3, 3) offsets of a nodule's lobules in units of its radius
    extent: np.ndarray  # (3,) semi-axes of a consolidation
    density: float  # of a consolidation, 1 = no air left
    fluid: float  # height of an effusion above the costophrenic angle, mm
    level: float  # height of the axial slice through the lesion


def draw_lesion(rng: np.random.Generator, anatomy: Anatomy) -> tuple[Anatomy, Lesion]:
    """A finding in the shares of `SHARES`, and the anatomy with its heart enlarged if that is the finding."""
    finding = PHANTOM_FINDINGS[int(rng.choice(len(PHANTOM_FINDINGS), p=SHARES))]
    growth = float(rng.uniform(1.12, 1.3))
    wide = float(rng.uniform(-88, 22))
    at_heart = float(rng.uniform(anatomy.dome + 15, anatomy.dome + 75))
    # most slices pass the heart whatever the finding; an enlarged heart is only seen there
    level = at_heart if finding == "cardiomegaly" or rng.random() < 0.7 else wide
    side = 1 if rng.random() < 0.45 else -1
    centre = _place(rng, anatomy, side, level)
    lesion = Lesion(
        finding=finding,
        side=side,
        centre=centre,
        radius=float(rng.uniform(13.5, 20.5)),
        lobes=rng.standard_normal((3, 3)) * 0.45,
        extent=np.array([1.0, 1.05, 1.1]) * rng.uniform(30, 48) * np.exp(0.15 * rng.standard_normal(3)),
        density=float(rng.uniform(0.6, 0.95)),
        fluid=float(rng.uniform(40, 88)),
        level=level,
    )
    if finding == "cardiomegaly":
        anatomy = replace(anatomy, heart=anatomy.heart * growth, heart_tilt=anatomy.heart_tilt - 0.12)
    return anatomy, lesion


def carry(lesion: Lesion, before: Anatomy, after: Anatomy) -> Lesion:
    """The lesion moved with the lung from one breathing state to another, and by the yaw of `after`."""
    stretch = (after.apex - after.dome) / (before.apex - before.dome)
    centre = lesion.centre.copy()
    centre[2] = after.apex - (before.apex - centre[2]) * stretch
    level = after.apex - (before.apex - lesion.level) * stretch
    return replace(lesion, centre=turned(after, centre), level=level)


def nodule(lesion: Lesion, x: np.ndarray, y: np.ndarray, z: np.ndarray, edge: float) -> np.ndarray:
    """Share of solid tissue of a lobulated nodule."""
    ball = np.eye(3) / lesion.radius
    out = ellipsoid_distance(lesion.centre, ball, x, y, z)
    for offset in lesion.lobes:
        part = ellipsoid_distance(lesion.centre + offset * lesion.radius, ball / 0.62, x, y, z)
        out = np.minimum(out, part)
    return fraction(out, edge)


def consolidation(lesion: Lesion, anatomy: Anatomy, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Share of the lung's air that is replaced: patchy, with a ragged edge."""
    q = ellipsoid_distance(lesion.centre, np.diag(1 / lesion.extent), x, y, z) / np.float32(lesion.extent.min() / 2)
    ragged = q + 0.42 * noise(anatomy, 20, x, y, z, octave=2) + 0.25 * noise(anatomy, 9, x, y, z, octave=3)
    return np.float32(lesion.density) * np.clip(0.5 - 1.3 * ragged, 0, 1)


def effusion(lesion: Lesion, anatomy: Anatomy, x: np.ndarray, y: np.ndarray, z: np.ndarray, *, posture: str, edge: float):
    """Share of fluid in the pleural space: by gravity at the base when erect, along the back when supine."""
    a, b, cy = cage(anatomy, z)
    side = fraction(-lesion.side * x - 8, edge)
    if posture == "erect":
        # the meniscus climbs at the wall
        wall = np.clip(np.abs(x / a) ** 2 + ((y - cy) / b) ** 2, 0, 1.1)
        surface = anatomy.dome - anatomy.dome_fall + lesion.fluid - 26 + 52 * wall**3
        return side * fraction(z - surface, edge)
    layer = np.clip(lesion.fluid * 0.42 * (1 - np.clip((z - anatomy.dome) / 170, 0, 1)), 0, None)
    surface = cy + b - layer - 22 * np.clip((np.abs(x) - 0.55 * a) / (0.45 * a), 0, 1) ** 2
    return side * fraction(surface - y, edge)


def _place(rng: np.random.Generator, anatomy: Anatomy, side: int, level: float) -> np.ndarray:
    """A point of the lung of one side at about the given level, clear of heart and great vessels."""
    leaves = anatomy.tree.points[(anatomy.tree.level == 8) & (np.sign(anatomy.tree.points[:, 0]) == side)]
    x, y, z = leaves.T
    # beside the heart in the frontal view, too, where it would hide the lesion
    frontal = np.full_like(y, anatomy.chambers[0][0][1])
    clear = (heart_distance(anatomy, x, frontal, z) > 10) & (np.abs(x) > 46)
    clear &= capsule_distance((np.array([0.0, 60, -150]), np.array([0.0, 60, 60]), 50.0), x, y, z) > 0
    cost = np.abs(z - level) + 90 * ~clear
    nearest = np.argsort(cost, kind="stable")[:24]
    point = leaves[nearest[int(rng.integers(len(nearest)))]]
    return np.array([point[0], point[1], level + float(rng.uniform(-3, 3))])

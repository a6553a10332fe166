"""The anatomy of one thorax: its lasting measures and the landmarks that follow from them.

Coordinates in mm: x to the patient's left, y to the back, z to the head, origin at the carina. Every function takes
broadcastable float32 coordinates, so a volume, a slice and a cloud of points are evaluated by the same code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

LATTICE = 24  # cells per axis of a patient's own noise


@dataclass(frozen=True, kw_only=True, eq=False)
class Anatomy:
    """The lasting geometry of one patient; lengths in mm."""

    age: float
    sex: int
    bmi: float
    width: float  # largest half width of the rib cage, inside
    depth: float  # largest half depth
    apex: float  # height of the lung apices
    waist: float  # height of the widest level
    dome: float  # height of the right diaphragm dome
    dome_step: float  # left dome below the right one
    dome_fall: float  # from the dome down to the costophrenic angle
    squareness: float  # exponent of the rib cage's superellipse
    kyphosis: float  # backward lean of the upper thorax, mm per mm
    scoliosis: tuple[float, float]  # amplitude in mm, phase
    fat: float  # subcutaneous, at the side
    muscle: float  # chest wall muscle, at the side
    breast: float  # forward extent
    wall: np.ndarray  # (3, 4) random Fourier terms of fat and muscle around the body
    heart: float  # linear size, 1 = normal
    heart_tilt: float  # of the long axis below the horizontal, radians
    heart_shift: np.ndarray  # (3,)
    aorta: float  # radius
    mediastinal_fat: float
    rib_height: float
    rib_drop: float  # fall of a middle rib from the spine to its front end
    rib_jitter: np.ndarray  # (2, 12, 2) of each rib's start and fall
    bone: float  # mineral density, 1 = young adult
    aeration: float  # air fraction of the lung
    habit: tuple[float, float, float]  # where this body usually ends up relative to the isocentre
    lattice: np.ndarray  # (k, k, k) periodic standard normal noise
    tree: Tree | None = None
    yaw: float = 0.0  # turn of the inner organs about the long axis, radians; radiographs only

    @cached_property
    def vessels(self) -> list[Capsule]:
        """Aorta, pulmonary arteries and superior vena cava."""
        return _capsules(self, _great_vessels(self))

    @cached_property
    def airways(self) -> list[Capsule]:
        """Trachea, main and lower lobe bronchi."""
        return _capsules(self, _airways(self))

    @cached_property
    def chambers(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Centre (3,) and inverse semi-axis matrix (3, 3) of the left ventricle and of the right heart."""
        return _heart_ellipsoids(self)


Capsule = tuple[np.ndarray, np.ndarray, float]  # start (3,), end (3,), radius


@dataclass(frozen=True, eq=False)
class Tree:
    """Centre line points of the pulmonary vessels: position (m, 3), radius (m,), length each stands for (m,), generation (m,)."""

    points: np.ndarray
    radius: np.ndarray
    length: np.ndarray
    level: np.ndarray


def turned(anatomy: Anatomy, points: np.ndarray) -> np.ndarray:
    """Points (..., 3) after the patient's yaw about the long axis."""
    c, s = float(np.cos(anatomy.yaw)), float(np.sin(anatomy.yaw))
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    return np.stack([c * x - s * y, s * x + c * y, z], axis=-1)


def cage(anatomy: Anatomy, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Half width, half depth and centre (y) of the rib cage's inside at height z."""
    t = np.clip((anatomy.apex - z) / (anatomy.apex - anatomy.waist), 0.0, 1.0)
    rise = np.sqrt(1 - (1 - t) ** 2.2) + 1e-3
    low = np.clip((anatomy.waist - z) / 150, 0, 1)
    rise = rise * (1 - 0.12 * low * low)
    return anatomy.width * rise**1.05, anatomy.depth * rise**0.85, anatomy.kyphosis * z


def spine_line(anatomy: Anatomy, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the middle of the vertebral bodies at height z."""
    amplitude, phase = anatomy.scoliosis
    x = amplitude * np.sin(z / 90 + phase)
    c, s = float(np.cos(anatomy.yaw)), float(np.sin(anatomy.yaw))
    y = anatomy.depth - 34 + anatomy.kyphosis * z - 12 * (z / 130) ** 2
    return c * x - s * y, y


def rib_lines(anatomy: Anatomy, phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Height (2, 12, m) of each rib's centre at angles phi (m,), 0 at the spine, pi at the sternum; and where bone ends (12,).

    Ribs fall from back to front, most in the middle of the cage; 11 and 12 are short.
    """
    i = np.arange(12)
    spacing = (anatomy.apex - anatomy.dome + 75) / 12
    start = anatomy.apex + 14 - spacing * i * (0.9 + 0.009 * i) + 1.8 * anatomy.rib_jitter[..., 0]
    drop = anatomy.rib_drop * np.clip(0.45 + 0.13 * i, 0, 1.1) + 4 * anatomy.rib_jitter[..., 1]
    end = np.array([0.86, 0.86, 0.85, 0.84, 0.83, 0.82, 0.8, 0.74, 0.68, 0.62, 0.42, 0.3]) * np.pi
    u = phi / np.pi
    fall = -0.10 * np.sin(np.pi * np.clip(u / 0.3, 0, 1)) + np.clip(u - 0.06, 0, 1) ** 1.35 * 1.25
    return start[..., None] - drop[..., None] * fall, end


def wall_thickness(anatomy: Anatomy, phi: np.ndarray, side: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Muscle and fat outside the cage at angle phi (0 back, pi front), side -1 or 1: thick at the back and over the pectorals."""
    c, w = np.cos(phi), anatomy.wall
    ripple = [1 + 0.09 * (v[0] * np.cos(2 * phi) + v[1] * c + v[2] * side * np.sin(phi) + v[3] * np.cos(3 * phi)) for v in w]
    upper = 1 / (1 + np.exp(-(z + 15) / 30))
    back = np.exp(-((phi / 0.55) ** 2))
    shoulder = np.exp(-(((phi - 1.1) / 0.42) ** 2))
    chest = np.exp(-(((phi - 2.35) / 0.4) ** 2))
    muscle = 8 + anatomy.muscle * (0.45 + 1.5 * back + (0.5 + 1.2 * upper) * shoulder + (0.15 + 0.9 * upper) * chest) * ripple[0]
    fat = anatomy.fat * (0.8 + 0.25 * np.sin(phi) - 0.25 * chest) * ripple[1] + 2
    return muscle, fat


def _capsules(anatomy: Anatomy, lines: list) -> list[Capsule]:
    ends = turned(anatomy, np.array([line[:2] for line in lines], dtype=np.float64))
    return [(p, q, float(line[2])) for (p, q), line in zip(ends, lines, strict=True)]


def _heart_ellipsoids(anatomy: Anatomy) -> list[tuple[np.ndarray, np.ndarray]]:
    s = anatomy.heart * anatomy.width / 138
    low = anatomy.dome + 29 + 22 * (s - 1)
    c, t = np.cos(anatomy.heart_tilt), np.sin(anatomy.heart_tilt)
    ventricle = np.array([[c / 62, 0.25 * -c / 62, -t / 62], [0, 1 / 43, 0], [t / 39, 0, c / 39]]) / s
    right = np.diag([1 / 40, 1 / 44, 1 / 52]) / s
    centres = np.array([[28 * s, -22 - 4 * s, low], [-3 * s, -25 - 4 * s, low + 10 * s]]) + anatomy.heart_shift
    return list(zip(turned(anatomy, centres), (ventricle, right), strict=True))


def _great_vessels(anatomy: Anatomy) -> list[tuple]:
    """Start, end and radius; the arch widens and unfolds with age."""
    r, s = anatomy.aorta, anatomy.heart
    _, back = spine_line(replace(anatomy, yaw=0.0), np.array([20.0, -60.0, -140.0]))
    base = anatomy.dome + 62
    wide = 0.35 * (r - 12)
    return [
        ((-8, -26, base), (-16 - wide, -22, 8), 1.25 * r),
        ((-16 - wide, -22, 8), (-4, -10, 32 + wide), 1.15 * r),
        ((-4, -10, 32 + wide), (25 + wide, back[0] - 30, 28), 1.1 * r),
        ((25 + wide, back[0] - 30, 28), (27 + wide, back[1] - 4, -60), r),
        ((27 + wide, back[1] - 4, -60), (14, back[2] - 14, -150), 0.92 * r),
        ((18, -40, base), (25, -20, -6), 14.0 * s),
        ((25, -20, -6), (46, 8, -14), 10.5 * s),
        ((20, -14, -14), (-40, -2, -24), 9.5 * s),
        ((-25, -14, 66), (-27, -16, base + 6), 9.5),
        ((6, -10, 84), (2, -8, 40), 13.0),
        ((-48, 8, -32), (28, 12, -44), 8.0 * s),
    ]


def _airways(anatomy: Anatomy) -> list[tuple]:
    top = anatomy.apex + 60
    return [
        ((1, 4 + anatomy.kyphosis * top, top), (-3, 8, 2), 8.5),
        ((-3, 8, 2), (-32, 12, -26), 7.0),
        ((-3, 8, 2), (38, 14, -30), 6.2),
        ((-32, 12, -26), (-44, 20, -60), 4.6),
        ((38, 14, -30), (50, 24, -62), 4.3),
        ((-30, 12, -24), (-52, 2, -14), 4.4),
        ((38, 14, -30), (54, 2, -20), 4.2),
    ]

"""Sites and visits: what a scanner does to every image, and what one scan does to one patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """What differs between sites: geometry, detector and display."""

    field: dict[str, float]  # field of view in mm of each modality
    blur: float  # detector or reconstruction blur, mm
    noise: float  # relative to the first site
    gamma: float  # of the radiograph's display curve
    window: tuple[float, float]  # percentiles of exposure shown as black and white
    detail: float  # strength of the radiograph's local contrast enhancement
    collimation: float  # probability of a black border
    enhanced: float  # probability of contrast agent in a CT
    table: float  # gap between back and CT table, mm
    curvature: float  # of the CT table
    gain_hu: float  # error of the CT calibration


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Pose and acquisition of one visit, the same in every modality."""

    breath: float  # 0 full inspiration
    shift: tuple[float, float, float]  # mm
    scale: float
    roll: float  # radians, in the coronal plane
    yaw: float  # radians, about the long axis
    tilt: float  # radians, in-plane rotation of axial slices
    step: float  # mm, axial slice above the planned level
    gain: float
    offset: float
    gain_hu: float
    offset_hu: float
    enhanced: float  # 0 without contrast agent, else its strength
    uptake: float  # of the heart muscle in PET, relative to the mean
    border: tuple[float, float, float, float]  # share of the image that is collimated: top, bottom, left, right


SCANNERS = {
    "public": Scanner(
        field={"xray": 336.0, "ct": 384.0, "mr": 384.0, "pet": 384.0}, blur=0.9, noise=1.0, gamma=0.95, window=(1.0, 96.0),
        detail=1.4, collimation=0.15, enhanced=0.45, table=3.0, curvature=-1.0, gain_hu=1.0,
    ),
    "private": Scanner(
        field={"xray": 352.0, "ct": 448.0, "mr": 448.0, "pet": 448.0}, blur=2.3, noise=1.6, gamma=1.3, window=(0.5, 98.0),
        detail=0.45, collimation=0.7, enhanced=0.7, table=14.0, curvature=0.15, gain_hu=0.985,
    ),
    "clinic": Scanner(
        field={"xray": 340.0, "ct": 368.0, "mr": 368.0, "pet": 400.0}, blur=1.4, noise=1.3, gamma=1.1, window=(1.0, 97.0),
        detail=1.0, collimation=0.3, enhanced=0.8, table=5.0, curvature=-0.6, gain_hu=1.01,
    ),
    "sports": Scanner(
        field={"xray": 344.0, "ct": 400.0, "mr": 376.0, "pet": 384.0}, blur=0.7, noise=0.8, gamma=0.9, window=(1.5, 96.0),
        detail=1.6, collimation=0.1, enhanced=0.2, table=2.0, curvature=-1.0, gain_hu=0.995,
    ),
    "community": Scanner(
        field={"xray": 360.0, "ct": 432.0, "mr": 424.0, "pet": 432.0}, blur=2.8, noise=1.9, gamma=1.2, window=(0.5, 97.0),
        detail=0.6, collimation=0.5, enhanced=0.5, table=11.0, curvature=0.2, gain_hu=0.99,
    ),
}  # fmt: skip


def draw_scan(rng: np.random.Generator, scanner: Scanner) -> Scan:
    """One visit at a site."""
    n = rng.standard_normal(12)
    u = rng.random(8)
    collimated = u[0] < scanner.collimation
    return Scan(
        breath=float(np.clip(0.2 + 0.09 * n[0], -0.1, 0.7)),
        shift=(2.5 * n[1], 2.5 * n[2], 3.2 * n[3]),
        scale=float(np.exp(0.012 * n[4])),
        roll=0.012 * n[5],
        yaw=0.04 * n[6],
        tilt=0.022 * n[7],
        step=2.2 * n[8],
        gain=float(np.exp(0.03 * n[9])),
        offset=0.014 * n[10],
        gain_hu=scanner.gain_hu,
        offset_hu=4.0 * n[11],
        enhanced=float(0.5 + 0.6 * u[2]) if u[1] < scanner.enhanced else 0.0,
        uptake=float(0.5 + 2.2 * u[3] ** 2),
        border=tuple(0.07 * v if collimated else 0.0 for v in u[4:8]),
    )

"""Who the hearts of the cardiac phantom belong to: populations, and the anatomy that age, sex, BMI and disease lead to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

CONDITIONS = ("normal", "dilated", "hypertrophic", "rv-enlarged")


class Scanner(NamedTuple):
    """Mean tissue signals (before windowing), noise and coil of one site."""

    blood: float
    myocardium: float
    fat: float
    noise: float  # standard deviation of each of the two noise channels
    bias: float  # log-signal lost across the field of view, away from the coil
    blur: float  # pixels, Gaussian sigma of the in-plane point spread
    window: float  # percentile of the stack that becomes 1


PUBLIC_SCANNER = Scanner(blood=0.74, myocardium=0.28, fat=0.85, noise=0.013, bias=0.5, blur=0.40, window=98.7)


@dataclass(frozen=True)
class Population:
    """Who is scanned, on what: means, shares and the scanner."""

    first_patient: int
    role: str
    age: tuple[float, float]  # mean, sd in years
    male: float
    bmi: tuple[float, float]
    conditions: tuple[float, ...]  # probability of each of CONDITIONS
    scanner: Scanner


POPULATIONS = {
    "public": Population(0, "public", (48, 15), 0.5, (25.0, 3.5), (0.52, 0.16, 0.16, 0.16), PUBLIC_SCANNER),
    "private": Population(
        1_000_000, "private", (65, 9), 0.64, (28.5, 4.2), (0.24, 0.34, 0.30, 0.12),
        Scanner(blood=0.66, myocardium=0.30, fat=0.95, noise=0.028, bias=0.65, blur=0.62, window=99.4),
    ),
    # another hospital, whose images may be looked at: settings of private trainings are chosen on it
    "rehearsal": Population(
        5_000_000, "public", (62, 11), 0.6, (27.5, 4.0), (0.28, 0.30, 0.26, 0.16),
        Scanner(blood=0.84, myocardium=0.24, fat=0.74, noise=0.024, bias=0.32, blur=0.62, window=98.2),
    ),
}  # fmt: skip


class Person(NamedTuple):
    """One patient: demographics, target volumes (ml), target wall (mm) and the pose of the heart in the stack."""

    age: float
    male: bool
    bmi: float
    condition: str
    lvedv: float
    lvef: float
    rvedv: float
    rvef: float
    wall: float
    length: float  # mm, end-diastolic cavity from valve plane to apex
    asymmetry: float  # excess of the septal over the mean wall
    flattening: float  # of the septum, by right-ventricular load
    angle: float  # degrees, direction of the right ventricle
    centre: np.ndarray  # (2,) mm, x and y of the heart's middle
    drift: np.ndarray  # (2,) mm, in-plane way of the axis from base to apex
    tilt: np.ndarray  # (2,) slope of the valve plane
    oval: tuple[float, float]  # second harmonic of the cross-section: size, direction
    above: float  # mm between the top of the stack and the valve plane at end-diastole
    below: float  # mm between the apex and the bottom of the stack
    skew: float  # of the right ventricle towards its inferior corner


def draw_person(population: str, seed: int, i: int) -> Person:
    """Patient i of a population: demographics first, then a health state, then the heart that goes with both."""
    people = POPULATIONS[population]
    rng = np.random.default_rng(random_key(population, seed, i, 0))
    normal = rng.normal
    age = float(np.clip(normal(*people.age), 18, 90))
    male = bool(rng.random() < people.male)
    bmi = float(np.clip(normal(*people.bmi), 17, 42))
    condition = CONDITIONS[rng.choice(len(CONDITIONS), p=people.conditions)]
    height = normal(1.77, 0.07) if male else normal(1.64, 0.06)
    surface = math.sqrt(bmi * height**2 * height / 36)  # m^2, Mosteller, N Engl J Med 317:1098 (1987)
    # Normal volumes per body surface fall slowly with age and are larger in men (Petersen et al., JCMR 19:18, 2017).
    lvedv = surface * (normal(82, 10) if male else normal(75, 9)) * (1 - 0.003 * (age - 45))
    rvedv = lvedv * normal(1.08, 0.08)
    lvef, rvef = normal(61, 4.5), normal(57, 5)
    wall = (7.6 if male else 6.4) + 0.10 * (bmi - 25) + 0.015 * (age - 45) + normal(0, 0.5)
    length, asymmetry, flattening = normal(90 if male else 84, 4) + 8 * (surface - 1.85), normal(0.05, 0.05), 0.0
    severity = rng.random()
    if condition == "dilated":
        lvedv, lvef = lvedv * (1.35 + 0.5 * severity), 46 - 27 * severity + normal(0, 2.5)
        rvedv, rvef, length = rvedv * 1.15, rvef - 12 * severity, length * (1.05 + 0.06 * severity)
        wall *= 0.95
    elif condition == "hypertrophic":
        lvedv, lvef = lvedv * (0.95 - 0.12 * severity), lvef + 4 + 4 * severity
        wall, asymmetry = wall * (1.5 + 0.65 * severity), asymmetry + 0.1 + 0.25 * rng.random()
    elif condition == "rv-enlarged":
        rvedv, rvef = rvedv * (1.35 + 0.5 * severity), rvef - 8 - 16 * severity
        lvedv, flattening = lvedv * 0.92, 0.06 + 0.16 * severity
    return Person(
        age=age, male=male, bmi=bmi, condition=condition,
        lvedv=float(np.clip(lvedv, 90, 280)), lvef=float(np.clip(lvef, 17, 73)),
        rvedv=float(np.clip(rvedv, 104, 272)), rvef=float(np.clip(rvef, 18, 70)),
        wall=float(np.clip(wall, 5.4, 16)), length=float(np.clip(length, 74, 105)),
        asymmetry=float(np.clip(asymmetry, -0.05, 0.4)), flattening=flattening,
        angle=float(np.clip(normal(8, 24), -40, 70)), centre=normal(0, 4, 2), drift=np.array([6.0, 3.0]) + normal(0, 4, 2),
        tilt=normal(0, 0.022, 2), oval=(abs(normal(0, 0.035)), rng.uniform(0, 2 * np.pi)),
        above=rng.uniform(4, 11), below=rng.uniform(0, 5), skew=rng.uniform(-0.1, 0.35),
    )  # fmt: skip


def random_key(population: str, seed: int, i: int, stream: int) -> list[int]:
    """Seed sequence of one stream of random numbers of patient i."""
    return [seed, POPULATIONS[population].first_patient + i, stream]

"""The thorax phantom: persistent patients with a finding, scanned as radiograph, CT, MR or PET."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from medsynth.imageset import ImageSet
from medsynth.language.vocabulary import CT_WINDOW, MODALITIES, PHANTOM_FINDINGS
from medsynth.phantoms.thorax.axial import ct, mr, pet
from medsynth.phantoms.thorax.growth import breathe, draw_anatomy
from medsynth.phantoms.thorax.pathology import SIDED, carry, draw_lesion
from medsynth.phantoms.thorax.radiograph import xray
from medsynth.phantoms.thorax.scanner import SCANNERS, draw_scan

LIMIT = 1_000_000  # patients of one population, so that numbers of two populations never meet
_RENDER = {"xray": xray, "ct": ct, "mr": mr, "pet": pet}
_UNIT = {"xray": "1", "ct": "HU", "mr": "1", "pet": "SUV"}
_RANGE = {"xray": (0.0, 1.0), "ct": CT_WINDOW, "mr": (0.0, 1.0), "pet": (0.0, 10.0)}


@dataclass(frozen=True, kw_only=True)
class Population:
    """Who is scanned at a site: mean and spread of age and BMI, share of men, first patient number."""

    age: tuple[float, float]
    bmi: tuple[float, float]
    men: float
    first: int
    role: str = "private"


POPULATIONS = {
    "public": Population(age=(50, 16), bmi=(25.0, 3.8), men=0.5, first=0, role="public"),
    "private": Population(age=(66, 11), bmi=(29.0, 4.4), men=0.68, first=LIMIT),
    # three hospitals that could pool what they have: a lung clinic, a sports clinic and a community hospital
    "clinic": Population(age=(71, 8), bmi=(24.0, 3.4), men=0.62, first=2 * LIMIT),
    "sports": Population(age=(33, 8), bmi=(23.0, 2.4), men=0.58, first=3 * LIMIT),
    "community": Population(age=(58, 15), bmi=(31.0, 4.8), men=0.45, first=4 * LIMIT),
}
SITES = ("clinic", "sports", "community")


def thorax(
    *,
    patients: int,
    scans: int | tuple[int, int] = 1,
    size: int = 64,
    modality: str = "xray",
    population: str = "public",
    seed: int = 0,
    jobs: int = 1,
) -> ImageSet:
    """A set of procedural thorax images (n, 1, size, size), n = patients times scans, split unassigned.

    patients: how many persons; the first ones are the same whatever the number.
    scans: images of each person, or (low, high) to draw that number per person.
    modality: "xray" (0..1, dense tissue white), "ct" (HU, -1000..400), "mr" (T2-like, 0..1) or "pet" (SUV, 0..10).
    population: one of POPULATIONS: other demographics and another scanner; only "public" has that role, all others are private.
    seed: patient i of one population and seed is one person in every size and modality; scan j is one visit.
    jobs: processes; the images do not depend on it.

    Attributes: age (years), sex (1 male), bmi (kg/m^2), finding, one 0/1 column for each finding, left (1 or 0 = right, of a
    finding with a side), diameter (mm, of a nodule without its lobules), scan, licence.
    Raises ValueError naming the argument that is out of bounds.
    """
    low, high = _check(patients, scans, size, modality, population, seed, jobs)
    first = POPULATIONS[population].first
    people = (delayed(_patient)(first + i, low, high, size, modality, population, seed) for i in range(patients))
    done = Parallel(n_jobs=jobs)(people)
    pixel = SCANNERS[population].field[modality] / size
    return ImageSet(
        images=np.concatenate([images for images, _ in done])[:, None],
        patient=np.concatenate([np.full(len(images), first + i) for i, (images, _) in enumerate(done)]),
        unit=_UNIT[modality],
        range=_RANGE[modality],
        name=f"thorax-{modality}-{population}",
        role=POPULATIONS[population].role,
        spacing=(pixel, pixel),
        modality=modality,
        origin="phantom",
        attributes=pd.DataFrame([row for _, rows in done for row in rows]),
    )


def _patient(number: int, low: int, high: int, size: int, modality: str, population: str, seed: int) -> tuple:
    """All scans of one patient: images (k, size, size) and their attribute rows."""
    site, scanner = POPULATIONS[population], SCANNERS[population]
    rng = np.random.default_rng([seed, number, 0])
    age = float(np.clip(rng.normal(*site.age), 18, 95))
    sex = int(rng.random() < site.men)
    bmi = float(np.clip(rng.normal(*site.bmi), 16.5, 42))
    count = int(np.random.default_rng([seed, number, 1]).integers(low, high + 1))
    anatomy, lesion = draw_lesion(rng, draw_anatomy(rng, age=age, sex=sex, bmi=bmi))
    images, rows = np.empty((count, size, size), np.float32), []
    for k in range(count):
        scan = draw_scan(np.random.default_rng([seed, number, 2, k]), scanner)
        posed = replace(breathe(anatomy, scan.breath), yaw=scan.yaw if modality == "xray" else 0.0)
        here = carry(lesion, anatomy, posed)
        here = replace(here, level=here.level + scan.step)
        grain = np.random.default_rng([seed, number, 3, k, MODALITIES.index(modality)])
        images[k] = _RENDER[modality](posed, here, scan, scanner, size, grain)
        flags = {name: int(lesion.finding == name) for name in PHANTOM_FINDINGS[1:]}
        rows.append({
            "age": age, "sex": sex, "bmi": bmi, "finding": lesion.finding, **flags,
            "left": float(lesion.side == 1) if lesion.finding in SIDED else np.nan,
            "diameter": 2 * lesion.radius if lesion.finding == "nodule" else np.nan,
            "scan": k, "licence": "generated",
        })  # fmt: skip
    return images, rows


def _check(
    patients: int, scans: int | tuple[int, int], size: int, modality: str, population: str, seed: int, jobs: int
) -> tuple[int, int]:
    """The least and largest number of scans, once every argument is in bounds."""
    if modality not in MODALITIES:
        raise ValueError(f"thorax: modality {modality!r}; expected one of {MODALITIES}")
    if population not in POPULATIONS:
        raise ValueError(f"thorax: population {population!r}; expected one of {tuple(POPULATIONS)}")
    bounds = {"patients": (patients, 1, LIMIT), "size": (size, 16, 1024), "seed": (seed, 0, 2**63), "jobs": (jobs, 1, 4096)}
    for name, (value, least, most) in bounds.items():
        if not isinstance(value, int | np.integer) or not least <= value <= most:
            raise ValueError(f"thorax: {name} is {value!r}; expected a whole number from {least} to {most}")
    pair = (scans, scans) if isinstance(scans, int | np.integer) else tuple(scans)
    if len(pair) != 2 or not all(isinstance(v, int | np.integer) for v in pair) or not 1 <= pair[0] <= pair[1]:
        raise ValueError(f"thorax: scans is {scans!r}; expected a number >= 1, or (low, high) with 1 <= low <= high")
    return pair

"""Whom no shipped weight has seen, for each question that is asked of weights: phantoms, and real people of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medsynth.data.sources import cached_thorax
from medsynth.imageset import ImageSet
from medsynth.language.vocabulary import MODALITIES
from medsynth.pretrain import public
from medsynth.privacy.attacks.gate_trial import Attacked, scanned_twice
from medsynth.settings.config import WeightsConfig

_POPULATION = 90  # seed of the first population of phantoms; nobody had looked at it or at those that follow
_STUDIED = ("xray", "ct")  # phantoms that the ruler is studied on
_GATED = ("ct", "mr", "pet")  # the chapter on the gate has radiographs


def once(asked: WeightsConfig, size: int, folder: Path | None) -> dict[str, ImageSet]:
    """Images to look at one by one: phantoms of each modality, and real sets."""
    return _phantoms(size, patients=asked.patients) | (public.unseen_once(folder, size) if folder else {})


def twice(asked: WeightsConfig, size: int, folder: Path | None) -> dict[str, ImageSet]:
    """Sets in which patients have several images."""
    return _phantoms(size, patients=asked.patients // 2, scans=2) | (public.unseen_twice(folder, size) if folder else {})


def classed(asked: WeightsConfig, size: int, folder: Path | None) -> dict[str, list[ImageSet]]:
    """Sets with classes: several populations of phantoms, of which the first is that of `once`, and one of each real set."""
    drawn = [_phantoms(size, _STUDIED, patients=asked.patients, seed=_POPULATION + i) for i in range(asked.populations)]
    known = public.unseen_once(folder, size) if folder else {}
    return {name: [of[name] for of in drawn] for name in drawn[0]} | {name: [known[name]] for name in public.CLASSED if known}


def classes_of(images: ImageSet) -> np.ndarray:
    """The class of each row, as text (n,): where it was collected, or what was found."""
    column = "collection" if "collection" in images.attributes else "finding"
    return images.attributes[column].to_numpy(str)


def behind_gates(asked: WeightsConfig, size: int, folder: Path | None, seed: int) -> dict[str, Attacked]:
    """Private images on whose like thresholds were found, and strangers: of one hospital, and phantoms."""
    people = {"patients": asked.gate_patients + 2 * asked.gate_patients // 3, "scans": 2}
    drawn = _phantoms(size, _GATED, **people, seed=seed)
    known = public.radiographs(folder, size) if folder else {}
    phantoms = {name: scanned_twice(images, asked.gate_patients) for name, images in drawn.items()}
    return {name: Attacked(*sources) for name, sources in known.items()} | phantoms


def slices_behind_gates(size: int, folder: Path | None) -> dict[str, Attacked]:
    """Private slices of CT and MR, on whose like no threshold was found, and strangers."""
    known = public.slices(folder, size) if folder else {}
    return {name: Attacked(*sources) for name, sources in known.items()}


def taught_on(asked: WeightsConfig, folder: Path | None) -> dict[str, ImageSet]:
    """What the extractor was trained on, and its rivals are calibrated on: public phantoms, and public real sets."""
    sets = public.phantoms(asked.public_patients, 64, seed=0, jobs=2) | (public.real_sets(folder, "train") if folder else {})
    return {name: s.images for name, s in sets.items()}


def _phantoms(size: int, modalities: Sequence[str] = MODALITIES, **people: int) -> dict[str, ImageSet]:
    drawn = {"size": size, "population": "private", "seed": _POPULATION, **people}
    return {f"phantom-{m}": cached_thorax(modality=m, **drawn) for m in modalities}

"""Which images a chapter works on: embedded phantoms, or a file of the user's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import filelock
import numpy as np

from medsynth.data.npz import load_npz, without_noncommercial
from medsynth.imageset import ImageSet
from medsynth.language.vocabulary import MODALITIES
from medsynth.phantoms.heart.heart import cardiac
from medsynth.phantoms.thorax.thorax import thorax
from medsynth.resample import resize, slices_of, stacks_at
from medsynth.settings.config import DPConfig, ThoraxConfig
from medsynth.store.dependencies import code_hash
from medsynth.store.hashes import json_hash
from medsynth.store.runs import cache_folder

MIDDLE = 0.5  # share of the planes of a stack that is read: the ends hold little of what the middle shows


class Sources(NamedTuple):
    """The images of one experiment: whose privacy is at stake, and held-out patients to measure against."""

    private: ImageSet
    test: ImageSet


def cached_thorax(**arguments: object) -> ImageSet:
    """`thorax(**arguments)`, generated once: kept in the cache under its arguments and the code that draws it."""
    return _cached(thorax, arguments)


def cached_hearts(**arguments: object) -> ImageSet:
    """`cardiac(**arguments)`, kept as `cached_thorax` keeps chests."""
    return _cached(cardiac, arguments)


def _cached(draw: Callable[..., ImageSet], arguments: dict[str, object]) -> ImageSet:
    key = json_hash({"arguments": arguments, "code": code_hash(draw.__module__)})
    path = cache_folder() / "sets" / f"{draw.__name__}-{key}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".lock")):
        if not path.exists():
            draw(**arguments, jobs=2).save(path)
        return ImageSet.load(path)


def private_and_test(config: ThoraxConfig, data: str = "", modality: str = "xray", seed: int = 0) -> Sources:
    """Private images and held-out patients to measure against, 2D at the profile's size: phantoms, or the `.npz` file `data`.

    Of a file without splits, 30 % of the patients are set aside for testing. Test patients are never trained on. Of stacks, the
    middle planes are taken; of CT, rows whose licence forbids commercial use are left out where there are others.
    Raises ValueError where the file leaves nothing to train on or nothing to measure against, or holds CT that is not in HU.
    """
    if modality not in MODALITIES:
        raise ValueError(f"modality {modality!r}; expected one of {MODALITIES}")
    if data:
        return _of_file(Path(data), modality, config.size, seed)
    people = config.private_patients + config.test_patients
    drawn = cached_thorax(
        patients=people, scans=config.scans, size=config.size, modality=modality, population="private", seed=seed
    )
    return _first_and_others(replace(drawn, name=f"phantom-{modality}"), config.private_patients)


def private_and_test_hearts(config: DPConfig, data: str = "", seed: int = 0) -> Sources:
    """Private stacks of hearts and those of held-out patients, as `private_and_test` finds them: phantoms, or those of a file.

    data: a file, or "rehearsal" for phantoms of a hospital that is nobody's: settings are chosen on them.
    """
    if data and data != "rehearsal":
        return Sources(*(stacks_at(part, config.slices, config.size) for part in stacks_of_file(data, seed)))
    people = config.private_patients + config.test_patients + config.asked_patients
    drawn = cached_hearts(patients=people, slices=config.slices, size=config.size, population=data or "private", seed=seed)
    return _first_and_others(replace(drawn, name=f"{data or 'phantom'}-heart", role="private"), config.private_patients)


def stacks_of_file(data: str, seed: int = 0) -> Sources:
    """Private and held-out stacks of a file on the grid that they have, as `private_and_test` divides them."""
    return _split(Path(data), lambda role: load_npz(Path(data), role=role, modality="mr"), seed)


def second_scans(config: ThoraxConfig, modality: str = "xray", seed: int = 0) -> ImageSet:
    """Another scan of each phantom that `private_and_test` calls private; numbers of patients are theirs."""
    twice = private_and_test(replace(config, scans=2), modality=modality, seed=seed).private
    return twice.select(np.arange(1, len(twice), 2))


def _first_and_others(drawn: ImageSet, private: int) -> Sources:
    numbers = sorted(set(drawn.patient.tolist()))
    # unseen patients of the same population stand for people who agreed to be measured against
    test = replace(drawn.of_patients(numbers[private:]), role="eval", name=f"{drawn.name}/test")
    return Sources(drawn.of_patients(numbers[:private]), test)


def _of_file(path: Path, modality: str, size: int, seed: int) -> Sources:
    private, test = _split(path, lambda role: _slices(load_npz(path, role=role, modality=modality)), seed)
    return Sources(resize(private, size), resize(test, size))


def _split(path: Path, load: Callable[[str], ImageSet], seed: int) -> Sources:
    private = load("private")
    if (private.split == "").all():
        private = private.split_by_patient({"train": 0.7, "test": 0.3}, seed)
    test = private.in_split("test")
    if not len(test):
        test = load("eval").in_split("test")
    training = private.in_split("train")
    for part, images in (("train", training), ("test", test)):
        if not len(images):
            found = sorted(set(private.split.tolist()))
            raise ValueError(f"{path.name}: no {part!r} rows; its `split` holds {found}, expected 'train' and 'test'")
    return Sources(replace(training, name=path.stem), replace(test, role="eval", name=f"{path.stem}/test"))


def _slices(images: ImageSet) -> ImageSet:
    """What a chapter on 2D images reads of a file: the middle of stacks, and of CT only rows that may be published freely."""
    if images.modality == "ct" and images.unit != "HU":
        raise ValueError(f"{images.name}: images in {images.unit!r}; CT is read in Hounsfield units, as int16 (data/README.md)")
    if images.modality == "ct" and "licence" in images.attributes and len(free := without_noncommercial(images)):
        images = free
    # a radiograph has no planes: a stack in its place is refused when it is resized
    return slices_of(images, middle=MIDDLE) if images.modality != "xray" and len(images.spatial) == 3 else images

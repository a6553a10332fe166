"""Strangers to a release, on whom predicates are fitted, bounded and tried: phantoms of whom features are kept, or a file's."""

from __future__ import annotations

from collections.abc import Callable

import filelock
import numpy as np
import pandas as pd

from medsynth.imageset import ImageSet
from medsynth.phantoms.thorax.thorax import thorax
from medsynth.privacy.attacks.legal.singling_out import Others, People
from medsynth.store.dependencies import code_hash
from medsynth.store.hashes import json_hash
from medsynth.store.runs import atomic_path, cache_folder

_CHUNK = 2000  # patients that are drawn at a time
# added to the chapter's seed: nobody is in two groups, nor among those whom a chapter draws itself
_FITTED, _CERTIFIED, _BASELINE = (1_000_000 * k for k in (1, 2, 3))

_FEWEST = 50

Features = Callable[[ImageSet], np.ndarray]


def phantom_strangers(
    features: Features, version: str, *, fitted: int, certified: int, baseline: int, seed: int, **phantoms: object
) -> Others:  # fmt: skip
    """Three groups of phantoms of the private population, with these numbers of patients; drawn once, and found again.

    version: names the map in the cache, such as the hash of its weights. phantoms: what `thorax` takes besides: size, modality.
    """
    sizes = {"fitted": (fitted, _FITTED), "certified": (certified, _CERTIFIED), "baseline": (baseline, _BASELINE)}
    return Others(**{
        name: _cached(features, version, patients, seed + offset, phantoms) for name, (patients, offset) in sizes.items()
    })  # fmt: skip


def file_strangers(images: ImageSet, features: Features, *, baseline: int, seed: int) -> Others:
    """The same three groups among the patients of a set: by chance so many for the baseline, of the rest a fifth is fitted on.

    All others bound weights, since that takes the most. Raises ValueError for too few patients to leave some for each.
    """
    people = np.unique(images.patient)
    if (left := len(people) - baseline) < _FEWEST:
        raise ValueError(
            f"{images.name}: {len(people)} patients, of whom {baseline} are for the baseline; {left} are left, expected at least "
            f"{_FEWEST} to fit and to bound predicates on; give more patients, or call fewer of them private"
        )
    chosen = np.random.default_rng([seed, len(people)]).permutation(people)
    groups = np.split(chosen, [baseline, baseline + left // 5])
    names = ("baseline", "fitted", "certified")
    return Others(**{name: people_of(images.of_patients(part), features) for name, part in zip(names, groups, strict=True)})


def people_of(images: ImageSet, features: Features) -> People:
    """What an attacker sees of a set."""
    return People(features(images), images.patient, images.attributes.reset_index(drop=True))


def _cached(features: Features, version: str, patients: int, seed: int, phantoms: dict[str, object]) -> People:
    key = json_hash({"map": version, "patients": patients, "seed": seed, "of": phantoms, "code": code_hash(thorax.__module__)})
    path = cache_folder() / "sets" / f"strangers-{key}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".lock")):
        if not path.exists():
            found, tables = [], []
            for first in range(0, patients, _CHUNK):
                count = min(_CHUNK, patients - first)
                drawn = thorax(patients=count, population="private", seed=seed + first, jobs=2, **phantoms)
                found.append(features(drawn))
                tables.append(drawn.attributes)
            table = pd.concat(tables, ignore_index=True)
            with atomic_path(path) as partial, partial.open("wb") as file:
                np.savez_compressed(file, features=np.concatenate(found), **{f"of {k}": _text(v) for k, v in table.items()})
        kept = np.load(path)
    table = pd.DataFrame({name.removeprefix("of "): kept[name] for name in kept.files if name != "features"})
    # numbers of the groups lie apart, as their seeds do, and those of all others are not negative
    return People(kept["features"], -1 - seed - np.arange(len(kept["features"])), table.replace("<NA>", pd.NA))


def _text(column: pd.Series) -> np.ndarray:
    return column.astype("string").fillna("<NA>").to_numpy(dtype=str)

"""What a generator is asked for, and where that comes from: rows of a set, which may be private, or public marginals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from medsynth.imageset import ImageSet
from medsynth.models.conditioning import conditions_of
from medsynth.vocabulary import PHANTOM_FINDINGS

if TYPE_CHECKING:
    from medsynth.ledger import Ledger

# of adults who are scanned, from no set: mean and spread
AGE, BMI = (55.0, 17.0), (26.0, 4.5)  # years, kg/m^2
BOUNDS = {"age": (18.0, 95.0), "bmi": (16.5, 42.0)}


@dataclass(frozen=True)
class Conditions:
    """values float32 (n, k), NaN = missing, columns `names`; attributes: the table of n rows that they stand for.

    source: where they come from, "rows of NAME", "public marginals" or "asked for"; private: whether from rows of a private set.
    """

    values: np.ndarray
    names: tuple[str, ...]
    attributes: pd.DataFrame
    source: str
    private: bool = False

    def __len__(self) -> int:
        return len(self.values)


def of_rows(images: ImageSet, names: tuple[str, ...], n: int, *, seed: int, ledger: Ledger) -> Conditions:
    """Attributes of n rows of `images`, drawn with replacement; unless the set is public, a line in the ledger."""
    ledger.read(images, stage="draw conditions", output=f"{', '.join(_told(images, names)) or 'none'} of sampled rows")
    rows = np.random.default_rng([seed, n]).integers(len(images), size=n)
    values = conditions_of(images, names)[rows]
    table = images.attributes.iloc[rows].reset_index(drop=True)
    return Conditions(values, names, table, f"rows of {images.dataset}", private=images.role == "private")


def public_marginals(like: ImageSet, names: tuple[str, ...], n: int, *, seed: int) -> Conditions:
    """Findings at even shares, sex at even odds, age and BMI of adults who are scanned; every other attribute is missing.

    No image is read: `like` says modality and origin alone.
    """
    rng = np.random.default_rng([seed, n])
    table = pd.DataFrame({"sex": rng.integers(0, 2, n)})
    for column, (mean, spread) in (("age", AGE), ("bmi", BMI)):
        table[column] = np.clip(rng.normal(mean, spread, n), *BOUNDS[column])
    if set(PHANTOM_FINDINGS) & set(names):
        table["finding"] = rng.choice(PHANTOM_FINDINGS, n)
    return asked_for(like, names, table, source="public marginals")


def asked_for(like: ImageSet, names: tuple[str, ...], table: pd.DataFrame, *, source: str = "asked for") -> Conditions:
    """Conditions that a table states, one row each, for images such as `like`; columns that are no condition are kept beside."""
    blank = np.full((len(table), *like.images.shape[1:]), like.range[0], np.float32)
    empty = like.with_images(blank, patient=np.arange(len(table)), split=None, attributes=table.reset_index(drop=True))
    return Conditions(conditions_of(empty, names), names, empty.attributes, source)


def _told(images: ImageSet, names: tuple[str, ...]) -> list[str]:
    """Which attributes of a set a condition speaks of."""
    finding = ["finding"] if "finding" in images.attributes and set(PHANTOM_FINDINGS) & set(names) else []
    return finding + [name for name in names if name in images.attributes and name not in PHANTOM_FINDINGS]

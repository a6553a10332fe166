"""Sampling until enough images pass the gate, without letting the gate change who is in the set."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd

from medsynth.evaluation.statistics import Estimate, clopper_pearson
from medsynth.imageset import ImageSet

# (rows of the table of wishes, attempt 0, 1, ...) to one image for each row, other noise at each attempt
Draw = Callable[[np.ndarray, int], ImageSet]
ATTEMPTS = 100  # a generator that repeats its patients in nine samples of ten still fills a set of thousands


class Accepts(Protocol):
    """What sampling needs of a gate."""

    def accepts(self, candidates: ImageSet) -> np.ndarray:
        """Which candidates pass, bool (n,)."""
        ...


class Filled(NamedTuple):
    """What passed, and what it took. All but `images` is a private output: how often the gate refuses says where patients are."""

    images: ImageSet  # one image for each wish, in the order of the wishes
    tries: np.ndarray  # (n,) candidates that were drawn for each wish, the accepted one included

    @property
    def acceptance(self) -> Estimate:
        """Share of candidates that were accepted, with an exact interval; n = candidates."""
        return clopper_pearson(len(self.tries), int(self.tries.sum()), n_of="candidates")


class Draws(Protocol):
    """What sampling needs of a generator."""

    def draw(self, conditions: Sized, rows: np.ndarray, *, attempt: int) -> ImageSet:
        """One image for each of the given rows of the conditions; another attempt is other noise."""
        ...


def draw_accepted(generator: Draws, conditions: Sized, gate: Accepts, *, attempts: int = ATTEMPTS) -> Filled:
    """One image for each condition that the gate accepts, refused ones drawn again; see `sample_until`."""
    return sample_until(len(conditions), lambda rows, k: generator.draw(conditions, rows, attempt=k), gate, attempts=attempts)


def sample_until(wishes: int, draw: Draw, gate: Accepts, *, attempts: int = ATTEMPTS) -> Filled:
    """One accepted image for each of `wishes` rows; a refused one is drawn again for its row, `attempts` times in all.

    A refused wish is repeated rather than replaced, so the set keeps the classes and attributes that were asked for.
    Raises ValueError, naming how many, when wishes are left without an accepted image.
    """
    if wishes < 1 or attempts < 1:
        raise ValueError(f"{wishes} images in at most {attempts} attempts each; expected at least 1 of both")
    open_rows = np.arange(wishes)
    tries = np.zeros(wishes, dtype=np.int64)
    parts: list[ImageSet] = []
    order: list[np.ndarray] = []
    for attempt in range(attempts):
        candidates = draw(open_rows, attempt)
        if len(candidates) != len(open_rows):
            raise ValueError(f"{candidates.name}: {len(candidates)} images for {len(open_rows)} wishes; expected one each")
        tries[open_rows] += 1
        passed = gate.accepts(candidates)
        parts.append(candidates.select(passed))
        order.append(open_rows[passed])
        open_rows = open_rows[~passed]
        if not len(open_rows):
            return Filled(_joined(parts, np.concatenate(order)), tries)
    raise ValueError(
        f"{parts[0].name}: {len(open_rows)} of {wishes} wishes have no accepted image after {attempts} attempts each "
        f"({wishes - len(open_rows)} have one); the generator draws too close to private images there: train it on more patients "
        "or less, calibrate the gate, or allow more attempts"
    )


def farthest(distance: np.ndarray, share: float, rows: int, *, seed: int) -> tuple[np.ndarray, float]:
    """`rows` random ones of those that are left when the nearest `share` is refused, ascending; and the distance that refuses it.

    distance: (n,), to the nearest private image; nan, which was not measured, counts as nearest. The distance is private.
    """
    order = np.argsort(-np.nan_to_num(distance, nan=-np.inf))[: len(distance) - round(share * len(distance))]
    if len(order) < rows:
        raise ValueError(f"{len(order)} of {len(distance)} images are left at share {share}; expected at least {rows}")
    kept = np.random.default_rng(seed).permutation(order)[:rows]
    return np.sort(kept), float(np.nanquantile(distance, share))


def acceptance_by(filled: Filled, attributes: pd.DataFrame, *, bins: int = 3) -> pd.DataFrame:
    """Acceptance rate in each class and each part of each attribute's range, with exact intervals. A private output.

    attributes: one row per wish; numbers of more than `bins` values are cut at their quantiles, missing values are a group.
    Columns: attribute, group, candidates, value, low, high. A set is skewed by its gate where intervals do not overlap.
    """
    rows = []
    for name in attributes:
        groups = _groups(attributes[name], bins)
        for group in pd.unique(groups):
            mine = groups == group
            estimate = clopper_pearson(int(mine.sum()), int(filled.tries[mine].sum()))
            rows.append({"attribute": str(name), "group": group, "candidates": estimate.n, **estimate._asdict()})
    return pd.DataFrame(rows, columns=["attribute", "group", "candidates", "value", "low", "high"])


def _groups(column: pd.Series, bins: int) -> np.ndarray:
    if pd.api.types.is_float_dtype(column) and column.nunique() > bins:
        edges = np.unique(column.quantile(np.linspace(0, 1, bins + 1)))
        column = pd.cut(column, edges, include_lowest=True).map(lambda cut: f"{cut.left:.3g} to {cut.right:.3g}")
    return column.astype("string").fillna("missing").to_numpy(dtype=str)


def _joined(parts: list[ImageSet], order: np.ndarray) -> ImageSet:
    first = parts[0]
    images = np.concatenate([p.images for p in parts])
    attributes = pd.concat([p.attributes for p in parts], ignore_index=True)
    back = np.argsort(order)
    return replace(
        first, images=images[back], patient=np.arange(len(order)), split=None,
        attributes=attributes.iloc[back].reset_index(drop=True),
    )  # fmt: skip

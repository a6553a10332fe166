"""One image for each source image: of several draws the one that keeps the label best, among those that are nobody's.

After Dombrowski and Kainz (arXiv:2506.17975): draw candidates for each source, drop those that a gate takes for somebody private,
keep the one whose class probabilities are nearest to the source's; where all are dropped, ask less strongly and draw again. Our
gate knows all private patients and all images of each. What it misses the search finds: choosing the best of many draws against
one detector selects that detector's misses. So judge what was selected with detectors that the gate never saw.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd

from medsynth.evaluation.statistics import Estimate, clopper_pearson
from medsynth.imageset import ImageSet, concatenate
from medsynth.privacy.gate.refill import Accepts

Classify = Callable[[ImageSet], np.ndarray]  # images (n, ...) -> probabilities (n, classes)


class GuidedDraws(Protocol):
    """What selection needs of a generator."""

    def draw(self, conditions: Sized, rows: np.ndarray, *, attempt: int, guidance: float) -> ImageSet:
        """One image for each of the given rows of the conditions; another attempt is other noise."""
        ...


@dataclass(frozen=True)
class Search:
    """How long is searched for each source. Raises ValueError for what no search can be."""

    candidates: int = 16  # of each source in a round
    guidance: float = 1.4  # of the first round
    lowered: float = 0.1  # after each round, but not below 1: there a generator leaves its conditions
    rounds: int = 5

    def __post_init__(self) -> None:
        if min(self.candidates, self.rounds) < 1 or self.guidance < 1 or self.lowered < 0:
            raise ValueError(f"{self}; expected at least one candidate and round, guidance from 1 on, and lowered not below 0")

    def guidance_of(self, round_: int) -> float:
        """Of round 0, 1, ..."""
        return max(1.0, self.guidance - self.lowered * round_)


class Selected(NamedTuple):
    """images: what was kept, in an order and with numbers that know of no source; it alone may leave the house.

    The others say where private patients are: share of candidates that were refused; sources for which nothing was found;
    and the round in which each source was served, -1 for never.
    """

    images: ImageSet
    refused: Estimate
    unserved: int
    round_served: np.ndarray


def select_by_source(
    generator: GuidedDraws, conditions: Sized, gate: Accepts, *, wanted: np.ndarray, classify: Classify, search: Search,
    told: tuple[str, ...] = ("finding",),
) -> Selected:  # fmt: skip
    """For each row of the conditions, made from a source image, at most one image that the gate accepts.

    wanted: class probabilities (n, k) to come near to, the sources' or their labels'. told: attributes that stay with an image;
    all others, which may be the source's own, are dropped. Reading the sources is the caller's line in the ledger.
    Raises ValueError where no source is served, and for wishes of another number than conditions.
    """
    if len(wanted) != len(conditions):
        raise ValueError(f"{len(wanted)} rows of class probabilities for {len(conditions)} conditions; expected one each")
    waiting = np.arange(len(conditions))
    served = np.full(len(conditions), -1)
    kept: list[ImageSet] = []
    drawn = accepted = 0
    for round_ in range(search.rounds):
        best = _best_of_round(generator, waiting, conditions, gate, wanted, classify, search, round_)
        drawn, accepted = drawn + len(waiting) * search.candidates, accepted + best.accepted
        kept.append(best.images)
        served[best.rows] = round_
        waiting = np.setdiff1d(waiting, best.rows)
        if not len(waiting):
            break
    if not (served >= 0).any():
        raise ValueError(
            f"none of {len(conditions)} sources has an acceptable image after {drawn} candidates; the generator draws too close "
            "to private images: train it on more patients or less, or lower the guidance"
        )
    images = unlinked(concatenate([part for part in kept if len(part)], "selected"), told)
    refused = clopper_pearson(drawn - accepted, drawn, n_of="candidates")
    return Selected(images, refused, int((served < 0).sum()), served)


def unlinked(images: ImageSet, told: tuple[str, ...]) -> ImageSet:
    """The images in the order of their own content, numbered in it, with the attributes `told` alone.

    An order that is drawn with a seed leads back to who knows the seed. That of hashes of what is released tells nothing more.
    """
    order = np.argsort(images.row_hashes)
    table = images.attributes.iloc[order].reset_index(drop=True)
    kept = table[[name for name in told if name in table]]
    return replace(images.select(order), patient=np.arange(len(images)), split=None, attributes=pd.DataFrame(kept))


class _Round(NamedTuple):
    images: ImageSet
    rows: np.ndarray
    accepted: int


def _best_of_round(
    generator: GuidedDraws, waiting: np.ndarray, conditions: Sized, gate: Accepts, wanted: np.ndarray, classify: Classify,
    search: Search, round_: int,
) -> _Round:  # fmt: skip
    """Of each waiting row the accepted candidate that is nearest to what is wanted."""
    best, distance, accepted = [None] * len(waiting), np.full(len(waiting), np.inf), 0
    for k in range(search.candidates):
        attempt = round_ * search.candidates + k
        made = generator.draw(conditions, waiting, attempt=attempt, guidance=search.guidance_of(round_))
        passed = gate.accepts(made)
        accepted += int(passed.sum())
        away = ((classify(made) - wanted[waiting]) ** 2).sum(1)
        for row in np.flatnonzero(passed & (away < distance)):
            best[row], distance[row] = made.select([row]), away[row]
    rows = np.flatnonzero(np.isfinite(distance))
    images = concatenate([best[row] for row in rows], made.name) if len(rows) else made.select([])
    return _Round(images, waiting[rows], accepted)

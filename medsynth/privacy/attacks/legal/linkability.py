"""Linkability: do two scans of one person, which nobody knows to be of one, meet in the release?"""

from __future__ import annotations

import numpy as np

from medsynth.evaluation.retrieval import retrieved
from medsynth.evaluation.statistics import generator
from medsynth.imageset import ImageSet
from medsynth.privacy.attacks.legal.risk import Risk, risk_of


def linkability(
    release: np.ndarray, members: tuple[np.ndarray, np.ndarray], others: tuple[np.ndarray, np.ndarray], *, seed: int
) -> Risk:  # fmt: skip
    """Share of people of whom both scans have one and the same nearest image in the release; features of one map, (n, d).

    members, others: first and second scan of each person, row by row. Two scans of a person look alike, so they meet somewhere
    also where nobody was trained on: that is the control. Baseline: the first scan of one member and the second of another.
    Raises ValueError for pairs of unequal length, and for fewer than two members.
    """
    for first, second in (members, others):
        if first.shape != second.shape:
            raise ValueError(f"scans of shape {first.shape} and {second.shape}; expected two of each person, row by row")
    if len(members[0]) < 2:
        raise ValueError(f"{len(members[0])} members; expected at least two, of whom one is taken for the other")
    met = {name: [retrieved(release, scans) for scans in pair] for name, pair in (("members", members), ("others", others))}
    first, second = met["members"]
    # everybody beside somebody else: a shift along a random order leaves nobody in their own place
    order = generator(seed, len(first)).permutation(len(first))
    stranger = np.empty_like(order)
    stranger[order] = np.roll(order, 1)
    return risk_of(first == second, met["others"][0] == met["others"][1], first == second[stranger])


def scan_pairs(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """The first and the second image of each patient who has two, row by row. Raises ValueError where fewer than two have."""
    order = np.argsort(images.patient, kind="stable")
    people, first, count = np.unique(images.patient[order], return_index=True, return_counts=True)
    if (found := int((count > 1).sum())) < 2:
        raise ValueError(f"{images.name}: {found} of {len(people)} patients have two images; expected at least two who do")
    rows = first[count > 1]
    return images.select(order[rows]), images.select(order[rows + 1])

"""The negative-space attack: a gate leaves a hole around each private image, and a hole is a membership test.

With patient x in the private set no released image lies within tau of x or of a transformed copy of x; without x, some do if the
generator draws there. An adversary who can draw from a like generator counts what it expects there and what was released.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from medsynth.evaluation.roc import membership
from medsynth.evaluation.statistics import Estimate


class HoleAttack(NamedTuple):
    """How well holes in what was released tell patients who are in the private set from others."""

    auc: Estimate  # n = patients of both kinds
    curve: np.ndarray  # (k, 2) false and true positive rates, ascending
    expected: float  # released images within the radius of a member, were there no gate; mean over members


def hole_attack(
    members: np.ndarray, others: np.ndarray, released: np.ndarray, reference: np.ndarray, radius: float, *,
    patients: tuple[np.ndarray, np.ndarray], seed: int, replicates: int = 1000,
) -> HoleAttack:  # fmt: skip
    """`hole_score` of members' images and of others', (copies, n, d) each, with intervals over their `patients`."""
    member, other = (hole_score(targets, released, reference, radius) for targets in (members, others))
    of = {"member_patient": patients[0], "other_patient": patients[1]}
    found = membership(member, other, **of, seed=seed, replicates=replicates)
    return HoleAttack(found.auc, found.curve, float(np.maximum(member, 0).mean()))


def hole_score(targets: np.ndarray, released: np.ndarray, reference: np.ndarray, radius: float) -> np.ndarray:
    """Evidence of a hole around each target, (n,): the hits expected where none is observed, else minus the hits observed.

    The log-likelihood ratio of "member" (no hit, ever) to "not a member" (hits are Poisson with the expected mean); it is
    stronger than expected minus observed, which mistakes a crowded place for a hole. Features of one map, float: targets
    (copies, n, d), each image as the gate knows it, with its transformed copies, whose list is public; released (m, d); reference
    (k, d), what the adversary drew from a like generator without a gate, whose share of hits, times the number released, is what
    it expects. A hit lies within `radius` of a copy.
    """
    if not len(released) or not len(reference):
        raise ValueError(f"{len(released)} released and {len(reference)} reference images; expected at least one of each")
    observed = within(targets, released, radius)
    return np.where(observed == 0, expected_hits(targets, reference, radius) * len(released), -observed)


def expected_hits(targets: np.ndarray, reference: np.ndarray, radius: float) -> np.ndarray:
    """Share of the reference images within `radius` of each target, (n,)."""
    return within(targets, reference, radius) / len(reference)


def within(targets: np.ndarray, images: np.ndarray, radius: float) -> np.ndarray:
    """How many images (m, d) lie within `radius` of some copy of each target (copies, n, d), in float64; (n,)."""
    # all pairs are counted, so the search for the nearest (`gate.search`) is no help; in double precision and around the centre
    # a product errs by 1e-15 of the lengths, far less than the features do (`FeatureMap.error`)
    centre = images.mean(0, dtype=np.float64)
    x, found = images - centre, np.empty(targets.shape[1], dtype=np.int64)
    length = (x**2).sum(1)
    for i in range(len(found)):
        t = targets[:, i] - centre
        square = (t**2).sum(1)[:, None] + length - 2 * t @ x.T
        found[i] = (square.min(0) <= radius**2).sum()
    return found

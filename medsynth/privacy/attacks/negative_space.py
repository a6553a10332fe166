"""The negative-space attack: a gate leaves a hole around each private image, and a hole is a membership test.

With patient x in the private set no released image lies within tau of x or of a transformed copy of x; without x, some do if the
generator draws there. An adversary who can draw from a like generator counts what it expects there and what was released.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from medsynth.evaluation.statistics import Estimate, bootstrap_weighted


class Attack(NamedTuple):
    """How well a score tells patients who are in the private set from patients who are not."""

    auc: Estimate  # n = patients of both kinds
    curve: np.ndarray  # (k, 2) false and true positive rates, ascending


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


def negative_space_attack(
    member: np.ndarray, outsider: np.ndarray, *, member_patient: np.ndarray, outsider_patient: np.ndarray, seed: int,
    replicates: int = 1000,
) -> Attack:  # fmt: skip
    """AUC and ROC of scores of images of members (n,) and of unseen patients (m,), with a bootstrap over patients."""
    score = np.concatenate([member, outsider])
    inside = np.concatenate([np.ones(len(member)), np.zeros(len(outsider))])
    patient = np.unique(
        np.stack([inside, np.concatenate([member_patient, outsider_patient])]), axis=1, return_inverse=True
    )[1].ravel()  # fmt: skip
    auc = bootstrap_weighted(
        lambda w: weighted_auc(score, inside, w), patient, seed=seed, replicates=replicates
    )  # fmt: skip
    return Attack(auc, roc(score, inside))


def weighted_auc(score: np.ndarray, inside: np.ndarray, weight: np.ndarray) -> float:
    """Probability that a member scores above an outsider, ties counting half, with row weights; NaN if one kind is missing."""
    order = rankdata(score, method="dense") - 1
    levels = int(order.max()) + 1
    ins = np.bincount(order, weight * inside, levels)
    out = np.bincount(order, weight * (1 - inside), levels)
    total = ins.sum() * out.sum()
    below = np.cumsum(out) - out
    return float((ins * (below + out / 2)).sum() / total) if total else float("nan")


def roc(score: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(k, 2) false and true positive rates as the threshold falls, equal scores in one step."""
    order = np.argsort(-score, kind="stable")
    true, false = np.cumsum(inside[order]), np.cumsum(1 - inside[order])
    last = np.append(np.diff(score[order]) != 0, True)
    points = np.stack([false[last] / false[-1], true[last] / true[-1]], 1)
    return np.concatenate([[[0.0, 0.0]], points])

"""Scores of two kinds: ROC, AUC and TPR at a false positive rate, with intervals over patients.

Every attack ends here, and every classifier. A score is higher for what is taken for the first kind: members, or those who have a
finding. Rows have weights, which a bootstrap changes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from medsynth.evaluation.statistics import Estimate, bootstrap_weighted


class Scored(NamedTuple):
    """Scores (n,), falling, and the weights (n,) of their rows."""

    score: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(cls, score: np.ndarray, weight: np.ndarray | None = None) -> Scored:
        """Sorted; without weights every row weighs 1."""
        order = np.argsort(-np.asarray(score), kind="stable")
        return cls(np.asarray(score)[order], np.ones(len(order)) if weight is None else np.asarray(weight)[order])

    def mass(self, threshold: np.ndarray | float, *, side: str = "right") -> np.ndarray:
        """Weight of the scores of at least the threshold; side "left": above it."""
        return np.concatenate([[0.0], np.cumsum(self.weight)])[np.searchsorted(-self.score, -np.asarray(threshold), side=side)]


class Attack(NamedTuple):
    """How well a score tells patients who are in the private set from patients who are not."""

    auc: Estimate  # n = patients of both kinds
    tpr: Estimate  # share of members found at `fpr`; n = patients of both kinds
    fpr: float
    curve: np.ndarray  # (k, 2) false and true positive rates, ascending


def membership(
    member: np.ndarray, other: np.ndarray, *, member_patient: np.ndarray, other_patient: np.ndarray, seed: int,
    fpr: float = 0.01, replicates: int = 1000,
) -> Attack:  # fmt: skip
    """AUC, ROC and TPR of scores of members' images (n,) and of non-members' (m,), with a bootstrap over patients.

    The threshold of the TPR is found anew in each replicate. Patient numbers of the two kinds need not differ.
    """
    score = np.concatenate([member, other])
    inside = np.arange(len(score)) < len(member)
    people = np.stack([inside, np.concatenate([member_patient, other_patient])])
    patient = np.unique(people, axis=1, return_inverse=True)[1].ravel()
    order = np.argsort(-score, kind="stable")
    score, inside, patient = score[order], inside[order], patient[order]

    def drawn(weight: np.ndarray) -> tuple[Scored, Scored]:
        return Scored(score[inside], weight[inside]), Scored(score[~inside], weight[~inside])

    options = {"seed": seed, "replicates": replicates}
    return Attack(
        bootstrap_weighted(lambda w: auc(*drawn(w)), patient, **options),
        bootstrap_weighted(lambda w: tpr_at(*drawn(w), fpr), patient, **options),
        fpr,
        roc(*drawn(np.ones(len(score)))),
    )


def auc(member: Scored, other: Scored) -> float:
    """Probability that a member scores above a non-member, ties counting half; NaN where one kind weighs nothing."""
    total = member.weight.sum() * other.weight.sum()
    beaten = (member.mass(other.score) + member.mass(other.score, side="left")) / 2
    return float((beaten * other.weight).sum() / total) if total else float("nan")


def roc(member: Scored, other: Scored, *, points: int | None = None) -> np.ndarray:
    """(k, 2) false and true positive rates as the threshold falls, equal scores in one step.

    points: about so many thresholds, even on a logarithmic scale of the false positive rate; default: all there are.
    """
    if points is None:
        threshold = np.unique(np.concatenate([member.score, other.score]))[::-1]
    else:
        threshold = other.score[np.unique(np.geomspace(1, len(other.score), points).astype(int)) - 1]
    rates = [kind.mass(threshold) / kind.weight.sum() for kind in (other, member)]
    ends = np.zeros((1, 2)), np.ones((1, 2))
    return np.concatenate([ends[0], np.stack(rates, 1), *([] if points is None else [ends[1]])])


def threshold_at(other: Scored, fpr: float, *, total: float | None = None) -> float:
    """The score above which at most `fpr` of the weight of non-members lies.

    total: their weight, where only the highest scores are given. Raises LookupError if those do not reach the rate.
    """
    mass = np.cumsum(other.weight)
    allowed = fpr * (mass[-1] if total is None else total)
    if mass[-1] <= allowed:
        raise LookupError(f"non-members of weight {mass[-1]:g} do not reach a false positive rate of {fpr:g}; give all of them")
    return float(other.score[np.searchsorted(mass, allowed, side="right")])


def share_above(member: Scored, threshold: float) -> float:
    """Share of the weight that scores above a threshold; NaN where there is no weight."""
    total = member.weight.sum()
    return float(member.mass(threshold, side="left") / total) if total else float("nan")


def tpr_at(member: Scored, other: Scored, fpr: float) -> float:
    """Share of members above the threshold that at most `fpr` of non-members exceed; NaN where one kind weighs nothing."""
    return share_above(member, threshold_at(other, fpr)) if other.weight.sum() else float("nan")

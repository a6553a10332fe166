"""Can two images be told to be of one person? ROC of same-patient pairs, every patient weighing the same."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.spatial.distance import pdist

from medsynth.evaluation.roc import Scored, auc, roc, share_above, threshold_at
from medsynth.evaluation.statistics import Estimate, percentile_interval, resample

_POINTS = 400  # of the curve, about
_KEPT = 5  # times the false positive rate: the share of different-patient pairs that a bootstrap replicate can need


class Identification(NamedTuple):
    """How well distances tell pairs of one patient from pairs of two."""

    tpr: Estimate  # share of same-patient pairs nearer than the threshold; n = patients with several images
    auc: float
    threshold: float  # the distance below which `fpr` of the different-patient pairs lie
    fpr: float
    same_pairs: int
    curve: np.ndarray  # (k, 2) false and true positive rates, ascending

    @property
    def rates(self) -> dict[str, Estimate]:
        """The TPR, and the AUC without an interval, as rows call them."""
        return {f"TPR at {100 * self.fpr:g} % FPR": self.tpr, "AUC": Estimate(self.auc, np.nan, np.nan, self.tpr.n)}

    @property
    def roc(self) -> pd.DataFrame:
        """The curve for a plot: columns "false positive rate" and value."""
        return pd.DataFrame(self.curve, columns=["false positive rate", "value"])


class _Pairs(NamedTuple):
    """Pairs sorted by distance: patients first and second, and the weight of the pair."""

    distance: np.ndarray
    first: np.ndarray
    second: np.ndarray
    weight: np.ndarray

    def sorted(self) -> _Pairs:
        order = np.argsort(self.distance, kind="stable")
        return _Pairs(*(column[order] for column in self))

    def up_to(self, limit: float) -> _Pairs:
        return _Pairs(*(column[: np.searchsorted(self.distance, limit, side="right")] for column in self))

    def drawn(self, counts: np.ndarray) -> Scored:
        """As scores, the nearer the higher, with each patient drawn `counts` (patients,) times."""
        # a pair of one patient comes as often as that patient, one of two as often as both
        often = np.where(self.first == self.second, 1, counts[self.second]) * counts[self.first]
        return Scored(-self.distance, self.weight * often)


def identify(
    features: np.ndarray, patient: np.ndarray, *, seed: int, fpr: float = 0.01, replicates: int = 500, level: float = 0.95
) -> Identification:
    """TPR at a false positive rate, over all pairs of rows; features (n, d), distances Euclidean.

    All same-patient pairs of a patient share the weight 1, and so do all pairs between two patients: a few patients with many
    images decide nothing. The interval is a bootstrap over patients in which the threshold is found anew.
    Raises ValueError with fewer than two patients that have several images.
    """
    people, unit = np.unique(patient, return_inverse=True)
    size = np.bincount(unit)
    several = int((size > 1).sum())
    if several < 2:
        raise ValueError(f"{several} patients have several images; expected at least 2 to tell same-patient pairs from others")
    same, different = _pairs(np.asarray(features, dtype=np.float64), unit, size)
    member, other = Scored(-same.distance, same.weight), Scored(-different.distance, different.weight)
    threshold = _threshold(other, np.ones(len(people)), fpr)
    near = different.up_to(different.distance[min(len(different.distance) - 1, int(_KEPT * fpr * len(different.distance)))])
    replicated = []
    for counts in resample(len(people), seed=seed, replicates=replicates).astype(np.float64):
        try:
            limit = _threshold(near.drawn(counts), counts, fpr)
        except LookupError:
            limit = _threshold(different.drawn(counts), counts, fpr)
        replicated.append(share_above(same.drawn(counts), limit))
    tpr = percentile_interval(share_above(member, threshold), np.array(replicated), several, level)
    # the distance itself is one too far
    nearer = float(np.nextafter(-threshold, -np.inf))
    return Identification(tpr, auc(member, other), nearer, fpr, len(same.distance), roc(member, other, points=_POINTS))


def _pairs(x: np.ndarray, unit: np.ndarray, size: np.ndarray) -> tuple[_Pairs, _Pairs]:
    i, j = np.triu_indices(len(x), 1)
    distance = pdist(x)  # direct differences in double precision: the distances of all pairs are wanted, not the nearest
    a, b = unit[i], unit[j]
    equal = a == b
    own = size[a[equal]]
    same = _Pairs(distance[equal], a[equal], b[equal], 2.0 / (own * (own - 1)))
    other = _Pairs(distance[~equal], a[~equal], b[~equal], 1.0 / (size[a[~equal]] * size[b[~equal]]))
    return same.sorted(), other.sorted()


def _threshold(other: Scored, counts: np.ndarray, fpr: float) -> float:
    # every pair of two drawn patients weighs 1; copies of one drawn patient are no two patients
    return threshold_at(other, fpr, total=(counts.sum() ** 2 - (counts**2).sum()) / 2)

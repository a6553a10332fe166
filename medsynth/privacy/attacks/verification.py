"""Can two images be told to be of one person? ROC of same-patient pairs, every patient weighing the same."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import pdist

from medsynth.evaluation.statistics import Estimate, percentile_interval, resample

_KEPT = 5  # times the false positive rate: the share of different-patient pairs that a bootstrap replicate can need


class Identification(NamedTuple):
    """How well distances tell pairs of one patient from pairs of two."""

    tpr: Estimate  # share of same-patient pairs nearer than the threshold; n = patients with several images
    auc: float
    threshold: float  # the distance below which `fpr` of the different-patient pairs lie
    fpr: float
    same_pairs: int
    curve: np.ndarray  # (k, 2) false and true positive rates, ascending


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
    everybody = np.ones(len(people))
    threshold = _threshold(different, everybody, fpr)
    value = _share_within(same, everybody, threshold)
    near = different.up_to(different.distance[min(len(different.distance) - 1, int(_KEPT * fpr * len(different.distance)))])
    replicated = []
    for counts in resample(len(people), seed=seed, replicates=replicates).astype(np.float64):
        try:
            limit = _threshold(near, counts, fpr)
        except LookupError:
            limit = _threshold(different, counts, fpr)
        replicated.append(_share_within(same, counts, limit))
    tpr = percentile_interval(value, np.array(replicated), several, level)
    return Identification(tpr, _area(same, different), threshold, fpr, len(same.distance), _curve(same, different))


def _pairs(x: np.ndarray, unit: np.ndarray, size: np.ndarray) -> tuple[_Pairs, _Pairs]:
    i, j = np.triu_indices(len(x), 1)
    distance = pdist(x)  # direct differences in double precision: the distances of all pairs are wanted, not the nearest
    a, b = unit[i], unit[j]
    equal = a == b
    own = size[a[equal]]
    same = _Pairs(distance[equal], a[equal], b[equal], 2.0 / (own * (own - 1)))
    other = _Pairs(distance[~equal], a[~equal], b[~equal], 1.0 / (size[a[~equal]] * size[b[~equal]]))
    return same.sorted(), other.sorted()


def _threshold(different: _Pairs, counts: np.ndarray, fpr: float) -> float:
    """The largest distance within which at most `fpr` of the weight of different-patient pairs lies; LookupError if all do."""
    # every pair of two drawn patients weighs 1; copies of one drawn patient are no two patients
    total = (counts.sum() ** 2 - (counts**2).sum()) / 2
    mass = np.cumsum(different.weight * counts[different.first] * counts[different.second])
    allowed = fpr * total
    if mass[-1] <= allowed:
        raise LookupError("the pairs kept do not reach the false positive rate")
    beyond = int(np.searchsorted(mass, allowed, side="right"))
    return float(np.nextafter(different.distance[beyond], -np.inf))


def _share_within(same: _Pairs, counts: np.ndarray, threshold: float) -> float:
    weight = same.weight * counts[same.first]
    total = weight.sum()
    return float(weight[: np.searchsorted(same.distance, threshold, side="right")].sum() / total) if total else float("nan")


def _area(same: _Pairs, different: _Pairs) -> float:
    """The chance that a same-patient pair is the nearer one; ties count half."""
    reached = np.concatenate([[0], np.cumsum(same.weight)])
    sides = [reached[np.searchsorted(same.distance, different.distance, side=s)] for s in ("left", "right")]
    return float(np.average((sides[0] + sides[1]) / 2, weights=different.weight) / reached[-1])


def _curve(same: _Pairs, different: _Pairs, points: int = 400) -> np.ndarray:
    """The ROC, thinned to about `points` thresholds, evenly on a logarithmic scale of the false positive rate."""
    false, true = np.cumsum(different.weight), np.cumsum(same.weight)
    rank = np.unique(np.geomspace(1, len(false), points).astype(int)) - 1
    reached = np.searchsorted(same.distance, different.distance[rank], side="right")
    curve = np.stack([false[rank] / false[-1], np.concatenate([[0], true])[reached] / true[-1]], 1)
    return np.concatenate([[[0.0, 0.0]], curve, [[1.0, 1.0]]])

"""Memorisation: samples that are nearer to a training image than new patients' images come, and the patients they are of.

The criterion of Dar et al. (arXiv:2307.01148): a sample is a copy if its best correlation with a training image exceeds a high
percentile of what held-out images reach. Features (n, d) of one map, which must not be the gate's: a gate refuses what its own
map calls near, so samples that passed it look new there. The share of patients grows with the number of samples, also by
chance: compare at equal numbers, and beside controls (`copied` of a copy through the autoencoder, of fresh patients'
images, and with held-out patients as targets; `copied_by_others`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from medsynth.evaluation.roc import Scored, threshold_at
from medsynth.evaluation.statistics import Estimate, bootstrap_mean, clopper_pearson, share_of

_ROWS = 1024  # whose correlations with all others are held at once
_DECIMALS = 12  # of a correlation: what is equal stays equal in whatever order a processor adds


class Memorisation(NamedTuple):
    """What is memorised, given the threshold; intervals are over patients and over samples, not over held-out patients."""

    share_of_patients: Estimate  # one of whose images is the nearest of some copy; n = patients
    share_of_samples: Estimate  # that are copies; n = samples
    threshold: float  # the correlation that copies exceed


def memorised(
    samples: np.ndarray, training: np.ndarray, held_out: np.ndarray, training_patient: np.ndarray, held_out_patient: np.ndarray,
    *, percentile: float = 95.0,
) -> Memorisation:  # fmt: skip
    """`copied` at the `copy_threshold` of held-out patients; features (n, d), patients (n,)."""
    limit = copy_threshold(held_out, training, held_out_patient, percentile=percentile)
    return copied(samples, training, training_patient, limit)


def copy_threshold(
    held_out: np.ndarray, training: np.ndarray, held_out_patient: np.ndarray, *, percentile: float = 95.0
) -> float:
    """The correlation with their nearest training image that at most 100 - percentile % of held-out images exceed.

    Every held-out patient weighs the same. A private output: it says where patients are. Fewer than 100 / (100 - percentile)
    patients give their highest. Raises ValueError for a percentile that is none.
    """
    if not 0 < percentile < 100:
        raise ValueError(f"percentile {percentile}; expected a number between 0 and 100, such as 95")
    best, _ = _best(held_out, training)
    _, unit, size = np.unique(held_out_patient, return_inverse=True, return_counts=True)
    return threshold_at(Scored.of(best, 1 / size[unit]), 1 - percentile / 100)


def copied(
    samples: np.ndarray, targets: np.ndarray, patient: np.ndarray, threshold: float, *, volume: np.ndarray | None = None
) -> Memorisation:
    """Share of samples whose best correlation with a target exceeds the threshold, and of patients who own such a target.

    volume: (n,), the sample that each row is a slice of, which then counts by its share of copies; default: rows are samples.
    """
    best, row = _best(samples, targets)
    return _counted(best > threshold, row, patient, threshold, np.arange(len(best)) if volume is None else volume)


def copied_by_others(images: np.ndarray, patient: np.ndarray, threshold: float, *, others: str) -> Memorisation:
    """Control: the images themselves in the place of samples, each beside all `others`: "images", or "patients" but its own.

    What exceeds the threshold here is likeness of patients, or of slices of one stack, and no memory of a network.
    """
    if others not in ("images", "patients"):
        raise ValueError(f"others {others!r}; expected 'images' or 'patients'")
    own = np.arange(len(images)) if others == "images" else np.asarray(patient)
    if len(np.unique(own)) < 2:
        raise ValueError(f"{len(images)} images of {len(np.unique(patient))} patients; expected {others} beside each")
    best, row = _best(images, images, own)
    return _counted(best > threshold, row, patient, threshold, patient)


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation of every row of a (n, d) with every row of b (m, d), over the d features; (n, m) float64.

    A row that is constant correlates with nothing, 0. Raises ValueError for values that are not finite, or widths that differ.
    """
    return _products(_standardised(a), _standardised(b))


def _best(a: np.ndarray, b: np.ndarray, own: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Of each row of a the best correlation with b, (n,), and the row that has it; own: rows of one number are not compared."""
    a, b = _standardised(a), _standardised(b)
    best, row = np.empty(len(a)), np.empty(len(a), dtype=np.int64)
    for first in range(0, len(a), _ROWS):
        here = slice(first, first + _ROWS)
        found = _products(a[here], b)
        if own is not None:
            found[own[here, None] == own] = -np.inf
        row[here] = found.argmax(1)
        best[here] = found.max(1)
    return best, row


def _products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features of {a.shape[1]} and of {b.shape[1]} dimensions; expected one feature map")
    return np.round(a @ b.T, _DECIMALS)


def _standardised(x: np.ndarray) -> np.ndarray:
    """Rows less their mean, of length 1; constant rows become 0."""
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or not x.size or not np.isfinite(x).all():
        raise ValueError(f"features {x.shape}; expected (n, d), at least one row, all finite")
    # in units of the largest, so that no square overflows
    largest = np.abs(x).max(1, keepdims=True)
    x = x / np.where(largest, largest, 1.0)
    x = x - x.mean(1, keepdims=True)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    # what rounding leaves of a constant row has a length, and no direction
    varies = length > 1e-12
    return np.where(varies, x / np.where(varies, length, 1.0), 0.0)


def _counted(copy: np.ndarray, row: np.ndarray, patient: np.ndarray, threshold: float, volume: np.ndarray) -> Memorisation:
    people = clopper_pearson(len(np.unique(patient[row[copy]])), len(np.unique(patient)), n_of="patients")
    _, unit, size = np.unique(volume, return_inverse=True, return_counts=True)
    share = np.bincount(unit, copy) / size
    if np.isin(share, (0, 1)).all():
        samples = share_of(share, n_of="samples")
    else:
        samples = bootstrap_mean(share, np.arange(len(share)), seed=0)._replace(n_of="samples")
    return Memorisation(people, samples, threshold)

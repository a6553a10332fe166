"""The one rule for distances of features that carry an error: what is refused, and what a second measurement may find.

A feature map is computed in single precision, whose sums depend on the processor, on libraries and on threads. Let e bound the
Euclidean error of a computed row (`FeatureMap.error`). A computed distance errs by at most 2 e, and so does the least of many.
Two measurements of one distance differ by at most 4 e. An image is refused unless its distance is above tau + 4 e: then its
true distance is above tau + 2 e, and whoever measures it again, on whatever machine, finds it above tau.
"""

from __future__ import annotations

import numpy as np


def margin(error: float) -> float:
    """By how much two measurements of one distance may differ: as far beyond tau an image must lie."""
    return 4 * error


def reach(tau: float, error: float) -> float:
    """The largest measured distance at which an image is refused."""
    return tau + margin(error)


def refused(distance: np.ndarray, tau: float, error: float) -> np.ndarray:
    """Which measured distances are refused, bool of their shape; NaN is."""
    return ~(np.asarray(distance) > reach(tau, error))


def largest_tau(distance: float, error: float) -> float:
    """The largest threshold at which this measured distance is not refused."""
    tau = np.nextafter(distance - margin(error), -np.inf)
    while reach(tau, error) >= distance:
        tau = np.nextafter(tau, -np.inf)
    return float(tau)


def indistinct(distance: np.ndarray, error: float) -> np.ndarray:
    """Which measured distances may be those of equal features, bool of their shape."""
    return np.asarray(distance) <= 2 * error


def agree(distance: float, again: float, error: float) -> bool:
    """Whether two measurements can be of one distance; NaN is like nothing."""
    return bool(abs(distance - again) <= margin(error))

"""Values with intervals: the patient is the unit that is resampled, counted and reported."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

from medsynth.results import Estimate

# a statistic such as an AUROC has no value when a resample misses a class; more than this share means too few patients
_UNDEFINED_SHARE = 0.05


def generator(*key: int) -> np.random.Generator:
    """A random generator that depends on its key alone, so that no draw depends on how many were made before it."""
    return np.random.default_rng(np.random.SeedSequence(key))


def resample(units: int, *, seed: int, replicates: int) -> np.ndarray:
    """How often each unit is drawn in each bootstrap replicate, int (replicates, units); every row sums to units."""
    if units < 2:
        raise ValueError(f"bootstrap over {units} unit(s): no interval can be had; expected at least 2 patients")
    return np.stack([np.bincount(generator(seed, r).integers(units, size=units), minlength=units) for r in range(replicates)])


def bootstrap(
    statistic: Callable[[np.ndarray], float], patient: np.ndarray, *, seed: int, replicates: int = 1000, level: float = 0.95
) -> Estimate:
    """Percentile bootstrap over patients of statistic(rows); rows is an int array, repeated as its patients were drawn.

    A drawn patient brings all its rows. n = patients. Use it where a repeated row is harmless; `bootstrap_weighted` is faster
    for means and other statistics of weighted rows. Source: Efron and Tibshirani (1993), chapters 8 and 13.
    Raises ValueError where the statistic is not finite in more than 5 % of the replicates.
    """
    people, unit = np.unique(patient, return_inverse=True)
    rows = np.split(np.argsort(unit, kind="stable"), np.cumsum(np.bincount(unit))[:-1])
    draws = (np.repeat(np.arange(len(people)), counts) for counts in resample(len(people), seed=seed, replicates=replicates))
    replicated = [statistic(np.concatenate([rows[p] for p in drawn])) for drawn in draws]
    return percentile_interval(float(statistic(np.arange(len(unit)))), np.array(replicated), len(people), level)


def bootstrap_weighted(
    statistic: Callable[[np.ndarray], float], patient: np.ndarray, *, seed: int, replicates: int = 1000, level: float = 0.95
) -> Estimate:
    """Percentile bootstrap over patients of statistic(weights); weights is float (rows,), how often each row was drawn.

    The same resamples as `bootstrap`, without copying rows. n = patients. Raises ValueError as `bootstrap` does.
    """
    people, unit = np.unique(patient, return_inverse=True)
    counts = resample(len(people), seed=seed, replicates=replicates).astype(np.float64)
    replicated = np.array([statistic(c[unit]) for c in counts])
    return percentile_interval(float(statistic(np.ones(len(unit)))), replicated, len(people), level)


def bootstrap_mean(
    values: np.ndarray, patient: np.ndarray, *, seed: int, replicates: int = 1000, level: float = 0.95
) -> Estimate:
    """Mean over rows with its patient-bootstrap interval; values (rows,). n = patients."""
    values = np.asarray(values, dtype=np.float64)
    people, unit = np.unique(patient, return_inverse=True)
    sums, sizes = np.bincount(unit, values), np.bincount(unit)
    counts = resample(len(people), seed=seed, replicates=replicates)
    return percentile_interval(float(values.mean()), (counts @ sums) / (counts @ sizes), len(people), level)


def percentile_interval(value: float, replicated: np.ndarray, n: int, level: float = 0.95) -> Estimate:
    """The central `level` share of replicated values around a value, as an Estimate over n units."""
    if not 0 < level < 1:
        raise ValueError(f"level {level}; expected a number between 0 and 1, such as 0.95")
    finite = np.asarray(replicated)[np.isfinite(replicated)]
    missing = len(replicated) - len(finite)
    if missing > _UNDEFINED_SHARE * len(replicated):
        raise ValueError(
            f"the statistic is undefined in {missing} of {len(replicated)} bootstrap replicates; "
            "too few patients carry what it needs: pool groups or report it without an interval"
        )
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), n, level=level)


def clopper_pearson(successes: int, trials: int, *, n_of: str = "trials", level: float = 0.95) -> Estimate:
    """Share of successes with the exact binomial interval (Clopper and Pearson 1934). n = trials, which are `n_of`."""
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes in {trials} trials; expected 0 <= successes <= trials and at least one trial")
    tail = (1 - level) / 2
    low = stats.beta.ppf(tail, successes, trials - successes + 1) if successes else 0.0
    high = stats.beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    return Estimate(successes / trials, float(low), float(high), trials, n_of, level)


def share_of(found: np.ndarray, *, n_of: str) -> Estimate:
    """Share of an array (n,) that is true, with its exact interval; n = its length, of what `n_of` says."""
    return clopper_pearson(int(np.sum(found)), len(found), n_of=n_of)


def patient_halves(patient: np.ndarray, *, seed: int, splits: int, n: int | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random patient-disjoint halves of a set: `splits` pairs of row arrays, all of one size.

    Patients are dealt in random order to the half that has fewer rows; then rows are left out at random so that every half
    of every split has the same number of rows: n, or the largest number that all splits allow.
    Raises ValueError with fewer than two patients, or where some split cannot give n rows.
    """
    people, unit = np.unique(patient, return_inverse=True)
    if len(people) < 2:
        raise ValueError(f"{len(people)} patient(s) cannot be split into patient-disjoint halves; expected at least 2")
    sizes = np.bincount(unit)
    dealt = []
    for s in range(splits):
        side, rows = np.zeros(len(people), dtype=bool), [0, 0]
        for p in generator(seed, s, 0).permutation(len(people)):
            smaller = int(rows[1] < rows[0])
            side[p] = smaller
            rows[smaller] += sizes[p]
        dealt.append((np.flatnonzero(~side[unit]), np.flatnonzero(side[unit])))
    most = min(len(half) for pair in dealt for half in pair)
    if n is not None and n > most:
        raise ValueError(
            f"halves of {n} rows asked for, but patient-disjoint halves of {len(unit)} rows have {most}; ask for fewer"
        )
    take = most if n is None else n
    return [
        tuple(np.sort(generator(seed, s, 1 + h).choice(half, take, replace=False)) for h, half in enumerate(pair))
        for s, pair in enumerate(dealt)
    ]

"""How close a synthetic set is to a real one in feature space: FID, KID and the floor that two real halves reach.

All functions take features, float (n, d), from one named extractor (`medsynth.evaluation.features`). Both distances depend
on n, so numbers are compared only at equal n, and every report carries the real-real floor at the same n.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from medsynth.evaluation.statistics import Estimate, generator, patient_halves, percentile_interval, resample


def frechet_distance(
    real: np.ndarray, synthetic: np.ndarray, weights: np.ndarray | None = None, synthetic_weights: np.ndarray | None = None
) -> float:
    """|mu_r - mu_s|^2 + tr(S_r + S_s - 2 (S_r S_s)^(1/2)) of two feature samples (n_r, d) and (n_s, d), in float64.

    The trace of the root is the nuclear norm of X_r X_s^T / sqrt((n_r - 1)(n_s - 1)), X centred: exact also for n < d, where
    a matrix square root of S_r S_s is not. Optional weights (n,) count how often a row occurs. No guard on n: see `fid`.
    Source: Dowson and Landau (1982); Heusel et al., arXiv:1706.08500, eq. 6.
    """
    mean_r, root_r = _moments(real, weights)
    mean_s, root_s = _moments(synthetic, synthetic_weights)
    if len(mean_r) != len(mean_s):
        raise ValueError(f"features have {len(mean_r)} and {len(mean_s)} dimensions; both sets need the same extractor")
    cross = np.linalg.svd(root_r @ root_s.T, compute_uv=False).sum()
    # the three terms nearly cancel for equal sets; a distance below zero is rounding
    return float(max(0.0, ((mean_r - mean_s) ** 2).sum() + (root_r**2).sum() + (root_s**2).sum() - 2 * cross))


def fid(
    real: np.ndarray,
    synthetic: np.ndarray,
    *,
    patient: np.ndarray,
    seed: int,
    replicates: int = 200,
    level: float = 0.95,
) -> Estimate:
    """Frechet distance of equally many real and synthetic features, with a bootstrap interval. n = real patients.

    Real patients and synthetic images are resampled. A resample holds fewer distinct rows than the sample and so has a larger
    bias (about d^2 / 2n for n rows); the interval is therefore the bootstrap spread moved to the value.
    Raises ValueError when sizes differ (use `subsample`) or a side has fewer than 2 d rows (use `kid`).
    """
    _refuse_small(len(real), len(synthetic), real.shape[1])
    if len(real) != len(synthetic):
        raise ValueError(
            f"{len(real)} real and {len(synthetic)} synthetic rows: FID depends on n and is compared at equal n only; "
            f"use subsample(features, {min(len(real), len(synthetic))}, seed=...) on the larger set"
        )
    value = frechet_distance(real, synthetic)
    people, unit = np.unique(patient, return_inverse=True)
    drawn_r = resample(len(people), seed=_branch(seed, 0), replicates=replicates)[:, unit]
    drawn_s = resample(len(synthetic), seed=_branch(seed, 1), replicates=replicates)
    replicated = np.array([frechet_distance(real, synthetic, r, s) for r, s in zip(drawn_r, drawn_s, strict=True)])
    spread = percentile_interval(value, replicated + (value - replicated.mean()), len(people), level)
    return spread._replace(low=max(0.0, spread.low))


def subsample(features: np.ndarray, n: int, *, seed: int) -> np.ndarray:
    """n rows drawn without replacement, (n, d): brings the larger of two sets to the size of the smaller before `fid`."""
    if n > len(features):
        raise ValueError(f"{n} of {len(features)} rows asked for; ask for at most {len(features)}")
    return features[np.sort(generator(seed).choice(len(features), n, replace=False))]


def kid(
    real: np.ndarray,
    synthetic: np.ndarray,
    *,
    patient: np.ndarray,
    seed: int,
    replicates: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """Unbiased MMD^2 with kernel (x.y / d + 1)^3, with a bootstrap interval over patients; may be negative. n = real patients.

    Pairs of rows of one real patient are left out, as pairs of a row with itself are: they are not independent, and with one
    image per patient the value is the usual one. The same holds for a unit that is drawn twice in a resample.
    Source: Binkowski et al., arXiv:1801.01401, eq. 4; Gretton et al. (2012), lemma 6.
    """
    people, unit = np.unique(patient, return_inverse=True)
    blocks = _Blocks.of(real, unit, synthetic)
    drawn_r = resample(len(people), seed=_branch(seed, 0), replicates=replicates)
    drawn_s = resample(len(synthetic), seed=_branch(seed, 1), replicates=replicates)
    value = blocks.mmd2(np.ones((1, len(people))), np.ones((1, len(synthetic))))
    return percentile_interval(float(value[0]), blocks.mmd2(drawn_r, drawn_s), len(people), level)


def kid_subsets(
    real: np.ndarray, synthetic: np.ndarray, *, seed: int, size: int = 100, subsets: int = 100, level: float = 0.95
) -> Estimate:
    """The customary KID: mean over random subsets of `size` rows, with the central `level` share of the subset values.

    That spread belongs to a subset of `size` rows and is no confidence interval of KID (see `kid`); it is given because other
    papers give it. n = rows of the smaller set. Raises ValueError when a side has fewer than `size` rows.
    """
    if min(len(real), len(synthetic)) < size:
        raise ValueError(
            f"subsets of {size} rows from {len(real)} real and {len(synthetic)} synthetic rows; choose a smaller size"
        )
    values = []
    for s in range(subsets):
        a, b = subsample(real, size, seed=_branch(seed, 2 * s)), subsample(synthetic, size, seed=_branch(seed, 2 * s + 1))
        values.append(kid_value(a, b, np.arange(size)))
    return percentile_interval(float(np.mean(values)), np.array(values), min(len(real), len(synthetic)), level)


def kid_value(real: np.ndarray, synthetic: np.ndarray, patient: np.ndarray, synthetic_patient: np.ndarray | None = None) -> float:
    """The value of `kid` alone; synthetic_patient (n_s,) where the second set also has several rows of one patient."""
    unit = np.unique(patient, return_inverse=True)[1]
    other = np.arange(len(synthetic)) if synthetic_patient is None else np.unique(synthetic_patient, return_inverse=True)[1]
    blocks = _Blocks.of(real, unit, synthetic, other)
    return float(blocks.mmd2(np.ones((1, unit.max() + 1)), np.ones((1, other.max() + 1)))[0])


class Floor(NamedTuple):
    """What two patient-disjoint halves of one real set score against each other; `rows` a side. fid is None below 2 d rows.

    Each Estimate is the mean over random splits with the central 95 % of the splits; n = patients.
    """

    fid: Estimate | None
    kid: Estimate
    rows: int


def real_floor(features: np.ndarray, patient: np.ndarray, *, seed: int, splits: int = 50, rows: int | None = None) -> Floor:
    """FID and KID between random patient-disjoint halves of one real set, `rows` rows a side (default: as many as there are).

    features (n, d), patient (n,). A synthetic set is as good as real patients when it scores no more than this at the same n.
    """
    halves = patient_halves(patient, seed=seed, splits=splits, n=rows)
    size, people = len(halves[0][0]), len(np.unique(patient))
    kids = [kid_value(features[a], features[b], patient[a], patient[b]) for a, b in halves]
    fids = None
    if size >= 2 * features.shape[1]:
        fids = _over_splits([frechet_distance(features[a], features[b]) for a, b in halves], people)
    return Floor(fids, _over_splits(kids, people), size)


class Fidelity(NamedTuple):
    """Synthetic against real beside the real-real floor, everything at `rows` rows a side. n = real patients.

    fid_ratio = FID / mean FID of the floor, 1 for perfect samples. kid_ratio = KID / upper end of the floor's KID, because
    KID is unbiased: its floor is 0 on average and only its spread is a yardstick. FID entries are None below 2 d rows,
    kid_ratio where few splits all fell below 0.
    """

    fid: Estimate | None
    fid_floor: Estimate | None
    fid_ratio: Estimate | None
    kid: Estimate
    kid_floor: Estimate
    kid_ratio: Estimate | None
    rows: int

    def table(self) -> list[dict[str, Any]]:
        """One tidy row per number: metric, value, low, high, n, rows."""
        parts = {k: e for k, e in self._asdict().items() if isinstance(e, Estimate)}
        return [{"metric": k, **e._asdict(), "rows": self.rows} for k, e in parts.items()]


def fidelity(real: np.ndarray, patient: np.ndarray, synthetic: np.ndarray, *, seed: int, splits: int = 50) -> Fidelity:
    """FID and KID of a synthetic set against the halves of a real set, and of those halves against each other.

    For each random patient split (A, B): floor = d(A, B); score = (d(A, S) + d(B, S')) / 2 with S and S' drawn from the
    synthetic set; all four sets have the same number of rows, min(half of the real set, synthetic set), so that the bias of
    FID is the same on both sides of the ratio. Where real patients have several similar images, independent perfect samples
    score slightly below 1. Intervals of scores, and of their ratios to a floor that is taken as given, are 95 % bootstrap
    intervals over patients and synthetic images (those of `fid` and `kid`, moved to the value): how much random halves differ
    says less than that. The floor's own low and high are the central 95 % over splits, a yardstick and no interval.
    Arrays: real (n, d), patient (n,), synthetic (m, d).
    """
    most = len(patient_halves(patient, seed=seed, splits=splits)[0][0])
    rows = min(most, len(synthetic))
    floor = real_floor(real, patient, seed=seed, splits=splits, rows=rows)
    fids, kids, people = [], [], floor.kid.n
    for s, halves in enumerate(patient_halves(patient, seed=seed, splits=splits, n=rows)):
        drawn = [subsample(synthetic, rows, seed=_branch(seed, 2 * s + h)) for h in (0, 1)]
        kids.append(np.mean([kid_value(real[half], d, patient[half]) for half, d in zip(halves, drawn, strict=True)]))
        if floor.fid is not None:
            fids.append(np.mean([frechet_distance(real[half], d) for half, d in zip(halves, drawn, strict=True)]))
    kid_score = _moved(kid(real, synthetic, patient=patient, seed=seed), float(np.mean(kids)))
    kid_ratio = _scaled(kid_score, floor.kid.high) if floor.kid.high > 0 else None
    if floor.fid is None:
        return Fidelity(None, None, None, kid_score, floor.kid, kid_ratio, rows)
    # at equal n, the smaller of the two sets: rather too wide than too narrow
    n = min(len(real), len(synthetic))
    some = subsample(np.arange(len(real)), n, seed=_branch(seed, 0))
    few = subsample(synthetic, n, seed=_branch(seed, 1))
    fid_score = _moved(fid(real[some], few, patient=patient[some], seed=seed)._replace(n=people), float(np.mean(fids)))
    return Fidelity(fid_score, floor.fid, _scaled(fid_score, floor.fid.value), kid_score, floor.kid, kid_ratio, rows)


class _Blocks(NamedTuple):
    """Kernel sums between units (patients or images), so that a bootstrap replicate costs one small matrix product."""

    rr: np.ndarray
    ss: np.ndarray
    rs: np.ndarray
    size_r: np.ndarray
    size_s: np.ndarray

    @classmethod
    def of(cls, real: np.ndarray, unit: np.ndarray, synthetic: np.ndarray, other: np.ndarray | None = None) -> _Blocks:
        real, synthetic = np.asarray(real, dtype=np.float64), np.asarray(synthetic, dtype=np.float64)
        other = np.arange(len(synthetic)) if other is None else other
        size_r, size_s = np.bincount(unit), np.bincount(other)
        if min(len(size_r), len(size_s)) < 2:
            raise ValueError(f"KID over {len(size_r)} real and {len(size_s)} synthetic units; expected at least 2 on each side")
        return cls(
            _sum_blocks(_kernel(real, real), unit, unit),
            _sum_blocks(_kernel(synthetic, synthetic), other, other),
            _sum_blocks(_kernel(real, synthetic), unit, other),
            size_r,
            size_s,
        )

    def mmd2(self, drawn_r: np.ndarray, drawn_s: np.ndarray) -> np.ndarray:
        """MMD^2 per replicate, (replicates,), from counts (replicates, units); pairs inside one unit do not count."""
        cross = ((drawn_r @ self.rs) * drawn_s).sum(1) / ((drawn_r @ self.size_r) * (drawn_s @ self.size_s))
        return _mean_off_diagonal(self.rr, self.size_r, drawn_r) + _mean_off_diagonal(self.ss, self.size_s, drawn_s) - 2 * cross


def _mean_off_diagonal(sums: np.ndarray, size: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    total = ((drawn @ sums) * drawn).sum(1) - drawn**2 @ np.diag(sums)
    return total / ((drawn @ size) ** 2 - drawn**2 @ size**2)


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _sum_blocks(matrix: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    for unit in (rows, columns):
        order = np.argsort(unit, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(unit))[:-1]])
        matrix = np.add.reduceat(matrix[order], starts, axis=0).T
    return matrix


def _moments(features: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and a root R of the covariance, R^T R = S, with min(n, d) rows."""
    x = np.asarray(features, dtype=np.float64)
    if weights is None:
        mean, rows = x.mean(0), (x - x.mean(0)) / np.sqrt(len(x) - 1)
    else:
        x, w = x[weights > 0], weights[weights > 0].astype(np.float64)
        mean = w @ x / w.sum()
        rows = (x - mean) * np.sqrt(w / (w.sum() - 1))[:, None]
    # an orthogonal factor does not change a nuclear norm, so n x d shrinks to d x d without squaring the condition number
    return mean, np.linalg.qr(rows, mode="r") if len(rows) > rows.shape[1] else rows


def _refuse_small(real: int, synthetic: int, d: int) -> None:
    if min(real, synthetic) < 2 * d:
        raise ValueError(
            f"FID of {d}-dimensional features needs at least {2 * d} rows on both sides; found {real} real and {synthetic} "
            "synthetic: report KID instead (kid)"
        )


def _over_splits(values: list[float], patients: int) -> Estimate:
    return percentile_interval(float(np.mean(values)), np.array(values), patients)


def _moved(e: Estimate, value: float) -> Estimate:
    """An interval as wide, around another value; below zero only where it was."""
    by = value - e.value
    return Estimate(value, e.low + by if e.low < 0 else max(0.0, e.low + by), e.high + by, e.n)


def _scaled(e: Estimate, unit: float) -> Estimate:
    return Estimate(e.value / unit, e.low / unit, e.high / unit, e.n)


def _branch(seed: int, index: int) -> int:
    """An independent seed per purpose."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1)[0])

"""How close two sets are in feature space: FID and KID.

All functions take features, float (n, d), from one named extractor (`medsynth.evaluation.features`). The bias of FID and the
spread of both depend on n: what is reported comes from a `Reference`, which compares at one number of rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from medsynth.evaluation.statistics import Estimate, generator, percentile_interval, resample


def frechet_distance(
    real: np.ndarray, synthetic: np.ndarray, weights: np.ndarray | None = None, synthetic_weights: np.ndarray | None = None
) -> float:
    """|mu_r - mu_s|^2 + tr(S_r + S_s - 2 (S_r S_s)^(1/2)) of two feature samples (n_r, d) and (n_s, d), in float64.

    The trace of the root is the nuclear norm of X_r X_s^T / sqrt((n_r - 1)(n_s - 1)), X centred: exact also for n < d, where
    a matrix square root of S_r S_s is not. Optional weights (n,) count how often a row occurs. No guard on n.
    Source: Dowson and Landau (1982); Heusel et al., arXiv:1706.08500, eq. 6.
    """
    mean_r, root_r = _moments(real, weights)
    mean_s, root_s = _moments(synthetic, synthetic_weights)
    if len(mean_r) != len(mean_s):
        raise ValueError(f"features have {len(mean_r)} and {len(mean_s)} dimensions; both sets need the same extractor")
    cross = np.linalg.svd(root_r @ root_s.T, compute_uv=False).sum()
    # the three terms nearly cancel for equal sets; a distance below zero is rounding
    return float(max(0.0, ((mean_r - mean_s) ** 2).sum() + (root_r**2).sum() + (root_s**2).sum() - 2 * cross))


def subsample(features: np.ndarray, n: int, *, seed: int) -> np.ndarray:
    """n rows drawn without replacement, (n, d): brings the larger of two sets to the size of the smaller."""
    if n > len(features):
        raise ValueError(f"{n} of {len(features)} rows asked for; ask for at most {len(features)}")
    return features[np.sort(generator(seed).choice(len(features), n, replace=False))]


def kid(
    real: np.ndarray,
    synthetic: np.ndarray,
    *,
    patient: np.ndarray,
    synthetic_patient: np.ndarray | None = None,
    seed: int,
    replicates: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """Unbiased MMD^2 with kernel (x.y / d + 1)^3, with a bootstrap interval over patients; may be negative. n = real patients.

    Pairs of rows of one patient are left out, as pairs of a row with itself are: they are not independent, and with one image
    per patient the value is the usual one. The same holds for a unit that is drawn twice in a resample. Without
    synthetic_patient (m,) each synthetic row is a unit of its own. The two sets share no patient; see `kid_of_pairs`.
    Source: Binkowski et al., arXiv:1801.01401, eq. 4; Gretton et al. (2012), lemma 6.
    """
    blocks = _Blocks.of(real, _units(patient), synthetic, _units(synthetic_patient, len(synthetic)))
    people, others = len(blocks.size_r), len(blocks.size_s)
    drawn_r = resample(people, seed=branch(seed, 0), replicates=replicates)
    drawn_s = resample(others, seed=branch(seed, 1), replicates=replicates)
    value = blocks.mmd2(np.ones((1, people)), np.ones((1, others)))
    return percentile_interval(float(value[0]), blocks.mmd2(drawn_r, drawn_s), people, level)


def kid_of_pairs(
    real: np.ndarray, made: np.ndarray, *, patient: np.ndarray, seed: int, replicates: int = 1000, level: float = 0.95
) -> Estimate:
    """`kid` of images and of what was made of them, row by row: a patient's rows on both sides are drawn together.

    All pairs inside one patient are left out, those of an image with what was made of it among them.
    """
    blocks = _Blocks.of(real, _units(patient), made, _units(patient))
    sums = blocks.rr + blocks.ss - blocks.rs - blocks.rs.T
    people = len(blocks.size_r)
    value = _mean_off_diagonal(sums, blocks.size_r, np.ones((1, people)))
    drawn = resample(people, seed=branch(seed, 0), replicates=replicates)
    return percentile_interval(float(value[0]), _mean_off_diagonal(sums, blocks.size_r, drawn), people, level)


def kid_value(real: np.ndarray, synthetic: np.ndarray, patient: np.ndarray, synthetic_patient: np.ndarray | None = None) -> float:
    """The value of `kid` alone; synthetic_patient (n_s,) where the second set also has several rows of one patient."""
    blocks = _Blocks.of(real, _units(patient), synthetic, _units(synthetic_patient, len(synthetic)))
    return float(blocks.mmd2(np.ones((1, len(blocks.size_r))), np.ones((1, len(blocks.size_s))))[0])


class _Blocks(NamedTuple):
    """Kernel sums between units (patients or images), so that a bootstrap replicate costs one small matrix product."""

    rr: np.ndarray
    ss: np.ndarray
    rs: np.ndarray
    size_r: np.ndarray
    size_s: np.ndarray

    @classmethod
    def of(cls, real: np.ndarray, unit: np.ndarray, synthetic: np.ndarray, other: np.ndarray) -> _Blocks:
        real, synthetic = np.asarray(real, dtype=np.float64), np.asarray(synthetic, dtype=np.float64)
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
    # of two people a resample may be one alone, who has nobody to be compared with: no number, which the interval leaves out
    with np.errstate(divide="ignore", invalid="ignore"):
        return total / ((drawn @ size) ** 2 - drawn**2 @ size**2)


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _sum_blocks(matrix: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    for unit in (rows, columns):
        order = np.argsort(unit, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(unit))[:-1]])
        matrix = np.add.reduceat(matrix[order], starts, axis=0).T
    return matrix


def _units(patient: np.ndarray | None, rows: int = 0) -> np.ndarray:
    """Numbers 0 ... of the units that rows belong to; without patients, each row is one."""
    return np.arange(rows) if patient is None else np.unique(patient, return_inverse=True)[1]


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


def branch(seed: int, index: int) -> int:
    """An independent seed per purpose."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1)[0])

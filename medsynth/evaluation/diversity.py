"""How much of the real variety a synthetic set holds, and how much of its own: a set that repeats itself, or its training images.

Precision, recall, density and coverage against real images, authenticity against the training images, MS-SSIM and the Vendi score
within a set.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from monai.metrics.regression import compute_ssim_and_cs
from scipy.spatial.distance import cdist
from torch.nn import functional

from medsynth.evaluation.statistics import Estimate, bootstrap_mean, generator, percentile_interval, resample
from medsynth.imageset import ImageSet

# exponents of Wang et al. (2003); with fewer than five scales the first ones are used, renormalised to sum to 1
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW, _SIGMA = 11, 1.5


class Manifold(NamedTuple):
    """Nearest-neighbour scores of a synthetic set; precision and density count synthetic images, the others real patients."""

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def prdc(
    real: np.ndarray,
    synthetic: np.ndarray,
    *,
    patient: np.ndarray,
    seed: int,
    k_pr: int = 3,
    k_dc: int = 5,
    replicates: int = 1000,
) -> Manifold:
    """Precision and recall (k_pr-th neighbour) and density and coverage (k_dc-th neighbour) of features (n, d) and (m, d).

    precision: share of synthetic rows inside the k-ball of some real row; recall: the reverse; density: mean number of real
    k-balls around a synthetic row, over k; coverage: share of real k-balls that hold a synthetic row. Balls are closed and
    a row is not its own neighbour. Intervals resample the rows averaged over (real rows by patient), with the balls fixed.
    Source: Kynkaanniemi et al., arXiv:1904.06991, eq. 1; Naeem et al., arXiv:2002.09797, eq. 4-5.
    Raises ValueError when a set has no k-th neighbour.
    """
    k = max(k_pr, k_dc)
    if min(len(real), len(synthetic)) <= k:
        raise ValueError(f"{len(real)} real and {len(synthetic)} synthetic rows have no {k}-th neighbour; expected more than {k}")
    # not the expansion |x|^2 + |y|^2 - 2xy: a copy is at exactly 0 and must stay inside a ball of radius 0
    cross = cdist(real, synthetic, "sqeuclidean")
    near_real, near_synthetic = _neighbours(real, k), _neighbours(synthetic, k)
    precise = (cross <= near_real[:, k_pr - 1, None]).any(0)
    recalled = (cross <= near_synthetic[None, :, k_pr - 1]).any(1)
    inside = cross <= near_real[:, k_dc - 1, None]
    images = np.arange(len(synthetic))
    options = {"seed": seed, "replicates": replicates}
    return Manifold(
        bootstrap_mean(precise, images, **options)._replace(n_of="images"),
        bootstrap_mean(recalled, patient, **options),
        bootstrap_mean(inside.sum(0) / k_dc, images, **options)._replace(n_of="images"),
        bootstrap_mean(inside.any(1), patient, **options),
    )


def authenticity(training: np.ndarray, synthetic: np.ndarray, *, seed: int, replicates: int = 1000) -> Estimate:
    """Share of synthetic features (m, d) that are farther from their nearest training row (n, d) than that is from its own.

    A copy is not, and of new images of the population about half are. n = images; the interval resamples synthetic rows.
    Source: Alaa et al., arXiv:2102.08921, section 4.3. Raises ValueError for fewer than two training rows.
    """
    if len(training) < 2:
        raise ValueError(f"{len(training)} training row(s); expected at least 2, each with a nearest other")
    cross = cdist(synthetic, training, "sqeuclidean")
    nearest = cross.argmin(1)
    own = _neighbours(training, 1)[:, 0]
    new = cross[np.arange(len(synthetic)), nearest] > own[nearest]
    return bootstrap_mean(new, np.arange(len(synthetic)), seed=seed, replicates=replicates)._replace(n_of="images")


def vendi(features: np.ndarray) -> float:
    """Effective number of different rows of features (n, d): 1 where all are alike, n where no two have anything in common.

    The exponential of the entropy of the eigenvalues of K / n, with the cosine as kernel. It grows with n: compare at equal n.
    Source: Friedman and Dieng, arXiv:2210.02410, definition 3.1. Raises ValueError for a row of zeros.
    """
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    if not (norms > 0).all():
        raise ValueError(f"row {int(np.argmin(norms))} is all zeros, which has no direction; expected features of images")
    unit = (features / norms).astype(np.float64)
    # X X^T and X^T X have the same eigenvalues but for zeros, which add nothing
    gram = unit.T @ unit if unit.shape[1] < len(unit) else unit @ unit.T
    share = np.linalg.eigvalsh(gram).clip(min=0) / len(unit)
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def ms_ssim(images: ImageSet, *, seed: int, pairs: int = 1000, replicates: int = 1000) -> Estimate:
    """Mean MS-SSIM over random pairs of images of different patients: near 1 when a set shows one image again and again.

    2D, channels averaged, pixel range 1 (`range` mapped to [0, 1]). Gaussian window 11, sigma 1.5, no padding; scales as
    `ms_ssim_scales` says. n = patients; the interval resamples patients and weighs a pair by the product of its draws.
    Source: Wang, Simoncelli, Bovik (2003); as a diversity score: Odena et al., arXiv:1610.09585.
    Raises ValueError for volumes (take slices first), below 22 px or with fewer than two patients.
    """
    if images.images.ndim != 4:
        raise ValueError(f"{images.name}: shape {images.images.shape}; MS-SSIM takes 2D images: use slices_of first")
    if images.patients < 2:
        raise ValueError(f"{images.name}: {images.patients} patient(s); MS-SSIM compares images of different patients")
    unit = np.unique(images.patient, return_inverse=True)[1]
    first, second = _cross_pairs(unit, pairs, seed)
    values = ms_ssim_pairs(images.scaled()[first], images.scaled()[second])
    drawn = resample(images.patients, seed=seed, replicates=replicates)
    weights = (drawn[:, unit[first]] * drawn[:, unit[second]]).astype(np.float64)
    with np.errstate(invalid="ignore"):
        replicated = weights @ values / weights.sum(1)
    return percentile_interval(float(values.mean()), replicated, images.patients)


def ms_ssim_scales(spatial: tuple[int, ...]) -> int:
    """Number of scales, 2 to 5: as many halvings as leave the shorter side at least as long as the window of 11."""
    scales = min(len(_SCALE_WEIGHTS), int(np.floor(np.log2(min(spatial) / _WINDOW))) + 1) if min(spatial) >= _WINDOW else 0
    if scales < 2:
        raise ValueError(f"images of {spatial} px; MS-SSIM with a window of {_WINDOW} needs at least {2 * _WINDOW} px")
    return scales


def ms_ssim_pairs(first: np.ndarray, second: np.ndarray, batch: int = 256) -> np.ndarray:
    """MS-SSIM of each pair, float64 (n,); arrays (n, c, h, w) in [-1, 1]. Negative contrast terms count as 0."""
    scales = ms_ssim_scales(first.shape[2:])
    exponents = np.array(_SCALE_WEIGHTS[:scales]) / sum(_SCALE_WEIGHTS[:scales])
    window = {"spatial_dims": 2, "kernel_size": (_WINDOW, _WINDOW), "kernel_sigma": (_SIGMA, _SIGMA)}
    out = []
    for i in range(0, len(first), batch):
        x, y = (torch.from_numpy(np.asarray(a[i : i + batch], dtype=np.float32) / 2 + 0.5) for a in (first, second))
        product = torch.ones(x.shape[:2], dtype=torch.float64)
        # MONAI's own loop over scales refuses images of 88 to 98 px at four of them
        for scale, exponent in enumerate(exponents):
            ssim, contrast = compute_ssim_and_cs(x, y, **window)
            similar = (ssim if scale == scales - 1 else contrast).double().mean((2, 3))
            product = product * similar.clamp(min=0) ** exponent
            x, y = functional.avg_pool2d(x, 2), functional.avg_pool2d(y, 2)
        out.append(product.mean(1).numpy())
    return np.concatenate(out)


def _cross_pairs(unit: np.ndarray, pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (first, second) of different patients; every such pair is equally likely."""
    found: list[np.ndarray] = []
    draw = 0
    while sum(map(len, found)) < pairs:
        candidate = generator(seed, draw).integers(len(unit), size=(pairs, 2))
        found.append(candidate[unit[candidate[:, 0]] != unit[candidate[:, 1]]])
        draw += 1
    chosen = np.concatenate(found)[:pairs]
    return chosen[:, 0], chosen[:, 1]


def _neighbours(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each row to its 1st ... k-th neighbour among the other rows, (n, k)."""
    distances = cdist(x, x, "sqeuclidean")
    np.fill_diagonal(distances, np.inf)
    return np.sort(np.partition(distances, k - 1, axis=1)[:, :k], axis=1)

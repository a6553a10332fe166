"""Scores of stacks: KID on features of whole volumes, MS-SSIM of volumes, and a published "FID" that is none.

Extractors see one plane. What a stack is, plane after plane from base to apex, stays in features that are pooled by thirds of its
depth; a mean over all planes would not tell a stack from the same planes in another order.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from medsynth.evaluation.diversity import ms_ssim_pairs
from medsynth.evaluation.features import Extractor
from medsynth.evaluation.fidelity import kid
from medsynth.evaluation.statistics import Estimate, generator, percentile_interval, resample
from medsynth.imageset import ImageSet

DAUM_FID = "FID variant of Daum et al."  # what `daum_fid` is called in every table and figure
Pooling = Literal["mean", "thirds", "planes"]
_PARTS: dict[Pooling, int] = {"mean": 1, "thirds": 3, "planes": 0}  # 0: each plane is a part
_TISSUE = 0.05  # of the range, brightest pixel: padding that a decoder has drawn is not quite black


def volume_features(images: ImageSet, extractor: Extractor, *, pool: Pooling = "thirds", batch: int = 256) -> np.ndarray:
    """Features of stacks (n, 1, d, h, w): of all planes, averaged over the depth, over its thirds, or joined.

    Empty planes count: how much of the stack a heart fills is part of what it shows. Only sets of equal depth can be compared.
    Raises ValueError for another pooling, 2D images and, with thirds, fewer than three planes.
    """
    if pool not in _PARTS:
        raise ValueError(f"pool {pool!r}; expected one of {tuple(_PARTS)}")
    _check_stacks(images)
    depth = images.spatial[0]
    parts = _PARTS[pool] or depth
    if depth < parts:
        raise ValueError(f"{images.name}: {depth} planes; expected at least {parts} for pool {pool!r}")
    planes = extractor(_planes(images), batch=batch).reshape(len(images), depth, -1)
    return np.concatenate([part.mean(1) for part in np.array_split(planes, parts, axis=1)], axis=1)


def volume_kid(
    real: ImageSet, synthetic: ImageSet, extractor: Extractor, *, seed: int, pool: Pooling = "thirds", replicates: int = 1000
) -> Estimate:
    """`kid` of the features of whole stacks, with a bootstrap interval over the patients of both sets. n = real patients.

    Two stacks of a patient, ED and ES, are one unit. Of drawn stacks each is a patient of its own. For several arms against
    the same real set, compute `volume_features` once and call `kid`. Raises ValueError where the stacks differ in shape.
    """
    if real.spatial != synthetic.spatial:
        raise ValueError(f"{synthetic.name}: stacks of {synthetic.spatial}; expected {real.spatial}, as {real.name}")
    features = [volume_features(images, extractor, pool=pool) for images in (real, synthetic)]
    return kid(*features, patient=real.patient, synthetic_patient=synthetic.patient, seed=seed, replicates=replicates)


def volume_ms_ssim(images: ImageSet, *, seed: int, pairs: int = 300, replicates: int = 1000) -> Estimate:
    """Mean MS-SSIM over random pairs of stacks (n, 1, d, h, w) of different patients: near 1 where a set shows one stack again.

    Of a pair: the mean over the planes that hold tissue in at least one of the two, by `ms_ssim_pairs`; two planes of padding
    would count as equal. `pairs`: at most so many, drawn without replacement. n = patients; the interval is that of
    `medsynth.evaluation.diversity.ms_ssim`. Raises ValueError for 2D images, for one patient, and where no plane holds tissue.
    """
    _check_stacks(images)
    unit = np.unique(images.patient, return_inverse=True)[1]
    first, second = np.triu_indices(len(images), 1)
    apart = np.flatnonzero(unit[first] != unit[second])
    if not len(apart):
        raise ValueError(f"{images.name}: {images.patients} patient(s); MS-SSIM compares stacks of different patients")
    drawn = np.sort(generator(seed, 0).choice(apart, min(pairs, len(apart)), replace=False))
    first, second = first[drawn], second[drawn]
    scaled = images.scaled()[:, 0]
    shows = scaled.max((2, 3)) > 2 * _TISSUE - 1
    pair, plane = np.nonzero(shows[first] | shows[second])
    planes = np.bincount(pair, minlength=len(drawn))
    if not planes.all():
        raise ValueError(f"{images.name}: {(planes == 0).sum()} pairs of stacks without any tissue; leave empty stacks out")
    values = ms_ssim_pairs(scaled[first[pair], plane][:, None], scaled[second[pair], plane][:, None])
    values = np.bincount(pair, values) / planes
    counts = resample(images.patients, seed=seed, replicates=replicates)
    weights = (counts[:, unit[first]] * counts[:, unit[second]]).astype(np.float64)
    with np.errstate(invalid="ignore"):
        replicated = weights @ values / weights.sum(1)
    return percentile_interval(float(values.mean()), replicated, images.patients)


def daum_fid(real: np.ndarray, synthetic: np.ndarray) -> float:
    """What Daum et al. report as FID, of features (n, d) and (m, d); not a Frechet distance, and comparable with theirs alone.

    mean_i |mu_r - mu_s|_i + tr(S_r + S_s - 2 R), R = U sqrt(s) V^T of the singular value decomposition U s V^T of S_r S_s. The
    first term has the mean of the absolute differences where the distance has the sum of their squares; R is no square root of
    S_r S_s unless that is symmetric. Use it only beside `frechet_distance`, under the name DAUM_FID. Their features are
    torchvision's Inception on slices, normalised as for ImageNet.
    Source: the evaluation published with arXiv:2407.16405.
    """
    x, y = np.asarray(real, dtype=np.float64), np.asarray(synthetic, dtype=np.float64)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features have {x.shape[1]} and {y.shape[1]} dimensions; both sets need the same extractor")
    s_x, s_y = np.cov(x.T), np.cov(y.T)
    left, values, right = np.linalg.svd(s_x @ s_y)
    root = (left * np.sqrt(values)) @ right
    return float(np.abs(x.mean(0) - y.mean(0)).mean() + np.trace(s_x + s_y - 2 * root))


def _planes(images: ImageSet) -> ImageSet:
    """All planes as 2D images (n * d, 1, h, w), those of a stack together."""
    rows = np.repeat(np.arange(len(images)), images.spatial[0])
    flat = images.images[:, 0].reshape(-1, 1, *images.spatial[1:])
    spacing = images.spacing and images.spacing[1:]
    orientation = images.orientation and images.orientation[1:]
    fields = {"patient": images.patient[rows], "split": images.split[rows], "attributes": images.attributes.iloc[rows]}
    return replace(images, images=flat, spacing=spacing, orientation=orientation, **fields)


def _check_stacks(images: ImageSet) -> None:
    if images.images.ndim != 5 or images.images.shape[1] != 1:
        raise ValueError(f"{images.name}: shape {images.images.shape}; expected stacks (n, 1, d, h, w)")

"""Restoration without training: what a network has to beat before its training set can matter.

BM3D is not among them: the package of its authors allows non-commercial use only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

from medsynth.imageset import ImageSet


def total_variation(degraded: ImageSet, strength: float) -> ImageSet:
    """The image of least squared distance plus strength * total variation, pixels mapped to [0, 1].

    Source: Rudin, Osher and Fatemi (1992), solved as in Chambolle (2004).
    """
    return _each(degraded, "tv", lambda image: denoise_tv_chambolle(image, weight=_positive(strength)))


def non_local_means(degraded: ImageSet, strength: float) -> ImageSet:
    """Mean over 13x13 neighbours weighted by how alike their 5x5 patches are; strength is the decay h, pixels in [0, 1].

    Source: Buades, Coll and Morel (2005).
    """
    options = {"patch_size": 5, "patch_distance": 6, "fast_mode": True}
    return _each(degraded, "nlm", lambda image: denoise_nl_means(image, h=_positive(strength), **options))


def bicubic(degraded: ImageSet, factor: int) -> ImageSet:
    """Cubic spline interpolation of every factor-th pixel: what a zero-filled image looks like without sinc interpolation.

    Of an image whose k-space was truncated by `factor`, these pixels are the low-resolution image and lose nothing.
    """
    if not isinstance(factor, int) or not 2 <= factor <= min(degraded.spatial):
        raise ValueError(f"{degraded.name}: factor {factor!r} for {degraded.spatial} pixels; expected a whole number from 2 on")
    position = np.stack(np.meshgrid(*(np.arange(side) / factor for side in degraded.spatial), indexing="ij"))
    # a truncated k-space belongs to a periodic image, so what lies beyond the last pixel is the first
    return _each(
        degraded, "bicubic", lambda image: ndimage.map_coordinates(image[::factor, ::factor], position, order=3, mode="grid-wrap")
    )


def best_strength(
    method: Callable[[ImageSet, float], ImageSet], degraded: ImageSet, clean: ImageSet, strengths: Sequence[float]
) -> float:
    """The strength of least mean squared error on pairs that are not tested on: a baseline deserves its best setting."""
    if degraded.images.shape != clean.images.shape or not len(strengths):
        raise ValueError(f"{degraded.name}: {degraded.images.shape} against {clean.images.shape} at strengths {list(strengths)}")
    errors = [np.mean((method(degraded, s).images.astype(np.float64) - clean.images) ** 2) for s in strengths]
    return float(strengths[int(np.argmin(errors))])


def _each(degraded: ImageSet, suffix: str, method: Callable[[np.ndarray], np.ndarray]) -> ImageSet:
    """Apply a method to every 2D image, mapped to [0, 1] and back."""
    if len(degraded.spatial) != 2 or degraded.images.shape[1] != 1:
        raise ValueError(f"{degraded.name}: images are {degraded.images.shape[1:]}; expected 2D slices (1, h, w)")
    low, high = degraded.range
    restored = np.empty_like(degraded.images)
    for i, image in enumerate(degraded.images[:, 0].astype(np.float64)):
        restored[i, 0] = method((image - low) / (high - low)) * (high - low) + low
    return degraded.with_images(np.clip(restored, low, high), name=f"{degraded.name}-{suffix}")


def _positive(strength: float) -> float:
    if not strength > 0:
        raise ValueError(f"strength {strength}; expected a positive number, 1 being the width of the range")
    return strength

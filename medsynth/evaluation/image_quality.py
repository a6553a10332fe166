"""How close an image is to the one it should be: PSNR, SSIM and RMSE, averaged within patients, intervals over patients."""

from __future__ import annotations

import numpy as np
from skimage.metrics import structural_similarity

from medsynth.evaluation.statistics import Estimate, bootstrap_mean
from medsynth.imageset import ImageSet


def psnr(reference: ImageSet, images: ImageSet, *, seed: int, replicates: int = 1000) -> Estimate:
    """Peak signal-to-noise ratio in dB, the peak being the width of the reference's range. n = patients."""
    return bootstrap_mean(image_psnr(reference, images), reference.patient, seed=seed, replicates=replicates)


def rmse(reference: ImageSet, images: ImageSet, *, seed: int, replicates: int = 1000) -> Estimate:
    """Root mean squared error of an image in the reference's unit. n = patients."""
    return bootstrap_mean(image_rmse(reference, images), reference.patient, seed=seed, replicates=replicates)


def ssim(reference: ImageSet, images: ImageSet, *, seed: int, replicates: int = 1000) -> Estimate:
    """Structural similarity (Wang et al. 2004: Gaussian window, sigma 1.5), one value per image or volume. n = patients."""
    return bootstrap_mean(image_ssim(reference, images), reference.patient, seed=seed, replicates=replicates)


def image_psnr(reference: ImageSet, images: ImageSet) -> np.ndarray:
    """`psnr` of each image, (n,); at most that of a mean squared error of 1e-20."""
    width = reference.range[1] - reference.range[0]
    return 10 * np.log10(width**2 / np.maximum(_squared_error(reference, images), 1e-20))


def image_rmse(reference: ImageSet, images: ImageSet) -> np.ndarray:
    """`rmse` of each image, (n,)."""
    return np.sqrt(_squared_error(reference, images))


def image_ssim(reference: ImageSet, images: ImageSet) -> np.ndarray:
    """`ssim` of each image or volume, (n,)."""
    _check(reference, images)
    width = reference.range[1] - reference.range[0]
    options = {"data_range": width, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    values = [
        structural_similarity(a[0].astype(np.float64), b[0].astype(np.float64), **options)
        for a, b in zip(reference.images, images.images, strict=True)
    ]
    return np.array(values)


def _squared_error(reference: ImageSet, images: ImageSet) -> np.ndarray:
    _check(reference, images)
    difference = reference.images.astype(np.float64) - images.images
    return (difference**2).reshape(len(reference), -1).mean(1)


def _check(reference: ImageSet, images: ImageSet) -> None:
    if reference.images.shape != images.images.shape or reference.unit != images.unit:
        raise ValueError(
            f"{images.name}: shape {images.images.shape} in {images.unit}; "
            f"expected {reference.images.shape} in {reference.unit}, as {reference.name}"
        )

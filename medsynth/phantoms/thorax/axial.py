"""Axial slices of one patient in the values of CT (HU), T2-like MR and PET (SUV)."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from medsynth.phantoms.thorax.anatomy import Anatomy, cage
from medsynth.phantoms.thorax.pathology import Lesion
from medsynth.phantoms.thorax.sampling import noise_slice
from medsynth.phantoms.thorax.scanner import Scan, Scanner
from medsynth.phantoms.thorax.surfaces import fraction
from medsynth.phantoms.thorax.tissues import TISSUES, layers


def ct(anatomy: Anatomy, lesion: Lesion, scan: Scan, scanner: Scanner, size: int, rng: np.random.Generator) -> np.ndarray:
    """Axial CT (size, size) in HU, clipped to -1000..400."""
    pixel = scanner.field["ct"] / size
    x, y = _grid(anatomy, scan, size, pixel)
    image, body = _paint(anatomy, lesion, x, y, pixel, "hu", -1000.0, scan.enhanced)
    _table(image, x, y, anatomy, scanner, lesion.level, pixel)
    image = ndimage.gaussian_filter(image, max(0.3, scanner.blur / pixel), mode="nearest")
    # quantum noise: band-passed by the reconstruction kernel, strongest in the middle of a large body
    white = rng.standard_normal((size, size)).astype(np.float32)
    grain = white - 0.75 * ndimage.gaussian_filter(white, 1.6, truncate=2.5)
    radius = np.hypot(x / anatomy.width, y / anatomy.depth)
    girth = (anatomy.width * anatomy.depth / (135 * 82)) * (1 + anatomy.fat / 60)
    sigma = 9 * scanner.noise * girth * (size / 64) ** 0.6 * (0.45 + 0.75 * np.exp(-((radius / 0.95) ** 2)))
    image += sigma * grain * (0.5 + 0.5 * body)
    streak = ndimage.gaussian_filter1d(rng.standard_normal((size, size)).astype(np.float32), 5 * size / 64, axis=1)
    image += 6 * scanner.noise * girth * streak * body
    return np.clip(image * scan.gain_hu + scan.offset_hu, -1000, 400).astype(np.float32)


def mr(anatomy: Anatomy, lesion: Lesion, scan: Scan, scanner: Scanner, size: int, rng: np.random.Generator) -> np.ndarray:
    """T2-like axial slice (size, size) in 0..1 with Rician noise and a coil's bias field."""
    pixel = scanner.field["mr"] / size
    x, y = _grid(anatomy, scan, size, pixel)
    image, _ = _paint(anatomy, lesion, x, y, pixel, "t2", 0.01, 0.0)
    image = ndimage.gaussian_filter(image, max(0.35, 1.1 * scanner.blur / pixel), mode="nearest")
    tilt = rng.uniform(-0.25, 0.25, 4)
    bias = 1 + tilt[0] * x / 190 + tilt[1] * y / 130 + tilt[2] * x * y / 25000 + 0.22 * (np.abs(y) / 120) ** 2
    image *= (0.78 * scan.gain) * bias
    # ghosts of the beating heart along the phase direction
    ghost = np.roll(image, size // 5, axis=0) + np.roll(image, -(size // 5), axis=0)
    image += 0.02 * ghost * (np.abs(x - 15) < 75)
    noise = 0.02 * scanner.noise * (size / 64) ** 0.5 * rng.standard_normal((2, size, size))
    return np.clip(np.hypot(image + noise[0], noise[1]), 0, 1).astype(np.float32)


def pet(anatomy: Anatomy, lesion: Lesion, scan: Scan, scanner: Scanner, size: int, rng: np.random.Generator) -> np.ndarray:
    """Axial PET (size, size) in SUV, clipped to 0..10: blurred uptake with noise that grows with the counts."""
    pixel = scanner.field["pet"] / size
    x, y = _grid(anatomy, scan, size, pixel)
    image, _ = _paint(anatomy, lesion, x, y, pixel, "suv", 0.0, 0.0, uptake=scan.uptake)
    resolution = 2.6 + scanner.blur
    image = ndimage.gaussian_filter(image, resolution / pixel, mode="nearest")
    counts = 26.0 / scanner.noise**2
    noisy = rng.poisson(np.clip(image, 0, None) * counts * 0.5).astype(np.float32) / (counts * 0.5)
    image += ndimage.gaussian_filter(noisy - image, max(0.8, 0.9 * resolution / pixel), mode="nearest")
    return np.clip(image * scan.gain, 0, 10).astype(np.float32)


def _grid(anatomy: Anatomy, scan: Scan, size: int, pixel: float) -> tuple[np.ndarray, np.ndarray]:
    u = ((np.arange(size) - (size - 1) / 2) * pixel / scan.scale).astype(np.float32)
    c, s = np.float32(np.cos(scan.tilt)), np.float32(np.sin(scan.tilt))
    ux, uy = (
        u[None, :] + np.float32(scan.shift[0] + anatomy.habit[0]),
        u[:, None] + np.float32(scan.shift[1] + anatomy.habit[1] + 8),
    )
    return c * ux + s * uy, c * uy - s * ux


def _paint(
    anatomy: Anatomy, lesion: Lesion, x: np.ndarray, y: np.ndarray, pixel: float, key: str, empty: float, enhanced: float,
    uptake: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Composite the layers in one modality's values; also the share of body in each pixel."""
    level = lesion.level
    coarse = noise_slice(anatomy, 26, x, y, level, octave=0)
    fine = noise_slice(anatomy, 7, x, y, level, octave=1)
    finest = noise_slice(anatomy, 3.1, x, y, level, octave=2)
    fine = 0.7 * fine + 0.7 * finest
    image = np.full(x.shape, empty, np.float32)
    body = None
    for name, share in layers(anatomy, lesion, x, y, np.float32(level), pixel, coarse, fine):
        if body is None:
            body = share
        tissue = TISSUES[name]
        value = getattr(tissue, key)
        if key == "hu":
            if name == "lung":
                value = -1000 * anatomy.aeration - 45 + 28 * y / anatomy.depth
            elif name in ("cortex", "marrow"):
                value *= anatomy.bone
            value = value + enhanced * tissue.enhances
            grain = 1.0
        elif key == "t2":
            grain = 0.0022
        else:
            value = value * (uptake if name == "myocardium" else 1)
            grain = 0.004 * value
        if tissue.coarse or tissue.fine:
            value = value + grain * (tissue.coarse * coarse + tissue.fine * fine)
        image += share * (value - image)
    return image, body


def _table(
    image: np.ndarray, x: np.ndarray, y: np.ndarray, anatomy: Anatomy, scanner: Scanner, level: float, pixel: float
) -> None:
    _, half, middle = cage(anatomy, np.float32(level))
    back = float(middle + half) + 28 + 0.55 * anatomy.fat + 0.4 * anatomy.muscle + scanner.table
    top = y - back + (x / 34) ** 2 * 0.55 * scanner.curvature
    shell = fraction(np.abs(top) - 1.4, pixel) * (np.abs(x) < 205)
    low = fraction(np.abs(top - 34 + (np.abs(x) / 205) ** 3 * 30) - 1.2, pixel) * (np.abs(x) < 205)
    foam = fraction(np.abs(top - 17 + (np.abs(x) / 205) ** 3 * 15) - 15, pixel) * (np.abs(x) < 205)
    for share, value in ((foam, -930.0), (shell, -250.0), (low, -350.0)):
        image += share * (value - image) * (image < -700)

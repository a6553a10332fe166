"""What a cheaper or faster scan would have shown: low-dose CT, MR with less of k-space, PET with fewer counts.

Every function takes a set of square 2D images and gives the same rows, patients and attributes with degraded pixels of the same
shape, unit and range, so that the two sets are training pairs. The noise of a row depends on (seed, row) alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medsynth.downstream.fanbeam import FanBeam, Projector, attenuation, hounsfield, projector
from medsynth.imageset import ImageSet

RECONSTRUCTIONS = ("sart", "fbp")
_CHUNK = 16  # rows projected at once: bounds memory, does not change a number


@dataclass(frozen=True, kw_only=True)
class LowDose:
    """Dose and reconstruction of a low-dose CT; the defaults are those of Shi et al., arXiv:2301.06604."""

    photons: float = 1e4  # that leave towards one detector cell in one view
    electronic: float = 0.0  # standard deviation of the read-out noise, in counts; the source has none
    reconstruction: str = "sart"  # or "fbp", which is 50 times faster
    window: str = "ramp"  # of "fbp"
    iterations: int = 20  # of "sart"
    subsets: int = 20  # of views in "sart"

    def __post_init__(self) -> None:
        if not (np.isfinite(self.photons) and self.photons >= 1):
            raise ValueError(f"low-dose CT: {self.photons} photons per ray; expected a number from 1 on")
        if not (np.isfinite(self.electronic) and self.electronic >= 0):
            raise ValueError(f"low-dose CT: electronic noise of {self.electronic} counts; expected 0 or more")
        if self.reconstruction not in RECONSTRUCTIONS:
            raise ValueError(f"low-dose CT: reconstruction {self.reconstruction!r}; expected one of {RECONSTRUCTIONS}")


def scanner_of(images: ImageSet, *, views: int | None = None) -> FanBeam:
    """The published fan-beam scanner for the size of these images, and for their field of view where their spacing is known."""
    height, width = _square(images)
    field = None if images.spacing is None else images.spacing[0] * height
    return FanBeam().for_size(width, field_mm=field, views=views)


def low_dose_ct(images: ImageSet, *, seed: int, dose: LowDose | None = None, geometry: FanBeam | None = None) -> ImageSet:
    """CT slices in HU, projected, measured with quantum and electronic noise, and reconstructed at the same size.

    Counts N ~ Poisson(photons * exp(-P)) + Normal(0, electronic^2), at least 1; P_noisy = -log(N / photons). geometry: by
    default `scanner_of(images)`. Pixels outside the disc that every view sees become air in "fbp".
    Raises ValueError for images that are not square 2D slices in HU, or whose spacing is not the geometry's.
    """
    dose = LowDose() if dose is None else dose
    geometry = scanner_of(images) if geometry is None else geometry
    if images.unit != "HU":
        raise ValueError(f"{images.name}: unit is {images.unit!r}; low-dose CT is simulated from Hounsfield units ('HU')")
    size = _square(images)[0]
    if images.spacing is not None and not np.isclose(images.spacing[0] * size, geometry.field_mm, rtol=0.01):
        raise ValueError(
            f"{images.name}: {size} pixels of {images.spacing[0]:g} mm are not the geometry's field of {geometry.field_mm:g} mm; "
            "use scanner_of(images)"
        )
    scanner = projector(geometry, size)
    degraded = np.empty_like(images.images)
    for start in range(0, len(images), _CHUNK):
        clean = attenuation(images.images[start : start + _CHUNK, 0])
        rays = scanner.forward(clean)
        measured = np.stack([measure(p, dose, np.random.default_rng([seed, start + i])) for i, p in enumerate(rays)])
        degraded[start : start + _CHUNK, 0] = hounsfield(_reconstruct(scanner, measured, dose))
    return images.with_images(np.clip(degraded, *images.range), name=f"{images.name}-low-dose")


def measure(line_integrals: np.ndarray, dose: LowDose, rng: np.random.Generator) -> np.ndarray:
    """Line integrals as a detector reports them at this dose: log-transformed noisy counts, float32."""
    counts = rng.poisson(dose.photons * np.exp(-line_integrals.astype(np.float64))).astype(np.float64)
    counts += dose.electronic * rng.standard_normal(counts.shape)
    # a cell that saw nothing has no logarithm; the source sets it to one photon
    return -np.log(np.maximum(counts, 1) / dose.photons).astype(np.float32)


def truncate_kspace(images: ImageSet, *, factor: int) -> ImageSet:
    """MR slices of which only the central 1/factor of k-space along each axis was measured, zero-filled to the same size.

    The result is the low-resolution image, interpolated by sinc to the full grid; the magnitude is shown. A baseline that
    wants the small image takes every factor-th pixel (`medsynth.downstream.baselines.bicubic`).
    Raises ValueError for volumes, or a factor that is not a whole number from 2 on.
    """
    size = _square(images)[0]
    spectrum = np.fft.fft2(images.images.astype(np.float64)) * kspace_mask(size, factor)
    shown = np.abs(np.fft.ifft2(spectrum))
    return images.with_images(np.clip(shown, *images.range), name=f"{images.name}-kspace-{factor}")


def kspace_mask(size: int, factor: int) -> np.ndarray:
    """The measured part of k-space, float64 (size, size) of 0 and 1 in the order of numpy.fft; symmetric about frequency zero."""
    if not isinstance(factor, int) or not 2 <= factor <= size // 2:
        raise ValueError(f"k-space: factor {factor!r} for {size} pixels; expected a whole number from 2 to {size // 2}")
    # symmetric, so that a real image stays real
    kept = (np.abs(np.fft.fftfreq(size)) < 0.5 / factor).astype(np.float64)
    return kept[:, None] * kept[None, :]


def fewer_counts(images: ImageSet, *, counts: float, seed: int) -> ImageSet:
    """PET slices with Poisson noise: counts is the mean number of counts of a pixel whose value is 1.

    Half the time or activity is half the counts. The noise is drawn in the image, so it is white, where a scanner's is
    correlated by reconstruction. Raises ValueError where the range goes below zero or counts is not positive.
    """
    _square(images)
    if images.range[0] < 0:
        raise ValueError(f"{images.name}: range starts at {images.range[0]:g}; counts need values from 0 on")
    if not (np.isfinite(counts) and counts > 0):
        raise ValueError(f"{images.name}: {counts} counts per pixel; expected a positive number")
    expected = images.images.astype(np.float64) * counts
    noisy = np.array([np.random.default_rng([seed, i]).poisson(e) for i, e in enumerate(expected)]).reshape(expected.shape)
    return images.with_images(np.clip(noisy / counts, *images.range), name=f"{images.name}-low-count")


def _reconstruct(scanner: Projector, measured: np.ndarray, dose: LowDose) -> np.ndarray:
    if dose.reconstruction == "fbp":
        return scanner.fbp(measured, window=dose.window)
    return scanner.sart(measured, iterations=dose.iterations, subsets=dose.subsets)


def _square(images: ImageSet) -> tuple[int, int]:
    if len(images.spatial) != 2 or images.spatial[0] != images.spatial[1] or images.images.shape[1] != 1:
        raise ValueError(f"{images.name}: images are {images.images.shape[1:]}; expected square 2D slices (1, n, n)")
    return images.spatial

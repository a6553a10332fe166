"""Restoration tasks: what a cheaper or faster scan loses, and what brings some of it back without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from medsynth.downstream.baselines import best_strength, bicubic, non_local_means, total_variation
from medsynth.downstream.degrade import LowDose, fewer_counts, low_dose_ct, scanner_of, truncate_kspace
from medsynth.downstream.restoration_nets import CPU_SIZES, Consistency, FanBeamConsistency, KSpaceConsistency, RestorationConfig
from medsynth.imageset import ImageSet
from medsynth.language.words import did_you_mean

_STRENGTHS = (0.01, 0.02, 0.04, 0.06, 0.08, 0.12, 0.16, 0.24)  # of TV and NLM, from too weak to too strong for these tasks
_VIEWS = 48  # of the reduced geometry that steers an unrolled network


class Task(Protocol):
    """One degradation of images of one modality."""

    modality: ClassVar[str]

    def degrade(self, images: ImageSet, *, seed: int) -> ImageSet:
        """The images as the lesser scan shows them; row i of one is row i of the other."""
        ...

    def classical(self, degraded: ImageSet, *, tuned_on: tuple[ImageSet, ImageSet]) -> dict[str, ImageSet]:
        """Restorations without training, by name; their strengths are chosen on (degraded, clean) images of other people."""
        ...

    def consistency(self, images: ImageSet) -> Consistency:
        """What the measurement knows of an image, for unrolled networks. Raises ValueError where nothing is linear."""
        ...


@dataclass(frozen=True)
class LowDoseCT:
    """CT at `photons` per ray, with electronic noise of `electronic` counts, reconstructed by filtered back-projection."""

    photons: float
    electronic: float = 5.0
    modality: ClassVar[str] = "ct"

    def degrade(self, images: ImageSet, *, seed: int) -> ImageSet:
        """Fan-beam projections with noise, and back."""
        dose = LowDose(photons=self.photons, electronic=self.electronic, reconstruction="fbp")
        return low_dose_ct(images, seed=seed, dose=dose)

    def classical(self, degraded: ImageSet, *, tuned_on: tuple[ImageSet, ImageSet]) -> dict[str, ImageSet]:
        """Total variation and non-local means."""
        return _denoised(degraded, tuned_on)

    def consistency(self, images: ImageSet) -> Consistency:
        """Projection along few views, and its transpose."""
        return FanBeamConsistency(scanner_of(images, views=_VIEWS), images.spatial[0])


@dataclass(frozen=True)
class SuperResolutionMR:
    """MR of which the central 1/factor of k-space along each axis was measured."""

    factor: int
    modality: ClassVar[str] = "mr"

    def degrade(self, images: ImageSet, *, seed: int) -> ImageSet:
        """Truncated k-space, zero-filled; nothing is drawn, so `seed` changes nothing."""
        return truncate_kspace(images, factor=self.factor)

    def classical(self, degraded: ImageSet, *, tuned_on: tuple[ImageSet, ImageSet]) -> dict[str, ImageSet]:
        """Zero filling, which is sinc interpolation, and bicubic interpolation."""
        filled = degraded.with_images(degraded.images, name=f"{degraded.name}-zero-filled")
        return {"zero-filled": filled, "bicubic": bicubic(degraded, self.factor)}

    def consistency(self, images: ImageSet) -> Consistency:
        """Projection on the measured frequencies."""
        return KSpaceConsistency(images.spatial[0], self.factor)


@dataclass(frozen=True)
class LowCountPET:
    """PET with `counts` expected counts in a pixel of SUV 1."""

    counts: float
    modality: ClassVar[str] = "pet"

    def degrade(self, images: ImageSet, *, seed: int) -> ImageSet:
        """Poisson noise."""
        return fewer_counts(images, counts=self.counts, seed=seed)

    def classical(self, degraded: ImageSet, *, tuned_on: tuple[ImageSet, ImageSet]) -> dict[str, ImageSet]:
        """Total variation and non-local means."""
        return _denoised(degraded, tuned_on)

    def consistency(self, images: ImageSet) -> Consistency:
        """Raises ValueError: noise is drawn in the image itself."""
        raise ValueError("low-count PET: there is no measurement between image and noise; choose a network other than 'unrolled'")


TASKS: dict[str, Task] = {
    # a third of what the source has for pixels an eighth as wide, of which one here averages many
    "ct-low-dose": LowDoseCT(photons=3e3),
    "mr-x2": SuperResolutionMR(2),
    "mr-x4": SuperResolutionMR(4),
    "pet-low-count": LowCountPET(counts=5),
}


def task(name: str) -> Task:
    """One of TASKS; ValueError for another name."""
    if name not in TASKS:
        raise ValueError(f"restoration task {name!r}; expected one of {', '.join(TASKS)}")
    return TASKS[name]


def experiment(name: str) -> tuple[Task, RestorationConfig]:
    """What "ct-low-dose/redcnn" means: a task and a network at the size for a CPU; ValueError names the closest valid name."""
    # what is drawn in the image itself has no measurement to unroll
    known = {f"{t}/{n}": (t, n) for t in TASKS for n in CPU_SIZES if (t, n) != ("pet-low-count", "unrolled")}
    if name not in known:
        raise ValueError(f"restoration experiment {name!r} does not exist; {did_you_mean(name, known)}")
    job, net = known[name]
    return TASKS[job], CPU_SIZES[net]


def _denoised(degraded: ImageSet, tuned_on: tuple[ImageSet, ImageSet]) -> dict[str, ImageSet]:
    methods = {"TV": total_variation, "NLM": non_local_means}
    return {name: f(degraded, best_strength(f, *tuned_on, _STRENGTHS)) for name, f in methods.items()}

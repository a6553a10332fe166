"""A synthetic version of a private set: a generator trained on it, its draws, and what of them a gate accepts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from medsynth.config import DenoiserConfig, DiffusionConfig, SamplingConfig
from medsynth.data.imagefile import as_read
from medsynth.diffusion.cached import cached_latents
from medsynth.diffusion.detail import train_refiner
from medsynth.diffusion.guidance import Autoguided
from medsynth.diffusion.refine import refine
from medsynth.diffusion.sample import sample_images
from medsynth.diffusion.train import train_denoiser
from medsynth.imageset import ImageSet
from medsynth.ledger import Ledger
from medsynth.models.autoencoder import Autoencoder
from medsynth.models.conditioning import THORAX, thorax_condition
from medsynth.models.denoiser import Denoiser
from medsynth.models.refiner import Refiner
from medsynth.models.weights import reconstruct, shipped_autoencoder, shipped_denoiser
from medsynth.privacy.gate.feature_maps import feature_map
from medsynth.privacy.gate.gate import Gate, stored_gate
from medsynth.privacy.gate.refill import ATTEMPTS, Filled, sample_until
from medsynth.privacy.gate.thresholds import kind_of, threshold_for

# The guide's; a generator that is trained for no more is not guided: between two that have hardly left the public weights lies
# the way to the private set, and further on lies no better one
GUIDE_STEPS = 300
REFINER_SHARE = 0.4  # of the denoiser's training steps, for the refiner
_NEXT_ATTEMPT = 1_000_003  # added to the seed of the noise when a refused image is drawn again


@dataclass(frozen=True)
class Generator:
    """A denoiser and a refiner trained on a private set, and how they are asked for images in its unit, range and size."""

    model: Denoiser | Autoguided
    autoencoder: Autoencoder
    refiner: Refiner
    private: ImageSet
    modality: str
    diffusion: DiffusionConfig
    sampling: SamplingConfig

    def wishes(self, images: int, *, seed: int) -> Wishes:
        """What is asked for: conditions and attributes of private rows, drawn with replacement."""
        rows = np.random.default_rng([seed, images]).integers(len(self.private), size=images)
        condition = thorax_condition(self.private, self.modality)
        return Wishes(condition[rows], self.private.attributes.iloc[rows].reset_index(drop=True))

    def draw(self, wishes: Wishes, rows: np.ndarray | None = None, attempt: int = 0) -> ImageSet:
        """One image for each wish, or for the given rows of them, as its file would hold it; another attempt is other noise."""
        rows = np.arange(len(wishes.attributes)) if rows is None else rows
        sampling = replace(self.sampling, seed=self.sampling.seed + _NEXT_ATTEMPT * attempt)
        decoded = sample_images(
            self.model, self.autoencoder, wishes.condition[rows], like=self.private, diffusion=self.diffusion, sampling=sampling,
            attributes=wishes.attributes.iloc[rows], name=f"{self.private.name}-synthetic", draw=cached_latents,
        )  # fmt: skip
        return as_read(refine(self.refiner, decoded, seed=sampling.seed))

    def reconstructed(self) -> ImageSet:
        """The private images after autoencoder and refiner: the best that any generator of these latents can look."""
        return refine(self.refiner, reconstruct(self.autoencoder, self.private), seed=self.sampling.seed)

    def draw_accepted(self, wishes: Wishes, gate: Gate, *, attempts: int = ATTEMPTS) -> Filled:
        """One image for each wish that the gate accepts, refused ones drawn again; the first attempt is `draw(wishes)`."""
        return sample_until(len(wishes.attributes), lambda rows, k: self.draw(wishes, rows, k), gate, attempts=attempts)


@dataclass(frozen=True)
class Wishes:
    """Conditions (n, k) float32 with NaN for missing, and the attributes (n rows) they stand for."""

    condition: np.ndarray
    attributes: pd.DataFrame


def train_generator(
    private: ImageSet,
    modality: str,
    *,
    denoiser: DenoiserConfig,
    diffusion: DiffusionConfig,
    sampling: SamplingConfig,
    ledger: Ledger,
    seed: int = 0,
) -> Generator:
    """A generator trained on `private`, from the shipped public weights where they have this architecture, and guided.

    Training, and the attributes that are asked for, leave lines in the ledger (mechanism "none").
    """
    kind = "phantom" if private.data_licence == "generated" else "real"
    start = kind if shipped_denoiser(kind).config == denoiser else None
    autoencoder, condition = shipped_autoencoder(), thorax_condition(private, modality)
    diffusion, sampling = replace(diffusion, seed=seed), replace(sampling, seed=seed)

    def trained(steps: int) -> Denoiser:
        model, _ = train_denoiser(
            private, condition, THORAX, autoencoder=autoencoder, denoiser=denoiser,
            diffusion=replace(diffusion, steps=steps), ledger=ledger, start=start,
        )  # fmt: skip
        return model

    model: Denoiser | Autoguided = trained(diffusion.steps)
    if diffusion.steps > GUIDE_STEPS:
        # guidance brings back the fine structure that epsilon scaling is for
        model, sampling = Autoguided(model, trained(GUIDE_STEPS)).eval(), replace(sampling, epsilon_scale=1.0)
    refiner = train_refiner(private, steps=max(1, round(REFINER_SHARE * diffusion.steps)), ledger=ledger, seed=seed)
    ledger.use_private(private, stage="draw conditions", output="finding, age, sex, BMI of sampled rows")
    return Generator(model, autoencoder, refiner, private, modality, diffusion, sampling)


def private_gate(private: ImageSet, modality: str, *, ledger: Ledger, phi: str = "encoder") -> Gate:
    """The gate around a private set at the threshold that ships for such images; its features stay in the cache.

    A line in the ledger. Of people only radiographs were free to find a threshold on, so theirs stands in for CT, MR and PET
    (`threshold_for`).
    """
    measured_in = feature_map(phi)
    threshold = threshold_for(measured_in, len(private.spatial), kind_of(private, modality))
    ledger.use_private(private, stage="gate", output="synthetic images accepted")
    return stored_gate(private, measured_in, threshold.tau)

"""A synthetic version of a private set: a generator trained on it, its draws, and what of them a gate accepts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from medsynth.config import DenoiserConfig, DiffusionConfig, SamplingConfig
from medsynth.diffusion.cached import cached_latents
from medsynth.diffusion.refine import refine
from medsynth.diffusion.sample import sample_images
from medsynth.diffusion.train import train_denoiser
from medsynth.imageset import ImageSet
from medsynth.models.autoencoder import Autoencoder
from medsynth.models.autoguided import WEAK_SHARE, Autoguided
from medsynth.models.conditioning import THORAX, thorax_condition
from medsynth.models.denoiser import Denoiser
from medsynth.models.refiner import Refiner
from medsynth.models.shipped import reconstruct, shipped_autoencoder, shipped_denoiser, shipped_refiner
from medsynth.privacy.distances import Threshold, calibrated, feature_map
from medsynth.privacy.gate import Gate
from medsynth.privacy.ledger import Ledger
from medsynth.privacy.refill import Filled, sample_until

_NEXT_ATTEMPT = 1_000_003  # added to the seed of the noise when a refused image is drawn again


@dataclass(frozen=True)
class Generator:
    """A denoiser trained on a private set, and how it is asked for images in that set's unit, range and size."""

    model: Autoguided
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
        """One image for each wish, or for the given rows of them; another attempt is other noise. Kept in the cache."""
        rows = np.arange(len(wishes.attributes)) if rows is None else rows
        # guidance brings back the fine structure that epsilon scaling is for
        sampling = replace(self.sampling, seed=self.sampling.seed + _NEXT_ATTEMPT * attempt, epsilon_scale=1.0)
        decoded = sample_images(
            self.model, self.autoencoder, wishes.condition[rows], like=self.private, diffusion=self.diffusion, sampling=sampling,
            attributes=wishes.attributes.iloc[rows], name=f"{self.private.name}-synthetic", draw=cached_latents,
        )  # fmt: skip
        return refine(self.refiner, decoded, seed=sampling.seed)

    def draw_accepted(self, wishes: Wishes, gate: Gate, *, attempts: int = 10) -> Filled:
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
    """A generator trained on `private` from the shipped public weights, if they have this architecture, and its weak guide.

    Training, and the attributes that are asked for, leave lines in the ledger (mechanism "none").
    """
    kind = "phantom" if private.data_licence == "generated" else "real"
    start = kind if shipped_denoiser(kind).config == denoiser else None
    autoencoder, condition = shipped_autoencoder(), thorax_condition(private, modality)
    diffusion = replace(diffusion, seed=seed)

    def trained(steps: int) -> Denoiser:
        model, _ = train_denoiser(
            private, condition, THORAX, autoencoder=autoencoder, denoiser=denoiser,
            diffusion=replace(diffusion, steps=steps), ledger=ledger, start=start,
        )  # fmt: skip
        return model

    model = Autoguided(trained(diffusion.steps), trained(max(1, round(WEAK_SHARE * diffusion.steps))))
    ledger.use_private(private, stage="draw conditions", output="finding, age, sex, BMI of sampled rows")
    return Generator(model.eval(), autoencoder, shipped_refiner(), private, modality, diffusion, replace(sampling, seed=seed))


def through_latents(images: ImageSet, *, seed: int) -> ImageSet:
    """The images after the shipped autoencoder and refiner: the best that any generator of these latents can look."""
    return refine(shipped_refiner(), reconstruct(shipped_autoencoder(), images), seed=seed)


def private_gate(private: ImageSet, modality: str, *, ledger: Ledger, phi: str = "encoder") -> Gate:
    """The gate around a private set at the threshold that comes with the package for such images; a line in the ledger."""
    threshold = shipped_threshold(private, modality, phi)
    ledger.use_private(private, stage="gate", output="synthetic images accepted")
    return Gate(private, feature_map(phi), threshold.tau)


def shipped_threshold(private: ImageSet, modality: str, phi: str = "encoder") -> Threshold:
    """The threshold found on other people's images of a modality: on phantoms for phantoms, else the one that holds for all."""
    key = f"phantom-{modality}" if private.data_licence == "generated" else modality
    threshold = calibrated(phi, len(private.spatial), modality=key)
    if threshold is None:
        raise ValueError(f"{phi}: no calibrated threshold for {key}; make one with `python -m medsynth.pretrain.thresholds`")
    return threshold

"""Images drawn once more: through an autoencoder, half-way to another one's latents, and into noise and back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from medsynth.diffusion.generator import Generator
from medsynth.diffusion.refine import refine
from medsynth.diffusion.sample import even_timesteps, guided_prediction, initial_noise
from medsynth.diffusion.schedule import solver
from medsynth.imageset import ImageSet
from medsynth.models.denoiser import Denoiser
from medsynth.models.weights import decoded, latents_of
from medsynth.settings.config import DiffusionConfig, SamplingConfig

GENERATOR_LIKE = "generator-like"  # the kind: what a copy looks like that a generator has drawn
WAYS = ("autoencoder", "in between", "diffusion")
# at strength 1: passes through the autoencoder; share of a stranger's latents; share of the noise schedule
_PASSES, _OTHER, _NOISED = 4, 0.5, 0.6


def redrawn_by_chance(images: ImageSet, strength: float, *, generator: Generator, seed: int, strangers: ImageSet) -> ImageSet:
    """Each image in one of WAYS, by chance; "in between" goes towards an image of `strangers`.

    generator: one that knows nothing of these images, such as `Generator.shipped`. Raises ValueError for a strength that is not
    above 0 and at most 1.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength {strength}; expected a number above 0, up to 1")
    rng = np.random.default_rng([seed, len(images)])
    chosen, other = rng.integers(len(WAYS), size=len(images)), rng.integers(len(strangers), size=len(images))
    autoencoder = generator.autoencoder
    latents, beside = (latents_of(autoencoder, torch.from_numpy(x.scaled())) for x in (images, strangers.select(other)))
    passed, mixed, noised = (torch.from_numpy(np.flatnonzero(chosen == k)) for k in range(len(WAYS)))
    for _ in range(1, round(_PASSES * strength)) if len(passed) else ():
        latents[passed] = latents_of(autoencoder, decoded(autoencoder, latents[passed]))
    latents[mixed] = torch.lerp(latents[mixed], beside[mixed], _OTHER * strength)
    if len(noised):
        asked = torch.full((len(noised), len(generator.names)), torch.nan)
        settings = generator.diffusion, replace(generator.sampling, seed=seed)
        latents[noised] = vary_by_diffusion(generator.model, latents[noised], asked, _NOISED * strength, *settings)
    made = images.unscaled(decoded(autoencoder, latents).numpy())
    drawn = images.with_images(made, name=f"{images.name}/{GENERATOR_LIKE} {strength:g}")
    return drawn if generator.refiner is None else refine(generator.refiner, drawn, seed=seed)


@torch.no_grad()
def vary_by_diffusion(
    model: Denoiser, latents: torch.Tensor, condition: torch.Tensor, strength: float, diffusion: DiffusionConfig,
    sampling: SamplingConfig,
) -> torch.Tensor:  # fmt: skip
    """Latents (n, c, *spatial) with noise up to `strength` of the schedule, denoised by the steps of DPM-Solver++ below it."""
    device, batches = next(model.parameters()).device, []
    for first in range(0, len(latents), sampling.batch):
        clean, asked = (x[first : first + sampling.batch].to(device) for x in (latents, condition))
        scheduler = solver(diffusion, "dpm", sampling.steps)
        last = max(1, round(strength * (diffusion.timesteps - 1)))
        below = (t for t in even_timesteps(scheduler.alphas_cumprod, sampling.steps) if t < last)
        scheduler.set_timesteps(timesteps=[last, *below])
        noise = initial_noise(clean.shape, sampling.seed, first).to(device)
        noisy = scheduler.add_noise(clean, noise, torch.full((len(clean),), last, device=device))
        for t in scheduler.timesteps:
            noisy = scheduler.step(guided_prediction(model, noisy, t, asked, sampling.guidance), t, noisy).prev_sample
        batches.append(noisy.cpu())
    return torch.cat(batches)

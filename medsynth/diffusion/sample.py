"""Drawing images: noise to latents by a guided solver, latents to pixels by the autoencoder."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from medsynth.diffusion.guidance import Autoguided
from medsynth.diffusion.schedule import solver
from medsynth.imageset import ImageSet
from medsynth.models.autoencoder import Autoencoder
from medsynth.models.denoiser import Denoiser
from medsynth.models.weights import decoded
from medsynth.settings.config import DiffusionConfig, SamplingConfig
from medsynth.training import autocast, progress, step_generator

# Noise over signal of the steps in between, chosen on phantoms. Structure of a whole image is decided near the upper end; the
# shipped decoder was trained to see through more noise than the lower one leaves.
NOISIEST, CLEANEST = 30.0, 0.03


@torch.no_grad()
def guided_prediction(
    model: Denoiser | Autoguided, noisy: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor, guidance: float
) -> torch.Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): null + guidance * (conditional - null); 1 costs one evaluation."""
    times = timestep.to(noisy.device).expand(len(noisy))
    with autocast(noisy.device):
        if guidance == 1:
            return model(noisy, times, condition).to(noisy.dtype)
        null = torch.full_like(condition, torch.nan)
        both = model(torch.cat([noisy, noisy]), torch.cat([times, times]), torch.cat([condition, null]))
    conditional, unconditional = both.to(noisy.dtype).chunk(2)
    return unconditional + guidance * (conditional - unconditional)


def less_noise(prediction: torch.Tensor, noisy: torch.Tensor, signal: torch.Tensor, scale: float, kind: str) -> torch.Tensor:
    """The prediction that takes `scale` times less of `noisy` for noise (epsilon scaling, Ning et al., arXiv:2308.15321).

    signal: share of signal power; kind: "epsilon" or "v_prediction". A solver feeds the network with its own errors, which it
    never saw in training, and ends with too little fine structure; what is not taken for noise stays.
    """
    if kind == "epsilon":
        return prediction / scale
    clean, noise = signal.sqrt(), (1 - signal).sqrt()
    return ((clean * prediction + noise * noisy) / scale - noise * noisy) / clean


def initial_noise(shape: tuple[int, ...], seed: int, first: int) -> torch.Tensor:
    """Noise of images first, first + 1, ...: each a function of (seed, its index), so the batch size changes nothing."""
    return torch.stack([torch.randn(shape[1:], generator=step_generator(seed, first + i)) for i in range(shape[0])])


def even_timesteps(signal: torch.Tensor, steps: int) -> list[int]:
    """Pure noise, then timesteps at even distances of the log signal-to-noise ratio, as in DPM-Solver (Lu et al. 2022).

    signal: share of signal power per timestep, falling. Steps at even distances of time would be few where images take shape.
    """
    noise = ((1 - signal) / signal).sqrt().log().double()
    aimed = torch.linspace(math.log(NOISIEST), math.log(CLEANEST), steps - 1, dtype=torch.float64)
    times = [len(signal) - 1]
    for i, t in enumerate(torch.searchsorted(noise, aimed).tolist()):
        # each its own, with enough of them left for those that follow
        times.append(max(min(t, times[-1] - 1), steps - 2 - i))
    return times


@torch.no_grad()
def sample_latents(
    model: Denoiser | Autoguided,
    condition: torch.Tensor,
    spatial: tuple[int, ...],
    diffusion: DiffusionConfig,
    sampling: SamplingConfig,
) -> torch.Tensor:
    """Latents (n, c, *spatial), one per row of `condition` (n, k). Raises ValueError unless `epsilon_scale` is positive."""
    if not sampling.epsilon_scale > 0:
        raise ValueError(f"epsilon_scale {sampling.epsilon_scale}; expected a positive number: 1 samples as predicted")
    device = next(model.parameters()).device
    batches = []
    starts = range(0, len(condition), sampling.batch)
    for b in progress(0, len(starts), "sampling"):
        asked = condition[starts[b] : starts[b] + sampling.batch].to(device)
        scheduler = solver(diffusion, sampling.solver, sampling.steps)
        if sampling.solver == "dpm":
            scheduler.set_timesteps(timesteps=even_timesteps(scheduler.alphas_cumprod, sampling.steps))
        noisy = initial_noise((len(asked), model.latent_channels, *spatial), sampling.seed, starts[b]).to(device)
        noisy = noisy * scheduler.init_noise_sigma
        # only "ddpm" draws noise on the way; again one generator per image
        generators = [step_generator(sampling.seed, -1 - starts[b] - i) for i in range(len(asked))]
        for t in scheduler.timesteps:
            prediction = guided_prediction(model, noisy, t, asked, sampling.guidance)
            signal = scheduler.alphas_cumprod[t].to(device)
            # in nearly pure noise a little noise more would outweigh the signal
            if sampling.epsilon_scale != 1 and signal > 1 / (1 + NOISIEST**2):
                prediction = less_noise(prediction, noisy, signal, sampling.epsilon_scale, diffusion.prediction)
            extra = {"generator": generators} if sampling.solver == "ddpm" else {}
            noisy = scheduler.step(prediction, t, noisy, **extra).prev_sample
        batches.append(noisy.cpu())
    return torch.cat(batches)


@torch.no_grad()
def sample_images(
    model: Denoiser | Autoguided,
    autoencoder: Autoencoder,
    condition: np.ndarray,
    *,
    like: ImageSet,
    diffusion: DiffusionConfig,
    sampling: SamplingConfig,
    attributes: pd.DataFrame | None = None,
    name: str = "synthetic",
    draw: Callable[..., torch.Tensor] = sample_latents,
) -> ImageSet:
    """Synthetic images in the unit, range and shape of `like`; every image is a patient of its own.

    The set has the model's role: samples of a model trained on private images are private until something clears them. It is of
    people if the model learned from scans of people.
    draw: `sample_latents`, or what keeps its result.
    """
    spatial = tuple(s // autoencoder.factor for s in like.spatial[-2:])
    depth = like.spatial[:-2]
    latents = draw(model, torch.from_numpy(condition), (*depth, *spatial), diffusion, sampling)
    scaled = decoded(autoencoder, latents, batch=sampling.batch)
    table = pd.DataFrame(index=range(len(condition))) if attributes is None else attributes.reset_index(drop=True)
    return ImageSet(
        images=like.unscaled(scaled.numpy()),
        patient=np.arange(len(condition)),
        unit=like.unit,
        range=like.range,
        name=name,
        role=model.role,
        spacing=like.spacing,
        modality=like.modality,
        origin="synthetic",
        people=model.people or like.people,
        orientation=like.orientation,
        attributes=table,
    )

"""Training of a latent diffusion model on cached latents."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import nn

from medsynth.diffusion.schedule import noise_schedule, objective
from medsynth.imageset import ImageSet
from medsynth.models.autoencoder import Autoencoder
from medsynth.models.conditioning import drop, families
from medsynth.models.denoiser import Denoiser
from medsynth.models.refiner import Refiner
from medsynth.models.weights import latents_of, shipped_denoiser, shipped_hash, shipped_words
from medsynth.settings.config import DenoiserConfig, DiffusionConfig
from medsynth.store.dependencies import code_hash
from medsynth.store.hashes import bytes_hash, tensors_hash
from medsynth.store.runs import Tensors, Trained, Workspace, load_or_train
from medsynth.training import autocast, best_device, captured, compiled, described, fit

if TYPE_CHECKING:
    from medsynth.ledger import Ledger


COMPILE_FROM = 10_000  # steps: a large denoiser earns back what compiling costs after some 3,000, a small one after more


def diffusion_loss(
    model: Denoiser,
    latents: torch.Tensor,
    condition: torch.Tensor,
    config: DiffusionConfig,
    step: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Mean squared error of the predicted noise or velocity on one batch that (seed, step) determine."""
    device = latents.device
    schedule = _schedule(config)
    rows = torch.randint(len(latents), (config.batch,), generator=generator, device=device)
    clean = latents[rows]
    noise = torch.randn(clean.shape, generator=generator, device=device)
    # stratified timesteps: the batch covers the whole schedule, which lowers the variance of the gradient
    offsets = torch.rand(config.batch, generator=generator, device=device)
    strata = (torch.arange(config.batch, device=device) + offsets) / config.batch
    timesteps = (strata * config.timesteps).long().clamp(max=config.timesteps - 1)
    asked = condition[rows]
    if config.label_dropout:
        asked = drop(asked, generator, row=config.label_dropout, entry=config.label_dropout, apart=model.apart)
    noisy, target = objective(schedule, clean, noise, timesteps)
    with autocast(device):
        # squared errors are float32 in there
        return nn.functional.mse_loss(model(noisy, timesteps, asked), target)


@functools.lru_cache(maxsize=1)
def _schedule(config: DiffusionConfig) -> DDPMScheduler:
    """Kept from step to step: making one and sending it to a GPU takes as long as half a small network's step."""
    return noise_schedule(config)


def train_latents(
    model: Denoiser | Refiner,
    latents: torch.Tensor,
    condition: torch.Tensor,
    config: DiffusionConfig,
    workspace: Workspace | None = None,
) -> tuple[Tensors, dict[str, float]]:
    """Train `model` on latents (n, c, *spatial) and what it is given beside them, (n, ...); (EMA weights, metrics)."""
    device = next(model.parameters()).device
    latents, condition = latents.to(device), condition.to(device)
    accelerated = compiled if config.steps >= COMPILE_FROM else captured
    with accelerated(model):
        return fit(
            model,
            lambda step, generator: diffusion_loss(model, latents, condition, config, step, generator),
            steps=config.steps,
            learning_rate=config.learning_rate,
            warmup=config.warmup,
            ema=config.ema,
            seed=config.seed,
            checkpoint_every=config.checkpoint_every,
            workspace=workspace,
            label="denoiser",
        )


def train_denoiser(
    images: ImageSet,
    condition: np.ndarray,
    names: tuple[str, ...],
    *,
    autoencoder: Autoencoder,
    denoiser: DenoiserConfig,
    diffusion: DiffusionConfig,
    ledger: Ledger,
    start: str | None = None,
) -> tuple[Denoiser, Trained]:
    """A denoiser trained on `images`, from shipped weights ("phantom" or "real") or scratch; found again if trained before.

    condition: (n, k) float32, NaN = missing, columns `names`: those of the shipped weights, in their order, and any others.
    Sentences and features mean what the weights beside the shipped ones know of them; anything else changes nothing at first.
    Private images leave a line in the ledger (mechanism "none").
    Raises ValueError when the shipped weights have another architecture or names that are not among these.
    """
    if condition.shape != (len(images), len(names)):
        raise ValueError(f"{images.name}: condition has shape {condition.shape}; expected ({len(images)}, {len(names)})")
    public = shipped_denoiser(start) if start else None
    if public and (public.config, public.names) != (denoiser, tuple(n for n in names if n in public.names)):
        raise ValueError(f"{images.name}: the shipped weights have another architecture or other conditions; train from scratch")
    config = {"denoiser": denoiser, "diffusion": diffusion, "names": list(names), "start": start}
    inputs = {
        "images": images.content_hash, "condition": bytes_hash(condition.tobytes()),
        "autoencoder": tensors_hash(autoencoder.state_dict()), "code": code_hash(__name__),
    }  # fmt: skip
    words = shipped_words(start)[0] if start and len(families(names)) > 1 else {}
    if start:
        inputs["start"] = shipped_hash(f"denoiser_{start}")
    if words:
        inputs["words"] = shipped_hash(f"words_{start}")
    device = best_device()

    def train(workspace: Workspace) -> tuple[Tensors, dict[str, float]]:
        torch.manual_seed(diffusion.seed)
        model = Denoiser(denoiser, names, autoencoder.latent_channels)
        if public:
            model.begin_as(public)
            model.load_state_dict({k: words.get(k, v) for k, v in model.state_dict().items()})
        latents = latents_of(autoencoder, torch.from_numpy(images.scaled()))
        return train_latents(model.to(device), latents, torch.from_numpy(condition), diffusion, workspace)

    ledger.read(images, stage="train denoiser", output=f"weights of {images.name}")
    trained = load_or_train("denoiser", config, inputs, train, device=described(device))
    model = Denoiser(denoiser, names, autoencoder.latent_channels)
    model.load_state_dict(trained.weights)
    model.role, model.people = images.role, images.people or start == "real"
    return model.to(device).eval(), trained

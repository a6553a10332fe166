"""Latents drawn once: found again when what drew them is the same, so a changed metric does not sample anew."""

from __future__ import annotations

from dataclasses import replace

import torch

from medsynth.diffusion.guidance import Autoguided
from medsynth.diffusion.sample import sample_latents
from medsynth.models.denoiser import Denoiser
from medsynth.settings.config import DiffusionConfig, SamplingConfig
from medsynth.store.dependencies import code_hash
from medsynth.store.hashes import tensors_hash
from medsynth.store.runs import load_or_train
from medsynth.training import described


def cached_latents(
    model: Denoiser | Autoguided,
    condition: torch.Tensor,
    spatial: tuple[int, ...],
    diffusion: DiffusionConfig,
    sampling: SamplingConfig,
) -> torch.Tensor:
    """`sample_latents`, kept in the cache under weights and code of the model, the condition, the settings and the sampler."""
    device = next(model.parameters()).device
    # how many are drawn, the condition says
    config = {"denoiser": model.config, "diffusion": diffusion, "sampling": replace(sampling, images=0), "spatial": spatial}
    inputs = {
        "weights": tensors_hash(model.state_dict()), "condition": tensors_hash({"condition": condition}),
        "code": code_hash("medsynth.diffusion.sample"), "network": code_hash(type(model).__module__),
    }  # fmt: skip
    kept = load_or_train(
        "samples", config, inputs,
        lambda _: ({"latents": sample_latents(model, condition, spatial, diffusion, sampling)}, {}), device=described(device),
    )  # fmt: skip
    return kept.weights["latents"]

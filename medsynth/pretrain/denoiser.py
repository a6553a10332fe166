"""Training of the public denoiser of thorax latents."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from medsynth.config import DenoiserConfig, DiffusionConfig
from medsynth.diffusion.train import train_latents
from medsynth.evaluation.features import require_public
from medsynth.models.autoencoder import Autoencoder
from medsynth.models.conditioning import THORAX, conditions_of
from medsynth.models.denoiser import Denoiser
from medsynth.models.weights import latents_of
from medsynth.pretrain.public import PublicSet
from medsynth.runs import Tensors, Workspace

REAL_REPEATS = 3  # real images are few; each counts this often


def pretrain_denoiser(
    sets: dict[str, PublicSet],
    autoencoder: Autoencoder,
    denoiser: DenoiserConfig,
    diffusion: DiffusionConfig,
    *,
    device: str,
    start: Denoiser | None = None,
    workspace: Workspace | None = None,
) -> tuple[Tensors, dict[str, Any]]:
    """(EMA weights, metrics) of one denoiser for all thorax modalities, told apart by their condition; from `start` if given."""
    require_public({k: s.images for k, s in sets.items()})
    torch.manual_seed(diffusion.seed)
    model = Denoiser(denoiser, THORAX, autoencoder.latent_channels)
    if start is not None:
        model.load_state_dict(start.state_dict())
    model = model.to(device)
    autoencoder = autoencoder.to(device)
    latents, conditions = [], []
    for s in sets.values():
        if not s.thorax:
            continue
        repeats = REAL_REPEATS if s.images.people else 1
        latents += [latents_of(autoencoder, torch.from_numpy(s.images.scaled()), batch=512)] * repeats
        conditions += [conditions_of(s.images, THORAX)] * repeats
    return train_latents(model, torch.cat(latents), torch.from_numpy(np.concatenate(conditions)), diffusion, workspace)

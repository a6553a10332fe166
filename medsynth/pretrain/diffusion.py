"""Training of the public diffusion models: the denoisers of thorax and of heart latents, and the refiner of detail."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from medsynth.diffusion.conditions import conditions_of
from medsynth.diffusion.detail import CROP, lost_detail
from medsynth.diffusion.train import train_latents
from medsynth.evaluation.features import require_public
from medsynth.language.sentences import TEXT
from medsynth.language.vocabulary import HEART
from medsynth.models.autoencoder import Autoencoder
from medsynth.models.conditioning import FEATURES, THORAX
from medsynth.models.denoiser import Denoiser
from medsynth.models.refiner import Refiner
from medsynth.models.weights import latents_of
from medsynth.pretrain.public import PublicSet
from medsynth.settings.config import DenoiserConfig, DiffusionConfig, RefinerConfig
from medsynth.store.runs import Tensors, Workspace
from medsynth.training import step_generator

REAL_REPEATS = 3  # real images are few; each counts this often
# of phantom thoraces, each time with other noise in the latent; more of those whose images lose most of their detail
REFINER_REPEATS = {"ct": 4, "mr": 4, "xray": 2, "pet": 2}


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
    """(EMA weights, metrics) of one denoiser for all sets, told apart by their condition; from `start` if given.

    Of thoraces in every modality, or of hearts as stacks, as `denoiser` has two or three dimensions.
    """
    require_public({k: s.images for k, s in sets.items()})
    torch.manual_seed(diffusion.seed)
    names = THORAX if denoiser.spatial_dims == 2 else HEART
    model = Denoiser(denoiser, names, autoencoder.latent_channels)
    if start is not None:
        model.load_state_dict(start.state_dict())
    model = model.to(device)
    autoencoder = autoencoder.to(device)
    latents, conditions = [], []
    for s in sets.values():
        if s.thorax != (denoiser.spatial_dims == 2):
            continue
        repeats = REAL_REPEATS if s.images.people else 1
        latents += [latents_of(autoencoder, torch.from_numpy(s.images.scaled()), batch=512)] * repeats
        conditions += [conditions_of(s.images, names)] * repeats
    return train_latents(model, torch.cat(latents), torch.from_numpy(np.concatenate(conditions)), diffusion, workspace)


def pretrain_words(
    sets: dict[str, PublicSet],
    autoencoder: Autoencoder,
    public: Denoiser,
    diffusion: DiffusionConfig,
    *,
    device: str,
    workspace: Workspace | None = None,
) -> tuple[Tensors, dict[str, Any]]:
    """(EMA weights, metrics) of what a public denoiser needs to be asked by sentences and by features; it stays as it is.

    Each image is told four times: by everything, by its features alone, and twice by its sentence alone. Whoever is not asked
    by either draws what the public denoiser draws.
    """
    require_public({k: s.images for k, s in sets.items()})
    torch.manual_seed(diffusion.seed)
    names = (*public.names, *FEATURES, *TEXT)
    model = Denoiser(public.config, names, autoencoder.latent_channels)
    model.begin_as(public)
    own = set(model.state_dict()) - set(public.state_dict())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in own)
    autoencoder = autoencoder.to(device)
    latents = [latents_of(autoencoder, torch.from_numpy(s.images.scaled()), batch=512) for s in sets.values()]
    told = np.concatenate([conditions_of(s.images, names) for s in sets.values()])
    alone = {family: np.where(np.isin(names, family), told, np.nan).astype(np.float32) for family in (TEXT, FEATURES)}
    conditions = torch.from_numpy(np.concatenate([told, alone[FEATURES], alone[TEXT], alone[TEXT]]))
    model.apart = ()  # they are apart already
    weights, metrics = train_latents(model.to(device), torch.cat(latents * 4), conditions, diffusion, workspace)
    return {name: value for name, value in weights.items() if name in own}, metrics


def pretrain_refiner(
    sets: dict[str, PublicSet],
    autoencoder: Autoencoder,
    config: RefinerConfig,
    diffusion: DiffusionConfig,
    *,
    device: str,
    workspace: Workspace | None = None,
) -> tuple[Tensors, dict[str, Any]]:
    """(EMA weights, metrics) of a refiner trained on what the autoencoder loses of public images of 64 pixels and more."""
    require_public({k: s.images for k, s in sets.items()})
    autoencoder = autoencoder.to(device)
    views = []
    for i, s in enumerate(sets.values()):
        sharp = torch.from_numpy(s.images.scaled())
        plain = not s.images.people and sharp.shape[-1] == CROP
        for repeat in range(REFINER_REPEATS.get(s.images.modality if s.thorax else "", 1) if plain else 1):
            generator = step_generator(diffusion.seed, -1 - len(sets) * repeat - i)
            views.append(lost_detail(autoencoder, sharp, config.latent_noise, generator))
    given, detail = (torch.cat(parts) for parts in zip(*views, strict=True))
    torch.manual_seed(diffusion.seed)
    return train_latents(Refiner(config).to(device), detail, given, diffusion, workspace)

"""Training of the public refiner."""

from __future__ import annotations

from typing import Any

import torch

from medsynth.config import DiffusionConfig, RefinerConfig
from medsynth.diffusion.train import train_latents
from medsynth.evaluation.features import require_public
from medsynth.models.autoencoder import Autoencoder
from medsynth.models.refiner import Refiner, detail_scale, unshuffled
from medsynth.models.shipped import latents_of
from medsynth.pretrain.autoencoder import CROP
from medsynth.pretrain.public import PublicSet
from medsynth.runs import Tensors, Workspace
from medsynth.training import step_generator

# of phantom thoraces, each time with other noise in the latent; more of those whose images lose most of their detail
REPEATS = {"ct": 4, "mr": 4, "xray": 2, "pet": 2}


def train_refiner(
    sets: dict[str, PublicSet],
    autoencoder: Autoencoder,
    config: RefinerConfig,
    diffusion: DiffusionConfig,
    *,
    device: str,
    workspace: Workspace | None = None,
) -> tuple[Tensors, dict[str, Any]]:
    """(EMA weights, metrics) of a refiner trained on what the autoencoder loses of public images of 64 pixels and more.

    The autoencoder decodes latents with noise, which a generator's have as well (conditioning augmentation, Ho et al.,
    arXiv:2106.15282).
    """
    require_public({k: s.images for k, s in sets.items()})
    autoencoder = autoencoder.to(device)
    given, wanted = [], []
    for i, s in enumerate(sets.values()):
        sharp = torch.from_numpy(s.images.scaled())
        plain = not s.real and sharp.shape[-1] == CROP
        for repeat in range(REPEATS.get(s.modality, 1) if plain else 1):
            generator = step_generator(diffusion.seed, -1 - len(sets) * repeat - i)
            coarse = decoded_with_noise(autoencoder, sharp, config.latent_noise, generator)
            corners = torch.randint(sharp.shape[-1] - CROP + 1, (len(sharp), 2), generator=generator)
            given.append(unshuffled(cut(coarse, corners)))
            wanted.append(unshuffled(cut((sharp - coarse) / detail_scale(coarse), corners)))
    torch.manual_seed(diffusion.seed)
    model = Refiner(config).to(device)
    return train_latents(model, torch.cat(wanted), torch.cat(given), diffusion, workspace)


def cut(images: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
    """A crop of CROP x CROP pixels from each image (n, 1, h, w), its upper left corner at a row and a column (n, 2)."""
    return torch.stack([x[:, t : t + CROP, u : u + CROP] for x, (t, u) in zip(images, corners.tolist(), strict=True)])


@torch.no_grad()
def decoded_with_noise(autoencoder: Autoencoder, images: torch.Tensor, most: float, generator: torch.Generator) -> torch.Tensor:
    """Images (n, 1, h, w) after the autoencoder, with up to `most` of a standardised latent of noise in each latent."""
    latents = latents_of(autoencoder, images, batch=256)
    level = most * torch.rand((len(latents), 1, 1, 1), generator=generator)
    noisy = latents + level * torch.randn(latents.shape, generator=generator)
    device = autoencoder.latent_mean.device
    return torch.cat([autoencoder.decode(chunk.to(device)).cpu() for chunk in noisy.split(256)])

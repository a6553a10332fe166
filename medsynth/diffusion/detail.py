"""The detail that latents have no room for: what it is in given images, and training of the network that draws it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from medsynth.diffusion.train import train_latents
from medsynth.imageset import ImageSet
from medsynth.models.autoencoder import Autoencoder
from medsynth.models.refiner import Refiner, detail_scale, unshuffled
from medsynth.models.weights import decoded, latents_of, shipped_autoencoder, shipped_hash, shipped_refiner
from medsynth.settings.config import DiffusionConfig
from medsynth.store.dependencies import code_hash
from medsynth.store.runs import Tensors, Workspace, load_or_train
from medsynth.training import best_device, described, step_generator

if TYPE_CHECKING:
    from medsynth.ledger import Ledger

CROP = 64  # pixels, at most: the network is convolutional, so crops of larger images teach it larger images
DIFFUSION = DiffusionConfig(steps=6000, batch=16, learning_rate=1e-3, label_dropout=0.0)
_VIEWS = 4  # of every private image, each with other noise in its latent


def train_refiner(images: ImageSet, *, steps: int, ledger: Ledger, seed: int = 0) -> Refiner:
    """The shipped refiner, trained on for `steps` on what the shipped autoencoder loses of `images` (n, 1, h, w); or found again.

    Private images leave a line in the ledger (mechanism "none"). Raises ValueError for volumes.
    """
    if images.images.ndim != 4 or images.images.shape[1] != 1:
        raise ValueError(
            f"{images.name}: train refiner: images {images.images.shape}; expected (n, 1, h, w), the autoencoder's kind"
        )
    diffusion = replace(DIFFUSION, steps=steps, learning_rate=DIFFUSION.learning_rate / 2, warmup=steps // 10, seed=seed)
    refiner, autoencoder = shipped_refiner(), shipped_autoencoder()
    inputs = {"images": images.content_hash, "code": code_hash(__name__)}
    inputs |= {name: shipped_hash(name) for name in ("autoencoder", "refiner")}
    device = best_device()

    def train(workspace: Workspace) -> tuple[Tensors, dict[str, float]]:
        sharp, noise = torch.from_numpy(images.scaled()), refiner.config.latent_noise
        views = [lost_detail(autoencoder, sharp, noise, step_generator(seed, -1 - view)) for view in range(_VIEWS)]
        given, detail = (torch.cat(parts) for parts in zip(*views, strict=True))
        return train_latents(refiner.requires_grad_(True), detail, given, diffusion, workspace)

    ledger.read(images, stage="train refiner", output=f"weights of {images.name}")
    refiner.load_state_dict(load_or_train("refiner", {"diffusion": diffusion}, inputs, train, device=described(device)).weights)
    return refiner.requires_grad_(False).eval()


def lost_detail(
    autoencoder: Autoencoder, images: torch.Tensor, noise: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """(decoded crops of images (n, 1, h, w), the detail they lack in its unit), both (n, 4, h/2, w/2), h and w of the crop.

    The autoencoder decodes latents with up to `noise` in them, which a generator's have as well (conditioning augmentation, Ho et
    al., arXiv:2106.15282).
    """
    coarse = decoded_with_noise(autoencoder, images, noise, generator)
    sides = torch.tensor(images.shape[2:])
    corners = (torch.rand((len(images), 2), generator=generator) * (sides - sides.clamp(max=CROP) + 1)).long()
    return unshuffled(cut(coarse, corners)), unshuffled(cut((images - coarse) / detail_scale(coarse), corners))


def cut(images: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
    """A crop of at most CROP x CROP pixels from each image (n, 1, h, w), its upper left corner at a row and a column (n, 2)."""
    return torch.stack([x[:, t : t + CROP, u : u + CROP] for x, (t, u) in zip(images, corners.tolist(), strict=True)])


@torch.no_grad()
def decoded_with_noise(autoencoder: Autoencoder, images: torch.Tensor, most: float, generator: torch.Generator) -> torch.Tensor:
    """Images (n, 1, h, w) after the autoencoder, with up to `most` of a standardised latent of noise in each latent."""
    latents = latents_of(autoencoder, images, batch=256)
    level = most * torch.rand((len(latents), 1, 1, 1), generator=generator)
    noisy = latents + level * torch.randn(latents.shape, generator=generator)
    return decoded(autoencoder, noisy, batch=256)

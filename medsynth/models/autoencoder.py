"""KL autoencoder: images (n, 1, h, w) to latents (n, c, h/4, w/4) and back; volumes slice by slice."""

from __future__ import annotations

import torch
from monai.networks.nets import AutoencoderKL
from torch import nn

from medsynth.config import AutoencoderConfig

UNSHUFFLE = 2  # working on the pixel-unshuffled image costs a quarter and loses nothing


class Autoencoder(nn.Module):
    """KL autoencoder of latent diffusion (Rombach et al. 2022) on the 2x pixel-unshuffled image.

    `latent_mean`, `latent_std` (per channel, from public data) bring latents to zero mean and unit variance.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.factor = UNSHUFFLE * 2 ** (len(config.channels) - 1)
        self.latent_channels = config.latent_channels
        self.net = AutoencoderKL(
            spatial_dims=2,
            in_channels=UNSHUFFLE**2,
            out_channels=UNSHUFFLE**2,
            channels=config.channels,
            num_res_blocks=config.residual_blocks,
            attention_levels=[False] * len(config.channels),
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
            latent_channels=config.latent_channels,
            norm_num_groups=32,
        )
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_std", torch.ones(config.latent_channels))
        # the CPU's convolutions are several times faster in this layout
        self.to(memory_format=torch.channels_last)

    def posterior(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the latent of images (n, 1, h, w) in [-1, 1], before standardisation."""
        height, width = images.shape[-2:]
        if images.ndim != 4 or images.shape[1] != 1 or height % self.factor or width % self.factor:
            raise ValueError(
                f"autoencoder: images {tuple(images.shape)}; expected (n, 1, h, w), sides a multiple of {self.factor}"
            )
        return self.net.encode(nn.functional.pixel_unshuffle(images, UNSHUFFLE))

    def reconstruct(self, latents: torch.Tensor) -> torch.Tensor:
        """Images of latents that are not standardised."""
        return nn.functional.pixel_shuffle(self.net.decode(latents), UNSHUFFLE)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Standardised latents (n, c, *spatial) of images (n, 1, *spatial) in [-1, 1]; the posterior mean."""
        flat, depth = _slices(images)
        latents = (self.posterior(flat)[0] - self._column(self.latent_mean)) / self._column(self.latent_std)
        return _volumes(latents, depth)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images in [-1, 1] of standardised latents."""
        flat, depth = _slices(latents)
        images = self.reconstruct(flat * self._column(self.latent_std) + self._column(self.latent_mean))
        return _volumes(images.clamp(-1, 1), depth)

    @staticmethod
    def _column(values: torch.Tensor) -> torch.Tensor:
        return values[None, :, None, None]


def _slices(x: torch.Tensor) -> tuple[torch.Tensor, int | None]:
    """(n, c, d, h, w) -> (n * d, c, h, w): MONAI's 3D autoencoder would halve the depth too."""
    if x.ndim == 4:
        return x, None
    return x.transpose(1, 2).flatten(0, 1), x.shape[2]


def _volumes(x: torch.Tensor, depth: int | None) -> torch.Tensor:
    return x if depth is None else x.unflatten(0, (-1, depth)).transpose(1, 2)

"""The detail that latents have no room for: a network that draws it, given the image that an autoencoder decodes."""

from __future__ import annotations

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import nn

from medsynth.models.autoencoder import GROUPS, UNSHUFFLE
from medsynth.settings.config import RefinerConfig

CHANNELS = UNSHUFFLE**2  # of an unshuffled image
_SHARE, _LEAST = 0.5, 0.01  # of local contrast, and the contrast of empty regions: detail has about the size of their product


class Refiner(nn.Module):
    """Predicts the velocity of noisy detail (n, 4, h/2, w/2), timesteps (n,), given coarse images of the detail's shape.

    Detail is sharp minus coarse, divided by `detail_scale`; see `unshuffled`. Super-resolution by cascaded diffusion (Ho et al.,
    arXiv:2106.15282), where the coarse image has all pixels but not all components. It sees no label of what an image shows.
    """

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        self.config = config
        self.latent_channels = CHANNELS
        self.unet = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=2 * CHANNELS,
            out_channels=CHANNELS,
            num_res_blocks=config.residual_blocks,
            channels=config.channels,
            attention_levels=[False] * len(config.channels),
            norm_num_groups=GROUPS,
        )
        # the CPU's convolutions are several times faster in this layout
        self.to(memory_format=torch.channels_last)

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """Prediction of the shape of `noisy`."""
        return self.unet(torch.cat([noisy, coarse], 1), timesteps)


def detail_scale(coarse: torch.Tensor) -> torch.Tensor:
    """How much detail to expect at each pixel of images (n, 1, h, w) in [-1, 1], of their shape: half the local fine contrast.

    What an image loses differs by a factor of eight between PET and MR; in this unit by two and a half, and one network draws it.
    """
    fine = coarse - _mean(coarse, 3)
    return _SHARE * (_mean(fine.square(), 5).sqrt() + _LEAST)


def _mean(images: torch.Tensor, width: int) -> torch.Tensor:
    return nn.functional.avg_pool2d(images, width, stride=1, padding=width // 2, count_include_pad=False)


def unshuffled(images: torch.Tensor) -> torch.Tensor:
    """(n, 1, h, w) -> (n, 4, h/2, w/2). Raises ValueError for sides that are no multiple of 4: the network halves once more."""
    if images.ndim != 4 or images.shape[1] != 1 or any(side % (2 * UNSHUFFLE) for side in images.shape[2:]):
        raise ValueError(f"refiner: images {tuple(images.shape)}; expected (n, 1, h, w), sides a multiple of {2 * UNSHUFFLE}")
    return nn.functional.pixel_unshuffle(images, UNSHUFFLE)


def shuffled(values: torch.Tensor) -> torch.Tensor:
    """The inverse of `unshuffled`."""
    return nn.functional.pixel_shuffle(values, UNSHUFFLE)

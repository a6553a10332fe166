"""KL autoencoder: images (n, 1, h, w) to latents (n, c, h/4, w/4) and back; volumes slice by slice."""

from __future__ import annotations

import torch
from monai.networks.nets import AutoencoderKL
from torch import nn

from medsynth.settings.config import AutoencoderConfig

PADDING = -0.9  # in [-1, 1]: a plane of a stack whose mean is darker holds nobody, as a twentieth of the range is hardly a grey
UNSHUFFLE = 2  # working on the pixel-unshuffled image costs a quarter and loses nothing
GROUPS = 8  # of every group normalisation; with few channels in a group it takes an image's brightness and contrast out


class Autoencoder(nn.Module):
    """KL autoencoder of latent diffusion (Rombach et al. 2022) on the 2x pixel-unshuffled image, around a linear one.

    The networks add to a projection of image patches onto a few components and back (cf. the residual autoencoding of Chen et
    al., arXiv:2410.10733): they start where principal components are and need not learn brightness and edges from noise.
    `latent_mean`, `latent_scale` (per channel, from public data) standardise latents: zero mean, and the square root of what
    their spreads were, so that a denoiser settles coarse channels before the fine ones, as it would in pixels.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
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
            norm_num_groups=GROUPS,
        )
        # overlapping patches, so that a change of one latent leaves no edge
        window = {"kernel_size": 2 * self.factor, "stride": self.factor, "padding": self.factor // 2}
        self.down = nn.Conv2d(1, config.latent_channels, **window)
        self.up = nn.ConvTranspose2d(config.latent_channels, 1, **window)
        for last in (self.net.quant_conv_mu, self.net.quant_conv_log_sigma, self.net.decoder.blocks[-1]):
            for parameter in last.parameters():
                nn.init.zeros_(parameter)
        # a posterior that is nearly a point: training widens it as far as the picture allows
        nn.init.constant_(next(p for n, p in self.net.quant_conv_log_sigma.named_parameters() if n.endswith("bias")), -8.0)
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_scale", torch.ones(config.latent_channels))
        # the CPU's convolutions are several times faster in this layout
        self.to(memory_format=torch.channels_last)

    def posterior(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the latent of images (n, 1, h, w) in [-1, 1], before standardisation."""
        height, width = images.shape[-2:]
        if images.ndim != 4 or images.shape[1] != 1 or height % self.factor or width % self.factor:
            raise ValueError(
                f"autoencoder: images {tuple(images.shape)}; expected (n, 1, h, w), sides a multiple of {self.factor}"
            )
        mean, std = self.net.encode(nn.functional.pixel_unshuffle(images, UNSHUFFLE))
        return mean + self.down(images), std

    def reconstruct(self, latents: torch.Tensor) -> torch.Tensor:
        """Images of latents that are not standardised."""
        return nn.functional.pixel_shuffle(self.net.decode(latents), UNSHUFFLE) + self.up(latents)

    @torch.no_grad()
    def start_from_components(self, images: torch.Tensor) -> None:
        """Set the linear part to the principal components of patches of images (n, 1, h, w) in [-1, 1], not overlapping yet."""
        patches = nn.functional.unfold(images, self.factor, stride=self.factor).transpose(1, 2).flatten(0, 1).double()
        _, vectors = torch.linalg.eigh(torch.cov(patches.T))
        components = vectors.T.flip(0)[: self.latent_channels].float().view(-1, 1, self.factor, self.factor)
        level = images.mean()
        inner = slice(self.factor // 2, self.factor // 2 + self.factor)
        for weight, size in ((self.down.weight, 1 / self.factor), (self.up.weight, self.factor)):
            weight.zero_()
            # latents in units of grey level, not of patch norm
            weight[: len(components), :, inner, inner] = components * size
        self.down.bias.copy_(-level * self.down.weight.sum((1, 2, 3)))
        self.up.bias.fill_(level)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Standardised latents (n, c, *spatial) of images (n, 1, *spatial) in [-1, 1]; the posterior mean."""
        flat, depth = _slices(images)
        latents = (self.posterior(flat)[0] - self._column(self.latent_mean)) / self._column(self.latent_scale)
        return _volumes(latents, depth)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images in [-1, 1] of standardised latents; of stacks, planes whose mean is nearly black are padding and become it."""
        flat, depth = _slices(latents)
        images = self.reconstruct(flat * self._column(self.latent_scale) + self._column(self.latent_mean)).clamp(-1, 1)
        if depth is None:
            return images
        # padding is decoded nearly black, never quite, and in samples with a speck here and there: unmended, such planes alone
        # took the FID of stacks from 7 to 42, and from 10 to 20 where planes with a speck were left
        shown = images.mean((1, 2, 3), keepdim=True) > PADDING
        return _volumes(torch.where(shown, images, -1.0), depth)

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

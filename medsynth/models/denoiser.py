"""The denoising U-Net, 2D and 3D, conditioned on named values, on features of an image, and on text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import nn

from medsynth.language.sentences import TOKENS
from medsynth.models.conditioning import Conditioning, families
from medsynth.models.text import ListeningUNet
from medsynth.settings.config import DenoiserConfig

GROUPS = 8  # of every group normalisation


class Denoiser(nn.Module):
    """Predicts noise or velocity from noisy latents (n, c, *spatial), timesteps (n,) and conditions (n, k) with NaN = missing.

    Raises ValueError for channels in which it would be blind to time and condition.
    """

    def __init__(self, config: DenoiserConfig, names: Sequence[str], latent_channels: int) -> None:
        super().__init__()
        # time and condition are added per channel; with one channel per group, normalisation takes them out again
        if any(c % GROUPS or c == GROUPS for c in config.channels):
            raise ValueError(f"denoiser: channels {config.channels}; expected multiples of {GROUPS} from {2 * GROUPS} on")
        self.config = config
        # of the images it has learned; its samples inherit both
        self.role, self.people = "public", True
        self.latent_channels = latent_channels
        architecture = {
            "spatial_dims": config.spatial_dims, "in_channels": latent_channels, "out_channels": latent_channels,
            "num_res_blocks": config.residual_blocks, "channels": config.channels, "attention_levels": config.attention,
            "num_head_channels": config.head_channels, "norm_num_groups": GROUPS, "num_class_embeds": 1,
        }  # fmt: skip
        columns = families(names)
        # the families of columns that may be asked for without the others
        self.apart = tuple(columns.values())
        if text := columns.get("text"):
            self.unet: DiffusionModelUNet = ListeningUNet(text, len(TOKENS), **architecture)
        else:
            self.unet = DiffusionModelUNet(**architecture)
        # MONAI adds `class_embedding(class_labels)` to the time embedding; ours takes the whole condition instead of a label
        self.unet.class_embedding = Conditioning(names, 4 * config.channels[0])
        if config.spatial_dims == 2:
            # the CPU's convolutions are several times faster in this layout
            self.to(memory_format=torch.channels_last)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the condition's columns."""
        return self.unet.class_embedding.names

    @torch.no_grad()
    def begin_as(self, other: Denoiser) -> None:
        """Take over the weights of a denoiser of fewer conditions: until it is trained, whatever else it is told changes nothing.

        Raises ValueError for another architecture, and where the other's conditions are not among these in their order.
        """
        if (other.config, other.latent_channels) != (self.config, self.latent_channels):
            raise ValueError(f"denoiser: {self.config}; expected the architecture that it begins as, {other.config}")
        if [n for n in self.names if n in other.names] != list(other.names):
            raise ValueError(f"denoiser: conditions {self.names}; expected all those of {other.names}, in their order")
        weights = other.state_dict()
        first = "unet.class_embedding.embed.0.weight"
        mine, theirs = ([c.names[k] for k in c.values] for c in (self.unet.class_embedding, other.unet.class_embedding))
        if mine != theirs:
            # each value is three inputs: itself, whether it is known, and whether it is missing
            columns = torch.tensor([mine.index(n) + len(mine) * part for part in range(3) for n in theirs])
            columns = columns.to(weights[first].device, torch.long)
            weights[first] = weights[first].new_zeros(self.state_dict()[first].shape).index_copy(1, columns, weights[first])
        self.load_state_dict(self.state_dict() | weights)

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Prediction of the shape of `noisy`; sides are zero-padded to what the U-Net can halve."""
        multiple = 2 ** (len(self.config.channels) - 1)
        sides = noisy.shape[2:]
        padding = [p for side in reversed(sides) for p in (0, -side % multiple)]
        padded = nn.functional.pad(noisy, padding) if any(padding) else noisy
        out = self.unet(padded, timesteps, class_labels=condition)
        return out[(..., *(slice(side) for side in sides))] if any(padding) else out

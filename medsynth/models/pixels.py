"""Batches of images in torch, resampled and blurred: what networks see, with gradients and on any device."""

from __future__ import annotations

import torch
from torch.nn import functional

SIDE = 64  # pixels at which the extractor and the gate's maps look


def resize(images: torch.Tensor, side: int = SIDE) -> torch.Tensor:
    """Images (n, 1, h, w) as (n, 1, side, side), bilinear with antialiasing; unchanged if they have that size."""
    if images.shape[2:] == (side, side):
        return images
    return functional.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)


def blurred(images: torch.Tensor, sd: float | torch.Tensor, *, radius: int) -> torch.Tensor:
    """Images (n, c, h, w) through a Gaussian that is cut off at `radius` pixels; border pixels are repeated.

    sd: in pixels, one for all or a tensor that broadcasts against (n, c).
    """
    # SciPy's blur has no gradient, no GPU and one spread for all. Products with banded matrices are eight times as
    # fast in double precision as a convolution
    down, right = (_banded(side, sd, radius, images) for side in images.shape[-2:])
    return down @ images @ right.mT


def _banded(side: int, sd: float | torch.Tensor, radius: int, like: torch.Tensor) -> torch.Tensor:
    """The matrices (*, side, side) that blur a column, for sd of shape (*)."""
    sd = torch.as_tensor(sd, dtype=like.dtype, device=like.device)
    offset = torch.arange(-radius, radius + 1, device=like.device)
    taps = torch.exp(-(offset.to(like.dtype) ** 2) / (2 * sd[..., None] ** 2))
    taps = (taps / taps.sum(-1, keepdim=True))[..., None, :].expand(*sd.shape, side, -1)
    column = (torch.arange(side, device=like.device)[:, None] + offset).clamp(0, side - 1)
    return like.new_zeros(*sd.shape, side, side).scatter_add(-1, column.expand_as(taps), taps)

"""An identity encoder: transformed copies of an image and scans of one patient lie close, different patients far apart."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from medsynth.models.pixels import SIDE, blurred, resize

DIM = 128
PLANES = 8  # of a volume, resampled along the depth; they enter as channels, since all transforms act in the plane
FRAME = 0.9  # share of the field that an upright body's canonical window covers: its rim is what shifts and turns replace
_BOUNDS = (0.5, 0.4, 0.4, 0.4)  # of a pose: rad, log zoom, and shifts in half-widths
_POSE_WIDTHS = (24, 48, 64)
_WIDTHS = (16, 48, 96)  # of 32, 16 and 8 px maps
_REDUCED = 32  # channels of the 8 px map that is read place by place: where a rib crosses is part of who it is
# Gaussian blur before measuring, sd in pixels of the 64: of all alterations noise moved an embedding farthest, and what tells
# people apart lies in coarser structure. Training goes without. Chosen on phantoms of a population and seed of their own
SMOOTHING = 1.5
_FLAT = 0.2  # local contrast below this share of the image's is treated as flat


class EncoderNet(nn.Module):
    """Images (n, 1, h, w), or volumes (n, 1, d, h, w) with spatial_dims=3, in [-1, 1] to unit vectors (n, 128).

    A small network first finds the pose of the body, trained to turn, scale and shift with the image (learned canonicalisation:
    Kaba et al., arXiv:2211.06489); the image is resampled to that pose, so that the second network need not give up detail for
    invariance. Gain, offset and gamma are taken out by local contrast normalisation. Group normalisation: a row never depends
    on the other rows of a batch.
    """

    def __init__(self, spatial_dims: int = 2) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"encoder: spatial_dims {spatial_dims}; expected 2 or 3")
        self.spatial_dims = spatial_dims
        planes = 1 if spatial_dims == 2 else PLANES
        a, b, c = _POSE_WIDTHS
        self.pose_net = nn.Sequential(
            _conv(planes, a, 3, 2), *_active(a), _conv(a, b, 3, 2), *_active(b), _conv(b, c, 3, 2), *_active(c),
            nn.Flatten(), nn.Linear(c * (SIDE // 16) ** 2, 64), nn.ReLU(), nn.Linear(64, 4),
        )  # fmt: skip
        # an untrained encoder takes every body for upright
        nn.init.zeros_(self.pose_net[-1].weight)
        nn.init.zeros_(self.pose_net[-1].bias)
        a, b, c = _WIDTHS
        self.body = nn.Sequential(
            _conv(2 * planes, a, 5, 2), nn.ReLU(), _conv(a, b, 3, 2), _Residual(b), *_active(b),
            _conv(b, c, 3, 2), _Residual(c), *_active(c), _conv(c, _REDUCED, 1, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(_REDUCED * (SIDE // 8) ** 2, DIM),
        )  # fmt: skip
        # the CPU's convolutions are several times faster in this layout
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings of unit length, (n, 128)."""
        x = self.prepare(images)
        return self.describe(x, self.pose(x))

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Smoothed and normalised planes (n, 1 or PLANES, 64, 64); raises ValueError for another number of dimensions."""
        if images.ndim != self.spatial_dims + 2 or images.shape[1] != 1:
            expected = "(n, 1, h, w)" if self.spatial_dims == 2 else "(n, 1, d, h, w)"
            raise ValueError(f"encoder: images {tuple(images.shape)}; expected {expected}")
        # in double precision: what is left of a faded image after its level is taken off is what single precision rounds
        exact = images.double()
        planes = resize(exact) if self.spatial_dims == 2 else planes_of(exact)
        return normalise(blurred(planes, SMOOTHING, radius=4)).to(self.body[0].weight.dtype)

    def pose(self, prepared: torch.Tensor) -> torch.Tensor:
        """Where the body lies: angle (rad), log zoom, and shift right and down in half-widths; (n, 4)."""
        bounds = torch.tensor(_BOUNDS, device=prepared.device)
        return bounds * torch.tanh(self.pose_net(functional.avg_pool2d(prepared, 2)) / bounds)

    def describe(self, prepared: torch.Tensor, pose: torch.Tensor) -> torch.Tensor:
        """Embeddings of unit length of bodies in these poses, (n, 128)."""
        seen = similarity(pose + pose.new_tensor([0, math.log(FRAME), 0, 0]))
        grid = functional.affine_grid(seen, [len(prepared), 1, SIDE, SIDE], align_corners=False)
        upright = functional.grid_sample(prepared, grid, padding_mode="border", align_corners=False)
        deviation = upright - _surround(upright)
        local = deviation / (_surround(deviation.square()).sqrt() + _FLAT)
        both = torch.cat([upright, local], 1).contiguous(memory_format=torch.channels_last)
        return functional.normalize(self.body(both), dim=1)


def normalise(planes: torch.Tensor) -> torch.Tensor:
    """Planes (n, c, h, w) with mean 0 and spread 1 per image; a constant image becomes 0."""
    x = planes - planes.mean((1, 2, 3), keepdim=True)
    return x / (x.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-3)


def similarity(pose: torch.Tensor) -> torch.Tensor:
    """The affine maps (n, 2, 3) x -> scale * turn(x) + shift of rows (angle, log scale, right, down), for `affine_grid`."""
    angle, log_scale, right, down = pose.unbind(1)
    cos, sin = log_scale.exp() * angle.cos(), log_scale.exp() * angle.sin()
    return torch.stack([torch.stack([cos, -sin, right], 1), torch.stack([sin, cos, down], 1)], 1)


def planes_of(volumes: torch.Tensor) -> torch.Tensor:
    """Volumes (n, 1, d, h, w) as planes (n, PLANES, 64, 64)."""
    n, _, depth, height, width = volumes.shape
    flat = resize(volumes.reshape(n * depth, 1, height, width)).reshape(n, 1, depth, -1)
    if depth != PLANES:
        flat = functional.interpolate(flat, size=(PLANES, flat.shape[-1]), mode="bilinear", align_corners=False)
    return flat.reshape(n, PLANES, SIDE, SIDE)


def _surround(x: torch.Tensor) -> torch.Tensor:
    """Mean over about 10 x 10 pixels around each; formed at half size, where it costs a thirteenth."""
    half = functional.avg_pool2d(functional.avg_pool2d(x, 2), 5, stride=1, padding=2, count_include_pad=False)
    return functional.interpolate(half, scale_factor=2, mode="bilinear", align_corners=False)


def _conv(before: int, after: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2)


def _active(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.GroupNorm(8, width), nn.ReLU()


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_active(width), _conv(width, width, 3, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)

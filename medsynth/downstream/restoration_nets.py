"""Networks that turn a degraded image into a clean one, (n, 1, h, w) in [0, 1] to the same; each starts as the identity."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from monai.networks.nets.restormer import Restormer
from scipy import sparse
from torch import nn
from torch.nn import functional

from medsynth.downstream.degrade import kspace_mask
from medsynth.downstream.fanbeam import FanBeam, projector

Symmetric = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class RestorationConfig:
    """Which network and how large; the defaults are for a CPU."""

    net: str = "redcnn"  # "redcnn", "unrolled", "edsr" or "restormer"
    width: int = 32  # channels; in the papers 96, 48, 256 and 48 in that order
    blocks: int = 4  # unrolled iterations (paper: 50), residual blocks (32), transformer blocks at the coarsest level (8)


# a step of each takes some tens of milliseconds on one core, 16 images of 64 x 64 pixels
CPU_SIZES = {
    "redcnn": RestorationConfig("redcnn", width=16),
    "edsr": RestorationConfig("edsr", width=32, blocks=4),
    "unrolled": RestorationConfig("unrolled", width=16, blocks=4),
    "restormer": RestorationConfig("restormer", width=16, blocks=2),
}


# nothing normalises RED-CNN's channels, and of plain ReLUs a third were found dead after training
_LEAK = 0.2


class REDCNN(nn.Module):
    """Residual encoder-decoder: five 5x5 convolutions without padding, five transposed ones, three shortcuts.

    Source: Chen et al., IEEE TMI 36:2524 (2017), arXiv:1702.00288; its ReLUs are leaky here. Sides must exceed 20 pixels.
    """

    def __init__(self, config: RestorationConfig) -> None:
        super().__init__()
        widths = [1] + 5 * [config.width]
        self.encoder = nn.ModuleList([nn.Conv2d(a, b, 5) for a, b in itertools.pairwise(widths)])
        self.decoder = nn.ModuleList([nn.ConvTranspose2d(b, a, 5) for a, b in itertools.pairwise(widths)][::-1])
        _start_at_zero(self.decoder[-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcuts, y = [], x
        for i, layer in enumerate(self.encoder):
            if i in (0, 2, 4):
                shortcuts.append(y)
            y = functional.leaky_relu(layer(y), _LEAK)
        for i, layer in enumerate(self.decoder):
            y = layer(y)
            if i in (0, 2, 4):
                y = y + shortcuts.pop()
            # the source ends with a ReLU too, behind which a pixel of air that starts at 0 has no gradient
            if i < 4:
                y = functional.leaky_relu(y, _LEAK)
        return y


class EDSR(nn.Module):
    """Enhanced deep residual network for super-resolution of an image that has its full size already.

    It works on the 2x pixel-unshuffled image and ends with the sub-pixel layer, so it costs what it would on the small image.
    Source: Lim et al., arXiv:1707.02921: residual blocks without normalisation, scaled by 0.1.
    """

    def __init__(self, config: RestorationConfig) -> None:
        super().__init__()
        w = config.width
        self.head = nn.Conv2d(4, w, 3, padding=1)
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(w, w, 3, padding=1), nn.ReLU(), nn.Conv2d(w, w, 3, padding=1)) for _ in range(config.blocks)]
        )
        self.tail = nn.Conv2d(w, 4, 3, padding=1)
        _start_at_zero(self.tail)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = _padded(x, 2)
        head = y = self.head(functional.pixel_unshuffle(padded, 2))
        for block in self.blocks:
            y = y + 0.1 * block(y)
        return x + _cropped(functional.pixel_shuffle(self.tail(head + y), 2), x)


class Transformer(nn.Module):
    """MONAI's Restormer, attention between channels at three resolutions, added to its input.

    Source: Zamir et al., arXiv:2111.09881 (four levels, dimension 48, blocks 4, 6, 6, 8).
    """

    def __init__(self, config: RestorationConfig) -> None:
        super().__init__()
        if config.width % 2:
            raise ValueError(f"restormer: width {config.width}; expected an even number, which its attention heads share")
        self.net = Restormer(
            spatial_dims=2, in_channels=1, out_channels=1, dim=config.width, num_blocks=(1, 1, config.blocks),
            heads=(1, 2, 4), num_refinement_blocks=1,
        )  # fmt: skip
        _start_at_zero(self.net.output)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + _cropped(self.net(_padded(x, 4)), x)


class Unrolled(nn.Module):
    """Iterative reconstruction with learned steps and regularisers: x <- x - step_t N(x - x0) - CNN_t(x), from x = x0.

    N = A^T A / scale belongs to the measurement A, and the degraded image x0 stands for the data: N(x - x0) is the gradient
    of |A x - A x0|^2 / 2. CNN_t has three 5x5 layers. Source: LEARN, Chen et al., IEEE TMI 37:1333 (2018).
    """

    def __init__(self, config: RestorationConfig, consistency: Consistency) -> None:
        super().__init__()
        w = config.width
        self.consistency = consistency
        self.step = nn.Parameter(torch.full((config.blocks,), 0.5))
        self.regularisers = nn.ModuleList()
        for _ in range(config.blocks):
            last = nn.Conv2d(w, 1, 5, padding=2)
            _start_at_zero(last)
            self.regularisers.append(
                nn.Sequential(nn.Conv2d(1, w, 5, padding=2), nn.ReLU(), nn.Conv2d(w, w, 5, padding=2), nn.ReLU(), last)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for step, regulariser in zip(self.step, self.regularisers, strict=True):
            # the measurement is physics, float32 in whatever precision the regularisers are trained
            with torch.autocast(y.device.type, enabled=False):
                inconsistent = self.consistency(y - x)
            y = y - step * inconsistent - regulariser(y)
        return y


class Consistency(nn.Module):
    """The symmetric linear map A^T A / scale of a measurement A, of norm at most 1, on images (n, 1, h, w).

    `description` (JSON values) says which measurement, and enters the name of a run.
    """

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__()
        self.description = description


class KSpaceConsistency(Consistency):
    """MR of which the central 1/factor of k-space was measured: the projection on those frequencies."""

    def __init__(self, size: int, factor: int) -> None:
        super().__init__({"measurement": "k-space", "size": size, "factor": factor})
        self.register_buffer("mask", torch.from_numpy(kspace_mask(size, factor)).float(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.ifft2(self.mask * torch.fft.fft2(x)).real


class FanBeamConsistency(Consistency):
    """CT: projection and its transpose, scaled by the largest row sum, which bounds the norm of a matrix without signs.

    The geometry may have fewer views and detectors than the scanner's: it steers the network, it does not reconstruct.
    """

    def __init__(self, geometry: FanBeam, size: int) -> None:
        super().__init__({"measurement": "fan beam", **asdict(geometry), "size": size})
        matrix = projector(geometry, size).matrix
        self.size, self.scale = size, float((matrix.T @ matrix.sum(1)).max())
        self.register_buffer("matrix", _tensor(matrix), persistent=False)
        self.register_buffer("transposed", _tensor(sparse.csr_array(matrix.T)), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _OwnTranspose.apply(x, self._normal)

    def _normal(self, x: torch.Tensor) -> torch.Tensor:
        columns = x.reshape(-1, self.size**2).T.contiguous()
        return (self.transposed @ (self.matrix @ columns) / self.scale).T.reshape(-1, 1, self.size, self.size)


class _OwnTranspose(torch.autograd.Function):
    """A symmetric linear map is its own gradient; autograd would transpose the sparse matrices at each step."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, apply: Symmetric) -> torch.Tensor:
        ctx.symmetric = apply
        return apply(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.symmetric(gradient), None


NETS = {"redcnn": REDCNN, "edsr": EDSR, "restormer": Transformer, "unrolled": Unrolled}


def restoration_net(config: RestorationConfig, consistency: Consistency | None = None) -> nn.Module:
    """A network by its name; "unrolled", and no other, takes the data consistency of the measurement. Raises ValueError."""
    if config.net not in NETS:
        raise ValueError(f"restoration: net {config.net!r}; expected one of {sorted(NETS)}")
    if config.width < 1 or config.blocks < 1:
        raise ValueError(f"restoration: width {config.width}, blocks {config.blocks}; expected 1 or more of each")
    if (config.net == "unrolled") != (consistency is not None):
        found = "none" if consistency is None else consistency.description["measurement"]
        raise ValueError(
            f"restoration: net {config.net!r} with data consistency {found!r}; only 'unrolled' takes one, and needs it"
        )
    model = Unrolled(config, consistency) if consistency is not None else NETS[config.net](config)
    # the CPU's convolutions are several times faster in this layout
    return model.to(memory_format=torch.channels_last)


def _start_at_zero(layer: nn.Module) -> None:
    """A network whose last layer starts at zero starts from its input, which no training set has a part in."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _padded(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Mirrored at the right and bottom until sides are multiples."""
    height, width = x.shape[2:]
    return functional.pad(x, (0, -width % multiple, 0, -height % multiple), mode="reflect")


def _cropped(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y[..., : x.shape[2], : x.shape[3]]


def _tensor(matrix: sparse.csr_array) -> torch.Tensor:
    with warnings.catch_warnings():
        # torch calls its compressed rows a beta feature each time a process makes its first
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr), torch.from_numpy(matrix.indices), torch.from_numpy(matrix.data), matrix.shape,
            check_invariants=False,
        )  # fmt: skip

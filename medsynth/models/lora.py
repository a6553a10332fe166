"""Low-rank adapters of linear layers (Hu et al. 2021, arXiv:2106.09685): they train in place of weights, and merge into them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from medsynth.training import step_generator

RANK = 8


class LowRankLinear(nn.Module):
    """W x + b + B A x for inputs (..., in): `base` holds W and b, `down` is A, `up` is B and starts at zero.

    The paper scales B A by alpha / rank; alpha = rank here. Adapters are linear layers, so what holds for these holds for them.
    """

    def __init__(self, base: nn.Linear, *, rank: int = RANK, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.base = base
        like = {"bias": False, "device": base.weight.device, "dtype": base.weight.dtype}
        self.down = nn.Linear(base.in_features, rank, **like)
        self.up = nn.Linear(rank, base.out_features, **like)
        start = torch.randn(rank, base.in_features, generator=generator) / base.in_features**0.5
        with torch.no_grad():
            self.down.weight.copy_(start)
            self.up.weight.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        return self.base(x) + self.up(self.down(x))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain layer that computes the same; its weight is `base`'s, changed."""
        self.base.weight += self.up.weight @ self.down.weight
        return self.base


def insert_adapters(model: nn.Module, names: Sequence[str], *, rank: int = RANK, seed: int = 0) -> None:
    """Put an adapter around each named linear layer of `model`; (seed, position in names) determine where A starts.

    Raises ValueError for a name that is no linear layer.
    """
    for i, name in enumerate(names):
        layer = model.get_submodule(name)
        if type(layer) is not nn.Linear:
            raise ValueError(f"{name} is a {type(layer).__name__}; expected a Linear without an adapter")
        model.set_submodule(name, LowRankLinear(layer, rank=rank, generator=step_generator(seed, i)))


def merge_adapters(model: nn.Module) -> None:
    """Replace every adapter by the plain layer that computes the same: names and shapes are again those of a new model."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LowRankLinear):
            model.set_submodule(name, layer.merged())

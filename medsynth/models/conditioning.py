"""What an image is asked to show: named values, any of which may be missing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from medsynth.vocabulary import FINDINGS, MODALITIES

# Fixed, public scales (location, spread), so that no statistic of a private set enters a model.
SCALES: dict[str, tuple[float, float]] = {
    "age": (55.0, 20.0),
    "bmi": (26.0, 5.0),
    "lvedv": (150.0, 50.0), "lvesv": (70.0, 40.0), "lvef": (55.0, 15.0),
    "rvedv": (160.0, 50.0), "rvesv": (80.0, 40.0), "rvef": (50.0, 12.0),
    "wall_ed": (9.0, 2.5), "wall_es": (12.0, 3.0),
    "angle": (0.0, 30.0), "n_slices": (10.0, 3.0),
}  # fmt: skip
BINARY = (0.5, 0.5)  # 0/1 becomes -1/+1

THORAX = (*MODALITIES, "phantom", *FINDINGS, "age", "sex", "bmi")


class Conditioning(nn.Module):
    """Embeds conditions (n, k), NaN = missing; a missing value has a learned embedding of its own.

    A row of NaN is the null condition of classifier-free guidance (Ho & Salimans 2022). Being learned per row, it leaves no
    parameter without a gradient when a condition is dropped, which per-sample gradients need.
    """

    def __init__(self, names: Sequence[str], dim: int) -> None:
        super().__init__()
        if len(set(names)) != len(names):
            raise ValueError(f"conditioning: names {list(names)} repeat; expected each once")
        self.names = tuple(names)
        scales = torch.tensor([SCALES.get(n, BINARY) for n in names], dtype=torch.float32).reshape(-1, 2)
        self.register_buffer("location", scales[:, 0], persistent=False)
        self.register_buffer("spread", scales[:, 1], persistent=False)
        self.embed = nn.Sequential(nn.Linear(3 * len(self.names), dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, condition: torch.Tensor) -> torch.Tensor:
        """(n, k) -> (n, dim)."""
        missing = torch.isnan(condition)
        value = torch.where(missing, torch.zeros_like(condition), (condition - self.location) / self.spread)
        flags = missing.to(value.dtype)
        return self.embed(torch.cat([value, 1 - flags, flags], dim=1))


def drop(condition: torch.Tensor, generator: torch.Generator, *, row: float, entry: float) -> torch.Tensor:
    """Replace whole rows with probability `row`, single values with probability `entry`, by NaN."""
    n, k = condition.shape
    device = generator.device
    rows = torch.rand(n, 1, generator=generator, device=device) < row
    entries = torch.rand(n, k, generator=generator, device=device) < entry
    return torch.where((rows | entries).to(condition.device), torch.nan, condition)

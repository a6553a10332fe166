"""What an image is asked to show: named values, any of which may be missing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from medsynth.language.sentences import TEXT
from medsynth.language.vocabulary import FINDINGS, MODALITIES

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
# pseudo-conditioning: what the shipped extractor sees in an image, as a vector of length 1 (Dombrowski & Kainz, arXiv:2506.17975)
FEATURES = tuple(f"feature {k}" for k in range(64))
ALONE = 0.5  # share of training examples that are told by one family of columns alone, where there are several
_FEATURE = (0.0, len(FEATURES) ** -0.5)  # location and spread


def families(names: Sequence[str]) -> dict[str, list[int]]:
    """Columns of a condition by what they are: "features" of an image, "text", or "values", which are all others."""
    columns: dict[str, list[int]] = {}
    for k, name in enumerate(names):
        columns.setdefault("features" if name in FEATURES else "text" if name in TEXT else "values", []).append(k)
    return columns


class Conditioning(nn.Module):
    """Embeds conditions (n, k), NaN = missing; a missing value has a learned embedding of its own.

    A row of NaN is the null condition of classifier-free guidance (Ho & Salimans 2022). Being learned per row, it leaves no
    parameter without a gradient when a condition is dropped, which per-sample gradients need.
    Features of an image have an embedding of their own, which starts as zero; text is read by `models.text` instead.
    """

    def __init__(self, names: Sequence[str], dim: int) -> None:
        super().__init__()
        if len(set(names)) != len(names):
            raise ValueError(f"conditioning: names {list(names)} repeat; expected each once")
        self.names = tuple(names)
        scales = torch.tensor([_scale(n) for n in names], dtype=torch.float32).reshape(-1, 2)
        self.register_buffer("location", scales[:, 0], persistent=False)
        self.register_buffer("spread", scales[:, 1], persistent=False)
        columns = families(names)
        for kind in ("values", "features"):
            self.register_buffer(kind, torch.tensor(columns.get(kind, ()), dtype=torch.long), persistent=False)
        self.embed = _embedding(len(self.values), dim)
        if len(self.features):
            self.embed_features = _embedding(len(self.features), dim)
            nn.init.zeros_(self.embed_features[-1].weight)
            nn.init.zeros_(self.embed_features[-1].bias)

    def forward(self, condition: torch.Tensor) -> torch.Tensor:
        """(n, k) -> (n, dim)."""
        missing = torch.isnan(condition)
        value = torch.where(missing, torch.zeros_like(condition), (condition - self.location) / self.spread)
        flags = missing.to(value.dtype)
        told = value, 1 - flags, flags
        out = self.embed(torch.cat([t.index_select(1, self.values) for t in told], dim=1))
        if len(self.features):
            out = out + self.embed_features(torch.cat([t.index_select(1, self.features) for t in told], dim=1))
        return out


def drop(
    condition: torch.Tensor, generator: torch.Generator, *, row: float, entry: float, apart: Sequence[Sequence[int]] = ()
) -> torch.Tensor:
    """Replace whole rows with probability `row`, single values with probability `entry`, by NaN.

    apart: families of columns that may be asked for without the others. Where there are several, ALONE of the rows keep one only.
    """
    n, k = condition.shape
    device = generator.device
    rows = torch.rand(n, 1, generator=generator, device=device) < row
    entries = torch.rand(n, k, generator=generator, device=device) < entry
    gone = rows | entries
    if len(apart) > 1:
        others = torch.ones(len(apart), k, dtype=torch.bool)
        for i, columns in enumerate(apart):
            others[i, list(columns)] = False
        kept = torch.randint(len(apart), (n,), generator=generator, device=device)
        alone = torch.rand(n, 1, generator=generator, device=device) < ALONE
        gone |= alone & others.to(device)[kept]
    return torch.where(gone.to(condition.device), torch.nan, condition)


def _embedding(columns: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3 * columns, dim), nn.SiLU(), nn.Linear(dim, dim))


def _scale(name: str) -> tuple[float, float]:
    return _FEATURE if name in FEATURES else SCALES.get(name, BINARY)

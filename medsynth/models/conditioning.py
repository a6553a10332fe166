"""What an image is asked to show: named values, any of which may be missing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd
import torch
from torch import nn

from medsynth.imageset import ImageSet
from medsynth.vocabulary import FINDINGS, MODALITIES

log = logging.getLogger(__name__)

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

# attributes of Daum et al., arXiv:2407.16405
HEART = (
    "lvedv", "lvesv", "lvef", "rvedv", "rvesv", "rvef", "wall_ed", "wall_es", "age", "sex", "bmi", "phase", "angle", "n_slices",
)  # fmt: skip
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


def vocabulary_for(images: ImageSet) -> tuple[str, ...]:
    """Names of the conditions that such images are asked for by: of stacks of hearts, or of chests."""
    return HEART if len(images.spatial) == 3 else THORAX


def conditions_of(images: ImageSet, names: Sequence[str]) -> np.ndarray:
    """Conditions (n, len(names)) float32 of a set: its modality, phantom or person, finding, and attributes of these names.

    NaN where the set does not say. Raises ValueError for a set of unknown modality where `names` has modalities.
    """
    if set(names) & set(MODALITIES) and not images.modality:
        raise ValueError(f"{images.name}: its modality is not known; expected one of {MODALITIES}")
    table = images.attributes
    # a finding outside the vocabulary is unknown, not "none of these"
    finding = table["finding"].where(table["finding"].isin(FINDINGS)) if "finding" in table else None
    if finding is not None and set(names) & set(FINDINGS):
        _say_what_is_not_asked_by(images.name, int((finding.isna() & table["finding"].notna()).sum()))
    out = np.full((len(images), len(names)), np.nan, np.float32)
    for k, name in enumerate(names):
        if name in MODALITIES:
            out[:, k] = float(name == images.modality)
        elif name == "phantom":
            out[:, k] = float(not images.people)
        elif name in FINDINGS:
            out[:, k] = np.nan if finding is None else _numbers(finding == name)
        elif name in table:
            out[:, k] = _numbers(table[name])
    return out


@cache
def _say_what_is_not_asked_by(name: str, rows: int) -> None:
    """Once for each set, what would otherwise be lost in silence; not in its own words, which may name somebody on a page."""
    if rows:
        log.warning("%s: the findings of %d images are taken for unknown; expected %s", name, rows, ", ".join(FINDINGS))


def _numbers(column: pd.Series) -> np.ndarray:
    return column.astype("Float64").to_numpy(dtype=np.float32, na_value=np.nan)

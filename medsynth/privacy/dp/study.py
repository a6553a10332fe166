"""The arms of a study of quality against epsilon: what their names mean, and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import NamedTuple

import numpy as np

from medsynth.evaluation.hearts.volumes import DAUM_FID
from medsynth.language.words import did_you_mean
from medsynth.results import Row
from medsynth.settings.config import DPConfig, PrivacyConfig

CENTRAL, CHOSEN = "central images first", "chosen on public phantoms"
EACH = "Each point has the promise of its own generator, above. What is not private has none; public weights need none."
# of all metrics those that a reader compares; tables hold the others too
SHOWN = ("FID", "FID gap closed", "KID", "KID of volumes", "MS-SSIM", "lv r", "rv r", "wall r", "cycle accuracy", DAUM_FID)


class Arm(NamedTuple):
    """How one generator is trained."""

    name: str  # of the line that it belongs to in a figure, e.g. "pre-trained" or "pre-trained, draws 8"
    start: str  # "public" or "scratch"
    privacy: PrivacyConfig


def arm_of(config: DPConfig, name: str) -> Arm:
    """What one of `config.arms` says. Raises ValueError for a variant of what is no setting, or of a value it cannot have."""
    line, epsilon, *variants = name.split("/")
    privacy = replace(config.scratch if line == "scratch" else config.training, epsilon=float(epsilon))
    if line == CENTRAL:
        privacy = replace(privacy, central=config.central)
    for variant in variants:
        privacy = _varied(privacy, variant)
    return Arm(", ".join([line, *variants]), "scratch" if line == "scratch" else "public", privacy)


def seeds_of(arm: Arm, config: DPConfig, seeds: Sequence[int]) -> Sequence[int]:
    """Of the seeds, all for what is compared: the pre-trained line, and scratch at the largest epsilon. Others have the first."""
    most = arm.name == "scratch" and arm.privacy.epsilon == max(config.epsilons)
    return seeds if most or arm.name == "pre-trained" else seeds[:1]


def places(rows: Iterable[Row]) -> dict[float, str]:
    """The epsilons of rows, rising, and how an axis names them."""
    found = sorted({float(row.extra["epsilon"]) for row in rows if "epsilon" in row.extra})
    return {epsilon: "not private" if math.isinf(epsilon) else f"{epsilon:g}" for epsilon in found}


def closed(rows: Sequence[Row]) -> list[Row]:
    """Of the FID that pre-training without privacy takes off the public weights, the share that is left at each epsilon.

    rows: of one metric, with `epsilon`. One value for each seed and epsilon of the arm "pre-trained", without an interval. What
    counts without privacy is the best there is: that seed's same training, or a variant. None where its FID is no lower.
    """
    mine = [row for row in rows if row.arm == "pre-trained"]
    public = np.mean([row.value for row in mine if row.extra["epsilon"] == 0])
    varied = [row.value for row in rows if row.arm.startswith("pre-trained, ") and math.isinf(row.extra["epsilon"])]
    made = []
    for row in mine:
        same = [other.value for other in mine if math.isinf(other.extra["epsilon"]) and other.seed == row.seed]
        if same and row.extra["epsilon"] and (best := min(same + varied)) < public:
            share = float((public - row.value) / (public - best))
            known = {"chapter": row.chapter, "dataset": row.dataset, "arm": row.arm, "seed": row.seed, "extra": row.extra}
            made.append(Row(metric=f"{row.metric} gap closed", value=share, **known))
    return made


def chosen_rows(rows: Sequence[Row], config: DPConfig) -> list[Row]:
    """At each epsilon the rows of the method that was best on public phantoms, `config.chosen`, as a line of their own."""
    best = dict(zip(config.epsilons, config.chosen, strict=True)) if config.chosen else {}
    return [
        replace(row, arm=CHOSEN, extra=row.extra | {"method": row.arm})
        for row in rows
        if row.arm == best.get(row.extra.get("epsilon"))
    ]


def _varied(privacy: PrivacyConfig, variant: str) -> PrivacyConfig:
    name, _, value = variant.partition(" ")
    known = [f.name for f in fields(PrivacyConfig)]
    if name not in known:
        raise ValueError(f"variant {variant!r}: {did_you_mean(name, known)}")
    try:
        return replace(privacy, **{name: type(getattr(privacy, name))(value)})
    except ValueError as error:
        raise ValueError(f"variant {variant!r}: {error}") from error

"""Who trains on what where sites pool images: for each arm, which site gives how many images of which kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

KINDS = ("synthetic", "reconstructed", "real")


class Share(NamedTuple):
    """Images of one kind that one site gives to an arm."""

    kind: str
    site: str
    images: int


def pooled_arms(sites: Sequence[str], patients: int) -> dict[str, list[Share]]:
    """Arm -> shares: sites alone, pools as large as one site, pools of everything, and a site's own with the others' synthetic.

    patients: images of each site, one a patient; a pool takes as nearly the same number of each site as can be.
    """
    part = dict(zip(sites, map(len, np.array_split(np.arange(patients), len(sites))), strict=True))
    arms = {f"{site} alone": [Share("real", site, patients)] for site in sites}
    arms |= {f"pooled {kind}": [Share(kind, site, part[site]) for site in sites] for kind in KINDS}
    arms |= {f"pooled {kind}, all": [Share(kind, site, patients) for site in sites] for kind in ("synthetic", "real")}
    for own in sites:
        arms[f"{own} real + others' synthetic"] = [Share("real" if s == own else "synthetic", s, patients) for s in sites]
    return arms


def sent(arm: str, shares: Sequence[Share]) -> list[Share]:
    """The shares that leave their site: a site that trains does not send itself its own."""
    return [share for share in shares if not arm.startswith(f"{share.site} ")]


def images_sent(arm: str, shares: Sequence[Share]) -> dict[str, float]:
    """Metric -> number of images that are sent, of synthetic and of real ones; a real image is real after an autoencoder too."""
    away = sent(arm, shares)
    made = sum(share.images for share in away if share.kind == "synthetic")
    return {"synthetic images sent": float(made), "real images sent": float(sum(share.images for share in away) - made)}

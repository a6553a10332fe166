"""How near is too near: thresholds from transformed copies of other people's images, and what they cost and catch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from medsynth.data.transforms import ATTACKS, attack_pairs, attacked, transformed_copies
from medsynth.evaluation.statistics import Estimate, percentile_interval, resample
from medsynth.imageset import ImageSet
from medsynth.privacy.distances import FeatureMap

_ROWS = 512  # of a distance matrix formed at once
FAMILIES: tuple[tuple[str, ...], ...] = (*((a,) for a in ATTACKS), *attack_pairs())


@dataclass(frozen=True)
class Calibration:
    """A threshold on the distance in one feature map, and the shares of attacked images that it may miss."""

    tau: float
    phi: str
    phi_hash: str
    source: str  # whose images it was calibrated on
    images: int
    patients: int
    miss: float
    pair_miss: float
    needed: pd.DataFrame  # per family: the least threshold that keeps to its miss rate

    def sentence(self) -> str:
        """How tau was chosen, for a certificate."""
        worst = self.needed.loc[self.needed["tau"].idxmax(), "family"]
        return (
            f"tau {self.tau:.6g} in {self.phi}: on {self.images} images of {self.patients} other patients ({self.source}), "
            f"at most {self.miss:.2%} of each attack and {self.pair_miss:.2%} of each pair of attacks lay farther than tau from "
            f"the gallery of transformed copies of their own original; decided by: {worst}"
        )


def gallery_features(phi: FeatureMap, images: ImageSet) -> np.ndarray:
    """Features float32 (copies, n, d) of all transformed copies of the images."""
    return np.stack([phi(copies) for _, copies in transformed_copies(images)])


def distance_to_own(features: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Distance from feature row i to the nearest copy of image i, float64 (n,); gallery (copies, n, d)."""
    return np.min([np.linalg.norm(features.astype(np.float64) - copy, axis=1) for copy in gallery], axis=0)


def nearest_distance(features: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Distance from each feature row to the nearest copy of any image, float64 (rows,)."""
    others = gallery.reshape(-1, gallery.shape[-1]).astype(np.float64)
    centre = others.mean(0)
    others -= centre
    square = (others**2).sum(1)
    found = []
    for start in range(0, len(features), _ROWS):
        x = features[start : start + _ROWS].astype(np.float64) - centre
        found.append(((x**2).sum(1)[:, None] + square - 2 * (x @ others.T)).min(1))
    return np.sqrt(np.maximum(np.concatenate(found), 0))


def attack_distances(
    phi: FeatureMap, images: ImageSet, gallery: np.ndarray, *, seed: int, strength: str = "drawn"
) -> dict[tuple[str, ...], np.ndarray]:
    """Per family (one attack or a pair), the distance from each attacked image to its own original's copies, (n,)."""
    return {family: distance_to_own(phi(attacked(images, family, seed=seed, strength=strength)), gallery) for family in FAMILIES}


def calibrate(phi: FeatureMap, images: ImageSet, *, seed: int, miss: float = 0.01, pair_miss: float = 0.03) -> Calibration:
    """The least threshold at which at most `miss` of each attack and `pair_miss` of each pair slip through, on these images.

    Raises ValueError for private images: a threshold is an output, and would be one of theirs.
    """
    if images.role == "private":
        raise ValueError(
            f"{images.name}: private; calibrate on public or held-out patients, a threshold made from private ones leaks"
        )
    if not (0 < miss < 1 and 0 < pair_miss < 1):
        raise ValueError(f"miss {miss}, pair_miss {pair_miss}; expected shares between 0 and 1, such as 0.01")
    distances = attack_distances(phi, images, gallery_features(phi, images), seed=seed)
    rows = []
    for family, distance in distances.items():
        allowed = miss if len(family) == 1 else pair_miss
        # the order statistic itself: an interpolated quantile may let one more image through than stated
        rank = len(distance) - 1 - int(allowed * len(distance))
        rows.append({"family": " + ".join(family), "attacks": len(family), "miss": allowed, "tau": np.sort(distance)[rank]})
    needed = pd.DataFrame(rows)
    return Calibration(
        float(needed["tau"].max()), phi.name, phi.hash, images.name, len(images), images.patients, miss, pair_miss, needed
    )


def threshold_at(nearest: np.ndarray, share: float) -> float:
    """The largest threshold that refuses at most a share of images, given their distances to the nearest private copy."""
    if not 0 < share < 1:
        raise ValueError(f"share {share}; expected a number between 0 and 1, such as 0.05")
    refused = int(share * len(nearest))
    # just below the first distance that would be one refusal too many
    return float(np.nextafter(np.sort(nearest)[refused], -np.inf))


def attack_table(
    phi: FeatureMap,
    private: ImageSet,
    unseen: ImageSet,
    tau: float,
    *,
    seed: int,
    other_scans: ImageSet | None = None,
    strength: str = "drawn",
) -> pd.DataFrame:
    """What a gate at tau refuses: a row per family of attacks on private images, one for unseen patients, one for other scans.

    kind "attack", "pair": share of attacked private images within tau of a copy of *their own original*; a gate refuses at
    least these. "unseen patients": share of unseen patients' images refused by the whole private set, the price. "other scans":
    share of other_scans (patients numbered as in private) within tau of a copy of an image of their own patient.
    Every share with its patient-bootstrap interval.
    """
    gallery = gallery_features(phi, private)
    attacks = attack_distances(phi, private, gallery, seed=seed, strength=strength)
    kinds = [("attack" if len(f) == 1 else "pair", " + ".join(f)) for f in attacks]
    shares = _shares(np.stack(list(attacks.values())) <= tau, private.patient, seed)
    named = [(k, e, len(private)) for k, e in zip(kinds, shares, strict=True)]
    nearest = nearest_distance(phi(unseen), gallery)
    named.append((("unseen patients", "any"), _shares(nearest[None] <= tau, unseen.patient, seed)[0], len(unseen)))
    if other_scans is not None:
        own = scan_distances(phi(other_scans), other_scans.patient, gallery, private.patient)
        named.append((("other scans", "any"), _shares(own[None] <= tau, other_scans.patient, seed)[0], len(other_scans)))
    rows = [
        {"kind": kind, "family": family, "refused": e.value, "low": e.low, "high": e.high, "patients": e.n, "images": images}
        for (kind, family), e, images in named
    ]
    return pd.DataFrame(rows).assign(private_patients=private.patients, phi=phi.name, tau=tau)


def _shares(refused: np.ndarray, patient: np.ndarray, seed: int) -> list[Estimate]:
    """Share of each row of bool (k, images) with its interval over patients; one set of resamples serves all rows."""
    people, unit = np.unique(patient, return_inverse=True)
    size = np.bincount(unit)
    counts = resample(len(people), seed=seed, replicates=1000)
    hits = np.stack([np.bincount(unit, row, minlength=len(people)) for row in refused])
    replicated = (counts @ hits.T) / (counts @ size)[:, None]
    return [percentile_interval(float(row.mean()), r, len(people)) for row, r in zip(refused, replicated.T, strict=True)]


def scan_distances(features: np.ndarray, patient: np.ndarray, gallery: np.ndarray, private_patient: np.ndarray) -> np.ndarray:
    """Distance from each row to the nearest copy of an image of the same patient, float64 (rows,).

    Raises ValueError where a patient has no private image.
    """
    unknown = np.setdiff1d(patient, private_patient)
    if len(unknown):
        raise ValueError(f"patients {unknown[:5].tolist()} have no image in the private set; leave their scans out")
    found = np.empty(len(features))
    for p in np.unique(patient):
        mine = patient == p
        found[mine] = nearest_distance(features[mine], gallery[:, private_patient == p])
    return found

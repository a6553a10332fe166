"""How near is too near: thresholds from transformed copies of other people's images, and what they cost and catch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binom

from medsynth.evaluation.statistics import Estimate, clopper_pearson, percentile_interval, resample
from medsynth.imageset import ImageSet
from medsynth.privacy.gate.alterations import ATTACKS, PLANES, attack_pairs, attacked, presentations
from medsynth.privacy.gate.feature_maps import FeatureMap
from medsynth.privacy.gate.feature_table import gallery_features
from medsynth.privacy.gate.margin import largest_tau, refused
from medsynth.privacy.gate.search import Gallery, distances
from medsynth.results import Row

CONFIDENCE = 0.95  # that what a threshold may miss holds for everyone, not for the people it was found on alone
FAMILIES: tuple[tuple[str, ...], ...] = (*((a,) for a in ATTACKS), *attack_pairs())
STACK_FAMILIES: tuple[tuple[str, ...], ...] = ((PLANES,), *((a, PLANES) for a in ATTACKS[1:]))  # of stacks, besides


@dataclass(frozen=True)
class Calibration:
    """A threshold on the distance in one feature map, and the shares of attacked images that it may miss."""

    tau: float
    phi: str
    phi_hash: str
    source: str  # whose images it was calibrated on
    phantoms: bool  # nobody was scanned for them
    patients: int  # one image each
    miss: float
    pair_miss: float
    confidence: float  # that a family's miss rate holds for everyone, not for these patients alone
    needed: pd.DataFrame  # per family: the least threshold that keeps to its miss rate
    left_out: tuple[str, ...] = ()  # attacks that it does not cover, alone or in a pair

    def sentence(self) -> str:
        """How tau was chosen, for a certificate."""
        worst = self.needed.loc[self.needed["tau"].idxmax(), "family"]
        uncovered = f"; not covered: {', '.join(self.left_out)}" if self.left_out else ""
        people = "phantoms" if self.phantoms else "patients"
        return (
            f"tau {self.tau:.6g} in {self.phi}: an upper tolerance limit ({self.confidence:.0%} confidence) from one image "
            f"each of {self.patients} other {people} ({self.source}); of people like them at most {self.miss:.2%} of any one "
            f"alteration and {self.pair_miss:.2%} of any one pair of alterations lie farther than tau from the gallery of "
            f"transformed copies of their own original; decided by: {worst}{uncovered}"
        )


def distance_to_own(features: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Distance from feature row i to the nearest copy of image i, float64 (n,); gallery (copies, n, d)."""
    return np.min([distances(features, copy) for copy in gallery], axis=0)


def nearest_distance(features: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Distance from each feature row to the nearest copy of any image, float64 (rows,)."""
    return _searched(gallery).nearest(features).distance


def _searched(gallery: np.ndarray) -> Gallery:
    return Gallery(np.ascontiguousarray(gallery).reshape(-1, gallery.shape[-1]))


def attack_distances(
    phi: FeatureMap, images: ImageSet, gallery: np.ndarray, *, seed: int, strength: str = "drawn", left_out: Sequence[str] = ()
) -> dict[tuple[str, ...], np.ndarray]:
    """Per family (one attack or a pair, but those left out), the distance from attacked images to their own copies, (n,)."""
    suite = FAMILIES + STACK_FAMILIES * (len(images.spatial) == 3)
    families = [family for family in suite if not set(family) & set(left_out)]
    return {family: distance_to_own(phi(attacked(images, family, seed=seed, strength=strength)), gallery) for family in families}


def one_per_patient(images: ImageSet) -> ImageSet:
    """The first image of each patient: a patient with many would decide a quantile alone."""
    return images.select(np.sort(np.unique(images.patient, return_index=True)[1]))


def calibrate(
    phi: FeatureMap, images: ImageSet, *, seed: int, miss: float = 0.01, pair_miss: float = 0.03, confidence: float = CONFIDENCE,
    left_out: Sequence[str] = (),
) -> Calibration:  # fmt: skip
    """The least threshold at which, with confidence, at most `miss` of each attack and `pair_miss` of each pair slip through.

    Of all people whom these patients, one image each, are a sample of: an upper tolerance limit (Wilks 1941) for each family.
    left_out: attacks that images of this kind do not survive, so that a threshold for them would be one for nothing.
    Raises ValueError for private images, because a threshold is an output and would be one of theirs; for several images of a
    patient; and for too few patients to be that confident.
    """
    if images.role == "private":
        raise ValueError(
            f"{images.name}: private; calibrate on public or held-out patients, a threshold made from private ones leaks"
        )
    if not all(0 < share < 1 for share in (miss, pair_miss, confidence)):
        raise ValueError(f"miss {miss}, pair_miss {pair_miss}, confidence {confidence}; expected shares between 0 and 1")
    if len(images) != images.patients:
        raise ValueError(f"{images.name}: {len(images)} images of {images.patients} patients; expected one image of each")
    allowed = {kind: may_miss(len(images), share, confidence) for kind, share in ((1, miss), (2, pair_miss))}
    with gallery_features(images, phi) as gallery:
        found = attack_distances(phi, images, gallery, seed=seed, left_out=left_out)
    needed = pd.DataFrame(
        {"family": " + ".join(family), "attacks": len(family), "may_miss": allowed[len(family)],
         "tau": np.sort(distance)[-1 - allowed[len(family)]]}
        for family, distance in found.items()
    )  # fmt: skip
    return Calibration(
        float(needed["tau"].max()), phi.name, phi.hash, images.name, not images.people, images.patients,
        miss, pair_miss, confidence, needed, tuple(left_out),
    )  # fmt: skip


def may_miss(n: int, share: float, confidence: float = CONFIDENCE) -> int:
    """How many of n people may lie beyond a threshold if at most a share of everyone is to, with this confidence.

    With more of them beyond it than that, a true share as large as `share` would be too likely. Raises ValueError if n is so
    small that even none beyond it says too little.
    """
    # the most k with P(Binomial(n, share) <= k) <= 1 - confidence
    k = int(binom.ppf(1 - confidence, n, share))
    k -= binom.cdf(k, n, share) > 1 - confidence
    if k < 0:
        fewest = int(np.ceil(np.log(1 - confidence) / np.log(1 - share)))
        raise ValueError(
            f"{n} patients; expected at least {fewest} to say with {confidence:.0%} confidence that at most {share:.2%} slip "
            "through"
        )
    return k


def threshold_at(nearest: np.ndarray, share: float, error: float) -> float:
    """The largest threshold that refuses at most a share of images, given their distances to the nearest private copy.

    error: of the feature map that they were measured in.
    """
    if not 0 < share < 1:
        raise ValueError(f"share {share}; expected a number between 0 and 1, such as 0.05")
    # the first distance that would be one refusal too many
    return largest_tau(float(np.sort(nearest)[int(share * len(nearest))]), error)


@dataclass(frozen=True)
class Trial:
    """What a gate around a private set would measure in one feature map, whatever its threshold.

    attacks: per family, the distance from each attacked private image to the copies of *its own original*, (n,): a gate
    measures at most that. unseen: from each image of unseen patients to the whole private set, (m,). scans: from other scans of
    private patients to the copies of an image of their own patient, (k,). The last two in the presentation that lies nearest.
    error: of phi; what a gate refuses lies within tau and the margin for it.
    """

    phi: str
    error: float
    patient: np.ndarray  # (n,) of the private images
    attacks: dict[tuple[str, ...], np.ndarray]
    unseen: np.ndarray
    unseen_patient: np.ndarray
    scans: np.ndarray
    scan_patient: np.ndarray

    def rows(self, tau: float, *, chapter: str, dataset: str, arm: str, rule: str, seed: int) -> list[Row]:
        """What is refused at tau: a row per family of attacks, one for unseen patients, the price, and one for other scans.

        Every share with its patient-bootstrap interval. Before them a row of tau itself. rule: how tau was chosen.
        """
        kinds = [("attack" if len(f) == 1 else "pair", " + ".join(f)) for f in self.attacks]
        parts = [(kinds, np.stack(list(self.attacks.values())), self.patient)]
        parts.append(([("unseen patients", "any")], self.unseen[None], self.unseen_patient))
        if len(self.scans):
            parts.append(([("other scans", "any")], self.scans[None], self.scan_patient))
        named = {"chapter": chapter, "dataset": dataset, "arm": arm, "seed": seed}
        known = {"rule": rule, "phi": self.phi, "private_patients": len(np.unique(self.patient))}
        return [
            Row(metric="tau", value=tau, **named, extra=known),
            *(
                Row.of(e, metric="share refused", **named, kind=kind, family=family, images=len(people), tau=tau, **known)
                for names, found, people in parts
                for (kind, family), e in zip(names, _shares(refused(found, tau, self.error), people, seed), strict=True)
            ),
        ]  # fmt: skip

    def at_its_own_and_at_equal_price(self, tau: float, *, price: float = 0.05, seed: int, **named: str) -> list[Row]:
        """`rows` at tau and at the threshold that refuses a share `price` of unseen patients, told apart by their `rule`."""
        at_price = threshold_at(self.unseen, price, self.error)
        rules = {"calibrated on copies": tau, f"{100 * price:g} % of unseen patients refused": at_price}
        return [row for rule, t in rules.items() for row in self.rows(t, rule=rule, seed=seed, **named)]


def attack_trial(
    phi: FeatureMap,
    private: ImageSet,
    unseen: ImageSet,
    *,
    seed: int,
    other_scans: ImageSet | None = None,
    strength: str = "drawn",
    store: Path | None = None,
) -> Trial:
    """Attack a private set and measure what its gate would.

    other_scans: of patients numbered as in private. Without them, other images of the private set itself are taken: the first
    image of each patient who has several stands in the gallery, the rest before it. store: as of a `Gate`.
    """
    shown = np.ones(len(private), dtype=bool)
    if other_scans is None:
        shown[:] = False
        shown[np.unique(private.patient, return_index=True)[1]] = True
        other_scans = private.select(np.flatnonzero(~shown))
    owner, scanned = private.patient[shown], other_scans.patient
    with gallery_features(private, phi, store) as gallery:
        attacks = attack_distances(phi, private, gallery, seed=seed, strength=strength)
        everybody, own = _searched(gallery), gallery[:, shown]
        strangers = _least(phi, unseen, lambda x: everybody.nearest(x).distance)
        scans = _least(phi, other_scans, lambda x: scan_distances(x, scanned, own, owner))
    return Trial(phi.name, phi.error, private.patient, attacks, strangers, unseen.patient, scans, scanned)


def _least(phi: FeatureMap, images: ImageSet, measured: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """What is measured of each image, in the presentation in which it is least, float64 (n,)."""
    if not len(images):
        return np.empty(0)
    return np.min([measured(phi(laid)) for _, laid in presentations(images)], axis=0)


def _shares(hit: np.ndarray, patient: np.ndarray, seed: int) -> list[Estimate]:
    """Share of each row of bool (k, images) with its interval over patients; one set of resamples serves all rows."""
    people, unit = np.unique(patient, return_inverse=True)
    size = np.bincount(unit)
    counts = resample(len(people), seed=seed, replicates=1000)
    hits = np.stack([np.bincount(unit, row, minlength=len(people)) for row in hit])
    replicated = (counts @ hits.T) / (counts @ size)[:, None]
    shares = [percentile_interval(float(row.mean()), r, len(people)) for row, r in zip(hit, replicated.T, strict=True)]
    # where all agree, resamples do too, and would say that nobody could ever be found who does not
    return [e if 0 < e.value < 1 else clopper_pearson(round(e.value * e.n), e.n, n_of="patients") for e in shares]


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

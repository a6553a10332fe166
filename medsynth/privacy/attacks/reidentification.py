"""Re-identification in two heads: are two images of one person, is one a copy of the other? And attackers beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import NamedTuple, Protocol

import numpy as np
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from medsynth.data.sources import cached_thorax
from medsynth.evaluation.features import Extractor, shipped_extractor
from medsynth.evaluation.roc import membership
from medsynth.evaluation.statistics import Estimate, generator
from medsynth.imageset import ImageSet, concatenate
from medsynth.ledger import Ledger
from medsynth.privacy.attacks.legal.linkability import scan_pairs
from medsynth.privacy.attacks.memorisation import correlations
from medsynth.privacy.gate.calibration import may_miss, one_per_patient
from medsynth.privacy.gate.feature_maps import FeatureMap, feature_map
from medsynth.privacy.gate.kinds import KINDS, altered
from medsynth.privacy.gate.refill import Accepts

STRENGTHS = (0.25, 0.5, 0.75, 1.0)  # of the alterations that a head learns
_MOVED = 3  # pixels to each side that a registration tries
_BLOCK = 1 << 22  # numbers that one comparison of candidates holds


class Pairs(NamedTuple):
    """Two sets, row by row; same (n,) bool: whether a row's two images belong together; patient (n,): of the first."""

    first: ImageSet
    second: ImageSet
    same: np.ndarray
    patient: np.ndarray


def public_scans(like: ImageSet, *, patients: int, seed: int = 0) -> ImageSet:
    """So many public phantoms of the size and modality of a set, two scans of each: what heads learn from."""
    return cached_thorax(patients=patients, scans=2, size=like.spatial[-1], modality=like.modality, seed=seed + 70)


def scans_of_people(images: ImageSet) -> Pairs:
    """Both scans of each patient who has two, and each first scan beside the second of the next patient."""
    return _beside_the_next(*scan_pairs(images))


def altered_by_chance(
    images: ImageSet, names: Sequence[str], strengths: Sequence[float], *, seed: int, strangers: ImageSet
) -> ImageSet:
    """Each image altered in one of these ways at one of these strengths, by chance; "mixing" takes images of `strangers`."""
    rng = generator(seed, len(images))
    drawn = np.stack([rng.integers(len(names), size=len(images)), rng.integers(len(strengths), size=len(images))], axis=1)
    changed = images.images.copy()
    for way in np.unique(drawn, axis=0):
        rows = np.flatnonzero((drawn == way).all(1))
        made = altered(images.select(rows), names[way[0]], strengths[way[1]], seed=seed, strangers=strangers)
        changed[rows] = made.images
    return images.with_images(changed, name=f"{images.name}, altered")


def altered_copies(images: ImageSet, names: Sequence[str], *, seed: int, strangers: ImageSet) -> Pairs:
    """Each image beside its copy, altered as `altered_by_chance` does, and beside that of the next patient."""
    return _beside_the_next(images, altered_by_chance(images, names, STRENGTHS, seed=seed, strangers=strangers))


def without(kind: str) -> tuple[str, ...]:
    """All alterations but those of a kind."""
    return tuple(name for other, names in KINDS.items() if other != kind for name in names)


class Attacker(Protocol):
    """Scores pairs of features (n, d) and (n, d): the higher, the likelier they belong together, (n,)."""

    phi: FeatureMap | Extractor

    def score(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Of each pair of rows."""
        ...


class Distance(NamedTuple):
    """The attacker that trains nothing: near in a feature map is the same."""

    phi: FeatureMap | Extractor

    def score(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Less the Euclidean distance."""
        return -np.linalg.norm(np.subtract(x, y, dtype=np.float64), axis=-1)


class Head(NamedTuple):
    """A Siamese network on a fixed trunk: what it makes of how far two images are apart in each feature (Koch et al., 2015)."""

    phi: FeatureMap | Extractor
    judge: Callable[[np.ndarray], np.ndarray]  # distances in each feature (..., d) to log odds (...)

    def score(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Log odds that they belong together."""
        return self.judge(np.abs(np.subtract(x, y, dtype=np.float32)))


def trained_head(phi: FeatureMap | Extractor, pairs: Pairs, *, seed: int = 0, hidden: int = 0) -> Head:
    """A head for pairs like these: linear, or with a layer of so many hidden units whose start `seed` decides."""
    apart = np.abs(np.subtract(phi(pairs.first), phi(pairs.second), dtype=np.float32))
    mean, spread = apart.mean(0), apart.std(0) + 1e-6
    if not hidden:
        found = LogisticRegression(C=0.1, max_iter=2000).fit((apart - mean) / spread, pairs.same)
        weight = (found.coef_[0] / spread).astype(np.float32)
        offset = float(found.intercept_[0] - weight @ mean)
        return Head(phi, lambda new: new @ weight + offset)
    net = MLPClassifier((hidden,), random_state=seed, early_stopping=True, max_iter=300).fit((apart - mean) / spread, pairs.same)

    def judge(new: np.ndarray) -> np.ndarray:
        rows = ((new - mean) / spread).reshape(-1, len(mean))
        return logit(np.clip(net.predict_proba(rows)[:, 1].astype(np.float64), 1e-12, 1 - 1e-12)).reshape(new.shape[:-1])

    return Head(phi, judge)


def two_views(pairs: Pairs) -> dict[str, Attacker]:
    """What a filter looks with, by name: a head on the identity encoder, and how near two images are to the extractor.

    The first knows a second scan best, the second what a generator drew of a patient.
    """
    return {"encoder": trained_head(feature_map("encoder"), pairs), "extractor": Distance(shipped_extractor())}


def unseen_attackers(pairs: Pairs, *, hidden: int, seed: int = 0) -> dict[str, Attacker]:
    """Attackers with no part in a filter, by name: another head on its encoder, another network, pixels, and a plain distance."""
    maps = {"another seed": "encoder", "another network": "autoencoder", "pixels": "pixels"}
    trained = {name: trained_head(feature_map(phi), pairs, seed=seed + 1, hidden=hidden) for name, phi in maps.items()}
    return trained | {"plain distance": Distance(feature_map("untrained_vgg"))}


def auc_of(attacker: Attacker, pairs: Pairs, *, seed: int, replicates: int = 1000) -> Estimate:
    """AUC on pairs of patients whom the attacker never saw, with an interval over patients.

    Raises ValueError for an attacker that is no better than chance on them: what it does not find says nothing.
    """
    score = attacker.score(attacker.phi(pairs.first), attacker.phi(pairs.second))
    people = {"member_patient": pairs.patient[pairs.same], "other_patient": pairs.patient[~pairs.same]}
    found = membership(score[pairs.same], score[~pairs.same], **people, seed=seed, replicates=replicates).auc
    if not found.low > 0.5:
        raise ValueError(
            f"{attacker.phi.name}: an AUC of {found.value:.2f} [{found.low:.2f}, {found.high:.2f}] on its validation pairs, no "
            "better than chance; train it on more pairs, or leave it out"
        )
    return found


class Filter:
    """Refuses candidates that any attacker takes for a private image's other half, at thresholds that unseen patients pay for.

    cost: with 95 % confidence, at most this share of unseen patients is refused, by all attackers together. unseen: one image of
    each. Raises ValueError for too few of them to say so.
    """

    def __init__(self, attackers: Sequence[Attacker], private: ImageSet, unseen: ImageSet, *, cost: float = 0.05) -> None:
        self.attackers, self._private = tuple(attackers), [attacker.phi(private) for attacker in attackers]
        self.thresholds = _tolerated(self.likeness(unseen), cost)

    def likeness(self, candidates: ImageSet) -> np.ndarray:
        """The highest score that each attacker gives each candidate with any private image, (n, attackers)."""
        return np.stack([_highest(a, a.phi(candidates), y) for a, y in zip(self.attackers, self._private, strict=True)], axis=1)

    def accepts(self, candidates: ImageSet) -> np.ndarray:
        """Whether each candidate passes, bool (n,)."""
        return (self.likeness(candidates) <= self.thresholds).all(1)


class AllOf(NamedTuple):
    """Accepts what several filters, or gates, all accept."""

    filters: tuple[Accepts, ...]

    def accepts(self, candidates: ImageSet) -> np.ndarray:
        """Whether each candidate passes, bool (n,)."""
        return np.logical_and.reduce([stop.accepts(candidates) for stop in self.filters])


def fitted_and_fresh(unseen: ImageSet) -> tuple[ImageSet, ImageSet]:
    """One image of every second patient, to set a threshold on, and one of each other, to say what it costs."""
    people = one_per_patient(unseen)
    fitted, fresh = (people.select(np.arange(k, len(people), 2)) for k in (0, 1))
    return fitted, fresh


def same_person_filter(
    private: ImageSet, unseen: ImageSet, *, patients: int, ledger: Ledger, cost: float = 0.05, seed: int = 0
) -> Filter:
    """The filter that a release passes by default: `two_views` on scans of one person, learned from so many public phantoms.

    Thresholds are those of `Filter`. A line in the ledger for each set.
    """
    ledger.read(private, stage="filter", output="synthetic images accepted")
    ledger.read(unseen, stage="filter", output="a threshold of the filter")
    pairs = scans_of_people(public_scans(private, patients=patients, seed=seed))
    return Filter([*two_views(pairs).values()], private, one_per_patient(unseen), cost=cost)


def registered_correlation(candidates: ImageSet, private: ImageSet) -> np.ndarray:
    """The highest correlation of each candidate's pixels with a private image, moved by up to three pixels each way, (n,)."""
    best = np.full(len(candidates), -1.0)
    side = (slice(_MOVED, -_MOVED),) * 2
    inner = private.images[(..., *side)].reshape(len(private), -1)
    for down in range(2 * _MOVED + 1):
        for right in range(2 * _MOVED + 1):
            height, width = (n - 2 * _MOVED for n in candidates.spatial[-2:])
            moved = candidates.images[..., down : down + height, right : right + width].reshape(len(candidates), -1)
            best = np.maximum(best, correlations(moved, inner).max(1))
    return best


def _highest(attacker: Attacker, x: np.ndarray, private: np.ndarray) -> np.ndarray:
    """Of each row of x with any private row, (n,); some rows at a time, for memory."""
    rows = max(1, _BLOCK // private.size)
    chunks = (x[first : first + rows, None] for first in range(0, len(x), rows))
    return np.concatenate([attacker.score(chunk, private[None]).max(1) for chunk in chunks])


def _tolerated(likeness: np.ndarray, cost: float) -> np.ndarray:
    """Thresholds (attackers,) that at most a share of unseen rows lies beyond (95 % confidence), from such (n, attackers).

    Attackers take turns: each cuts at the highest of its scores that is left, and that row is set aside. What such a region
    covers of unseen rows has the distribution that one attacker's order statistic has (Tukey 1947: equivalent blocks).
    """
    (n, attackers), left = likeness.shape, np.ones(len(likeness), bool)
    turns = may_miss(n, cost) + 1
    if turns < attackers:
        fewest = next(m for m in count(n) if may_miss(m, cost) + 1 >= attackers)
        raise ValueError(f"{n} patients; expected at least {fewest}, for each of {attackers} attackers to have a threshold")
    thresholds = np.empty(attackers)
    for turn in range(turns):
        a = turn % attackers
        row = np.flatnonzero(left)[likeness[left, a].argmax()]
        thresholds[a], left[row] = likeness[row, a], False
    return thresholds


def _beside_the_next(first: ImageSet, second: ImageSet) -> Pairs:
    """Rows as they are, and each first image beside the second of the next row of another patient."""
    people, row, own = np.unique(first.patient, return_index=True, return_inverse=True)
    if len(people) < 2:
        raise ValueError(f"{first.name}: images of one patient; expected at least two, to tell them apart")
    other = second.select(np.roll(row, -1)[own])
    same = np.arange(2 * len(first)) < len(first)
    both = concatenate([first, first], first.name), concatenate([second, other], second.name)
    return Pairs(*both, same, np.tile(first.patient, 2))

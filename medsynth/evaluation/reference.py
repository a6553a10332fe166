"""Real images to measure against: features, patient-disjoint halves and the floor, computed once for every arm.

FID depends on the number of rows. So all arms are compared at one stated number, and what is quoted is *FID minus floor*. The
floor is what the two sets score against themselves at that number, halves against halves: the real images', and the arm's own.

Taking off the real floor alone would not do. The bias of FID grows with the spread of a set, so an arm that varies less has less
of it: Gaussians in 64 directions with 0.9 times the real spread would lie 0.8 below the real floor at 150 rows a side, and 0.6
above it at 4,000. With both floors no bias is left of a shift, and of a difference in spread, in d directions, d / 4n of the
value. KID has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from sklearn.isotonic import isotonic_regression

from medsynth.evaluation import ruler
from medsynth.evaluation.diversity import prdc
from medsynth.evaluation.features import Extractor
from medsynth.evaluation.fidelity import branch, frechet_distance, kid, kid_of_pairs, kid_value, subsample
from medsynth.evaluation.statistics import Estimate, generator, patient_halves, percentile_interval, resample
from medsynth.imageset import ImageSet

FID, EXCESS, KID = "FID", "FID minus floor", "KID"
Kind = Literal["blur", "noise"]
# of damage to real images: sd in pixels of a 64 px wide image, and as a share of the pixel range
LEVELS: dict[Kind, tuple[float, ...]] = {
    "blur": (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0),
    "noise": (0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2),
}
UNITS: dict[Kind, str] = {"blur": "px of 64", "noise": "of the range"}
_REPLICATES = {FID: 200, KID: 1000}  # KID's cost less

Pairs = list[tuple[np.ndarray, np.ndarray]]  # per split, the rows on either side


class _Arm(NamedTuple):
    """Features of what is measured (m, d), whose rows they are (m,), and which of them stand against each half."""

    features: np.ndarray
    patient: np.ndarray
    sides: Pairs
    own: Pairs  # patient-disjoint halves of the arm, of at most as many rows as the reference's


class Reference:
    """Real images (n, 1, h, w) that arms are measured against, `rows` rows a side.

    rows: the common number, by default as many as patient-disjoint halves have. All else is computed at first use and kept.
    Raises ValueError where halves have fewer rows than asked for.
    """

    def __init__(self, images: ImageSet, extractor: Extractor, *, seed: int, splits: int = 50, rows: int | None = None) -> None:
        self.images, self.extractor, self.seed, self.splits = images, extractor, seed, splits
        self.halves: Pairs = patient_halves(images.patient, seed=seed, splits=splits, n=rows)
        self.rows = len(self.halves[0][0])
        self._floors: dict[int, list[float]] = {}
        self._costs: dict[tuple[Kind, str], np.ndarray] = {}

    def at(self, rows: int) -> Reference:
        """The same images at another number of rows, for arms that all have fewer; their features are kept."""
        other = Reference(self.images, self.extractor, seed=self.seed, splits=self.splits, rows=rows)
        other.features = self.features
        return other

    @cached_property
    def features(self) -> np.ndarray:
        """Features (n, d) of the real images."""
        return self.extractor(self.images)

    @cached_property
    def floor(self) -> dict[str, Estimate]:
        """Mean and central 95 % of what halves score against each other: a yardstick, not an interval. n = patients.

        FID only where a half has at least 2 d rows.
        """
        x, patient = self.features, self.images.patient
        kids = [kid_value(x[a], x[b], patient[a], patient[b]) for a, b in self.halves]
        fids = {"FID floor": self._floor_fids(self.rows)} if self._has_fid else {}
        return {name: _over_splits(values, self.images.patients) for name, values in (fids | {"KID floor": kids}).items()}

    def score(self, arm: ImageSet | np.ndarray) -> dict[str, Estimate]:
        """FID, FID floor, FID own floor, FID minus floor, KID and KID floor of other images, or of their features (m, d).

        Means over the splits: half A against some rows of the arm, half B against others. "FID minus floor" is FID minus the
        mean of the two floors. Intervals of FID, FID minus floor and KID are 95 % bootstrap intervals over the patients of both
        sides; they do not hold what is left of the bias. Each row of bare features counts as a patient. FID entries are left
        out below 2 d rows. n = patients of the reference.
        Raises ValueError for fewer than `rows` rows, another unit or range, and the reference's own images.
        """
        found, mine = self._arm(arm), self.images.patient
        near = kid(self.features, found.features, patient=mine, synthetic_patient=found.patient, **self._bootstrap)
        return self._entries(found, near, (self._drawn(mine, 0), self._drawn(found.patient, 1)))

    def score_derived(self, made: ImageSet | np.ndarray) -> dict[str, Estimate]:
        """`score` of what was made of these very images, row by row: reconstructions, blurred or altered copies.

        No patient meets what was made of them: for FID half A stands against what was made of half B. KID is that of all pairs of
        different patients, and 0 where nothing was changed: what halves differ in by chance is not in it. Raises ValueError for
        other rows.
        """
        found, mine = self._derived(made), self.images.patient
        near = kid_of_pairs(self.features, found.features, patient=mine, **self._bootstrap)
        return self._entries(found, near, (self._drawn(mine, 0),) * 2) | {KID: near}

    def variety(self, arm: ImageSet | np.ndarray, *, replicates: int = 1000) -> dict[str, Estimate]:
        """Precision, recall, density and coverage of `rows` rows of an arm; see `prdc`. Raises ValueError as `score` does."""
        few = subsample(self._arm(arm).features, self.rows, seed=branch(self.seed, 0))
        return prdc(self.features, few, patient=self.images.patient, seed=self.seed, replicates=replicates)._asdict()

    def equivalent_damage(self, score: dict[str, Estimate], kind: Kind, *, by: str = EXCESS) -> Estimate:
        """Level of blur or noise that costs these real images as much as a `score` says, by "FID minus floor" or "KID".

        Real images are damaged at LEVELS and measured as by `score_derived`; between two levels the cost is taken for a power of
        the level. Nothing is extrapolated: a cost below the first level's reads 0, with that level for the high end, and one
        beyond the last level's reads infinite, with that level for the low end (`describe_damage` says so). The interval is the
        score's, read in the same way; how well the curve is known is not in it. Raises ValueError where the score lacks `by`.
        """
        if by not in (EXCESS, KID) or by not in score:
            raise ValueError(f"equivalent damage by {by!r} of a score with {list(score)}; expected {EXCESS!r} or {KID!r} in it")
        (_, value, _), (low, *_), (*_, high) = (_levels(c, LEVELS[kind], self._cost(kind, by)) for c in score[by][:3])
        return Estimate(value, low, high, score[by].n)

    @property
    def _bootstrap(self) -> dict[str, int]:
        return {"seed": self.seed, "replicates": _REPLICATES[KID]}

    @property
    def _has_fid(self) -> bool:
        # with fewer rows the bias is all there is to see; KID does without
        return self.rows >= 2 * self.features.shape[1]

    def _arm(self, arm: ImageSet | np.ndarray) -> _Arm:
        patient, name = np.arange(len(arm)), "features"
        if isinstance(arm, ImageSet):
            self._check_kind(arm)
            patient, name = arm.patient, arm.name
            known = int(np.isin(arm.row_hashes, self.images.row_hashes).sum())
            if known:
                raise ValueError(
                    f"{name}: {known} of its images are images of the reference {self.images.name} and would be held against "
                    "themselves; leave them out, or use score_derived for what was made of the reference's images"
                )
        if len(arm) < self.rows:
            raise ValueError(
                f"{name}: {len(arm)} rows, but this reference compares {self.rows} a side, and nothing is compared across n; "
                f"give at least {self.rows}, or measure every arm with reference.at({len(arm)})"
            )
        options = {"seed": self.seed, "splits": self.splits}
        own = patient_halves(patient, **options)
        if len(own[0][0]) >= self.rows:
            own = sides = patient_halves(patient, **options, n=self.rows)
        else:
            # two draws that share as few rows as they can
            orders = (generator(self.seed, s, 3).permutation(len(arm)) for s in range(self.splits))
            sides = [(order[: self.rows], order[-self.rows :]) for order in orders]
        return _Arm(self._features_of(arm), patient, sides, own)

    def _derived(self, made: ImageSet | np.ndarray) -> _Arm:
        if isinstance(made, ImageSet):
            self._check_kind(made)
        mine = self.images.patient
        same = np.array_equal(made.patient, mine) if isinstance(made, ImageSet) else len(made) == len(mine)
        if not same:
            raise ValueError(
                f"{len(made)} rows that are not, one by one, made of the {len(mine)} images of {self.images.name}; "
                "use score for images of others"
            )
        crossed = [(b, a) for a, b in self.halves]
        return _Arm(self._features_of(made), mine, crossed, crossed)

    def _check_kind(self, arm: ImageSet) -> None:
        real = self.images
        if (arm.unit, arm.range) != (real.unit, real.range):
            raise ValueError(f"{arm.name}: {arm.unit} in {arm.range}; expected {real.unit} in {real.range}, as {real.name}")

    def _features_of(self, arm: ImageSet | np.ndarray) -> np.ndarray:
        features = self.extractor(arm) if isinstance(arm, ImageSet) else np.asarray(arm)
        if features.shape[1:] != self.features.shape[1:]:
            raise ValueError(
                f"features of shape {features.shape}; expected (m, {self.features.shape[1]}) of {self.extractor.name}"
            )
        return features

    def _entries(self, arm: _Arm, near: Estimate, drawn: tuple[np.ndarray, np.ndarray]) -> dict[str, Estimate]:
        found = {KID: _moved(near, self._mean(arm, kid_value)), "KID floor": self.floor["KID floor"]}
        if not self._has_fid:
            return found
        score, own = self._mean(arm, _fid), self._own_floors(arm)
        replicated = np.array([frechet_distance(self.features, arm.features, r, s) for r, s in zip(*drawn, strict=True)])
        # a resample holds fewer distinct rows than the sample and so has a larger bias: only its spread is used
        spread = percentile_interval(score, replicated - replicated.mean() + score, self.images.patients)
        floor, other = self.floor["FID floor"], _over_splits(own, len(np.unique(arm.patient)))
        return {
            FID: spread._replace(low=max(0.0, spread.low)), "FID floor": floor, "FID own floor": other,
            EXCESS: _moved(spread, score - (floor.value + other.value) / 2), **found,
        }  # fmt: skip

    def _drawn(self, patient: np.ndarray, stream: int) -> np.ndarray:
        """How often each row is drawn in each replicate, (replicates, rows)."""
        people, unit = np.unique(patient, return_inverse=True)
        return resample(len(people), seed=branch(self.seed, stream), replicates=_REPLICATES[FID])[:, unit]

    def _mean(self, arm: _Arm, distance: ruler.Distance) -> float:
        x, mine = self.features, self.images.patient
        both = ((a, t) for half, side in zip(self.halves, arm.sides, strict=True) for a, t in zip(half, side, strict=True))
        return float(np.mean([distance(x[a], arm.features[t], mine[a], arm.patient[t]) for a, t in both]))

    def _own_floors(self, arm: _Arm) -> np.ndarray:
        own = _fids(arm.features, arm.own)
        # of too few rows for two disjoint halves of `rows`: floors of both sets fall alike with n, so their ratio at fewer serves
        return np.array(own) * np.mean(self._floor_fids(self.rows)) / np.mean(self._floor_fids(len(arm.own[0][0])))

    def _floor_fids(self, rows: int) -> list[float]:
        if rows not in self._floors:
            halves = patient_halves(self.images.patient, seed=self.seed, splits=self.splits, n=rows)
            self._floors[rows] = _fids(self.features, halves)
        return self._floors[rows]

    def _cost(self, kind: Kind, by: str) -> np.ndarray:
        """What each of LEVELS costs, never falling."""
        if (kind, by) not in self._costs:
            damage: dict[Kind, Callable[[ImageSet, float], ImageSet]] = {
                "blur": ruler.blurred, "noise": lambda images, level: ruler.noisy(images, level, seed=branch(self.seed, 2)),
            }  # fmt: skip
            arms = [self._derived(damage[kind](self.images, level)) for level in LEVELS[kind]]
            if by == KID:
                # its floor is 0 on average; what these halves have of it by chance, their damaged ones have too
                costs = [self._mean(a, kid_value) - self.floor["KID floor"].value for a in arms]
            else:
                costs = [self._mean(a, _fid) - (self.floor["FID floor"].value + self._own_floors(a).mean()) / 2 for a in arms]
            self._costs[kind, by] = isotonic_regression(costs)
        return self._costs[kind, by]


def describe_damage(level: Estimate, kind: Kind) -> str:
    """An equivalent damage in words, e.g. "blur of 0.82 [0.6, 1.1] px of 64"; what lies outside the levels is said to."""
    unit = UNITS[kind]
    if level.value == 0:
        return f"below the first level of {kind}: at most {level.high:.2g} {unit}"
    if level.value == np.inf:
        return f"beyond the largest level of {kind}: at least {level.low:.2g} {unit}"
    return f"{kind} of {level.value:.2g} [{level.low:.2g}, {level.high:.2g}] {unit}"


def _levels(cost: float, levels: Sequence[float], costs: np.ndarray) -> tuple[float, float, float]:
    """(low, level, high) of a cost: thrice the same inside the curve, (0, 0, first) below it and (last, inf, inf) beyond."""
    # FID of a damage that cannot be told from none may lie below the floor
    x, y = np.array(levels)[costs > 0], costs[costs > 0]
    if not len(x) or cost > y[-1]:
        return (levels[-1], np.inf, np.inf) if cost > 0 else (0.0, 0.0, np.inf)
    if cost < y[0]:
        return 0.0, 0.0, float(x[0])
    return (float(np.exp(np.interp(np.log(cost), np.log(y), np.log(x)))),) * 3


def _fid(real: np.ndarray, other: np.ndarray, patient: np.ndarray, other_patient: np.ndarray) -> float:
    return frechet_distance(real, other)


def _fids(features: np.ndarray, halves: Pairs) -> list[float]:
    return [frechet_distance(features[a], features[b]) for a, b in halves]


def _over_splits(values: Sequence[float], patients: int) -> Estimate:
    return percentile_interval(float(np.mean(values)), np.array(values), patients)


def _moved(e: Estimate, value: float) -> Estimate:
    """An interval as wide, around another value."""
    by = value - e.value
    return Estimate(value, e.low + by, e.high + by, e.n)

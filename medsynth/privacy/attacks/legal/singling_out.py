"""Predicate singling out as a game: does a release let somebody describe exactly one private patient?

An attacker sees the release and says a predicate: "has an image within r of this one". It wins where the predicate holds of
exactly one private patient, and of hardly anybody else: of a share w of the population at most, far below 1/n (Cohen and Nissim,
2020, arXiv:1904.06009). Who guesses wins too, now and then; so an attack is read beside what the same predicates do to others.

Nothing is tuned on private patients. Radii are found on other people (`fitted`), weights are bounded on yet others by Clopper and
Pearson (`certified`), and the baseline is what the predicates do to a third group (`baseline`). Whoever is described is a patient
with all their images. A game that is not won shows nothing of other attacks; what no attack can do, `dp_bound` says.
Whoever makes features of private images leaves the line in the ledger: nothing here sees an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from scipy.spatial.distance import cdist

from medsynth.evaluation.statistics import Estimate, bootstrap_mean, clopper_pearson, generator
from medsynth.mechanism import Mechanism
from medsynth.privacy.attacks.legal.risk import residual

AIM = 0.1  # of the weight that may be: predicates that just reach it are seldom certified
_NEIGHBOURS = 20  # that say how the weight of a ball grows with its radius
_BLOCK = 2**23  # distances that are held at once


class People(NamedTuple):
    """What an attacker sees of images: features (rows, d) of one map, whose they are (rows,), and their attributes."""

    features: np.ndarray
    patient: np.ndarray
    attributes: pd.DataFrame | None = None

    @property
    def patients(self) -> int:
        """How many there are."""
        return len(np.unique(self.patient))


class Others(NamedTuple):
    """People of the same population who are not private, in three groups that share nobody."""

    fitted: People
    certified: People
    baseline: People


class Predicates(NamedTuple):
    """One for each image of a release: has an image within `radius` (k,) of it, and its attributes `match`.

    light (k,): whose weight is bounded by what is allowed.
    """

    release: People
    radius: np.ndarray
    match: tuple[str, ...]
    light: np.ndarray


class Game(NamedTuple):
    """How often a predicate isolates a private patient.

    attack: share of predicates that are light and hold of exactly one private patient. baseline: the same of as many others.
    residual: (attack - baseline) / (1 - baseline), its interval from the ends of both. singled_out: share of private patients
    whom some predicate isolates. light: share of predicates whose weight is bounded by `weight`. guess: how often a predicate of
    that very weight isolates by chance, n w (1 - w)^(n - 1).
    """

    attack: Estimate
    baseline: Estimate
    residual: Estimate
    singled_out: Estimate
    light: float
    weight: float
    guess: float

    @property
    def beats_its_baseline(self) -> bool:
        """Whether the residual lies above zero with its interval; if not, nothing was shown, not that there is nothing."""
        return self.residual.low > 0


def play(release: People, private: People, others: Others, *, weight: float, match: Sequence[str] = (), aim: float = AIM,
         seed: int = 0) -> Game:  # fmt: skip
    """The game of one kind of predicates: a ball around each image of the release, and with `match` its attributes too.

    weight: what a predicate may weigh; without a hit among M certified people one is bounded by 3 / M at 95 %. aim: the part of
    it that radii are fitted to. An image of the release without an attribute of `match` does not ask for it.
    Intervals are over predicates or over people, whichever is wider. Raises ValueError for a weight that is not below 1/n or that
    no predicate can be bounded by, for a baseline of fewer people than are private, and for groups that share somebody.
    """
    _check(private, others, weight)
    made = predicates(release, others, weight=weight, match=match, aim=aim)
    n = private.patients
    attack, who = _isolations(made, private, n, seed=seed)
    baseline, _ = _isolations(made, others.baseline, n, seed=seed)
    singled_out = clopper_pearson(int((who > 0).sum()), n, n_of="patients")
    guess = n * weight * (1 - weight) ** (n - 1)
    return Game(attack, baseline, residual(attack, baseline), singled_out, float(made.light.mean()), weight, guess)


def game_rows(game: Game) -> dict[str, Estimate | float]:
    """What a table says of a game."""
    return {
        "isolated": game.attack, "strangers isolated": game.baseline, "residual": game.residual,
        "patients singled out": game.singled_out, "light descriptions": game.light, "guess": game.guess,
    }  # fmt: skip


def planted(release: People, private: People, share: float, *, seed: int) -> People:
    """The release with this share of its images, at least one, replaced by private images: a leak that a game has to see."""
    rng = generator(seed, len(release.features))
    count = max(1, round(share * len(release.features)))
    places = rng.choice(len(release.features), count, replace=False)
    features = release.features.copy()
    features[places] = private.features[rng.choice(len(private.features), count, replace=count > len(private.features))]
    return People(features, release.patient)


def predicates(
    release: People, others: Others, *, weight: float, match: Sequence[str] = (), aim: float = AIM
) -> Predicates:  # fmt: skip
    """Balls fitted to weigh `aim` of the weight, and whether each is bounded by the weight itself, at 95 % for each alone."""
    radius = np.concatenate([radii(near, weight * aim) for _, near in _nearest(release, others.fitted, match)])
    made = Predicates(release, radius, tuple(match), np.ones(len(radius), bool))
    predicate, _ = _holds(made, others.certified)
    hits = np.bincount(predicate, minlength=len(radius))
    return made._replace(light=upper_weight(hits, others.certified.patients) <= weight)


def radii(near: np.ndarray, weight: float) -> np.ndarray:
    """Radius at which each predicate holds of a share `weight` of people; near: distance of each (predicate, person), (k, m).

    Where that is less than one of them, the weight is taken to fall with the radius as it does among the nearest, as a power
    (Levina and Bickel, 2004). Zero where fewer than two people can be near.
    """
    people = near.shape[1]
    nearest = np.sort(np.partition(near, min(_NEIGHBOURS, people - 1), axis=1)[:, :_NEIGHBOURS], axis=1)
    if (rank := weight * people) >= 1:
        found = np.partition(near, int(rank) - 1, axis=1)[:, int(rank) - 1]
        return np.where(np.isfinite(found), found, 0.0)
    finite = np.isfinite(nearest)
    count = finite.sum(1)
    last = np.where(count > 0, nearest[np.arange(len(near)), np.maximum(count - 1, 0)], 0.0)
    # people at no distance are copies of each other, and say nothing of how weight grows
    inner = finite & (nearest > 0) & (nearest < last[:, None])
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(inner, np.log(last[:, None] / nearest), 0.0)
        inverse = logs.sum(1) / inner.sum(1)
        found = last * (rank / np.maximum(count, 1)) ** inverse
    return np.where((count > 1) & inner.any(1), found, 0.0)


def allowed_weight(n: int, certified: int, share: float) -> float:
    """share / n, or the least weight above it that so many certified people can bound. Raises ValueError where that is 1/n."""
    weight = max(share / n, float(upper_weight(np.array(0), certified)) * (1 + 1e-9))
    if weight >= 1 / n:
        needed = math.ceil(math.log(0.05) / math.log1p(-1 / n))
        raise ValueError(f"{certified} certified people bound no weight below 1/n = {1 / n:.3g}; expected more than {needed}")
    return weight


def upper_weight(hits: np.ndarray, people: int, level: float = 0.95) -> np.ndarray:
    """What each weight is at most, where so many of `people` were hit: the one-sided bound of Clopper and Pearson."""
    hits = np.asarray(hits)
    return np.where(hits < people, stats.beta.ppf(level, hits + 1, np.maximum(people - hits, 1)), 1.0)


def dp_bound(n: int, weight: float, epsilon: float, delta: float) -> float:
    """What no attack isolates more often than, where a release is (epsilon, delta)-DP for adding or removing one of n patients.

    min(1, n (e^epsilon w + delta)): compare a release with that without patient i, which knows nothing of them. 1 is vacuous.
    """
    return min(1.0, n * (math.exp(min(epsilon, 700.0)) * weight + delta))


def bound_rows(proved: Mechanism | None, n: int, weight: float) -> dict[str, float]:
    """What a table says of the promise that a release was made under: its bound, and nothing where nothing is promised."""
    return {} if proved is None else {"proved bound": dp_bound(n, weight, proved.epsilon, proved.delta)}


def _isolations(made: Predicates, people: People, n: int, *, seed: int) -> tuple[Estimate, np.ndarray]:
    """Share of predicates that are light and hold of exactly one of n people, over as many groups of n as there are.

    Also by how many predicates each person is isolated in the group that chance put them in.
    """
    count, predicates = people.patients, len(made.radius)
    groups = count // n
    group = np.full(count, -1)
    group[generator(seed, count).permutation(count)[: groups * n]] = np.repeat(np.arange(groups), n)
    predicate, person = _holds(made, people)
    kept = (group[person] >= 0) & made.light[predicate]
    predicate, person = predicate[kept], person[kept]
    _, place, size = np.unique(predicate * groups + group[person], return_inverse=True, return_counts=True)
    who = np.bincount(person[size[place] == 1], minlength=count)
    exact = clopper_pearson(int(who.sum()), predicates * groups, n_of="predicates")
    inside = np.flatnonzero(group >= 0)
    over_people = bootstrap_mean(who[inside] * n / predicates, inside, seed=seed)
    low, high = min(exact.low, over_people.low), max(exact.high, min(over_people.high, 1.0))
    return exact._replace(low=low, high=high, n=predicates), who


def _holds(made: Predicates, people: People) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (predicate, person), person by their place among the sorted patients, of which the predicate is true."""
    found = [(np.zeros(0, int), np.zeros(0, int))]
    for rows, near in _nearest(made.release, people, made.match):
        predicate, person = np.nonzero(near <= made.radius[rows, None])
        found.append((predicate + rows.start, person))
    return tuple(np.concatenate(part) for part in zip(*found, strict=True))


def _nearest(release: People, people: People, match: Sequence[str]) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of the release and the distance of each of its images to each person's nearest image, infinite without a match."""
    order = np.argsort(people.patient, kind="stable")
    first = np.unique(people.patient[order], return_index=True)[1]
    ours, theirs = _codes(release, people, match)
    theirs = theirs[order]
    step = max(1, _BLOCK // len(order))
    for start in range(0, len(release.features), step):
        rows = slice(start, min(start + step, len(release.features)))
        distance = cdist(release.features[rows], people.features[order])
        asked = ours[rows, None]
        distance[((asked != theirs) & (asked >= 0)).any(-1)] = np.inf
        yield rows, np.minimum.reduceat(distance, first, axis=1)


def _codes(release: People, people: People, match: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers for the values of the attributes `match`, (rows, len(match)) of both sides; -1 where there is none."""
    sides = []
    for side in (release, people):
        missing = [name for name in match if side.attributes is None or name not in side.attributes]
        if missing:
            known = [] if side.attributes is None else list(side.attributes)
            raise ValueError(f"no attribute {missing[0]!r} to match; there are {known}")
        sides.append(side.attributes[list(match)].astype("string") if match else pd.DataFrame(index=range(len(side.patient))))
    both = pd.concat(sides, ignore_index=True)
    codes = np.stack([pd.factorize(both[name])[0] for name in match], axis=1) if match else np.zeros((len(both), 0), int)
    return codes[: len(sides[0])], codes[len(sides[0]) :]


def _check(private: People, others: Others, weight: float) -> None:
    n, groups = private.patients, {"private": private, **others._asdict()}
    if not 0 < weight < 1 / n:
        raise ValueError(f"weight {weight:g}; expected a number above 0 and below 1/n = {1 / n:g}: a guess wins most at 1/n")
    if (least := float(upper_weight(np.array(0), others.certified.patients))) > weight:
        needed = math.ceil(math.log(0.05) / math.log1p(-weight))
        raise ValueError(
            f"{others.certified.patients} certified people bound no weight below {least:.3g}; for {weight:g} give {needed}, "
            "or play at a larger weight"
        )
    if others.baseline.patients < n:
        raise ValueError(f"{others.baseline.patients} people for the baseline; expected at least as many as are private, {n}")
    names = list(groups)
    for k, name in enumerate(names):
        for other in names[k + 1 :]:
            shared = np.intersect1d(groups[name].patient, groups[other].patient)
            if len(shared):
                raise ValueError(f"patient {shared[0]} is in both groups {name} and {other}; expected groups that share nobody")

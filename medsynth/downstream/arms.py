"""One restoration network trained on several sets, at one budget and schedule, each version tried on the same unseen patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from medsynth.downstream.restoration import RestorationTraining, restore, train_restoration
from medsynth.downstream.tasks import experiment
from medsynth.evaluation.equivalence import Comparison, compare
from medsynth.imageset import ImageSet, concatenate
from medsynth.language.words import did_you_mean
from medsynth.ledger import Ledger

PARTS = ("train", "test", "tuning")  # no two of them share the noise of a row
# of Adam; chosen on low-dose CT of phantoms by networks trained on real images, so they favour no synthetic set
LEARNING_RATES = {"redcnn": 2e-3, "edsr": 5e-3, "unrolled": 5e-3, "restormer": 1e-3}
WARMUP = {"redcnn": 0.1}  # share of the steps over which the learning rate rises, where the usual few are too few
SLOW = 500  # steps of warm-up after which RED-CNN bears twice the rate; after 200 it diverged
CLIP = {"redcnn": 0.05}  # one gradient in twenty is longer; cut at 1 and the higher rate one of three seeds lost itself half-way
BUDGET = {"unrolled": 0.5}  # share of the profile's steps: one of its steps costs two to three of EDSR's, and teaches more
BATCH = 8  # half as good a gradient as 16, at half the price: on a CPU more steps are worth more


class Pairs(NamedTuple):
    """What a network sees and what it should make of it; row i of one is row i of the other."""

    degraded: ImageSet
    clean: ImageSet


def pairs(name: str, clean: ImageSet, part: str, *, seed: int) -> Pairs:
    """The images and what the task of experiment `name` leaves of them; each of PARTS draws noise of its own."""
    if part not in PARTS:
        raise ValueError(f"{clean.name}: part {part!r}; expected one of {PARTS}")
    job, _ = experiment(name)
    return Pairs(job.degrade(clean, seed=len(PARTS) * seed + PARTS.index(part)), clean)


def training_sets(names: Sequence[str], sets: Mapping[str, ImageSet], *, images: int, seed: int) -> dict[str, ImageSet]:
    """The named sets, all of one size: `images` rows, or as many as "real" has; "a + b" is half of each.

    Rows are drawn at random, the same ones of two sets of equal length. Raises ValueError for a set that is not there or too
    small, or where "real", with which all are compared, is not asked for.
    """
    for part in (part for name in names for part in name.split(" + ")):
        if part not in sets:
            hint = did_you_mean(part, sets)
            raise ValueError(f"training set {part!r} does not exist (two are joined by ' + '); {hint}")
    if "real" not in names:
        raise ValueError(f"training sets {list(names)}: 'real' is missing, with which every other one is compared")
    n = min(images, len(sets["real"]))
    made = {}
    for name in names:
        parts = name.split(" + ")
        # the second half of b beside the first half of a: no row twice where both come from the same people
        shares = np.array_split(np.arange(n), len(parts))
        drawn = [_rows(sets[part], n, seed, share) for part, share in zip(parts, shares, strict=True)]
        made[name] = drawn[0] if len(drawn) == 1 else concatenate(drawn, name)
    return made


def _rows(images: ImageSet, n: int, seed: int, share: np.ndarray) -> ImageSet:
    """Of n rows drawn at random, those at the positions `share`."""
    if len(images) < max(n, 2):
        raise ValueError(
            f"{images.name}: {len(images)} images; expected at least {max(n, 2)}, as many as every other training set"
        )
    rows = np.random.default_rng(seed).permutation(len(images))[:n]
    return images.select(np.sort(rows[share]), name=f"{images.name}/{len(share)}")


def schedule(net: str, steps: int, seed: int, times: int = 1) -> RestorationTraining:
    """The budget of one training, or so many times that budget at the same rate: nothing in it depends on the training set."""
    steps = max(1, round(BUDGET.get(net, 1.0) * steps * times))
    warmup = max(RestorationTraining.warmup, round(WARMUP.get(net, 0.0) * steps))
    rate = LEARNING_RATES[net] * (2 if warmup >= SLOW * times else 1)
    return RestorationTraining(
        steps=steps, batch=BATCH, seed=seed, warmup=warmup, learning_rate=rate,
        clip=CLIP.get(net, RestorationTraining.clip),
        # data consistency belongs to whole images
        patch=None if net == "unrolled" else RestorationTraining.patch,
    )  # fmt: skip


def restored(
    name: str,
    training: Mapping[str, Pairs],
    tests: Mapping[str, Pairs],
    *,
    steps: int,
    seeds: Sequence[int],
    ledger: Ledger,
    times: int = 1,
) -> dict[str, dict[str, list[ImageSet]]]:
    """restored[test][training set]: the degraded test images as networks trained on that set restore them, one set per seed.

    times: how many times `steps` they are trained for. Networks that were trained before are found again.
    Raises ValueError for an unknown experiment or sets that are not pairs.
    """
    job, net = experiment(name)
    made: dict[str, dict[str, list[ImageSet]]] = {test: {arm: [] for arm in training} for test in tests}
    for arm, (degraded, clean) in training.items():
        consistency = job.consistency(clean) if net.net == "unrolled" else None
        for seed in seeds:
            model, _ = train_restoration(
                degraded, clean, net=net, training=schedule(net.net, steps, seed, times), ledger=ledger, consistency=consistency
            )
            for test in tests:
                made[test][arm].append(restore(model, tests[test].degraded))
    return made


def untrained(name: str, test: Pairs, tuned_on: Pairs) -> dict[str, list[ImageSet]]:
    """The degraded images as they are, and the classical methods of the task at the strengths that suit other people best."""
    job, _ = experiment(name)
    return {"degraded": [test.degraded]} | {k: [v] for k, v in job.classical(test.degraded, tuned_on=tuned_on).items()}


def scores(tests: Mapping[str, Pairs], made: Mapping[str, Mapping[str, Sequence[ImageSet]]]) -> dict[str, Comparison]:
    """Every training set, and whatever else restored the images, scored patient by patient on each test set."""
    return {test: compare(tests[test].clean, arms) for test, arms in made.items()}


def best(comparison: Comparison, arms: Sequence[str]) -> str:
    """The arm of highest mean PSNR: of several baselines, the one that is hardest to beat."""
    return max(arms, key=lambda arm: float(comparison.matrix(arm, "psnr").mean()))

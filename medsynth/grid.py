"""One restoration network trained on several sets, at one budget and schedule, each version tried on the same unseen patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import NamedTuple

import numpy as np

from medsynth.evaluation.equivalence import Comparison, compare
from medsynth.imageset import ImageSet, concatenate
from medsynth.privacy.ledger import Ledger
from medsynth.restore import RestorationTraining, restore, train_restoration
from medsynth.tasks import experiment

ARMS = ("real", "synthetic", "gated", "synthetic + real")
PARTS = ("train", "test", "tuning")  # no two of them share the noise of a row
# of Adam; chosen on low-dose CT of phantoms by networks trained on real images, so they favour no synthetic set
LEARNING_RATES = {"redcnn": 2e-3, "edsr": 5e-3, "unrolled": 3e-3, "restormer": 1e-3}
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


def training_sets(
    names: Sequence[str], *, real: ImageSet, synthetic: ImageSet, gated: ImageSet, images: int, seed: int
) -> dict[str, ImageSet]:
    """The sets of some of ARMS, all of one size: `images` rows, or as many as there are real ones.

    Real rows are drawn at random; "synthetic + real" is half of each. Raises ValueError for another arm, or too few images.
    """
    for name in names:
        if name not in ARMS:
            close = get_close_matches(name, ARMS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"expected one of {ARMS}"
            raise ValueError(f"arm {name!r}: no such training set; {hint}")
    if "real" not in names:
        raise ValueError(f"arms {list(names)}: 'real' is missing, with which every other one is compared")
    n = min(images, len(real))
    for s in (real, synthetic, gated):
        if len(s) < max(n, 2):
            raise ValueError(f"{s.name}: {len(s)} images; expected at least {max(n, 2)}, as many as every other training set has")
    drawn = real.select(np.sort(np.random.default_rng(seed).permutation(len(real))[:n]), name=f"{real.name}/{n}")
    # both halves are in random order of patients
    half = np.random.default_rng([seed, 1]).permutation(n)[: n // 2]
    both = [synthetic.select(np.arange(n - len(half))), drawn.select(half)]
    rows = np.arange(n)
    made = {
        "real": drawn, "synthetic": synthetic.select(rows), "gated": gated.select(rows),
        "synthetic + real": concatenate(both, f"{drawn.name}+synthetic"),
    }  # fmt: skip
    return {name: made[name] for name in names}


def schedule(net: str, steps: int, seed: int) -> RestorationTraining:
    """The budget of one training: nothing in it depends on the training set."""
    return RestorationTraining(
        steps=steps, batch=BATCH, seed=seed, learning_rate=LEARNING_RATES[net],
        # data consistency belongs to whole images
        patch=None if net == "unrolled" else RestorationTraining.patch,
    )  # fmt: skip


def restored(
    name: str, training: Mapping[str, Pairs], tests: Mapping[str, Pairs], *, steps: int, seeds: Sequence[int], ledger: Ledger
) -> dict[str, dict[str, list[ImageSet]]]:
    """restored[test][training set]: the degraded test images as networks trained on that set restore them, one set per seed.

    Networks that were trained before are found again. Raises ValueError for an unknown experiment or sets that are not pairs.
    """
    job, net = experiment(name)
    made: dict[str, dict[str, list[ImageSet]]] = {test: {arm: [] for arm in training} for test in tests}
    for arm, (degraded, clean) in training.items():
        consistency = job.consistency(clean) if net.net == "unrolled" else None
        for seed in seeds:
            model, _ = train_restoration(
                degraded, clean, net=net, training=schedule(net.net, steps, seed), ledger=ledger, consistency=consistency
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

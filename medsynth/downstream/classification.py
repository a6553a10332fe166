"""Classifiers of findings, trained on a set and tried on real patients: another thing that synthetic images may be good for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from monai.networks.nets import DenseNet
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional

from medsynth.evaluation.roc import Scored, auc
from medsynth.evaluation.statistics import Estimate, bootstrap_weighted, generator, percentile_interval, resample
from medsynth.imageset import ImageSet
from medsynth.language.words import did_you_mean
from medsynth.ledger import Ledger
from medsynth.store.dependencies import code_hash
from medsynth.store.runs import Tensors, Workspace, load_or_train
from medsynth.training import best_device, described, fit

_FEWEST = 5  # patients of a class, below which nothing is learned of it
_BINS = 10  # of a calibration curve, with as many predictions in each
_THUMBNAIL = 16  # pixels a side, from which the linear floor is read


@dataclass(frozen=True)
class ClassifierConfig:
    """A DenseNet (Huang et al., arXiv:1608.06993; by default DenseNet-121) and its training, which no training set decides."""

    steps: int
    batch: int = 32
    learning_rate: float = 1e-3
    warmup: int = 20  # steps
    weight_decay: float = 1e-2
    ema: float = 0.99
    features: int = 64  # channels of the first layer
    growth: int = 32
    blocks: tuple[int, ...] = (6, 12, 24, 16)
    seed: int = 0


class Scores(NamedTuple):
    """What a classifier's probabilities are worth on unseen patients; n = patients.

    auroc: mean over classes of one against the rest, of two classes that of the second. brier: mean squared error of the
    probabilities, summed over classes. calibration: mean distance of the confidence from the share that is right, in ten bins of
    equal size (Naeini et al., 2015).
    """

    auroc: Estimate
    brier: Estimate
    calibration: Estimate


def frequent_classes(private: ImageSet, test: ImageSet, asked: str = "", attribute: str = "finding") -> tuple[str, ...]:
    """Classes that enough patients of both sets have, by name, or those of them that are `asked`, with commas between.

    Raises ValueError for a set without the attribute, for fewer than two classes, and for one that is asked and not frequent.
    """
    frequent = _frequent(private, test, attribute)
    chosen = tuple(dict.fromkeys(name.strip() for name in asked.split(",") if name.strip())) or tuple(frequent)
    for name in chosen:
        if name not in frequent:
            raise ValueError(
                f"{private.name}: {attribute} {name!r} has fewer than {_FEWEST} patients; {did_you_mean(name, frequent)}"
            )
    if len(chosen) < 2:
        raise ValueError(f"{private.name}: classes {list(chosen)} of {attribute!r}; expected at least two to be told apart")
    return chosen


def told_apart(private: ImageSet, test: ImageSet, attributes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Of each attribute its frequent classes, where there are two: what a classifier can learn, and be tried on."""
    found = {attribute: tuple(_frequent(private, test, attribute)) for attribute in attributes}
    return {attribute: classes for attribute, classes in found.items() if len(classes) > 1}


def _frequent(private: ImageSet, test: ImageSet, attribute: str) -> list[str]:
    counts = []
    for images in (private, test):
        if attribute not in images.attributes:
            raise ValueError(f"{images.name}: no attribute {attribute!r}; there are {list(images.attributes)}")
        values = images.attributes[attribute].astype("string").reset_index(drop=True)
        counts.append(pd.Series(images.patient).groupby(values).nunique())
    return sorted(name for name in counts[0].index.intersection(counts[1].index) if min(c[name] for c in counts) >= _FEWEST)


def of_classes(images: ImageSet, classes: Sequence[str], attribute: str = "finding") -> ImageSet:
    """The rows of these classes."""
    return images.select(np.flatnonzero(images.attributes[attribute].isin(list(classes)).fillna(False)))


def few_of(images: ImageSet, classes: Sequence[str], patients: int, attribute: str = "finding") -> ImageSet:
    """All rows of the first patients by number, equally many of each class; a patient is of the class of their first row.

    Raises ValueError where a class has fewer.
    """
    label, each = labels_of(images, classes, attribute), patients // len(classes)
    people, first = np.unique(images.patient, return_index=True)
    chosen = [people[label[first] == k][:each] for k in range(len(classes))]
    for name, found in zip(classes, chosen, strict=True):
        if len(found) < max(each, 1):
            raise ValueError(
                f"{images.name}: {len(found)} patients of {name!r}; expected {max(each, 1)}, or choose fewer patients"
            )
    return images.of_patients(np.concatenate(chosen))


def labels_of(images: ImageSet, classes: Sequence[str], attribute: str = "finding") -> np.ndarray:
    """As `codes_of`, of a set that is learned from or judged on: a class of fewer than five patients is a ValueError, too."""
    label = codes_of(images, classes, attribute)
    for k, name in enumerate(classes):
        if (found := len(np.unique(images.patient[label == k]))) < _FEWEST:
            raise ValueError(f"{images.name}: {found} patients with {attribute} {name!r}; expected at least {_FEWEST}")
    return label


def codes_of(images: ImageSet, classes: Sequence[str], attribute: str = "finding") -> np.ndarray:
    """Position among `classes` of each row's attribute, int64 (n,).

    Raises ValueError for a set without it, and for rows with another value or none.
    """
    if attribute not in images.attributes:
        raise ValueError(f"{images.name}: no attribute {attribute!r}; there are {list(images.attributes)}")
    values = images.attributes[attribute].astype("string")
    codes = {name: k for k, name in enumerate(classes)}
    unknown = values[~values.isin(list(classes))]
    if len(unknown):
        raise ValueError(
            f"{images.name}: {attribute} is {unknown.iloc[0]!r} in {len(unknown)} rows; select rows of {', '.join(classes)}"
        )
    return values.map(codes).to_numpy(np.int64, copy=True)


def train_classifier(
    images: ImageSet, classes: Sequence[str], config: ClassifierConfig, *, ledger: Ledger, attribute: str = "finding"
) -> nn.Module:
    """A classifier (n, 1, h, w) in [-1, 1] -> logits (n, len(classes)), found again if trained before.

    Cross entropy; images are moved, scaled and brightened at random. Private images leave a line in the ledger. Raises ValueError
    as `labels_of` does, and for volumes.
    """
    if len(images.spatial) != 2:
        raise ValueError(f"{images.name}: images of {images.spatial}; expected (n, 1, h, w): take slices of stacks")
    label = labels_of(images, classes, attribute)
    ledger.read(images, stage="train classifier", output=f"weights of a classifier of {attribute}, an instrument, not released")
    device = best_device()

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return DenseNet(
                spatial_dims=2, in_channels=1, out_channels=len(classes), init_features=config.features,
                growth_rate=config.growth, block_config=config.blocks,
            )  # fmt: skip

    def train(workspace: Workspace) -> tuple[Tensors, dict[str, float]]:
        model = build().to(device)
        pixels, truth = torch.from_numpy(images.scaled()), torch.from_numpy(label)

        def loss(step: int, random: torch.Generator) -> torch.Tensor:
            rows = torch.randint(len(truth), (config.batch,), generator=random, device=device).cpu()
            return functional.cross_entropy(model(_varied(pixels[rows].to(device), random)), truth[rows].to(device))

        how = {"steps": config.steps, "learning_rate": config.learning_rate, "weight_decay": config.weight_decay}
        how |= {"warmup": config.warmup, "ema": config.ema, "seed": config.seed}
        return fit(model, loss, **how, workspace=workspace, label=f"classifier of {images.name}")

    model = build()
    inputs = {"images": images.content_hash, "classes": ",".join((attribute, *classes)), "code": code_hash(__name__)}
    model.load_state_dict(load_or_train("classifier", config, inputs, train, device=described(device)).weights)
    return model.to(device).eval().requires_grad_(False)


@torch.no_grad()
def probabilities(model: nn.Module, images: ImageSet, *, batch: int = 128) -> np.ndarray:
    """Of each class for each image, float64 (n, classes)."""
    device = next(model.parameters()).device
    chunks = torch.from_numpy(images.scaled()).split(batch)
    return torch.cat([model(x.to(device)).double().softmax(1).cpu() for x in chunks]).numpy()


def thumbnail_probabilities(
    training: ImageSet, test: ImageSet, classes: Sequence[str], *, ledger: Ledger, attribute: str = "finding"
) -> np.ndarray:  # fmt: skip
    """As `probabilities`, of a linear model on 16 x 16 thumbnails: what a classifier has to beat to have looked at anything.

    Private images leave a line in the ledger. Raises ValueError as `labels_of` does.
    """
    ledger.read(training, stage="train classifier", output=f"a linear model of {attribute} on thumbnails, not released")
    x, y = (functional.adaptive_avg_pool2d(torch.from_numpy(s.scaled()), _THUMBNAIL).flatten(1).numpy() for s in (training, test))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    return model.fit(x, labels_of(training, classes, attribute)).predict_proba(y)


def auroc(label: np.ndarray, probability: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Mean over classes of the area under the ROC of one against the rest; of two classes, that of the second."""
    kinds = range(probability.shape[1]) if probability.shape[1] > 2 else (1,)
    return float(np.mean([_one_against_rest(label == k, probability[:, k], weight) for k in kinds]))


def scores(label: np.ndarray, probability: np.ndarray, patient: np.ndarray, *, seed: int, replicates: int = 1000) -> Scores:
    """Of probabilities (n, k) of rows of known class (n,), each with its interval over patients."""
    options = {"seed": seed, "replicates": replicates}
    squared = ((probability - np.eye(probability.shape[1])[label]) ** 2).sum(1)
    confidence, right = probability.max(1), probability.argmax(1) == label
    return Scores(
        bootstrap_weighted(lambda w: auroc(label, probability, w), patient, **options),
        bootstrap_weighted(lambda w: float(w @ squared / w.sum()), patient, **options),
        bootstrap_weighted(lambda w: _miscalibration(confidence, right, w), patient, **options),
    )


def class_aurocs(
    label: np.ndarray, probability: np.ndarray, classes: Sequence[str], patient: np.ndarray, *, seed: int, replicates: int = 1000
) -> dict[str, Estimate]:
    """AUROC of each class against the rest, with its interval over patients."""
    return {
        name: bootstrap_weighted(
            lambda w, k=k: _one_against_rest(label == k, probability[:, k], w), patient, seed=seed, replicates=replicates
        )
        for k, name in enumerate(classes)
    }


def differences(
    label: np.ndarray, made: Mapping[str, Sequence[np.ndarray]], reference: str, patient: np.ndarray, *, seed: int,
    replicates: int = 1000,
) -> dict[str, Estimate]:  # fmt: skip
    """AUROC of each training set less that of `reference`, on the same patients; made: probabilities of networks of each seed.

    Means over seeds. The interval draws patients, and of each set its seeds, anew (both with replacement). n = patients.
    """
    people, unit = np.unique(patient, return_inverse=True)
    drawn = resample(len(people), seed=seed, replicates=replicates).astype(np.float64)[:, unit]
    # replicates of every network under the same patients, so that what patients share falls out of the difference
    every = {arm: np.array([[auroc(label, p, w) for w in drawn] for p in networks]) for arm, networks in made.items()}
    means = {arm: float(np.mean([auroc(label, p) for p in networks])) for arm, networks in made.items()}
    redrawn = {arm: _over_seeds(found, seed, k) for k, (arm, found) in enumerate(every.items())}
    return {
        arm: percentile_interval(means[arm] - means[reference], redrawn[arm] - redrawn[reference], len(people))
        for arm in made
        if arm != reference
    }


def _over_seeds(found: np.ndarray, seed: int, place: int) -> np.ndarray:
    """Mean over as many networks as there are, drawn anew for each replicate; found: (networks, replicates)."""
    networks, replicates = found.shape
    chosen = generator(seed, place, networks).integers(networks, size=(networks, replicates))
    return np.take_along_axis(found, chosen, axis=0).mean(0)


def _one_against_rest(positive: np.ndarray, score: np.ndarray, weight: np.ndarray | None) -> float:
    weight = np.ones(len(score)) if weight is None else weight
    return auc(*(Scored.of(score[rows], weight[rows]) for rows in (positive, ~positive)))


def _miscalibration(confidence: np.ndarray, right: np.ndarray, weight: np.ndarray) -> float:
    order = np.argsort(confidence, kind="stable")
    mass = np.cumsum(weight[order])
    part = np.minimum((_BINS * (mass - weight[order] / 2) / mass[-1]).astype(int), _BINS - 1)
    gap = np.bincount(part, weight[order] * (confidence - right)[order], _BINS)
    return float(np.abs(gap).sum() / mass[-1])


def _varied(images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Images (n, 1, h, w) in [-1, 1], each turned, scaled, moved and brightened a little; beyond the edge lies the edge."""
    n = len(images)

    def uniform(spread: float) -> torch.Tensor:
        return (torch.rand(n, generator=random, device=images.device) * 2 - 1) * spread

    turn, scale = uniform(0.1), uniform(0.12).exp()
    cos, sin = turn.cos() * scale, turn.sin() * scale
    matrix = torch.stack([torch.stack([cos, -sin, uniform(0.08)], 1), torch.stack([sin, cos, uniform(0.08)], 1)], 1)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    bright, contrast = (uniform(0.15)[:, None, None, None] for _ in range(2))
    return moved * (1 + contrast) + bright

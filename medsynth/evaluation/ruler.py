"""Is an extractor a sane ruler? Its distances must rise with damage and notice a thinned class and a block of copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from medsynth.evaluation.features import Extractor
from medsynth.evaluation.fidelity import frechet_distance, kid_value
from medsynth.evaluation.statistics import Estimate, bootstrap_mean, generator, patient_halves, percentile_interval, resample
from medsynth.imageset import ImageSet
from medsynth.results import Row, table_of

NOISE = (0.0, 0.02, 0.05, 0.1, 0.2)  # sd as a share of the pixel range
BLUR = (0.0, 0.5, 1.0, 2.0, 4.0)  # sd in pixels of an image 64 px wide
DROPPED = (0.0, 0.25, 0.5, 0.75, 1.0)  # share of one class that is missing
FEWEST = 6  # patients that a half must keep when a class is left out
THINNED, COPIED = 0.10, 0.05  # shares of the whole set, for the power of noticing

Halves = list[tuple[np.ndarray, np.ndarray]]
# (features, patients) of the reference half and of the changed half to a distance
Distance = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], float]


def noisy(images: ImageSet, level: float, *, seed: int) -> ImageSet:
    """Gaussian noise of sd `level` times the range, clipped to the range; a row's noise depends on (seed, row) alone."""
    low, high = images.range
    noise = np.stack([generator(seed, i).standard_normal(images.images.shape[1:], dtype=np.float32) for i in range(len(images))])
    return images.with_images(np.clip(images.images + np.float32(level * (high - low)) * noise, low, high))


def blurred(images: ImageSet, level: float) -> ImageSet:
    """Gaussian blur of sd `level` pixels of a 64 px wide image, whatever the width."""
    sd = level * images.spatial[-1] / 64
    smooth = gaussian_filter(images.images, sd, mode="nearest", axes=range(2, images.images.ndim))
    return images.with_images(np.clip(smooth, *images.range))


def response(
    extractor: Extractor, images: ImageSet, label: np.ndarray, *, chapter: str, dataset: str, seed: int, splits: int = 20
) -> list[Row]:
    """FID and KID of a clean half against a damaged patient-disjoint half, by kind and strength of damage.

    Damage: noise, blur, and a growing share of one class left out (the largest class that holds at most half of the rows). In a
    split all are compared at the number of rows that the last one leaves. Less of a class is damage only up to the share
    that the reference has of it, and beyond that makes the halves more alike; so a split counts in the direction in which the
    reference has the larger share. One that leaves fewer than 6 patients, or nothing to leave out, is passed over; where no
    split is left there are no rows. label (n,) names classes. Each row: the mean over
    splits with the central 95 % of splits; n = patients. FID only where a half has at least 2 d patients.
    """
    named = {"chapter": chapter, "dataset": dataset, "arm": extractor.name, "seed": seed}
    clean = extractor(images)
    # each split both ways round: what sets two halves apart by chance cancels, and damage remains
    halves = [pair for a, b in patient_halves(images.patient, seed=seed, splits=splits) for pair in ((a, b), (b, a))]
    metrics = _metrics(extractor, images, halves)
    rows: list[Row] = []
    levels = [("noise", v, lambda v=v: noisy(images, v, seed=seed)) for v in NOISE]
    levels += [("blur", v, lambda v=v: blurred(images, v)) for v in BLUR]
    for kind, level, damage in levels:
        changed = extractor(damage()) if level else clean
        pairs = [(clean[a], changed[b], images.patient[a], images.patient[b]) for a, b in halves]
        rows += _rows(pairs, metrics, images.patients, **named, perturbation=kind, strength=level)
    dropped = largest_class(label)
    left = [int((label[b] != dropped).sum()) for _, b in halves]
    splits_left = [
        s for s, (a, b) in enumerate(halves)
        if (label[a] == dropped).mean() >= (label[b] == dropped).mean() > 0
        and len(np.unique(images.patient[b][label[b] != dropped])) >= FEWEST
    ]  # fmt: skip
    for level in DROPPED if splits_left else ():
        chosen = [_dropped(*halves[s], label, dropped, level, left[s], seed, s) for s in splits_left]
        pairs = [(clean[a], clean[b], images.patient[a], images.patient[b]) for a, b in chosen]
        rows += _rows(pairs, metrics, images.patients, **named, perturbation="dropped class", strength=level)
    return rows


def power(
    extractor: Extractor, images: ImageSet, label: np.ndarray, *, chapter: str, dataset: str, seed: int, splits: int = 100
) -> list[Row]:
    """z = (mean changed - mean unchanged) / sd unchanged, over random patient-disjoint halves, of FID and KID.

    "thinned class": one half loses rows of one class that amount to 10 % of the half; the mean over all classes that can lose
    so many, each also by itself. "copies": 5 % of a half are replaced by copies of one of its other rows, drawn anew for each
    split. Changed and unchanged sets have the same number of rows. z is the number of floor widths by which the change moves
    the score. label (n,) names classes. Intervals resample splits; n = patients. FID only where a half has at least 2 d patients.
    """
    named = {"chapter": chapter, "dataset": dataset, "arm": extractor.name, "seed": seed}
    features = extractor(images)
    halves = patient_halves(images.patient, seed=seed, splits=splits)
    size = len(halves[0][0])
    lost = round(THINNED * size)
    classes = [c for c in np.unique(label).tolist() if min((label[b] == c).sum() for _, b in halves) >= lost]
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {f"thinned class {c}": [] for c in classes}
    pairs |= {"unchanged": [], "whole": list(halves), "copies": []}
    for s, (a, b) in enumerate(halves):
        rng = generator(seed, s, 3)
        fewer = rng.permutation(a)[: size - lost]
        pairs["unchanged"].append((fewer, rng.permutation(b)[: size - lost]))
        for c in classes:
            victims = rng.permutation(np.flatnonzero(label[b] == c))[:lost]
            pairs[f"thinned class {c}"].append((fewer, np.delete(b, victims)))
        pairs["copies"].append((a, _with_copies(b, round(COPIED * size), rng)))
    rows: list[Row] = []
    for metric, distance in _metrics(extractor, images, halves).items():
        score = {
            k: np.array([distance(features[a], features[b], images.patient[a], images.patient[b]) for a, b in v])
            for k, v in pairs.items()
        }
        tests = {k: (score[k], score["unchanged"], THINNED) for k in score if k.startswith("thinned")}
        if classes:
            tests["thinned class"] = (np.mean([t[0] for t in tests.values()], axis=0), score["unchanged"], THINNED)
        tests["copies"] = (score["copies"], score["whole"], COPIED)
        for kind, (changed, unchanged, level) in tests.items():
            z = _z(changed, unchanged, images.patients, seed)
            rows.append(Row.of(z, metric=f"z_{metric}", **named, perturbation=kind, strength=level, rows=size))
    return rows


def rises(rows: Sequence[Row]) -> dict[tuple[str, str, str, str], bool]:
    """Whether the mean distance never falls as the strength grows, per (extractor, dataset, perturbation, metric)."""
    curves: dict[tuple[str, str, str, str], list[tuple[float, float]]] = {}
    for r in rows:
        curves.setdefault(_curve(r), []).append((r.extra["strength"], r.value))
    return {key: bool((np.diff([v for _, v in sorted(curve)]) > 0).all()) for key, curve in curves.items()}


def rise_rows(levels: Sequence[Row]) -> list[Row]:
    """`rises` as rows: 1 where a curve of `response` never falls, else 0."""
    named = {"chapter": levels[0].chapter, "seed": levels[0].seed}
    return [
        Row(metric=f"{metric} never falls (1 = yes)", arm=arm, dataset=dataset, value=float(holds), **named,
            extra={"perturbation": kind})
        for (arm, dataset, kind, metric), holds in rises(levels).items()
    ]  # fmt: skip


def enough_splits(images: int, splits: int) -> int:
    """More splits of a set of fewer than 500: a distance scatters as 1 / rows, and its mean as 1 / sqrt(splits)."""
    return splits * max(1, 500 // images) ** 2


def panels(levels: Sequence[Row]) -> pd.DataFrame:
    """A table of `response` to be drawn, FID first: a column `panel` for each score and damage.

    FID is a multiple of what it is without damage; KID, which is about zero there, is as it is.
    """
    undamaged = {_curve(r): r.value for r in levels if r.metric == "fid" and r.extra["strength"] == 0}
    by, table = np.array([undamaged.get(_curve(r), 1.0) for r in levels]), table_of(levels)
    table = table.assign(**{c: table[c] / by for c in ("value", "low", "high")})
    names = table.metric.map({"fid": "FID ratio", "kid": "KID"})
    return table.assign(panel=names + ", " + table.perturbation).sort_values("metric", kind="stable", ignore_index=True)


def power_over(
    extractor: Extractor, populations: Sequence[ImageSet], labels: Sequence[np.ndarray], *, chapter: str, dataset: str, seed: int,
    splits: int = 100,
) -> list[Row]:  # fmt: skip
    """The mean of `power` over several populations, then `power` in each, told apart by columns `populations` and `population`.

    What not every population has is left out of the mean. Intervals of means are over populations; n counts their patients.
    Of one population, `power`.
    """
    named = {"chapter": chapter, "dataset": dataset, "seed": seed, "splits": splits}
    tables = [power(extractor, images, label, **named) for images, label in zip(populations, labels, strict=True)]
    if len(tables) == 1:
        return tables[0]
    found: dict[tuple[str, str], list[Row]] = {}
    for row in (row for table in tables for row in table):
        found.setdefault((row.extra["perturbation"], row.metric), []).append(row)
    rows = []
    for same in (v for v in found.values() if len(v) == len(tables)):
        mean = bootstrap_mean(np.array([r.value for r in same]), np.arange(len(same)), seed=seed)
        extra = {**same[0].extra, "populations": len(tables)}
        rows.append(replace(same[0], value=mean.value, low=mean.low, high=mean.high, n=sum(r.n for r in same), extra=extra))
    each = [replace(row, extra={**row.extra, "population": i}) for i, table in enumerate(tables) for row in table]
    return rows + each


def largest_class(label: np.ndarray) -> Any:
    """The most frequent class that holds at most half of the rows; raises ValueError if there is none."""
    values, counts = np.unique(label, return_counts=True)
    fits = counts <= len(label) / 2
    if not fits.any():
        raise ValueError(f"every class of {values.tolist()} holds more than half of the rows; give finer labels")
    return values[fits][counts[fits].argmax()]


def _curve(row: Row) -> tuple[str, str, str, str]:
    return row.arm, row.dataset, str(row.extra["perturbation"]), row.metric


def _dropped(
    a: np.ndarray, b: np.ndarray, label: np.ndarray, dropped: Any, level: float, size: int, seed: int, split: int
) -> tuple[np.ndarray, np.ndarray]:
    rng = generator(seed, split, 4)
    # one order of the rows, and one of those that go, for all levels: what a missing row leaves free goes to the next in line
    order, gone = rng.permutation(b), rng.permutation(b[label[b] == dropped])
    kept = order[~np.isin(order, gone[: round(level * len(gone))])]
    return rng.permutation(a)[:size], kept[:size]


def _with_copies(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    order = rng.permutation(rows)
    return np.concatenate([np.repeat(order[-1], count), order[count:]])


def _z(changed: np.ndarray, unchanged: np.ndarray, patients: int, seed: int) -> Estimate:
    drawn = resample(len(changed), seed=seed, replicates=500) / len(changed)
    deviation = np.sqrt(np.maximum(drawn @ unchanged**2 - (drawn @ unchanged) ** 2, 0))
    value = (changed.mean() - unchanged.mean()) / unchanged.std()
    return percentile_interval(float(value), (drawn @ (changed - unchanged)) / deviation, patients)


def _metrics(extractor: Extractor, images: ImageSet, halves: Halves) -> dict[str, Distance]:
    # images of one patient are no independent samples: with few patients the bias of FID hides what is looked for
    people = min(len(np.unique(images.patient[half])) for pair in halves for half in pair)
    enough: dict[str, Distance] = {"fid": lambda a, b, p, q: frechet_distance(a, b)} if people >= 2 * extractor.dim else {}
    return enough | {"kid": kid_value}


def _rows(pairs: Sequence[tuple], metrics: dict[str, Distance], patients: int, **named: Any) -> Iterator[Row]:
    size = round(np.mean([len(a) for a, *_ in pairs]))
    for metric, distance in metrics.items():
        values = np.array([distance(a, b, p, q) for a, b, p, q in pairs])
        yield Row.of(percentile_interval(float(values.mean()), values, patients), metric=metric, **named, rows=size)

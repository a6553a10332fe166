"""Files in which somebody has outlined the structures: their labels, what these say of volumes, and a segmenter of such scans.

The segmenter of phantoms is of no use on scans: on ACDC its Dice of the left ventricle was 0.61. One that is trained on scans
needs labels of people. It is an instrument: its training is a reading of private images with no mechanism, it is not released,
and whatever it measures of samples rests on those people as well. They are the patients the generator is trained on, so that
nobody else's images are touched. Its error is stated on patients whom it has not seen. A sample that repeats a training heart
is measured better than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medsynth.data.archive import read_arrays
from medsynth.data.npz import MASKS
from medsynth.evaluation.hearts.labels import (
    STRUCTURES,
    HeartSegmenter,
    SegmenterConfig,
    dice,
    heart_segmenter,
    segment,
    train_segmenter,
)
from medsynth.evaluation.statistics import Estimate, bootstrap_mean
from medsynth.imageset import ImageSet, concatenate
from medsynth.ledger import Ledger
from medsynth.phantoms.heart.heart import PHASES, measure_volumes
from medsynth.resample import stacks_at

NOMINAL = (96.0, 192.0, 192.0)  # mm that a stack is taken to span where nobody has said it: usual of adults, of no set
_ROUNDING = 1e-4  # of the range: what two ways to the same grid may differ by


def nominal_spacing(spatial: tuple[int, ...]) -> tuple[float, float, float]:
    """Spacing in mm of a grid (d, h, w) of stacks whose size nobody knows, in which volumes are *nominal* ml.

    A person's nominal volume is the true one times a factor that differs between people; ejection fractions are exact.
    """
    return tuple(span / points for span, points in zip(NOMINAL, spatial, strict=True))


def labels_of(path: str | Path, images: ImageSet) -> np.ndarray | None:
    """Labels uint8 (n, d, h, w) of stacks that were read from an .npz file; None where it holds none, or where there is no file.

    images: all stacks of some patients of the file, in its order, on any grid that `stacks_at` makes; labels are brought to it
    in the same way, and each voxel gets what fills most of it. 0 background, 1 right ventricle, 2 myocardium, 3 left ventricle.
    Raises ValueError for labels of another shape or with other numbers, and for images of which the file holds no such stack.
    """
    if not Path(path).is_file():
        return None
    arrays = read_arrays(Path(path))
    key = next((k for k in MASKS if k in arrays and arrays[k].ndim == 4), None)
    if key is None:
        return None
    volumes, labels, name = arrays["volume"], arrays[key], Path(path).name
    if labels.shape != volumes.shape or not np.isin(labels, (0, *STRUCTURES)).all():
        raise ValueError(
            f"{name}: {key} of shape {labels.shape}, up to {labels.max(initial=0)}; expected {volumes.shape}, as the volumes, "
            f"and 0 to {max(STRUCTURES)}: background, right ventricle, myocardium, left ventricle"
        )
    rows = np.flatnonzero(np.isin(arrays["patient"], images.patient))
    if not np.array_equal(arrays["patient"][rows], images.patient):
        raise ValueError(f"{images.name}: {len(images)} stacks, {len(rows)} of these patients in {name}; expected all, in order")
    grey = volumes[rows].astype(np.float32) / (255 if volumes.dtype == np.uint8 else 1)
    # as channels beside the image, labels go the way that it goes
    channels = np.stack([grey, *(labels[rows] == k for k in STRUCTURES)], axis=1, dtype=np.float32)
    depth, side, _ = images.spatial
    both = ImageSet(images=channels, patient=images.patient, unit="1", range=(0, 1), name=name)
    found = stacks_at(both, depth, side).images
    if not np.allclose(found[:, 0], images.images[:, 0], atol=_ROUNDING):
        raise ValueError(f"{images.name}: its images are not those that {name} holds of these patients; give the file it is from")
    shares = np.concatenate([1 - found[:, 1:].sum(1, keepdims=True), found[:, 1:]], axis=1)
    return shares.argmax(1).astype(np.uint8)


def with_volumes(images: ImageSet, labels: np.ndarray | None) -> ImageSet:
    """The same stacks with what labels say of each patient as attributes, in the words of conditions; without labels as they are.

    lvedv, lvesv, rvedv, rvesv in ml, lvef, rvef in %, wall_ed, wall_es in mm, angle at ED; nominal without a spacing. Equal on
    all rows of a patient, and missing where there is no stack of that phase. Needs the attribute `phase`.
    """
    if labels is None:
        return images
    measured = measure_volumes(labels, images.spacing or nominal_spacing(images.spatial))
    phase = images.attributes["phase"].to_numpy(float, na_value=np.nan)
    of_phase = (measured.mul(np.where(phase == k, 1, np.nan), axis=0) for k in range(len(PHASES)))
    ed, es = (found.groupby(images.patient).transform("mean") for found in of_phase)
    found = {
        "lvedv": ed["lv"], "lvesv": es["lv"], "lvef": 100 * (1 - es["lv"] / ed["lv"]),
        "rvedv": ed["rv"], "rvesv": es["rv"], "rvef": 100 * (1 - es["rv"] / ed["rv"]),
        "wall_ed": ed["wall"], "wall_es": es["wall"], "angle": ed["angle"],
    }  # fmt: skip
    return replace(images, attributes=images.attributes.assign(**found))


def segmenter_for(
    private: ImageSet, unseen: Sequence[ImageSet], data: str, config: SegmenterConfig, *, ledger: Ledger, seed: int
) -> tuple[HeartSegmenter, dict[str, Estimate]]:
    """A segmenter, and its `segmenter_error` on the sets `unseen`: trained on the labels of a file, otherwise on phantoms.

    data: the file that all sets are from. That private images train a segmenter leaves a line in the ledger.
    """
    labels = labels_of(data, private)
    if labels is None:
        return heart_segmenter(config), {}
    found = train_segmenter(private, labels, config, ledger=ledger)
    known = np.concatenate([labels_of(data, images) for images in unseen])
    return found, segmenter_error(found, concatenate(unseen, "unseen"), known, seed=seed)


def segmenter_error(segmenter: HeartSegmenter, images: ImageSet, labels: np.ndarray, *, seed: int) -> dict[str, Estimate]:
    """Mean Dice of each structure over stacks that the segmenter has not seen, with intervals over patients.

    Stacks in which neither shows the structure do not count. Also "lv ratio": the volume that is found over the true one.
    """
    segmented = segment(segmenter, images)
    scores = dice(segmented, labels)
    found = {}
    for name, column in zip(STRUCTURES.values(), scores.T, strict=True):
        known = np.isfinite(column)
        found[f"Dice {name}"] = bootstrap_mean(column[known], images.patient[known], seed=seed)
    ratio = [measure_volumes(of, (1, 1, 1))["lv"].to_numpy() for of in (segmented, labels)]
    return found | {"lv ratio": bootstrap_mean(ratio[0] / ratio[1], images.patient, seed=seed)}

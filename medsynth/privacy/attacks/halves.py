"""Halves of each patient's planes: one to train on, one that is as like the patient and that no network has seen.

A sample that comes near a training image may be a memory, or only like the patient. Every second plane of each stack is trained
on; which of the two halves that is, a fair coin says for each patient. Were nothing memorised, the two could be exchanged: a
sample is then as often nearest to a held-out half as to a trained one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from medsynth.evaluation.statistics import generator
from medsynth.imageset import ImageSet
from medsynth.resample import stacks_at


class Halves(NamedTuple):
    """Planes of the same patients; the trained half has those of patients who have but one, too."""

    trained: ImageSet
    held_out: ImageSet


def planes_halved(images: ImageSet, *, planes: int, seed: int) -> Halves:
    """Every second plane of each patient, and the others; of stacks (n, c, d, h, w), or of images (n, c, h, w), in their order.

    planes: of a half, at most: where there are more, as many as there is room for are taken first, evenly spaced. A stack's half
    is padded to this depth with black planes, and its attribute `n_slices`, where there is one, becomes that of the half.
    All is decided by the patient's own planes and coin. Raises ValueError where a patient has several stacks.
    """
    if len(images.spatial) == 2:
        return _of_images(images, planes, seed)
    if images.patients < len(images):
        raise ValueError(f"{images.name}: {len(images)} stacks of {images.patients} patients; expected one of each")
    return _of_stacks(images, planes, seed)


def one_image_each(images: ImageSet) -> ImageSet:
    """The first image or stack of each patient."""
    return images.select(np.sort(np.unique(images.patient, return_index=True)[1]))


def planes_at(stacks: ImageSet, size: int) -> ImageSet:
    """Stacks with planes of `size` pixels, as `stacks_at` makes them; no plane is left out, and none is drawn twice."""
    n, channels, depth = stacks.images.shape[:3]
    alone = stacks.select(np.repeat(np.arange(n), depth))
    alone = replace(alone, images=np.moveaxis(stacks.images, 2, 1).reshape(n * depth, channels, 1, *stacks.spatial[1:]))
    small = stacks_at(alone, 1, size).images.reshape(n, depth, channels, size, size)
    return replace(stacks, images=np.moveaxis(small, 1, 2), spacing=None)


def _of_stacks(stacks: ImageSet, planes: int, seed: int) -> Halves:
    low, shape = stacks.range[0], (len(stacks), stacks.images.shape[1], planes, *stacks.spatial[1:])
    pixels, depth = np.full((2, *shape), low, np.float32), np.zeros((2, len(stacks)), int)
    for i, stack in enumerate(stacks.images):
        shown = np.flatnonzero((stack > low).any(axis=(0, 2, 3)))
        for half, rows in enumerate(_dealt(shown, planes, int(stacks.patient[i]), seed)):
            pixels[half, i, :, : len(rows)], depth[half, i] = stack[:, rows], len(rows)
    made = []
    for half, name in enumerate(Halves._fields):
        own = replace(stacks, images=pixels[half], spacing=None, name=f"{stacks.name}/{name.replace('_', '-')} half")
        if "n_slices" in stacks.attributes:
            own = replace(own, attributes=stacks.attributes.assign(n_slices=depth[half]))
        # a half of no planes is no image
        made.append(own.select(depth[half] > 0))
    return Halves(*made)


def _of_images(images: ImageSet, planes: int, seed: int) -> Halves:
    rows: tuple[list[int], list[int]] = ([], [])
    for person in np.unique(images.patient).tolist():
        for half, own in zip(rows, _dealt(np.flatnonzero(images.patient == person), planes, person, seed), strict=True):
            half.extend(own.tolist())
    names = (f"{images.name}/{name.replace('_', '-')} half" for name in Halves._fields)
    return Halves(*(images.select(sorted(half), name) for half, name in zip(rows, names, strict=True)))


def _dealt(rows: np.ndarray, planes: int, patient: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(trained, held out) of one patient's planes, every second one each; a plane that is alone is trained on."""
    if len(rows) > 2 * planes:
        rows = rows[np.linspace(0, len(rows) - 1, 2 * planes).round().astype(int)]
    if len(rows) < 2:
        return rows, rows[:0]
    # patients' numbers may be negative, a key may not
    coin = int(generator(seed, patient % 2**63).integers(2))
    return rows[coin::2], rows[1 - coin :: 2]

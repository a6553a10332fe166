"""Changing the pixel grid of images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from medsynth.imageset import ImageSet


def resize(images: ImageSet, size: int) -> ImageSet:
    """Square 2D images resampled to `size` pixels: mean over blocks for whole factors, else antialiased bilinear."""
    height, width = images.spatial[-2:]
    if len(images.spatial) != 2 or height != width:
        raise ValueError(f"{images.name}: spatial shape {images.spatial}; expected square 2D images")
    if height == size:
        return images
    if height % size == 0:
        f = height // size
        small = images.images.reshape(*images.images.shape[:2], size, f, size, f).mean(axis=(3, 5))
    else:
        flat = images.images.reshape(-1, height, width)
        small = np.stack([np.asarray(Image.fromarray(i).resize((size, size), Image.Resampling.BILINEAR)) for i in flat])
        small = small.reshape(*images.images.shape[:2], size, size)
    spacing = None if images.spacing is None else tuple(s * height / size for s in images.spacing)
    return replace(images, images=np.clip(small, *images.range), spacing=spacing)


def stacks_at(volumes: ImageSet, slices: int, size: int) -> ImageSet:
    """Stacks (n, c, slices, size, size) of volumes: planes evenly spaced among those that are not padding, in-plane as `resize`.

    Planes are cut to their middle where they are larger than a whole multiple of `size`. Volumes of this shape stay as they are.
    Attribute `n_slices`, where there is one, is that of the new stack. Raises ValueError for planes smaller than `size`.
    """
    if volumes.spatial == (slices, size, size):
        return volumes
    side = min(volumes.spatial[-2:]) // size * size
    if len(volumes.spatial) != 3 or not side:
        raise ValueError(f"{volumes.name}: spatial shape {volumes.spatial}; expected stacks of planes of at least {size} pixels")
    low, picked = volumes.range[0], []
    for volume in volumes.images:
        shown = np.flatnonzero((volume > low).any(axis=(0, 2, 3)))
        planes = np.linspace(shown[0], shown[-1], slices).round().astype(int) if len(shown) else np.zeros(slices, int)
        picked.append(volume[:, planes])
    top, left = ((s - side) // 2 for s in volumes.spatial[-2:])
    cut = np.stack(picked)[..., top : top + side, left : left + side]
    flat = cut.reshape(*cut.shape[:3], size, side // size, size, side // size).mean(axis=(4, 6))
    table = volumes.attributes.assign(n_slices=slices) if "n_slices" in volumes.attributes else volumes.attributes
    # planes are no longer evenly spaced in mm where stacks differ in length
    return replace(volumes, images=np.clip(flat, *volumes.range), spacing=None, attributes=table)


def pad_square(array: np.ndarray, value: float = 0.0) -> np.ndarray:
    """Pad the last two axes with `value` to a centred square."""
    height, width = array.shape[-2:]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    padding = [(0, 0)] * (array.ndim - 2) + [(top, side - height - top), (left, side - width - left)]
    return np.pad(array, padding, constant_values=value)


def slices_of(volumes: ImageSet, planes: range | None = None, *, middle: float = 1.0) -> ImageSet:
    """2D images of volumes (n, c, d, h, w): the given planes (default all) that are not empty, padded to squares.

    middle: the share of each volume's planes that is kept, about their centre, at least one; stacks may end in padding, which
    is why empty planes do not count. Raises ValueError if every plane is empty.
    """
    planes = range(volumes.spatial[0]) if planes is None else planes
    low = volumes.range[0]
    index, images = [], []
    for i, volume in enumerate(volumes.images):
        shown = [plane for z in planes if (plane := volume[:, z]).max() > low]
        kept = max(1, round(middle * len(shown)))
        first = (len(shown) - kept) // 2
        images += shown[first : first + kept] if shown else []
        index += [i] * min(kept, len(shown))
    if not images:
        raise ValueError(f"{volumes.name}: no plane of {planes} holds anything above {low:g} {volumes.unit}; nothing to slice")
    picked = volumes.select(np.array(index, dtype=int))
    spacing = None if volumes.spacing is None else volumes.spacing[1:]
    orientation = volumes.orientation and volumes.orientation[1:]
    flat = pad_square(np.stack(images), low)
    return replace(picked, images=flat, spacing=spacing, orientation=orientation, name=f"{volumes.name}-slices")

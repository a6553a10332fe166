"""A patient's own smooth noise, and clouds of points drawn as density images."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from medsynth.phantoms.thorax.anatomy import LATTICE, Anatomy


def noise(anatomy: Anatomy, cell: float, *coordinates: np.ndarray, octave: int = 0) -> np.ndarray:
    """The patient's own smooth noise, about unit variance, with cells of `cell` mm, at flat or gridded (x, y, z)."""
    lattice = np.roll(anatomy.lattice, 5 * octave, axis=0)
    return _sample(lattice, [c / cell + 3.7 * octave for c in coordinates]) * np.float32(1.5)


def noise_slice(anatomy: Anatomy, cell: float, x: np.ndarray, y: np.ndarray, z: float, octave: int = 0) -> np.ndarray:
    """As `noise` at one height, interpolating the lattice along z once."""
    lattice = np.roll(anatomy.lattice, 5 * octave, axis=0)
    k = z / cell + 3.7 * octave
    low, t = int(np.floor(k)), np.float32(k - np.floor(k))
    plane = lattice[..., low % LATTICE] * (1 - t) + lattice[..., (low + 1) % LATTICE] * t
    # interpolation loses variance; restore it
    plane = plane / np.sqrt((1 - t) ** 2 + t**2)
    return _sample(plane, [x / cell + 3.7 * octave, y / cell + 3.7 * octave]) * np.float32(1.5)


def splat(i: np.ndarray, j: np.ndarray, mass: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Points at fractional (column i, row j) as mass per pixel, bilinear, (h, w); points off the image are lost."""
    h, w = shape
    keep = (i > 0) & (i < w - 1) & (j > 0) & (j < h - 1)
    i, j, mass = i[keep], j[keep], mass[keep]
    i0, j0 = i.astype(np.int32), j.astype(np.int32)
    right, low = mass * (i - i0), j - j0
    left, index = mass - right, j0 * w + i0
    out = np.bincount(index, left * (1 - low), minlength=h * w)
    out[1:] += np.bincount(index, right * (1 - low), minlength=h * w)[:-1]
    out[w:] += np.bincount(index, left * low, minlength=h * w)[:-w]
    out[w + 1 :] += np.bincount(index, right * low, minlength=h * w)[: -w - 1]
    return out.reshape(h, w).astype(np.float32)


def _sample(lattice: np.ndarray, coordinates: list[np.ndarray]) -> np.ndarray:
    grid = np.stack(np.broadcast_arrays(*coordinates)).astype(np.float32)
    return ndimage.map_coordinates(lattice, grid, order=1, mode="grid-wrap")

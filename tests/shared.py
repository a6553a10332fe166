"""What several test files are made of: plain sets of given pixels, slow references, and an index that is only nearly right."""

from __future__ import annotations

import faiss
import numpy as np
from scipy.linalg import sqrtm

from medsynth.imageset import ImageSet
from medsynth.privacy.gate.search import Gallery, Nearest, distances


def pixels_in_hu(images, name="s", patient=None, high=400.0, unit="HU"):
    """Images from -1000 to `high`, two a patient."""
    images = np.asarray(images, np.float32)
    patient = np.arange(len(images)) // 2 if patient is None else patient
    return ImageSet(images=images, patient=patient, unit=unit, range=(-1000.0, high), name=name)


class RootMeanSquare:
    """A feature map without a network: distances are root mean square differences of pixels."""

    name, hash = "pixels for tests", "0" * 32

    def __init__(self, error: float = 0.0) -> None:
        self.error = error

    def __call__(self, images: ImageSet) -> np.ndarray:
        flat = images.scaled().reshape(len(images), -1)
        return flat / np.float32(flat.shape[1] ** 0.5)


def two_copies(images: ImageSet) -> list[tuple[str, ImageSet]]:
    """A short gallery: the images, and mirrored."""
    return [("copy", images), ("flip", images.with_images(images.images[..., ::-1]))]


def naive_fid(x: np.ndarray, y: np.ndarray) -> float:
    """The Frechet distance with a matrix square root, as published."""
    sx, sy = (np.atleast_2d(np.cov(a, rowvar=False)) for a in (x, y))
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sx + sy - 2 * sqrtm(sx @ sy).real)


def approximately_nearest(self: Gallery, queries: np.ndarray) -> Nearest:
    """What `Gallery.nearest` would be with an inverted file: planted, it must be found."""
    rows = self.features.read(0, self.rows)
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(rows.shape[1]), rows.shape[1], 6)
    index.train(rows)
    index.add(rows)
    row = index.search(queries, 1)[1][:, 0]
    return Nearest(distances(queries, rows[row]), row)

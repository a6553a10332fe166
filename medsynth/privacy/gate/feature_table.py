"""Features as tables that need not fit in memory; those of all transformed copies of a set are found again by content."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import filelock
import numpy as np
import pandas as pd

from medsynth.imageset import ImageSet
from medsynth.privacy.gate.alterations import gallery_hash, transformed_copies
from medsynth.store.dependencies import code_hash
from medsynth.store.hashes import bytes_hash
from medsynth.store.runs import atomic_path, cache_folder, write_json

if TYPE_CHECKING:
    from medsynth.privacy.gate.feature_maps import FeatureMap

LARGEST = 1e30  # of a feature: beyond it, squares leave the range of float32
BATCH = 64  # images that the feature map is shown at a time
_CHECKED = 4  # images whose features are compared with those in double precision, where a map has them

Copies = Callable[[ImageSet], Iterable[tuple[str, ImageSet]]]


class FeatureTable:
    """Rows (n, d) in memory or in a .npy file, read `chunk_rows` at a time; ValueError where they do not lie row after row."""

    def __init__(self, table: np.ndarray | Path, chunk_rows: int) -> None:
        if chunk_rows < 1:
            raise ValueError(f"chunk_rows is {chunk_rows}; expected at least 1")
        self._table, self.chunk_rows = table, chunk_rows
        opened = np.load(table, mmap_mode="r") if isinstance(table, Path) else table
        self.shape, self.dtype, self._offset = opened.shape, opened.dtype, getattr(opened, "offset", 0)
        if len(self.shape) != 2 or not opened.flags.c_contiguous:
            raise ValueError(f"features have shape {self.shape}; expected (n, d), row after row")

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows first to last - 1."""
        return self._rows(first, last, "r")

    def write(self, first: int, rows: np.ndarray) -> None:
        """Put rows (*, d) in the place that begins at `first`; ValueError where they do not fit."""
        if rows.shape[1:] != self.shape[1:] or first + len(rows) > self.shape[0]:
            raise ValueError(f"rows {rows.shape} do not fit from {first} on in a table {self.shape}")
        self._rows(first, first + len(rows), "r+")[:] = rows

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(number of its first row, chunk), in order."""
        for first in range(0, self.shape[0], self.chunk_rows):
            yield first, self.read(first, min(first + self.chunk_rows, self.shape[0]))

    def _rows(self, first: int, last: int, mode: Literal["r", "r+"]) -> np.ndarray:
        if not isinstance(self._table, Path):
            return self._table[first:last]
        # a mapping of these rows alone, gone with them: pages of the rest never count as this process's memory
        offset, shape = self._offset + first * self.shape[1] * self.dtype.itemsize, (last - first, self.shape[1])
        return np.memmap(self._table, mode=mode, dtype=self.dtype, offset=offset, shape=shape)


def empty_table(shape: tuple[int, int], chunk_rows: int, file: Path | None = None) -> FeatureTable:
    """Rows float32 (n, d) that are yet to be written, in memory or in a new .npy file."""
    if file is None:
        return FeatureTable(np.empty(shape, dtype=np.float32), chunk_rows)
    np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
    return FeatureTable(file, chunk_rows)


def measurable(features: np.ndarray) -> np.ndarray:
    """Which rows of (n, d) have a distance: bool (n,), False for NaN, infinity or magnitudes beyond 1e30."""
    return (np.abs(features) <= LARGEST).all(axis=1)


@dataclass(frozen=True)
class GalleryTable:
    """Features of the copies of n images, in a file: float32 (copies * n, d), all images in one version, then in the next."""

    file: Path
    copies: tuple[str, ...]  # names of the versions
    images: int

    @property
    def features(self) -> np.ndarray:
        """The file, mapped: float32 (copies, n, d)."""
        return np.load(self.file, mmap_mode="r").reshape(len(self.copies), self.images, -1)


def feature_store() -> Path:
    """Where chapters keep tables, beside what they train: a folder in the cache that only its owner may enter.

    A table says who is in a set as well as the images do. It stays until it is deleted: 4 bytes for each feature of each copy,
    about 46 kB for each image in the identity encoder.
    """
    return cache_folder() / "features"


def gallery_table(images: ImageSet, phi: FeatureMap, folder: Path, *, copies: Copies = transformed_copies) -> GalleryTable:
    """The table of these images in `folder`, which becomes the owner's alone: found, or computed and left there.

    Found by pixels, range, feature map, list of copies, and the code of all of them; only where copies are the standard ones,
    since nothing tells others apart. Two processes that ask for one table compute it once. Raises ValueError for features that
    are not float32 (n, d), or not finite, and where phi is found to err by more than it states.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    name = f"gallery-{_key(images, phi)}"
    file, listed = folder / f"{name}.npy", folder / f"{name}.json"
    with filelock.FileLock(folder / f"{name}.lock"):
        # the list comes last, and makes a table whole
        if copies is not transformed_copies or not (file.exists() and listed.exists()):
            listed.unlink(missing_ok=True)
            with atomic_path(file) as temporary:
                names = _write(temporary, images, phi, copies)
            write_json(listed, names)
        table = GalleryTable(file, tuple(json.loads(listed.read_text())), len(images))
    _check_error(images, phi, copies, table)
    return table


@contextlib.contextmanager
def gallery_features(images: ImageSet, phi: FeatureMap, store: Path | None = None) -> Iterator[np.ndarray]:
    """Features float32 (copies, n, d) of all transformed copies, from the tables in `store`; None: gone with the block."""
    with contextlib.ExitStack() as stack:
        folder = store or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gallery-")))
        yield gallery_table(images, phi, folder).features


def batched_features(phi: FeatureMap, images: ImageSet) -> Iterator[np.ndarray]:
    """Features (*, d) of all images, shown to phi BATCH at a time."""
    for first in range(0, len(images), BATCH):
        some = images if len(images) <= BATCH else images.select(np.arange(first, min(first + BATCH, len(images))))
        features = phi(some)
        if features.ndim != 2 or len(features) != len(some) or features.dtype != np.float32:
            raise ValueError(
                f"{phi.name}: features of shape {features.shape} and type {features.dtype} for {len(some)} images; expected "
                f"float32 ({len(some)}, d)"
            )
        yield features


def without_attributes(images: ImageSet) -> ImageSet:
    """The same pixels without a table, which takes longer to copy than they do and which no map reads."""
    return replace(images, attributes=pd.DataFrame())


def _key(images: ImageSet, phi: FeatureMap) -> str:
    told = [*images.row_hashes.tolist(), images.images.shape, images.range, phi.name, phi.hash, gallery_hash(len(images.spatial))]
    told += [code_hash(__name__), code_hash(type(phi).__module__)]
    return bytes_hash(json.dumps(told).encode())


def _write(path: Path, images: ImageSet, phi: FeatureMap, copies: Copies) -> tuple[str, ...]:
    """All copies of one batch of images, then of the next; each row where it belongs."""
    images = without_attributes(images)
    names = tuple(name for name, _ in copies(images.select([0])))
    if not names:
        raise ValueError(f"{images.name}: no copies to compare with; expected at least the images themselves")
    table = None
    for first in range(0, len(images), BATCH):
        some = images.select(np.arange(first, min(first + BATCH, len(images))))
        for k, (name, copied) in enumerate(copies(some)):
            if len(copied) != len(some):
                raise ValueError(f"{name}: {len(copied)} images from {len(some)}; expected one copy of each")
            (features,) = batched_features(phi, copied)
            if not (good := measurable(features)).all():
                raise ValueError(
                    f"{images.name}: {phi.name} has no finite features for {int((~good).sum())} of the copies called {name} of "
                    f"images {first} to {first + len(some) - 1}, so nothing can be measured against them; remove these images or "
                    "choose another feature map"
                )
            if table is None:
                table = empty_table((len(names) * len(images), features.shape[1]), BATCH, path)
            table.write(k * len(images) + first, features)
    return names


def _check_error(images: ImageSet, phi: FeatureMap, copies: Copies, table: GalleryTable) -> None:
    """Raise ValueError where an image's features differ by more than phi's stated error allows.

    Three ways to see it, and none to be sure: features of an image in other company and another place, those that are in the
    table, and those in double precision.
    """
    _, first = next(iter(copies(images.select(np.arange(min(BATCH, len(images)))))))
    company = first.select(np.arange(BATCH) % len(first))
    # upside down at half the contrast, so that a single image has company too; the last place is where libraries tend to
    # compute in another way
    low = np.float32(images.range[0])
    pixels = np.concatenate([low + (company.images[:-1, ..., ::-1, :] - low) / 2, company.images[-1:]])
    (mixed,) = batched_features(phi, company.with_images(pixels))
    last = (BATCH - 1) % len(first)
    stored = table.features[0, last]
    found = {"in other company": (stored[None], mixed[-1:], 2.0)}
    if exact := getattr(phi, "exact", None):
        some = first.select(np.arange(min(_CHECKED, len(first))))
        found["in double precision"] = (table.features[0, : len(some)], exact(some), 1.0)
    for how, (one, other, times) in found.items():
        apart = float(np.linalg.norm(one.astype(np.float64) - other, axis=1).max())
        if not apart <= times * phi.error:
            raise ValueError(
                f"{phi.name}: features of one image lie {apart:.3g} apart {how}; its error is stated as {phi.error:.3g}, so no "
                "distance can be relied on: state the error that it has, or make rows depend on their image alone"
            )

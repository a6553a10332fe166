"""The ledger: every stage that touches a private set leaves a line, and none may take a private set for a public one."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock
import numpy as np

from medsynth.imageset import ImageSet
from medsynth.resample import resize

_USUAL_SIZES = (32, 64, 96, 128, 256)  # pixels
MECHANISMS = ("none",)  # DP mechanisms join here with the accountant that charges them


class RoleError(ValueError):
    """A stage asked for a private set as if it were public."""


@dataclass(frozen=True)
class Entry:
    """One reading of one private or held-out set. `content_hash` identifies the set, not a row of it."""

    stage: str  # what was done, e.g. "train denoiser"
    reads: str  # name of the set
    content_hash: str
    patients: int
    mechanism: str  # "none": nothing is proved about what the stage's output reveals
    output: str = ""  # what left the stage, e.g. "weights denoiser-1f3a"


class Ledger:
    """An append-only record in `folder`, shared by all stages of a project.

    Row hashes of private sets are kept beside it, readable by the owner alone: they would tell an outsider who is in the set.
    A row is recognised by its exact pixels, at its own size and as `resize` makes it at the usual smaller ones; the ledger
    guards against mistakes, not against somebody who disguises a private image.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._rows = self.folder / "private_rows"
        self._rows.mkdir(parents=True, exist_ok=True)
        os.chmod(self._rows, 0o700)
        self._file = self.folder / "ledger.jsonl"
        self._lock = filelock.FileLock(self.folder / ".lock")

    def declare(self, images: ImageSet) -> None:
        """Remember every row of a private set; a set with another role is refused."""
        if images.role != "private":
            raise RoleError(f"{images.name}: role is {images.role!r}; only private sets are declared to the ledger")
        target = self._rows / f"{images.content_hash}.npy"
        with self._lock:
            if not target.exists():
                temporary = target.with_suffix(".tmp")
                with open(temporary, "wb") as f:
                    np.save(f, np.unique(_hashes_at_usual_sizes(images)), allow_pickle=False)
                os.chmod(temporary, 0o600)
                os.replace(temporary, target)

    def private_rows_in(self, images: ImageSet) -> int:
        """How many rows of `images` belong to a set that was declared private."""
        known = [np.load(f, allow_pickle=False) for f in sorted(self._rows.glob("*.npy"))]
        return int(np.isin(images.row_hashes, np.concatenate(known)).sum()) if known else 0

    def use_public(self, images: ImageSet, *, stage: str) -> ImageSet:
        """Hand `images` to a stage that needs public data; RoleError if the set, or any row of it, is private."""
        if images.role == "private":
            raise RoleError(f"{stage}: {images.name} is declared private; use a public set, or record a private reading")
        if images.role == "eval":
            raise RoleError(f"{stage}: {images.name} is held out to be measured against; use a public set")
        if hits := self.private_rows_in(images):
            raise RoleError(
                f"{stage}: {hits} of {len(images)} rows of {images.name} (declared {images.role!r}) are rows of a private set; "
                "remove them or declare the set private"
            )
        return images

    def use_private(self, images: ImageSet, *, stage: str, mechanism: str = "none", output: str = "") -> ImageSet:
        """Hand `images` to a stage that reads it, with a line in the ledger."""
        if mechanism not in MECHANISMS:
            raise ValueError(f"{stage}: unknown mechanism {mechanism!r}; expected one of {MECHANISMS}")
        self.declare(images)
        self._append(Entry(stage, images.name, images.content_hash, images.patients, mechanism, output))
        return images

    def measure(self, images: ImageSet, *, stage: str, output: str = "") -> ImageSet:
        """Hand held-out or private images to a measurement: its rows say something of them, so it leaves a line too."""
        if images.role == "public":
            return self.use_public(images, stage=stage)
        self._append(Entry(stage, images.name, images.content_hash, images.patients, "none", output))
        return images

    def _append(self, entry: Entry) -> None:
        line = json.dumps(asdict(entry), sort_keys=True)
        with self._lock:
            # a chapter that runs again reads nothing new: the same reading is one line
            if line not in (self._file.read_text().splitlines() if self._file.exists() else []):
                with open(self._file, "a") as f:
                    f.write(line + "\n")
                    f.flush()
                    os.fsync(f.fileno())

    def use(self, images: ImageSet, *, stage: str, output: str = "") -> ImageSet:
        """Hand `images` to a stage that may read either kind: private sets are recorded, others are checked."""
        if images.role == "private":
            return self.use_private(images, stage=stage, output=output)
        return self.use_public(images, stage=stage)

    def entries(self) -> list[Entry]:
        """All lines, oldest first."""
        if not self._file.exists():
            return []
        return [Entry(**json.loads(line)) for line in self._file.read_text().splitlines()]


def _hashes_at_usual_sizes(images: ImageSet) -> np.ndarray:
    sides = images.spatial
    square = len(sides) == 2 and sides[0] == sides[1]
    smaller = [resize(images, size) for size in _USUAL_SIZES if square and size < sides[0]]
    return np.concatenate([s.row_hashes for s in (images, *smaller)])

"""The ledger: every reading of private or held-out images leaves a line, and no stage may take such images for public ones."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import filelock
import numpy as np
import pandas as pd

from medsynth.imageset import ImageSet
from medsynth.mechanism import NONE, Cover, Mechanism, composed
from medsynth.resample import pad_square, resize
from medsynth.settings.parse import parse
from medsynth.store.runs import atomic_path, cache_folder

_USUAL_SIZES = (32, 64, 96, 128, 256)  # pixels
_CHUNK_BYTES = 2**26  # of images that are looked at in all sizes at a time


class RoleError(ValueError):
    """A stage asked for images in a role that they do not play, or that some of their rows do not."""


class CoverError(ValueError):
    """What claims a mechanism would rest on a reading of private images that has none."""


@dataclass(frozen=True)
class Entry:
    """One reading of one private or held-out set. `content_hash` identifies the set, not a row of it."""

    stage: str  # what was done, e.g. "train denoiser"
    reads: str  # name of the set
    content_hash: str
    patients: int
    role: str = "private"  # or "eval"; older ledgers do not say it, and "private" is the stricter
    mechanism: Mechanism = NONE
    output: str = ""  # what left the stage, e.g. "weights denoiser-1f3a"


def statement(entries: Sequence[Entry]) -> str:
    """What is proved of what was made in these readings, for those who receive it."""
    read = [e for e in entries if e.role == "private"]
    if not read:
        return "It was made from public images alone."
    what = f"{', '.join(sorted({e.stage for e in read}))} read {max(e.patients for e in read)} private patients"
    cover = composed([e.mechanism for e in read])
    if cover is None:
        return f"Nothing is proved of what its images give away: {what} with no mechanism. Let a gate judge each of them."
    said = [
        f"{cover} covers what {what} and learned; their number is taken for public.",
        "Samples inherit it; a distance gate against private images, an audit, and settings chosen on private images do not.",
    ]
    if any(e.mechanism.randomness == "seeded" for e in read):
        said.append("The noise was seeded: who knows the seed can take it off, so a release needs secure noise.")
    if cover.delta * max(e.patients for e in read) >= 1:
        said.append("Delta is not below one over the number of patients: it would allow to publish one of them.")
    return " ".join(said)


def tabulated(entries: Sequence[Entry]) -> pd.DataFrame:
    """Lines as people read them, equal ones once."""
    lines = [(e.stage, e.reads, e.patients, str(e.mechanism), e.output) for e in entries]
    return pd.DataFrame(list(dict.fromkeys(lines)), columns=["stage", "reads", "patients", "mechanism", "output"])


class Ledger:
    """An append-only record in `folder`, which its owner alone can open; by default the one of this cache.

    Sets are known by their rows, never by a name. Hashes of the rows of private and of held-out sets are kept beside the lines.
    A row is recognised by its exact pixels: as it is, at the usual smaller sizes as `resize` makes them, and, of a stack, by any
    of its planes. Images of one value are nobody's. Two sizes of one image agree where one was made of the other, or where both
    have a usual smaller size in common. The ledger guards against mistakes, not against somebody who disguises an image.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = cache_folder() / "ledger" if folder is None else Path(folder)
        self._file = self.folder / "ledger.jsonl"
        self._marks_of: dict[str, _Marks] = {}
        self._in_the_making: list[tuple[str, list[Entry]]] = []

    def declare(self, images: ImageSet) -> None:
        """Remember every row of a private set; RoleError for a set with another role."""
        if images.role != "private":
            raise RoleError(f"{images.name}: role is {images.role!r}; only private sets are declared to the ledger")
        self._remember(images)

    def read(self, images: ImageSet, *, stage: str, output: str = "", mechanism: Mechanism = NONE) -> ImageSet:
        """Hand `images` to a stage that reads them; unless they are public, their rows are remembered and a line is left.

        Call it before the reading. Raises RoleError for a public set with private or held-out rows, and for a held-out set where
        the stage begins with "train"; CoverError within `making`.
        """
        if images.role == "public":
            return self.require_public(images, stage=stage)
        if images.role == "eval" and stage.startswith("train"):
            raise RoleError(f"{stage}: {images.name} is held out to be measured against; train on another set")
        entry = Entry(stage, images.name, images.content_hash, images.patients, images.role, mechanism, output)
        for what, readings in self._in_the_making:
            _check_cover(what, [*readings, entry])
        self._remember(images)
        self._append(entry)
        for _, readings in self._in_the_making:
            if entry not in readings:
                readings.append(entry)
        return images

    def require_public(self, images: ImageSet, *, stage: str) -> ImageSet:
        """Hand `images` to a stage that needs public data; RoleError if the set, or any row of it, is private or held out."""
        if images.role == "private":
            raise RoleError(f"{stage}: {images.name} is declared private; use a public set, or record a private reading")
        if images.role == "eval":
            raise RoleError(f"{stage}: {images.name} is held out to be measured against; use a public set")
        for role, word in (("private", "private"), ("eval", "held-out")):
            if shared := self._shared_with(images, role):
                names = sorted({e.reads for e in self._lines() if e.content_hash in shared})
                raise RoleError(
                    f"{stage}: {_count(shared)} of {len(images)} rows of {images.name} (declared {images.role!r}) are rows of a "
                    f"{word} set{f' ({names[0]})' if names else ''}; remove them or declare the set {word}"
                )
        return images

    @contextlib.contextmanager
    def making(self, what: str) -> Iterator[list[Entry]]:
        """The readings through this ledger in the block, of which `what` is made.

        Where one of private images has a mechanism, all have: a reading that breaks this raises CoverError, before it happens.
        """
        mine = (what, [])
        self._in_the_making.append(mine)
        try:
            yield mine[1]
        finally:
            self._in_the_making = [other for other in self._in_the_making if other is not mine]

    def private_rows_in(self, images: ImageSet) -> int:
        """How many rows of `images` belong to a private set that was declared or read."""
        return _count(self._shared_with(images, "private"))

    def entries(self, *images: ImageSet) -> list[Entry]:
        """Lines, oldest first: all, or of those sets that have a row in common with one of `images`, whatever they are called."""
        lines = self._lines()
        if not images:
            return lines
        related = {i.content_hash for i in images}
        related.update(found for i in images for role in ("private", "eval") for found in self._shared_with(i, role))
        return [e for e in lines if e.content_hash in related]

    def table(self, *images: ImageSet) -> pd.DataFrame:
        """`entries(*images)` as chapters show them."""
        return tabulated(self.entries(*images))

    def total(self, images: ImageSet) -> Cover | None:
        """What is proved of all that left through mechanisms that read rows of this set, together; None where nothing did."""
        covered = [e.mechanism for e in self.entries(images) if e.role == "private" and e.mechanism != NONE]
        return composed(covered)

    def together(self, images: ImageSet) -> str:
        """A sentence on all that left through readings of this set: what is proved of it together, and how much has no proof."""
        lines = [e for e in self.entries(images) if e.role == "private"]
        covered = [e for e in lines if e.mechanism != NONE]
        said = [f"Readings of these patients with a promise: {len(covered)}, together {self.total(images)}."] if covered else []
        if bare := len(lines) - len(covered):
            said.append(f"Readings without one: {bare}; nothing is proved of what was made of them.")
        return " ".join(said) or "These patients have not been read."

    def _remember(self, images: ImageSet) -> None:
        target = self._own_folder(f"{images.role}_rows") / f"{images.content_hash}.npy"
        if not target.exists():
            hashes = np.unique(self._marks(images).hashes)
            with atomic_path(target) as temporary, open(temporary, "wb") as f:
                os.fchmod(f.fileno(), 0o600)
                np.save(f, hashes, allow_pickle=False)

    def _append(self, entry: Entry) -> None:
        said = asdict(entry, dict_factory=lambda items: {key: value for key, value in items if value is not None})
        line = json.dumps(said, sort_keys=True, allow_nan=False)
        self._own_folder()
        with filelock.FileLock(self.folder / ".lock"):
            written = self._file.read_text(encoding="utf-8") if self._file.exists() else ""
            # a chapter that runs again reads nothing new: the same reading is one line
            if line not in written.splitlines():
                with open(self._file, "a", encoding="utf-8") as f:
                    # a line that was cut short must not swallow this one
                    f.write(("\n" if written and not written.endswith("\n") else "") + line + "\n")
                    f.flush()
                    os.fsync(f.fileno())

    def _own_folder(self, inside: str = "") -> Path:
        place = self.folder / inside
        for folder in dict.fromkeys((self.folder, place)):
            folder.mkdir(parents=True, exist_ok=True)
            os.chmod(folder, 0o700)
        return place

    def _lines(self) -> list[Entry]:
        # older versions kept a ledger for each file, in a folder below
        files = [*sorted(self.folder.glob("*/ledger.jsonl")), self._file]
        return list(dict.fromkeys(entry for file in files if file.exists() for entry in _entries_in(file)))

    def _shared_with(self, images: ImageSet, role: str) -> dict[str, np.ndarray]:
        """Content hash of each remembered set of that role with a row in common -> which rows of `images`, bool (n,)."""
        marks, shared = self._marks(images), {}
        for file in sorted(self.folder.rglob(f"{role}_rows/*.npy")):
            known = np.load(file, allow_pickle=False)
            hit = np.isin(marks.hashes, _short(known) if known.dtype.kind == "U" else known)
            if hit.any():
                rows = shared.setdefault(file.stem, np.zeros(len(images), dtype=bool))
                rows[marks.rows[hit]] = True
        return shared

    def _marks(self, images: ImageSet) -> _Marks:
        # looking at all sizes takes seconds for thousands of images
        if images.content_hash not in self._marks_of:
            self._marks_of[images.content_hash] = _marks(images)
        return self._marks_of[images.content_hash]


class _Marks(NamedTuple):
    """By what the rows of a set are recognised: hashes uint64 (m,), and to which row each belongs, int (m,)."""

    hashes: np.ndarray
    rows: np.ndarray


def _marks(images: ImageSet) -> _Marks:
    found = [(_short(images.row_hashes), np.arange(len(images)), _nobodys(images))]
    step = max(1, _CHUNK_BYTES // images.images[0].nbytes) if len(images) else 1
    for first in range(0, len(images), step):
        rows = np.arange(first, min(first + step, len(images)))
        found += [(_short(view.row_hashes), rows, _nobodys(view)) for view in _views(images.select(rows))]
    hashes, rows, nobodys = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return _Marks(hashes[~nobodys], rows[~nobodys])


def _views(images: ImageSet) -> Iterator[ImageSet]:
    """How else the rows may be met: each plane of a stack, planes padded to a square as `slices_of` does, and smaller squares."""
    sides, low = images.spatial, images.range[0]
    if len(sides) == 3:
        for plane in np.moveaxis(images.images, 2, 0):
            yield (flat := _bare(plane, images))
            yield from _views(flat)
    elif sides[0] != sides[1]:
        yield (square := _bare(pad_square(images.images, low), images))
        yield from _views(square)
    else:
        yield from (resize(images, size) for size in _USUAL_SIZES if size < sides[0])


def _bare(pixels: np.ndarray, images: ImageSet) -> ImageSet:
    return ImageSet(images=pixels, patient=np.arange(len(pixels)), unit=images.unit, range=images.range, name=images.name)


def _nobodys(images: ImageSet) -> np.ndarray:
    """Whether each channel of an image is one value, (n,): air, which many people's stacks end in, and no one's image."""
    axes = tuple(range(2, images.images.ndim))
    return (images.images.min(axis=axes) == images.images.max(axis=axes)).all(axis=1)


def _short(row_hashes: np.ndarray) -> np.ndarray:
    """Their first 64 bits, uint64 (n,): among a million rows, two agree by chance once in thirty million times."""
    return np.array([int(digest[:16], 16) for digest in row_hashes.tolist()], dtype=np.uint64)


def _count(shared: dict[str, np.ndarray]) -> int:
    """Rows that are shared with any of the sets."""
    return int(np.any(list(shared.values()), axis=0).sum()) if shared else 0


def _check_cover(what: str, readings: list[Entry]) -> None:
    private = [e for e in readings if e.role == "private"]
    covered = [e for e in private if e.mechanism != NONE]
    bare = [e for e in private if e.mechanism == NONE]
    if covered and bare:
        raise CoverError(
            f"{what}: {covered[0].stage!r} claims {covered[0].mechanism}, but {bare[0].stage!r} reads {bare[0].reads} with no "
            "mechanism, and nothing is proved of what comes of both; read public images there, or through a mechanism"
        )


def _entries_in(file: Path) -> Iterator[Entry]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            body = json.loads(line)
            # all that older ledgers say of a mechanism
            if isinstance(body, dict) and isinstance(body.get("mechanism"), str):
                body["mechanism"] = {"name": body["mechanism"]}
            yield parse(Entry, body, "entry")
        except ValueError as error:
            raise ValueError(
                f"{file}: line {number} is no entry ({error}); mend it, or remove it if a crash cut it short: a line is written "
                "before its reading begins"
            ) from error

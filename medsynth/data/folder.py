"""Plain folders of images, and released folders with their manifest, as ImageSets; one loader for whatever a path holds."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from medsynth.config import parse
from medsynth.data.imagefile import PNG, SUFFIXES, Encoding, NotFiniteError, Picture, UnreadableError, kind_of, read
from medsynth.data.npz import CT_WINDOW, load_all, load_npz, load_unowned
from medsynth.imageset import ImageSet

MANIFEST, IMAGES = "manifest.json", "images"
_FORMAT = "medsynth.release/1"
_APPLE_DOUBLE = b"\x00\x05\x16\x07"


@dataclass(frozen=True)
class Values:
    """What the numbers in plain files mean, where files do not say it.

    range: PNG: what code 0 and the largest code stand for; NIfTI: the interval that values must lie in. None: by the files' type.
    clip: NIfTI values outside `range` are set to its ends (a window) instead of being an error.
    """

    range: tuple[float, float] | None = None
    unit: str = "1"
    clip: bool = False

    def __post_init__(self) -> None:
        if self.range is not None and not -np.inf < self.range[0] < self.range[1] < np.inf:
            raise ValueError(f"range {self.range[0]:g} {self.range[1]:g}; expected two finite numbers, the lower one first")
        if self.clip and self.range is None:
            raise ValueError("clipping needs a range; give --window LOW HIGH")


@dataclass(frozen=True)
class Loaded:
    """An ImageSet with what it does not carry: files that hold no usable image, and how its files were written.

    refused: file name -> "not finite" or "cannot be read", for files that are not among `images`.
    files, orientation: as in Encoding; "" and None where the images did not come from files of one image each.
    values: what the loader was told about plain files; needed to load the same set again.
    """

    images: ImageSet
    refused: dict[str, str] = field(default_factory=dict)
    files: str = ""
    orientation: str | None = None
    values: Values = field(default_factory=Values)


def load(
    path: str | Path, *, role: str = "private", patients: str | Path | None = None, values: Values | None = None,
    whole: bool = True,
) -> Loaded:  # fmt: skip
    """The images of an `.npz` file (see `load_npz`), of a plain folder or of a released folder; of a private set, all of them.

    A plain folder holds PNG (8 or 16 bit grey) or NIfTI files of one shape, and nothing else; names are sorted naturally. They go
    into the column "file", and `patients`, a CSV with the columns file and patient, into "patient_id"; without it every file is a
    patient. whole: a file that cannot be read or holds NaN is an error; else it is listed in `refused`, and images are nobody's.
    Raises ValueError naming the first file that does not fit, FileNotFoundError where there is nothing.
    """
    path, values = Path(path), values or Values()
    if path.is_dir():
        if (path / MANIFEST).exists():
            if patients is not None:
                raise ValueError(f"{path}: a released folder names no patients; leave out {Path(patients).name}")
            return _load_release(path, role=role, whole=whole)
        if (path / "release" / MANIFEST).exists():
            raise ValueError(f"{path}: holds a release and its audit; give {path / 'release'}")
        people = None if patients is None else Path(patients)
        try:
            return _load_plain(path, role=role, patients=people, values=values, whole=whole)
        except ValueError as error:
            # both sets tend to have a file of the name that an error is about
            raise type(error)(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; expected an .npz file, or a folder of PNG or NIfTI files")
    if path.suffix != ".npz":
        raise ValueError(f"{path}: expected an .npz file, or a folder of PNG or NIfTI files")
    if patients is not None:
        raise ValueError(f"{path.name}: an .npz file has patient numbers of its own; leave out {Path(patients).name}")
    window = values.range if values.clip and values.range else CT_WINDOW
    if not whole:
        images, lost = load_unowned(path, window=window)
        if lost:
            # the others keep their numbers
            kept = [f"row {i}" for i in range(len(images) + len(lost)) if i not in set(lost)]
            images = replace(images, attributes=images.attributes.assign(file=pd.array(kept, dtype="string")))
        return Loaded(images, {f"row {i}": NotFiniteError.reason for i in lost}, values=values)
    # what is not read is not compared
    images = load_all(path, window=window) if role == "private" else load_npz(path, role=role, window=window)
    return Loaded(images, values=values)


def write_manifest(folder: Path, encoding: Encoding) -> None:
    """Say in a released folder what the codes in its images stand for."""
    body = {
        "format": _FORMAT, "files": encoding.files, "unit": encoding.unit, "range": encoding.range, "step": encoding.step,
        "shape": encoding.shape, "spacing": encoding.spacing, "orientation": encoding.orientation,
        "meaning": "pixel value = range[0] + step * code, in `unit`; shape (h, w) or (d, h, w); spacing in mm per axis of shape",
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(body, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Encoding:
    """The encoding of a released folder; ValueError naming the key that is missing, unknown or of a wrong type."""
    path = folder / MANIFEST
    try:
        body = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file ({error}); expected the manifest of a release") from error
    if not isinstance(body, dict) or body.pop("format", None) != _FORMAT:
        raise ValueError(f"{path}: not the manifest of a release; expected format {_FORMAT!r}")
    body.pop("meaning", None)
    try:
        return parse(Encoding, body, MANIFEST)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def natural(names: Iterable[str]) -> list[str]:
    """Names sorted as people count: scan2 before scan10."""

    def key(name: str) -> tuple[list[tuple[int, int, str]], str]:
        parts = re.split(r"([0-9]+)", name.lower())
        return [(0, int(p), "") if p.isascii() and p.isdigit() else (1, 0, p) for p in parts if p], name

    return sorted(names, key=key)


def _load_release(path: Path, *, role: str, whole: bool) -> Loaded:
    encoding = read_manifest(path)
    if not (path / IMAGES).is_dir():
        raise FileNotFoundError(f"{path}: has a {MANIFEST} but no folder {IMAGES!r}; expected a released folder")
    kept, rows, refused = [], [], {}
    for name in _files(path / IMAGES):
        try:
            rows.append(encoding.read(path / IMAGES / name))
            kept.append(name)
        except UnreadableError as error:
            if whole:
                raise
            refused[name] = error.reason
    images = ImageSet(
        images=_stack(rows, encoding.shape), patient=np.arange(len(kept)), unit=encoding.unit, range=encoding.range,
        spacing=encoding.spacing, name=path.name, role=role, attributes=_table(kept, None),
    )  # fmt: skip
    return Loaded(images, refused, encoding.files, encoding.orientation)


def _load_plain(path: Path, *, role: str, patients: Path | None, values: Values, whole: bool) -> Loaded:
    kept: list[str] = []
    rows: list[np.ndarray] = []
    refused: dict[str, str] = {}
    first: _Kind | None = None
    names = _files(path, besides=patients)
    people = None if patients is None else read_patients(patients, names)
    for name in names:
        try:
            picture = read(path / name)
            found = _Kind.of(name, picture, values)
            first = first or found
            first.require(found)
            rows.append(found.pixels(picture).astype(np.float32))
            kept.append(name)
        except UnreadableError as error:
            if whole:
                raise
            refused[name] = error.reason
    if first is None:
        raise ValueError(f"{path}: none of its {len(names)} files can be read; the first is {names[0]}")
    # patients are numbered over all files, so that a damaged one does not renumber the others
    people_or_files = {n: n for n in names} if people is None else people
    number = {p: i for i, p in enumerate(natural(set(people_or_files.values())))}
    table = _table(kept, people)
    images = ImageSet(
        images=_stack(rows, first.shape),
        patient=np.array([number[people_or_files[k]] for k in kept], dtype=np.int64),
        unit=values.unit, range=first.range, spacing=first.spacing, name=path.name, role=role, attributes=table,
    )  # fmt: skip
    return Loaded(images, refused, first.files, first.orientation, values)


def read_patients(path: Path, names: Iterable[str]) -> dict[str, str]:
    """File name -> patient id from a CSV with the columns file and patient; ValueError unless it names every file once."""
    known, people = set(names), {}
    # a file system may spell an umlaut in two characters where a spreadsheet takes one
    composed = {unicodedata.normalize("NFC", name): name for name in known}
    try:
        # utf-8-sig: spreadsheets put a mark in front of the first column's name
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")), strict=True)
        columns = [c.strip() for c in reader.fieldnames or []]
        if sorted(columns) != ["file", "patient"]:
            raise ValueError(f"{path.name}: first line is {','.join(columns)!r}; expected the columns file,patient")
        reader.fieldnames = columns
        for row in reader:
            file, patient = (str(row[c] or "").strip() for c in ("file", "patient"))
            where = f"{path.name}, line {reader.line_num}"
            if file not in known:
                file = composed.get(unicodedata.normalize("NFC", file), file)
            if file not in known:
                raise ValueError(f"{where}: no file {file!r} in the folder; remove the line or add the file")
            if file in people:
                raise ValueError(f"{where}: {file} has two lines; expected one")
            if not patient or None in row:
                found = "too many columns" if patient else "no patient"
                raise ValueError(f"{where}: {file} has {found}; expected file,patient")
            people[file] = patient
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: not a CSV file in UTF-8 ({error})") from error
    if missing := natural(known - set(people)):
        raise ValueError(
            f"{path.name}: no line for {missing[0]} ({len(missing)} of {len(known)} files have none); add its patient"
        )
    return people


@dataclass(frozen=True)
class _Kind:
    """What all files of one folder must have in common."""

    name: str
    files: str
    shape: tuple[int, ...]
    range: tuple[float, float]
    spacing: tuple[float, ...] | None
    orientation: str | None
    clip: bool

    @classmethod
    def of(cls, name: str, picture: Picture, values: Values) -> _Kind:
        files = "nifti16"
        if kind_of(Path(name)) == PNG:
            files = "png8" if picture.stored.dtype == np.uint8 else "png16"
        interval = values.range or picture.span
        if interval is None:
            raise ValueError(
                f"{name}: pixels of type {picture.stored.dtype} do not say which values an image can take; "
                "give --range LOW HIGH, for instance --range -1024 3071 --unit HU for CT"
            )
        return cls(name, files, picture.stored.shape, interval, picture.spacing, picture.orientation, values.clip)

    def require(self, other: _Kind) -> None:
        advice = {
            "files": "convert them to one kind",
            "shape": "resample or crop them to one shape",
            "range": "give --range LOW HIGH, or convert them to one type",
            "spacing": "resample them to one spacing",
            "orientation": "turn them to one orientation",
        }
        for key, action in advice.items():
            mine, its = getattr(self, key), getattr(other, key)
            same = mine == its
            if key == "spacing" and mine and its:
                same = len(mine) == len(its) and np.allclose(mine, its, rtol=1e-3, atol=0)
            if not same:
                raise ValueError(f"{other.name}: {key} {its}, but {self.name} has {mine}; {action}")

    def pixels(self, picture: Picture) -> np.ndarray:
        """Pixel values, float32; NotFiniteError, or ValueError where they leave the range."""
        low, high = self.range
        if self.files != "nifti16":
            # in one step, as released files are read: the same pixels whichever way they come
            step = (high - low) / (255 if self.files == "png8" else 65535)
            return np.clip(low + step * picture.stored.astype(np.float64), low, high)
        values = picture.values
        if not np.isfinite(values).all():
            raise NotFiniteError(f"{self.name}: holds NaN or infinity; remove or repair it first")
        if self.clip:
            return np.clip(values, low, high)
        if values.min() < low or values.max() > high:
            raise ValueError(
                f"{self.name}: values span [{values.min():g}, {values.max():g}], outside the range [{low:g}, {high:g}]; "
                "give the --range they have, or --window LOW HIGH to clip them"
            )
        return values


def _files(path: Path, besides: Path | None = None) -> list[str]:
    """Names of the image files in a folder; ValueError naming the first entry that is none, because it might be an image."""
    listed = None if besides is None else besides.resolve()
    names = natural(p.name for p in path.iterdir() if not _is_clutter(p) and p.resolve() != listed)
    for name in names:
        if kind_of(path / name) is None or not (path / name).is_file():
            dicom = name.lower().endswith((".dcm", ".dicom", ".ima"))
            found = "a folder" if (path / name).is_dir() else "DICOM, which is not read yet" if dicom else "no image file"
            advice = "; if it says who the patients are, give it as --patients" if name.lower().endswith(".csv") else ""
            raise ValueError(
                f"{path / name}: {found}; expected nothing but {', '.join(SUFFIXES)} files, "
                f"because what is not read is not compared{advice}"
            )
    if not names:
        raise ValueError(f"{path}: holds no images; expected {', '.join(SUFFIXES)} files")
    return names


def _is_clutter(path: Path) -> bool:
    """Hidden files of an operating system; a hidden image is an image, and a hidden folder may hold some."""
    if not path.name.startswith(".") or not path.is_file():
        return False
    # macOS puts notes beside files on foreign disks, under names that look like images
    with open(path, "rb") as f:
        return kind_of(path) is None or (path.name.startswith("._") and f.read(4) == _APPLE_DOUBLE)


def _stack(rows: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    if not rows:
        return np.zeros((0, 1, *shape), dtype=np.float32)
    return np.stack(rows)[:, None]


def _table(names: list[str], people: dict[str, str] | None) -> pd.DataFrame:
    table = pd.DataFrame({"file": pd.array(names, dtype="string")})
    if people is not None:
        table["patient_id"] = pd.array([people[n] for n in names], dtype="string")
    return table

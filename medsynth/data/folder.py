"""One loader for whatever a path holds: an `.npz` file, a plain folder of images, or a released folder, as an ImageSet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from medsynth.data.imagefile import PNG, NotFiniteError, Picture, UnreadableError, kind_of, read
from medsynth.data.listing import image_files
from medsynth.data.npz import load_all, load_npz, load_unowned
from medsynth.data.patients import natural, read_patients
from medsynth.data.release_folder import MANIFEST, load_release, stacked
from medsynth.imageset import ImageSet

_HALF = 32768  # 16 bits of which the upper half is empty: ten to fourteen from a detector are nearly black if taken for sixteen


@dataclass(frozen=True)
class Values:
    """What the numbers in plain files mean, where files do not say it.

    range: PNG: what the codes stand for; NIfTI: the interval that values must lie in. None: by the files' type.
    codes: PNG: the codes of the range's two ends; None: 0 and the largest that files of this type can hold.
    clip: values outside `range` are set to its ends (a window) instead of being an error; only of NIfTI, and of CT in .npz files.
    """

    range: tuple[float, float] | None = None
    unit: str = "1"
    clip: bool = False
    codes: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name, pair in (("range", self.range), ("codes", self.codes)):
            if pair is not None and not -np.inf < pair[0] < pair[1] < np.inf:
                raise ValueError(f"{name} {pair[0]:g} {pair[1]:g}; expected two finite numbers, the lower one first")
        if self.clip and self.range is None:
            raise ValueError("clipping needs a range; give --window LOW HIGH")
        if self.codes and (self.clip or self.range is None):
            raise ValueError("codes stand for the ends of a range; give --range LOW HIGH too, and no --window")

    @property
    def window(self) -> tuple[float, float] | None:
        """The interval to which values are clipped, if they are."""
        return self.range if self.clip else None


def stated(
    interval: tuple[float, float] | None, codes: tuple[float, float] | None, window: tuple[float, float] | None, unit: str,
    given: Iterable[Path],
) -> Values:  # fmt: skip
    """What --range, --codes, --window and --unit say of the numbers in `given` files and folders.

    Raises ValueError where they exclude each other, or speak of plain files and there are none.
    """
    if interval and window:
        raise ValueError("--range and --window exclude each other: values outside are an error, or they are clipped")
    if (interval or unit != "1") and not any(path.is_dir() for path in given if path.exists()):
        raise ValueError("--range and --unit say what plain files hold; an .npz file says it itself")
    return Values(interval or window, unit, clip=window is not None, codes=codes)


def load(
    path: str | Path, *, role: str = "private", modality: str = "", patients: str | Path | None = None,
    values: Values | None = None,
) -> ImageSet:  # fmt: skip
    """All images of an `.npz` file (see `load_npz`; of a public one, the rows of that role), a plain or a released folder.

    A plain folder holds PNG (8 or 16 bit grey) or NIfTI files of one shape, and nothing else; names are sorted naturally. They go
    into the column "file", and `patients`, a CSV with the columns file and patient, into "patient_id"; further columns of it are
    attributes. Without it every file is a patient. Raises ValueError naming the first file that is no such image, cannot be read
    or holds NaN, FileNotFoundError where there is nothing: of a private set, what is not read is not compared.
    """
    path, values = Path(path), values or Values()
    if _is_npz(path):
        if patients is not None:
            raise ValueError(f"{path.name}: an .npz file has patient numbers of its own; leave out {Path(patients).name}")
        if role == "public":
            return load_npz(path, role=role, modality=modality, window=values.window)
        return load_all(path, role=role, modality=modality, window=values.window)
    return _load_folder(path, role, modality, None if patients is None else Path(patients), values, None)


def load_candidates(path: str | Path, *, modality: str = "", values: Values | None = None) -> tuple[ImageSet, dict[str, str]]:
    """Images that are of nobody, from the same places, and those that cannot be judged: file or row -> reason."""
    path, values = Path(path), values or Values()
    if not _is_npz(path):
        refused: dict[str, str] = {}
        return _load_folder(path, "private", modality, None, values, refused), refused
    images, lost = load_unowned(path, modality=modality, window=values.window)
    if lost:
        # the others keep their numbers
        kept = [f"row {i}" for i in range(len(images) + len(lost)) if i not in set(lost)]
        images = replace(images, attributes=images.attributes.assign(file=pd.array(kept, dtype="string")))
    return images, {f"row {i}": NotFiniteError.reason for i in lost}


def _is_npz(path: Path) -> bool:
    if path.is_dir():
        return False
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; expected an .npz file, or a folder of PNG or NIfTI files")
    if path.suffix != ".npz":
        raise ValueError(f"{path}: expected an .npz file, or a folder of PNG or NIfTI files")
    return True


def _load_folder(
    path: Path, role: str, modality: str, patients: Path | None, values: Values, refused: dict[str, str] | None
) -> ImageSet:
    """refused: gets the files without a usable image and why; without it, the first of them is an error."""
    if (path / MANIFEST).exists():
        if patients is not None:
            raise ValueError(f"{path}: a released folder names no patients; leave out {patients.name}")
        return load_release(path, role=role, modality=modality, refused=refused)
    if (path / "release" / MANIFEST).exists():
        raise ValueError(f"{path}: holds a release and its audit; give {path / 'release'}")
    try:
        return _load_plain(path, role, modality, patients, values, refused)
    except ValueError as error:
        # both sets tend to have a file of the name that an error is about; other kinds cannot be made of a text alone
        kind = type(error) if isinstance(error, UnreadableError) else ValueError
        raise kind(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def _load_plain(
    path: Path, role: str, modality: str, patients: Path | None, values: Values, refused: dict[str, str] | None
) -> ImageSet:
    kept: list[str] = []
    rows: list[np.ndarray] = []
    first: _Kind | None = None
    largest = 0.0
    names = image_files(path, besides=patients)
    people, further = (None, None) if patients is None else read_patients(patients, names)
    for name in names:
        try:
            picture = read(path / name)
            found = _Kind.of(name, picture, values)
            first = first or found
            first.require(found)
            rows.append(found.pixels(picture).astype(np.float32))
            largest = max(largest, float(picture.stored.max()))
            kept.append(name)
        except UnreadableError as error:
            if refused is None:
                raise
            refused[name] = error.reason
    if first is None:
        raise ValueError(f"{path}: none of its {len(names)} files can be read; the first is {names[0]}")
    if advice := _half_empty(first, largest, values):
        raise ValueError(
            f"{path}: no code of its 16 bit files is above {largest:g}, so 65535 may not be their upper end; {advice}"
        )
    # patients are numbered over all files, so that a damaged one does not renumber the others
    people_or_files = {n: n for n in names} if people is None else people
    number = {p: i for i, p in enumerate(natural(set(people_or_files.values())))}
    table = pd.DataFrame({"file": pd.array(kept, dtype="string")})
    if people is not None:
        table["patient_id"] = pd.array([people[k] for k in kept], dtype="string")
        table = pd.concat([table, further.iloc[[names.index(k) for k in kept]].reset_index(drop=True)], axis=1)
    return ImageSet(
        images=stacked(rows, first.shape),
        patient=np.array([number[people_or_files[k]] for k in kept], dtype=np.int64),
        unit=values.unit, range=first.range, spacing=first.spacing, name=path.name, role=role, modality=modality,
        orientation=first.orientation, attributes=table,
    )  # fmt: skip


def _half_empty(kind: _Kind, largest: float, values: Values) -> str:
    """What to say of files of 16 bits that do not use them, where nobody said it."""
    if largest >= _HALF or values.codes:
        return ""
    if kind.files == "png16":
        meaning = "" if values.range else "--range LOW HIGH and "
        return f"give {meaning}--codes LOW HIGH, for instance --codes 0 4095, or --codes 0 65535 if they are spread over all"
    return "give --range LOW HIGH, for instance --range 0 4095" if kind.range == (0.0, 65535.0) and not values.range else ""


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
    codes: tuple[float, float]  # of PNG

    @classmethod
    def of(cls, name: str, picture: Picture, values: Values) -> _Kind:
        files = "nifti16"
        if kind_of(Path(name)) == PNG:
            if values.clip:
                raise ValueError(
                    f"{name}: a window clips values, and PNG files hold codes; give --range LOW HIGH, the values at their ends, "
                    "or clip them before you save them"
                )
            files = "png8" if picture.stored.dtype == np.uint8 else "png16"
        interval = values.range or picture.span
        if interval is None:
            raise ValueError(
                f"{name}: pixels of type {picture.stored.dtype} do not say which values an image can take; "
                "give --range LOW HIGH, for instance --range -1024 3071 --unit HU for CT"
            )
        codes = values.codes or (0.0, 255.0 if files == "png8" else 65535.0)
        return cls(name, files, picture.stored.shape, interval, picture.spacing, picture.orientation, values.clip, codes)

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
            first, last = self.codes
            stored = picture.stored.astype(np.float64)
            if stored.min() < first or stored.max() > last:
                raise ValueError(
                    f"{self.name}: codes span [{stored.min():g}, {stored.max():g}], outside [{first:g}, {last:g}]; "
                    "give the --codes of the range's ends"
                )
            return np.clip(low + (high - low) / (last - first) * (stored - first), low, high)
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

"""Real images from `.npz` files: one array of images, one patient number per image, whatever else per row."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd

from medsynth.imageset import ROLES, ImageSet

CT_WINDOW = (-1000.0, 400.0)  # HU: air to bone, the window in which chest CT is read and generated here


@dataclass(frozen=True)
class Known:
    """What a public file means: its licence, the role its rows may play, and names for its label codes."""

    licence: str  # where no column says it row by row
    role: str  # "by row" where a column says it
    findings: tuple[str, ...] = ()  # names of the codes in `label_column`
    label_column: str = "label"


KNOWN = {
    "cxr_kermany_128": Known("CC BY 4.0", "by row", ("none", "pneumonia_bacterial", "pneumonia_viral"), "subtype"),
    "cxr_nih1000_64": Known("NIH Clinical Center, attribution", "public", ("none", "abnormal")),
    "cxr_covid_256": Known("by row", "public"),
    "ct_tcia_hu_256": Known("by row", "private"),
    "mri_acdc_3d": Known("CC BY-NC-SA 4.0", "private"),
    "mri_hippocampus_3d": Known("CC BY-SA 4.0", "public"),
}


def load_npz(path: str | Path, *, role: str = "private", window: tuple[float, float] = CT_WINDOW) -> ImageSet:
    """The rows of an `.npz` file that play `role`, as an ImageSet; files written by ImageSet.save work too.

    `image` (n, h, w) or `volume` (n, d, h, w): uint8 becomes 0..1, int16 is taken as HU and clipped to `window`,
    floats must lie in 0..1. `patient` (n,) is required. `split`, `role`, `license`, and any other one-dimensional array
    become columns. A file nobody has described is private. Raises ValueError where the file or the asked role does not fit.
    """
    path = Path(path)
    if role not in ROLES:
        raise ValueError(f"{path.name}: role {role!r}; expected one of {ROLES}")
    found = _read(path)
    if isinstance(found, ImageSet):
        return _with_role(found, role)
    if "patient" not in found:
        raise ValueError(f"{path.name}: arrays {sorted(found)}; expected 'image' or 'volume', and 'patient'")
    return _image_set(path, found, role, window)


def load_all(path: str | Path, *, window: tuple[float, float] = CT_WINDOW) -> ImageSet:
    """As `load_npz` for a private set of which no row may be missed. Raises ValueError where rows play other roles, too."""
    path = Path(path)
    found = _read(path)
    if isinstance(found, dict) and "role" in found and (others := set(np.ravel(found["role"]).tolist()) - {"private"}):
        raise ValueError(
            f"{path.name}: holds rows of role {', '.join(map(repr, sorted(others)))}, which would not be compared with; "
            "save the private rows to a file of their own"
        )
    return load_npz(path, role="private", window=window)


def load_unowned(path: str | Path, *, window: tuple[float, float] = CT_WINDOW) -> tuple[ImageSet, list[int]]:
    """(finite images, rows of the others) of a file as for `load_npz` whose images are of no patient: drawn ones, say.

    `patient` is not needed, and `role` picks no rows.
    """
    path = Path(path)
    found = _read(path)
    if isinstance(found, ImageSet):
        finite = np.isfinite(found.images).reshape(len(found), -1).all(1)
        return found.select(np.flatnonzero(finite)).with_role("private"), np.flatnonzero(~finite).tolist()
    arrays = {k: v for k, v in found.items() if k != "role"}
    key = _key(path, arrays)
    n = len(arrays[key])
    finite = np.isfinite(arrays[key]).reshape(n, -1).all(1) if n else np.zeros(0, dtype=bool)
    if finite.any():
        arrays = {k: v[finite] if v.ndim and len(v) == n else v for k, v in arrays.items()}
    arrays.setdefault("patient", np.arange(len(arrays[key])))
    return _image_set(path, arrays, "private", window), np.flatnonzero(~finite).tolist()


def _read(path: Path) -> dict[str, np.ndarray] | ImageSet:
    """The arrays of a file, or the set that ImageSet.save wrote into it."""
    if not path.exists():
        close = get_close_matches(path.name, [p.name for p in path.parent.glob("*.npz")] if path.parent.is_dir() else [], n=1)
        raise FileNotFoundError(f"{path}: no such file" + (f"; did you mean {close[0]!r}?" if close else ""))
    broken = f"{path.name}: no intact .npz file of plain arrays; copy it again, or write it with numpy.savez"
    if not zipfile.is_zipfile(path):
        raise ValueError(broken)
    try:
        with np.load(path, allow_pickle=False) as f:
            arrays = {} if "meta" in f.files else {key: f[key] for key in f.files}
        found = arrays or ImageSet.load(path)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{broken} ({error})") from error
    if isinstance(found, dict) and not all(isinstance(v, np.ndarray) for v in found.values()):
        raise ValueError(broken)
    return found


def _key(path: Path, arrays: dict[str, np.ndarray]) -> str:
    key = next((k for k in ("image", "volume") if k in arrays), None)
    if key is None:
        raise ValueError(f"{path.name}: arrays {sorted(arrays)}; expected 'image' or 'volume', and 'patient'")
    return key


def _image_set(path: Path, arrays: dict[str, np.ndarray], role: str, window: tuple[float, float]) -> ImageSet:
    key = _key(path, arrays)
    axes = ("n", "h", "w") if key == "image" else ("n", "d", "h", "w")
    if arrays[key].ndim != len(axes):
        raise ValueError(f"{path.name}: {key} has shape {arrays[key].shape}; expected ({', '.join(axes)}), one channel")
    n = len(arrays[key])
    if not n:
        raise ValueError(f"{path.name}: {key} holds no images; expected at least one")
    for column in ("patient", "role", "split", "license"):
        if column in arrays and arrays[column].shape != (n,):
            raise ValueError(
                f"{path.name}: {column!r} has shape {arrays[column].shape}; expected ({n},), one entry for each {key}"
            )
    known = KNOWN.get(path.stem, Known("unknown", "private"))
    rows = _rows_of(path.name, arrays, known, role)
    images, unit, interval = _values(path.name, arrays[key][rows], window)
    columns = {k: v[rows] for k, v in arrays.items() if v.ndim == 1 and len(v) == len(arrays[key])}
    table = _table(columns, known, len(rows))
    return ImageSet(
        images=images[:, None],
        patient=arrays["patient"][rows],
        split=arrays["split"][rows] if "split" in arrays else None,
        unit=unit,
        range=interval,
        name=path.stem,
        role=role,
        attributes=table,
    )


def without_noncommercial(images: ImageSet) -> ImageSet:
    """The rows whose licence does not restrict commercial use."""
    return images.select(~images.attributes["licence"].str.contains("NC").fillna(True).to_numpy(dtype=bool))


def _rows_of(name: str, arrays: dict[str, np.ndarray], known: Known, role: str) -> np.ndarray:
    n = len(arrays["patient"])
    if "role" in arrays:
        rows = np.flatnonzero(arrays["role"] == role)
        if not len(rows):
            raise ValueError(f"{name}: no row plays the role {role!r}; found {sorted(set(arrays['role'].tolist()))}")
        return rows
    if known.role == "private" and role == "public":
        raise ValueError(f"{name}: these patients are private; a public stage must use another set")
    if role == "eval" and "split" in arrays:
        return np.flatnonzero(arrays["split"] != "train")
    return np.arange(n)


def _with_role(images: ImageSet, role: str) -> ImageSet:
    if images.role == "private" and role == "public":
        raise ValueError(f"{images.name}: declared private; a public stage must use another set")
    return images.with_role(role) if role != "eval" or images.role != "private" else images


def _values(name: str, raw: np.ndarray, window: tuple[float, float]) -> tuple[np.ndarray, str, tuple[float, float]]:
    if raw.dtype == np.uint8:
        return raw.astype(np.float32) / 255, "1", (0.0, 1.0)
    if raw.dtype == np.int16:
        return np.clip(raw.astype(np.float32), *window), "HU", window
    if np.issubdtype(raw.dtype, np.floating):
        if odd := int((~np.isfinite(raw)).sum()):
            row = np.argwhere(~np.isfinite(raw))[0][0]
            raise ValueError(f"{name}: {odd} values of images are not finite, the first in row {row}; expected 0..1, or int16 HU")
        if raw.size and (raw.min() < 0 or raw.max() > 1):
            raise ValueError(f"{name}: float images span [{raw.min():g}, {raw.max():g}]; expected 0..1, or int16 HU")
        return raw.astype(np.float32), "1", (0.0, 1.0)
    raise ValueError(f"{name}: images have dtype {raw.dtype}; expected uint8 (0..255), int16 (HU) or float (0..1)")


def _table(columns: dict[str, np.ndarray], known: Known, n: int) -> pd.DataFrame:
    licence = columns.pop("license", None)
    for key in ("patient", "split", "role"):
        columns.pop(key, None)
    table = pd.DataFrame(columns, index=range(n))
    if "sex" in table and columns["sex"].dtype.kind == "U":
        table["sex"] = table["sex"].map({"M": 1, "F": 0}).astype("Int64")
    if known.findings and known.label_column in columns:
        codes = columns[known.label_column].astype(int)
        table["finding"] = [known.findings[c] if 0 <= c < len(known.findings) else None for c in codes]
    table["licence"] = known.licence if licence is None else licence
    return table

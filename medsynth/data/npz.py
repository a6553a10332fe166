"""Real images from `.npz` files: one array of images, one patient number per image, whatever else per row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from medsynth.data.archive import read_arrays
from medsynth.data.columns import LICENCE, table_of
from medsynth.imageset import ImageSet, saved_meta
from medsynth.language.vocabulary import CT_WINDOW, ROLES
from medsynth.language.words import did_you_mean

MASKS = ("label", "labels", "mask", "masks", "segmentation")  # arrays of planes that are no images
_COLUMNS = ("patient", "role", "split", *LICENCE)
_CLIPPED = 0.001  # share of an image's values that may lie outside the window before it is asked what they are
_AIR = -500  # HU: above are fat, water and bone
_SOME = 0.01  # share of pixels; of real CT slices at least 4 % are above 0 HU, of slices less an offset of 1024 at most 0.7 %
_BRIGHT = 0.05  # of CT: bone, contrast and metal stay below; codes taken for HU do not


@dataclass(frozen=True)
class Known:
    """What a public file means: how much it holds, its licence, the role its rows may play, and names for its label codes."""

    images: int
    patients: int
    licence: str  # where no column says it row by row
    role: str  # "by row" where a column says it
    modality: str
    findings: tuple[str, ...] = ()  # names of the codes in `label_column`
    label_column: str = "label"


KNOWN = {
    "cxr_kermany_128": Known(
        4977, 3478, "CC BY 4.0", "by row", "xray", ("none", "pneumonia_bacterial", "pneumonia_viral"), "subtype"
    ),
    "cxr_nih1000_64": Known(773, 224, "NIH Clinical Center, attribution", "public", "xray", ("none", "abnormal")),
    "cxr_covid_256": Known(243, 144, "by row", "public", "xray"),
    "ct_tcia_hu_256": Known(533, 49, "by row", "private", "ct"),
    "mri_acdc_3d": Known(170, 85, "CC BY-NC-SA 4.0", "private", "mr"),
    "mri_hippocampus_3d": Known(221, 221, "CC BY-SA 4.0", "public", "mr"),
}


def known_folder(path: str | Path) -> Path:
    """The folder, if every file of KNOWN lies in it; FileNotFoundError names what is missing."""
    folder, names = Path(path), [f"{name}.npz" for name in KNOWN]
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected one with {', '.join(names)} (data/README.md)")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder}: lacks {', '.join(missing)}; put them there (data/README.md says what they are)")
    return folder


def load_npz(
    path: str | Path, *, role: str = "private", modality: str = "", window: tuple[float, float] | None = None
) -> ImageSet:
    """The rows of an `.npz` file that play `role`, as an ImageSet; files written by ImageSet.save work too.

    `image` (n, h, w) or `volume` (n, d, h, w): uint8 becomes 0..1, floats must lie in 0..1, and int16 is HU of CT, clipped to
    `window`: without one to that of chest CT, if `modality` says so or hardly a value lies outside. `patient` (n,) is required.
    `split`, `role`, `license`, and any other one-dimensional array become columns. A file nobody has described is private.
    Raises ValueError where the file, the asked role or the modality does not fit, or where the file holds a second array of
    images, which nobody would look at.
    """
    path = Path(path)
    if role not in ROLES:
        raise ValueError(f"{path.name}: role {role!r}; expected one of {ROLES}")
    found = _read(path)
    if isinstance(found, ImageSet):
        return _with_role(_of_modality(found, modality), role)
    if "patient" not in found:
        raise ValueError(f"{path.name}: arrays {sorted(found)}; expected 'image' or 'volume', and 'patient'")
    _roles(path, found)
    return _image_set(path, found, role, modality, window)


def load_all(
    path: str | Path, *, role: str = "private", modality: str = "", window: tuple[float, float] | None = None
) -> ImageSet:
    """As `load_npz` for a set of which no row may be missed. Raises ValueError where rows play other roles, too."""
    path = Path(path)
    found = _read(path)
    if isinstance(found, ImageSet):
        return _with_role(_of_modality(found, modality), role)
    if "role" in found and (others := _roles(path, found) - {role}):
        raise ValueError(
            f"{path.name}: holds rows of role {', '.join(map(repr, sorted(others)))}, which would not be compared with; "
            f"save the {role} rows to a file of their own"
        )
    if "patient" not in found:
        raise ValueError(f"{path.name}: arrays {sorted(found)}; expected 'image' or 'volume', and 'patient'")
    return _image_set(path, found, role, modality, window, rows=slice(None))


def load_unowned(
    path: str | Path, *, modality: str = "", window: tuple[float, float] | None = None
) -> tuple[ImageSet, list[int]]:
    """(finite images, rows of the others) of a file as for `load_npz` whose images are of no patient: drawn ones, say.

    `patient` is not needed, and `role` picks no rows.
    """
    path = Path(path)
    found = _read(path)
    if isinstance(found, ImageSet):
        finite = np.isfinite(found.images).reshape(len(found), -1).all(1)
        chosen = _of_modality(found, modality).select(np.flatnonzero(finite)).with_role("private")
        return chosen, np.flatnonzero(~finite).tolist()
    arrays = {k: v for k, v in found.items() if k != "role"}
    key = _key(path, arrays)
    n = len(arrays[key])
    finite = np.isfinite(arrays[key]).reshape(n, -1).all(1) if n else np.zeros(0, dtype=bool)
    if finite.any():
        arrays = {k: v[finite] if v.ndim and len(v) == n else v for k, v in arrays.items()}
    arrays.setdefault("patient", np.arange(len(arrays[key])))
    return _image_set(path, arrays, "private", modality, window, rows=slice(None)), np.flatnonzero(~finite).tolist()


def _read(path: Path) -> dict[str, np.ndarray] | ImageSet:
    """The arrays of a file, or the set that ImageSet.save wrote into it."""
    if not path.exists():
        beside = sorted(p.name for p in path.parent.glob("*.npz"))
        raise FileNotFoundError(f"{path}: no such file; {did_you_mean(path.name, beside)}")
    arrays = read_arrays(path)
    if not saved_meta(arrays):
        return arrays
    try:
        return ImageSet.from_arrays(arrays, path.name)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name}: not as ImageSet.save writes it ({error!r}); save the set again") from error
    except ValueError as error:
        raise ValueError(str(error) if path.name in str(error) else f"{path.name}: {error}") from error


def _roles(path: Path, arrays: dict[str, np.ndarray]) -> set[str]:
    """The roles that rows play; ValueError for a word that is no role."""
    found = set(np.ravel(arrays.get("role", [])).tolist())
    if unknown := sorted(map(str, found - set(ROLES))):
        raise ValueError(f"{path.name}: role holds {unknown}; expected {ROLES}")
    return found


def _key(path: Path, arrays: dict[str, np.ndarray]) -> str:
    """The name of the one array of images; ValueError where there is none, or another that might hold images too."""
    key = next((k for k in ("image", "volume") if k in arrays), None)
    if key is None:
        raise ValueError(f"{path.name}: arrays {sorted(arrays)}; expected 'image' or 'volume', and 'patient'")
    n = len(np.atleast_1d(arrays[key]))
    if not arrays[key].size:
        raise ValueError(f"{path.name}: {key} holds {'images of no pixels' if n else 'no images'}; expected at least one")
    for name, array in arrays.items():
        if name == key or (name in MASKS and array.ndim > 1):
            continue
        if array.shape != (n,) and (name in _COLUMNS or array.ndim == 1 or array.shape == (n, 1)):
            raise ValueError(f"{path.name}: {name!r} has shape {array.shape}; expected ({n},), one entry for each {key}")
        # a column, a size or a place per row, or one word or number on all, of no records: too little to be images
        if array.shape not in ((), (n,), (n, 2), (n, 3)) or array.dtype.kind == "V":
            raise ValueError(
                f"{path.name}: {name!r} of shape {array.shape} stands beside {key!r} and would not be compared "
                f"with; save it to a file of its own, or call it {MASKS[0]!r} if it holds no images"
            )
    return key


def _image_set(
    path: Path, arrays: dict[str, np.ndarray], role: str, modality: str, window: tuple[float, float] | None,
    rows: slice | None = None,
) -> ImageSet:  # fmt: skip
    """The given rows, or those that play the role."""
    key = _key(path, arrays)
    axes = ("n", "h", "w") if key == "image" else ("n", "d", "h", "w")
    if arrays[key].ndim != len(axes):
        raise ValueError(f"{path.name}: {key} has shape {arrays[key].shape}; expected ({', '.join(axes)}), one channel")
    n = len(arrays[key])
    people = len(np.unique(arrays["patient"]))
    known = KNOWN.get(path.stem, Known(n, people, "unknown", "private", modality))
    if (n, people) != (known.images, known.patients):
        raise ValueError(
            f"{path.name}: is called like the public set of {known.images} images of {known.patients} patients, but holds {n} of "
            f"{people}; rename it, because the name stands for that set's licence and roles"
        )
    if modality and known.modality != modality:
        raise ValueError(f"{path.name}: holds {known.modality}, not {modality}; give a set of that modality")
    rows = np.arange(n)[rows] if rows is not None else _rows_of(path.name, arrays, known, role)
    images, unit, interval = _values(path.name, arrays[key][rows], known.modality, window)
    columns = {k: v[rows] for k, v in arrays.items() if v.ndim == 1 and len(v) == len(arrays[key])}
    table = _table(path.name, columns, len(rows), known)
    return ImageSet(
        images=images[:, None],
        patient=arrays["patient"][rows],
        split=arrays["split"][rows] if "split" in arrays else None,
        unit=unit,
        range=interval,
        name=path.stem,
        role=role,
        modality=known.modality,
        attributes=table,
    )


def _of_modality(images: ImageSet, modality: str) -> ImageSet:
    if modality and images.modality and modality != images.modality:
        raise ValueError(f"{images.name}: holds {images.modality}, not {modality}; give a set of that modality")
    return replace(images, modality=images.modality or modality)


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


def _values(
    name: str, raw: np.ndarray, modality: str, window: tuple[float, float] | None
) -> tuple[np.ndarray, str, tuple[float, float]]:
    if window and raw.dtype != np.int16:
        raise ValueError(
            f"{name}: a window clips Hounsfield units, which are int16 in an .npz file, but these images have dtype {raw.dtype}; "
            "leave out --window, or give CT as int16"
        )
    if raw.dtype == np.uint8:
        return raw.astype(np.float32) / 255, "1", (0.0, 1.0)
    if raw.dtype == np.int16:
        return _hounsfield(name, raw, modality, window)
    expected = "uint8 (0..255) or float (0..1)" + (", or int16 (HU)" if modality in ("ct", "") else "")
    if np.issubdtype(raw.dtype, np.floating):
        if odd := int((~np.isfinite(raw)).sum()):
            row = np.argwhere(~np.isfinite(raw))[0][0]
            raise ValueError(f"{name}: {odd} values of images are not finite, the first in row {row}; expected {expected}")
        if raw.size and (raw.min() < 0 or raw.max() > 1):
            raise ValueError(f"{name}: float images span [{raw.min():g}, {raw.max():g}]; expected {expected}")
        return raw.astype(np.float32), "1", (0.0, 1.0)
    raise ValueError(f"{name}: images have dtype {raw.dtype}; expected {expected}")


def _hounsfield(
    name: str, raw: np.ndarray, modality: str, window: tuple[float, float] | None
) -> tuple[np.ndarray, str, tuple[float, float]]:
    """int16 as HU; ValueError for another modality, or where values are not as in CT of a body, or would be clipped unasked."""
    if modality not in ("ct", ""):
        raise ValueError(
            f"{name}: images of {modality} in int16, which is read as Hounsfield units of CT; "
            "scale them to uint8 (0..255) or float (0..1)"
        )
    if odd := _unlike_ct(raw, modality, window):
        raise ValueError(f"{name}: int16 is read as HU, but {odd}; other images belong in uint8 or float")
    low, high = window or CT_WINDOW
    return np.clip(raw.astype(np.float32), low, high), "HU", (float(low), float(high))


def _unlike_ct(raw: np.ndarray, modality: str, window: tuple[float, float] | None) -> str:
    """What is odd about the pixels of a whole set as HU of a body, and what to do; "" if nothing."""
    low, high = window or CT_WINDOW
    # outside a scanner's field of view CT is below air, and of that any share may be
    outside = raw > high if modality == "ct" else (raw < low) | (raw > high)
    share, most = float(outside.mean()), _BRIGHT if modality == "ct" else _CLIPPED
    if window is None and share > most:
        ways = "subtract the offset if these are codes" if modality else "say that it is CT (--modality ct)"
        return (
            f"its values span [{raw.min()}, {raw.max()}], and {100 * share:.2g} % would be clipped to [{low:g}, {high:g}] HU; "
            f"{ways}, or give the window (--window LOW HIGH)"
        )
    if low < 0 and raw.min() >= 0:
        return "no pixel is below 0 HU, where CT shows air and fat; subtract the offset if these are codes"
    if not modality and window is None and float((raw < _AIR).mean()) < _SOME:
        return f"hardly a pixel is below {_AIR} HU, where CT shows air; say that it is CT (--modality ct)"
    if high > 0 and (share := float((raw > 0).mean())) < _SOME:
        return (
            f"{100 * share:.2g} % of the pixels are above 0 HU, where CT shows muscle, organs and bone; add the offset if it was "
            "subtracted twice"
        )
    return ""


def _table(where: str, columns: dict[str, np.ndarray], n: int, known: Known) -> pd.DataFrame:
    said = {k: v for k, v in columns.items() if k not in ("patient", "split", "role")}
    table = table_of(where, said, n, known.licence)
    if known.findings and known.label_column in columns:
        codes = columns[known.label_column].astype(int)
        table["finding"] = [known.findings[c] if 0 <= c < len(known.findings) else None for c in codes]
    return table

"""A released folder: images in files of one encoding, the manifest that says what their codes stand for, and a certificate."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from medsynth.data.imagefile import Encoding, UnreadableError
from medsynth.data.listing import image_files, is_clutter
from medsynth.imageset import ImageSet
from medsynth.settings.parse import parse

MANIFEST, IMAGES = "manifest.json", "images"
CERTIFICATE, SIGNATURE, README = "certificate.json", "certificate.sig", "README.txt"
_FORMAT = "medsynth.release/1"
_UNIT = re.compile(r"[\w%°*/^.·()\[\]-]{1,16}")


def write_manifest(folder: Path, encoding: Encoding) -> None:
    """Say in a released folder what the codes in its images stand for."""
    (folder / MANIFEST).write_bytes(manifest(encoding))


def manifest(encoding: Encoding) -> bytes:
    """The one file that says this of an encoding.

    Raises ValueError for a unit that may be a remark, and for codes that are spread over the range in another way than ours.
    """
    if not _UNIT.fullmatch(encoding.unit):
        raise ValueError(f"unit {encoding.unit!r}; expected its symbol, without blanks and of at most 16 letters, e.g. 'HU'")
    low, high = encoding.range
    spread = (high - low) / (255 if encoding.files == "png8" else 65535)
    if encoding.step != spread and not (encoding.files == "nifti16" and spread < encoding.step == 1):
        raise ValueError(
            f"range {encoding.range} and step {encoding.step}; expected a step of {spread}, so that all codes are used"
        )
    body = {
        "format": _FORMAT, "files": encoding.files, "unit": encoding.unit, "range": encoding.range, "step": encoding.step,
        "shape": encoding.shape, "spacing": encoding.spacing, "orientation": encoding.orientation,
        "meaning": "pixel value = range[0] + step * code, in `unit`; shape (h, w) or (d, h, w); spacing in mm per axis of shape",
    }  # fmt: skip
    return (json.dumps(body, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


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


def load_release(folder: Path, *, role: str, modality: str = "", refused: dict[str, str] | None = None) -> ImageSet:
    """The synthetic images of a released folder.

    refused: gets the files that hold no usable image and why; without it, the first of them is an error.
    Raises ValueError for anything in the folder that does not belong to a release, FileNotFoundError without images.
    """
    encoding = read_manifest(folder)
    if not (folder / IMAGES).is_dir():
        raise FileNotFoundError(f"{folder}: has a {MANIFEST} but no folder {IMAGES!r}; expected a released folder")
    for entry in sorted(folder.iterdir()):
        if entry.name not in (MANIFEST, IMAGES, CERTIFICATE, SIGNATURE, README) and not is_clutter(entry):
            raise ValueError(
                f"{entry}: is no part of a release, and would not be compared with; move it to where it belongs, or give the "
                f"images of {folder / IMAGES} in a folder of their own"
            )
    kept, rows = [], []
    for name in image_files(folder / IMAGES):
        try:
            rows.append(encoding.read(folder / IMAGES / name))
            kept.append(name)
        except UnreadableError as error:
            if refused is None:
                raise
            refused[name] = error.reason
    return ImageSet(
        images=stacked(rows, encoding.shape), patient=np.arange(len(kept)), unit=encoding.unit, range=encoding.range,
        spacing=encoding.spacing, name=folder.name, role=role, modality=modality, origin="synthetic",
        orientation=encoding.orientation, attributes=pd.DataFrame({"file": pd.array(kept, dtype="string")}),
    )  # fmt: skip


def stacked(rows: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Arrays of one shape as float32 (n, 1, *shape), also where there are none."""
    if not rows:
        return np.zeros((0, 1, *shape), dtype=np.float32)
    return np.stack(rows)[:, None].astype(np.float32, copy=False)

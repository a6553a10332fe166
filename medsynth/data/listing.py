"""Which entries of a folder are images: each is one, or clutter known by name, or an error."""

from __future__ import annotations

import os
from pathlib import Path

from medsynth.data.imagefile import SUFFIXES, kind_of
from medsynth.data.patients import natural

# what operating systems leave behind, by its whole name; another hidden file may be half an upload
CLUTTER = (".ds_store", ".localized", ".directory", ".gitkeep", "thumbs.db", "desktop.ini")
_APPLE_DOUBLE = b"\x00\x05\x16\x07"
# PNG, JPEG, TIFF, gzip, zip, NumPy, HDF5, and the lengths that headers of NIfTI state first
_IMAGES = (
    b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"\x1f\x8b", b"PK\3\4", b"\x93NUMPY", b"\x89HDF",
    *(size.to_bytes(4, order) for size in (348, 540) for order in ("little", "big")),
)  # fmt: skip


def image_files(folder: Path, besides: Path | None = None) -> list[str]:
    """Names of the image files in a folder, sorted naturally; ValueError naming the first entry that is none."""
    # realpath, because Path.resolve fails at a link to itself
    listed = None if besides is None else os.path.realpath(besides)
    names = natural(p.name for p in folder.iterdir() if not is_clutter(p) and os.path.realpath(p) != listed)
    for name in names:
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise ValueError(f"{folder}: the name {name!r} is not in UTF-8; expected a name that can be written: rename the file")
        if kind_of(folder / name) is None or not (folder / name).is_file():
            raise ValueError(
                f"{folder / name}: {_found(folder / name)}; expected nothing but {', '.join(SUFFIXES)} files, "
                f"because what is not read is not compared{_advice(name)}"
            )
    if not names:
        raise ValueError(f"{folder}: holds no images; expected {', '.join(SUFFIXES)} files")
    return names


def is_clutter(path: Path) -> bool:
    """Whether an entry is a file that an operating system put there, known by its name and by a content that is no image."""
    if path.is_symlink() or not path.is_file():
        return False
    with open(path, "rb") as f:
        head = f.read(132)
    if path.name.lower() in CLUTTER:
        return not _looks_like_an_image(head)
    # macOS puts notes beside files on foreign disks, under names that look like images
    return path.name.startswith("._") and head[:4] == _APPLE_DOUBLE


def _looks_like_an_image(head: bytes) -> bool:
    return head.startswith(_IMAGES) or head[128:] == b"DICM"


def _found(path: Path) -> str:
    name = path.name.lower()
    if path.is_dir():
        return "a folder"
    if name.endswith((".dcm", ".dicom", ".ima")):
        return "DICOM, which is not read yet"
    if name in CLUTTER and path.is_file():
        return "an image under a name that operating systems use"
    return "a hidden file, perhaps half an image" if name.startswith(".") else "no image file"


def _advice(name: str) -> str:
    return "; if it says who the patients are, give it as --patients" if name.lower().endswith(".csv") else ""

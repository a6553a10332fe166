"""Which entries of a folder are images: each is one, or clutter known by name, or an error."""

from __future__ import annotations

from pathlib import Path

from medsynth.data.imagefile import SUFFIXES, kind_of
from medsynth.data.patients import natural

# what operating systems leave behind, by its whole name; another hidden file may be half an upload
CLUTTER = (".ds_store", ".localized", ".directory", ".gitkeep", "thumbs.db", "desktop.ini")
_APPLE_DOUBLE = b"\x00\x05\x16\x07"


def image_files(folder: Path, besides: Path | None = None) -> list[str]:
    """Names of the image files in a folder, sorted naturally; ValueError naming the first entry that is none."""
    listed = None if besides is None else besides.resolve()
    names = natural(p.name for p in folder.iterdir() if not is_clutter(p) and p.resolve() != listed)
    for name in names:
        if kind_of(folder / name) is None or not (folder / name).is_file():
            raise ValueError(
                f"{folder / name}: {_found(folder / name)}; expected nothing but {', '.join(SUFFIXES)} files, "
                f"because what is not read is not compared{_advice(name)}"
            )
    if not names:
        raise ValueError(f"{folder}: holds no images; expected {', '.join(SUFFIXES)} files")
    return names


def is_clutter(path: Path) -> bool:
    """Whether an entry is a file that an operating system put there, known by its name and, of macOS's notes, by its content."""
    if path.is_symlink() or not path.is_file():
        return False
    if path.name.lower() in CLUTTER:
        return True
    # macOS puts notes beside files on foreign disks, under names that look like images
    with open(path, "rb") as f:
        return path.name.startswith("._") and f.read(4) == _APPLE_DOUBLE


def _found(path: Path) -> str:
    name = path.name.lower()
    if path.is_dir():
        return "a folder"
    if name.endswith((".dcm", ".dicom", ".ima")):
        return "DICOM, which is not read yet"
    return "a hidden file, perhaps half an image" if name.startswith(".") else "no image file"


def _advice(name: str) -> str:
    return "; if it says who the patients are, give it as --patients" if name.lower().endswith(".csv") else ""

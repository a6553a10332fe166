"""The arrays of an `.npz` file, read strictly: plain arrays of different names, and nothing in, between or around them."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

# what a zip file needs per member and at its end, in bytes, with room for the times and owners that archivers add
_PER_MEMBER, _AT_THE_END = 300, 100
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, struct.error, ValueError, KeyError, TypeError,
    OverflowError, MemoryError, RuntimeError,
)  # fmt: skip


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Name -> array; ValueError for a file that is damaged, packed or locked in an unknown way, or that holds more."""
    with open(path, "rb") as file:
        # a file that may not be opened is no damaged one
        try:
            if not zipfile.is_zipfile(file):
                raise zipfile.BadZipFile("no zip file")
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                arrays = [(m.filename.removesuffix(".npy"), *_array(archive, m)) for m in members]
        except _DAMAGED as error:
            raise ValueError(
                f"{path.name}: not a readable .npz of plain (unpickled) arrays: the file may be truncated; copy it again, or "
                f"save it again with numpy.savez ({error or type(error).__name__})"
            ) from error
    names = [name for name, _, _ in arrays]
    twice = next((f"two arrays called {name!r}" for name in names if names.count(name) > 1), "")
    after = next((f"{rest} bytes after the array {name!r}" for name, _, rest in arrays if rest), "")
    needed = sum(m.compress_size + _PER_MEMBER + 3 * len(m.filename.encode()) for m in members) + _AT_THE_END
    around = f"{path.stat().st_size - needed} bytes between or around its arrays" if path.stat().st_size > needed else ""
    if found := twice or after or around:
        raise ValueError(
            f"{path.name}: holds {found}, which would not be compared with; expected arrays of different names and nothing else: "
            "save each set to a file of its own with numpy.savez"
        )
    return {name: array for name, array, _ in arrays}


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[np.ndarray, int]:
    """The array of a member, and how many bytes follow it there."""
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False), len(file.read())

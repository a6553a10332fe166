"""Features as a table in memory or in a file that need not fit there: written and read a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np


class FeatureTable:
    """Rows (n, d) in memory or in a .npy file, read `chunk_rows` at a time; ValueError where they do not lie row after row."""

    def __init__(self, table: np.ndarray | Path, chunk_rows: int) -> None:
        if chunk_rows < 1:
            raise ValueError(f"chunk_rows is {chunk_rows}; expected at least 1")
        self._table, self.chunk_rows = table, chunk_rows
        opened = np.load(table, mmap_mode="r") if isinstance(table, Path) else table
        self.shape, self.dtype, self._offset = opened.shape, opened.dtype, getattr(opened, "offset", 0)
        if len(self.shape) != 2 or not opened.flags.c_contiguous:
            raise ValueError(f"features have shape {self.shape}; expected (n, d), row after row")

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows first to last - 1."""
        if not isinstance(self._table, Path):
            return self._table[first:last]
        # a mapping of these rows alone, gone with them: pages of the rest of the file never count as this process's memory
        offset, shape = self._offset + first * self.shape[1] * self.dtype.itemsize, (last - first, self.shape[1])
        return np.memmap(self._table, mode="r", dtype=self.dtype, offset=offset, shape=shape)

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(number of its first row, chunk), in order."""
        for first in range(0, self.shape[0], self.chunk_rows):
            yield first, self.read(first, min(first + self.chunk_rows, self.shape[0]))


def write_features(path: Path, chunks: Iterable[np.ndarray]) -> Path:
    """Write chunks of float32 rows (*, d) as one .npy file (n, d), without ever holding more than a chunk."""
    rows = width = 0
    with open(path, "xb") as f:
        for chunk in chunks:
            if not rows:
                width = chunk.shape[1]
                _write_header(f, rows, width)
            if chunk.shape[1] != width:
                raise ValueError(
                    f"features of {chunk.shape[1]} dimensions after {rows} rows of {width}; expected the same number"
                )
            f.write(np.ascontiguousarray(chunk, dtype="<f4"))
            rows += len(chunk)
        # NumPy pads headers so that the first axis may grow
        f.seek(0)
        _write_header(f, rows, width)
    return path


def _write_header(f: BinaryIO, rows: int, width: int) -> None:
    np.lib.format.write_array_header_1_0(f, {"descr": "<f4", "fortran_order": False, "shape": (rows, width)})

"""Features as a table in memory or in a file that need not fit there: written and read a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

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
        return self._rows(first, last, "r")

    def write(self, first: int, rows: np.ndarray) -> None:
        """Put rows (*, d) in the place that begins at `first`; ValueError where they do not fit."""
        if rows.shape[1:] != self.shape[1:] or first + len(rows) > self.shape[0]:
            raise ValueError(f"rows {rows.shape} do not fit from {first} on in a table {self.shape}")
        self._rows(first, first + len(rows), "r+")[:] = rows

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(number of its first row, chunk), in order."""
        for first in range(0, self.shape[0], self.chunk_rows):
            yield first, self.read(first, min(first + self.chunk_rows, self.shape[0]))

    def _rows(self, first: int, last: int, mode: Literal["r", "r+"]) -> np.ndarray:
        if not isinstance(self._table, Path):
            return self._table[first:last]
        # a mapping of these rows alone, gone with them: pages of the rest never count as this process's memory
        offset, shape = self._offset + first * self.shape[1] * self.dtype.itemsize, (last - first, self.shape[1])
        return np.memmap(self._table, mode=mode, dtype=self.dtype, offset=offset, shape=shape)


def empty_table(shape: tuple[int, int], chunk_rows: int, file: Path | None = None) -> FeatureTable:
    """Rows float32 (n, d) that are yet to be written, in memory or in a new .npy file."""
    if file is None:
        return FeatureTable(np.empty(shape, dtype=np.float32), chunk_rows)
    np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
    return FeatureTable(file, chunk_rows)

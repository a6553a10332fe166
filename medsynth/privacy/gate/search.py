"""Exact nearest neighbours among feature vectors: a float32 product proposes within a proven margin, float64 decides.

Every vector x enters a product as (w, p): w is float32 and p = |w|^2 (1 - a), with an allowance a for every rounding there is,
so that p_x + p_y - 2 w_x.w_y, as the machine computes it, is a lower bound of |x - y|^2: it can say that a pair may be close, and
never hides one that is. What it lets through is measured by direct difference in float64, by an order of operations that
depends on the pair alone. So no answer depends on batch size, order, chunk size, BLAS or thread count, and rows at distance
zero are found as what they are. `Gallery.nearest` takes w = x - centre; `Screen` takes a short sketch of it.

An expansion |x|^2 + |y|^2 - 2 x.y without a margin, as search libraries form it, is wrong where it matters, near zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medsynth.privacy.gate.feature_table import LARGEST, FeatureTable, empty_table, measurable

CHUNK_ROWS = 4096
_QUERY_ROWS = 8192  # queries that one pass over the gallery serves
_TILE_ROWS = 512  # queries in one product: with a chunk of the gallery, small enough for the cache
_SLICE = 1024  # dimensions in one product: the allowance grows with the length of a sum
_SAMPLE_ROWS = 1024
_PAIR_VALUES = 1 << 20  # numbers that one step of the float64 decision holds
_UNIT32, _UNIT64 = 2.0**-24, 2.0**-53
_SLACK = 1 + 1e-12  # covers the float64 roundings of a distance
_TINY = 1e-28  # covers what underflows when lengths, after scaling, are at most 2^20


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Euclidean distances of pairs of float32 rows, (n, d) and (n, d) -> (n,) float64, by direct difference.

    Squares are added by halves, elementwise, so the bits of a distance are a function of its two rows: not of n, of threads or
    of the processor.
    """
    squares = np.subtract(x, y, dtype=np.float64)
    np.square(squares, out=squares)
    width = squares.shape[1]
    while width > 1:
        half = (width + 1) // 2
        squares[:, : width - half] += squares[:, half:width]
        width = half
    return np.sqrt(squares[:, 0])


class Nearest(NamedTuple):
    """For each of m queries its nearest gallery row, the smallest one of several: distance float64 (m,), row int64 (m,)."""

    distance: np.ndarray
    row: np.ndarray


class Gallery:
    """Rows to be searched, float32 (n, d): an array, which must not be written to any more, or the path of a .npy file.

    A file is memory-mapped and read `chunk_rows` at a time: a search holds at most about 16 d bytes + 8 kB for each row of a
    chunk and 8 bytes for each row of the file. Raises ValueError for an empty gallery, another type, or rows that cannot be
    measured.
    """

    def __init__(self, features: np.ndarray | Path, *, chunk_rows: int = CHUNK_ROWS) -> None:
        self.features = FeatureTable(features, chunk_rows)
        rows, dim, kind = *self.features.shape, self.features.dtype
        if not rows * dim or kind != np.float32:
            raise ValueError(f"gallery of {rows} rows, {dim} dimensions and type {kind}; expected float32 and at least 1 of each")
        self.rows, self.dim = rows, dim
        sample = self.sample()
        # any fixed point serves; near the middle the lengths, and with them the allowances, are small
        self.centre = sample[measurable(sample)].sum(axis=0, dtype=np.float64).astype(np.float32) / np.float32(len(sample))
        self._eta = _UNIT32  # relative error of w
        self.allowance = _allowance(dim, self._eta)
        squares = []
        for first, chunk in self.features.chunks():
            if not (good := measurable(chunk)).all():
                raise ValueError(
                    f"gallery: row {first + int(np.argmin(good))} holds NaN, infinity or a value beyond {LARGEST:g}, so no "
                    "distance to it is defined; remove it"
                )
            squares.append(_squared_lengths(chunk - self.centre))
        self.squares = np.concatenate(squares)
        self.longest = float(np.sqrt(self.squares.max()))

    def sample(self) -> np.ndarray:
        """At most 1024 evenly spaced rows: they guide what is fast and decide nothing."""
        rows = np.unique(np.linspace(0, self.rows - 1, _SAMPLE_ROWS).astype(np.int64)).tolist()
        return np.concatenate([self.features.read(row, row + 1) for row in rows])

    def nearest(self, queries: np.ndarray) -> Nearest:
        """The nearest row to each query, float32 (m, d), and its distance as `distances` gives it; of equals the first row.

        Raises ValueError for queries of another dimension or type, or that cannot be measured.
        """
        queries = _checked(queries, self.dim)
        found = Nearest(np.full(len(queries), np.inf), np.full(len(queries), -1))
        for first in range(0, len(queries), _QUERY_ROWS):
            part = slice(first, first + _QUERY_ROWS)
            self._nearest(queries[part], Nearest(found.distance[part], found.row[part]))
        return found

    def _nearest(self, queries: np.ndarray, found: Nearest) -> None:
        moved = queries - self.centre
        squares = _squared_lengths(moved)
        scale = _scale(max(self.longest, float(np.sqrt(squares.max()))))
        proposals = _query_operand(moved, squares, scale, self.allowance)
        limit = np.full(len(queries), np.inf, dtype=np.float32)
        operand = np.empty((min(self.features.chunk_rows, self.rows), self.dim + 2), dtype=np.float32)
        for first, chunk in self.features.chunks():
            part = operand[: len(chunk)]
            np.subtract(chunk, self.centre, out=part[:, :-2])
            if scale != 1:
                part[:, :-2] *= scale
            part[:, -2] = 1
            part[:, -1] = _lowered(self.squares[first : first + len(chunk)], scale, self.allowance)
            for query, row in _proposed(proposals, part, limit):
                for few in _parts(len(query), self.dim):
                    q, r = query[few], row[few]
                    _improve(found, q, first + r, distances(queries[q], chunk[r]))
                limit[:] = _limit(found.distance * float(scale), self._eta)


class Screen:
    """Verdicts alone, for one threshold: which queries have a gallery row at a distance of at most tau.

    A row x is kept as its coordinates z = V'(x - centre) in k leading directions and the length r of the rest. |x - y|^2 is at
    least |z_x - z_y|^2 + (r_x - r_y)^2, with equality where the rests are parallel, so few pairs need all dimensions.
    file: where to keep the sketch, 4 (k + 3) bytes a row; None: in memory. k: by default what is fastest on a sample of the
    gallery; 0 goes without a sketch, where no few directions tell rows apart. Raises ValueError unless tau is finite and
    above 0.
    """

    def __init__(self, gallery: Gallery, tau: float, *, file: Path | None = None, k: int | None = None) -> None:
        if not (math.isfinite(tau) and tau > 0):
            raise ValueError(f"tau is {tau}; expected a finite distance above 0")
        self.gallery, self.tau = gallery, float(tau)
        self._scale = _scale(gallery.longest + self.tau)
        self._directions = self._leading_directions(k)
        self.k = self._directions.shape[1]
        if not self.k:
            return
        self._eta = self._sketch_error()
        self.allowance = _allowance(self.k + 1, self._eta)
        self._sketch = empty_table((gallery.rows, self.k + 3), gallery.features.chunk_rows, file)
        for first, chunk in gallery.features.chunks():
            self._sketch.write(first, self._gallery_operand(chunk))

    def within(self, queries: np.ndarray) -> np.ndarray:
        """bool (m,): True where the nearest row, as `Gallery.nearest` finds it, is at most tau away. Queries float32 (m, d)."""
        if not self.k:
            return self.gallery.nearest(queries).distance <= self.tau
        queries = _checked(queries, self.gallery.dim)
        close = np.zeros(len(queries), dtype=bool)
        # a query further out than the longest row and tau together needs no product, and might leave the range of one
        reach = (self.gallery.longest + self.tau) * (1 + 1e-5)
        inside = np.flatnonzero(np.sqrt(_squared_lengths(queries - self.gallery.centre)) <= reach)
        for first in range(0, len(inside), _QUERY_ROWS):
            part = inside[first : first + _QUERY_ROWS]
            close[part] = self._within(queries[part])
        return close

    def _within(self, queries: np.ndarray) -> np.ndarray:
        sketch, squares = self._coordinates(queries)
        proposals = _query_operand(sketch, squares, np.float32(1), self.allowance)
        limit = np.full(len(queries), _limit(np.array(self.tau * float(self._scale)), self._eta))
        close = np.zeros(len(queries), dtype=bool)
        for (_, operand), (_, chunk) in zip(self._sketch.chunks(), self.gallery.features.chunks(), strict=True):
            for query, row in _proposed(proposals, operand, limit):
                for few in _parts(len(query), self.gallery.dim):
                    undecided = ~close[query[few]]
                    q, r = query[few][undecided], row[few][undecided]
                    close[q[distances(queries[q], chunk[r]) <= self.tau]] = True
                # one row within tau settles a query
                limit[close] = -np.inf
        return close

    def _coordinates(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(z, r) of rows, scaled: float32 (n, k + 1), and its squared length, float64 (n,)."""
        x = np.subtract(rows, self.gallery.centre, dtype=np.float64)
        x *= float(self._scale)
        z = x @ self._directions
        rest = np.einsum("ij,ij->i", x, x) - np.einsum("ij,ij->i", z, z)
        sketch = np.column_stack([z, np.sqrt(np.maximum(rest, 0))]).astype(np.float32)
        return sketch, _squared_lengths(sketch)

    def _gallery_operand(self, rows: np.ndarray) -> np.ndarray:
        sketch, squares = self._coordinates(rows)
        ones = np.ones((len(sketch), 1), dtype=np.float32)
        return np.hstack([sketch, ones, _lowered(squares, np.float32(1), self.allowance)[:, None]])

    def _leading_directions(self, k: int | None) -> np.ndarray:
        """Orthonormal float64 (d, k): principal directions of a sample, as many as make its own search cheapest if k is None."""
        x = np.subtract(self.gallery.sample(), self.gallery.centre, dtype=np.float64) * float(self._scale)
        wide = x.shape[1] > len(x)
        directions = np.linalg.eigh(x @ x.T if wide else x.T @ x)[1][:, ::-1]
        directions = x.T @ directions if wide else directions
        # with the three columns that a product needs besides, whole blocks of 16
        sizes = sorted({min(size, *directions.shape) for size in (13, 29, 61, 125, 253)})
        directions = np.linalg.qr(directions[:, : k or sizes[-1]])[0]
        if k is not None:
            return directions[:, :k]
        z, radius = x @ directions, self.tau * float(self._scale)
        # in multiply-adds of the product: its columns, the look at its result, and the float64 decision of a pair
        look, decision = 16, 200 * self.gallery.dim
        costs = {0: self.gallery.dim + 2 + look}
        for k in sizes:
            rest = np.sqrt(np.maximum((x**2).sum(1) - (z[:, :k] ** 2).sum(1), 0))
            w = np.column_stack([z[:, :k], rest])
            bound = (w[::2] ** 2).sum(1)[:, None] + (w[1::2] ** 2).sum(1) - 2 * w[::2] @ w[1::2].T
            share = np.mean(bound <= radius * radius) if bound.size else 0.0
            costs[k] = k + 3 + look + share * decision
        return directions[:, : min(costs, key=costs.__getitem__)]

    def _sketch_error(self) -> float:
        """Bound of |computed (z, r) - exact (z, r)| / |x - centre|, exact meaning some exactly orthonormal directions."""
        d, k = self._directions.shape
        gram = self._directions.T @ self._directions
        sums = (d + 2) * _UNIT64
        of_z = float(np.linalg.norm(gram - np.eye(k))) + (k + 2 * math.sqrt(k) + 2) * sums
        # r is the root of a difference: |sqrt(a) - sqrt(b)| <= sqrt(|a - b|)
        of_r_squared = 2 * of_z + of_z**2 + 4 * sums
        return math.sqrt(of_z**2 + of_r_squared) + 2 * _UNIT32


def _allowance(k: int, eta: float) -> float:
    """The share a of |w|^2 that makes a lower bound of the computed p_x + p_y - 2 w_x.w_y; w has k columns.

    If x -> w shortens distances, up to an error of eta |x|, then by the triangle inequality and 2 D eta |x| <= eta (D^2 + |x|^2)
        |w_x - w_y|^2 <= (1 + 2 eta) D^2 + (eta + 2 eta^2) (|x|^2 + |y|^2),   D = |x - y|.
    A sum of n products errs by at most n u / (1 - n u) times the sum of their magnitudes, in whatever order it is taken,
    u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1); the magnitudes add up to
    2 (|w_x|^2 + |w_y|^2) at most. Rounding p adds u. The hundredth on top covers the float64 steps that form p.
    """
    columns = k + 2
    terms = (min(columns, _SLICE) + math.ceil(columns / _SLICE)) * _UNIT32
    return 1.01 * (2 * terms / (1 - terms) + _UNIT32 + (eta + 2 * eta**2) / (1 - eta) ** 2)


def _limit(distance: np.ndarray, eta: float) -> np.ndarray:
    """What a lower bound reaches at most for a pair at this (scaled) distance, float32, rounded up."""
    with np.errstate(over="ignore"):
        return np.nextafter((distance * distance * ((1 + 2 * eta) * _SLACK)).astype(np.float32), np.float32(np.inf))


def _scale(longest: float) -> np.float32:
    """The power of two that brings a length to about 1, as far as float32 has one; 1 where squares are in no danger.

    Scaling by it rounds nothing.
    """
    exponent = -math.frexp(longest)[1] if longest > 0 else 0
    return np.float32(1 if abs(exponent) <= 20 else 2.0 ** max(-126, min(120, exponent)))


def _lowered(squares: np.ndarray, scale: np.float32, allowance: float) -> np.ndarray:
    return (squares * float(scale) ** 2 * (1 - allowance) - _TINY).astype(np.float32)


def _query_operand(w: np.ndarray, squares: np.ndarray, scale: np.float32, allowance: float) -> np.ndarray:
    """Rows (-2 w, p, 1), to be multiplied with gallery rows (w, 1, p)."""
    operand = np.empty((len(w), w.shape[1] + 2), dtype=np.float32)
    np.multiply(w, -2 * scale, out=operand[:, :-2])
    operand[:, -2] = _lowered(squares, scale, allowance)
    operand[:, -1] = 1
    return operand


def _proposed(queries: np.ndarray, rows: np.ndarray, limit: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(query, row) numbers of all pairs whose lower bound does not exceed the query's limit, tile by tile.

    The lowest pair of each query comes first: what it teaches may be written into `limit` before the others are asked for.
    """
    scores = np.empty((min(_TILE_ROWS, len(queries)), len(rows)), dtype=np.float32)
    spare = np.empty_like(scores) if queries.shape[1] > _SLICE else scores
    for first in range(0, len(queries), _TILE_ROWS):
        tile = queries[first : first + _TILE_ROWS]
        bounds = scores[: len(tile)]
        np.matmul(tile[:, :_SLICE], rows[:, :_SLICE].T, out=bounds)
        for column in range(_SLICE, tile.shape[1], _SLICE):
            part = slice(column, column + _SLICE)
            bounds += np.matmul(tile[:, part], rows[:, part].T, out=spare[: len(tile)])
        query = np.flatnonzero(bounds.min(axis=1) <= limit[first : first + len(tile)])
        if not len(query):
            continue
        bounds = bounds[query]
        lowest = bounds.argmin(axis=1)
        yield first + query, lowest
        bounds[np.arange(len(query)), lowest] = np.inf
        # few queries have a second candidate, and looking for the lowest is faster than listing
        more = np.flatnonzero(bounds.min(axis=1) <= limit[first + query])
        which, row = np.nonzero(bounds[more] <= limit[first + query[more], None])
        yield first + query[more][which], row


def _parts(pairs: int, dim: int) -> Iterator[slice]:
    size = max(1, _PAIR_VALUES // dim)
    return (slice(first, first + size) for first in range(0, pairs, size))


def _improve(found: Nearest, query: np.ndarray, row: np.ndarray, distance: np.ndarray) -> None:
    """Enter measured pairs into `found`; equal distances go to the smaller row."""
    order = np.lexsort((row, distance, query))
    query, lowest = np.unique(query[order], return_index=True)
    row, distance = row[order][lowest], distance[order][lowest]
    before = found.distance[query]
    better = (distance < before) | ((distance == before) & (row < found.row[query]))
    found.distance[query[better]], found.row[query[better]] = distance[better], row[better]


def _squared_lengths(x: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", x, x, dtype=np.float64)


def _checked(queries: np.ndarray, dim: int) -> np.ndarray:
    if queries.ndim != 2 or queries.shape[1] != dim or queries.dtype != np.float32:
        raise ValueError(f"queries of shape {queries.shape} and type {queries.dtype}; expected float32 (m, {dim})")
    if not (good := measurable(queries)).all():
        raise ValueError(f"query {int(np.argmin(good))} holds NaN, infinity or a value beyond {LARGEST:g}; remove it")
    return queries

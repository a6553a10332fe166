"""Exact search against a float64 loop, whatever the batch, order, chunk, threads or scale; and bugs that the loop finds."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared import approximately_nearest
from threadpoolctl import threadpool_limits

from medsynth.privacy.gate import search
from medsynth.privacy.gate.feature_table import FeatureTable, empty_table
from medsynth.privacy.gate.search import Gallery, Nearest, Screen, distances, measurable

pytestmark = pytest.mark.numeric


def brute_force(queries: np.ndarray, gallery: np.ndarray) -> Nearest:
    """One pair after the other."""
    table = np.array([[distances(q[None], g[None])[0] for g in gallery] for q in queries])
    return Nearest(table.min(1), table.argmin(1))


def sample(seed: int, n: int, m: int, d: int, *, mean: float = 0.0, clusters: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Gallery (n, d), some rows twins, and queries (m, d), some of them rows of the gallery, or almost.

    clusters: how far apart two groups of rows lie, each narrow: lengths are large there and distances small.
    """
    rng = np.random.default_rng([seed, n, m, d])
    spread = 10.0 if not clusters else 1e-3
    gallery, queries = (rng.normal(mean, spread, (k, d)) + clusters * rng.integers(0, 2, (k, 1)) for k in (n, m))
    gallery, queries = gallery.astype(np.float32), queries.astype(np.float32)
    gallery[rng.integers(n, size=n // 3)] = gallery[rng.integers(n, size=n // 3)]
    for i, kind in enumerate(rng.integers(0, 4, m)):
        if kind:
            queries[i] = gallery[rng.integers(n)]
        if kind == 2:
            queries[i] = np.nextafter(queries[i], np.float32(np.inf))
        if kind == 3:
            queries[i] += rng.normal(0, 1e-4 * spread, d).astype(np.float32)
    return gallery, queries


def agree(gallery: np.ndarray, queries: np.ndarray, chunk_rows: int = 7) -> None:
    """Both searches say what the loop says, to the last bit, at thresholds on, below and beside the distances there are."""
    index, expected = Gallery(gallery, chunk_rows=chunk_rows), brute_force(queries, gallery)
    found = index.nearest(queries)
    assert found.distance.dtype == np.float64 and found.distance.tolist() == expected.distance.tolist()
    assert found.row.tolist() == expected.row.tolist()
    middle = float(np.median(expected.distance))
    for tau in {middle, np.nextafter(middle, 0), float(expected.distance.max()), 1.001 * middle}:
        if tau > 0:
            for k in (None, 1, 9):
                assert Screen(index, tau, k=k).within(queries).tolist() == (expected.distance <= tau).tolist()


DIMENSIONS = st.sampled_from([1, 2, 3, 16, 65, 600])


@given(seed=st.integers(0, 10**6), n=st.integers(1, 30), m=st.integers(1, 12), d=DIMENSIONS, chunk=st.integers(1, 40))
def test_nearest_and_within_are_the_float64_loop(seed: int, n: int, m: int, d: int, chunk: int) -> None:
    agree(*sample(seed, n, m, d), chunk)


@given(seed=st.integers(0, 10**6), d=DIMENSIONS)
def test_large_means_far_clusters_and_lattices_change_nothing(seed: int, d: int) -> None:
    agree(*sample(seed, 20, 8, d, mean=100.0))
    agree(*sample(seed, 20, 8, d, clusters=100.0))
    rng = np.random.default_rng(seed)
    # few values, so that many different rows are at exactly the same distance
    agree(rng.integers(0, 2, (25, d)).astype(np.float32), rng.integers(0, 2, (6, d)).astype(np.float32))


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e-12, 1e12, 1e27])
def test_any_scale_that_float32_has(size: float) -> None:
    gallery, queries = sample(0, 25, 10, 12)
    gallery, queries = ((x.astype(np.float64) * size).astype(np.float32) for x in (gallery, queries))
    agree(gallery, queries)
    # and queries of a scale that the gallery does not have
    agree(gallery, np.concatenate([queries, np.full((1, 12), 1e29, np.float32)]))
    agree(np.concatenate([gallery, np.full((1, 12), 1e29, np.float32)]), queries)
    index = Gallery(gallery)
    for k in (0, 3):
        screen = Screen(index, 1e300, k=k)
        assert screen.within(queries).all() and screen.within(np.full((1, 12), 1e30, np.float32)).all()


def test_sums_longer_than_one_slice_and_equal_rows() -> None:
    agree(*sample(1, 12, 4, 2500, clusters=10.0))
    agree(np.ones((20, 5), np.float32), np.ones((3, 5), np.float32))
    agree(np.zeros((20, 5), np.float32), np.arange(15, dtype=np.float32).reshape(3, 5))


@given(seed=st.integers(0, 10**6), d=st.integers(1, 600))
def test_distances_are_right_and_those_of_a_pair_alone(seed: int, d: int) -> None:
    x, y = (a[:7] for a in sample(seed, 7, 7, d))
    together = distances(x, y)
    for i in range(7):
        exact = math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(x[i].tolist(), y[i].tolist(), strict=True)))
        assert together[i] == pytest.approx(exact, rel=1e-14, abs=0)
        assert together[i] == distances(x[i : i + 1], y[i : i + 1])[0] == distances(y[[i, i]], x[[i, i]])[1]
    assert (distances(x, x) == 0).all()


@given(seed=st.integers(0, 10**6))
def test_batches_order_and_chunks_do_not_matter(seed: int) -> None:
    gallery, queries = sample(seed, 40, 20, 33, clusters=3.0)
    tau = float(np.median(Gallery(gallery).nearest(queries).distance)) or 1e-6
    expected = Gallery(gallery).nearest(queries), Screen(Gallery(gallery), tau).within(queries)
    order = np.random.default_rng(seed).permutation(20)
    for chunk_rows in (1, 13):
        index = Gallery(gallery, chunk_rows=chunk_rows)
        screen = Screen(index, tau)
        for part in (order, *order[:3, None]):
            found = index.nearest(queries[part])
            assert found.distance.tolist() == expected[0].distance[part].tolist()
            assert found.row.tolist() == expected[0].row[part].tolist()
            assert screen.within(queries[part]).tolist() == expected[1][part].tolist()


def test_threads_do_not_matter() -> None:
    gallery, queries = sample(4, 800, 150, 65, clusters=3.0)
    answers = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found = Gallery(gallery).nearest(queries)
            close = Screen(Gallery(gallery), 0.0075, k=13).within(queries)
        answers.append((found.distance.tolist(), found.row.tolist(), close.tolist()))
    assert answers[0] == answers[1] and 0 < sum(answers[0][2]) < 150


def test_more_queries_than_a_pass_or_a_tile_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_QUERY_ROWS", 7)
    monkeypatch.setattr(search, "_TILE_ROWS", 3)
    monkeypatch.setattr(search, "_SLICE", 5)
    monkeypatch.setattr(search, "_PAIR_VALUES", 40)
    agree(*sample(2, 30, 20, 17))
    agree(*sample(2, 30, 20, 17, clusters=50.0))


@given(seed=st.integers(0, 10**6), d=DIMENSIONS, clusters=st.sampled_from([0.0, 1.0, 1e4]))
def test_the_lower_bound_of_no_pair_overstates(seed: int, d: int, clusters: float) -> None:
    gallery, queries = sample(seed, 20, 6, d, clusters=clusters)
    index = Gallery(gallery)
    table = np.array([[distances(q[None], g[None])[0] for g in gallery] for q in queries])
    screen = Screen(index, 1.0, k=8)
    w, squares = screen._coordinates(queries)
    bounds = search._query_operand(w, squares, np.float32(1), screen.allowance) @ screen._gallery_operand(gallery).T
    assert (bounds <= search._limit(table * float(screen._scale), screen._eta)).all()
    # tight enough to be of use, too
    assert 0 < screen.allowance < 1e-4 and 0 < index.allowance < 1e-4


def test_a_file_is_searched_like_the_array(tmp_path: Path) -> None:
    gallery, queries = sample(3, 50, 10, 20)
    file, first = tmp_path / "features.npy", 0
    table = empty_table(gallery.shape, 8, file)
    for part in np.array_split(gallery, 7):
        table.write(first, part)
        first += len(part)
    assert np.load(file).tolist() == gallery.tolist()
    stored, held = Gallery(file, chunk_rows=8), Gallery(gallery)
    assert stored.nearest(queries).distance.tolist() == held.nearest(queries).distance.tolist()
    screen = Screen(stored, 20.0, file=tmp_path / "sketch.npy", k=6)
    assert screen.within(queries).tolist() == Screen(held, 20.0).within(queries).tolist()
    assert np.load(tmp_path / "sketch.npy").shape == (50, screen.k + 3)


@pytest.mark.parametrize("kept", ["in memory", "in a file"])
def test_rows_that_do_not_fit_a_table_are_refused(kept: str, tmp_path: Path) -> None:
    table = empty_table((5, 3), 2, tmp_path / "a.npy" if kept == "in a file" else None)
    rows = np.ones((2, 3), np.float32)
    table.write(0, np.zeros((5, 3), np.float32))
    table.write(3, rows)
    for first, wrong in ((4, rows), (5, rows), (6, rows), (0, rows[:, :1]), (0, rows[:, :2])):
        with pytest.raises(ValueError, match=rf"rows \(2, .\) do not fit from {first} on in a table \(5, 3\)"):
            table.write(first, wrong)
    assert table.read(0, 5).tolist() == [[0] * 3] * 3 + [[1] * 3] * 2


def test_the_sketch_is_as_large_as_the_features_need() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(600, 200)).astype(np.float32)
    flat = (rng.normal(size=(600, 6)) @ rng.normal(size=(6, 200))).astype(np.float32)
    sizes = []
    for gallery, share in ((noise, 1.0), (flat, 0.5)):
        distance = Gallery(gallery[1:]).nearest(gallery[:1]).distance[0]
        sizes.append(Screen(Gallery(gallery), share * distance).k)
    assert sizes == [0, 13]


def test_no_queries_no_answers() -> None:
    index, none = Gallery(np.ones((3, 4), np.float32)), np.empty((0, 4), np.float32)
    assert index.nearest(none).distance.shape == index.nearest(none).row.shape == (0,)
    assert Screen(index, 1.0, k=0).within(none).shape == Screen(index, 1.0, k=2).within(none).shape == (0,)


def test_what_cannot_be_measured_is_named() -> None:
    good = np.ones((5, 3), np.float32)
    for value in (np.nan, np.inf, -2e30):
        bad = good.copy()
        bad[3, 1] = value
        assert measurable(bad).tolist() == [True, True, True, False, True]
        with pytest.raises(ValueError, match="gallery: row 3 holds NaN, infinity or a value beyond 1e"):
            Gallery(bad, chunk_rows=2)
        with pytest.raises(ValueError, match="query 3 holds NaN"):
            Gallery(good).nearest(bad)
        with pytest.raises(ValueError, match="query 3 holds NaN"):
            Screen(Gallery(good), 1.0, k=2).within(bad)
    with pytest.raises(ValueError, match="row 0"):
        Gallery(np.full((5, 3), np.nan, np.float32))
    for wrong in (good[:0], np.ones((5, 0), np.float32), good.astype(np.float64)):
        with pytest.raises(ValueError, match=r"gallery of \d rows, \d dimensions and type float\d+; expected float32"):
            Gallery(wrong)
    for wrong in (good[:, 0], np.asfortranarray(good)):
        with pytest.raises(ValueError, match=r"features have shape \(5,.*\); expected \(n, d\), row after row"):
            Gallery(wrong)
    for wrong in (good[:, :2], good[0], good.astype(np.float64)):
        with pytest.raises(ValueError, match=r"expected float32 \(m, 3\)"):
            Gallery(good).nearest(wrong)
    for tau in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="expected a finite distance above 0"):
            Screen(Gallery(good), tau)
    with pytest.raises(ValueError, match="chunk_rows is 0"):
        Gallery(good, chunk_rows=0)


# What could go wrong in a rewrite, planted: each must fail the check that the real thing passes.


def _float32_flat(self: Gallery, queries: np.ndarray) -> Nearest:
    rows = self.features.read(0, self.rows)
    squares = (queries**2).sum(1)[:, None] + (rows**2).sum(1) - 2 * queries @ rows.T
    return Nearest(np.sqrt(np.maximum(squares.min(1), 0)).astype(np.float64), squares.argmin(1))


def _last_chunk_dropped(self: FeatureTable) -> list[tuple[int, np.ndarray]]:
    starts = range(0, max(1, self.shape[0] - self.chunk_rows + 1), self.chunk_rows)
    return [(first, self.read(first, min(first + self.chunk_rows, self.shape[0]))) for first in starts]


def _zero_is_no_match(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    found = distances(x, y)
    return np.where(found == 0, np.inf, found)


def _ends_added(self: Screen, rows: np.ndarray) -> np.ndarray:
    operand = self._real_operand(rows)
    operand[:, self.k] *= -1  # (r_x + r_y)^2 in the place of (r_x - r_y)^2
    return operand


BUGS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "margin dropped": lambda patch: patch.setattr(search, "_allowance", lambda k, eta: 0.0),
    "margin of the opposite sign": lambda patch: patch.setattr(
        search, "_allowance", lambda k, eta, f=search._allowance: -f(k, eta)
    ),
    "approximate index": lambda patch: patch.setattr(Gallery, "nearest", approximately_nearest),
    "float32 decides": lambda patch: patch.setattr(Gallery, "nearest", _float32_flat),
    "last chunk dropped": lambda patch: patch.setattr(FeatureTable, "chunks", _last_chunk_dropped),
    "zero distance is no match": lambda patch: patch.setattr(search, "distances", _zero_is_no_match),
    "threshold not squared": lambda patch: patch.setattr(search, "_limit", lambda x, eta, f=search._limit: f(np.sqrt(x), eta)),
    "bound overstates": lambda patch: (
        patch.setattr(Screen, "_real_operand", Screen._gallery_operand, raising=False),
        patch.setattr(Screen, "_gallery_operand", _ends_added),
    ),
    "only the lowest bound is measured": lambda patch: patch.setattr(
        search, "_proposed", lambda *a, f=search._proposed: (pairs for i, pairs in enumerate(f(*a)) if i % 2 == 0)
    ),
}


def check() -> None:
    """One case of every kind."""
    for case in ({}, {"mean": 100.0}, {"clusters": 100.0}):
        agree(*sample(5, 100, 40, 48, **case), chunk_rows=32)


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[bug](monkeypatch)
    with pytest.raises(AssertionError):
        check()


def test_and_without_them_the_same_check_passes() -> None:
    check()

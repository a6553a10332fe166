"""The gate's search against what the machine, FAISS and scikit-learn do: nearest distances, verdicts alone, and peak memory.

python benchmarks/gate.py [--rows 100000] [--queries 2000] [--rounds 3] [--features FILE.npz] [--memory-rows 1000000]

Features are made here unless --features names a file with float32 arrays `gallery` (n, d) and `queries` (m, d): phantom X-rays,
the private ones with their transformed copies, through a random convolution network of one layer with 512 outputs. tau is
the distance within which 5 % of the queries, images of unseen patients, have a gallery row. The peak of memory is read in a
process of its own (Linux), on random features in a file.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
from sklearn.neighbors import NearestNeighbors

from medsynth.data.sources import cached_thorax
from medsynth.imageset import ImageSet
from medsynth.privacy.gate.alterations import GALLERY, transformed_copies
from medsynth.privacy.gate.feature_table import empty_table
from medsynth.privacy.gate.search import CHUNK_ROWS, Gallery, Screen

DIM = 512
SIDE = 32  # px of the phantoms
PATCH, STRIDE = 8, 4
SQUARE = 4096  # side of the other product that the machine's rate is taken from: the faster of the two


def random_convolution(images: ImageSet) -> np.ndarray:
    """Mean and spread, over the image's two halves, of 128 rectified responses to random 8 x 8 filters: float32 (n, 512)."""
    filters = np.random.default_rng(0).normal(size=(PATCH * PATCH, DIM // 4)).astype(np.float32)
    filters -= filters.mean(axis=0)
    windows = np.lib.stride_tricks.sliding_window_view(images.images[:, 0], (PATCH, PATCH), axis=(1, 2))[:, ::STRIDE, ::STRIDE]
    responses = np.maximum(windows.reshape(len(images), -1, PATCH * PATCH) @ filters, 0)
    halves = np.array_split(responses, 2, axis=1)
    return np.concatenate([part for h in halves for part in (h.mean(axis=1), h.std(axis=1))], axis=1)


def phantom_features(rows: int, queries: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Gallery (rows, 512) of private phantoms and their copies, queries (queries, 512) of other patients, and what they are."""
    people, scans = -(-rows // len(GALLERY)), 4
    private = cached_thorax(patients=people, scans=1, size=SIDE, population="private", seed=0)
    unseen = cached_thorax(patients=-(-queries // scans), scans=scans, size=SIDE, population="private", seed=1)
    parts = []
    for first in range(0, people, 256):
        some = private.select(np.arange(first, min(people, first + 256)))
        parts += [random_convolution(copied) for _, copied in transformed_copies(some)]
    what = (
        f"phantom X-rays at {SIDE} px through a random convolution: {people} private images with {len(GALLERY)} copies each, "
        f"against {unseen.patients} unseen patients with {scans} scans each"
    )
    return np.concatenate(parts)[:rows], random_convolution(unseen)[:queries], what


def best(rounds: int, contestants: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each, the best of `rounds` after one to warm up, taken in turn so that what disturbs one disturbs all."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: min(values[1:]) for name, values in seconds.items()}


def products(queries: np.ndarray, gallery: np.ndarray) -> Callable[[], None]:
    """The bare float32 product of all pairs, in tiles that stay in the cache, results dropped."""
    tile = np.empty((512, CHUNK_ROWS), dtype=np.float32)

    def run() -> None:
        for g, q in itertools.product(range(0, len(gallery), CHUNK_ROWS), range(0, len(queries), 512)):
            a, b = queries[q : q + 512], gallery[g : g + CHUNK_ROWS]
            np.matmul(a, b.T, out=tile[: len(a), : len(b)])

    return run


def compare(gallery: np.ndarray, queries: np.ndarray, rounds: int) -> None:
    """Time everything in turn; print seconds and ratios, and check that the answers are the same."""
    flat = faiss.IndexFlatL2(gallery.shape[1])
    flat.add(gallery)
    brute = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(gallery)
    start = time.perf_counter()
    index = Gallery(gallery)
    built = time.perf_counter() - start
    nearest = index.nearest(queries)
    tau = float(np.quantile(nearest.distance, 0.05))
    start = time.perf_counter()
    screen = Screen(index, tau)
    sketched = time.perf_counter() - start
    if (screen.within(queries) != (nearest.distance <= tau)).any():
        raise AssertionError("verdicts differ from the nearest distances")
    approximate = flat.search(queries, 1)[0][:, 0]
    wrong = int(((approximate <= tau**2) != (nearest.distance <= tau)).sum())
    square, out = np.ones((2, SQUARE, SQUARE), dtype=np.float32)
    seconds = best(
        rounds,
        {
            "square": lambda: np.matmul(square, square, out=out),
            "product": products(queries, gallery),
            "nearest": lambda: index.nearest(queries),
            "FAISS flat": lambda: flat.search(queries, 1),
            "scikit-learn": lambda: brute.kneighbors(queries),
            "verdicts": lambda: screen.within(queries),
        },
    )
    operations = 2.0 * gallery.shape[1] * len(gallery) * len(queries)
    rate = max(2.0 * SQUARE**3 / seconds.pop("square"), operations / seconds["product"])
    for name, value in seconds.items():
        print(f"  {name:12s} {value:7.3f} s  {operations / value / 1e9:6.1f} GFLOP/s")
    print(f"  measured float32 product rate {rate / 1e9:.1f} GFLOP/s; building: gallery {built:.2f} s, sketch {sketched:.2f} s")
    print(f"  tau {tau:.4g}, sketch of {screen.k} + 1 dimensions; float32 FAISS distances would turn {wrong} verdicts")
    print(f"  nearest / product rate        {operations / seconds['nearest'] / rate:.2f}  (wanted: 0.75)")
    print(f"  scikit-learn / nearest        {seconds['scikit-learn'] / seconds['nearest']:.2f}  (wanted: 1.3)")
    print(f"  FAISS flat / nearest          {seconds['FAISS flat'] / seconds['nearest']:.2f}")
    print(f"  FAISS flat / verdicts         {seconds['FAISS flat'] / seconds['verdicts']:.2f}  (wanted: 3, on image features)")


# low-dimensional, so that the sketch has something to do; searched as a gate would
_MEMORY = """
import sys, numpy as np
from pathlib import Path
from medsynth.privacy.gate.search import Gallery, Screen
def peak(): return [int(l.split()[1]) / 1024 for l in open("/proc/self/status") if l.startswith("VmHWM")][0]
folder, rows = Path(sys.argv[1]), int(sys.argv[2])
queries = np.load(folder / "queries.npy")
before = peak()
index = Gallery(folder / "features.npy")
found = index.nearest(queries)
screen = Screen(index, float(np.quantile(found.distance, 0.05)), file=folder / "sketch.npy")
assert (screen.within(queries) == (found.distance <= screen.tau)).all()
print(before, peak() - before, index.features.chunk_rows)
"""


def memory(rows: int, queries: int) -> None:
    """Peak memory of building, nearest and verdicts over a file of `rows` x 512 features, beside the size of that file."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(40, DIM)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        file = home / "features.npy"
        table = empty_table((rows, DIM), CHUNK_ROWS, file)
        for first in range(0, rows, CHUNK_ROWS):
            drawn = rng.standard_normal((min(CHUNK_ROWS, rows - first), 40), np.float32)
            table.write(first, drawn @ mixing)
        np.save(home / "queries.npy", rng.standard_normal((queries, 40), np.float32) @ mixing)
        command = [sys.executable, "-c", _MEMORY, folder, str(rows)]
        before, added, chunk = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
        size = file.stat().st_size / 2**20
    print(
        f"memory, {rows} x {DIM} in a file of {size:.0f} MiB, chunks of {chunk:.0f} rows: {added:.0f} MiB at the peak beside the "
        f"{before:.0f} MiB of an idle process"
    )


def main() -> None:
    """Compare on image features and on normal noise, then measure memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--memory-rows", type=int, default=1_000_000)
    args = parser.parse_args()
    if args.features:
        with np.load(args.features, allow_pickle=False) as f:
            gallery, queries, what = f["gallery"], f["queries"], str(args.features)
    else:
        gallery, queries, what = phantom_features(args.rows, args.queries)
    print(f"{gallery.shape[0]} x {gallery.shape[1]}, {len(queries)} queries; features: {what}")
    compare(gallery, queries, args.rounds)
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal((n, gallery.shape[1]), dtype=np.float32) for n in (len(gallery), len(queries))]
    print("the same with normal noise for features, which no projection helps")
    compare(*noise, args.rounds)
    if args.memory_rows:
        memory(args.memory_rows, min(args.queries, 256))


if __name__ == "__main__":
    main()

"""The search behind the Image Retrieval Score, beside a bare matrix product of the same size.

python benchmarks/retrieval.py [--images 100000] [--dimensions 128] [--rounds 3]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from medsynth.evaluation.retrieval import retrieved


def seconds(action: Callable[[], object]) -> float:
    """How long an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def product(x: np.ndarray, y: np.ndarray, rows: int = 1000) -> None:
    """All inner products, a block at a time, none kept."""
    for first in range(0, len(x), rows):
        x[first : first + rows] @ y.T


def main() -> None:
    """Print the seconds of both and their ratio, for each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("images", 100_000), ("dimensions", 128), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(args.images, args.dimensions)).astype(np.float32) for _ in range(2))
    for _ in range(args.rounds):
        search, matrix = seconds(lambda: retrieved(x, y)), seconds(lambda: product(y, x))
        print(f"search {search:.1f} s, product {matrix:.1f} s, {matrix / search:.2f} of the rate of the product")


if __name__ == "__main__":
    main()

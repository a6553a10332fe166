"""`python -m medsynth.pretrain.feature_error`: how much single precision errs in each feature map, into the cards of weights.

Every map is evaluated on the same images in processes of their own, with one and two threads, with what instructions Intel's
library may use, and in batches of one to 64, and compared with double precision. The bound is `SAFETY` times the largest error:
other processors are not here to be asked.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from medsynth.data.sources import cached_thorax
from medsynth.imageset import ImageSet
from medsynth.models.weights import weights_folder
from medsynth.phantoms.heart.heart import cardiac
from medsynth.phantoms.thorax.thorax import MODALITIES
from medsynth.privacy.gate.feature_maps import ERROR_CARD, MAPS, SAFETY, NetworkMap, feature_map
from medsynth.store.runs import write_json

SEED = 1003  # of phantoms
PATIENTS = 5  # of each modality, and hearts
BATCHES = (1, 7, 64)
THREADS = (1, 2)
LIBRARIES = {
    "as it is": {}, "MKL compatible": {"MKL_CBWR": "COMPATIBLE"}, "MKL AVX2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "oneDNN AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}  # fmt: skip
_FADED = (1.0, 0.1, 1e-2, 1e-3)  # contrasts: what is left of an image, dark or bright, that was hidden in one shade


def probes(spatial_dims: int) -> list[ImageSet]:
    """Images that rounding may hurt: phantoms, larger and oblong ones, faded to a shade near either end, and noise."""
    if spatial_dims == 3:
        grids = ((8, 64), (12, 80))
        people = [cardiac(patients=PATIENTS, slices=d, size=size, phases=("ED",), seed=SEED) for d, size in grids]
    else:
        grids = (*((m, 64) for m in MODALITIES), ("ct", 96))
        people = [cached_thorax(patients=PATIENTS, size=size, modality=m, population="private", seed=SEED) for m, size in grids]
    oblong = people[-1].with_images(people[-1].images[..., 8:-8, :], name="oblong")
    noise = np.random.default_rng(SEED).uniform(*people[0].range, people[0].images.shape)
    return [*(f for s in people for f in _faded(s)), oblong, people[0].with_images(noise.astype(np.float32), name="noise")]


def _faded(images: ImageSet) -> Iterator[ImageSet]:
    low, high = images.range
    for contrast in _FADED:
        for shade in (low, high) if contrast < 1 else (low,):
            faded = shade + contrast * (images.images.astype(np.float64) - shade)
            yield images.with_images(np.clip(faded, low, high).astype(np.float32), name=f"{images.name} at {contrast:g}")


@torch.no_grad()
def features_in(phi: NetworkMap, batch: int, sets: list[ImageSet]) -> np.ndarray:
    """Features (rows, d) of all sets, shown to the network in batches of this size and not in the map's own."""
    chunks = (chunk for s in sets for chunk in torch.from_numpy(s.scaled()).split(batch))
    return np.concatenate([phi.network(chunk).numpy() for chunk in chunks])


def measure(maps: dict[str, NetworkMap], folder: Path | None = None) -> dict[str, dict[str, float]]:
    """Largest Euclidean error of a row of each map in each setting, every setting in a process of its own."""
    exact = {name: np.concatenate([phi.exact(s) for s in probes(_dims(name))]) for name, phi in maps.items()}
    found: dict[str, dict[str, float]] = {name: {} for name in maps}
    for threads, (library, settings) in itertools.product(THREADS, LIBRARIES.items()):
        with tempfile.TemporaryDirectory() as place:
            rows = Path(place) / "rows.npz"
            options = ["--rows", str(rows), "--threads", str(threads), "--maps", *maps]
            options += ["--weights", str(folder)] if folder else []
            command = [sys.executable, "-m", "medsynth.pretrain.feature_error", *options]
            subprocess.run(command, check=True, env=os.environ | settings | {"OMP_NUM_THREADS": str(threads)})
            with np.load(rows) as computed:
                for name, batch in itertools.product(maps, BATCHES):
                    error = np.linalg.norm(computed[f"{name} {batch}"] - exact[name], axis=1).max()
                    found[name][f"{library}, threads: {threads}, batches of {batch}"] = float(error)
    return found


def bound_of(largest: float) -> float:
    """SAFETY times an error, rounded up to one digit."""
    exponent = math.floor(math.log10(SAFETY * largest))
    return float(f"{math.ceil(SAFETY * largest / 10.0**exponent)}e{exponent}")


def _dims(name: str) -> int:
    return 3 if name == "encoder_3d" else 2


def main() -> None:
    """Write the bound of each map that has a card into it; print all."""
    parser = argparse.ArgumentParser(prog="python -m medsynth.pretrain.feature_error", description=__doc__)
    parser.add_argument("--weights", type=Path, help="a folder of weights other than the package's")
    parser.add_argument("--maps", nargs="*", default=list(MAPS), choices=list(MAPS))
    parser.add_argument("--rows", type=Path, help="only write features, as this process finds them, to this file")
    parser.add_argument("--threads", type=int, default=1, help="of that process")
    args = parser.parse_args()
    maps = {name: feature_map(name, folder=args.weights) for name in args.maps}
    if args.rows:
        torch.set_num_threads(args.threads)
        rows = {f"{k} {batch}": features_in(phi, batch, probes(_dims(k))) for k, phi in maps.items() for batch in BATCHES}
        np.savez(args.rows, **rows)
        return
    for name, errors in measure(maps, args.weights).items():
        where = max(errors, key=errors.__getitem__)
        bound = bound_of(errors[where])
        print(f"{name}: errs by {min(errors.values()):.3g} to {errors[where]:.3g} ({where}); bound {bound:g}")
        card = (args.weights or weights_folder()) / f"{name}.json"
        if card.exists():
            said = {"bound": bound, "largest": errors[where], "where": where, "safety": SAFETY, "errors": errors}
            write_json(card, json.loads(card.read_text()) | {ERROR_CARD: said})


if __name__ == "__main__":
    main()

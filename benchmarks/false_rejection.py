"""What a gate refuses of other people's images, by how many private patients it protects: rows of results/trials.

python benchmarks/false_rejection.py FOLDER [--out results/trials/gate]

FOLDER holds the public files of data/README.md. Private radiographs of some patients, drawn twenty times for each number, stand
in the gate of the identity encoder at the threshold that ships; held-out patients of the same hospital are its candidates.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from medsynth.evaluation.statistics import Estimate
from medsynth.imageset import ImageSet
from medsynth.ledger import Ledger
from medsynth.pretrain import public
from medsynth.privacy.gate.alterations import presentations
from medsynth.privacy.gate.feature_maps import FeatureMap, feature_map
from medsynth.privacy.gate.feature_table import feature_store, gallery_table
from medsynth.privacy.gate.margin import refused
from medsynth.privacy.gate.search import Gallery
from medsynth.privacy.gate.thresholds import kind_of, threshold_for
from medsynth.results import Row, write_results

PATIENTS = (50, 100, 200, 400, 800)
DRAWS, SIZE, SEED = 20, 64, 0


def nearest_copies(phi: FeatureMap, private: ImageSet, unseen: ImageSet) -> np.ndarray:
    """Distance of each unseen image to the nearest copy of each private one, float64 (unseen, private)."""
    copies = gallery_table(private, phi, feature_store()).features
    queries = [phi(laid) for _, laid in presentations(unseen)]
    found = np.empty((len(unseen), len(private)))
    for k in range(len(private)):
        gallery = Gallery(np.ascontiguousarray(copies[:, k]))
        found[:, k] = np.min([gallery.nearest(features).distance for features in queries], axis=0)
    return found


def share(distance: np.ndarray, tau: float, phi: FeatureMap) -> float:
    """Of unseen images (unseen, private), the share that is refused."""
    return float(refused(distance.min(axis=1), tau, phi.error).mean())


def main() -> None:
    """Measure, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/trials/gate"))
    args = parser.parse_args()
    ((name, (private, unseen)),) = public.radiographs(args.folder, SIZE).items()
    for images in (private, unseen):
        Ledger().read(images, stage="count false rejections", output="result rows")
    phi = feature_map("encoder")
    tau = threshold_for(phi, 2, kind_of(private)).tau
    distance, rng = nearest_copies(phi, private, unseen), np.random.default_rng(SEED)
    rows, people = [], np.unique(private.patient)
    named = {
        "chapter": "gate",
        "dataset": name,
        "metric": "share refused",
        "arm": "encoder",
        "kind": "unseen patients",
        "tau": tau,
    }
    for count in PATIENTS:
        draws = [np.isin(private.patient, rng.choice(people, count, replace=False)) for _ in range(DRAWS)]
        shares = [share(distance[:, some], tau, phi) for some in draws]
        # the scatter is that of who is private; over who is held out the chapter on the weights has an interval, for all of them
        low, high = np.quantile(shares, (0.05, 0.95))
        found = Estimate(float(np.mean(shares)), float(low), float(high), DRAWS, n_of="draws", level=0.9)
        rows.append(Row.of(found, **named, private_patients=count))
        print(count, found)
    sidecar = {"parameters": {"size": SIZE, "draws": DRAWS}, "seeds": [SEED], "people": True}
    inputs = {"private": private.content_hash, "unseen": unseen.content_hash, "encoder": phi.hash}
    write_results(args.out, "gate-false-rejection", rows, **sidecar, inputs=inputs, data_licence=private.data_licence)


if __name__ == "__main__":
    main()

"""`python -m medsynth.pretrain.thresholds`: how near is too near, for every feature map that ships, on people it never saw."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from medsynth.data.sources import cached_thorax
from medsynth.language.vocabulary import MODALITIES
from medsynth.ledger import Ledger
from medsynth.models.weights import weights_folder
from medsynth.phantoms.heart.heart import cardiac
from medsynth.pretrain.public import PublicSet, real_sets
from medsynth.privacy.gate.alterations import gallery_hash
from medsynth.privacy.gate.calibration import calibrate, one_per_patient
from medsynth.privacy.gate.feature_maps import FeatureMap, feature_map
from medsynth.privacy.gate.thresholds import FILE, PHANTOM
from medsynth.resample import resize
from medsynth.store.runs import write_json

SIZE = 64
SEED = 1001  # of phantoms: nobody whom a chapter draws
FEWEST = 299  # patients of a set: with fewer, not even none of them beyond tau shows that less than 1 % of everyone is
# phantoms of each modality: a tolerance limit of more people is nearer to the quantile, and maps differ in what a person costs
PATIENTS = {
    "encoder 2d": 4000, "pixels 2d": 1000, "autoencoder 2d": 400, "untrained_vgg 2d": 400, "encoder_3d 3d": 1000,
    "pixels 3d": 300, "autoencoder 3d": 300,
}  # fmt: skip
# Noise of 5 % of the range, and an offset of 20 %, are as large as most of what a PET image shows: what is left of it is no copy
LEFT_OUT = {"pet": ("noise", "gain and offset")}
_WHO = {"cxr_kermany": "radiographs of children of one hospital"}  # as a certificate names them


def unseen_images(folder: Path, patients: int) -> dict[str, PublicSet]:
    """One image each of people whom no shipped weight has seen: other phantoms of the private population, X-rays for validation.

    A threshold is for images like those it was found on, so phantoms come from the population whose privacy chapters are about.
    """
    drawn = {m: cached_thorax(patients=patients, size=SIZE, modality=m, population="private", seed=SEED) for m in MODALITIES}
    # patients of the hospital who agreed to be measured, as in the chapters
    phantoms = {f"{PHANTOM}{m}": PublicSet(replace(s, role="eval", name=f"{s.name}/other")) for m, s in drawn.items()}
    validation = real_sets(folder, "val")
    real = {
        k: replace(s, images=one_per_patient(resize(s.images, SIZE)))
        for k, s in validation.items()
        if s.images.modality == "xray"
    }
    enough = {k: s for k, s in real.items() if len(s.images) >= FEWEST}
    named = {k: replace(s.images, name=f"{_WHO[k]}, {s.images.name}") if k in _WHO else s.images for k, s in enough.items()}
    return phantoms | {k: PublicSet(images) for k, images in named.items()}


def unseen_volumes(patients: int) -> dict[str, PublicSet]:
    """Stacks of hearts that no shipped weight has seen."""
    hearts = cardiac(patients=patients, slices=8, size=SIZE, phases=("ED",), seed=SEED)
    return {f"{PHANTOM}heart": PublicSet(hearts, thorax=False)}


def entry(phi: FeatureMap, sets: dict[str, PublicSet], *, seed: int) -> dict[str, Any]:
    """What `medsynth.privacy.gate.thresholds.threshold_for` reads."""
    found = {key: calibrate(phi, s.images, seed=seed, left_out=LEFT_OUT.get(s.images.modality, ())) for key, s in sets.items()}
    said = {key: {"tau": c.tau, "how": c.sentence(), "modality": sets[key].images.modality} for key, c in found.items()}
    (dims,) = {len(s.images.spatial) for s in sets.values()}
    return {"sets": said, "phi": phi.name, "phi_hash": phi.hash, "gallery": gallery_hash(dims)}


def main() -> None:
    """Write thresholds.json beside the weights; maps that are not asked for keep their entries."""
    parser = argparse.ArgumentParser(prog="python -m medsynth.pretrain.thresholds", description=__doc__)
    parser.add_argument("--real", type=Path, default=Path("data"), help="folder of the public .npz files (data/README.md)")
    parser.add_argument("--out", type=Path, default=weights_folder())
    parser.add_argument("--patients", type=int, help="phantom patients per modality; by default as many as each map can afford")
    parser.add_argument("--maps", nargs="*", default=list(PATIENTS), choices=list(PATIENTS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    file = args.out / FILE
    entries = json.loads(file.read_text()) if file.exists() else {}
    ledger = Ledger()
    for key in args.maps:
        name, dims = key.split()
        patients = args.patients or PATIENTS[key]
        sets = unseen_images(args.real, patients) if dims == "2d" else unseen_volumes(patients)
        for s in sets.values():
            ledger.read(s.images, stage="calibrate thresholds", output=str(file))
        entries[key] = entry(feature_map(name, folder=args.out), sets, seed=args.seed)
        # each map takes minutes: what is done stays done
        write_json(file, entries)


if __name__ == "__main__":
    main()

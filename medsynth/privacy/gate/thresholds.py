"""The thresholds that come with the package, looked up: how near is too near, in which map, for which images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from medsynth.imageset import ImageSet
from medsynth.language.vocabulary import MODALITIES
from medsynth.ledger import Ledger
from medsynth.models.weights import weights_folder
from medsynth.privacy.gate.alterations import gallery_hash
from medsynth.privacy.gate.feature_maps import FeatureMap, feature_map
from medsynth.privacy.gate.gate import Gate, stored_gate

FILE = "thresholds.json"
PHANTOM = "phantom-"  # how kinds of images begin that nobody was scanned for
_AGAIN = "`python -m medsynth.pretrain.thresholds`"


@dataclass(frozen=True)
class Threshold:
    """A distance below which an image is refused, and a sentence that says how it was chosen."""

    tau: float
    how: str


def kind_of(images: ImageSet) -> str:
    """What a threshold is looked up by: the modality of images of people, "phantom-xray" and so on of phantoms.

    Raises ValueError where the modality is not known.
    """
    if not images.modality:
        raise ValueError(f"{images.name}: its modality is not known; expected one of {', '.join(MODALITIES)}")
    return images.modality if images.people else f"{PHANTOM}{images.modality}"


def private_gate(private: ImageSet, *, ledger: Ledger, phi: str = "encoder") -> Gate:
    """The gate around a private set at the threshold that ships for such images; its features stay in the cache.

    A line in the ledger. Of people only radiographs were free to find a threshold on, so theirs stands in for CT, MR and PET
    (`threshold_for`).
    """
    measured_in = feature_map(phi)
    threshold = threshold_for(measured_in, len(private.spatial), kind_of(private))
    ledger.read(private, stage="gate", output="synthetic images accepted")
    return stored_gate(private, measured_in, threshold.tau)


def threshold_for(phi: FeatureMap, spatial_dims: int, kind: str, *, folder: Path | None = None) -> Threshold:
    """The threshold that comes with a map for images of 2 or 3 dimensions of a kind (`kind_of`).

    Scans of a modality that no real images were to be had of get the largest threshold that was found on real ones, and their
    sentence says so: that of phantoms lets more copies of real scans pass than it promises. Raises ValueError where no threshold
    was found on anything like them, or where it was found for other weights, or other transformed copies, than are installed.
    """
    entry = _entry(phi, spatial_dims, (folder or weights_folder()) / FILE)
    sets = {key: Threshold(float(t["tau"]), t["how"]) for key, t in entry["sets"].items()}
    if kind in sets:
        return sets[kind]
    real = {key: t["modality"] for key, t in entry["sets"].items() if not key.startswith(PHANTOM)}
    if kind not in MODALITIES or not real:
        named = [m for m in MODALITIES if real] + [key for key in sets if key.startswith(PHANTOM)]
        found = f"none for {kind!r}" if kind else "each belongs to one kind of images"
        raise ValueError(f"{phi.name} in {spatial_dims}D: thresholds that ship: {found}; expected {' or '.join(named)}")
    key = max((k for k in real if real[k] == kind), default=None, key=lambda k: sets[k].tau)
    if key is not None:
        return sets[key]
    key = max(real, key=lambda k: sets[k].tau)
    measured = "nobody has measured" if kind == "pet" else "the package's published tables show on public scans"
    taken = f"; taken for {kind}, of which no real images were free to find one on: what it lets pass there {measured}"
    return Threshold(sets[key].tau, sets[key].how + taken)


def _entry(phi: FeatureMap, spatial_dims: int, file: Path) -> dict:
    entries = json.loads(file.read_text()) if file.exists() else {}
    of_name = [e for key, e in entries.items() if e["phi"] == phi.name and key.endswith(f" {spatial_dims}d")]
    if not of_name:
        raise ValueError(f"{phi.name}: no threshold ships for images of {spatial_dims} dimensions; find one with {_AGAIN}")
    (entry,) = of_name
    if entry["phi_hash"] != phi.hash:
        raise ValueError(
            f"{file.name}: tau of {phi.name} belongs to weights {entry['phi_hash'][:12]}…, not {phi.hash[:12]}…; find it again "
            f"with {_AGAIN}"
        )
    if entry["gallery"] != gallery_hash(spatial_dims):
        raise ValueError(
            f"{file.name}: tau of {phi.name} was found for other transformed copies (gallery {entry['gallery']}, not "
            f"{gallery_hash(spatial_dims)}); find it again with {_AGAIN}"
        )
    return entry

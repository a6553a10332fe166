"""`python -m medsynth.pretrain.gates`: what gates refuse of altered copies, of strangers, and of what generators draw."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medsynth.config import ThoraxConfig, load_profile
from medsynth.data.npz import load_npz
from medsynth.data.sources import cached_thorax, private_and_test
from medsynth.diffusion.conditions import of_rows
from medsynth.diffusion.generator import Generator
from medsynth.evaluation.statistics import bootstrap, clopper_pearson
from medsynth.imageset import ImageSet
from medsynth.ledger import Ledger
from medsynth.models.weights import shipped_hash, weights_folder
from medsynth.privacy.gate.calibration import attack_trial
from medsynth.privacy.gate.feature_maps import feature_map
from medsynth.privacy.gate.gallery_table import feature_store
from medsynth.privacy.gate.thresholds import kind_of, private_gate, threshold_for
from medsynth.resample import resize
from medsynth.results import Row, write_results
from medsynth.runs import file_hash

CHAPTER = "weights"
TABLES = ("weights-gate-attacks", "weights-gate-attacks-slices", "weights-gate-samples")
PROFILE = "full"  # whose generators draw
MAPS = ("encoder", "pixels", "autoencoder", "untrained_vgg")  # of images
SCANS = {"ct": "ct_tcia_hu_256", "mr": "mri_acdc_3d"}  # of people, on whose like no threshold was found
ACDC = "mri_acdc is CC BY-NC-SA 4.0: its rows are for non-commercial use, under the same licence"


@dataclass(frozen=True)
class Attacked:
    """Images that a gate protects, those of unseen patients, and other scans of the protected ones where there are any."""

    private: ImageSet
    unseen: ImageSet
    scans: ImageSet | None = None
    maps: tuple[str, ...] = MAPS


def phantoms(modality: str, size: int, patients: int) -> Attacked:
    """`patients` private ones, a second scan of each, and two thirds as many unseen; attacked in the encoder's map alone."""
    everyone = patients + 2 * patients // 3
    drawn = cached_thorax(patients=everyone, scans=2, size=size, modality=modality, population="private", seed=0)
    people = np.unique(drawn.patient)
    first = drawn.select(np.arange(0, len(drawn), 2))
    second = drawn.select(np.arange(1, len(drawn), 2), name=f"{drawn.name}/second scans")
    known, strangers = people[:patients], people[patients:]
    return Attacked(first.of_patients(known), first.of_patients(strangers), second.of_patients(known), ("encoder",))


def of_known_kind(folder: Path, size: int, patients: int) -> dict[str, Attacked]:
    """Images on whose like thresholds were found: cxr_kermany's private half and test patients, and phantoms.

    Phantom radiographs are those of the chapter on the gate, whose rows of the profile `full` are published too.
    """
    kermany = folder / "cxr_kermany_128.npz"
    private, test = load_npz(kermany, role="private"), load_npz(kermany, role="eval").in_split("test")
    return {
        "cxr_kermany_128": Attacked(resize(private, size), resize(test, size)),
        **{f"phantom-{m}": phantoms(m, size, patients) for m in ("ct", "mr", "pet")},
    }


def slices(folder: Path, size: int) -> dict[str, Attacked]:
    """Real CT and MR as the chapter on restoration reads them."""
    config, found = ThoraxConfig(size=size, private_patients=0, test_patients=0), {}
    for modality, name in SCANS.items():
        found[name] = Attacked(*private_and_test(config, str(folder / f"{name}.npz"), modality))
    return found


def attack_rows(tried: dict[str, Attacked], seed: int, ledger: Ledger) -> tuple[list[Row], list[ImageSet]]:
    """What gates in each feature map, at the thresholds that ship, refuse of attacked private images and of unseen patients.

    Also the sets they met, which leave lines in the ledger.
    """
    met = [images for sets in tried.values() for images in (sets.private, sets.unseen, sets.scans) if images is not None]
    for images in met:
        ledger.read(images, stage="try the gate", output="result rows")
    rows: list[Row] = []
    for name, sets in tried.items():
        for measured_in in sets.maps:
            phi = feature_map(measured_in)
            tau = threshold_for(phi, len(sets.private.spatial), kind_of(sets.private)).tau
            trial = attack_trial(phi, sets.private, sets.unseen, seed=seed, other_scans=sets.scans, store=feature_store())
            rows += trial.at_its_own_and_at_equal_price(tau, chapter=CHAPTER, dataset=name, arm=measured_in, seed=seed)
    return rows, met


def sample_rows(tried: dict[str, Attacked], seed: int, ledger: Ledger) -> tuple[list[Row], list[ImageSet]]:
    """How near to private images the generators of the chapter on restoration draw, and how near unseen patients come.

    An acceptance rate is a private output: these are public scans that stand for private ones. Also the sets that were met.
    """
    settings, rows = load_profile(PROFILE), []
    config = {name: getattr(settings, name) for name in ("denoiser", "diffusion", "sampling")}
    for name, sets in tried.items():
        ledger.read(sets.private, stage="judge samples", output="result rows")
        ledger.read(sets.unseen, stage="judge samples", output="result rows")
        generator = Generator.train(sets.private, **config, ledger=ledger, seed=seed)
        images = min(settings.restoration.images, len(sets.private))
        gate = private_gate(sets.private, ledger=ledger)
        drawn = generator.draw(of_rows(sets.private, generator.names, images, seed=seed, ledger=ledger))
        for arm, images in (("no gate", drawn), ("unseen patients", sets.unseen)):
            found = gate.judge(images)
            distance = found.distance[np.isfinite(found.distance)]
            # samples are nobody's; slices of one patient are no independent ones
            whose = np.arange(len(distance)) if arm == "no gate" else images.patient[np.isfinite(found.distance)]
            named = {"median distance": bootstrap(lambda i, d=distance: float(np.median(d[i])), whose, seed=seed)}
            if arm == "no gate":
                named["median distance"] = named["median distance"]._replace(n_of="images")
                named["share too close"] = clopper_pearson(int((~found.accepted).sum()), len(images), n_of="images")
            rows += [
                Row.of(e, chapter=CHAPTER, dataset=name, metric=metric, arm=arm, seed=seed, images=len(images), tau=gate.tau,
                       private_patients=sets.private.patients)
                for metric, e in named.items()
            ]  # fmt: skip
    return rows, [images for sets in tried.values() for images in (sets.private, sets.unseen)]


def main() -> None:
    """Write those of TABLES that are asked for; `medsynth promote weights --name weights --from OUT` publishes them."""
    parser = argparse.ArgumentParser(prog="python -m medsynth.pretrain.gates", description=__doc__)
    parser.add_argument("--real", type=Path, required=True, help="folder of the .npz files (data/README.md)")
    parser.add_argument("--out", type=Path, default=Path("build/weights"))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--patients", type=int, default=1500, help="private phantoms of each modality")
    parser.add_argument("--tables", nargs="*", default=TABLES, choices=TABLES, help="those to write; default: all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    ledger = Ledger()
    made = {
        "weights-gate-attacks": lambda: attack_rows(of_known_kind(args.real, args.size, args.patients), args.seed, ledger),
        "weights-gate-attacks-slices": lambda: attack_rows(slices(args.real, args.size), args.seed, ledger),
        "weights-gate-samples": lambda: sample_rows(slices(args.real, args.size), args.seed, ledger),
    }
    weights = {"weights-gate-samples": ("encoder", "autoencoder", "refiner", "denoiser_real")}
    for name in (name for name in TABLES if name in args.tables):
        rows, met = made[name]()
        inputs = {f"{s.name} ({s.role})": s.content_hash for s in met}
        inputs |= {k: shipped_hash(k) for k in weights.get(name, ("encoder", "autoencoder"))}
        licences = sorted({terms for s in met for terms in s.data_licence.split("; ")})
        write_results(
            args.out, name, rows, parameters={"size": args.size, "profile": PROFILE}, seeds=[args.seed],
            inputs=inputs | {"thresholds": file_hash(weights_folder() / "thresholds.json")},
            data_licence="; ".join(licences), notes="" if name == "weights-gate-attacks" else ACDC,
        )  # fmt: skip


if __name__ == "__main__":
    main()

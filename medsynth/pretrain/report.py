"""`python -m medsynth.pretrain.report`: what the autoencoder keeps, whom the encoder knows, whether the ruler is sane."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from medsynth.data.npz import load_npz, without_noncommercial
from medsynth.data.sources import cached_thorax
from medsynth.evaluation import ruler
from medsynth.evaluation.features import Extractor, PCAExtractor, random_twin, shipped_extractor
from medsynth.evaluation.image_quality import psnr, ssim
from medsynth.evaluation.reference import Reference
from medsynth.evaluation.statistics import Estimate, bootstrap_mean
from medsynth.figures import curve, new_figure, save_figure
from medsynth.imageset import ImageSet
from medsynth.ledger import Ledger
from medsynth.models.autoencoder import Autoencoder
from medsynth.models.weights import reconstruct, shipped_autoencoder, shipped_hash
from medsynth.pretrain.gates import ACDC
from medsynth.pretrain.public import phantoms as pretraining_phantoms
from medsynth.pretrain.public import real_sets
from medsynth.privacy.attacks.verification import identify
from medsynth.privacy.gate.calibration import one_per_patient
from medsynth.privacy.gate.feature_maps import feature_map
from medsynth.resample import resize, slices_of
from medsynth.results import Row, table_of, write_results
from medsynth.vocabulary import MODALITIES

CHAPTER = "weights"
TABLES = ("weights-reconstruction", "weights-identification", "weights-ruler-levels", "weights-ruler-power")
_STUDIED = ("xray", "ct")  # phantoms that the ruler is studied on
_LABEL = {"cxr_kermany": "finding", "ct_tcia": "collection"}  # and real sets, with the column that names classes
_POPULATION = 90  # seed of the first population of phantoms; nobody had looked at it or at those that follow


def unseen(folder: Path, size: int) -> dict[str, ImageSet]:
    """Real images that no shipped weight was trained on; CT only where its licence lets rows be published freely."""
    ct = without_noncommercial(load_npz(folder / "ct_tcia_hu_256.npz"))
    hearts = slices_of(load_npz(folder / "mri_acdc_3d.npz"), range(2, 9))
    brains = load_npz(folder / "mri_hippocampus_3d.npz", role="public").in_split("test")
    return {
        "cxr_kermany": resize(load_npz(folder / "cxr_kermany_128.npz", role="eval").in_split("test"), size),
        "cxr_nih": resize(load_npz(folder / "cxr_nih1000_64.npz", role="public").in_split("test"), size),
        "ct_tcia": resize(ct, size),
        "mri_acdc": resize(hearts, size),
        "mri_hippocampus": resize(slices_of(brains, range(8, 40, 3)), size),
    }  # fmt: skip


def reconstruction_rows(name: str, images: ImageSet, autoencoder: Autoencoder, extractor: Extractor, seed: int) -> list[Row]:
    """PSNR, SSIM, and FID or KID of reconstructions to other patients, beside and less the floor."""
    made = reconstruct(autoencoder, images)
    reference = Reference(images, extractor, seed=seed)
    named = {"PSNR": psnr(images, made, seed=seed), "SSIM": ssim(images, made, seed=seed)} | reference.score_derived(made)
    return [
        Row.of(e, chapter=CHAPTER, dataset=name, metric=k, arm="autoencoder", unit="dB" if k == "PSNR" else "", seed=seed,
               images=len(images), rows=reference.rows)
        for k, e in named.items()
    ]  # fmt: skip


def identification(name: str, images: ImageSet, map_name: str, seed: int) -> tuple[list[Row], pd.DataFrame]:
    """TPR at 1 % FPR and AUC of same-patient pairs, every patient weighing the same, and the ROC."""
    found = identify(feature_map(map_name)(images), images.patient, seed=seed)
    extra = {"same_pairs": found.same_pairs, "images": len(images)}
    named = {"TPR at 1 % FPR": found.tpr, "AUC": Estimate(found.auc, np.nan, np.nan, found.tpr.n)}
    curve = pd.DataFrame(found.curve, columns=["false positive rate", "value"]).assign(dataset=name, arm=map_name.split("_")[0])
    return [Row.of(e, chapter=CHAPTER, dataset=name, metric=k, arm=map_name, seed=seed, **extra) for k, e in named.items()], curve


def draw_rocs(curves: pd.DataFrame) -> Figure:
    """A panel per set, a line per feature map; false positives on a logarithmic scale, where they matter."""
    names = list(dict.fromkeys(curves.dataset))
    figure, axes = new_figure(2, -(-len(names) // 2), size=(9.6, 5.2), layout="constrained", sharey=True)
    for ax, name in zip(axes.flat, names, strict=False):
        curve(
            ax, curves[curves.dataset == name], x="false positive rate", x_label="strangers taken for one", y_label="found again"
        )
        ax.set(title=name, xscale="log", xlim=(1e-4, 1), ylim=(0, 1))
    for ax in axes.flat[len(names) :]:
        ax.remove()
    return figure


def people_seen_twice(folder: Path, size: int, patients: int) -> dict[str, tuple[ImageSet, str]]:
    """Sets in which unseen patients have several images, and the encoder for them ("encoder" or "encoder_3d")."""
    kermany = load_npz(folder / "cxr_kermany_128.npz", role="eval").in_split("test")
    # of normal images it is not certain that one number is one person
    kermany = kermany.select((kermany.attributes["finding"] != "none").to_numpy(dtype=bool))
    nih = load_npz(folder / "cxr_nih1000_64.npz", role="public").in_split("test")
    drawn = {
        f"phantom-{m}": (
            cached_thorax(patients=patients, scans=2, size=size, modality=m, population="private", seed=_POPULATION),
            "encoder",
        )
        for m in MODALITIES
    }
    return drawn | {
        "cxr_kermany": (resize(kermany, size), "encoder"), "cxr_nih": (resize(nih, size), "encoder"),
        "mri_acdc": (load_npz(folder / "mri_acdc_3d.npz"), "encoder_3d"),
    }  # fmt: skip


def level_rows(name: str, images: ImageSet, label: np.ndarray, extractor: Extractor, seed: int, splits: int) -> list[Row]:
    """Response of an extractor to damage, and whether it never falls; small sets are split more often."""
    # a distance scatters as one over the rows, its mean as one over the root of the splits
    splits *= max(1, 500 // len(images)) ** 2
    levels = ruler.response(extractor, images, label, chapter=CHAPTER, dataset=name, seed=seed, splits=splits)
    rising = [
        Row(chapter=CHAPTER, dataset=name, metric=f"{metric} never falls (1 = yes)", arm=arm, value=float(holds),
            seed=seed, extra={"perturbation": kind})
        for (arm, _, kind, metric), holds in ruler.rises(levels).items()
    ]  # fmt: skip
    return [*levels, *rising]


def power_rows(name: str, populations: list[tuple[ImageSet, np.ndarray]], rivals: list[Extractor], seed: int) -> list[Row]:
    """Power of all extractors to notice, in each population, and the mean with its interval over populations if several."""
    rows: list[Row] = []
    named = {"chapter": CHAPTER, "dataset": name, "seed": seed}
    for extractor in rivals:
        tables = [ruler.power(extractor, images, label, **named) for images, label in populations]
        if len(tables) == 1:
            rows += tables[0]
            continue
        found: dict[tuple[str, str], list[Row]] = {}
        for r in (r for table in tables for r in table):
            found.setdefault((r.extra["perturbation"], r.metric), []).append(r)
        for same in (v for v in found.values() if len(v) == len(tables)):
            mean = bootstrap_mean(np.array([r.value for r in same]), np.arange(len(same)), seed=seed)
            # the interval is over populations; n still counts their patients
            row = replace(same[0], value=mean.value, low=mean.low, high=mean.high, n=sum(r.n for r in same))
            rows += _with([row], populations=len(tables))
        for i, table in enumerate(tables):
            rows += _with(table, population=i)
    return rows


def _with(rows: list[Row], **extra: int) -> list[Row]:
    return [replace(r, extra=r.extra | extra) for r in rows]


def draw_levels(rows: list[Row]) -> Figure:
    """FID over its undamaged value, and KID, against the strength of each damage; a line per set."""
    fid, kid = (table_of(r for r in rows if r.metric == m) for m in ("fid", "kid"))
    kinds = list(dict.fromkeys(kid.perturbation))
    figure, axes = new_figure(2, len(kinds), size=(3.2 * len(kinds), 5.6), layout="constrained")
    for (upper, lower), kind in zip(axes.T, kinds, strict=True):
        part = fid[fid.perturbation == kind]
        floor = part.dataset.map(part[part.strength == 0].set_index("dataset").value)
        shown = part.assign(**{c: part[c] / floor for c in ("value", "low", "high")})
        curve(upper, shown, x="strength", x_label=f"{kind}, strength", y_label="FID / FID without damage", by="dataset")
        if shown["value"].max() > 5:
            upper.set_yscale("log")
        curve(lower, kid[kid.perturbation == kind], x="strength", x_label=f"{kind}, strength", y_label="KID", by="dataset")
        # unbiased, so it starts on either side of zero
        lower.set_yscale("symlog", linthresh=0.1)
    return figure


def main() -> None:
    """Write those of TABLES that are asked for; `medsynth promote weights --name weights --from OUT` publishes them."""
    parser = argparse.ArgumentParser(prog="python -m medsynth.pretrain.report", description=__doc__)
    parser.add_argument("--real", type=Path, required=True, help="folder of the .npz files (data/README.md)")
    parser.add_argument("--out", type=Path, default=Path("build/weights"))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--phantoms", type=int, default=1000)
    parser.add_argument("--populations", type=int, default=8, help="populations of phantoms that power is measured on")
    parser.add_argument("--splits", type=int, default=100, help="patient-disjoint splits of the response to damage")
    parser.add_argument("--tables", nargs="*", default=TABLES, choices=TABLES, help="those to write; default: all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    autoencoder, extractor = shipped_autoencoder(), shipped_extractor()

    def drawn(modality: str, population: int = 0) -> ImageSet:
        return cached_thorax(
            patients=args.phantoms, size=args.size, modality=modality, population="private", seed=_POPULATION + population
        )

    phantoms = {f"phantom-{m}": drawn(m) for m in MODALITIES}
    sets = unseen(args.real, args.size)
    ledger = Ledger()
    for images in (phantoms | sets).values():
        # measured, never trained on; what leaves is the published rows
        ledger.read(images, stage="measure shipped weights", output="result rows")
    shared = {"parameters": {"size": args.size, "extractor": extractor.name}, "seeds": [args.seed]}
    described = {
        "inputs": {k: s.content_hash for k, s in (phantoms | sets).items()} | {"autoencoder": shipped_hash("autoencoder")},
        "data_licence": _licences([*phantoms.values(), *sets.values()]),
        "notes": ACDC,
    }
    if "weights-reconstruction" in args.tables:
        rows = [r for k, s in (phantoms | sets).items() for r in reconstruction_rows(k, s, autoencoder, extractor, args.seed)]
        write_results(args.out, "weights-reconstruction", rows, **shared, **described)
    if "weights-identification" in args.tables:
        twice = people_seen_twice(args.real, args.size, args.phantoms // 2)
        met = [images for images, _ in twice.values()]
        for images in met:
            ledger.read(images, stage="measure the identity encoder", output="result rows")
        seen = {
            "inputs": _hashes(met) | {name: shipped_hash(name) for name in ("encoder", "encoder_3d")},
            "data_licence": _licences(met), "notes": ACDC,
        }  # fmt: skip
        maps = [(k, images, name) for k, (images, own) in twice.items() for name in (own, "pixels")]
        found = [identification(k, images, name, args.seed) for k, images, name in maps]
        write_results(args.out, "weights-identification", [r for rows, _ in found for r in rows], **shared, **seen)
        curves = pd.concat([c for _, c in found], ignore_index=True)
        save_figure(draw_rocs(curves), args.out, "weights-identification-roc", curves, **shared, **seen)
    if "weights-ruler-levels" in args.tables:
        # five patients hold most slices of real CT, and slices of one patient are no independent samples of a class
        alone = sets | {"ct_tcia": one_per_patient(sets["ct_tcia"])}
        damaged = {f"phantom-{m}": phantoms[f"phantom-{m}"] for m in _STUDIED} | {k: alone[k] for k in _LABEL}
        levels = [r for k, s in damaged.items() for r in level_rows(k, s, _labels(k, s), extractor, args.seed, args.splits)]
        write_results(args.out, "weights-ruler-levels", levels, **shared, **described)
        save_figure(draw_levels(levels), args.out, "weights-ruler-levels-figure", levels, **shared, **described)
    if "weights-ruler-power" in args.tables:
        # every rival is calibrated on what the extractor was: the public sets it was trained on
        taught = pretraining_phantoms(1200, 64, seed=0, jobs=2) | real_sets(args.real, "train")
        public = {k: s.images for k, s in taught.items()}
        rivals = [extractor, *(random_twin(public, seed=args.seed + i) for i in range(3)), PCAExtractor.fit(public)]
        # one population does not tell extractors apart: the interval of its power is about two wide
        noticed = {f"phantom-{m}": [drawn(m, i) for i in range(args.populations)] for m in _STUDIED}
        for images in (images for v in noticed.values() for images in v):
            ledger.read(images, stage="measure shipped weights", output="result rows")
        noticed |= {k: [sets[k]] for k in _LABEL}
        labelled = {k: [(s, _labels(k, s)) for s in v] for k, v in noticed.items()}
        powers = [r for k, v in labelled.items() for r in power_rows(k, v, rivals, args.seed)]
        write_results(args.out, "weights-ruler-power", powers, **shared, **described)


def _hashes(sets: list[ImageSet]) -> dict[str, str]:
    return {f"{s.name} ({s.role})": s.content_hash for s in sets}


def _licences(sets: list[ImageSet]) -> str:
    return "; ".join(sorted({terms for s in sets for terms in s.data_licence.split("; ")}))


def _labels(name: str, images: ImageSet) -> np.ndarray:
    return images.attributes[_LABEL.get(name, "finding")].to_numpy(str)


if __name__ == "__main__":
    main()

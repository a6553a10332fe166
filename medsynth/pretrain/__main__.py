"""`python -m medsynth.pretrain WHAT`: makes the weights that ship, again, from public data. Order: as in WHAT."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medsynth.diffusion import detail
from medsynth.evaluation.features import calibrate
from medsynth.evaluation.hearts.labels import SegmenterConfig, phantom_segmenter
from medsynth.language import vocabulary
from medsynth.language.sentences import TOKENS, numbers_of
from medsynth.models.conditioning import THORAX
from medsynth.models.extractor import ExtractorNet
from medsynth.models.weights import save_card, shipped_autoencoder, shipped_denoiser, shipped_hash, weights_folder
from medsynth.phantoms.heart.heart import cardiac
from medsynth.pretrain.autoencoder import train_autoencoder
from medsynth.pretrain.diffusion import pretrain_denoiser, pretrain_refiner, pretrain_words
from medsynth.pretrain.encoder import encoder_sets, train_encoder
from medsynth.pretrain.extractor import train_extractor
from medsynth.pretrain.last_layer import fit_last_layer
from medsynth.pretrain.public import PublicSet, at_size, describe, phantoms, real_sets
from medsynth.settings.config import AutoencoderConfig, DenoiserConfig, DiffusionConfig, RefinerConfig
from medsynth.store.hashes import json_hash
from medsynth.store.runs import Tensors, Workspace, package_versions
from medsynth.training import best_device

AUTOENCODER = AutoencoderConfig(steps=2000, learning_rate=1e-3)
REFINER = RefinerConfig()
DENOISER = DenoiserConfig()
HEART_DENOISER = DenoiserConfig(channels=(32, 64, 96), spatial_dims=3)
PHANTOM = DiffusionConfig(steps=3000, batch=48, learning_rate=8e-4)
REAL = replace(PHANTOM, steps=2000, learning_rate=6e-4)  # goes on from the phantom denoiser
HEART = replace(PHANTOM, steps=3500, batch=32)
WORDS = replace(PHANTOM, steps=1500, batch=32, learning_rate=2e-3)
HEART_PATIENTS = 3000  # phantoms, two stacks of each
EXTRACTOR_STEPS = 2000
LAST_LAYER_PATIENTS = 4000  # phantoms per modality
ENCODER_STEPS = {2: 1700, 3: 800}  # by spatial dimensions

Made = tuple[Tensors, dict[str, Any]]


def autoencoder(sets: dict[str, PublicSet], args: argparse.Namespace, work: Workspace) -> Made:
    """Weights and card of the autoencoder; it sees images larger than its crops too."""
    config = replace(AUTOENCODER, steps=args.steps or AUTOENCODER.steps)
    weights, metrics = train_autoencoder(sets, config, device=best_device(), workspace=work)
    return weights, {"config": asdict(config), "metrics": metrics}


def refiner(sets: dict[str, PublicSet], args: argparse.Namespace, work: Workspace) -> Made:
    """Weights and card of the refiner of what the autoencoder decodes."""
    diffusion, coder = replace(detail.DIFFUSION, steps=args.steps or detail.DIFFUSION.steps), shipped_autoencoder(args.out)
    weights, metrics = pretrain_refiner(sets, coder, REFINER, diffusion, device=best_device(), workspace=work)
    return weights, {"config": asdict(REFINER), "diffusion": asdict(diffusion), "metrics": metrics}


def denoiser(kind: str, sets: dict[str, PublicSet], args: argparse.Namespace, work: Workspace) -> Made:
    """Weights and card of a denoiser."""
    config = {"phantom": PHANTOM, "real": REAL, "heart": HEART}[kind]
    config = replace(config, steps=args.steps or config.steps)
    network = HEART_DENOISER if kind == "heart" else DENOISER
    start = shipped_denoiser("phantom", args.out) if kind == "real" else None
    coder = shipped_autoencoder(args.out)
    weights, metrics = pretrain_denoiser(sets, coder, network, config, device=best_device(), start=start, workspace=work)
    names = list(vocabulary.HEART if kind == "heart" else THORAX)
    card = {"config": asdict(network), "diffusion": asdict(config), "names": names, "metrics": metrics}
    return weights, card | {"latent_channels": coder.latent_channels, "start": kind == "real" and "denoiser_phantom"}


def words(sets: dict[str, PublicSet], args: argparse.Namespace, work: Workspace) -> Made:
    """Weights and card of what the phantom denoiser needs to be asked by sentences and by features."""
    config, public = replace(WORDS, steps=args.steps or WORDS.steps), shipped_denoiser("phantom", args.out)
    coder = shipped_autoencoder(args.out)
    weights, metrics = pretrain_words(sets, coder, public, config, device=best_device(), workspace=work)
    said = {int(k) for s in sets.values() for k in np.unique(numbers_of(s.images.attributes, s.images.modality)) if k == k}
    card = {"tokens": list(TOKENS), "heard": [TOKENS[k] for k in sorted(said)], "start": "denoiser_phantom"}
    return weights, card | {"extractor": shipped_hash("extractor"), "diffusion": asdict(config), "metrics": metrics}


def extractor(sets: dict[str, PublicSet], args: argparse.Namespace, work: Workspace) -> Made:
    """Weights and card of the feature extractor."""
    images = {name: s.images for name, s in sets.items()}
    weights, card = train_extractor(
        images, steps=args.steps or EXTRACTOR_STEPS, seed=0, device=best_device(), sources_per_step=3, images_per_source=64
    )
    net = ExtractorNet()
    net.load_state_dict(weights)
    net = net.to(best_device()).eval().requires_grad_(False)
    # phantoms cost little, and the last layer needs many; another seed, so that the convolutions have not seen them
    many = sets | phantoms(LAST_LAYER_PATIENTS, 64, seed=5, jobs=os.cpu_count() or 1)
    card["last_layer"] = fit_last_layer(net, many, seed=0) | {"trained_on": describe(many)}
    calibrate(net, images)
    return {k: v.cpu() for k, v in net.state_dict().items()}, card


def encoder(spatial_dims: int, sets: dict[str, PublicSet], args: argparse.Namespace, work: Workspace) -> Made:
    """Weights and card of an identity encoder."""
    steps = args.steps or ENCODER_STEPS[spatial_dims]
    return train_encoder(sets, spatial_dims=spatial_dims, steps=steps, device=best_device(), workspace=work)


def segmenter(sets: dict[str, PublicSet], args: argparse.Namespace, work: Workspace) -> Made:
    """Weights and card of the network that measures hearts; it draws its phantoms itself."""
    config = SegmenterConfig() if args.steps is None else replace(SegmenterConfig(), steps=args.steps)
    weights = phantom_segmenter(config).state_dict()
    return {k: v.cpu() for k, v in weights.items()}, {"config": asdict(config)}


TARGETS: dict[str, Callable[[dict[str, PublicSet], argparse.Namespace, Workspace], Made]] = {
    "autoencoder": autoencoder,
    "refiner": refiner,
    "denoiser_phantom": lambda *a: denoiser("phantom", *a),
    "denoiser_real": lambda *a: denoiser("real", *a),
    "words_phantom": words,
    "denoiser_heart": lambda *a: denoiser("heart", *a),
    "extractor": extractor,
    "encoder": lambda *a: encoder(2, *a),
    "encoder_3d": lambda *a: encoder(3, *a),
    "segmenter": segmenter,
}


def training_sets(what: str, folder: Path, patients: int) -> dict[str, PublicSet]:
    """The public sets that one target is trained on."""
    jobs = os.cpu_count() or 1
    if what.startswith("encoder"):
        return encoder_sets(folder, patients, spatial_dims=3 if what == "encoder_3d" else 2, jobs=jobs)
    if what == "denoiser_heart":
        hearts = cardiac(patients=HEART_PATIENTS, slices=8, size=64, seed=0, jobs=jobs)
        return {"phantom-heart-stack": PublicSet(hearts, thorax=False)}
    if what == "segmenter":
        of = SegmenterConfig()
        hearts = cardiac(patients=of.patients, slices=of.slices, size=of.size, seed=of.seed, jobs=jobs)
        return {"phantom-heart-stack": PublicSet(hearts, thorax=False)}
    real = {} if what in ("denoiser_phantom", "words_phantom") else real_sets(folder, "train")
    drawn = phantoms(patients, 64, seed=0, jobs=jobs)
    if what == "extractor":
        # it crops its views out of larger images, so it takes them as they are
        return drawn | real
    sets = drawn | at_size(real, 64)
    if what in ("autoencoder", "refiner"):
        large = phantoms(patients // 4, 128, seed=1, jobs=jobs) | at_size(real, 128)
        return sets | {f"{name}@128": s for name, s in large.items()}
    if what.startswith(("denoiser", "words")):
        return {name: s for name, s in sets.items() if s.thorax}
    return sets


def main() -> None:
    """Parse the command line and train what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m medsynth.pretrain", description=__doc__)
    parser.add_argument("what", choices=list(TARGETS))
    parser.add_argument("--real", type=Path, default=Path("data"), help="folder of the public .npz files (data/README.md)")
    parser.add_argument("--out", type=Path, default=weights_folder())
    parser.add_argument("--work", type=Path, default=Path("build/pretrain"), help="checkpoints go here")
    parser.add_argument("--patients", type=int, default=1200, help="phantom patients per modality")
    parser.add_argument("--steps", type=int, help="optimiser steps instead of the default")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_float32_matmul_precision("high")
    sets = training_sets(args.what, args.real, args.patients)
    # a checkpoint belongs to one recipe on these images
    configs = (AUTOENCODER, REFINER, detail.DIFFUSION, DENOISER, PHANTOM, REAL, HEART_DENOISER, HEART, WORDS)
    recipe = [asdict(c) for c in configs] + [args.steps, describe(sets)]
    work = Workspace(args.work / f"{args.what}-{json_hash(recipe)}")
    work.path.mkdir(parents=True, exist_ok=True)
    weights, card = TARGETS[args.what](sets, args, work)
    save_card(args.out, args.what, weights, card | {
        "trained_on": describe(sets), "versions": package_versions(), "device": best_device(),
    })  # fmt: skip


if __name__ == "__main__":
    main()

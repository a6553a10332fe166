"""The public weights that come with the package: safetensors beside a JSON card that says what they were trained on."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medsynth.imageset import ImageSet
from medsynth.language.sentences import TOKENS
from medsynth.models.autoencoder import Autoencoder
from medsynth.models.denoiser import Denoiser
from medsynth.models.refiner import Refiner
from medsynth.settings.config import AutoencoderConfig, DenoiserConfig, RefinerConfig
from medsynth.settings.parse import parse
from medsynth.store.hashes import file_hash
from medsynth.store.runs import Tensors, load_tensors, save_tensors, write_json
from medsynth.training import best_device

DENOISERS = ("phantom", "real", "heart")


def weights_folder() -> Path:
    """Where the package keeps its weights."""
    return Path(str(resources.files("medsynth"))) / "weights"


def save_card(folder: Path, name: str, weights: Tensors, card: dict[str, Any]) -> None:
    """Write `name.safetensors` in half precision and `name.json` with its sha256."""
    half = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    write_json(folder / f"{name}.json", card | {"sha256": save_tensors(folder / f"{name}.safetensors", half)})


def load_card(name: str, folder: Path | None = None) -> tuple[Tensors, dict[str, Any]]:
    """(float32 weights, card); FileNotFoundError if there are none, ValueError if the file is not the one the card describes."""
    folder = folder or weights_folder()
    if not (folder / f"{name}.json").exists():
        found = ", ".join(sorted(p.stem for p in folder.glob("*.safetensors"))) or "none"
        raise FileNotFoundError(
            f"{name}: no such weights, found {found}; make them with `python -m medsynth.pretrain {name}` or choose others"
        )
    card = json.loads((folder / f"{name}.json").read_text())
    found = file_hash(folder / f"{name}.safetensors")
    if found != card["sha256"]:
        raise ValueError(
            f"{name}.safetensors: sha256 {found[:12]}… differs from its card's {card['sha256'][:12]}…; reinstall medsynth"
        )
    return {k: v.float() if v.is_floating_point() else v for k, v in load_tensors(folder / f"{name}.safetensors").items()}, card


def shipped_autoencoder(folder: Path | None = None) -> Autoencoder:
    """The public 2D autoencoder, frozen, on the best device."""
    weights, card = load_card("autoencoder", folder)
    return _frozen(Autoencoder(parse(AutoencoderConfig, card["config"], "autoencoder.json")), weights)


def shipped_refiner(folder: Path | None = None) -> Refiner:
    """The public refiner of what the shipped autoencoder decodes, frozen, on the best device."""
    weights, card = load_card("refiner", folder)
    return _frozen(Refiner(parse(RefinerConfig, card["config"], "refiner.json")), weights)


def denoiser_kind(images: ImageSet) -> str:
    """Which shipped denoiser training on `images` may start from: results on phantoms stay free of people, and so do stacks."""
    if len(images.spatial) == 3:
        return "heart"
    return "real" if images.people else "phantom"


def shipped_denoiser(kind: str, folder: Path | None = None) -> Denoiser:
    """A public-pretrained denoiser: of 2D thorax latents, "phantom" or "real"; of latents of stacks, "heart".

    "real" saw public X-rays as well, the others phantoms alone: a sample of a model that saw real images may not be shown before
    a gate has cleared it.
    """
    if kind not in DENOISERS:
        raise ValueError(f"shipped denoiser {kind!r}; expected one of {DENOISERS}")
    weights, card = load_card(f"denoiser_{kind}", folder)
    config = parse(DenoiserConfig, card["config"], f"denoiser_{kind}.json")
    model = Denoiser(config, card["names"], card["latent_channels"])
    model.load_state_dict(weights)
    model.people = kind == "real"
    return model.to(best_device()).eval()


def shipped_words(kind: str, folder: Path | None = None) -> tuple[Tensors, tuple[str, ...]]:
    """What a shipped denoiser needs beside its own weights to be asked by sentences and features: (weights, tokens it has heard).

    Nothing for a kind that has not learned any.
    """
    if not ((folder or weights_folder()) / f"words_{kind}.json").exists():
        return {}, ()
    weights, card = load_card(f"words_{kind}", folder)
    if (card["tokens"], card["extractor"]) != (list(TOKENS), shipped_hash("extractor")):
        raise ValueError(
            f"words_{kind}: of another vocabulary or extractor; run `python -m medsynth.pretrain words_{kind}` again"
        )
    return weights, tuple(card["heard"])


def shipped_hash(name: str) -> str:
    """sha256 of shipped weights, an input hash of every run that builds on them."""
    return json.loads((weights_folder() / f"{name}.json").read_text())["sha256"]


def _frozen(model: nn.Module, weights: Tensors) -> Any:
    model.load_state_dict(weights)
    return model.to(best_device()).eval().requires_grad_(False)


@torch.no_grad()
def latents_of(autoencoder: Autoencoder, scaled: torch.Tensor, *, batch: int = 128) -> torch.Tensor:
    """Standardised latents of images in [-1, 1], in batches, on the autoencoder's device; returned on CPU."""
    device = autoencoder.latent_mean.device
    return torch.cat([autoencoder.encode(chunk.to(device)).cpu() for chunk in scaled.split(batch)])


@torch.no_grad()
def decoded(autoencoder: Autoencoder, latents: torch.Tensor, *, batch: int = 128) -> torch.Tensor:
    """Images in [-1, 1] of standardised latents, in batches, on the autoencoder's device; returned on CPU."""
    device = autoencoder.latent_mean.device
    return torch.cat([autoencoder.decode(chunk.to(device)).cpu() for chunk in latents.split(batch)])


@torch.no_grad()
def reconstruct(autoencoder: Autoencoder, images: ImageSet, *, batch: int = 128) -> ImageSet:
    """The images after encoding and decoding: the best that any sample of a model on these latents can look."""
    latents = latents_of(autoencoder, torch.from_numpy(images.scaled()), batch=batch)
    made = decoded(autoencoder, latents, batch=batch)
    return images.with_images(images.unscaled(made.numpy()), name=f"{images.name}-reconstructed")

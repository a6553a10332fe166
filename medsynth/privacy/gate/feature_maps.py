"""Where distances between images are measured: maps from images to vectors, compared by Euclidean distance."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from medsynth.imageset import ImageSet
from medsynth.models.encoder import SIDE, SMOOTHING, EncoderNet
from medsynth.models.extractor import resize
from medsynth.models.weights import load_card, shipped_autoencoder, weights_folder
from medsynth.privacy.gate.alterations import GALLERY_HASH
from medsynth.vocabulary import MODALITIES

MAPS = ("encoder", "encoder_3d", "pixels", "autoencoder", "untrained_vgg")
PHANTOM = "phantom-"  # how names of sets begin that nobody was scanned for
BATCH = 64  # always, with zero images in the gaps: libraries choose their arithmetic by the size of a batch

Network = Callable[[torch.Tensor], torch.Tensor]


class FeatureMap(Protocol):
    """A map phi from images to vectors; `hash` (32 hex digits) changes whenever the map does."""

    name: str
    hash: str

    def __call__(self, images: ImageSet) -> np.ndarray:
        """Features float32 (n, d); a row depends on its image alone. Raises ValueError for images of another shape."""
        ...


@dataclass(frozen=True)
class Threshold:
    """A distance below which an image is refused, and a sentence that says how it was chosen."""

    tau: float
    how: str


class NetworkMap:
    """A network on images in [-1, 1], applied in batches of one size so that a row does not depend on its company."""

    def __init__(
        self, network: Network, name: str, definition: str, *, spatial_dims: tuple[int, ...], device: str = "cpu"
    ) -> None:
        self.network, self.name, self.spatial_dims, self.device = network, name, spatial_dims, device
        self.hash = hashlib.blake2b(definition.encode(), digest_size=16).hexdigest()

    @torch.no_grad()
    def __call__(self, images: ImageSet) -> np.ndarray:
        if images.images.shape[1] != 1 or len(images.spatial) not in self.spatial_dims:
            shapes = " or ".join({2: "(n, 1, h, w)", 3: "(n, 1, d, h, w)"}[d] for d in self.spatial_dims)
            raise ValueError(f"{images.name}: shape {images.images.shape}; {self.name} expects {shapes}")
        if not len(images):
            raise ValueError(f"{images.name}: no images; expected at least one")
        rows = []
        for chunk in torch.from_numpy(images.scaled()).split(BATCH):
            full = torch.cat([chunk, chunk.new_zeros(BATCH - len(chunk), *chunk.shape[1:])])
            rows.append(self.network(full.to(self.device))[: len(chunk)].float().cpu())
        return torch.cat(rows).numpy()


def feature_map(name: str, *, folder: Path | None = None, device: str = "cpu") -> FeatureMap:
    """One of MAPS; folder holds the weights if they are not those that come with the package.

    Raises ValueError for another name, or for weights that are not those their card describes.
    """
    if name in ("encoder", "encoder_3d"):
        return identity_map(name, folder=folder, device=device)
    if name == "pixels":
        return NetworkMap(_pixels, "pixels", f"pixels {SIDE}", spatial_dims=(2, 3), device=device)
    if name == "autoencoder":
        coder = shipped_autoencoder(folder).to(device)
        _, card = load_card("autoencoder", folder)
        latent = _mean_square(lambda x: coder.encode(_at_most(x)))
        return NetworkMap(latent, "autoencoder latent", f"autoencoder {card['sha256']}", spatial_dims=(2, 3), device=device)
    if name == "untrained_vgg":
        vgg = UntrainedVGG(seed=0).eval().requires_grad_(False).to(device)
        return NetworkMap(_mean_square(vgg), "untrained VGG", f"untrained vgg {_digest(vgg)}", spatial_dims=(2,), device=device)
    raise ValueError(f"feature map {name!r}; expected one of {MAPS}")


def calibrated(name: str, spatial_dims: int, *, modality: str = "", folder: Path | None = None) -> Threshold | None:
    """The threshold that comes with a map of MAPS for images of 2 or 3 dimensions, or None where there is none.

    modality: "xray", "ct", "mr" or "pet" for images of people, or "phantom-xray" and so on. Scans of a modality that no real
    images were to be had of get the largest threshold that was found on real ones, and their sentence says so: that of
    phantoms lets one in twelve shifted copies of real CT pass. Raises ValueError where no threshold was found on anything like
    them, or where it was found for other weights, or other transformed copies, than those that are installed.
    """
    file = (folder or weights_folder()) / "thresholds.json"
    entry = json.loads(file.read_text()).get(f"{name} {spatial_dims}d") if file.exists() else None
    if entry is None:
        return None
    found = feature_map(name, folder=folder).hash
    if entry["phi_hash"] != found:
        raise ValueError(
            f"{file.name}: tau of {name!r} belongs to weights {entry['phi_hash'][:12]}…, not {found[:12]}…; give --tau"
        )
    if entry["gallery"] != GALLERY_HASH:
        raise ValueError(
            f"{file.name}: tau of {name!r} was found for other transformed copies (gallery {entry['gallery']}, not "
            f"{GALLERY_HASH}); give --tau, or find it again with `python -m medsynth.pretrain.thresholds`"
        )
    sets = {key: Threshold(float(t["tau"]), t["how"]) for key, t in entry["sets"].items()}
    if modality in sets:
        return sets[modality]
    real = {key: t["modality"] for key, t in entry["sets"].items() if not key.startswith(PHANTOM)}
    if modality not in MODALITIES or not real:
        named = [m for m in MODALITIES if real] + [key for key in sets if key.startswith(PHANTOM)]
        found = f"none for {modality!r}" if modality else "each belongs to one kind of images"
        raise ValueError(f"{name!r} in {spatial_dims}D: thresholds that ship: {found}; expected {' or '.join(named)}")
    key = max((k for k in real if real[k] == modality), default=None, key=lambda k: sets[k].tau)
    if key is not None:
        return sets[key]
    key = max(real, key=lambda k: sets[k].tau)
    measured = "nobody has measured" if modality == "pet" else "the package's published tables show on public scans"
    taken = f"; taken for {modality}, of which no real images were free to find one on: what it lets pass there {measured}"
    return Threshold(sets[key].tau, sets[key].how + taken)


def identity_map(name: str = "encoder", *, folder: Path | None = None, device: str = "cpu") -> NetworkMap:
    """The identity encoder for images ("encoder") or volumes ("encoder_3d"), shipped or from a folder."""
    weights, card = load_card(name, folder)
    dims = 3 if name == "encoder_3d" else 2
    net = EncoderNet(dims)
    net.load_state_dict(weights)
    return encoder_map(net, f"identity encoder {dims}d", f"{card['sha256']} smoothed {SMOOTHING}", device=device)


def encoder_map(net: EncoderNet, name: str, definition: str, *, device: str = "cpu") -> NetworkMap:
    """The feature map of an encoder that is in memory; `definition` is what its hash is made of."""
    net = net.eval().requires_grad_(False).to(device)
    return NetworkMap(net, name, definition, spatial_dims=(net.spatial_dims,), device=device)


class UntrainedVGG(nn.Module):
    """VGG-19 at a quarter of its width with random weights, images (n, 1, h, w) to its 1000 outputs.

    The kind of map that the published gate (arXiv:2301.06604) measures with: it creates the network without loading weights.
    He initialisation, as torchvision does it; the classifier's hidden layers are left out.
    """

    def __init__(self, *, seed: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for width, repeats in ((16, 2), (32, 2), (64, 4), (128, 4), (128, 4)):
            for _ in range(repeats):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.outputs = nn.Linear(before * (SIDE // 32) ** 2, 1000)
        generator = torch.Generator().manual_seed(seed)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.outputs.weight, 0, 0.01, generator=generator)
        nn.init.zeros_(self.outputs.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Outputs (n, 1000)."""
        x = resize(images).contiguous(memory_format=torch.channels_last)
        return self.outputs(self.features(x).flatten(1))


def _pixels(images: torch.Tensor) -> torch.Tensor:
    return _mean_square(_at_most)(images)


def _at_most(images: torch.Tensor) -> torch.Tensor:
    """Planes resampled to 64 x 64 pixels; the depth stays."""
    flat = images.flatten(0, -3)[:, None]
    return resize(flat).reshape(*images.shape[:-2], SIDE, SIDE)


def _mean_square(network: Network) -> Network:
    """Outputs, flattened and scaled such that a Euclidean distance is a root mean square difference."""

    def scaled(images: torch.Tensor) -> torch.Tensor:
        flat = network(images).flatten(1)
        return flat / flat.shape[1] ** 0.5

    return scaled


def _digest(module: nn.Module) -> str:
    h = hashlib.blake2b(digest_size=16)
    for key, value in module.state_dict().items():
        h.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
    return h.hexdigest()

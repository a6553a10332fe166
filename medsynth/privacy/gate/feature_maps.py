"""Where distances between images are measured: maps from images to vectors, compared by Euclidean distance."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from medsynth.imageset import ImageSet
from medsynth.models.autoencoder import Autoencoder
from medsynth.models.encoder import SMOOTHING, EncoderNet
from medsynth.models.pixels import SIDE, resize
from medsynth.models.weights import load_card, shipped_autoencoder
from medsynth.store.hashes import bytes_hash, tensors_hash

MAPS = ("encoder", "encoder_3d", "pixels", "autoencoder", "untrained_vgg")
BATCH = 64
# Bounds of `FeatureMap.error`: SAFETY times the largest error that `python -m medsynth.pretrain.feature_error` measured. Weights
# that ship carry their own in their cards; these are for what has no card, and for an encoder that is in memory
SAFETY = 100
ERROR_CARD = "feature_error"
ERRORS = {"encoder": 3e-4, "pixels": 9e-6, "autoencoder": 6e-5, "untrained_vgg": 2e-6}


class FeatureMap(Protocol):
    """A map phi from images to vectors; `hash` (32 hex digits) changes whenever the map does.

    error: bounds the Euclidean distance of a computed row from the row that exact arithmetic would give, on any processor, with
    any number of threads, in any company. What distances may be relied on for follows from it (`medsynth.privacy.gate.margin`).
    """

    name: str
    hash: str
    error: float

    def __call__(self, images: ImageSet) -> np.ndarray:
        """Features float32 (n, d); a row depends on its image alone, up to `error`. ValueError for images of another shape."""
        ...


class NetworkMap:
    """A network on images in [-1, 1], on the CPU in single precision, where its error was measured."""

    def __init__(self, network: nn.Module, name: str, definition: str, *, spatial_dims: tuple[int, ...], error: float) -> None:
        self.network, self.name, self.spatial_dims = network.to("cpu").eval().requires_grad_(False), name, spatial_dims
        self.error = error
        self.hash = bytes_hash(definition.encode())

    def __call__(self, images: ImageSet) -> np.ndarray:
        return self._rows(self.network, images).numpy()

    def exact(self, images: ImageSet) -> np.ndarray:
        """The same features in double precision, float64 (n, d): what the error of single precision is measured against."""
        return self._rows(copy.deepcopy(self.network).double(), images, torch.float64).numpy()

    @torch.no_grad()
    # a network that is trained beside may have half precision switched on
    @torch.autocast("cpu", enabled=False)
    def _rows(self, network: nn.Module, images: ImageSet, precision: torch.dtype = torch.float32) -> torch.Tensor:
        if images.images.shape[1] != 1 or len(images.spatial) not in self.spatial_dims:
            shapes = " or ".join({2: "(n, 1, h, w)", 3: "(n, 1, d, h, w)"}[d] for d in self.spatial_dims)
            raise ValueError(f"{images.name}: shape {images.images.shape}; {self.name} expects {shapes}")
        if not len(images):
            raise ValueError(f"{images.name}: no images; expected at least one")
        return torch.cat([network(chunk) for chunk in torch.from_numpy(images.scaled()).to(precision).split(BATCH)])


def feature_map(name: str, *, folder: Path | None = None) -> NetworkMap:
    """One of MAPS; folder holds the weights if they are not those that come with the package.

    Raises ValueError for another name, or for weights that are not those their card describes.
    """
    if name in ("encoder", "encoder_3d"):
        return identity_map(name, folder=folder)
    if name == "pixels":
        return NetworkMap(_MeanSquare(_SmallPlanes()), "pixels", f"pixels {SIDE}", spatial_dims=(2, 3), error=ERRORS[name])
    if name == "autoencoder":
        _, card = load_card(name, folder)
        latents = _MeanSquare(nn.Sequential(_SmallPlanes(), _Encoded(shipped_autoencoder(folder))))
        definition, error = f"autoencoder {card['sha256']}", _error(card, name)
        return NetworkMap(latents, "autoencoder latent", definition, spatial_dims=(2, 3), error=error)
    if name == "untrained_vgg":
        vgg = UntrainedVGG(seed=0)
        definition = f"untrained vgg {tensors_hash(vgg.state_dict())}"
        return NetworkMap(_MeanSquare(vgg), "untrained VGG", definition, spatial_dims=(2,), error=ERRORS[name])
    raise ValueError(f"feature map {name!r}; expected one of {MAPS}")


def identity_map(name: str = "encoder", *, folder: Path | None = None) -> NetworkMap:
    """The identity encoder for images ("encoder") or volumes ("encoder_3d"), shipped or from a folder."""
    weights, card = load_card(name, folder)
    dims = 3 if name == "encoder_3d" else 2
    net = EncoderNet(dims)
    net.load_state_dict(weights)
    return encoder_map(net, f"identity encoder {dims}d", f"{card['sha256']} smoothed {SMOOTHING}", error=_error(card, "encoder"))


def encoder_map(net: EncoderNet, name: str, definition: str, *, error: float = ERRORS["encoder"]) -> NetworkMap:
    """The feature map of an encoder that is in memory; `definition` is what its hash is made of."""
    return NetworkMap(net, name, definition, spatial_dims=(net.spatial_dims,), error=error)


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


class _MeanSquare(nn.Module):
    """Outputs, flattened and scaled such that a Euclidean distance is a root mean square difference."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = self.network(images).flatten(1)
        return flat / flat.shape[1] ** 0.5


class _SmallPlanes(nn.Module):
    """Planes resampled to 64 x 64 pixels; the depth stays."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(0, -3)[:, None]
        return resize(flat).reshape(*images.shape[:-2], SIDE, SIDE)


class _Encoded(nn.Module):
    def __init__(self, coder: Autoencoder) -> None:
        super().__init__()
        self.coder = coder

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.coder.encode(images)


def _error(card: dict, name: str) -> float:
    """What a card says of the error, or what holds for its kind where nobody has measured yet."""
    return card.get(ERROR_CARD, {}).get("bound", ERRORS[name])

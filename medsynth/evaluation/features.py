"""Images to feature vectors: every score names the extractor and the resizer that it was computed with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from medsynth.imageset import ImageSet
from medsynth.models.extractor import DIM, RESIZER, ExtractorNet, calibration, class_columns
from medsynth.models.pixels import SIDE, resize
from medsynth.models.weights import load_card
from medsynth.store.hashes import file_hash

INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
INCEPTION_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"


class Extractor(Protocol):
    """A map from 2D one-channel images to vectors; `name` says how, resizer included."""

    name: str
    dim: int

    def __call__(self, images: ImageSet, *, batch: int = 256) -> np.ndarray:
        """Features float64 (n, dim), one row per image, independent of the batch size up to rounding."""
        ...


class NetworkExtractor:
    """The features of an `ExtractorNet`."""

    def __init__(self, net: ExtractorNet, name: str, device: str = "cpu") -> None:
        self.net = net.eval().requires_grad_(False).to(device)
        self.name, self.dim, self.device = f"{name} ({RESIZER})", DIM, device

    def __call__(self, images: ImageSet, *, batch: int = 256) -> np.ndarray:
        return _in_batches(self.net, images, batch, self.device)


class PCAExtractor:
    """Pixels at 64 px projected on principal components, then calibrated as the other extractors are: the linear baseline."""

    def __init__(self, components: np.ndarray, matrix: np.ndarray, shift: np.ndarray) -> None:
        self.components, self.matrix, self.shift = components, matrix, shift
        self.dim = len(components)
        self.name = f"pca{self.dim} ({RESIZER})"

    @classmethod
    def fit(cls, sets: Mapping[str, ImageSet], *, dim: int = DIM, per_set: int = 1000) -> PCAExtractor:
        """Components of the covariance within sets, from at most per_set images of each; public-role sets only."""
        require_public(sets)
        chosen = {name: evenly_spaced_rows(s, per_set) for name, s in sets.items()}
        pixels = [_pixels(s) for s in chosen.values()]
        centred = np.concatenate([p - p.mean(0) for p in pixels])
        if min(centred.shape) < dim:
            raise ValueError(f"{len(centred)} images for {dim} components; give at least {dim}")
        components = np.linalg.svd(centred, full_matrices=False)[2][:dim]
        matrix, shift = calibration([p @ components.T for p in pixels], [class_columns(s) for s in chosen.values()])
        return cls(components, matrix, shift)

    def __call__(self, images: ImageSet, *, batch: int = 256) -> np.ndarray:
        _check_shape(images)
        parts = [_pixels(images.select(np.arange(i, min(i + batch, len(images))))) for i in range(0, len(images), batch)]
        return np.concatenate(parts) @ (self.matrix @ self.components).T + self.shift


class InceptionExtractor:
    """The 2015-12-05 Inception network, 2048-d: the reference that other papers' FID uses."""

    dim = 2048

    def __init__(self, network: torch.jit.ScriptModule, device: str = "cpu") -> None:
        self.network, self.device = network.eval().to(device), device
        self.name = "inception-2015-12-05 (torch bilinear, antialiased, 299 px, uint8)"

    def __call__(self, images: ImageSet, *, batch: int = 32) -> np.ndarray:
        return _in_batches(self._features, images, batch, self.device)

    def _features(self, scaled: torch.Tensor) -> torch.Tensor:
        pixels = resize((scaled + 1) * 127.5, 299).round().clamp(0, 255).to(torch.uint8)
        return self.network(pixels.expand(-1, 3, -1, -1), return_features=True)


def shipped_extractor(folder: Path | None = None, *, device: str = "cpu") -> NetworkExtractor:
    """The 64-d extractor that comes with the package, or the `extractor.safetensors` and `.json` of another folder.

    Raises ValueError if the weights are not those that their card describes.
    """
    weights, card = load_card("extractor", folder)
    net = ExtractorNet()
    net.load_state_dict(weights)
    return NetworkExtractor(net, f"medsynth-extractor {card['sha256'][:8]}", device)


def random_twin(sets: Mapping[str, ImageSet], *, seed: int, per_set: int = 1000, device: str = "cpu") -> NetworkExtractor:
    """The same architecture with random weights, calibrated on public sets exactly as the trained one is."""
    require_public(sets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ExtractorNet()
    calibrate(net.to(device), sets, per_set=per_set)
    return NetworkExtractor(net, f"random twin, seed {seed}", device)


def calibrate(net: ExtractorNet, sets: Mapping[str, ImageSet], *, per_set: int = 1000) -> None:
    """Set the linear map of a network from at most per_set images of each set."""
    chosen = [evenly_spaced_rows(s, per_set) for s in sets.values()]
    device = str(net.matrix.device)
    net.calibrate(*calibration([_in_batches(net.embed, s, 256, device) for s in chosen], [class_columns(s) for s in chosen]))


def inception_extractor(path: str | Path | None = None, *, device: str = "cpu") -> InceptionExtractor:
    """The reference extractor from a file, or downloaded once (91 MB) into the user's cache.

    Raises ValueError if the file's sha256 is not the published one: a TorchScript file is a program, so no other is run.
    """
    if path is None:
        import pooch

        path = pooch.retrieve(INCEPTION_URL, known_hash=f"sha256:{INCEPTION_SHA256}", progressbar=True)
    found = file_hash(Path(path))
    if found != INCEPTION_SHA256:
        raise ValueError(f"{path}: sha256 {found}; expected {INCEPTION_SHA256}: fetch inception-2015-12-05.pt again")
    return InceptionExtractor(torch.jit.load(str(path), map_location=device), device)


@torch.no_grad()
def _in_batches(network, images: ImageSet, batch: int, device: str) -> np.ndarray:
    _check_shape(images)
    chunks = torch.from_numpy(images.scaled()).split(batch)
    return torch.cat([network(chunk.to(device)).double().cpu() for chunk in chunks]).numpy()


def _pixels(images: ImageSet) -> np.ndarray:
    _check_shape(images)
    return resize(torch.from_numpy(images.scaled()), SIDE).flatten(1).double().numpy()


def _check_shape(images: ImageSet) -> None:
    if images.images.ndim != 4 or images.images.shape[1] != 1:
        raise ValueError(f"{images.name}: shape {images.images.shape}; expected (n, 1, h, w): take slices of volumes first")
    if not len(images):
        raise ValueError(f"{images.name}: no images; expected at least one")


def require_public(sets: Mapping[str, ImageSet]) -> None:
    """Raise ValueError if a set is not public: what ships, and what it is compared with, may show nothing of anybody else."""
    others = [name for name, s in sets.items() if s.role != "public"]
    if others:
        raise ValueError(f"{', '.join(others)}: not public; expected sets in their public role")


def evenly_spaced_rows(images: ImageSet, n: int) -> ImageSet:
    """At most n rows, evenly spaced, because sets may be sorted by class or patient."""
    return images.select(np.unique(np.linspace(0, len(images) - 1, min(n, len(images))).round().astype(int)))

"""Segmentation of short-axis stacks: a small network, trained in minutes on phantoms of the public population alone.

Brightness thresholds and region growing were tried first: on phantoms, LV volumes correlated with the true ones at 0.5. Papillary
muscles are dark and belong to the cavity, and the planes above the valves are bright and do not. The network's own error is part
of all that is measured with it, so state it: `dice` and `controllability` of phantoms of another population and scanner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet
from torch import nn
from torch.nn import functional

from medsynth.imageset import ImageSet
from medsynth.ledger import Ledger
from medsynth.models.weights import load_card
from medsynth.phantoms.heart.heart import LEFT_VENTRICLE, MYOCARDIUM, RIGHT_VENTRICLE, cardiac, cardiac_labels
from medsynth.settings.parse import parse
from medsynth.store.dependencies import code_hash
from medsynth.store.hashes import bytes_hash
from medsynth.store.runs import Tensors, Workspace, load_or_train
from medsynth.training import best_device, described, fit

STRUCTURES = {RIGHT_VENTRICLE: "RV", MYOCARDIUM: "myocardium", LEFT_VENTRICLE: "LV"}
_CLASSES = len(STRUCTURES) + 1
_UNSHUFFLE = 2  # pixels of a side that share a feature vector: a quarter of the time
_LEAST_SIDE = 16 * _UNSHUFFLE  # the U-Net halves four times


@dataclass(frozen=True)
class SegmenterConfig:
    """Grid, size and training of a segmentation network; one network serves one grid."""

    patients: int = 600  # phantoms of the public population, each at both phases
    slices: int = 8
    size: int = 64
    reach: int = 2  # neighbouring planes that are seen on either side: where the valve lies, one plane does not tell
    channels: tuple[int, ...] = (24, 32, 48, 64, 64, 24)
    steps: int = 1500
    batch: int = 24  # planes
    learning_rate: float = 1e-2
    seed: int = 0


class HeartSegmenter(nn.Module):
    """2D U-Net over the planes of a stack, each seen with its neighbours (MONAI BasicUNet, on the 2x pixel-unshuffled planes)."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.reach = config.reach
        self.unet = BasicUNet(
            spatial_dims=2,
            in_channels=(2 * config.reach + 1) * _UNSHUFFLE**2,
            out_channels=_CLASSES * _UNSHUFFLE**2,
            features=config.channels,
            # of group, instance and batch normalisation the one that learned fastest
            norm=("batch", {}),
            upsample="nontrainable",
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Logits (m, 4, h, w) of the middle planes of windows (m, 2 * reach + 1, h, w) in [-1, 1]."""
        folded = functional.pixel_unshuffle(windows, _UNSHUFFLE).contiguous(memory_format=torch.channels_last)
        return functional.pixel_shuffle(self.unet(folded), _UNSHUFFLE)


def heart_segmenter(config: SegmenterConfig | None = None) -> HeartSegmenter:
    """The segmenter that ships if it is of this config; else one trained on public phantoms, found again if trained before."""
    weights, card = load_card("segmenter")
    if (config := config or SegmenterConfig()) != parse(SegmenterConfig, card["config"], "segmenter.json"):
        return phantom_segmenter(config)
    model = HeartSegmenter(config)
    model.load_state_dict(weights)
    return model.to(best_device()).eval().requires_grad_(False)


def phantom_segmenter(config: SegmenterConfig) -> HeartSegmenter:
    """A segmenter trained on public phantoms, found again if trained before."""

    def labelled() -> tuple[ImageSet, np.ndarray]:
        people = {"patients": config.patients, "slices": config.slices, "size": config.size, "seed": config.seed}
        return cardiac(**people), cardiac_labels(**people)

    return _found_or_trained(config, {}, labelled)


def train_segmenter(images: ImageSet, labels: np.ndarray, config: SegmenterConfig, *, ledger: Ledger) -> HeartSegmenter:
    """A segmenter trained on stacks (n, 1, d, h, w) with labels (n, d, h, w), found again if trained before.

    For scans that phantoms do not resemble enough. Private images leave a line in the ledger. Of the config, patients, slices and
    size are not looked at. Raises ValueError where labels do not fit.
    """
    _check(images)
    if labels.shape != (len(images), *images.spatial) or labels.max(initial=0) >= _CLASSES:
        raise ValueError(
            f"{images.name}: labels of shape {labels.shape}, up to {labels.max(initial=0)}; "
            f"expected {(len(images), *images.spatial)}, 0 to {_CLASSES - 1}"
        )
    ledger.read(images, stage="train segmenter", output=f"segmenter of {images.name}, an instrument, not released")
    labels = labels.astype(np.uint8)
    inputs = {"images": images.content_hash, "labels": bytes_hash(labels.tobytes())}
    return _found_or_trained(config, inputs, lambda: (images, labels))


def segment(segmenter: HeartSegmenter, images: ImageSet, *, batch: int = 128) -> np.ndarray:
    """Labels uint8 (n, d, h, w) of stacks (n, 1, d, h, w): 0 background, 1 right ventricle, 2 myocardium, 3 left ventricle."""
    _check(images)
    device = next(segmenter.parameters()).device
    stacks = _padded(images, segmenter.reach)
    planes = torch.cartesian_prod(torch.arange(len(images)), torch.arange(images.spatial[0]))
    found = np.zeros((len(planes), *images.spatial[1:]), np.uint8)
    with torch.no_grad():
        for first in range(0, len(planes), batch):
            windows = _windows(stacks, planes[first : first + batch], segmenter.reach).to(device)
            found[first : first + batch] = segmenter(windows).argmax(1).cpu()
    return found.reshape(len(images), *images.spatial)


def dice(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Dice coefficient of each stack and structure, (n, 3) in the order of STRUCTURES; NaN where neither holds the structure."""
    both = [[(a == k).reshape(len(a), -1) for a in (found, true)] for k in STRUCTURES]
    with np.errstate(invalid="ignore"):
        return np.stack([2 * (a & b).sum(1) / (a.sum(1) + b.sum(1)) for a, b in both], axis=1)


def _found_or_trained(
    config: SegmenterConfig, inputs: dict[str, str], labelled: Callable[[], tuple[ImageSet, np.ndarray]]
) -> HeartSegmenter:
    device = best_device()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = HeartSegmenter(config)

    def train(workspace: Workspace) -> tuple[Tensors, dict[str, float]]:
        images, labels = labelled()
        stacks, truth = _padded(images, config.reach), torch.from_numpy(labels)
        shown = torch.from_numpy(np.argwhere(images.images[:, 0].max((2, 3)) > images.range[0]))
        loss = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)

        def step_loss(step: int, generator: torch.Generator) -> torch.Tensor:
            where = shown[torch.randint(len(shown), (config.batch,), generator=generator, device=device).cpu()]
            windows = _windows(stacks, where, config.reach).to(device)
            target = truth[where[:, 0], where[:, 1], None].to(device).float()
            windows, target = _distorted(windows, target, generator)
            return loss(model(windows), target)

        model.to(device)
        settings = {"steps": config.steps, "learning_rate": config.learning_rate, "seed": config.seed}
        return fit(model, step_loss, **settings, warmup=30, ema=0.99, workspace=workspace, label="heart segmenter")

    kept = load_or_train("segmenter", config, inputs | {"code": code_hash(__name__)}, train, device=described(device))
    model.load_state_dict(kept.weights)
    return model.to(device).eval().requires_grad_(False)


def _padded(images: ImageSet, reach: int) -> torch.Tensor:
    """Stacks (n, d + 2 * reach, h, w) in [-1, 1]: beyond the ends lies what fills up a stack that is too short."""
    return functional.pad(torch.from_numpy(images.scaled()[:, 0]), (0, 0, 0, 0, reach, reach), value=-1.0)


def _windows(stacks: torch.Tensor, where: torch.Tensor, reach: int) -> torch.Tensor:
    """Planes (m, 2) as (stack, plane) with their neighbours, (m, 2 * reach + 1, h, w)."""
    return stacks[where[:, :1], where[:, 1:] + torch.arange(2 * reach + 1)]


def _distorted(windows: torch.Tensor, target: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Turned, scaled, shifted, of another contrast, blurred and noisy: as other scanners, other people and samples look."""
    m, device = len(windows), windows.device

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(m, 1, 1, 1, generator=generator, device=device) * (high - low) + low

    turn, scale = uniform(-0.2, 0.2).flatten(), uniform(-0.1, 0.1).exp().flatten()
    across, down = uniform(-0.06, 0.06).flatten(), uniform(-0.06, 0.06).flatten()
    cos, sin = turn.cos() * scale, turn.sin() * scale
    matrix = torch.stack([torch.stack([cos, -sin, across], 1), torch.stack([sin, cos, down], 1)], 1)
    grid = functional.affine_grid(matrix, [m, 1, *windows.shape[2:]], align_corners=False)
    grey = functional.grid_sample((windows + 1) / 2, grid, align_corners=False).clamp(min=0)
    target = functional.grid_sample(target, grid, mode="nearest", align_corners=False)
    grey = grey ** uniform(-0.3, 0.3).exp() * uniform(-0.2, 0.2).exp()
    blur = uniform(-0.5, 1.0).clamp(min=0)
    grey = grey + blur * (functional.avg_pool2d(grey, 3, 1, 1) - grey)
    noise = torch.randn(grey.shape, generator=generator, device=device)
    return 2 * (grey + uniform(0, 0.05) * noise) - 1, target


def _check(images: ImageSet) -> None:
    shape = images.images.shape
    if len(shape) != 5 or shape[1] != 1 or min(shape[3:]) < _LEAST_SIDE or any(side % _UNSHUFFLE for side in shape[3:]):
        raise ValueError(
            f"{images.name}: shape {shape}; expected stacks (n, 1, d, h, w) with even sides of at least {_LEAST_SIDE} px"
        )

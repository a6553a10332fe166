"""The last layer of the feature extractor, fitted once more: a Frechet distance sees more through even, independent features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from medsynth.evaluation.features import evenly_spaced_rows, require_public
from medsynth.models.extractor import DIM, ExtractorNet, class_columns
from medsynth.models.pixels import resize
from medsynth.pretrain.extractor import (
    BLUR,
    NOISE,
    Source,
    degrade,
    draw_view,
    instance_loss,
    load_source,
    log_uniform,
    unevenness,
)
from medsynth.pretrain.public import PublicSet
from medsynth.training import fit, step_generator

_PER_SET, _ROWS, _INSTANCES = 4000, 512, 128  # images kept of a set; of a step; of these told apart
_CHUNK = 256
# weights of dependence, degradation and instances beside unevenness, and of classes of phantoms and of real images, which are
# few and harder to tell apart; chosen on phantom patients of development seeds and on validation patients of cxr_kermany
_DEPENDENCE, _DEGRADATION, _INSTANCE = 2.0, 0.1, 0.02
_CLASSES = {"phantom": 0.2, "real": 20.0}


@dataclass(frozen=True)
class _Pooled:
    """What the last layer sees of one set, standardised."""

    clean: torch.Tensor  # (n, p)
    elsewhere: tuple[torch.Tensor, ...]  # the same in parts, each as one other scanner might show them
    views: list[torch.Tensor]  # two of (n, p)
    degraded: list[torch.Tensor]  # the views, both with one noise and blur
    levels: torch.Tensor  # (n, 2): roots of noise and blur
    classes: dict[str, torch.Tensor]  # (n,) by column, -1 = missing
    kind: str  # of _CLASSES

    def head(self, column: str) -> str:
        # sets labelled in the same way share their heads, so that a finding is one direction in every modality: with a
        # direction for each, those that labels stretch would be most of the 64
        return " ".join([column, "of", *self.classes]).replace(".", " ")


class _LastLayer(nn.Module):
    """The layer with the linear heads that only its fit needs."""

    def __init__(self, inputs: int, sets: list[_Pooled]) -> None:
        super().__init__()
        self.embedding = nn.Linear(inputs, DIM)
        self.degradation = nn.Linear(DIM, 2)
        counts = {p.head(column): int(number.max()) + 1 for p in sets for column, number in p.classes.items()}
        self.classes = nn.ModuleDict({name: nn.Linear(DIM, k) for name, k in counts.items()})

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.embedding(pooled), dim=1)


def fit_last_layer(net: ExtractorNet, sets: Mapping[str, PublicSet], *, steps: int = 600, seed: int = 0) -> dict[str, Any]:
    """Fit the last layer of `net` from scratch on what the convolutions see, in place; its card. Public sets only.

    Training meets noise, blur and tone curves of many scanners, and the variance they bring hides how few directions vary among
    the clean images that a ruler measures. Minimised over clean images of each set, and the first again over the same images as
    one other scanner might show them, because a ruler measures where it was not trained:
    - the unevenness of their covariance, and the same of the products of features: covariance zero is not independence, and
      dependent features make a Frechet distance scatter from sample to sample;
    - with less weight, what the network was trained for: classes, noise and blur, instances.
    Evenness is soon learnt by heart: with 1,200 images of a set longer fits make unseen ones less even, with 4,000 more.
    Raises ValueError for a set that is not public or when every set is smaller than a step.
    """
    require_public({name: s.images for name, s in sets.items()})
    large = [s for s in sets.values() if len(s.images) >= _INSTANCES]
    if not large:
        raise ValueError(f"every set has fewer than {_INSTANCES} images; expected at least one that is larger")
    device = net.matrix.device
    pooled = [_pool(net, s, step_generator(seed, i, device.type)) for i, s in enumerate(large)]
    centre = torch.cat([p.clean for p in pooled]).mean(0)
    spread = torch.cat([p.clean - p.clean.mean(0) for p in pooled]).std(0).clamp(min=1e-6)
    pooled = [_standardised(p, centre, spread) for p in pooled]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = _LastLayer(len(centre), pooled).to(device)

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        return sum(_loss(layer, p, generator) for p in pooled)

    fitting = {"steps": steps, "learning_rate": 2e-3, "warmup": 0, "ema": 0.9, "weight_decay": 0.0}
    state, metrics = fit(layer, loss, seed=seed, label="last layer", **fitting)
    with torch.no_grad():
        weight = state["embedding.weight"].to(device) / spread
        net.embedding.weight.copy_(weight)
        net.embedding.bias.copy_(state["embedding.bias"].to(device) - weight @ centre)
    weights = {
        "unevenness": 1.0,
        "dependence": _DEPENDENCE,
        "classes": _CLASSES,
        "degradation": _DEGRADATION,
        "instances": _INSTANCE,
    }
    seen = {name: min(len(s.images), _PER_SET) for name, s in sets.items()}
    return {"seed": seed, "steps": steps, "weights": weights, "images": seen, "metrics": metrics}


def dependence(h: torch.Tensor) -> torch.Tensor:
    """Unevenness of the covariance of all products of two features (n, d): log of d (d + 1) / 2 over its effective dimensions.

    The squared similarities are a kernel whose features are those products; pairs of a row with itself are left out.
    """
    centred = h - h.mean(0)
    kernel = (centred @ centred.T) ** 2
    kernel = kernel - kernel.mean(0)
    kernel = kernel - kernel.mean(1, keepdim=True)
    own, n, d = kernel.diagonal(), len(h), h.shape[1]
    others = ((kernel**2).sum() - (own**2).sum()) / (n * (n - 1))
    return torch.log(d * (d + 1) / 2 * others / own.mean() ** 2)


def _loss(layer: _LastLayer, p: _Pooled, generator: torch.Generator) -> torch.Tensor:
    row = torch.randperm(len(p.clean), generator=generator, device=generator.device)[:_ROWS]
    clean = layer(p.clean[row])
    first, second = (layer(v[row[:_INSTANCES]]) for v in p.views)
    part = p.elsewhere[int(torch.randint(len(p.elsewhere), (), generator=generator, device=generator.device))]
    total = _INSTANCE * instance_loss(first, second, row[:_INSTANCES])
    for h in (clean, layer(part)):
        total = total + unevenness(h) + _DEPENDENCE * dependence(h)
    lever = DIM**0.5  # unit length is too short for linear heads
    # where a set lies is no matter of its classes
    within = lever * (clean - clean.mean(0))
    for column, number in p.classes.items():
        logits = layer.classes[p.head(column)](within)
        total = total + _CLASSES[p.kind] * functional.cross_entropy(logits, number[row], ignore_index=-1)
    for view in p.degraded:
        total = total + _DEGRADATION * functional.mse_loss(layer.degradation(lever * layer(view[row])), p.levels[row])
    return total


@torch.no_grad()
def _pool(net: ExtractorNet, source_set: PublicSet, generator: torch.Generator) -> _Pooled:
    device, images = generator.device, evenly_spaced_rows(source_set.images, _PER_SET)
    source: Source = load_source(images, str(device))
    row = torch.arange(len(images), device=device)
    views = [draw_view(source, row, generator) for _ in range(2)]
    level = torch.rand(4, len(images), generator=generator, device=device)
    noise, blur = log_uniform(level[0], *NOISE) * (level[1] < 0.5), log_uniform(level[2], *BLUR) * (level[3] < 0.5)
    worse = [_degraded(v, noise, blur, generator) for v in views]
    clean = resize(torch.from_numpy(images.scaled()).to(device))
    elsewhere = [_other_scanner(part, generator) for part in clean.tensor_split(max(1, len(clean) // _ROWS))]

    def pooled(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([net.pooled(chunk) for chunk in x.split(_CHUNK)])

    return _Pooled(
        clean=pooled(clean), elsewhere=tuple(pooled(part) for part in elsewhere), views=[pooled(v) for v in views],
        degraded=[pooled(v) for v in worse], levels=torch.stack([noise.sqrt(), (blur / 4).sqrt()], 1),
        classes=dict(zip(class_columns(images), source.classes.T, strict=True)), kind="real" if images.people else "phantom",
    )  # fmt: skip


def _other_scanner(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """All images (n, 1, h, w) with one other field of view, contrast, sharpness and noise."""
    zoom, bend, gain, sharpness, grain = (2 * torch.rand(5, generator=generator, device=images.device) - 1).tolist()
    field = torch.tensor([[[1 + 0.12 * zoom, 0, 0], [0, 1 + 0.12 * zoom, 0]]], device=images.device).expand(len(images), -1, -1)
    grid = functional.affine_grid(field, list(images.shape), align_corners=False)
    seen = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    unit = ((seen + 1) / 2).clamp(0, 1) ** 2 ** (0.5 * bend)
    blur, noise = (images.new_full((len(images),), level) for level in (0.4 + 0.4 * sharpness, 0.02 + 0.02 * grain))
    return _degraded((1 + 0.1 * gain) * (2 * unit - 1), noise, blur, generator)


def _degraded(images: torch.Tensor, noise: torch.Tensor, blur: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    parts = zip(images.split(_CHUNK), noise.split(_CHUNK), blur.split(_CHUNK), strict=True)
    return torch.cat([degrade(*part, generator) for part in parts])


def _standardised(p: _Pooled, centre: torch.Tensor, spread: torch.Tensor) -> _Pooled:
    def moved(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        return [(x - centre) / spread for x in tensors]

    clean, *elsewhere = moved([p.clean, *p.elsewhere])
    return replace(p, clean=clean, elsewhere=tuple(elsewhere), views=moved(p.views), degraded=moved(p.degraded))

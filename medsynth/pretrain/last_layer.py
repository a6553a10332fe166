"""The last layer of the feature extractor, fitted once more: a Frechet distance sees more through even, independent features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from medsynth.evaluation.features import evenly_spaced_rows, require_public
from medsynth.models.extractor import DIM, ExtractorNet, resize
from medsynth.pretrain.extractor import BLUR, NOISE, Source, degrade, draw_view, load_source, log_uniform, nt_xent, unevenness
from medsynth.pretrain.public import PublicSet
from medsynth.training import fit, step_generator

_PER_SET, _ROWS, _INSTANCES = 4000, 512, 128  # images kept of a set; of a step; of these told apart
_CHUNK = 256
# weights of dependence, degradation and instances beside unevenness, and of classes of phantoms and of real images, which are
# few and harder to tell apart; chosen on phantom patients of development seeds and on validation patients of cxr_kermany
_DEPENDENCE, _DEGRADATION, _INSTANCE = 1.0, 0.1, 0.02
_CLASSES = {"phantom": 0.5, "real": 8.0}


@dataclass(frozen=True)
class _Pooled:
    """What the last layer sees of one set, standardised."""

    clean: torch.Tensor  # (n, p)
    views: list[torch.Tensor]  # two of (n, p)
    degraded: list[torch.Tensor]  # the views, both with one noise and blur
    levels: torch.Tensor  # (n, 2): roots of noise and blur
    classes: torch.Tensor  # (n, columns), -1 = missing
    kind: str  # of _CLASSES


class _LastLayer(nn.Module):
    """The layer with the linear heads that only its fit needs."""

    def __init__(self, inputs: int, class_counts: list[list[int]]) -> None:
        super().__init__()
        self.embedding = nn.Linear(inputs, DIM)
        self.degradation = nn.Linear(DIM, 2)
        self.classes = nn.ModuleList(nn.ModuleList(nn.Linear(DIM, k) for k in counts) for counts in class_counts)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.embedding(pooled), dim=1)


def fit_last_layer(net: ExtractorNet, sets: Mapping[str, PublicSet], *, steps: int = 600, seed: int = 0) -> dict[str, Any]:
    """Fit the last layer of `net` from scratch on what the convolutions see, in place; its card. Public sets only.

    Training meets noise, blur and tone curves of many scanners, and the variance they bring hides how few directions vary among
    the clean images that a ruler measures. Minimised over clean images of each set:
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
        layer = _LastLayer(len(centre), [(p.classes.amax(0) + 1).tolist() for p in pooled]).to(device)

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        return sum(_loss(layer, p, layer.classes[i], generator) for i, p in enumerate(pooled))

    fitting = {"steps": steps, "learning_rate": 2e-3, "warmup": 0, "ema": 0.9, "weight_decay": 0.0}
    state, metrics = fit(layer, loss, seed=seed, label="last layer", **fitting)
    with torch.no_grad():
        weight = state["embedding.weight"].to(device) / spread
        maps, thumbnail = weight.tensor_split([net.embedding.in_features], dim=1)
        net.embedding.weight.copy_(maps)
        net.layout.copy_(thumbnail)
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


def _loss(layer: _LastLayer, p: _Pooled, heads: nn.ModuleList, generator: torch.Generator) -> torch.Tensor:
    row = torch.randperm(len(p.clean), generator=generator, device=generator.device)[:_ROWS]
    clean = layer(p.clean[row])
    first, second = (layer(v[row[:_INSTANCES]]) for v in p.views)
    total = unevenness(clean) + _DEPENDENCE * dependence(clean) + _INSTANCE * nt_xent(first, second, row[:_INSTANCES])
    lever = DIM**0.5  # unit length is too short for linear heads
    for head, number in zip(heads, p.classes[row].T, strict=True):
        total = total + _CLASSES[p.kind] * functional.cross_entropy(head(lever * clean), number, ignore_index=-1)
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
    worse = [
        torch.cat([degrade(v[i], noise[i], blur[i], generator) for i in row.split(_CHUNK)])
        for v in views
    ]  # fmt: skip
    clean = resize(torch.from_numpy(images.scaled()).to(device))

    def pooled(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([net.pooled(chunk) for chunk in x.split(_CHUNK)])

    return _Pooled(
        pooled(clean), [pooled(v) for v in views], [pooled(v) for v in worse], torch.stack([noise.sqrt(), (blur / 4).sqrt()], 1),
        source.classes, "real" if source_set.real else "phantom",
    )  # fmt: skip


def _standardised(p: _Pooled, centre: torch.Tensor, spread: torch.Tensor) -> _Pooled:
    clean, *others = ((x - centre) / spread for x in (p.clean, *p.views, *p.degraded))
    return _Pooled(clean, others[:2], others[2:], p.levels, p.classes, p.kind)

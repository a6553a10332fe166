"""Trains the feature extractor that ships with the package, on public-role sets only."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from medsynth.evaluation.features import calibrate, require_public
from medsynth.imageset import ImageSet
from medsynth.models.extractor import DIM, EMPHASIS, MAPS, RESIZER, ExtractorNet, Maps, class_columns
from medsynth.models.pixels import SIDE, blurred, resize
from medsynth.store.runs import Tensors
from medsynth.training import autocast, fit, step_generator

# images are kept at three sizes and cropped to 64 px at whole pixels; one that is too small for a size is mirrored at its
# border instead of enlarged, so that no view is softer than its image
_SIZES = (64, 70, 76)
_TEMPERATURE = 0.2
NOISE, BLUR = (0.01, 0.5), (0.4, 2.5)  # sd in units of [-1, 1] and in pixels at 64 px; log-uniform, for half of the images each
_BLUR_RADIUS = 6


@dataclass(frozen=True)
class Source:
    """One set on the device: images per size, each (n, 1, s, s), and its targets."""

    sizes: list[torch.Tensor]
    classes: torch.Tensor  # (n, columns), -1 = missing
    values: torch.Tensor  # (n, columns), standardised, NaN = missing

    def __len__(self) -> int:
        return len(self.classes)


class _Student(nn.Module):
    """The learnt maps with a first embedding and the linear heads that only training needs."""

    def __init__(self, class_counts: list[list[int]], value_counts: list[int]) -> None:
        super().__init__()
        self.maps = Maps()
        # the maps alone are to explain the image: random filters and thumbnail enter with the last layer, `fit_last_layer`
        self.embedding = nn.Linear(MAPS, DIM)
        self.source = nn.Linear(DIM, len(class_counts))
        self.degradation = nn.Linear(DIM, 2)
        self.classes = nn.ModuleList(nn.ModuleList(nn.Linear(DIM, k) for k in counts) for counts in class_counts)
        self.values = nn.ModuleList(nn.Linear(DIM, max(1, k)) for k in value_counts)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.embedding(self.maps(images)), dim=1)


def train_extractor(
    sets: Mapping[str, ImageSet],
    *,
    steps: int,
    seed: int,
    device: str = "cpu",
    max_seconds: float | None = None,
    sources_per_step: int = 2,
    images_per_source: int = 64,
    learning_rate: float = 2e-3,
) -> tuple[Tensors, dict[str, Any]]:
    """Train and calibrate an `ExtractorNet`; (state dict, card). Every set must have role "public" and one channel.

    Each step takes images of a few sets in two views that share one noise and blur level, and minimises
    - instance discrimination inside each set (NT-Xent, Chen et al., arXiv:2002.05709, eq. 1), by which a copy stands out;
    - the unevenness of the covariance inside each set (after VICReg, Bardes et al., arXiv:2105.04906), because a Frechet
      distance sees only as many changes as there are directions with variance;
    - cross-entropy of the set and of every class column, squared error of numeric attributes and of the applied noise and blur.
    With max_seconds, the number of steps is cut to what a timed start says will fit.
    Raises ValueError for a set that is not public.
    """
    require_public(sets)
    sources = [load_source(s, device) for s in sets.values()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = _Student(
            [(s.classes.amax(0) + 1).tolist() if len(s) else [] for s in sources], [s.values.shape[1] for s in sources]
        ).to(device)
    # small sets are seen less often, but not in proportion: they are the real ones
    odds = np.sqrt([len(s) for s in sources])
    odds = torch.from_numpy(odds / odds.sum())

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        host = step_generator(seed, step)
        chosen = torch.multinomial(odds, min(sources_per_step, len(sources)), generator=host).tolist()
        with autocast(student_device):
            return _loss(student, sources, chosen, images_per_source, generator)

    student_device = next(student.parameters()).device
    if max_seconds is not None:
        steps = min(steps, int(max_seconds / _seconds_per_step(student, loss, device)))
    state, metrics = fit(student, loss, steps=steps, learning_rate=learning_rate, seed=seed, weight_decay=0.05, label="extractor")
    net = ExtractorNet().requires_grad_(False)
    net.learnt.load_state_dict({k.removeprefix("maps."): v for k, v in state.items() if k.startswith("maps.")})
    net.embedding.weight.zero_()[:, :MAPS] = state["embedding.weight"]
    net.embedding.bias.copy_(state["embedding.bias"])
    calibrate(net.to(device), sets)
    card = {
        "name": "medsynth extractor", "dim": DIM, "resizer": RESIZER, "input": "one channel, [-1, 1]", "emphasis": EMPHASIS,
        "seed": seed, "steps": steps, "metrics": metrics, "sources_per_step": sources_per_step,
        "images_per_source": images_per_source, "learning_rate": learning_rate,
        "trained_on": {
            k: {"images": len(s), "patients": s.patients, "licence": s.data_licence, "content_hash": s.content_hash}
            for k, s in sets.items()
        },
    }  # fmt: skip
    return {k: v.cpu() for k, v in net.state_dict().items()}, card


def load_source(images: ImageSet, device: str) -> Source:
    """A set at the sizes that views are cropped from, with its class columns and standardised numbers."""
    scaled = torch.from_numpy(images.scaled())
    numeric = images.attributes.select_dtypes("float64").to_numpy(dtype=np.float64).reshape(len(images), -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        known = np.isfinite(numeric).sum(0) > 1
        numeric = numeric[:, known]
        numeric = (numeric - np.nanmean(numeric, 0)) / np.maximum(np.nanstd(numeric, 0), 1e-6) if numeric.size else numeric
    codes = list(class_columns(images).values())
    classes = np.stack(codes, 1) if codes else np.zeros((len(images), 0), dtype=np.int64)
    return Source(
        [torch.cat([_at_least(part.to(device), side) for part in scaled.split(512)]) for side in _SIZES],
        torch.from_numpy(classes.astype(np.int64)).to(device),
        torch.from_numpy(numeric.astype(np.float32)).to(device),
    )


def _at_least(images: torch.Tensor, side: int) -> torch.Tensor:
    if min(images.shape[2:]) >= side:
        return resize(images, side)
    return functional.pad(resize(images), [(side - SIDE) // 2] * 4, mode="reflect")


def _loss(
    student: _Student, sources: list[Source], chosen: list[int], per_source: int, generator: torch.Generator
) -> torch.Tensor:
    device = generator.device
    rows, views = [], []
    for i in chosen:
        row = torch.randint(len(sources[i]), (per_source,), generator=generator, device=device)
        rows.append(row)
        views.append(torch.stack([draw_view(sources[i], row, generator) for _ in range(2)]))
    # (2, chosen * per_source, 1, 64, 64)
    pair = torch.cat(views, 1)
    toned = torch.rand(pair.shape[1], 1, 1, 1, generator=generator, device=device) < 0.5
    pair = torch.where(toned, _tone(pair, generator), pair)
    level = torch.rand(4, pair.shape[1], generator=generator, device=device)
    noise, blur = log_uniform(level[0], *NOISE) * (level[1] < 0.5), log_uniform(level[2], *BLUR) * (level[3] < 0.5)
    degraded = degrade(pair.flatten(0, 1), noise.repeat(2), blur.repeat(2), generator)
    h = student.embed(degraded)
    first, second = h.view(2, len(chosen), per_source, DIM).float()
    total = sum(instance_loss(a, b, row) for a, b, row in zip(first, second, rows, strict=True)) / len(chosen)
    total = total + 0.5 * sum(unevenness(torch.cat([a, b])) for a, b in zip(first, second, strict=True)) / len(chosen)
    scaled = h * DIM**0.5  # unit length is too short a lever for linear heads
    # sqrt keeps the slope at small levels, where scanners differ
    target = torch.stack([noise.sqrt(), (blur / 4).sqrt()], 1).repeat(2, 1)
    total = total + 4 * functional.mse_loss(student.degradation(scaled).float(), target)
    number = torch.tensor(chosen, device=device).repeat_interleave(per_source).repeat(2)
    total = total + 0.2 * functional.cross_entropy(student.source(scaled).float(), number)
    grouped = scaled.view(2, len(chosen), per_source, DIM).transpose(0, 1).flatten(1, 2)
    for g, i, row in zip(grouped, chosen, rows, strict=True):
        total = total + _attribute_loss(student, i, g, sources[i].classes[row].repeat(2, 1), sources[i].values[row].repeat(2, 1))
    return total


def _attribute_loss(student: _Student, source: int, h: torch.Tensor, classes: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    total = h.new_zeros((), dtype=torch.float32)
    for k, head in enumerate(student.classes[source]):
        number = classes[:, k]
        known = (number >= 0).float()
        each = functional.cross_entropy(head(h).float(), number.clamp(min=0), reduction="none")
        total = total + 2 * (each * known).sum() / known.sum().clamp(min=1)
    if values.shape[1]:
        known = torch.isfinite(values)
        error = (student.values[source](h).float() - values.nan_to_num()) ** 2 * known
        total = total + 0.2 * error.sum() / known.sum().clamp(min=1)
    return total


def unevenness(h: torch.Tensor) -> torch.Tensor:
    """d / (effective number of dimensions) - 1 of features (n, d): 0 when their covariance is a multiple of the identity."""
    centred = h - h.mean(0)
    covariance = centred.T @ centred
    return DIM * (covariance**2).sum() / covariance.trace() ** 2 - 1


def instance_loss(first: torch.Tensor, second: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """Instance discrimination between two views (n, d) of unit length of the rows `row` (n,); arXiv:2002.05709, eq. 1."""
    similarity = first @ second.T / _TEMPERATURE
    # a row drawn twice in a batch is no negative of itself
    same = (row[:, None] == row[None]) & ~torch.eye(len(row), dtype=torch.bool, device=row.device)
    similarity = similarity.masked_fill(same, float("-inf"))
    answer = torch.arange(len(row), device=row.device)
    return (functional.cross_entropy(similarity, answer) + functional.cross_entropy(similarity.T, answer)) / 2


def draw_view(source: Source, row: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A crop at whole pixels with a small change of gain and offset, (n, 1, 64, 64); never flipped: left is not right."""
    device, n = row.device, len(row)
    size = int(torch.randint(len(_SIZES), (), generator=generator, device=device))
    images = source.sizes[size][row, 0]
    corner = torch.randint(images.shape[1] - SIDE + 1, (2, n, 1), generator=generator, device=device)
    line = torch.arange(SIDE, device=device)
    y, x = (corner[0] + line)[:, :, None], (corner[1] + line)[:, None, :]
    cropped = images[torch.arange(n, device=device)[:, None, None], y, x][:, None]
    gain, offset = (torch.rand(2, n, 1, 1, 1, generator=generator, device=device) - 0.5) * 0.2
    return cropped * (1 + gain) + offset


def _tone(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random tone curve and contrast window per image, the same in both views: images of scanners never seen in training."""
    low, high, bend = torch.rand(3, images.shape[1], 1, 1, 1, generator=generator, device=images.device)
    unit = ((images + 1) / 2 - 0.25 * low) / (1 - 0.25 * low - 0.25 * high)
    return 2 * unit.clamp(0, 1) ** torch.exp(1.4 * (bend - 0.5)) - 1


def degrade(images: torch.Tensor, noise: torch.Tensor, blur: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gaussian blur of sd `blur` px, then Gaussian noise of sd `noise`; images (n, 1, h, w), levels (n,)."""
    r = _BLUR_RADIUS
    # mirrored at its border, as an image is that is too small for a size
    wider = functional.pad(images, [r] * 4, mode="reflect")
    soft = blurred(wider, blur.clamp(min=1e-2)[:, None], radius=r)[..., r:-r, r:-r]
    grain = torch.randn(images.shape, generator=generator, device=images.device)
    return soft + noise.view(-1, 1, 1, 1) * grain


def log_uniform(u: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Uniform numbers u in [0, 1) as log-uniform ones in [low, high)."""
    return low * (high / low) ** u


def _seconds_per_step(student: _Student, loss: Any, device: str, trials: int = 8) -> float:
    """Time of one step, after a warm-up; leaves no trace in the weights."""
    for i in range(2 * trials):
        if i == trials:
            _wait(device)
            began = time.monotonic()
        loss(i, step_generator(0, i, torch.device(device).type)).backward()
        student.zero_grad(set_to_none=True)
    _wait(device)
    # the optimiser and the moving average come on top
    return 1.15 * (time.monotonic() - began) / trials


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()

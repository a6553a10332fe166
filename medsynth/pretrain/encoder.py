"""Training of the public identity encoder: two views of one image, or of two scans of one patient, against all others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from medsynth.data.sources import cached_thorax
from medsynth.evaluation.features import require_public
from medsynth.language.vocabulary import MODALITIES
from medsynth.ledger import Ledger
from medsynth.models.encoder import EncoderNet, normalise, planes_of, similarity
from medsynth.models.pixels import SIDE, blurred, resize
from medsynth.phantoms.heart.heart import cardiac
from medsynth.pretrain.public import PublicSet, at_size, real_sets
from medsynth.privacy.gate.alterations import GAIN, GAMMA, JPEG_QUALITY, NOISE, OFFSET, ROTATION, SHIFT, ZOOM
from medsynth.resample import slices_of
from medsynth.store.runs import Tensors, Workspace
from medsynth.training import fit, step_generator

_TEMPERATURE = 0.07
_POSE_WEIGHT, _CENTRE_WEIGHT = 2.0, 0.02
_OTHER_SCAN = 0.35  # share of second views that show another scan, where the patient has one
_GEOMETRY = 0.6  # how often a view is turned, zoomed or shifted
_PHOTOMETRY = (0.08, 0.33)  # how often each photometric attack strikes the first view (a private copy) and the second
_NEAR = 0.3  # of the geometric bounds: how far an attacked image lies from the nearest copy in the gallery
_BEYOND = 1.15  # the suite's bounds, exceeded: at its edge there must be somebody to learn from
_BLUR_SD = (0.3, 1.2)  # pixels
# ITU-T T.81, table K.1, which the common codecs use as it stands at quality 50
_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80,
    62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98,
    112, 100, 103, 99,
)  # fmt: skip


@dataclass(frozen=True)
class _Store:
    """One set on the device: images uint8 (n, planes, 64, 64), sorted by patient."""

    images: torch.Tensor
    first: torch.Tensor  # (patients,) row where each patient's images begin
    count: torch.Tensor  # (patients,)
    scans: bool  # whether other rows of a patient are other scans of the same thing, and not another slice of it


def encoder_sets(folder: Path, patients: int, *, spatial_dims: int = 2, jobs: int = 1) -> dict[str, PublicSet]:
    """What the encoder learns from: phantom patients scanned twice, slices, and public X-rays; in 3D, phantom hearts."""
    if spatial_dims == 3:
        return {"phantom-heart-3d": PublicSet(cardiac(patients=patients, slices=8, size=SIDE, seed=0, jobs=jobs), thorax=False)}
    made = {
        f"phantom-{m}": PublicSet(cached_thorax(patients=patients, scans=2, size=SIDE, modality=m, seed=0)) for m in MODALITIES
    }
    hearts = slices_of(cardiac(patients=max(2, patients // 8), slices=8, size=SIDE, seed=0, jobs=jobs))
    made["phantom-heart"] = PublicSet(hearts, thorax=False)
    return made | at_size(real_sets(folder, "train"), SIDE)


def train_encoder(
    sets: dict[str, PublicSet],
    *,
    spatial_dims: int = 2,
    steps: int,
    patients_per_step: int = 256,
    learning_rate: float = 2e-3,
    seed: int = 0,
    device: str = "cpu",
    workspace: Workspace | None = None,
    ledger: Ledger | None = None,
) -> tuple[Tensors, dict[str, Any]]:
    """(state dict, card) of an `EncoderNet` trained on public sets or, with a ledger that gets a line for each, on private ones.

    Each step takes patients of one set, because those of another are told apart too easily, in two views, and minimises
    - the cross-entropy of finding the other view of a patient among all views (NT-Xent, Chen et al., arXiv:2002.05709, eq. 1);
    - the squared difference of the two poses found, each carried back to the common image by the transform that was applied.
    `encoder_map` makes a feature map of it. Raises ValueError for a set that is not public where there is no ledger.
    """
    if ledger is None:
        require_public({k: s.images for k, s in sets.items()})
    else:
        for s in sets.values():
            ledger.read(s.images, stage="train encoder", output=f"weights of an identity encoder {spatial_dims}d")
    stores = [_store(s, spatial_dims, device) for s in sets.values()]
    odds = torch.tensor([_odds(s) for s in sets.values()])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = EncoderNet(spatial_dims).to(device)

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        chosen = stores[int(torch.multinomial(odds, 1, generator=step_generator(seed, step)))]
        views, placed, same = two_views(chosen, patients_per_step, generator)
        return encoder_loss(net, views, placed, same)

    state, metrics = fit(
        net, loss, steps=steps, learning_rate=learning_rate, warmup=min(100, steps // 8), weight_decay=0.02, ema=0.995, seed=seed,
        workspace=workspace, checkpoint_every=100, label="encoder",
    )  # fmt: skip
    card = {
        "name": f"medsynth identity encoder {spatial_dims}d", "spatial_dims": spatial_dims, "steps": steps, "seed": seed,
        "patients_per_step": patients_per_step, "learning_rate": learning_rate, "temperature": _TEMPERATURE, "metrics": metrics,
        "augmentation": {"shift": SHIFT, "rotation": ROTATION, "zoom": ZOOM, "gain": GAIN, "offset": OFFSET, "noise": NOISE,
                         "gamma": GAMMA, "jpeg quality": JPEG_QUALITY, "blur": _BLUR_SD},
    }  # fmt: skip
    return state, card


def encoder_loss(net: EncoderNet, views: torch.Tensor, placed: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Loss of views (2, p, planes, 64, 64) in 0..1, made by similarities `placed` (2, p, 4) of one image where `same` (p,)."""
    x = normalise(views.flatten(0, 1) * 2 - 1)
    pose = net.pose(x)
    # the pose is judged by the transforms alone: the embedding would rather have it constant while it is still poor
    z = net.describe(x, pose.detach())
    first, second = followed(placed.flatten(0, 1), pose).view(2, -1, 4)
    disagreement = ((first - second).square().sum(1) * same).sum() / same.sum().clamp(min=1)
    return nt_xent(z) + _POSE_WEIGHT * disagreement + _CENTRE_WEIGHT * pose.square().sum(1).mean()


def nt_xent(z: torch.Tensor) -> torch.Tensor:
    """Mean over 2p unit vectors of the cross-entropy of picking row i's partner, i + p or i - p, among the others."""
    n = len(z)
    similarity = (z @ z.T / _TEMPERATURE).masked_fill(torch.eye(n, dtype=torch.bool, device=z.device), float("-inf"))
    return functional.cross_entropy(similarity, torch.arange(n, device=z.device).roll(n // 2))


def followed(outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """The similarity x -> outer(inner(x)); rows are (angle, log scale, right, down), angles from the x to the y axis."""
    scale, cos, sin = outer[:, 1].exp(), outer[:, 0].cos(), outer[:, 0].sin()
    right = outer[:, 2] + scale * (cos * inner[:, 2] - sin * inner[:, 3])
    down = outer[:, 3] + scale * (sin * inner[:, 2] + cos * inner[:, 3])
    return torch.stack([outer[:, 0] + inner[:, 0], outer[:, 1] + inner[:, 1], right, down], 1)


def two_views(store: _Store, patients: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views (2, p, planes, 64, 64) in 0..1 of p patients, the similarities (2, p, 4) that made them, where both show one image.

    Mirroring, stretching, cropping and a tone curve are shared by both views: they make new patients out of old ones.
    """
    device = generator.device
    p = min(patients, len(store.first))
    who = torch.randperm(len(store.first), generator=generator, device=device)[:p]
    draw = torch.rand(3, p, generator=generator, device=device)
    one, other = (store.first[who] + (u * store.count[who]).long().clamp(max=store.count[who] - 1) for u in draw[:2])
    if not store.scans:
        other = one
    other = torch.where(draw[2] < _OTHER_SCAN, other, one)
    base, tone = _base(p, generator), torch.exp(0.35 * _symmetric(generator, p, 1, 1, 1))
    moved = _movement(p, generator)
    # in half of the pairs the first view is the copy that stands near the attacked one in a gallery, else the image as it was
    near = _sometimes(0.5, generator, p, 1) * moved + _NEAR * _movement(p, generator)
    views = []
    for rows, place, often in zip((one, other), (near, moved), _PHOTOMETRY, strict=True):
        images = (store.images[rows].float() / 255) ** tone
        grid = functional.affine_grid(base @ _square(similarity(place)), [p, 1, SIDE, SIDE], align_corners=False)
        fill = "border" if float(torch.rand((), generator=generator, device=device)) < 0.5 else "zeros"
        seen = functional.grid_sample(images, grid, padding_mode=fill, align_corners=False)
        views.append(_photographed(seen, often, generator))
    return torch.stack(views), torch.stack([near, moved]), one == other


def _store(part: PublicSet, spatial_dims: int, device: str) -> _Store:
    images = part.images
    scaled = torch.from_numpy(images.scaled())
    planes = torch.cat([resize(c) if spatial_dims == 2 else planes_of(c) for c in scaled.split(256)])
    _, unit = torch.unique(torch.tensor(images.patient), return_inverse=True)
    order = torch.argsort(unit, stable=True)
    count = torch.bincount(unit)
    pixels = ((planes[order] + 1) * 127.5).round().to(torch.uint8)
    scans = spatial_dims == 3 or part.thorax
    return _Store(*(t.to(device) for t in (pixels, torch.cumsum(count, 0) - count, count)), scans)


def _odds(part: PublicSet) -> float:
    # small sets are repeated less; real anatomy is what phantoms lack, and radiographs are the hardest to tell apart
    return part.images.patients**0.5 * (2.0 if part.images.people else 1.0) * (1.5 if part.images.modality == "xray" else 1.0)


def _symmetric(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Uniform in -1..1."""
    return 2 * torch.rand(shape, generator=generator, device=generator.device) - 1


def _sometimes(share: float, generator: torch.Generator, *shape: int) -> torch.Tensor:
    return (torch.rand(shape, generator=generator, device=generator.device) < share).float()


def _movement(n: int, generator: torch.Generator) -> torch.Tensor:
    """Rotations, zooms and shifts, each in most rows, as (angle, log scale, right, down)."""
    most = torch.tensor([math.radians(ROTATION), math.log(ZOOM[1]), 2 * SHIFT, 2 * SHIFT], device=generator.device)
    suffered = _sometimes(_GEOMETRY, generator, n, 3)[:, [0, 1, 2, 2]]
    return _BEYOND * most * suffered * _symmetric(generator, n, 4)


def _base(n: int, generator: torch.Generator) -> torch.Tensor:
    """Affine maps (n, 2, 3) that both views share: half are mirrored, half see a part of the image; all stretched and turned."""
    u = _symmetric(generator, n, 5)
    crop = 1 - 0.2 * (u[:, 0] + 1) / 2 * _sometimes(0.5, generator, n)
    mirror = 1 - 2 * _sometimes(0.5, generator, n)
    zero = torch.zeros_like(crop)
    turned = similarity(torch.stack([0.12 * u[:, 1], crop.log(), zero, zero], 1))
    turned[:, :, 2] = 0.8 * (1 - crop[:, None]) * u[:, 3:]
    stretch = torch.stack([mirror * torch.exp(0.08 * u[:, 2]), torch.exp(-0.08 * u[:, 2]), torch.ones_like(crop)], 1)
    return turned * stretch[:, None]


def _square(affine: torch.Tensor) -> torch.Tensor:
    """(n, 2, 3) -> (n, 3, 3), so that maps can be multiplied."""
    last = affine.new_tensor([0, 0, 1]).expand(len(affine), 1, 3)
    return torch.cat([affine, last], 1)


def _photographed(images: torch.Tensor, often: float, generator: torch.Generator) -> torch.Tensor:
    """The suite's blur, gamma, gain and offset, noise and compression, each in a share `often` of the images."""
    n = len(images)

    def where(made: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        return torch.where(_sometimes(often, generator, n, 1, 1, 1) > 0, made.clamp(0, 1), before)

    low, high = _BLUR_SD
    u = _symmetric(generator, 6, n, 1, 1, 1)
    x = where(blurred(images, low + (high - low) * (u[0, ..., 0, 0] + 1) / 2, radius=3), images)
    x = where(x ** torch.exp(math.log(math.prod(GAMMA)) / 2 + math.log(GAMMA[1] / GAMMA[0]) / 2 * u[1]), x)
    x = where(x * (1 + _BEYOND * GAIN * u[2]) + _BEYOND * OFFSET * u[3], x)
    sd = NOISE * (0.75 + 0.5 * u[4].abs())
    x = where(x + sd * torch.randn(x.shape, generator=generator, device=x.device), x)
    return where(_compressed(x), x)


def _compressed(images: torch.Tensor) -> torch.Tensor:
    """JPEG at quality 50 without the lossless rest: 8 x 8 cosine transform, quantisation, and back; 0..1."""
    n, c, h, w = images.shape
    k = torch.arange(8, device=images.device, dtype=torch.float32)
    cosine = torch.cos(math.pi * (2 * k + 1) * k[:, None] / 16) * torch.where(k == 0, 0.125, 0.25).sqrt()[:, None]
    transform = torch.kron(cosine, cosine)
    table = torch.tensor(_LUMINANCE, device=images.device, dtype=torch.float32)
    blocks = (images * 255 - 128).reshape(n * c, h // 8, 8, w // 8, 8).transpose(2, 3).reshape(-1, 64)
    kept = torch.round(blocks @ transform.T / table) * table @ transform
    return ((kept + 128) / 255).clamp(0, 1).reshape(n * c, h // 8, w // 8, 8, 8).transpose(2, 3).reshape(n, c, h, w)

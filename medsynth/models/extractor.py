"""A small feature extractor for one-channel images, and the linear map that makes its features fit for a Frechet distance."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from medsynth.imageset import ImageSet
from medsynth.models.pixels import SIDE, resize

DIM = 64
RESIZER = f"torch bilinear, antialiased, {SIDE} px"
# Variance along a direction is multiplied by up to 1 + EMPHASIS as labels explain it: with a flat spectrum the noise of 64
# directions would hide a change in the one or two that tell classes apart; much more and copies would no longer be seen.
EMPHASIS = 8.0
# columns that say where a row is from or how it was taken, not what it shows
_NOT_SHOWN = ("licence", "filename", "url", "source_folder", "scan", "n_slices")
_SHRINKAGE = 0.02  # share of the mean variance added to every direction, so that none is blown up out of its domain
_WIDTHS = (24, 48, 96, 160)  # of 32, 16, 8 and 4 px maps
MAPS = 2 * sum(_WIDTHS)  # mean and spread of each
_THUMBNAIL = 8  # px


class ExtractorNet(nn.Module):
    """Images float (n, 1, h, w) in [-1, 1] of any size to calibrated features (n, 64).

    A linear layer on three descriptions of an image: learnt maps, which know what labels tell apart; maps of random filters,
    in which images differ in more, and more independent, ways than training lets pass (a block of copies is noticed by these);
    and a thumbnail, which says where.
    """

    def __init__(self) -> None:
        super().__init__()
        self.learnt = Maps()
        self.random = _drawn(Maps())
        self.embedding = nn.Linear(2 * MAPS + _THUMBNAIL**2, DIM)
        self.register_buffer("matrix", torch.eye(DIM))
        self.register_buffer("shift", torch.zeros(DIM))
        # the CPU's convolutions are several times faster in this layout
        self.to(memory_format=torch.channels_last)

    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        """What the last layer sees, (n, 1376)."""
        images = resize(images)
        thumbnail = functional.avg_pool2d(images, SIDE // _THUMBNAIL).flatten(1)
        return torch.cat([self.learnt(images), self.random(images), thumbnail], 1)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Unit-length embedding before calibration, (n, 64)."""
        # unit length bounds the tails of the features: a few odd images cannot dominate a covariance
        return functional.normalize(self.embedding(self.pooled(images)), dim=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Calibrated features, (n, 64)."""
        return self.embed(images) @ self.matrix.T + self.shift

    def calibrate(self, matrix: np.ndarray, shift: np.ndarray) -> None:
        """Store the map of `calibration` in the weights."""
        self.matrix.copy_(torch.from_numpy(matrix))
        self.shift.copy_(torch.from_numpy(shift))


class Maps(nn.Module):
    """Images (n, 1, 64, 64) to mean and logarithm of the spread of every map of 32, 16, 8 and 4 px, (n, 656).

    Both, so that fine texture, noise and sharpness are seen beside anatomy. Group normalisation: what is said of an image never
    depends on the others of a batch.
    """

    def __init__(self) -> None:
        super().__init__()
        w = _WIDTHS
        self.stem = nn.Conv2d(1, w[0], 5, stride=2, padding=2)
        self.stages = nn.ModuleList(
            [
                nn.Sequential(nn.SiLU(), nn.Conv2d(before, after, 3, stride=2, padding=1), _Residual(after))
                for before, after in itertools.pairwise(w)
            ]
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images)
        pooled = _summary(x)
        for stage in self.stages:
            x = stage(x)
            pooled += _summary(x)
        return torch.cat(pooled, 1)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def _drawn(maps: Maps) -> Maps:
    # never trained and never stored: drawn at every start from the distribution that torch initialises by, through the raw
    # stream of PCG64, which NumPy promises to keep
    stream = np.random.PCG64(0)
    for layer in list(maps.modules()):
        inputs = layer.weight[0].numel() if isinstance(layer, nn.Conv2d) else 0
        for name, values in list(layer.named_parameters(recurse=False)):
            values = values.detach()
            if inputs:
                unit = (stream.random_raw(values.numel()) >> 11) * 2.0**-53
                values = torch.from_numpy((2 * unit - 1) * inputs**-0.5).float().view(values.shape)
            delattr(layer, name)
            layer.register_buffer(name, values, persistent=False)
    return maps


def _summary(x: torch.Tensor) -> list[torch.Tensor]:
    # the logarithm keeps noise levels that differ by factors of ten on one scale
    return [x.mean((2, 3)), torch.log(x.float().var((2, 3)) + 1e-4).to(x.dtype)]


def class_columns(images: ImageSet) -> dict[str, np.ndarray]:
    """Attributes that name a class, each as int (n,) with -1 where missing: 2 to 20 values that at least 2 % of rows have.

    Text, boolean and integer columns count, if they say what an image shows.
    """
    found = {}
    for name in images.attributes:
        column = images.attributes[name]
        if str(column.dtype) == "float64" or name in _NOT_SHOWN:
            continue
        codes, values = column.factorize()
        common = np.bincount(codes[codes >= 0], minlength=max(1, len(values))) >= 0.02 * len(images)
        if common.sum() >= 2 and len(values) <= 20:
            number = np.append(np.where(common, np.cumsum(common) - 1, -1), -1)
            found[name] = number[codes]
    return found


def calibration(
    embeddings: Iterable[np.ndarray], classes: Iterable[dict[str, np.ndarray]], *, emphasis: float = EMPHASIS
) -> tuple[np.ndarray, np.ndarray]:
    """Matrix (d, d) and shift (d,) such that x -> matrix x + shift suits a Frechet distance. One entry per calibration set.

    1. Whitening W = (S + shrinkage)^(-1/2) with S the mean covariance *within* sets: the distance between sets would
       otherwise fill the spectrum and leave no variance for what varies inside one.
    2. Emphasis (I + emphasis * E^2)^(1/2), E = B (I + B)^-1, with B, after whitening, the covariance of class means, summed over
       labelled columns of sets of at least 2 d images: a direction is stretched as far as labels explain its variance, and not
       without end when they say the same. Squared, so that the many directions that labels explain a little stay even.
    The same procedure serves every extractor that is compared.
    """
    embeddings = [np.asarray(e, dtype=np.float64) for e in embeddings]
    d = embeddings[0].shape[1]
    within = np.mean([np.cov(e, rowvar=False) for e in embeddings], axis=0)
    whitening = _power(within + _SHRINKAGE * np.trace(within) / d * np.eye(d), -0.5)
    between = [np.zeros((d, d))]
    for e, columns in zip(embeddings, classes, strict=True):
        if len(e) < 2 * d:
            continue  # so few images differ between classes in every direction by chance
        z = (e - e.mean(0)) @ whitening
        between += [_between(z, number) for number in columns.values()]
    explained = np.eye(d) - np.linalg.inv(np.eye(d) + np.sum(between, axis=0))
    matrix = _power(np.eye(d) + emphasis * explained @ explained, 0.5) @ whitening
    centre = np.mean([e.mean(0) for e in embeddings], axis=0)
    return matrix, -matrix @ centre


def _between(z: np.ndarray, number: np.ndarray) -> np.ndarray:
    known = z[number >= 0] - z[number >= 0].mean(0)
    share = np.bincount(number[number >= 0]) / len(known)
    means = np.stack([known[number[number >= 0] == k].mean(0) for k in range(len(share))])
    return (means * share[:, None]).T @ means


def _power(symmetric: np.ndarray, exponent: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(symmetric)
    return (vectors * values**exponent) @ vectors.T

"""Alterations by kind, at any strength: what a copy may go through, beyond the suite that a certificate lists.

Kinds are left out of training one at a time, and others are held back altogether: what is refused of a kind that was never seen
says more than what is refused of one that was. Strength 0 leaves an image as it is, 1 is the most. A draw depends on the seed,
the name and the image's own bytes, so it is the same whatever else is altered. All act in the plane of the last two axes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from skimage.exposure import equalize_adapthist
from skimage.transform import ProjectiveTransform

from medsynth.imageset import ImageSet
from medsynth.language.words import did_you_mean
from medsynth.store.hashes import bytes_hash

Alteration = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]  # (planes, h, w) in 0..1

# at strength 1
_GAMMA, _WINDOW, _SHADE, _CLAHE = 3.0, 0.35, 0.6, 0.03
_TURN, _SCALE, _MOVE, _SHEAR = 20.0, 1.25, 0.15, 0.2  # degrees; -; of the width; -
_ELASTIC, _WAVE = 0.08, 0.1  # displacement and its correlation length, of the width
_CORNER, _ASPECT, _CROP = 0.15, 1.5, 0.45  # of the width; -; of the side that is cut off
_BOX, _BORDER, _LETTERS = 0.6, 0.2, 12  # side of the largest box, of the width; of the width; -
_BLEND, _HALF = 0.5, 0.5  # share of a stranger
_BLUR, _NOISE, _QUALITY, _COARSE = 0.06, 0.25, (95, 5), 0.85  # of the width; of the range; of JPEG; of the side that is lost


def altered(images: ImageSet, name: str, strength: float, *, seed: int, strangers: ImageSet | None = None) -> ImageSet:
    """The images after one alteration of KINDS; those of the kind "mixing" take an image of `strangers` for each.

    Clipped to `range`. Raises ValueError for a name that there is not, a strength outside 0..1, and strangers of another shape or
    none where they are needed.
    """
    if name not in ALTERATIONS:
        raise ValueError(f"alteration {name!r}; {did_you_mean(name, ALTERATIONS)}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength {strength}; expected a number from 0, nothing, to 1")
    if name in KINDS["mixing"] and (strangers is None or strangers.images.shape[1:] != images.images.shape[1:]):
        given = "none" if strangers is None else f"those of {strangers.name}, {strangers.images.shape[1:]}"
        raise ValueError(f"{images.name}: {name!r} needs strangers of shape {images.images.shape[1:]}; got {given}")
    if strength == 0:
        return images
    out = _unit(images, images.images)
    for i, row in enumerate(images.row_hashes):
        rng = np.random.default_rng([seed, int(bytes_hash(name.encode()), 16) % 2**32, int(row[:16], 16)])
        planes = out[i].reshape(-1, *images.spatial[-2:])
        if name in KINDS["mixing"]:
            other = _unit(images, strangers.images[rng.integers(len(strangers))]).reshape(planes.shape)
            made = _MIXED[name](planes, strength, rng, other)
        else:
            made = ALTERATIONS[name](planes, strength, rng)
        out[i] = np.clip(made, 0, 1).reshape(out[i].shape)
    low, high = images.range
    changed = np.clip(out * np.float32(high - low) + np.float32(low), low, high)
    return images.with_images(changed, name=f"{images.name}/{name} {strength:g}")


def kind_of_alteration(name: str) -> str:
    """The kind that an alteration is of."""
    return next(kind for kind, names in KINDS.items() if name in names)


def _unit(images: ImageSet, values: np.ndarray) -> np.ndarray:
    low, high = images.range
    return ((values - low) / (high - low)).astype(np.float32)


# tone


def _inversion(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    # there is no half of it: half inverted is grey
    return 1 - x


def _window(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    low, high = rng.uniform(0.3, 1, 2) * _WINDOW * s
    return (x - low) / (1 - low - high)


def _equalisation(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    even = np.stack([equalize_adapthist(np.clip(p, 0, 1), clip_limit=_CLAHE) for p in x])
    return (1 - s) * x + s * even


def _gamma(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    return x ** (_GAMMA ** (s * _sign(rng)))


def _shading(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * math.pi)
    down, right = (np.linspace(-1, 1, n) for n in x.shape[1:])
    ramp = math.sin(angle) * down[:, None] + math.cos(angle) * right[None]
    return x * (1 + _SHADE * s * ramp / np.abs(ramp).max())


# geometry


def _affine(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    turn, shear = (np.array([_TURN * math.pi / 180, _SHEAR]) * s * rng.uniform(-1, 1, 2)).tolist()
    scale = _SCALE ** (s * rng.uniform(-1, 1))
    turned = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    moved = _MOVE * s * rng.uniform(-1, 1, 2)
    return _mapped(x, (turned @ np.array([[1, shear], [0, 1]])) / scale, moved)


def _aspect(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    stretch = _ASPECT ** (s * _sign(rng))
    return _mapped(x, np.diag([stretch**0.5, stretch**-0.5]), np.zeros(2))


def _crop(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    side = 1 - _CROP * s
    return _mapped(x, np.eye(2) * side, rng.uniform(-1, 1, 2) * (1 - side) / 2)


def _elastic(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    width = x.shape[-1]
    field = ndimage.gaussian_filter(rng.standard_normal((2, *x.shape[1:])), _WAVE * width, mode="nearest", axes=(1, 2))
    field *= _ELASTIC * s * width / np.hypot(*field).max()
    return _sampled(x, np.mgrid[: x.shape[1], : x.shape[2]] + field)


def _perspective(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    height, width = x.shape[1:]
    corners = np.array([[0, 0], [0, 1], [1, 1], [1, 0]]) * [width - 1, height - 1]
    moved = corners + rng.uniform(-1, 1, (4, 2)) * _CORNER * s * [width, height]
    found = ProjectiveTransform.from_estimate(corners, moved)
    down, right = np.mgrid[:height, :width]
    at = found(np.stack([right.ravel(), down.ravel()], 1))
    return _sampled(x, at.T[::-1].reshape(2, height, width))


def _mapped(x: np.ndarray, matrix: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Each pixel from where a linear map about the centre sends it; moved: (down, right), of the sides."""
    sides = np.array(x.shape[1:])
    centre = (sides - 1) / 2
    place = np.stack(np.mgrid[: sides[0], : sides[1]], -1) - centre
    return _sampled(x, (place @ matrix.T + centre + moved * sides).transpose(2, 0, 1))


def _sampled(x: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Planes (p, h, w) at the places (2, h, w), bilinear; beyond the edge lies the edge."""
    return np.stack([ndimage.map_coordinates(p, place, order=1, mode="nearest") for p in x])


# occlusion


def _box(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    sides = [max(1, round(_BOX * s * n * rng.uniform(0.7, 1))) for n in x.shape[1:]]
    top, left = (int(rng.integers(n - side + 1)) for n, side in zip(x.shape[1:], sides, strict=True))
    out = x.copy()
    out[:, top : top + sides[0], left : left + sides[1]] = rng.choice([0.0, 1.0, float(x.mean())])
    return out


def _text(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    height, width = x.shape[1:]
    page = Image.new("L", (width, height))
    draw = ImageDraw.Draw(page)
    for _ in range(math.ceil(3 * s)):
        word = "".join(rng.choice(list("ABCDEFGHKLMNRSTX0123456789"), max(1, round(_LETTERS * s))))
        font = ImageFont.load_default(size=max(6.0, height / 8))
        draw.text((rng.uniform(0, width / 2), rng.uniform(0, height * 0.9)), word, fill=255, font=font)
    ink = np.asarray(page, np.float32) / 255
    return x * (1 - ink) + ink * rng.choice([0.0, 1.0])


def _border(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    edge = [max(1, round(_BORDER * s * n)) for n in x.shape[1:]]
    out = np.full_like(x, rng.choice([0.0, 1.0]))
    inner = (slice(None), *(slice(e, n - e) for e, n in zip(edge, x.shape[1:], strict=True)))
    out[inner] = x[inner]
    return out


# mixing


def _blend(x: np.ndarray, s: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    return (1 - _BLEND * s) * x + _BLEND * s * other


def _half(x: np.ndarray, s: float, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    angle = rng.uniform(0, 2 * math.pi)
    down, right = (np.linspace(-1, 1, n) for n in x.shape[1:])
    along = math.sin(angle) * down[:, None] + math.cos(angle) * right[None]
    return np.where(along > np.quantile(along, 1 - _HALF * s), other, x)


# degradation


def _blur(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    return ndimage.gaussian_filter(x, _BLUR * s * x.shape[-1], mode="nearest", axes=(1, 2))


def _noise(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    return x + np.float32(_NOISE * s) * rng.standard_normal(x.shape, dtype=np.float32)


def _jpeg(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    best, worst = _QUALITY
    out = np.empty_like(x)
    for i, plane in enumerate(np.round(x * 255).astype(np.uint8)):
        buffer = io.BytesIO()
        Image.fromarray(plane).save(buffer, "JPEG", quality=round(best + s * (worst - best)))
        out[i] = np.asarray(Image.open(buffer), np.float32) / 255
    return out


def _resolution(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    height, width = x.shape[1:]
    small = max(2, round(width * (1 - _COARSE * s))), max(2, round(height * (1 - _COARSE * s)))
    planes = (
        Image.fromarray(p).resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BILINEAR) for p in x
    )
    return np.stack([np.asarray(p, np.float32) for p in planes])


def _sign(rng: np.random.Generator) -> float:
    """To the one side or the other, at least half as far as may be."""
    return float(rng.choice([-1, 1]) * rng.uniform(0.5, 1))


_MIXED = {"blend": _blend, "half": _half}
_ALONE: dict[str, dict[str, Alteration]] = {
    "tone": {
        "inversion": _inversion, "window": _window, "equalisation": _equalisation, "gamma": _gamma, "shading": _shading,
    },
    "geometry": {"affine": _affine, "elastic": _elastic, "perspective": _perspective, "aspect": _aspect, "crop": _crop},
    "occlusion": {"box": _box, "text": _text, "border": _border},
    "degradation": {"blur": _blur, "noise": _noise, "jpeg": _jpeg, "resolution": _resolution},
}  # fmt: skip
KINDS = {kind: tuple(named) for kind, named in _ALONE.items()} | {"mixing": tuple(_MIXED)}
ALTERATIONS = {name: change for named in (*_ALONE.values(), _MIXED) for name, change in named.items()}

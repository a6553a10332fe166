"""What people do to an image without making it another one: the attack suite, and the fixed gallery of transformed copies.

An attack is drawn anew for every image, from a seed and that image's bytes, so it is the same whatever else is attacked. The
gallery is the same list of transforms for every image: a private image stands in the gate together with its copies.
All of them act in the plane of the last two axes, and a volume's planes share one transform.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from medsynth.imageset import ImageSet

# bounds of the suite
SHIFT = 0.08  # of the width
ROTATION = 10.0  # degrees
ZOOM = (0.9, 1.1)
GAIN, OFFSET = 0.2, 0.2  # around 1; of the range
NOISE = 0.05  # sd, of the range
BLUR = 1 / 64  # sd, of the width
GAMMA = (0.7, 1.4)
JPEG_QUALITY = 50

# in the order in which several are applied: the patient is posed, then exposed, then the picture is stored
ATTACKS = ("copy", "flip", "shift", "rotation", "zoom", "blur", "gamma", "gain and offset", "noise", "jpeg")
STRENGTHS = ("drawn", "bound")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A similarity of the plane about the image's centre (mirror left and right, turn, scale, then shift), then an exposure."""

    angle: float = 0.0  # degrees, from right to down
    zoom: float = 1.0  # above 1 enlarges
    down: float = 0.0  # of the height
    right: float = 0.0  # of the width
    mirrored: bool = False
    gain: float = 1.0
    offset: float = 0.0  # of the range

    def __str__(self) -> str:
        parts = ["flip"] * self.mirrored
        parts += [f"rotation {self.angle:+g}"] * (self.angle != 0) + [f"zoom {self.zoom:g}"] * (self.zoom != 1)
        parts += [f"shift {self.down:+g} {self.right:+g}"] * (self.down != 0 or self.right != 0)
        parts += [f"gain {self.gain:g}, offset {self.offset:+g}"] * ((self.gain, self.offset) != (1.0, 0.0))
        return ", ".join(parts) or "copy"


def _gallery() -> tuple[Variant, ...]:
    upright = [Variant()]
    upright += [Variant(angle=a) for a in (-8.0, -4.0, 4.0, 8.0)]
    upright += [Variant(zoom=z) for z in (0.92, 1.08)]
    upright += [Variant(down=y, right=x) for y, x in itertools.product((-0.05, 0.0, 0.05), repeat=2) if (y, x) != (0.0, 0.0)]
    upright += [Variant(angle=a, zoom=z) for a, z in itertools.product((-6.0, 6.0), (0.94, 1.06))]
    # an image is rarely altered in one way alone
    sideways = ((-0.05, 0.0), (0.05, 0.0), (0.0, -0.05), (0.0, 0.05))
    anywhere = (*sideways, *itertools.product((-0.05, 0.05), repeat=2))
    upright += [Variant(zoom=z, down=y, right=x) for z, (y, x) in itertools.product((0.93, 1.07), anywhere)]
    upright += [Variant(angle=a, down=y, right=x) for a, (y, x) in itertools.product((-6.0, 6.0), sideways)]
    # where an exposure drives pixels out of the range their detail is lost, and only a copy that lost the same lies near
    upright += [Variant(gain=1.1, offset=0.15), Variant(offset=-0.15)]
    return tuple(Variant(**(vars(v) | {"mirrored": m})) for m in (False, True) for v in upright)


GALLERY = _gallery()
GALLERY_HASH = hashlib.blake2b("; ".join(map(str, GALLERY)).encode(), digest_size=8).hexdigest()


def transformed_copies(images: ImageSet) -> Iterator[tuple[str, ImageSet]]:
    """Every variant of GALLERY of all images, as (name, set); the first is the images themselves. Rows keep their order."""
    for v in GALLERY:
        yield str(v), images if v == Variant() else images.with_images(varied(images, v), name=f"{images.name}/{v}")


def orientations(images: ImageSet) -> Iterator[tuple[str, ImageSet]]:
    """Every way to order and reverse the axes of the images that keeps their shape, as (name, set); the first changes nothing.

    Of two that are mirror images of each other along the last axis one is left out: the gallery holds both. Files rarely say
    which way is up, and NIfTI arrays come transposed out of some readers.
    """
    axes = tuple(range(2, images.images.ndim))
    for order in itertools.permutations(axes):
        if any(images.images.shape[a] != images.images.shape[b] for a, b in zip(axes, order, strict=True)):
            continue
        for count, turned in ((k, some) for k in range(len(axes)) for some in itertools.combinations(axes[:-1], k)):
            if order == axes and not count:
                yield "as it is", images
                continue
            ordered, reverse = (" ".join(str(a - 2) for a in some) for some in (order, turned))
            name = f"axes {ordered}" + f", reversed {reverse}" * (count > 0)
            laid = np.ascontiguousarray(np.flip(images.images.transpose(0, 1, *order), turned))
            yield name, images.with_images(laid, name=f"{images.name}/{name}")


def varied(images: ImageSet, variant: Variant) -> np.ndarray:
    """One variant of the images, bilinear, clipped to `range`; where nothing was seen the nearest border pixel is repeated."""
    low, high = images.range
    moved = _resampled(images.images, variant, "edge", images.range)
    if (variant.gain, variant.offset) == (1.0, 0.0):
        return moved
    exposed = low + (moved - np.float32(low)) * np.float32(variant.gain) + np.float32(variant.offset * (high - low))
    return np.clip(exposed, low, high, dtype=np.float32)


def attacked(images: ImageSet, names: str | Sequence[str], *, seed: int, strength: str = "drawn") -> ImageSet:
    """The images after one attack or several, each drawn for each image; applied in the order of ATTACKS.

    strength: "drawn" uniformly within the suite's bounds (gamma and zoom on a logarithmic scale), or at a random end: "bound".
    What shift, rotation and zoom leave unseen is the nearest border pixel in one half of the images and the lowest value in
    the other. The draw depends on (seed, attack, the image's own bytes). Values are clipped to `range`.
    Raises ValueError for an unknown attack or strength.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    unknown = [n for n in names if n not in ATTACKS]
    if unknown or strength not in STRENGTHS:
        raise ValueError(f"attacks {list(names)}, strength {strength!r}; expected some of {ATTACKS} and one of {STRENGTHS}")
    low, high = images.range
    out = ((images.images - low) / (high - low)).astype(np.float32)
    for name in sorted(set(names), key=ATTACKS.index):
        if name == "copy":
            continue
        for i, row in enumerate(images.row_hashes):
            rng = np.random.default_rng([seed, ATTACKS.index(name), int(row[:16], 16)])
            out[i] = np.clip(_one(out[i], name, rng, strength), 0, 1)
    if set(names) == {"copy"}:
        return images
    changed = np.clip(out * np.float32(high - low) + np.float32(low), low, high)
    return images.with_images(changed, name=f"{images.name}/{' + '.join(names)}")


def attack_pairs() -> list[tuple[str, str]]:
    """All pairs of different attacks; the exact copy is left out, because it changes nothing."""
    return list(itertools.combinations(ATTACKS[1:], 2))


def _one(image: np.ndarray, name: str, rng: np.random.Generator, strength: str) -> np.ndarray:
    """One attack on one image (c, *spatial) whose values lie in 0..1."""

    def draw() -> float:
        u = rng.uniform(-1, 1)
        return math.copysign(1.0, u) if strength == "bound" else u

    if name in ("flip", "shift", "rotation", "zoom"):
        fill = "edge" if rng.random() < 0.5 else "lowest"
        variant = {
            "flip": lambda: Variant(mirrored=True), "shift": lambda: Variant(down=SHIFT * draw(), right=SHIFT * draw()),
            "rotation": lambda: Variant(angle=ROTATION * draw()), "zoom": lambda: Variant(zoom=_between(ZOOM, draw())),
        }[name]()  # fmt: skip
        return _resampled(image[None], variant, fill, (0.0, 1.0))[0]
    if name == "gain and offset":
        return image * np.float32(1 + GAIN * draw()) + np.float32(OFFSET * draw())
    if name == "noise":
        return image + np.float32(NOISE) * rng.standard_normal(image.shape, dtype=np.float32)
    if name == "gamma":
        return image ** np.float32(_between(GAMMA, draw()))
    if name == "blur":
        sd = BLUR * image.shape[-1] * (0.5 + 0.5 * abs(draw()))
        return ndimage.gaussian_filter(image, sigma=(0,) * (image.ndim - 2) + (sd, sd), mode="nearest")
    return _through_jpeg(image)


def _between(bounds: tuple[float, float], u: float) -> float:
    """From the lower bound at u = -1 to the upper at u = 1, on a logarithmic scale."""
    low, high = bounds
    return math.sqrt(low * high) * (high / low) ** (u / 2)


def _through_jpeg(image: np.ndarray) -> np.ndarray:
    planes = np.round(image * 255).astype(np.uint8).reshape(-1, *image.shape[-2:])
    out = np.empty(planes.shape, dtype=np.float32)
    for i, plane in enumerate(planes):
        buffer = io.BytesIO()
        Image.fromarray(plane).save(buffer, "JPEG", quality=JPEG_QUALITY)
        out[i] = np.asarray(Image.open(buffer), dtype=np.float32) / 255
    return out.reshape(image.shape)


def _resampled(images: np.ndarray, variant: Variant, fill: str, interval: tuple[float, float]) -> np.ndarray:
    """Images (n, c, *spatial) in the variant's pose, every plane alike; elementwise, so a row is that of any other batch."""
    height, width = images.shape[-2:]
    if (variant.angle, variant.zoom, variant.down, variant.right) == (0.0, 1.0, 0.0, 0.0):
        return np.ascontiguousarray(images[..., ::-1]) if variant.mirrored else images
    cos, sin = math.cos(math.radians(variant.angle)), math.sin(math.radians(variant.angle))
    y, x = np.mgrid[:height, :width].astype(np.float64)
    y, x = y - (height - 1) / 2 - variant.down * height, x - (width - 1) / 2 - variant.right * width
    y, x = (cos * y - sin * x) / variant.zoom, (sin * y + cos * x) / variant.zoom
    y, x = y + (height - 1) / 2, (-x if variant.mirrored else x) + (width - 1) / 2
    # half a pixel beyond the centres of the outermost pixels is still inside the image
    outside = (y < -0.5) | (y > height - 0.5) | (x < -0.5) | (x > width - 0.5)
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    top, left = np.minimum(y.astype(int), height - 2), np.minimum(x.astype(int), width - 2)
    down, right = (y - top).astype(np.float32), (x - left).astype(np.float32)
    flat = images.reshape(-1, height * width)
    corner = (top * width + left).ravel()
    out = np.zeros(flat.shape, dtype=np.float32)
    for dy, dx in itertools.product((0, 1), repeat=2):
        weight = (down if dy else 1 - down) * (right if dx else 1 - right)
        out += flat[:, corner + dy * width + dx] * weight.ravel()
    if fill == "lowest":
        out[:, outside.ravel()] = interval[0]
    # a weighted mean of four pixels may step over the range by a rounding error
    return np.clip(out, *interval, out=out).reshape(images.shape)

"""What people do to an image without making it another one: the attack suite, and the fixed gallery of transformed copies.

An attack is drawn anew for every image, from a seed and that image's bytes, so it is the same whatever else is attacked. The
gallery is the same list of transforms for every image: a private image stands in the gate together with its copies.
All but the shift along the depth act in the plane of the last two axes, and a volume's planes share one transform.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy import ndimage

from medsynth.imageset import ImageSet
from medsynth.store.hashes import bytes_hash

# bounds of the suite
SHIFT = 0.08  # of the width
ROTATION = 10.0  # degrees
ZOOM = (0.9, 1.1)
GAIN, OFFSET = 0.2, 0.2  # around 1; of the range
NOISE = 0.05  # sd, of the range
BLUR = 1 / 64  # sd, of the width
GAMMA = (0.7, 1.4)
JPEG_QUALITY = 50
DEPTH = 1 / 8  # of the planes of a stack, but one at least: how far along the depth a stack is moved

# in the order in which several are applied: the patient is posed, then exposed, then the picture is stored
ATTACKS = ("copy", "flip", "shift", "rotation", "zoom", "blur", "gamma", "gain and offset", "noise", "jpeg")
PLANES = "planes"  # the attack on stacks alone; last, since it commutes with all that acts within planes
STRENGTHS = ("drawn", "bound")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A similarity of the plane about the image's centre (mirror left and right, turn, scale, then shift), then an exposure.

    Stacks are moved along their depth first, by whole planes; where none was seen the outermost one is repeated, or is empty.
    """

    angle: float = 0.0  # degrees, from right to down
    zoom: float = 1.0  # above 1 enlarges
    down: float = 0.0  # of the height
    right: float = 0.0  # of the width
    mirrored: bool = False
    gain: float = 1.0
    offset: float = 0.0  # of the range
    through: float = 0.0  # of the depth, towards the last plane; rounded to whole planes, at least one
    empty: bool = False

    def __str__(self) -> str:
        parts = ["flip"] * self.mirrored
        parts += [f"rotation {self.angle:+g}"] * (self.angle != 0) + [f"zoom {self.zoom:g}"] * (self.zoom != 1)
        parts += [f"shift {self.down:+g} {self.right:+g}"] * (self.down != 0 or self.right != 0)
        parts += [f"gain {self.gain:g}, offset {self.offset:+g}"] * ((self.gain, self.offset) != (1.0, 0.0))
        parts += [f"depth {self.through:+g}" + ", empty" * self.empty] * (self.through != 0)
        return ", ".join(parts) or "copy"


def _posed() -> list[Variant]:
    posed = [Variant()]
    posed += [Variant(angle=a) for a in (-8.0, -4.0, 4.0, 8.0)]
    posed += [Variant(zoom=z) for z in (0.92, 1.08)]
    posed += [Variant(down=y, right=x) for y, x in itertools.product((-0.05, 0.0, 0.05), repeat=2) if (y, x) != (0.0, 0.0)]
    return posed + [Variant(angle=a, zoom=z) for a, z in itertools.product((-6.0, 6.0), (0.94, 1.06))]


# where an exposure drives pixels out of the range their detail is lost, and only a copy that lost the same lies near
_EXPOSED = [Variant(gain=1.1, offset=0.15), Variant(offset=-0.15)]


def _gallery() -> tuple[Variant, ...]:
    # an image is rarely altered in one way alone
    sideways = ((-0.05, 0.0), (0.05, 0.0), (0.0, -0.05), (0.0, 0.05))
    anywhere = (*sideways, *itertools.product((-0.05, 0.05), repeat=2))
    upright = _posed()
    upright += [Variant(zoom=z, down=y, right=x) for z, (y, x) in itertools.product((0.93, 1.07), anywhere)]
    upright += [Variant(angle=a, down=y, right=x) for a, (y, x) in itertools.product((-6.0, 6.0), sideways)]
    return tuple(replace(v, mirrored=m) for m in (False, True) for v in upright + _EXPOSED)


def _stack_gallery() -> tuple[Variant, ...]:
    # in deep stacks half an eighth is a step of its own
    steps = itertools.product((-DEPTH, DEPTH, -DEPTH / 2, DEPTH / 2), (False, True))
    moved = [*_posed(), *_EXPOSED, Variant(mirrored=True)]
    return (*GALLERY, *(replace(v, through=t, empty=e) for t, e in steps for v in moved))


GALLERY = _gallery()
STACK_GALLERY = _stack_gallery()


def gallery_hash(spatial_dims: int) -> str:
    """Of the list of variants that images of so many dimensions are compared in, 16 hex digits."""
    listed = GALLERY if spatial_dims == 2 else STACK_GALLERY
    return bytes_hash("; ".join(map(str, listed)).encode(), bits=64)


def transformed_copies(images: ImageSet) -> Iterator[tuple[str, ImageSet]]:
    """Every variant of GALLERY, of stacks of STACK_GALLERY, of all images, as (name, set); the first is the images themselves.

    Rows keep their order. Of variants that move a stack by equally many planes one is made.
    """
    stacks, made = len(images.spatial) == 3, set()
    for v in STACK_GALLERY if stacks else GALLERY:
        same = replace(v, through=_planes(v.through, images.spatial[0])) if stacks else v
        if same not in made:
            made.add(same)
            yield str(v), images if v == Variant() else images.with_images(varied(images, v), name=f"{images.name}/{v}")


def gallery_names(images: ImageSet) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The transformed copies and the presentations of such images, by name; at least one image."""
    # neither depends on how large planes are, and small ones are made at once
    thin = np.zeros((1, 1, *images.spatial[:-2], *[4] * 2), dtype=np.float32)
    first = images.select([0])
    small = ImageSet(images=thin, patient=first.patient, unit="1", range=(0, 1), name=images.name)
    return tuple(name for name, _ in transformed_copies(small)), tuple(name for name, _ in presentations(first))


def orientations(images: ImageSet) -> Iterator[tuple[str, ImageSet]]:
    """Every way to order and reverse the axes of the images, as (name, set); the first changes nothing.

    Rows and columns may change places whatever their number: feature maps see them at one size. Other axes change places where
    that keeps the shape. Of two that are mirror images of each other along the last axis one is left out: the gallery holds
    both. Files rarely say which way is up, and NIfTI arrays come transposed out of some readers.
    """
    shape, axes = images.images.shape, tuple(range(2, images.images.ndim))
    for order in itertools.permutations(axes):
        in_plane = order[:-2] == axes[:-2]
        if not in_plane and any(shape[a] != shape[b] for a, b in zip(axes, order, strict=True)):
            continue
        spacing = None if images.spacing is None else tuple(images.spacing[a - 2] for a in order)
        for count, turned in ((k, some) for k in range(len(axes)) for some in itertools.combinations(axes[:-1], k)):
            if order == axes and not count:
                yield "as it is", images
                continue
            ordered, reverse = (" ".join(str(a - 2) for a in some) for some in (order, turned))
            name = f"axes {ordered}" + f", reversed {reverse}" * (count > 0)
            laid = np.ascontiguousarray(np.flip(images.images.transpose(0, 1, *order), turned))
            yield name, images.with_images(laid, spacing=spacing, name=f"{images.name}/{name}")


def presentations(images: ImageSet) -> Iterator[tuple[str, ImageSet]]:
    """Every orientation of the images in both polarities, as (name, set): how one picture may be stored; first as it is."""
    for name, laid in orientations(images):
        yield name, laid
        yield f"{name}, inverted", laid.with_images(inverted(laid), name=f"{laid.name}/inverted")


def every_way(images: ImageSet) -> Iterator[ImageSet]:
    """Every presentation of the images, and its mirror image: all ways to store one picture, where no gallery holds any."""
    for _, laid in presentations(images):
        yield laid
        yield laid.with_images(laid.images[..., ::-1])


def inverted(images: ImageSet) -> np.ndarray:
    """The images in the other polarity: `range` mirrored, black for white, float32."""
    low, high = images.range
    # in double precision, so that an image inverted twice is the image
    return np.clip((low + high) - images.images.astype(np.float64), low, high).astype(np.float32)


def varied(images: ImageSet, variant: Variant) -> np.ndarray:
    """One variant of the images, bilinear, clipped to `range`; where nothing was seen the nearest border pixel is repeated."""
    low, high = images.range
    stored = images.images
    if variant.through:
        fill = "lowest" if variant.empty else "edge"
        stored = _through(stored, _planes(variant.through, images.spatial[0]), fill, low)
    moved = _resampled(stored, variant, "edge", images.range)
    if (variant.gain, variant.offset) == (1.0, 0.0):
        return moved
    exposed = low + (moved - np.float32(low)) * np.float32(variant.gain) + np.float32(variant.offset * (high - low))
    return np.clip(exposed, low, high, dtype=np.float32)


def attacked(images: ImageSet, names: str | Sequence[str], *, seed: int, strength: str = "drawn") -> ImageSet:
    """The images after one attack or several, each drawn for each image; applied in the order of ATTACKS.

    strength: "drawn" uniformly within the suite's bounds (gamma and zoom on a logarithmic scale), or at a random end: "bound".
    What shift, rotation, zoom and a shift along the depth leave unseen is the nearest border pixel, or plane, in one half of
    the images and the lowest value in the other. The draw depends on (seed, attack, the image's own bytes). Values are clipped
    to `range`.
    Raises ValueError for an unknown attack or strength.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    suite = attacks_on(len(images.spatial))
    if set(names) - set(suite) or strength not in STRENGTHS:
        raise ValueError(f"attacks {list(names)}, strength {strength!r}; expected some of {suite} and one of {STRENGTHS}")
    low, high = images.range
    out = ((images.images - low) / (high - low)).astype(np.float32)
    for name in sorted(set(names), key=suite.index):
        if name == "copy":
            continue
        for i, row in enumerate(images.row_hashes):
            rng = np.random.default_rng([seed, suite.index(name), int(row[:16], 16)])
            out[i] = np.clip(_one(out[i], name, rng, strength), 0, 1)
    if set(names) == {"copy"}:
        return images
    changed = np.clip(out * np.float32(high - low) + np.float32(low), low, high)
    return images.with_images(changed, name=f"{images.name}/{' + '.join(names)}")


def attacks_on(spatial_dims: int) -> tuple[str, ...]:
    """The attacks on images of so many dimensions."""
    return ATTACKS if spatial_dims == 2 else (*ATTACKS, PLANES)


def attack_pairs(spatial_dims: int = 2) -> list[tuple[str, str]]:
    """All pairs of different attacks; the exact copy is left out, because it changes nothing."""
    return list(itertools.combinations(attacks_on(spatial_dims)[1:], 2))


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
    if name == PLANES:
        fill = "edge" if rng.random() < 0.5 else "lowest"
        return _through(image[None], _planes(DEPTH * draw(), image.shape[-3]), fill, 0.0)[0]
    if name == "gain and offset":
        return image * np.float32(1 + GAIN * draw()) + np.float32(OFFSET * draw())
    if name == "noise":
        return image + np.float32(NOISE) * rng.standard_normal(image.shape, dtype=np.float32)
    if name == "gamma":
        return image ** np.float32(_between(GAMMA, draw()))
    if name == "blur":
        sd = BLUR * image.shape[-1] * (0.5 + 0.5 * abs(draw()))
        return ndimage.gaussian_filter(image, sd, mode="nearest", axes=(-2, -1))
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


def _planes(through: float, depth: int) -> int:
    """How many whole planes a share of the depth is: at least one, where it is any."""
    return 0 if through == 0 else int(math.copysign(max(1, round(abs(through) * depth)), through))


def _through(images: np.ndarray, planes: int, fill: str, lowest: float) -> np.ndarray:
    """Stacks (n, c, d, h, w) moved by whole planes towards the last one."""
    from_plane = np.arange(images.shape[-3]) - planes
    moved = images[..., np.clip(from_plane, 0, images.shape[-3] - 1), :, :]
    if fill == "lowest":
        moved[..., (from_plane < 0) | (from_plane >= images.shape[-3]), :, :] = lowest
    return moved


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

"""One image in one file, PNG or NIfTI: read strictly, and written with nothing in the file but pixels."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from medsynth.imageset import ImageSet

PNG, NIFTI = "PNG", "NIfTI"
SUFFIXES = {".png": PNG, ".nii": NIFTI, ".nii.gz": NIFTI}  # a DICOM reader enters here, and in `read`
_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
_FRAMES = (b"acTL", b"fcTL", b"fdAT")  # chunks of animated PNG; Pillow overlooks some
_WORLD = ("RL", "AP", "SI")
_NIFTI_2 = ((540).to_bytes(4, "little"), (540).to_bytes(4, "big"))
_MM = {"meter": 1000.0, "mm": 1.0, "micron": 1e-3, "unknown": 1.0}
_DAMAGED = (
    OSError, EOFError, SyntaxError, ValueError, OverflowError, struct.error, zlib.error, Image.DecompressionBombError,
    nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError,
    nibabel.wrapstruct.WrapStructError,
)  # fmt: skip


class UnreadableError(ValueError):
    """A damaged file: it is not what its name says, or ends early. Files of another kind are plain ValueErrors."""

    reason = "cannot be read"


class NotFiniteError(UnreadableError):
    """A file whose pixels hold NaN or infinity."""

    reason = "not finite"


@dataclass(frozen=True)
class Picture:
    """What one file holds.

    stored: (h, w) or (d, h, w), the numbers in the file; a NIfTI may say that they stand for slope * stored + intercept.
    span: the least and greatest value that the file's type can hold; None where that says nothing about the values.
    spacing: mm per axis of `stored`; orientation: NIfTI axis codes in stored order, e.g. "RAS". None where not known.
    besides: what there is in the file that may be another image, "" if nothing.
    """

    stored: np.ndarray
    span: tuple[float, float] | None
    spacing: tuple[float, ...] | None = None
    orientation: str | None = None
    slope: float = 1.0
    intercept: float = 0.0
    besides: str = ""

    @property
    def values(self) -> np.ndarray:
        """What the numbers stand for, float64, same shape; may hold NaN."""
        return self.stored.astype(np.float64) * self.slope + self.intercept


def kind_of(path: Path) -> str | None:
    """PNG or NIfTI by the file's name, None for any other."""
    name = path.name.lower()
    return next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), None)


def read(path: Path) -> Picture:
    """Read one file; UnreadableError if it is damaged, ValueError if it is not one greyscale image or volume, and no more."""
    picture = _read(path)
    if picture.besides:
        raise ValueError(
            f"{path.name}: holds {picture.besides}, which would not be compared with; expected one image and nothing after it: "
            "save each image to a file of its own"
        )
    return picture


def _read(path: Path) -> Picture:
    return _read_png(path) if kind_of(path) == PNG else _read_nifti(path)


def _read_png(path: Path) -> Picture:
    content = path.read_bytes()
    chunks, end = _chunks(content)
    if content[:8] != b"\x89PNG\r\n\x1a\n" or not chunks:
        raise UnreadableError(f"{path.name}: cannot be read: not a PNG file, or a damaged one")
    depth, colour = content[24], content[25]
    if colour != 0:
        raise ValueError(f"{path.name}: a PNG in {_COLOURS.get(colour, 'unknown colours')}; expected grey: convert it to grey")
    if depth not in (8, 16):
        raise ValueError(f"{path.name}: a PNG of {depth} bit; expected 8 or 16 bit grey: convert it to 8 bit grey")
    if any(kind in _FRAMES for kind, _ in chunks):
        raise ValueError(f"{path.name}: an animated PNG, or a part of one; expected one opaque grey image: convert it to grey")
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            pixels, transparent = np.array(image), "transparency" in image.info
    except _DAMAGED as error:
        raise UnreadableError(f"{path.name}: cannot be read ({_one_line(error)})") from error
    if transparent:
        raise ValueError(f"{path.name}: a PNG with a transparent grey value; expected one opaque grey image: convert it to grey")
    return Picture(pixels, (0.0, float(2**depth - 1)), besides=_after(content[end:]))


def _chunks(content: bytes) -> tuple[list[tuple[bytes, bytes]], int]:
    """(kind, body) of a PNG's chunks, and where the last ends; none where a header, an end or a checksum is amiss."""
    # Pillow forgives some checksums that do not hold
    at, kind, chunks = 8, b"", []
    while kind != b"IEND":
        length, kind = int.from_bytes(content[at : at + 4]), content[at + 4 : at + 8]
        end = at + 8 + length
        if len(kind) < 4 or (at == 8) != (kind == b"IHDR") or zlib.crc32(content[at + 4 : end]) != _checksum(content, end):
            return [], at
        chunks.append((kind, content[at + 8 : end]))
        at = end + 4
    return chunks, at


def _checksum(content: bytes, at: int) -> int:
    return int.from_bytes(content[at : at + 4]) if len(content) >= at + 4 else -1


def _after(rest: bytes) -> str:
    # zeros fill a file up to a round size
    return f"{len(rest)} bytes after its image" if any(rest) else ""


def _read_nifti(path: Path) -> Picture:
    # a file that may not be opened is no damaged one
    content = path.read_bytes()
    try:
        if path.name.lower().endswith(".gz"):
            # at once, and not as far as there are pixels: the checksum comes last
            content = gzip.decompress(content)
        kind = nibabel.Nifti2Image if content[:4] in _NIFTI_2 else nibabel.Nifti1Image
        image = kind.from_bytes(content)
        raw = np.asarray(image.dataobj.get_unscaled())
        slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
        header, affine = image.header, image.affine
        zooms, length = header.get_zooms(), header.get_xyzt_units()[0]
        placed = bool(header["sform_code"]) or bool(header["qform_code"])
        besides = _after(content[image.dataobj.offset + raw.nbytes :])
    except (*_DAMAGED, KeyError) as error:
        raise UnreadableError(f"{path.name}: cannot be read ({_one_line(error)})") from error
    if raw.dtype.kind not in "uif":
        raise ValueError(f"{path.name}: pixels of type {raw.dtype}; expected one integer or float per pixel")
    shape = raw.shape
    while raw.ndim > 2 and raw.shape[-1] == 1:
        raw = raw[..., 0]
    if raw.ndim not in (2, 3) or 0 in raw.shape:
        raise ValueError(f"{path.name}: shape {shape}; expected one image (x, y) or one volume (x, y, z)")
    plain = (slope, intercept) == (1.0, 0.0)
    # the shortest decimal that is this float32: a header's 0.7 is 0.7, as in sets that were never NIfTI
    spacing = tuple(float(str(np.float32(z))) * _MM.get(length, 1.0) for z in zooms[: raw.ndim])[::-1]
    codes = nibabel.aff2axcodes(affine)[: raw.ndim] if placed and np.isfinite(affine).all() else (None,)
    return Picture(
        stored=raw.T,
        span=(0.0, float(np.iinfo(raw.dtype).max)) if plain and raw.dtype.kind == "u" and raw.dtype.itemsize <= 2 else None,
        spacing=spacing if all(0 < s < np.inf for s in spacing) else None,
        orientation=None if None in codes else "".join(codes),
        slope=slope,
        intercept=intercept,
        besides=besides,
    )


@dataclass(frozen=True)
class Encoding:
    """How integer codes in files stand for pixel values: value = low + step * code.

    files: "png8", "png16" (2D) or "nifti16"; shape (h, w) or (d, h, w); spacing in mm per axis; orientation as in Picture.
    """

    files: str
    unit: str
    range: tuple[float, float]
    step: float
    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None = None
    orientation: str | None = None

    def __post_init__(self) -> None:
        low, high = self.range
        if self.files not in ("png8", "png16", "nifti16"):
            raise ValueError(f"files {self.files!r}; expected 'png8', 'png16' or 'nifti16'")
        # as one chain of comparisons, which NaN fails too
        if not -np.inf < low < high < np.inf or not 0 < self.step < np.inf:
            raise ValueError(f"range {self.range} and step {self.step}; expected low < high and a positive step")
        if len(self.shape) not in ((2, 3) if self.files == "nifti16" else (2,)) or min(self.shape) < 1:
            raise ValueError(f"shape {self.shape}; expected (h, w)" + (" or (d, h, w)" if self.files == "nifti16" else ""))
        if len(self.shape) == 3 and self.shape[0] == 1:
            # NIfTI does not tell it from an image
            raise ValueError(f"shape {self.shape}: a volume of one slice; make it an image, (h, w)")
        if self.orientation is not None:
            axes = [next((pair for pair in _WORLD if code in pair), code) for code in self.orientation]
            if len(axes) != len(self.shape) or len(set(axes) & set(_WORLD)) != len(axes):
                raise ValueError(f"orientation {self.orientation!r}; expected one of R or L, A or P, S or I per axis, e.g. 'RAS'")

    @classmethod
    def for_images(cls, images: ImageSet) -> Encoding:
        """The encoding in which to write a set: PNG of 8 bit where that holds images exactly, else of 16; of volumes NIfTI.

        Images that came from NIfTI files go into such files again. The range is spread over all codes, except that whole numbers,
        such as HU, stay whole in NIfTI. Raises ValueError where there is more than one channel.
        """
        if images.images.shape[1] != 1:
            raise ValueError(
                f"{images.name}: {images.images.shape[1]} channels; only images of one channel can be written to files"
            )
        low, high = images.range
        names = images.attributes.get("file", [])
        if len(images.spatial) == 3 or any(kind_of(Path(name)) == NIFTI for name in names):
            step = (high - low) / _LARGEST["nifti16"]
            if step < 1 and low == round(low) and (images.images == np.rint(images.images)).all():
                step = 1.0
            files = "nifti16"
        else:
            coarse = cls("png8", images.unit, images.range, (high - low) / _LARGEST["png8"], images.spatial)
            # but for the last bit of a float: 8 bit images may have been scaled in another order
            exact = np.allclose(coarse.values(coarse.codes(images.images)), images.images, rtol=0, atol=1e-6 * (high - low))
            files = "png8" if exact else "png16"
            step = (high - low) / _LARGEST[files]
        return cls(files, images.unit, images.range, step, images.spatial, images.spacing, images.orientation)

    @property
    def suffix(self) -> str:
        """Of the files, with its dot."""
        return ".nii.gz" if self.files == "nifti16" else ".png"

    def codes(self, values: np.ndarray) -> np.ndarray:
        """The nearest codes of pixel values, uint8 or uint16, same shape."""
        nearest = np.rint((values.astype(np.float64) - self.range[0]) / self.step)
        return np.clip(nearest, 0, _LARGEST[self.files]).astype(np.uint8 if self.files == "png8" else np.uint16)

    def values(self, codes: np.ndarray) -> np.ndarray:
        """The pixel values that codes stand for, float32, same shape."""
        return np.clip(self.range[0] + self.step * codes.astype(np.float64), *self.range).astype(np.float32)

    def to_bytes(self, values: np.ndarray) -> bytes:
        """A whole file holding (h, w) or (d, h, w): the same bytes for the same codes, with no name, time, text or history."""
        codes = self.codes(values)
        return self._nifti(codes) if self.files == "nifti16" else _png(codes)

    def besides_pixels(self, content: bytes) -> str:
        """What the bytes of a file that `read` accepts hold beside what `to_bytes` writes; "" if nothing.

        How well pixels are packed differs between versions of zlib, so they are compared unpacked, and all around them as bytes.
        """
        try:
            return _besides_nifti(content, self) if self.files == "nifti16" else _besides_png(content)
        except zlib.error as error:
            return f"pixels that do not unpack ({error})"

    def read(self, path: Path) -> np.ndarray:
        """The pixel values of a file of this encoding, float32; UnreadableError if it is damaged, ValueError if it is another."""
        if kind_of(path) != (NIFTI if self.files == "nifti16" else PNG):
            raise ValueError(f"{path.name}: expected a file named *{self.suffix}")
        stored = _read(path).stored
        expected = np.dtype(np.uint8 if self.files == "png8" else np.uint16)
        if stored.dtype.newbyteorder("=") != expected or stored.shape != self.shape:
            raise ValueError(f"{path.name}: {stored.dtype} of shape {stored.shape}; the manifest says {expected} of {self.shape}")
        return self.values(stored)

    def _nifti(self, codes: np.ndarray) -> bytes:
        header = nibabel.Nifti1Header(endianness="<")
        header.set_data_dtype(np.uint16)
        header.set_data_shape(codes.shape[::-1])
        spacing = (self.spacing or (1.0,) * codes.ndim)[::-1]
        header.set_zooms(spacing)
        header.set_xyzt_units("mm" if self.spacing else "unknown")
        # for other programs; our own reader takes the exact numbers from the manifest
        header.set_slope_inter(self.step, self.range[0])
        header["vox_offset"] = 352
        if self.orientation:
            header.set_sform(_affine(self.orientation, spacing), code="scanner")
        raw = header.binaryblock + bytes(4) + codes.astype("<u2").tobytes()
        packed = bytearray(gzip.compress(raw, 6, mtime=0))
        packed[9] = 255  # the byte that would name the operating system
        return bytes(packed)


def as_read(images: ImageSet) -> ImageSet:
    """The images as a recipient of their files reads them, with the usual encoding of such a set."""
    encoding = Encoding.for_images(images)
    return images.with_images(encoding.values(encoding.codes(images.images)))


def _besides_png(content: bytes) -> str:
    chunks, end = _chunks(content)
    width, height, depth = int.from_bytes(content[16:20]), int.from_bytes(content[20:24]), content[24]
    if content[26:29] != bytes(3):
        return "pixels packed in an unusual way"
    odd = [kind for kind, _ in chunks if kind not in (b"IHDR", b"IDAT", b"IEND")]
    if odd or end < len(content):
        return f"a chunk {odd[0].decode('ascii', 'replace')!r}" if odd else f"{len(content) - end} bytes after its end"
    packed = b"".join(body for kind, body in chunks if kind == b"IDAT")
    return _unpacked(packed, zlib.MAX_WBITS, height * (1 + width * depth // 8))[1]


def _besides_nifti(content: bytes, encoding: Encoding) -> str:
    ours = encoding.to_bytes(np.full(encoding.shape, encoding.range[0]))
    if content[:10] != ours[:10]:
        return "a name, a time or a comment in its gzip header"
    empty = gzip.decompress(ours)
    unpacked, besides = _unpacked(content, zlib.MAX_WBITS | 16, len(empty))
    return besides or ("" if unpacked[:352] == empty[:352] else "another header than the manifest's")


def _unpacked(packed: bytes, window: int, size: int) -> tuple[bytes, str]:
    """What one stream unpacks to, and what there is besides `size` bytes of it."""
    stream = zlib.decompressobj(window)
    unpacked = stream.decompress(packed) + stream.flush()
    if len(unpacked) != size or not stream.eof:
        return unpacked, f"{len(unpacked)} bytes of pixels where {size} are expected"
    return unpacked, f"{len(stream.unused_data)} bytes after its pixels" if stream.unused_data else ""


_LARGEST = {"png8": 255, "png16": 65535, "nifti16": 65535}


def _png(codes: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(codes).save(buffer, "PNG")
    return buffer.getvalue()


def _affine(orientation: str, spacing: tuple[float, ...]) -> np.ndarray:
    """A 4 x 4 matrix of these axis codes, in which an image's third axis is the one that its codes leave over."""
    affine, left = np.zeros((4, 4)), [0, 1, 2]
    for column, (code, mm) in enumerate(zip(orientation, spacing, strict=True)):
        row = next(r for r, pair in enumerate(_WORLD) if code in pair)
        left.remove(row)
        affine[row, column] = mm if code == _WORLD[row][0] else -mm
    for column, row in enumerate(left, start=len(orientation)):
        affine[row, column] = 1.0
    affine[3, 3] = 1.0
    return affine


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__

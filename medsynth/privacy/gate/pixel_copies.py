"""Which images are a private image, or hold a plane of a private stack, pixel by pixel: no feature map has a say in this."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from medsynth.hashes import bytes_hash
from medsynth.imageset import ImageSet
from medsynth.privacy.gate.alterations import presentations

_CODES = 65535


class PixelCopies:
    """The images of a set, and the planes of its stacks, to be recognised in any orientation, mirrored, and in both polarities.

    codes: pixel values (any shape) to the integers that a file holds for them; images are alike when these are. By default the
    range is spread over 16 bits. Constant planes, as around a body, are nobody's.
    """

    def __init__(self, private: ImageSet, codes: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        low, high = private.range
        self._codes = codes or (lambda x: np.rint((x.astype(np.float64) - low) * (_CODES / (high - low))).astype(np.uint16))
        self._shape, self._patient_of = private.images.shape[1:], {}
        # of equal images the first counts
        for row, digest in self._digests(private):
            self._patient_of.setdefault(digest, int(private.patient[row]))

    def owners(self, candidates: ImageSet) -> dict[int, int]:
        """Row -> patient of the candidates that are, or hold a plane of, a private image."""
        found: dict[int, int] = {}
        for _, laid in presentations(candidates):
            # one that was turned on its side has another shape, and so other pixels
            if laid.images.shape[1:] != self._shape:
                continue
            for mirror in (laid, laid.with_images(laid.images[..., ::-1])):
                for row, digest in self._digests(mirror):
                    if digest in self._patient_of:
                        found.setdefault(row, self._patient_of[digest])
        return found

    def _digests(self, images: ImageSet) -> Iterator[tuple[int, str]]:
        """(row, digest) of every image, and of every plane that is not constant."""
        for row, image in enumerate(images.images):
            codes = self._codes(image)
            yield row, bytes_hash(codes.tobytes())
            if codes.ndim == 4:
                planes = (plane for plane in codes.swapaxes(0, 1) if plane.min() != plane.max())
                yield from ((row, bytes_hash(plane.tobytes())) for plane in planes)

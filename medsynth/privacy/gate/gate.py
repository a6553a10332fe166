"""The gate: no image passes that is closer than tau to a private image, or to a transformed copy of one."""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medsynth.evaluation.statistics import Estimate, share_of
from medsynth.imageset import ImageSet
from medsynth.privacy.gate.alterations import every_way, presentations, transformed_copies
from medsynth.privacy.gate.feature_table import (
    Copies,
    batched_features,
    feature_store,
    gallery_table,
    measurable,
    without_attributes,
)
from medsynth.privacy.gate.margin import indistinct, reach, refused
from medsynth.privacy.gate.search import CHUNK_ROWS, Gallery, Screen
from medsynth.store.hashes import bytes_hash

if TYPE_CHECKING:
    from medsynth.privacy.gate.feature_maps import FeatureMap

_CODES = 65535


@dataclass(frozen=True)
class Verdicts:
    """One entry for each candidate, in the candidates' order. Distances, patients and reasons are private: they say who is in.

    accepted: bool (n,). reason: str (n,), "" where accepted, else "copy", "too close", "constant" or "not finite".
    distance: float64 (n,), to the nearest private image or copy of one, NaN where not defined. patient: int64 (n,), that
    image's, -1 where not defined.
    """

    accepted: np.ndarray
    reason: np.ndarray
    distance: np.ndarray
    patient: np.ndarray

    @property
    def refused(self) -> Estimate:
        """Share of the candidates that were refused, with an exact interval; n = images."""
        return share_of(~self.accepted, n_of="images")


class Gate:
    """Refuses every candidate whose distance in phi to a private image, or a transformed copy of one, is not above tau.

    A candidate is measured in every presentation, and its distance is the least of them. Refused is whose measured distance is
    not above tau and the margin that phi's error asks for (`medsynth.privacy.gate.margin`), and who is a private image, or
    holds a plane of a private stack, pixel by pixel.
    private: at least one image. copies: yields (name, set) pairs with the rows of the set it is given, in their order.
    store: a folder where features of the copies are found again by content (`gallery_table`); None: they lie in a folder of
    their own in the system's temporary one, for the owner alone, and go with the gate. They are read `chunk_rows` at a time.

    A verdict depends on the candidate, the private set and phi alone, but for candidates within twice the margin of tau. Search
    is exact (see `Gallery`).
    Raises ValueError for an empty private set, tau that is not a finite distance above 0, features that are not float32 (n, d),
    or not finite for a private image, and for a phi that is seen to err by more than it states.
    """

    def __init__(
        self,
        private: ImageSet,
        phi: FeatureMap,
        tau: float,
        *,
        copies: Copies = transformed_copies,
        chunk_rows: int = CHUNK_ROWS,
        store: Path | None = None,
    ) -> None:
        if not len(private):
            raise ValueError(f"{private.name}: an empty private set; a gate needs at least one image to keep a distance from")
        if not (math.isfinite(tau) and tau > 0):
            raise ValueError(f"tau is {tau}; expected a finite distance above 0, as calibration on transformed copies gives it")
        if store is not None and copies is not transformed_copies:
            raise ValueError("only tables of the standard copies are kept: nothing tells others apart; leave out `store`")
        self.private, self.phi, self.tau = private, phi, float(tau)
        self.presentations = tuple(name for name, _ in presentations(private.select([0])))
        self._home = Path(tempfile.mkdtemp(prefix="gate-"))
        weakref.finalize(self, shutil.rmtree, self._home, ignore_errors=True)
        table = gallery_table(private, phi, store or self._home, copies=copies)
        self.copies = table.copies
        self.gallery = Gallery(table.file, chunk_rows=chunk_rows)
        self._pixel_copies = PixelCopies(private)

    def judge(self, candidates: ImageSet) -> Verdicts:
        """The verdict on each candidate, with its reason, distance and nearest patient.

        Constant images (each channel one value) and images without finite features are refused and not measured. Pixel copies
        are at distance 0; "copy" is also who cannot be told in phi from a private image or a copy of one.
        Raises ValueError for candidates whose shape, unit, range or spacing is not the private set's; None is any spacing.
        """
        reason, rows, features = self._measured(candidates)
        distance, patient = np.full(len(candidates), np.nan), np.full(len(candidates), -1)
        found = self.gallery.nearest(features.reshape(-1, self.gallery.dim))
        every = found.distance.reshape(len(self.presentations), len(rows))
        nearest = every.argmin(0), np.arange(len(rows))
        distance[rows] = every[nearest]
        patient[rows] = self.private.patient[found.row.reshape(every.shape)[nearest] % len(self.private)]
        close = np.where(indistinct(distance[rows], self.phi.error), "copy", "too close")
        reason[rows] = np.where(refused(distance[rows], self.tau, self.phi.error), close, "")
        for row, owner in self._copied(candidates, reason).items():
            reason[row], distance[row], patient[row] = "copy", 0, owner
        return Verdicts(reason == "", reason, distance, patient)

    def accepts(self, candidates: ImageSet) -> np.ndarray:
        """`judge(candidates).accepted` and no more, bool (n,), several times faster: for drawing until there are enough."""
        reason, rows, features = self._measured(candidates)
        close = self._screen.within(features.reshape(-1, self.gallery.dim)).reshape(len(self.presentations), len(rows))
        reason[rows] = np.where(close.any(0), "too close", "")
        reason[list(self._copied(candidates, reason))] = "copy"
        return reason == ""

    @cached_property
    def _screen(self) -> Screen:
        return Screen(self.gallery, reach(self.tau, self.phi.error), file=self._home / "sketch.npy")

    def _measured(self, candidates: ImageSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Reasons (n,), settled where no distance is needed or defined; the other rows, features (presentations, *, d)."""
        _check_alike(candidates, self.private)
        candidates = without_attributes(candidates)
        reason = np.full(len(candidates), "", dtype="<U10")
        reason[_constant(candidates.images)] = "constant"
        rows = np.flatnonzero(reason == "")
        # the first entry is for the case that there is no other
        none = np.empty((0, self.gallery.dim), dtype=np.float32)
        features = np.stack(
            [np.concatenate([none, *batched_features(self.phi, laid)]) for _, laid in presentations(candidates.select(rows))]
        )
        finite = np.all([measurable(one) for one in features], axis=0)
        reason[rows[~finite]] = "not finite"
        return reason, rows[finite], features[:, finite]

    def _copied(self, candidates: ImageSet, reason: np.ndarray) -> dict[int, int]:
        # a feature map that gives an image other features the second time must not let its copy pass
        found = self._pixel_copies.owners(without_attributes(candidates))
        return {row: owner for row, owner in found.items() if reason[row] != "constant"}


class PixelCopies:
    """The images of a set, and the planes of its stacks, to be recognised pixel by pixel: no feature map has a say in this.

    They are known in any orientation, mirrored, and in both polarities.

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
        for laid in every_way(candidates):
            # one that was turned on its side has another shape, and so other pixels
            if laid.images.shape[1:] != self._shape:
                continue
            for row, digest in self._digests(laid):
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


def stored_gate(private: ImageSet, phi: FeatureMap, tau: float) -> Gate:
    """A gate whose features are found again in the cache, as trained models are (`feature_store`)."""
    return Gate(private, phi, tau, store=feature_store())


def _constant(images: np.ndarray) -> np.ndarray:
    """Whether each channel of an image is one value, (n,)."""
    flat = images.reshape(*images.shape[:2], math.prod(images.shape[2:]))
    return (flat == flat[..., :1]).all(axis=(1, 2))


def _check_alike(candidates: ImageSet, private: ImageSet) -> None:
    for what, found, expected in (
        ("image shape", candidates.images.shape[1:], private.images.shape[1:]),
        ("unit", candidates.unit, private.unit),
        ("range", candidates.range, private.range),
    ):
        if found != expected:
            raise ValueError(f"{candidates.name}: {what} {found} differs from {private.name}'s {expected}; convert one of them")
    known = candidates.spacing is not None and private.spacing is not None
    # files keep spacings with different precision
    if known and not np.allclose(candidates.spacing, private.spacing, rtol=1e-4, atol=0):
        raise ValueError(
            f"{candidates.name}: spacing {candidates.spacing} mm differs from {private.name}'s {private.spacing} mm; resample "
            "one of them"
        )

"""The gate: no image passes that is closer than tau to a private image, or to a transformed copy of one."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medsynth.imageset import ImageSet
from medsynth.privacy.gate.alterations import orientations, transformed_copies
from medsynth.privacy.gate.feature_table import write_features
from medsynth.privacy.gate.search import CHUNK_ROWS, Gallery, Screen, measurable

if TYPE_CHECKING:
    from medsynth.privacy.gate.feature_maps import FeatureMap

log = logging.getLogger(__name__)

BATCH = 64  # images that the feature map is shown at a time
REASONS = ("", "copy", "too close", "constant", "not finite")

Copies = Callable[[ImageSet], Iterable[tuple[str, ImageSet]]]


@dataclass(frozen=True)
class Verdicts:
    """One entry for each candidate, in the candidates' order. Distances, patients and reasons are private: they say who is in.

    accepted: bool (n,). reason: str (n,), one of REASONS, "" where accepted. distance: float64 (n,), to the nearest private
    image or copy of one, NaN where not defined. patient: int64 (n,), that image's, -1 where not defined.
    """

    accepted: np.ndarray
    reason: np.ndarray
    distance: np.ndarray
    patient: np.ndarray


class Gate:
    """Judges candidates against all private images and their transformed copies; refused is whose distance is <= tau in phi.

    A candidate is measured in every orientation (`orientations`), and its distance is the least of them.
    private: at least one image. copies: yields (name, set) pairs with the rows of the set it is given, in their order.
    Features of the copies are kept in a file, readable by the owner alone, in a folder of their own inside `folder` (default:
    the system's temporary folder) that goes with the gate, and are read `chunk_rows` at a time.

    A verdict depends on the candidate, the private set and phi alone. Search is exact (see `Gallery`), and phi is shown
    batches of one size; if its rows depend on their company even so, images are shown to it one at a time. What is left to phi
    is to compute alike with any number of threads.
    Raises ValueError for an empty private set, tau that is not a finite distance above 0, or features that are not float32
    (n, d), or not finite for a private image.
    """

    def __init__(
        self,
        private: ImageSet,
        phi: FeatureMap,
        tau: float,
        *,
        copies: Copies = transformed_copies,
        chunk_rows: int = CHUNK_ROWS,
        folder: Path | None = None,
    ) -> None:
        if not len(private):
            raise ValueError(f"{private.name}: an empty private set; a gate needs at least one image to keep a distance from")
        if not (math.isfinite(tau) and tau > 0):
            raise ValueError(f"tau is {tau}; expected a finite distance above 0, as calibration on transformed copies gives it")
        self.private, self.phi, self.tau = private, phi, float(tau)
        self.copies: tuple[str, ...] = ()
        self.orientations = tuple(name for name, _ in orientations(private.select([0])))
        self._owner: list[np.ndarray] = []
        self._batch = BATCH if _ignores_company(phi, private) else 1
        if self._batch == 1:
            log.warning("%s: a row depends on the other images of its batch; images are measured one at a time", phi.name)
        self._home = Path(tempfile.mkdtemp(prefix="gate-", dir=folder))
        weakref.finalize(self, shutil.rmtree, self._home, ignore_errors=True)
        file = write_features(self._home / "features.npy", self._gallery_features(copies))
        self.patient = np.concatenate(self._owner)
        self.gallery = Gallery(file, chunk_rows=chunk_rows)
        # of equal images the first counts
        self._patient_of = dict(zip(private.row_hashes[::-1].tolist(), private.patient[::-1].tolist(), strict=True))

    def judge(self, candidates: ImageSet) -> Verdicts:
        """The verdict on each candidate, with its reason, distance and nearest patient.

        Constant images (each channel one value) and images without finite features are refused and not measured. An image at
        distance zero, or whose pixels are a private image's, is a copy.
        Raises ValueError for candidates whose shape, unit, range or spacing is not the private set's; None is any spacing.
        """
        reason, rows, features = self._measured(candidates)
        distance, patient = np.full(len(candidates), np.nan), np.full(len(candidates), -1)
        found = self.gallery.nearest(features.reshape(-1, self.gallery.dim))
        every = found.distance.reshape(len(self.orientations), len(rows))
        nearest = every.argmin(0), np.arange(len(rows))
        distance[rows] = every[nearest]
        patient[rows] = self.patient[found.row.reshape(every.shape)[nearest]]
        reason[rows] = np.where(distance[rows] == 0, "copy", np.where(distance[rows] <= self.tau, "too close", ""))
        for row, owner in self._pixel_copies(candidates, reason).items():
            reason[row], distance[row], patient[row] = "copy", 0, owner
        return Verdicts(reason == "", reason, distance, patient)

    def accepts(self, candidates: ImageSet) -> np.ndarray:
        """`judge(candidates).accepted` and no more, bool (n,), several times faster: for drawing until there are enough."""
        reason, rows, features = self._measured(candidates)
        close = self._screen.within(features.reshape(-1, self.gallery.dim)).reshape(len(self.orientations), len(rows))
        reason[rows] = np.where(close.any(0), "too close", "")
        reason[list(self._pixel_copies(candidates, reason))] = "copy"
        return reason == ""

    @cached_property
    def _screen(self) -> Screen:
        return Screen(self.gallery, self.tau, file=self._home / "sketch.npy")

    def _measured(self, candidates: ImageSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Reasons (n,), settled where no distance is needed or defined; the other rows, features (orientations, *, d)."""
        _check_alike(candidates, self.private)
        reason = np.full(len(candidates), "", dtype="<U10")
        reason[_constant(candidates.images)] = "constant"
        rows = np.flatnonzero(reason == "")
        # the first entry is for the case that there is no other
        none = np.empty((0, self.gallery.dim), dtype=np.float32)
        features = np.stack(
            [np.concatenate([none, *_features(self.phi, laid, self._batch)]) for _, laid in orientations(candidates.select(rows))]
        )
        finite = np.all([measurable(one) for one in features], axis=0)
        reason[rows[~finite]] = "not finite"
        return reason, rows[finite], features[:, finite]

    def _pixel_copies(self, candidates: ImageSet, reason: np.ndarray) -> dict[int, int]:
        """Row -> patient of the candidates that are a private image, pixel by pixel, whatever phi says."""
        # a feature map that gives an image other features the second time must not let its copy pass
        found: dict[int, int] = {}
        for _, laid in orientations(candidates):
            for row, digest in enumerate(laid.row_hashes.tolist()):
                if digest in self._patient_of and reason[row] != "constant":
                    found.setdefault(row, self._patient_of[digest])
        return found

    def _gallery_features(self, copies: Copies) -> Iterator[np.ndarray]:
        """Features of all copies of one batch of images, then of the next, entered with their patients."""
        for first in range(0, len(self.private), BATCH):
            some = self.private.select(np.arange(first, min(first + BATCH, len(self.private))))
            names = []
            for name, copied in copies(some):
                if len(copied) != len(some):
                    raise ValueError(f"{name}: {len(copied)} images from {len(some)}; expected one copy of each")
                for features in _features(self.phi, copied, self._batch):
                    if not (good := measurable(features)).all():
                        raise ValueError(
                            f"{self.private.name}: {self.phi.name} has no finite features for {int((~good).sum())} of the copies "
                            f"called {name} of images {first} to {first + len(some) - 1}, so nothing can be measured against "
                            "them; remove these images or choose another feature map"
                        )
                    yield features
                names.append(name)
                self._owner.append(some.patient)
            if not names:
                raise ValueError(f"{self.private.name}: no copies to compare with; expected at least the images themselves")
            self.copies = tuple(names)


def _features(phi: FeatureMap, images: ImageSet, batch: int) -> Iterator[np.ndarray]:
    """Features (*, d) of all images, shown to phi in batches of exactly `batch`: the last image fills the last batch up."""
    for first in range(0, len(images), batch):
        rows = np.arange(first, first + batch)
        features = phi(images.select(np.minimum(rows, len(images) - 1)))
        if features.ndim != 2 or len(features) != batch or features.dtype != np.float32:
            raise ValueError(
                f"{phi.name}: features of shape {features.shape} and type {features.dtype} for {batch} images; expected float32 "
                f"({batch}, d)"
            )
        yield features[: len(images) - first]


def _ignores_company(phi: FeatureMap, images: ImageSet) -> bool:
    """Whether, at the size of a batch, an image has the same features in every place and beside any others, bit for bit."""
    company = images.select(np.arange(BATCH) % len(images))
    # upside down at half the contrast, so that a single image has company too; the last place is where libraries tend to
    # compute in another way
    low = np.float32(images.range[0])
    pixels = np.concatenate([low + (company.images[:-1, ..., ::-1, :] - low) / 2, company.images[-1:]])
    (mixed,) = _features(phi, company.with_images(pixels), BATCH)
    (repeated,) = _features(phi, company.select(np.full(BATCH, BATCH - 1)), BATCH)
    return bool(np.array_equal(repeated, np.broadcast_to(mixed[-1], repeated.shape), equal_nan=True))


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

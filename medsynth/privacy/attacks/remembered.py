"""What a generator of few patients remembers of them, told apart from what is merely like them.

An image is compared with a patient plane by plane: the mean over its planes of the best correlation with one of the patient's. A
copy comes nearer to somebody who was trained on than 95 % of held-out patients come (Dar et al., arXiv:2307.01148). That alone
does not tell a memory from a likeness: the patient's planes that nobody trained on come as near, too. So samples are held against
those, and against held-out patients, by the same limit; and `nearer` is a test that likeness passes half of the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from medsynth.data.sources import Sources, cached_hearts, private_and_test, stacks_of_file
from medsynth.evaluation.roc import Scored, threshold_at
from medsynth.evaluation.statistics import Estimate, bootstrap_mean, clopper_pearson, share_of
from medsynth.imageset import ImageSet, concatenate
from medsynth.models.autoencoder import Autoencoder
from medsynth.models.weights import reconstruct
from medsynth.privacy.attacks.halves import Halves, one_image_each, planes_at, planes_halved
from medsynth.privacy.attacks.memorisation import correlations
from medsynth.resample import slices_of
from medsynth.settings.audits import MemorisationConfig
from medsynth.settings.config import PrivacyConfig, ThoraxConfig

Features = Callable[[ImageSet], np.ndarray]
# what is told of samples; each n counts patients, but that of "copies", which are samples
REMEMBERED, OTHER_HALF, OTHERS = "patients remembered", "by their other planes", "held-out patients"
COPIES, NEARER, MARGIN = "copies", "nearer by trained planes", "nearer by"


class Ward(NamedTuple):
    """Both halves of the patients who are trained on, and as many planes of held-out patients."""

    halves: Halves
    others: ImageSet


def ward(of: MemorisationConfig, data: str = "", modality: str = "mr", *, seed: int = 0) -> Ward:
    """Patients of a file, one stack of each (or images, of other modalities than "mr"); without one, phantom hearts.

    Private patients come first by number, and of them alone is trained on; all others that the file has are held out, test
    patients first. Raises ValueError as `private_and_test` does.
    """
    private, test = _sources(of, data, modality, seed)
    people = np.unique(private.patient)
    trained, left = private.of_patients(people[: of.patients]), private.of_patients(people[of.patients :])
    others = concatenate([test, left], test.name) if len(left) else test
    others = others.of_patients(np.unique(others.patient)[: of.others])
    how = {"planes": of.planes, "seed": seed}
    # of held-out patients, too, as many planes as a half has, and of either half by a coin
    return Ward(planes_halved(trained, **how), replace(planes_halved(others, **how).trained, name=others.name))


def recipe(of: MemorisationConfig, arm: str, patients: int) -> PrivacyConfig:
    """How one of `of.arms` is trained on so many patients."""
    kind, _, value = arm.partition("/")
    if kind == "passes":
        # the rate falls to nothing, or samples would show the last batches' noise
        how = {"epsilon": math.inf, "trainable": "full", "learning_rate": of.learning_rate, "schedule": "cosine"}
    else:
        how = {"epsilon": float(value), "trainable": "bias", "learning_rate": of.private_learning_rate}
    passes, batch = (int(value), of.batch) if kind == "passes" else (of.private_passes, of.private_batch)
    batch = min(batch, patients)
    return PrivacyConfig(math.ceil(passes * patients / batch), batch, warmup=of.warmup, **how)


class Memory:
    """Planes of a ward in features of one map, which must not be the gate's, and the likeness that makes an image a copy.

    limit: what 95 % of held-out patients stay below, a private output: it says where patients are.
    """

    def __init__(self, ward: Ward, features: Features) -> None:
        self.ward, self.features = ward, features
        self._trained, self._other_half = (self._planes(half) for half in ward.halves)
        self._others = self._planes(ward.others)
        best = likeness(self._others, self._trained).max(1)
        _, unit, size = np.unique(ward.others.patient, return_inverse=True, return_counts=True)
        self.limit = threshold_at(Scored.of(best, 1 / size[unit]), 0.05)

    def of(self, images: ImageSet) -> dict[str, Estimate]:
        """What images, each a sample of its own, show of the patients."""
        return self._shares(*self._near(images))

    def controls(self, autoencoder: Autoencoder) -> dict[str, dict[str, Estimate]]:
        """Of what no generator has a part in: patients in each other's place, their own other planes, and their copies."""
        own = self.ward.halves.trained
        near, apart, strange = self._near(own)
        others = self._shares(_without(near, own, own), _without(apart, own, self.ward.halves.held_out), strange)
        near, _, strange = self._near(self.ward.halves.held_out)
        # beside themselves all planes are near
        same = {REMEMBERED: self._share(near), OTHERS: self._share(strange), COPIES: self._copies(near)}
        return {"another patient": others, "the patient's other planes": same, "copy": self.of(reconstruct(autoencoder, own))}

    def _planes(self, images: ImageSet) -> _Planes:
        return _Planes.of(images, self.features)

    def _near(self, images: ImageSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shown = self._planes(images)
        return tuple(likeness(shown, other) for other in (self._trained, self._other_half, self._others))

    def _shares(self, near: np.ndarray, apart: np.ndarray, strange: np.ndarray) -> dict[str, Estimate]:
        return {
            REMEMBERED: self._share(near), OTHER_HALF: self._share(apart), OTHERS: self._share(strange),
            COPIES: self._copies(near), **self._nearer(near, apart),
        }  # fmt: skip

    def _share(self, near: np.ndarray) -> Estimate:
        """Of patients, who are the nearest of some copy."""
        found = np.unique(near.argmax(1)[near.max(1) > self.limit])
        return clopper_pearson(len(found), near.shape[1], n_of="patients")

    def _copies(self, near: np.ndarray) -> Estimate:
        return share_of(near.max(1) > self.limit, n_of="samples")

    def _nearer(self, near: np.ndarray, apart: np.ndarray) -> dict[str, Estimate]:
        """Of patients, whose trained planes some sample is nearer to than any sample is to their other planes; and by how much.

        A half by the coins of `planes_halved`, were nothing memorised, and independent between patients: the interval of the
        share is exact. The mean difference of likeness, then 0, sees less than a copy.
        """
        trained, held_out = (np.unique(half.patient) for half in self.ward.halves)
        margin = near[:, np.isin(trained, held_out)].max(0) - apart.max(0)
        share = share_of(margin > 0, n_of="patients")
        return {NEARER: share, MARGIN: bootstrap_mean(margin, held_out, seed=0)._replace(n_of="patients")}


class _Planes(NamedTuple):
    """Planes of a set: features (p, d), and for each the row that it is of and the patient."""

    features: np.ndarray
    row: np.ndarray
    patient: np.ndarray
    rows: int

    @classmethod
    def of(cls, images: ImageSet, features: Features) -> _Planes:
        numbered = replace(images, patient=np.arange(len(images)), split=None)
        planes = slices_of(numbered) if len(images.spatial) == 3 else numbered
        return cls(features(planes), planes.patient, images.patient[planes.patient], len(images))


def likeness(images: _Planes, people: _Planes) -> np.ndarray:
    """How like each image is to each patient, (rows, patients), -1 to 1; patients ascending.

    The mean over the planes of the image of the best correlation with a plane of the patient; of no planes, like nobody, -1.
    """
    order = np.argsort(people.patient, kind="stable")
    first = np.unique(people.patient[order], return_index=True)[1]
    best = np.maximum.reduceat(correlations(images.features, people.features[order]), first, axis=1)
    total, planes = np.zeros((images.rows, len(first))), np.bincount(images.row, minlength=images.rows)[:, None]
    np.add.at(total, images.row, best)
    return np.where(planes, total / np.maximum(planes, 1), -1.0)


def _without(near: np.ndarray, images: ImageSet, people: ImageSet) -> np.ndarray:
    """No image is like its own patient."""
    return np.where(images.patient[:, None] == np.unique(people.patient), -1.0, near)


def _sources(of: MemorisationConfig, data: str, modality: str, seed: int) -> Sources:
    if modality != "mr":
        return private_and_test(ThoraxConfig(of.size, of.patients, of.others), data, modality, seed)
    if data:
        return Sources(*(planes_at(one_image_each(part), of.size) for part in stacks_of_file(data, seed)))
    how = {"slices": 2 * of.planes, "size": of.size, "phases": ("ED",), "population": "private", "seed": seed}
    drawn = replace(cached_hearts(patients=of.patients + of.others, **how), name="phantom-heart")
    people = np.unique(drawn.patient)
    private, test = (drawn.of_patients(part) for part in np.split(people, [of.patients]))
    return Sources(private, replace(test, role="eval", name=f"{drawn.name}/test"))

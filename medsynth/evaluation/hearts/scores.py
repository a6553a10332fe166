"""All scores of one set of stacks, against the same held-out patients and in the same words: what a study has a row for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import pandas as pd

from medsynth.evaluation.features import Extractor, shipped_extractor
from medsynth.evaluation.fidelity import kid
from medsynth.evaluation.hearts.annotated import nominal_spacing, segmenter_for
from medsynth.evaluation.hearts.controllability import UNITS as _UNITS
from medsynth.evaluation.hearts.controllability import controllability, phase_accuracy, rows_by_condition
from medsynth.evaluation.hearts.labels import HeartSegmenter, SegmenterConfig, segment
from medsynth.evaluation.hearts.volumes import DAUM_FID, daum_fid, volume_features, volume_ms_ssim
from medsynth.evaluation.image_quality import psnr
from medsynth.evaluation.reference import Reference
from medsynth.evaluation.statistics import Estimate
from medsynth.imageset import ImageSet
from medsynth.ledger import Ledger
from medsynth.models.weights import reconstruct, shipped_autoencoder
from medsynth.phantoms.heart.heart import measure_volumes
from medsynth.resample import slices_of
from medsynth.settings.config import DPConfig
from medsynth.store.dependencies import code_hash
from medsynth.store.hashes import tensors_hash
from medsynth.store.runs import found_or_made

UNITS = {f"{name} error": unit for name, unit in _UNITS.items()}
Found = dict[str, Estimate | float]
_PAIRS = 200  # of stacks, for MS-SSIM
_FIDS = ("FID", "FID floor", "FID minus floor")


class HeartScores:
    """Held-out stacks (n, 1, d, h, w) that others are measured against, with a reference of their planes.

    What was measured before is found again: so of many sets only those that changed are measured.
    """

    def __init__(self, test: ImageSet, extractor: Extractor, segmenter: HeartSegmenter, *, seed: int, splits: int) -> None:
        self.test, self.extractor, self.segmenter, self.seed, self.splits = test, extractor, segmenter, seed, splits
        self._conditions: dict[str, Reference] = {}

    @property
    def units(self) -> dict[str, str]:
        """Units of the metrics; of stacks of which nobody has said how large they are, nominal ones."""
        sizes = UNITS if self.test.spacing else {metric: f"nominal {unit}" for metric, unit in UNITS.items()}
        return sizes | {"PSNR": "dB"}

    @cached_property
    def planes(self) -> Reference:
        """The planes of the held-out stacks; planes of one patient are one unit."""
        return self._reference(self.test)

    def quality(self, stacks: ImageSet) -> Found:
        """FID and KID of planes with floors, KID of volumes, MS-SSIM within the set, and the variant of Daum et al."""
        return self._found("quality", lambda: {"": self._quality(stacks)}, stacks)[""]

    def _quality(self, stacks: ImageSet) -> Found:
        planes = slices_of(stacks)
        reference = _as_large(self.planes, planes)
        # a drawn stack is one unit, its planes are not
        found: Found = dict(reference.score(planes))
        features = volume_features(stacks, self.extractor)
        units = {"patient": self.test.patient, "synthetic_patient": stacks.patient}
        found["KID of volumes"] = kid(self._volumes, features, **units, seed=self.seed)
        found["MS-SSIM"] = volume_ms_ssim(stacks, seed=self.seed, pairs=_PAIRS)._replace(n_of="stacks")
        found[DAUM_FID] = daum_fid(reference.features, self.extractor(planes))
        return found

    def control(self, stacks: ImageSet, asked: ImageSet) -> Found:
        """r, slope and absolute error of volumes and walls, asked against measured, and how often ES is smaller than ED.

        asked: stacks of the patients whose attributes were asked for, row by row; nothing where they do not say volumes.
        """
        table = asked.attributes
        if "lvedv" not in table or table["lvedv"].isna().all():
            return {}
        of = tensors_hash(self.segmenter.state_dict())
        return self._found(f"control {of}", lambda: {"": self._control(stacks, asked)}, stacks, asked)[""]

    def _control(self, stacks: ImageSet, asked: ImageSet) -> Found:
        table, measured = asked.attributes, self.measured(stacks)
        found: Found = {}
        for name, control in controllability(table, measured, person=asked.patient, seed=self.seed).items():
            found |= {f"{name} r": control.r, f"{name} slope": control.slope, f"{name} error": control.absolute_error}
        phases = phase_accuracy(table, measured, person=asked.patient, seed=self.seed)
        return found | {"cycle accuracy": phases.pairs}

    def by_condition(self, stacks: ImageSet, asked: ImageSet) -> dict[str, Found]:
        """FID of planes and KID of volumes for each condition, against held-out patients of the same.

        Conditions of fewer than ten stacks are left out, and the FID where it has no value at so few planes.
        """
        if not {"condition"} <= set(asked.attributes) & set(self.test.attributes):
            return {}
        return self._found("by condition", lambda: self._by_condition(stacks, asked), stacks, asked)

    def _by_condition(self, stacks: ImageSet, asked: ImageSet) -> dict[str, Found]:
        found = {}
        ours, theirs = (rows_by_condition(images.attributes) for images in (self.test, asked))
        features = volume_features(stacks, self.extractor)
        for name in (n for n in ours if n in theirs and min(len(ours[n]), len(theirs[n])) >= 10):
            units = {"patient": self.test.patient[ours[name]], "synthetic_patient": stacks.patient[theirs[name]]}
            near = kid(self._volumes[ours[name]], features[theirs[name]], **units, seed=self.seed)
            if name not in self._conditions:
                self._conditions[name] = self._reference(self.test.select(ours[name]))
            planes = slices_of(stacks.select(theirs[name]))
            fids = _as_large(self._conditions[name], planes).score(planes)
            found[name] = {k: v for k, v in fids.items() if k in _FIDS} | {"KID of volumes": near}
        return found

    def joined(self, stacks: ImageSet) -> np.ndarray:
        """Features (n, depth * dim) of stacks, plane after plane: what tells one stack from another."""
        return volume_features(stacks, self.extractor, pool="planes")

    def measured(self, stacks: ImageSet) -> pd.DataFrame:
        """Volumes and walls as the segmenter finds them; where spacing is not known, they are nominal."""
        return measure_volumes(segment(self.segmenter, stacks), stacks.spacing or nominal_spacing(stacks.spatial))

    def _found(self, what: str, measure: Callable[[], dict[str, Found]], *sets: ImageSet) -> dict[str, Found]:
        key = {"what": what, "sets": [images.content_hash for images in (self.test, *sets)], "extractor": self.extractor.name}
        key |= {"seed": self.seed, "splits": self.splits, "code": code_hash(__name__)}
        # pairs, since the order of metrics is that of a table
        found = found_or_made("scores", key, lambda: [[name, list(rows.items())] for name, rows in measure().items()])
        return {name: {m: Estimate(*v) if isinstance(v, list) else v for m, v in rows} for name, rows in found}

    def _reference(self, stacks: ImageSet) -> Reference:
        return Reference(slices_of(stacks), self.extractor, seed=self.seed, splits=self.splits)

    @cached_property
    def _volumes(self) -> np.ndarray:
        return volume_features(self.test, self.extractor)


def heart_scores(
    private: ImageSet, asked: ImageSet, test: ImageSet, data: str, *, config: DPConfig, splits: int, ledger: Ledger, seed: int
) -> tuple[HeartScores, dict[str, Found]]:  # fmt: skip
    """Scores against `test`, and what their ruler is worth: arm -> rows.

    Volumes and walls are measured by the segmenter of `segmenter_for`; data: the file that all sets are from, if any. Arms: the
    "segmenter", with its error where labels tell it; "real", what it finds on the stacks that are asked for; "reconstructed",
    the same after the public autoencoder: no sample can do better.
    """
    size = {"slices": config.slices, "size": config.size, "steps": config.segmenter_steps, "patients": config.segmenter_patients}
    segmenter, error = segmenter_for(private, (asked, test), data, SegmenterConfig(**size), ledger=ledger, seed=seed)
    scores = HeartScores(test, shipped_extractor(), segmenter, seed=seed, splits=splits)
    decoded = reconstruct(shipped_autoencoder(), asked, batch=16)
    kept = scores.control(decoded, asked) | {"PSNR": psnr(asked, decoded, seed=seed)}
    return scores, {"segmenter": error, "real": scores.control(asked, asked), "reconstructed": kept}


def _as_large(reference: Reference, planes: ImageSet) -> Reference:
    """The reference, with no more rows a side than there are planes."""
    return reference if len(planes) >= reference.rows else reference.at(len(planes))

"""A gate is tried: what it refuses of altered copies, strangers and further scans, and how near a generator's samples come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medsynth.evaluation.statistics import Estimate, bootstrap, clopper_pearson
from medsynth.imageset import ImageSet
from medsynth.ledger import Ledger
from medsynth.privacy.gate.calibration import attack_trial
from medsynth.privacy.gate.feature_maps import feature_map
from medsynth.privacy.gate.feature_table import feature_store
from medsynth.privacy.gate.gate import Gate
from medsynth.privacy.gate.thresholds import kind_of, threshold_for
from medsynth.results import Row


class Attacked(NamedTuple):
    """Images that a gate protects, those of unseen patients, and other scans of the protected ones where there are any."""

    private: ImageSet
    unseen: ImageSet
    scans: ImageSet | None = None

    def named(self, name: str) -> dict[str, ImageSet]:
        """Those that there are: "private NAME" and so on."""
        return {f"{part} {name}": images for part, images in self._asdict().items() if images is not None}


def scanned_twice(drawn: ImageSet, patients: int) -> Attacked:
    """The first scans of `patients` people, those of all others, and the second scans of the former.

    Raises ValueError unless each patient has two rows, one after the other.
    """
    first, second = np.arange(0, len(drawn), 2), np.arange(1, len(drawn), 2)
    people = drawn.patient[first]
    if len(drawn) % 2 or drawn.patients != len(people) or (people != drawn.patient[second]).any():
        raise ValueError(f"{drawn.name}: {len(drawn)} scans of {drawn.patients} patients; expected two of each, in turn")
    known, strangers = np.split(np.unique(people), [patients])
    again = drawn.select(second, name=f"{drawn.name}/second scans")
    return Attacked(drawn.select(first).of_patients(known), drawn.select(first).of_patients(strangers), again.of_patients(known))


def attack_rows(attacked: Attacked, maps: Sequence[str], *, ledger: Ledger, seed: int, chapter: str, dataset: str) -> list[Row]:
    """What gates in each feature map refuse, at the thresholds that ship and at an equal price. Lines in the ledger."""
    for images in attacked.named(dataset).values():
        ledger.read(images, stage="try the gate", output="result rows")
    rows: list[Row] = []
    for arm in maps:
        phi = feature_map(arm)
        tau = threshold_for(phi, len(attacked.private.spatial), kind_of(attacked.private)).tau
        trial = attack_trial(phi, attacked.private, attacked.unseen, seed=seed, other_scans=attacked.scans, store=feature_store())
        rows += trial.at_its_own_and_at_equal_price(tau, chapter=chapter, dataset=dataset, arm=arm, seed=seed)
    return rows


def nearness_of_samples(gate: Gate, drawn: ImageSet, *, seed: int) -> dict[str, Estimate]:
    """Median distance of samples to the nearest private image or copy, and the share that is refused; n = images.

    A private output: it says where patients are. What cannot be measured is refused, and has no distance.
    """
    found = gate.judge(drawn)
    # samples are nobody's
    median = _median(found.distance, np.arange(len(drawn)), seed)._replace(n_of="images")
    refused = clopper_pearson(int((~found.accepted).sum()), len(drawn), n_of="images")
    return {"median distance": median, "share too close": refused}


def nearness_of_patients(gate: Gate, images: ImageSet, *, seed: int) -> dict[str, Estimate]:
    """Median distance of patients' images to the nearest private image or copy; n = patients. A private output."""
    return {"median distance": _median(gate.judge(images).distance, images.patient, seed)}


def _median(distance: np.ndarray, unit: np.ndarray, seed: int) -> Estimate:
    finite = np.isfinite(distance)
    known = distance[finite]
    return bootstrap(lambda rows: float(np.median(known[rows])), unit[finite], seed=seed)

"""From candidates and a private set to a certified release: which threshold, found on whom, and what the ledger must know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.spatial.distance import cdist

from medsynth.data.folder import Values
from medsynth.imageset import ImageSet
from medsynth.ledger import Ledger
from medsynth.privacy.gate.alterations import every_way
from medsynth.privacy.gate.calibration import calibrate, may_miss, one_per_patient
from medsynth.privacy.gate.feature_maps import FeatureMap, feature_map
from medsynth.privacy.gate.gate import Gate, PixelCopies
from medsynth.privacy.gate.thresholds import Threshold, kind_of, threshold_for
from medsynth.privacy.release.certify import Release, certify, comparable
from medsynth.store.runs import free_place

MISS = 0.01  # share of copies, altered in any one way, that a threshold found on other people may let pass
# Of tau: what was saved, cropped, shifted or brightened again lies nearer, nobody else of public radiographs and of phantoms does
_AGAIN = 0.6
_SAVED_AGAIN = 0.1  # of tau, where the map takes everybody for everybody: what was saved or compressed again lies nearer
_MOST = 0.5  # a gate that refuses more than this share of people whom its map tells apart knows them
_ROWS = 1000  # of a matrix of distances that is held at a time


def gate_release(
    candidates: ImageSet,
    private: ImageSet,
    *,
    out: str | Path,
    ledger: Ledger,
    phi: str = "encoder",
    others: ImageSet | None = None,
    miss: float = MISS,
    tau: float | None = None,
    kind: str = "",
    sign: str | Path | None = None,
    unusable: Mapping[str, str] | None = None,
    values: Values | None = None,
    gate: Callable[..., Gate] = Gate,
) -> Release:
    """Release the candidates that keep their distance from every private image, with a certificate; see `certify`.

    phi: one of MAPS; of volumes "encoder" is "encoder_3d". The threshold is `tau`; or found on copies of images of `others`, of
    which `miss` may pass, and three times that of copies altered twice; or the one that ships for images of a `kind`, by default
    the private set's own. gate: makes the gate, as for `certify`. A line in the ledger for each set that is read. Raises
    ValueError where no threshold fits, and for `others` who are too few, synthetic, in the private set, or there twice.
    """
    free_place(Path(out))
    key = "encoder_3d" if (phi, len(private.spatial)) == ("encoder", 3) else phi
    measured_in = feature_map(key)
    strangers = None
    if tau is not None:
        threshold = Threshold(tau, "given by the operator, not calibrated")
    elif others is not None:
        strangers = _of_other_people(others, private, candidates, ledger, miss)
        # a pair of alterations is the rarer thing: three times as many may pass, as in the thresholds that ship
        found = calibrate(measured_in, strangers, seed=0, miss=miss, pair_miss=min(3 * miss, 0.5))
        threshold = Threshold(found.tau, found.sentence())
    else:
        threshold = _that_ships(measured_in, private, kind)
    # before, so that no comparison is without its line, whether it ends in a release or not
    price = "" if strangers is None else " and the share of other people it refuses"
    ledger.read(private, stage="gate", output=f"verdicts of the gate{price}, for {Path(out).name}")
    if strangers is not None:
        _nobody_twice(strangers, private, measured_in, threshold.tau)
    return certify(
        candidates, private, measured_in, tau=threshold.tau, how=threshold.how, calibrated=tau is None, out=out, key=key,
        sign=sign, strangers=strangers, unusable=unusable, values=values, gate=gate,
    )  # fmt: skip


def _that_ships(phi: FeatureMap, private: ImageSet, kind: str) -> Threshold:
    try:
        return threshold_for(phi, len(private.spatial), kind or (kind_of(private) if private.modality else ""))
    except ValueError as error:
        raise ValueError(f"{error}; name another with --modality, or give --others or --tau") from error


def _of_other_people(others: ImageSet, private: ImageSet, candidates: ImageSet, ledger: Ledger, miss: float) -> ImageSet:
    """One image each of people who are not in the private set, enough for a threshold; a line in the ledger."""
    comparable(others, private, "--others")
    if others.origin == "synthetic":
        raise ValueError(f"--others: {others.name} is synthetic, and a synthetic image is nobody's; give images of other people")
    if judged := sorted(PixelCopies(candidates).owners(others)):
        raise ValueError(
            f"--others: {_names(others, np.array(judged))} stand among the candidates too ({len(judged)} of {len(others)}): a "
            "threshold cannot be found on what it is to judge; leave them out"
        )
    try:
        may_miss(others.patients, miss)
    except ValueError as error:
        raise ValueError(f"--others: {error}; give images of more people, or let more copies pass with --miss") from error
    ledger.declare(private)
    if known := ledger.private_rows_in(others):
        raise ValueError(
            f"--others: {known} of {len(others)} images are in the private set, or in another that the ledger ({ledger.folder}) "
            "knows; a threshold found on them would be made from private images; give those of other people"
        )
    # how a threshold was found is published, the name of a hospital's folder is not
    return replace(one_per_patient(ledger.read(others, stage="gate", output="threshold")), name="a set of the sender's")


def _nobody_twice(others: ImageSet, private: ImageSet, phi: FeatureMap, tau: float) -> None:
    """ValueError where an image of other people is a private one again, saved in another way or altered, or is there twice."""
    apart, nearest = _nearest_other(others, phi)
    # where most lie farther from each other than a copy from its original, to lie near says something
    told_apart = bool(np.median(apart) > tau)
    again = tau * (_AGAIN if told_apart else _SAVED_AGAIN)
    found = Gate(private, phi, tau).judge(others)
    hers = np.flatnonzero((found.reason == "copy") | (found.distance <= again))
    if len(hers):
        raise ValueError(
            f"--others: {_names(others, hers)} show what private images show ({len(hers)} of {len(others)}): people of the "
            "private set cannot stand for others; leave them out"
        )
    if told_apart and found.refused.low > _MOST:
        raise ValueError(
            f"--others: {int((~found.accepted).sum())} of {len(others)} images lie within the threshold of private ones, which "
            "other people do not: they are of people of the private set, altered; give images of people who are not in it"
        )
    if apart.min() <= again:
        pair = np.sort([apart.argmin(), nearest[apart.argmin()]])
        raise ValueError(
            f"--others: {_names(others, pair)} are one image of, as it is said, two people; a threshold counts on each being "
            "another: leave one out, or give the patient numbers"
        )


def _nearest_other(others: ImageSet, phi: FeatureMap) -> tuple[np.ndarray, np.ndarray]:
    """Distance from each image, in whatever orientation and polarity, to the nearest other one, and its row; (n,) each."""
    upright, n = phi(others), len(others)
    distance, nearest = np.full(n, np.inf), np.zeros(n, dtype=int)
    for features in map(phi, every_way(others)):
        for first in range(0, n, _ROWS):
            rows = np.arange(first, min(first + _ROWS, n))
            measured = cdist(features[rows], upright)
            measured[rows - first, rows] = np.inf
            least = measured.argmin(1)
            nearer = measured[rows - first, least] < distance[rows]
            distance[rows[nearer]], nearest[rows[nearer]] = measured.min(1)[nearer], least[nearer]
    return distance, nearest


def _names(images: ImageSet, rows: np.ndarray) -> str:
    files = images.attributes["file"].tolist() if "file" in images.attributes else [f"row {i}" for i in range(len(images))]
    return " and ".join(files[i] for i in rows[:2])

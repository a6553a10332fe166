"""Make a gated release: write candidates to files, judge the files, keep what is far enough, certify it; or leave nothing."""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from medsynth.data.folder import Values
from medsynth.data.imagefile import Encoding
from medsynth.data.release_folder import CERTIFICATE, IMAGES, MANIFEST, README, SIGNATURE, manifest, write_manifest
from medsynth.evaluation.statistics import Estimate, share_of
from medsynth.imageset import ImageSet
from medsynth.privacy.gate.gate import Gate, PixelCopies, Verdicts
from medsynth.privacy.gate.margin import margin
from medsynth.privacy.release.certificate import (
    AUDIT,
    CANDIDATES,
    KEY,
    KEY_BYTES,
    Certificate,
    EncoderEntry,
    FileEntry,
    TauEntry,
    about,
    read_certificate,
    readme,
)
from medsynth.privacy.release.signature import load_private_key, public_half, signed
from medsynth.store.hashes import file_hash, sha256
from medsynth.store.runs import new_folder, package_versions

if TYPE_CHECKING:
    from medsynth.privacy.gate.feature_maps import FeatureMap

SMALLEST = 4  # pixels a side; of less, no copy can be shifted or turned
_EPOCH = 315532800  # 1980-01-01, the earliest time that archives can hold: times of files tell nothing


class Release(NamedTuple):
    """What `certify` made: its folder, images released, and how many candidates were refused for what reason.

    strangers: the share of other people's images that the same gate would refuse, as private as the audit it stands in.
    """

    folder: Path
    released: int
    refused: dict[str, int]
    certificate: Certificate
    strangers: Estimate | None


def certify(
    candidates: ImageSet,
    private: ImageSet,
    phi: FeatureMap,
    *,
    tau: float,
    how: str,
    out: str | Path,
    calibrated: bool = True,
    unusable: Mapping[str, str] | None = None,
    values: Values | None = None,
    key: str = "",
    sign: str | Path | None = None,
    strangers: ImageSet | None = None,
    gate: Callable[..., Gate] = Gate,
) -> Release:
    """Write candidates to files, judge the files against a private set, and release those that keep their distance in `out`.

    phi: a FeatureMap, `key` its name in the registry; tau, how, calibrated: the threshold, how it was chosen, and whether on
    altered copies of images; sign: an Ed25519 key in PEM;
    unusable: files of candidates that hold no usable image -> reason; values: what the loader of the private set was told;
    strangers: one image each of people who are not in the private set, to say what share of them the gate would refuse;
    gate: makes the gate from (private, phi, tau). `out` must not exist or be empty, and is not touched unless all succeeds.
    Raises ValueError for sets that cannot be compared, a threshold that is not positive, or when nothing is accepted.
    """
    out, unusable, values = Path(out), unusable or {}, values or Values()
    if not 0 < tau < math.inf:
        raise ValueError(f"tau is {tau}; expected a positive, finite distance")
    threshold = TauEntry(float(tau), how, calibrated)
    comparable(candidates, private)
    encoding = Encoding.for_images(candidates)
    # what no manifest may say is an error before hours of judging
    manifest(encoding)
    signer = None if sign is None else load_private_key(Path(sign))
    with new_folder(out) as temporary:
        release, audit, staged = (temporary / name for name in ("release", "audit", "staged"))
        (release / IMAGES).mkdir(parents=True)
        # nobody else may see candidates before they are judged: some are copies of patients
        for folder in (audit, staged):
            folder.mkdir(mode=0o700)
        # files are written, numbered and released in an order of chance that nobody can draw again
        order = secrets.SystemRandom().sample(range(len(candidates)), len(candidates))
        judged = _written(candidates, encoding, order, staged)
        sentry = gate(private, phi, tau)
        verdicts = _without_copies(sentry.judge(judged), same_files(judged, private, encoding))
        price = None if strangers is None else _price(sentry, strangers)
        refused = Counter(verdicts.reason[~verdicts.accepted].tolist()) + Counter(unusable.values())
        names = _release(staged, release / IMAGES, encoding, verdicts.accepted)
        if not names:
            found = ", ".join(f"{n} {reason}" for reason, n in sorted(refused.items()))
            raise ValueError(f"none of {refused.total()} candidates was accepted ({found}); nothing was written to {out}")
        key_bytes = secrets.token_bytes(KEY_BYTES)
        unsigned = Certificate(
            encoder=EncoderEntry(key, phi.name, phi.hash),
            about=about(threshold),
            tau=threshold,
            margin=margin(phi.error),
            transformations=sentry.copies,
            presentations=sentry.presentations,
            released=len(names),
            files=(),
            commitment=private.commitment(key_bytes),
            versions=tuple(f"{name} {version}" for name, version in sorted(package_versions().items())),
            signed_by=None if signer is None else public_half(signer),
        )
        write_manifest(release, encoding)
        (release / README).write_text(readme(unsigned), encoding="utf-8")
        content = replace(unsigned, files=tuple(_entries(release))).to_bytes()
        (release / CERTIFICATE).write_bytes(content)
        if signer is not None:
            (release / SIGNATURE).write_bytes(signed(content, signer))
        shutil.rmtree(staged)
        rows = _rows(candidates, private, order, names, verdicts) + [
            [file, "", why, math.nan, ""] for file, why in unusable.items()
        ]
        _write_audit(audit, content, key_bytes, candidates, private, values, refused, price, rows)
        for path in (*release.rglob("*"), release):
            os.utime(path, (_EPOCH, _EPOCH))
    return Release(out, len(names), dict(refused), read_certificate(content), price)


def same_files(images: ImageSet, private: ImageSet, encoding: Encoding) -> np.ndarray:
    """Which images, bool (n,), hold in files what a private image, or a plane of a private stack, holds in such a file."""
    found = np.zeros(len(images), dtype=bool)
    found[list(PixelCopies(private, encoding.codes).owners(images))] = True
    return found


def _price(sentry: Gate, strangers: ImageSet) -> Estimate:
    """Share of people outside the private set whose image the gate refuses: what its distance costs."""
    return share_of(~sentry.judge(strangers).accepted, n_of="patients")


def _without_copies(verdicts: Verdicts, copies: np.ndarray) -> Verdicts:
    reason = np.where(copies & (verdicts.reason != "constant"), "copy", verdicts.reason)
    return replace(verdicts, accepted=verdicts.accepted & ~copies, reason=reason)


def comparable(candidates: ImageSet, private: ImageSet, files: str = "candidates") -> None:
    """ValueError naming the first thing in which two sets differ that must agree, or the one that is empty."""
    for images, part in ((private, "private set"), (candidates, files)):
        if not len(images):
            raise ValueError(f"{part} {images.name}: holds no usable images; expected at least one")
    mine, its = candidates, private
    if min(its.spatial[-2:]) < SMALLEST:
        raise ValueError(f"private set {its.name}: images of {its.spatial} pixels; expected at least {SMALLEST} a side")
    pairs = {
        "shape": (mine.images.shape[1:], its.images.shape[1:], "resample or crop one of them"),
        "unit": (mine.unit, its.unit, "convert one of them, or say what plain files hold with --unit"),
        "range": (mine.range, its.range, "convert one of them, or say what plain files hold with --range LOW HIGH"),
        "spacing": (mine.spacing, its.spacing, "resample one of them"),
        "modality": (mine.modality, its.modality, "compare images of one modality"),
        "orientation": (mine.orientation, its.orientation, "turn one of them"),
    }
    for what, (left, right, action) in pairs.items():
        # of some things one side may not know
        same = left == right or (what in ("spacing", "orientation", "modality") and not (left and right))
        if what == "spacing" and left and right:
            same = np.allclose(left, right, rtol=1e-4, atol=0)
        if not same:
            raise ValueError(f"{what} of the {files} ({mine.name}) is {left}, of the private set ({its.name}) {right}; {action}")


def _written(images: ImageSet, encoding: Encoding, order: list[int], staged: Path) -> ImageSet:
    """All images as files, in `order`, and what a recipient reads from them."""
    rows = np.empty((len(order), 1, *encoding.shape), dtype=np.float32)
    for i, row in enumerate(order):
        path = staged / f"{i}{encoding.suffix}"
        path.write_bytes(encoding.to_bytes(images.images[row, 0]))
        rows[i, 0] = encoding.read(path)
    return ImageSet(
        images=rows, patient=np.arange(len(order)), unit=encoding.unit, range=encoding.range, spacing=encoding.spacing,
        name="candidates", role=images.role, modality=images.modality, origin=images.origin, people=images.people,
        orientation=encoding.orientation,
    )  # fmt: skip


def _release(staged: Path, images: Path, encoding: Encoding, accepted: np.ndarray) -> dict[int, str]:
    """Move what was accepted, numbered without gaps; position -> released name."""
    names = {}
    for number, i in enumerate(np.flatnonzero(accepted).tolist(), start=1):
        names[i] = f"{number:06d}{encoding.suffix}"
        os.replace(staged / f"{i}{encoding.suffix}", images / names[i])
    return names


def _entries(release: Path) -> Iterator[FileEntry]:
    for name in sorted([MANIFEST, README, *(f"{IMAGES}/{p.name}" for p in (release / IMAGES).iterdir())]):
        yield FileEntry(name, (release / name).stat().st_size, file_hash(release / name))


def _rows(
    candidates: ImageSet, private: ImageSet, order: list[int], names: dict[int, str], verdicts: Verdicts
) -> list[list[object]]:
    """The audit's line for each candidate, in the candidates' order."""
    table = candidates.attributes
    files = table["file"].tolist() if "file" in table else [str(i) for i in range(len(candidates))]
    people = dict(zip(private.patient.tolist(), _patient_ids(private), strict=True))
    rows: list[list[object]] = [[]] * len(order)
    for i, row in enumerate(order):
        # any number may be a person's, so the one that stands for nobody says it only where nothing was measured
        patient = "" if math.isnan(verdicts.distance[i]) else people[int(verdicts.patient[i])]
        rows[row] = [files[row], names.get(i, ""), verdicts.reason[i], float(verdicts.distance[i]), patient]
    return rows


def _patient_ids(images: ImageSet) -> list[str]:
    for column in ("patient_id", "file"):
        if column in images.attributes:
            return images.attributes[column].tolist()
    return [str(p) for p in images.patient.tolist()]


def _write_audit(
    audit: Path,
    certificate: bytes,
    key: bytes,
    candidates: ImageSet,
    private: ImageSet,
    values: Values,
    refused: Counter[str],
    price: Estimate | None,
    rows: list[list[object]],
) -> None:
    body = {
        "format": "medsynth.audit/1",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "certificate_sha256": sha256(certificate),
        "candidates": {"name": candidates.name, "number": len(rows), "refused": dict(sorted(refused.items()))},
        "private": {
            "name": private.name, "images": len(private), "patients": private.patients, "modality": private.modality,
            "content_hash": private.content_hash, "values": asdict(values),
        },
        "strangers": None if price is None else {"refused": price.value, "low": price.low, "high": price.high, "n": price.n},
    }  # fmt: skip
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["candidate", "released", "reason", "distance", "nearest_patient"])
    writer.writerows(rows)
    for name, text in ((AUDIT, json.dumps(body, indent=1) + "\n"), (CANDIDATES, table.getvalue()), (KEY, key.hex() + "\n")):
        with open(os.open(audit / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as f:
            f.write(text)

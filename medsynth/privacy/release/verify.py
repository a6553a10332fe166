"""Check a gated release again: certificate, signature, every file, the feature map and, given the private set, all distances."""

from __future__ import annotations

import csv
import hmac
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsynth.data.folder import Values, load
from medsynth.data.imagefile import Encoding
from medsynth.data.release_folder import CERTIFICATE, IMAGES, MANIFEST, README, SIGNATURE, manifest, read_manifest
from medsynth.imageset import ImageSet
from medsynth.ledger import Ledger
from medsynth.privacy.gate.alterations import gallery_names
from medsynth.privacy.gate.gate import Gate
from medsynth.privacy.gate.margin import agree, margin
from medsynth.privacy.release.certificate import (
    AUDIT,
    CANDIDATES,
    KEY,
    KEY_BYTES,
    NOT_CALIBRATED,
    Certificate,
    read_certificate,
    readme,
)
from medsynth.privacy.release.certify import comparable, same_files
from medsynth.privacy.release.signature import is_signature, load_public_key
from medsynth.settings.parse import parse
from medsynth.store.hashes import file_hash, sha256

if TYPE_CHECKING:
    from medsynth.privacy.gate.feature_maps import FeatureMap


class VerificationError(ValueError):
    """The first thing about a release that is not as its certificate says."""


def verify(
    folder: str | Path,
    *,
    private: str | Path | ImageSet | None = None,
    patients: str | Path | None = None,
    public_key: str | Path | None = None,
    ledger: Ledger | None = None,
    maps: Callable[[str], FeatureMap] | None = None,
    gate: Callable[..., Gate] = Gate,
) -> str:
    """One line that says what was verified, and where the threshold came from.

    folder: what `certify` wrote, or the part of it that was released; private: the private set, whose commitment and distances
    are checked too, with the audit beside the release; patients: the CSV in a private folder; ledger: gets a line when private
    images are read, by default the cache's.
    maps: registry key -> FeatureMap, by default `medsynth.privacy.gate.feature_maps.feature_map`; gate: as in `certify`.
    Raises VerificationError naming the first failure, ValueError or OSError where there is nothing that could be verified.
    """
    release, audit = _locate(Path(folder))
    expected_key = None if public_key is None else load_public_key(Path(public_key))
    certificate, content = _certificate(release)
    signer = _signature(release, certificate, content, expected_key)
    _files(release, certificate)
    images = _images(release, certificate)
    # people read this file and not the other
    if (release / README).read_bytes() != readme(certificate).encode():
        raise VerificationError(f"{README}: is not what {CERTIFICATE} says in plain words")
    if maps is None:
        from medsynth.privacy.gate.feature_maps import feature_map as maps
    phi = _feature_map(certificate, maps)
    if gate is Gate:
        _installed(certificate, *gallery_names(images))
    done = [f"{len(certificate.files)} files and the certificate", f"the feature map {phi.name!r}", *signer]
    if private is not None:
        if audit is None:
            raise FileNotFoundError(f"{folder}: no audit beside the release; distances can only be checked by whoever holds it")
        key, recorded = _audit(audit, content)
        if audit.stat().st_mode & 0o077:
            done.append(f"but others may open {audit}: chmod 700 it")
        if not isinstance(private, ImageSet):
            values, modality = _told(audit)
            private = load(private, role="private", modality=modality, patients=patients, values=values)
        (ledger or Ledger()).read(private, stage="verify", output="whether a release keeps its distance")
        if not hmac.compare_digest(private.commitment(key), certificate.commitment):
            raise VerificationError("private set: it is not the one of this release: its commitment differs")
        _no_copies(images, private, read_manifest(release))
        _distances(certificate, images, gate(private, phi, certificate.tau.value), phi.error, recorded)
        done.append(f"the private set and {certificate.released} distances")
    tau = certificate.tau
    chosen = f"tau = {tau.value:.6g}, {tau.how}"
    return f"{'verified' if tau.calibrated else NOT_CALIBRATED}: {', '.join(done)}; {chosen}"


def _locate(folder: Path) -> tuple[Path, Path | None]:
    """The release and, where there is one beside it, its audit. What looks like a release is one, whatever lies in it."""
    if any((folder / name).exists() for name in (CERTIFICATE, MANIFEST, IMAGES)):
        release = folder
    elif (folder / "release").is_dir():
        release = folder / "release"
    else:
        raise FileNotFoundError(f"{folder}: no release; expected a folder with {CERTIFICATE}, or one with the folder release")
    audit = release.resolve().parent / "audit"
    return release, audit if audit.is_dir() else None


def _certificate(release: Path) -> tuple[Certificate, bytes]:
    _regular(release, CERTIFICATE)
    content = (release / CERTIFICATE).read_bytes()
    try:
        return read_certificate(content), content
    except ValueError as error:
        raise VerificationError(f"{CERTIFICATE}: {error}") from error


def _signature(release: Path, certificate: Certificate, content: bytes, expected: str | None) -> list[str]:
    public = certificate.signed_by
    if public is None:
        if expected is not None:
            raise VerificationError(f"{CERTIFICATE}: is not signed; a signature was asked for")
        return ["no signature, so whoever passed it on could have written it"]
    _regular(release, SIGNATURE)
    if not is_signature((release / SIGNATURE).read_bytes(), content, public):
        raise VerificationError(f"{SIGNATURE}: is no signature of {CERTIFICATE} by the key it names, {public[:16]}…")
    if expected is None:
        return [f"its signature by the unknown key {public[:16]}… (give --public-key to know whose it is)"]
    if expected != public:
        raise VerificationError(f"{SIGNATURE}: is by the key {public[:16]}…, not by the one given, {expected[:16]}…")
    return ["its signature by the key given"]


def _files(release: Path, certificate: Certificate) -> None:
    """Exactly the files of the certificate are there, unchanged."""
    listed = {entry.name: entry for entry in certificate.files}
    folders = {IMAGES}
    for root, below, names in os.walk(release):
        for name in sorted(below + names):
            inside = (Path(root) / name).relative_to(release).as_posix()
            allowed = folders if name in below else {*listed, CERTIFICATE} | ({SIGNATURE} if certificate.signed_by else set())
            if inside not in allowed or (name in below and (Path(root) / name).is_symlink()):
                raise VerificationError(f"{inside}: is in the release but not in its certificate")
    for name, entry in listed.items():
        size = _regular(release, name)
        if size != entry.bytes:
            found = "truncated" if size < entry.bytes else "longer than it was"
            raise VerificationError(f"{name}: {found}: {size} bytes, the certificate says {entry.bytes}")
        if file_hash(release / name) != entry.sha256:
            raise VerificationError(f"{name}: changed: its sha256 is not the certificate's")


def _regular(release: Path, name: str) -> int:
    """Size of a file; VerificationError if it is missing, a link or something that is no file."""
    try:
        found = os.lstat(release / name)
    except OSError as error:
        raise VerificationError(f"{name}: missing") from error
    if not stat.S_ISREG(found.st_mode):
        raise VerificationError(f"{name}: is a link or no file; a release holds plain files")
    return found.st_size


def _images(release: Path, certificate: Certificate) -> ImageSet:
    try:
        images = load(release, role="public")
    except (ValueError, OSError) as error:
        raise VerificationError(f"images: cannot be loaded: {error}") from error
    if len(images) != certificate.released:
        raise VerificationError(f"images: {len(images)} are there; the certificate says {certificate.released}")
    encoding = read_manifest(release)
    try:
        written = manifest(encoding)
    except ValueError as error:
        raise VerificationError(f"{MANIFEST}: {error}") from error
    if (release / MANIFEST).read_bytes() != written:
        raise VerificationError(f"{MANIFEST}: is not, byte for byte, the manifest of the encoding that it states")
    for name in images.attributes["file"]:
        if found := encoding.besides_pixels((release / IMAGES / name).read_bytes()):
            raise VerificationError(f"{IMAGES}/{name}: holds {found}; a released file holds pixels and nothing else")
    return images


def _feature_map(certificate: Certificate, maps: Callable[[str], FeatureMap]) -> FeatureMap:
    entry = certificate.encoder
    if not entry.key:
        raise ValueError(f"the feature map {entry.name!r} does not come with medsynth; verify from Python and give it as `maps`")
    try:
        phi = maps(entry.key)
    except (ValueError, OSError) as error:
        raise VerificationError(f"feature map {entry.key!r}: cannot be loaded here: {error}") from error
    if phi.hash != entry.hash:
        raise VerificationError(
            f"feature map {entry.key!r}: the installed one has hash {phi.hash[:16]}…, the certificate's {entry.hash[:16]}…; "
            f"install the versions that the certificate names"
        )
    if phi.name != entry.name:
        raise VerificationError(f"feature map {entry.key!r}: its name is {phi.name!r}, the certificate's {entry.name!r}")
    if certificate.margin < margin(phi.error):
        raise VerificationError(
            f"feature map {entry.key!r}: images were accepted beyond tau and a margin of {certificate.margin:.3g}; by the error "
            f"that the installed one states it must be {margin(phi.error):.3g}: make the release again"
        )
    return phi


def _installed(certificate: Certificate, transformations: tuple[str, ...], presentations: tuple[str, ...]) -> None:
    for what, ours in (("transformations", transformations), ("presentations", presentations)):
        if ours != getattr(certificate, what):
            raise VerificationError(f"{what}: the installed ones are not the certificate's; install the version that it names")


def _audit(audit: Path, content: bytes) -> tuple[bytes, dict[str, float]]:
    """Key of the commitment, and recorded distance by released file."""
    if _read_json(audit / AUDIT).get("certificate_sha256") != sha256(content):
        raise VerificationError(f"{CERTIFICATE}: is not the one that the audit belongs to")
    try:
        key = bytes.fromhex((audit / KEY).read_text(encoding="ascii"))
        if len(key) != KEY_BYTES:
            raise ValueError(f"{len(key)} bytes in {KEY}; expected {KEY_BYTES}")
        with open(audit / CANDIDATES, newline="", encoding="utf-8") as f:
            recorded = {row["released"]: float(row["distance"]) for row in csv.DictReader(f) if row["released"]}
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise VerificationError(f"audit: {KEY} or {CANDIDATES} is missing or damaged ({error})") from error
    return key, recorded


def _told(audit: Path) -> tuple[Values, str]:
    """What the loader of the private set was told: the meaning of its numbers, and its modality."""
    try:
        private = _read_json(audit / AUDIT)["private"]
        return parse(Values, private["values"], AUDIT), str(private.get("modality", ""))
    except (KeyError, TypeError, ValueError) as error:
        raise VerificationError(f"audit: {AUDIT} is damaged ({error})") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_bytes())
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        raise VerificationError(f"audit: {path.name} is missing or damaged ({error})") from error
    if not isinstance(body, dict):
        raise VerificationError(f"audit: {path.name} is damaged")
    return body


def _no_copies(images: ImageSet, private: ImageSet, encoding: Encoding) -> None:
    comparable(images, private)
    for file, copy in zip(images.attributes["file"], same_files(images, private, encoding), strict=True):
        if copy:
            raise VerificationError(f"{IMAGES}/{file}: holds the pixels of a private image")


def _distances(certificate: Certificate, images: ImageSet, sentry: Gate, error: float, recorded: dict[str, float]) -> None:
    _installed(certificate, sentry.copies, sentry.presentations)
    verdicts = sentry.judge(images)
    files = images.attributes["file"].tolist()
    for i, file in enumerate(files):
        # whoever accepted it found it beyond tau and the margin, so whoever measures it again finds it beyond tau; NaN is not
        if not verdicts.distance[i] > certificate.tau.value:
            raise VerificationError(
                f"{IMAGES}/{file}: {verdicts.reason[i]}: its distance {verdicts.distance[i]:.6g} is not above tau, "
                f"{certificate.tau.value:.6g}"
            )
        if file not in recorded or not agree(verdicts.distance[i], recorded[file], error):
            raise VerificationError(
                f"{IMAGES}/{file}: its distance is {verdicts.distance[i]:.6g}; the audit says {recorded.get(file, 'nothing')}"
            )

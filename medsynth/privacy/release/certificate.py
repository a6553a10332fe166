"""The public certificate of a gated release: what it says, its one form in bytes, and the plain statement beside it.

    DIR/release/   images/000001.png ..., manifest.json, README.txt, certificate.json, certificate.sig if signed
    DIR/audit/     mode 0700: candidates.csv (distances, patients, reasons), audit.json, commitment.key

What follows from the private set beyond the verdicts themselves goes to the audit: distances, nearest patients, reasons, and also
how many candidates were refused and how many private images there are.
"""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields

from medsynth.data.release_folder import CERTIFICATE, IMAGES, MANIFEST, README, SIGNATURE
from medsynth.privacy.gate.alterations import (
    BLUR,
    DEPTH,
    GAIN,
    GAMMA,
    JPEG_QUALITY,
    NOISE,
    OFFSET,
    ROTATION,
    SHIFT,
    ZOOM,
)
from medsynth.settings.parse import parse
from medsynth.store.hashes import sha256
from medsynth.store.runs import VERSIONED

FORMAT = "medsynth.certificate/4"
_OLDER = {
    "medsynth.certificate/1": "images were compared as they lie",
    "medsynth.certificate/2": "images were compared in one polarity, and those that are not square in fewer orientations",
    "medsynth.certificate/3": "README.txt does not say how far the alterations went that were tried",
}
AUDIT, CANDIDATES, KEY = "audit.json", "candidates.csv", "commitment.key"
KEY_BYTES = 32  # of the key of the commitment
_COMMITMENT = "HMAC-SHA256, key kept in the audit, over unit, range, shape and the sorted blake2b-128 of each private image"
_EXACTNESS = (
    "every released image was compared, in every presentation, with every private image and every transformed copy of it, "
    "without approximate search; features are float32, distances are decided in float64; an image was accepted only beyond "
    "tau + margin, where the margin is what two measurements of one distance on any two machines may differ by; "
    "no released file holds the pixels that a private image, or a plane of a private stack, has when it is written in the same "
    "way, in whatever orientation or polarity"
)
_FIXED = ("exactness", "commitment_is", "statement", "mode")  # what no certificate of this format may say otherwise
NOT_CALIBRATED = "NOT CALIBRATED: synthetic images beyond a distance that was given by hand; what copies it lets pass is unknown"
TRIED = (
    f"mirrored, shifted by up to {SHIFT:.0%} of a side, turned by up to {ROTATION:g} degrees, zoomed from {ZOOM[0]:g} to "
    f"{ZOOM[1]:g}, blurred by up to 1/{1 / BLUR:g} of the width, brighter or darker by up to {OFFSET:.0%} of the range, of "
    f"contrast changed by up to {GAIN:.0%}, of gamma {GAMMA[0]:g} to {GAMMA[1]:g}, with noise of {NOISE:.0%} of the range, as "
    f"JPEG of quality {JPEG_QUALITY}, and two of these at once; stacks also moved along their depth by up to 1/{1 / DEPTH:g} of "
    "it, or by one plane. How much of each was drawn by chance"
)
NOT_TRIED = (
    "anything beyond these bounds, such as larger turns and shifts, shrinking, stretching of one side, shear, strong blur or "
    "noise, few grey levels; an alteration at its largest strength, copies of a part of an image, crops beyond the scaling "
    "above, overlays, text and boxes, blends with another image, uneven shading, local contrast (CLAHE) and other tone curves, "
    "elastic warps, what an autoencoder or a generator makes of an image, and three alterations at once"
)
_NAME = re.compile(rf"{re.escape(MANIFEST)}|{re.escape(README)}|{IMAGES}/[0-9]{{6,}}(\.png|\.nii\.gz)")
_HEX = re.compile("[0-9a-f]{64}")
_VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc|\.post|\.dev)\d+)*(\+[a-z0-9.]{0,24})?")
STATEMENT = (
    "This is not differential privacy. A gate leaves a hole around every private image, and a hole can be found: whoever holds a "
    "patient's image, and knows how many images would lie near it had no gate been used, can take their absence as a sign that "
    "this patient was in the private set. The certificate says how near released images come, not what can be inferred from them."
)


@dataclass(frozen=True)
class EncoderEntry:
    """The feature map: its key in `medsynth.privacy.gate.feature_maps` ("" for one that does not ship), name, hash."""

    key: str
    name: str
    hash: str


@dataclass(frozen=True)
class TauEntry:
    """The threshold, a Euclidean distance of features, how it was chosen, and whether on altered copies of anybody's images."""

    value: float
    how: str
    calibrated: bool = True


@dataclass(frozen=True)
class FileEntry:
    """One file of the release, by its path inside."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Certificate:
    """What is public about a release; `digest` is the sha256 of all the rest."""

    about: str  # sorts before all other keys, so that whoever opens the file reads it first
    encoder: EncoderEntry
    tau: TauEntry
    margin: float  # beyond tau, that a measured distance had to have
    transformations: tuple[str, ...]  # of every private image
    presentations: tuple[str, ...]  # orientations and polarities in which every released image was compared
    released: int
    files: tuple[FileEntry, ...]
    commitment: str
    versions: tuple[str, ...]
    signed_by: str | None = None  # Ed25519 public key, 64 hex digits
    exactness: str = _EXACTNESS
    commitment_is: str = _COMMITMENT
    statement: str = STATEMENT
    mode: str = "distance"
    format: str = FORMAT
    digest: str = ""

    def to_bytes(self) -> bytes:
        """The one file that says this, with its digest filled in."""
        content = asdict(self)
        content["digest"] = sha256(_canonical(content | {"digest": ""}))
        return _canonical(content)


def about(tau: TauEntry) -> str:
    """What a release is, in one line: the first of certificate, README and verification."""
    return "Synthetic images with a certified distance to a private set" if tau.calibrated else NOT_CALIBRATED


def read_certificate(content: bytes) -> Certificate:
    """Parse a certificate; ValueError unless it is, byte for byte, what `to_bytes` writes."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
    found = body.get("format") if isinstance(body, dict) else None
    if isinstance(found, str) and found in _OLDER:
        raise ValueError(
            f"is of format {found!r}, in which {_OLDER[found]}; make the release again, or verify it with the version of "
            "medsynth that made it"
        )
    if found != FORMAT:
        raise ValueError(f"not of format {FORMAT!r}; this version of medsynth reads no other")
    certificate = parse(Certificate, body, "certificate")
    if certificate.to_bytes() != content:
        raise ValueError("its digest does not fit its content: it was changed or damaged")
    versions, ways = len(certificate.transformations), len(certificate.presentations)
    if not 0 < certificate.tau.value < math.inf or not 0 <= certificate.margin < math.inf or not versions or not ways:
        raise ValueError(
            f"tau is {certificate.tau.value} and the margin {certificate.margin}, with {versions} versions in {ways} "
            "presentations; that guarantees nothing"
        )
    if certificate.about != about(certificate.tau):
        raise ValueError(f"it begins with {certificate.about!r}; expected {about(certificate.tau)!r}")
    if said := next((what for what, is_plain in _plain(certificate) if not is_plain), None):
        raise ValueError(f"its {said}; whatever else it says, nobody could check")
    names = [entry.name for entry in certificate.files]
    if odd := next((name for name in names if not _NAME.fullmatch(name)), None):
        raise ValueError(f"it names the file {odd!r}; expected {MANIFEST}, {README} and numbered files in {IMAGES}")
    if double := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"it names the file {double!r} twice; expected each once")
    for field in fields(Certificate):
        if field.name in _FIXED and getattr(certificate, field.name) != field.default:
            raise ValueError(f"its {field.name} is not that of {FORMAT!r}: {getattr(certificate, field.name)!r}")
    return certificate


def _plain(certificate: Certificate) -> Iterator[tuple[str, bool]]:
    """What each field must be that could hold a remark, and whether it is."""
    named = [version.partition(" ") for version in certificate.versions]
    yield "commitment must be 64 hex digits", bool(_HEX.fullmatch(certificate.commitment))
    yield "key must be 64 hex digits", certificate.signed_by is None or bool(_HEX.fullmatch(certificate.signed_by))
    yield (
        "versions must be of packages that decide numbers, each once, as in 'numpy 2.1.0'",
        (
            len({name for name, *_ in named}) == len(named)
            and all(name in ("python", *VERSIONED) and _VERSION.fullmatch(number) for name, _, number in named)
        ),
    )
    yield "tau.how must be one line that can be printed", certificate.tau.how.isprintable()


def readme(certificate: Certificate) -> str:
    """The plain statement that goes with a release."""
    signature = f"\n{SIGNATURE} is the signature of {CERTIFICATE} (Ed25519)." if certificate.signed_by else ""
    versions, ways = len(certificate.transformations), len(certificate.presentations)
    how, statement, untried = (
        textwrap.fill(text, width=120, initial_indent="  ", subsequent_indent="  ")
        for text in (
            f"How tau was chosen: {certificate.tau.how}",
            STATEMENT,
            f"Copies on which the package tries its thresholds: {TRIED}. Not tried, and so not covered: {NOT_TRIED}.",
        )
    )
    return f"""{certificate.about}
{"=" * len(certificate.about)}

What is guaranteed
  There are {certificate.released} images in {IMAGES}/. Each, as the file you have, was compared with every image of a private set
  in {versions} versions: as it is, and mirrored, turned, shifted, scaled, brighter or darker by small steps; and each in {ways}
  presentations: turned, laid on its side and inverted, since files rarely say which way is up, or whether white is dense.
  Measured by the feature map "{certificate.encoder.name}", none lies within tau = {certificate.tau.value:.6g} of any of them.
  That takes for granted that computed features err by less than a bound, which was measured on several machines.
  No file holds the pixels of a private image, turned, mirrored or inverted; no stack holds a plane of a private one.
{how}
  Names and order of the files are random. Files hold pixels and nothing else.

What is not guaranteed
{statement}
  Distance is what this one feature map sees: an image can be far in it and still show what somebody recognises. The maps that
  come with medsynth look at 64 x 64 pixels, whatever the size of the image.
  Another scan of the same patient is not a copy, and may pass.
  A plane of a private stack is looked for pixel by pixel alone: one that was changed by one grey level may pass.
{untried}
  A threshold lets a share of altered copies pass; how tau was chosen says what share was aimed at.
  Nothing is said about what the images reveal on average, such as how frequent a disease is in the private set.
  Nobody looked for names or numbers that are part of the picture.

What is left out, and why
  Distances, the number of refused candidates and the size of the private set are not published: they, too, follow from private
  images. The sender keeps them, with the key of the commitment, in the audit.

How to read the images
  {MANIFEST} says what the integers in the files stand for: unit, range, step and spacing.

How to check
  medsynth verify FOLDER                        the files, the certificate and the feature map
  medsynth verify FOLDER --public-key KEY.pem   and who signed it
  The sender can also repeat all distances: medsynth verify FOLDER --private SET{signature}
"""


def _canonical(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")

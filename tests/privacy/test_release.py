from __future__ import annotations

import csv
import gzip
import hashlib
import hmac
import inspect
import json
import os
import re
import shutil
import stat
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import RootMeanSquare, two_copies

from medsynth.data.folder import Values, load
from medsynth.data.imagefile import Encoding
from medsynth.data.release_folder import manifest
from medsynth.imageset import ImageSet
from medsynth.privacy.gate.alterations import gallery_names
from medsynth.privacy.gate.gate import Gate
from medsynth.privacy.release import certificate as certificate_module
from medsynth.privacy.release import certify as certify_module
from medsynth.privacy.release.certificate import FileEntry, read_certificate, readme
from medsynth.privacy.release.certify import Release, certify
from medsynth.privacy.release.signature import is_signature
from medsynth.privacy.release.verify import VerificationError, verify
from medsynth.store.hashes import file_hash

TAU = 0.2
SIDE = 8


def plain_gate(private: ImageSet, phi: RootMeanSquare, tau: float) -> Gate:
    """The real gate, with one transformed copy instead of many."""
    return Gate(private, phi, tau, copies=two_copies)


def check(folder: Path, **arguments: object) -> str:
    return verify(folder, maps=lambda _: RootMeanSquare(), gate=plain_gate, **arguments)


def make(out: Path, candidates: ImageSet, private: ImageSet, **changes: object) -> Release:
    arguments: dict[str, object] = {"tau": TAU, "how": "chosen for tests", "out": out, "key": "pixels", "gate": plain_gate}
    return certify(candidates, private, **({"phi": RootMeanSquare()} | arguments | changes))


@pytest.fixture(scope="module")
def private(make_set) -> ImageSet:
    # on the grid of 16 bit files, so that a copy is at distance zero and not just close to it
    images = np.random.default_rng(0).integers(0, 65536, (6, 1, SIDE, SIDE)) / 65535
    return make_set(6, images=images, role="private", name="ward-7-scans")


@pytest.fixture(scope="module")
def mixed(make_set, private) -> ImageSet:
    """Five candidates that are far, a copy, a mirrored copy, one close and one constant."""
    far = make_set(9, (1, SIDE, SIDE), seed=1, role="private", name="drawn-by-model").images.copy()
    far[5], far[6] = private.images[3], private.images[2][..., ::-1]
    far[7] = np.clip(private.images[0] + 0.01, 0, 1)
    far[8] = 0.5
    images = make_set(9, images=far, role="private", name="drawn-by-model", patient=np.arange(9), split=None)
    named = images.attributes.assign(file=[f"source-{i}" for i in range(9)])
    return replace(images, attributes=named)


@pytest.fixture(scope="module")
def made(tmp_path_factory, mixed, private) -> Release:
    damaged = {"source-9": "not finite", "source-10": "cannot be read"}
    return make(tmp_path_factory.mktemp("made") / "out", mixed, private, unusable=damaged)


@pytest.fixture
def copy(made, tmp_path) -> Path:
    """A release of one's own to damage."""
    return Path(shutil.copytree(made.folder, tmp_path / "out"))


def test_what_is_far_is_released(made, mixed, private):
    assert made.released == 5
    assert made.refused == {"copy": 2, "too close": 1, "constant": 1, "not finite": 1, "cannot be read": 1}
    found = load(made.folder / "release", role="public")
    assert found.attributes["file"].tolist() == [f"{i:06d}.png" for i in range(1, 6)]
    # each is one of the far candidates, up to quantisation
    difference = np.abs(found.images[:, None] - mixed.images[None, :5]).max(axis=(2, 3, 4))
    assert sorted(difference.argmin(1).tolist()) == [0, 1, 2, 3, 4] and difference.min(1).max() <= 0.5 / 65535 + 1e-7
    line = check(made.folder, private=private)
    assert line == (
        "verified: 7 files and the certificate, the feature map 'pixels for tests', no signature, so whoever passed it "
        "on could have written it, the private set and 5 distances; tau = 0.2, chosen for tests"
    )
    assert check(made.folder) == check(made.folder / "release")


def test_nothing_in_a_release_says_where_it_came_from(made, private, tmp_path):
    release = made.folder / "release"
    everything = b"".join(p.read_bytes() for p in release.rglob("*") if p.is_file()).lower()
    for secret in ("source-", "drawn-by-model", "ward-7", str(tmp_path.parent), *private.row_hashes):
        assert secret.encode() not in everything
    assert {p.stat().st_mtime for p in (release, *release.rglob("*"))} == {315532800.0}
    names = sorted(p.relative_to(release).as_posix() for p in release.rglob("*"))
    assert names == ["README.txt", "certificate.json", "images", *(f"images/{i:06d}.png" for i in range(1, 6)), "manifest.json"]


def test_the_certificate_holds_no_private_output(made):
    body = json.loads((made.folder / "release" / "certificate.json").read_text())
    assert set(body) == {
        "about", "encoder", "tau", "transformations", "presentations", "released", "files", "commitment", "versions", "signed_by",
        "margin", "exactness", "commitment_is", "statement", "mode", "format", "digest",
    }  # fmt: skip
    assert body["encoder"] == {"key": "pixels", "name": "pixels for tests", "hash": "0" * 32}
    assert body["tau"] == {"value": TAU, "how": "chosen for tests", "calibrated": True}
    assert body["transformations"] == ["copy", "flip"] and body["released"] == 5 and body["signed_by"] is None
    assert body["digest"] == made.certificate.digest and len(body["digest"]) == 64
    assert any(v.startswith("numpy ") for v in body["versions"])
    statement = " ".join((made.folder / "release" / "README.txt").read_text().split())
    for text in (body["statement"], "There are 5 images", "tau = 0.2", "chosen for tests", "This is not differential privacy"):
        assert text in statement
    # neither the number of candidates (11), of refused ones (6), nor of private images or patients (6, 3) is told
    told = {int(n) for n in re.findall(r"(?<![\d.\w])\d+(?![\d.\w])", statement.replace(certificate_module.TRIED, ""))}
    # (there are eight presentations, and images are looked at with 64 x 64 pixels)
    assert told <= {5, 2, 8, 64}


def test_the_audit_is_for_the_owner_alone(made, mixed, private):
    audit = made.folder / "audit"
    assert stat.S_IMODE(audit.stat().st_mode) == 0o700
    assert {p.name: stat.S_IMODE(p.stat().st_mode) for p in audit.iterdir()} == {
        "audit.json": 0o600, "candidates.csv": 0o600, "commitment.key": 0o600,
    }  # fmt: skip
    with open(audit / "candidates.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [r["candidate"] for r in rows] == [f"source-{i}" for i in range(11)]
    assert [r["reason"] for r in rows[5:]] == ["copy", "copy", "too close", "constant", "not finite", "cannot be read"]
    assert [r["nearest_patient"] for r in rows[5:]] == ["1", "1", "0", "", "", ""]
    assert sorted(r["released"] for r in rows[:5]) == [f"{i:06d}.png" for i in range(1, 6)]
    assert all(float(r["distance"]) > TAU for r in rows[:5]) and float(rows[5]["distance"]) == 0
    # the audit's line for a released file is about that file
    found = load(made.folder / "release")
    for row, original in zip(rows[:5], mixed.images[:5], strict=True):
        at = found.attributes["file"].tolist().index(row["released"])
        assert np.abs(found.images[at] - original).max() < 1e-5
    body = json.loads((audit / "audit.json").read_text())
    assert body["candidates"]["number"] == 11 and body["private"]["patients"] == 3


def test_who_was_not_measured_has_no_nearest_patient(tmp_path, make_set, private):
    """A patient's number may be -1, which stands for nobody in verdicts."""
    candidates = make_set(3, (1, SIDE, SIDE), seed=1)
    flat = candidates.images.copy()
    flat[2] = 0.5
    numbered = replace(private, patient=np.arange(6) - 6, split=None)
    made = make(tmp_path / "out", candidates.with_images(flat), numbered)
    with open(made.folder / "audit" / "candidates.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert (rows[2]["reason"], rows[2]["nearest_patient"]) == ("constant", "")
    assert all(row["nearest_patient"] in {"-6", "-5", "-4", "-3", "-2", "-1"} for row in rows[:2])


def test_what_a_gate_costs_other_people_stands_in_the_audit_alone(tmp_path, make_set, mixed, private):
    near = np.clip(private.images[:3] + 0.01, 0, 1)
    images = np.concatenate([near, make_set(9, (1, SIDE, SIDE), seed=2).images])
    strangers = make_set(12, images=images, role="eval", name="others", patient=np.arange(12), split=None)
    made = make(tmp_path / "out", mixed, private, strangers=strangers)
    assert (made.strangers.value, made.strangers.n) == (0.25, 12) and made.strangers.low < 0.25 < made.strangers.high
    assert json.loads((made.folder / "audit" / "audit.json").read_text())["strangers"]["refused"] == 0.25
    assert not any(b"strangers" in p.read_bytes() for p in (made.folder / "release").glob("*.*"))
    assert make(tmp_path / "again", mixed, private).strangers is None


def test_file_names_are_in_no_order_of_the_candidates(tmp_path, make_set, private):
    candidates = make_set(12, (1, SIDE, SIDE), seed=1)
    orders = []
    for run in range(2):
        make(tmp_path / str(run), candidates, private)
        found = load(tmp_path / str(run) / "release")
        orders.append(np.abs(found.images[:, None] - candidates.images[None]).max(axis=(2, 3, 4)).argmin(1).tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(12))
    # each of these happens by chance once in 479 million runs
    assert orders[0] != list(range(12)) and orders[0] != orders[1]


def test_a_release_can_be_gated_again(made, private, tmp_path):
    again = make(tmp_path / "again", load(made.folder / "release", role="public"), private)
    assert (again.released, again.refused) == (5, {})
    first, second = ({f.sha256 for f in c.files if "images" in f.name} for c in (made.certificate, again.certificate))
    # the same pixels are the same bytes
    assert first == second
    # but two releases do not show that they share a private set
    assert made.certificate.commitment != again.certificate.commitment


def test_the_files_are_judged_and_not_the_floats(tmp_path, make_set):
    """Planted bug: a check before quantisation would let these pass."""
    rng = np.random.default_rng(0)
    codes = rng.integers(10, 65000, (4, 1, SIDE, SIDE))
    private = make_set(4, images=codes / 65535, role="private")
    # nearly half a code up, in float far enough; in the file one code away in a few pixels
    few = codes + 0.45
    few[..., 0, :2] += 1
    floats = make_set(4, images=few / 65535, patient=np.arange(4), split=None)
    tau = 0.6 * 2 * 0.49 / 65535
    assert plain_gate(private, RootMeanSquare(), tau).judge(floats).accepted.all()
    far = make_set(1, (1, SIDE, SIDE), seed=9).images
    candidates = floats.with_images(np.concatenate([far, floats.images[1:]]))
    made = make(tmp_path / "out", candidates, private, tau=tau)
    assert (made.released, made.refused) == (1, {"too close": 3})


def test_a_private_image_saved_with_fewer_codes_is_a_copy(tmp_path, make_set):
    """Of 16 bit, sent as 8: in the file that goes out it is what hers would be."""
    private = make_set(3, (1, SIDE, SIDE), role="private")
    far = make_set(1, (1, SIDE, SIDE), seed=9).images
    images = np.rint(np.concatenate([far, private.images]) * 255) / 255
    candidates = make_set(4, images=images, patient=np.arange(4), split=None)
    assert plain_gate(private, RootMeanSquare(), 1e-12).judge(candidates).accepted.all()
    made = make(tmp_path / "out", candidates, private, tau=1e-12)
    assert (made.released, made.refused) == (1, {"copy": 3})


def test_what_is_judged_is_what_is_released(tmp_path, make_set, private):
    seen = []

    class Spy(Gate):
        def judge(self, candidates):
            seen.append(candidates)
            return super().judge(candidates)

    make(tmp_path / "out", make_set(5, (1, SIDE, SIDE), seed=1), private, gate=lambda *a: Spy(*a, copies=two_copies))
    np.testing.assert_array_equal(load(tmp_path / "out" / "release").images, seen[0].images)
    assert seen[0].name == "candidates" and not len(seen[0].attributes.columns)


def test_a_copy_is_refused_however_small_tau_is(tmp_path, make_set):
    """In float a copy differs from the private image by its quantisation, and a tiny tau would let that pass."""
    private = make_set(4, (1, SIDE, SIDE), role="private")
    candidates = make_set(5, images=np.concatenate([private.images, np.eye(SIDE)[None, None]]), patient=np.arange(5), split=None)
    assert not plain_gate(private, RootMeanSquare(), 1e-12).judge(candidates).accepted[:4].any()
    made = make(tmp_path / "out", candidates, private, tau=1e-12)
    assert (made.released, made.refused) == (1, {"copy": 4})


def test_images_are_accepted_only_beyond_the_margin(tmp_path, make_set):
    base = np.zeros((1, 1, SIDE, SIDE))
    base[0, 0, 0, 0] = 1.0
    private = make_set(1, images=base, role="private", range=(0.0, 255.0))
    near = make_set(2, images=np.concatenate([base + 20, base + 21]), range=(0.0, 255.0), patient=np.arange(2), split=None)
    # the distance of the first is 2 * 20 / 255, beyond tau but within tau and margin
    tau, error = float(2 * 20 / 255) * (1 - 5e-5), float(2 * 20 / 255) * 5e-5
    assert make(tmp_path / "all", near, private, tau=tau).released == 2
    made = make(tmp_path / "out", near, private, tau=tau, phi=RootMeanSquare(error))
    assert (made.released, made.refused, made.certificate.margin) == (1, {"too close": 1}, 4 * error)


class Brightness:
    """Mean grey, on machines that err by as much as is stated (or `times` it) towards (-1) or away from (1) the private image."""

    name, hash, error = "brightness", "2" * 32, 1e-3

    def __init__(self, machine: int, times: float = 1.0) -> None:
        self.machine, self.times = machine, times

    def __call__(self, images: ImageSet) -> np.ndarray:
        mean = images.scaled().reshape(len(images), -1).mean(axis=1, dtype=np.float64)
        # a hair less than the error: features are rounded once more
        return (mean + 0.999 * self.times * self.machine * self.error * np.sign(mean - 0.25))[:, None].astype(np.float32)


@pytest.fixture
def brighter(make_set) -> tuple[ImageSet, ImageSet]:
    """A private image of brightness 0.2, and forty that are brighter by 0.09 to 0.11."""
    pattern = np.random.default_rng(0).uniform(-0.2, 0.2, (1, 1, SIDE, SIDE))
    private = 0.6 + pattern - pattern.mean()
    images = private + np.linspace(0.045, 0.055, 40)[:, None, None, None]
    return make_set(1, images=private, role="private"), make_set(40, images=images, patient=np.arange(40), split=None)


@pytest.mark.parametrize("here", [-1, 0, 1])
def test_an_honest_release_verifies_wherever_it_is_measured_again(tmp_path, brighter, here):
    candidates, private, tau, error = brighter[1], brighter[0], 0.1, Brightness.error
    exact = plain_gate(private, Brightness(0), tau).judge(candidates).distance
    made = make(tmp_path / "out", candidates, private, tau=tau, phi=Brightness(here))
    for there in (-1, 0, 1):
        found = verify(made.folder, private=private, maps=lambda _, k=there: Brightness(k), gate=plain_gate)
        assert f"{made.released} distances" in found
    # who is accepted is truly beyond tau, and whoever is farther than all errors together is accepted
    assert (exact > tau + 6 * error).sum() <= made.released <= (exact > tau + 2 * error).sum() < 40


@pytest.mark.parametrize("narrow", [0, 2, 3.5])
def test_with_any_narrower_margin_it_would_not(tmp_path, brighter, monkeypatch, narrow):
    """Planted bug: what one machine accepts, another finds within tau."""
    monkeypatch.setattr("medsynth.privacy.gate.margin.reach", lambda tau, error: tau + narrow * error)
    # as dense as the gap that the bug leaves
    private, candidates = brighter[0], brighter[1]
    wide = candidates.with_images(private.images + np.linspace(0.0500, 0.0520, 40, dtype=np.float32)[:, None, None, None])
    made = make(tmp_path / "out", wide, private, tau=0.1, phi=Brightness(1))
    with pytest.raises(VerificationError, match=r"its distance 0\.09\d* is not above tau, 0\.1|its distance 0\.1 is not above"):
        verify(made.folder, private=private, maps=lambda _: Brightness(-1), gate=plain_gate)


def test_a_map_that_errs_by_more_than_it_states_is_noticed_when_it_is_measured_again(tmp_path, brighter):
    made = make(tmp_path / "out", brighter[1], brighter[0], tau=0.05, phi=Brightness(1, times=3))
    with pytest.raises(VerificationError, match=r"its distance is 0\.\d+; the audit says 0\.\d+"):
        verify(made.folder, private=brighter[0], maps=lambda _: Brightness(-1, times=3), gate=plain_gate)


def test_a_margin_that_the_installed_map_finds_too_narrow(copy):
    with pytest.raises(
        VerificationError, match=r"feature map 'pixels': images were accepted beyond tau and a margin of 0; by the"
    ):
        verify(copy, maps=lambda _: RootMeanSquare(1e-4), gate=plain_gate)


def test_certificates_of_older_formats_say_so(made):
    body = json.loads(made.certificate.to_bytes())
    for older in ("1", "2", "3"):
        with pytest.raises(
            ValueError, match=rf"is of format 'medsynth.certificate/{older}', in which .*; make the release again"
        ):
            read_certificate(json.dumps(body | {"format": f"medsynth.certificate/{older}"}).encode())


@pytest.mark.parametrize(("shape", "suffix"), [((1, SIDE, SIDE), ".png"), ((1, 3, SIDE, SIDE), ".nii.gz")])
def test_units_spacing_and_volumes_survive(tmp_path, make_set, shape, suffix):
    rng = np.random.default_rng(0)
    hu = np.rint(rng.uniform(-1000, 400, (6, *shape)))
    spacing = (2.5, 0.7, 0.8)[-(len(shape) - 1) :]
    ct = {"unit": "HU", "range": (-1000.0, 400.0), "spacing": spacing}
    private = make_set(3, images=hu[:3], role="private", **ct)
    made = make(tmp_path / "out", make_set(3, images=hu[3:], orientation="LPS"[: len(shape) - 1], **ct), private)
    assert made.released == 3
    found = load(tmp_path / "out" / "release")
    assert (found.unit, found.range, found.spacing) == ("HU", (-1000.0, 400.0), spacing)
    assert found.orientation == "LPS"[: len(shape) - 1] and found.attributes["file"][0] == f"000001{suffix}"
    order = np.abs(found.images[:, None] - hu[None, 3:]).reshape(3, 3, -1).max(-1)
    assert order.min(1).max() <= (0 if len(shape) == 4 else 0.011)


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan"), float("inf")])
def test_thresholds_that_guarantee_nothing(tmp_path, make_set, private, tau):
    with pytest.raises(ValueError, match=f"tau is {tau}; expected a positive, finite distance"):
        make(tmp_path / "out", make_set(2, (1, SIDE, SIDE), seed=1), private, tau=tau)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": np.zeros((2, 1, 8, 9))},
            r"shape of the candidates \(other\) is \(1, 8, 9\), of the private set .*resample or crop",
        ),
        ({"unit": "HU"}, r"unit of the candidates \(other\) is HU, of the private set \(ward-7-scans\) 1; .*--unit"),
        ({"range": (0.0, 2.0)}, r"range of the candidates .* is \(0.0, 2.0\), of the private .*--range LOW HIGH"),
        ({"spacing": (1.0, 1.1)}, r"spacing of the candidates .* is \(1.0, 1.1\), of the private set .* \(1.0, 1.0\); resample"),
        ({"images": np.zeros((0, 1, 8, 8)), "patient": np.zeros(0, int)}, "candidates other: holds no usable images"),
    ],
)
def test_sets_that_cannot_be_compared(tmp_path, make_set, private, changes, message):
    fields = {"n": 2, "shape": (1, SIDE, SIDE), "seed": 1, "name": "other", "patient": np.arange(2), "split": None}
    n = len(changes.get("images", "xx"))
    other = make_set(**(fields | {"n": n} | changes))
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "out", other, replace(private, spacing=(1.0, 1.0)))
    assert list(tmp_path.iterdir()) == []


def test_other_sets_that_cannot_be_compared(tmp_path, make_set, private):
    candidates = make_set(2, (1, SIDE, SIDE), seed=1)
    with pytest.raises(ValueError, match="private set ward-7-scans: holds no usable images"):
        make(tmp_path / "out", candidates, private.select(np.zeros(0, int)))
    with pytest.raises(ValueError, match=r"orientation of the candidates .* is RA, of the private set .* LP; turn one of them"):
        make(tmp_path / "out", replace(candidates, orientation="RA"), replace(private, orientation="LP"))
    colour = make_set(2, (3, SIDE, SIDE), role="private")
    with pytest.raises(ValueError, match="3 channels; only images of one channel"):
        make(tmp_path / "out", make_set(2, (3, SIDE, SIDE), seed=1), colour)
    # unknown on one side is no contradiction
    assert make(tmp_path / "out", replace(candidates, spacing=(1.0, 1.0)), replace(private, orientation="LP")).released == 2


def test_nothing_is_written_when_nothing_is_accepted(tmp_path, private):
    with pytest.raises(ValueError, match=r"none of 7 candidates was accepted \(1 cannot be read, 6 copy\); nothing was written"):
        make(tmp_path / "out", private, private, unusable={"bad.png": "cannot be read"})
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_touched(tmp_path, make_set, private):
    candidates = make_set(2, (1, SIDE, SIDE), seed=1)
    with pytest.raises(FileNotFoundError, match=r"its folder .*gone does not exist"):
        make(tmp_path / "gone" / "out", candidates, private)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("file", "full", "link"):
        with pytest.raises(FileExistsError, match=f"{name}: is there already and not an empty folder"):
            make(tmp_path / name, candidates, private)
    assert (tmp_path / "full" / "file").read_text() == (tmp_path / "file").read_text() == "mine"
    assert make(tmp_path / "empty", candidates, private).released == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file", "full", "link"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("No space left on device")])
@pytest.mark.parametrize(
    "where", ["_written", "_release", "write_manifest", "_entries", "_write_audit", "os.utime", "os.rename", "file_hash"]
)
def test_an_end_at_any_moment_leaves_nothing(tmp_path, make_set, private, monkeypatch, where, error):
    def ends(*_, **__):
        raise error

    monkeypatch.setattr(f"medsynth.privacy.release.certify.{where}", ends)
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        make(tmp_path / "out", make_set(2, (1, SIDE, SIDE), seed=1), private)
    assert list(tmp_path.iterdir()) == []


def test_candidates_lie_in_no_place_that_others_can_read_before_they_are_judged(tmp_path, make_set, private):
    modes = {}

    def spying(*arguments):
        for path in tmp_path.rglob("*"):
            modes[path.name] = stat.S_IMODE(path.stat().st_mode) & 0o077 if path.is_dir() else None
            if path.suffix == ".png":
                assert path.parent.name == "staged"
        return plain_gate(*arguments)

    make(tmp_path / "out", make_set(2, (1, SIDE, SIDE), seed=1), private, gate=spying)
    assert modes["staged"] == modes["audit"] == 0 and "0.png" in modes


def damage(path: Path, position: int, flip: int) -> None:
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= flip
    path.write_bytes(content)


@pytest.fixture(scope="module")
def damaged(made, tmp_path_factory) -> Path:
    """A release that one test damages and mends again: `made` keeps its times whichever test a process runs first."""
    return Path(shutil.copytree(made.folder, tmp_path_factory.mktemp("damaged") / "out"))


@settings(max_examples=150)
@given(which=st.integers(0, 7), position=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_any_changed_byte_fails_and_names_the_file(damaged, which, position, flip):
    release = damaged / "release"
    path = sorted(p for p in release.rglob("*") if p.is_file())[which]
    before = path.read_bytes()
    try:
        damage(path, position, flip)
        with pytest.raises(VerificationError, match=f"^{re.escape(path.relative_to(release).as_posix())}: "):
            check(release)
    finally:
        path.write_bytes(before)


def test_every_changed_byte_of_a_certificate_is_seen(made):
    short = replace(made.certificate, files=made.certificate.files[:1], versions=("numpy 2",))
    content = short.to_bytes()
    assert read_certificate(content).to_bytes() == content
    for i in range(len(content)):
        # 32 turns a letter into the other case
        with pytest.raises(ValueError):
            read_certificate(content[:i] + bytes([content[i] ^ (1 if i % 2 else 32)]) + content[i + 1 :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: (r / "images/000002.png").unlink(), r"^images/000002\.png: missing"),
        (lambda r: (r / "certificate.json").unlink(), r"^certificate\.json: missing"),
        (lambda r: (r / "README.txt").unlink(), r"^README\.txt: missing"),
        (lambda r: (r / "images/000006.png").write_bytes(b""), r"^images/000006\.png: is in the release but not in its cert"),
        (lambda r: (r / ".hidden").write_bytes(b""), r"^\.hidden: is in the release"),
        (lambda r: (r / "certificate.sig").write_bytes(b""), r"^certificate\.sig: is in the release"),
        (lambda r: (r / "images/more").mkdir(), r"^images/more: is in the release"),
        (
            lambda r: os.truncate(r / "images/000003.png", 60),
            r"^images/000003\.png: truncated: 60 bytes, the certificate says \d+",
        ),
        (lambda r: os.truncate(r / "images/000003.png", 900), r"^images/000003\.png: longer than it was"),
        (lambda r: os.truncate(r / "certificate.json", 900), r"^certificate\.json: not JSON"),
        (lambda r: (r / "certificate.json").write_text("[]"), r"^certificate\.json: not of format"),
    ],
)
def test_missing_extra_and_truncated_files(copy, change, message):
    change(copy / "release")
    with pytest.raises(VerificationError, match=message):
        check(copy)


def test_swapped_files_and_links(copy):
    images = copy / "release" / "images"
    (images / "000002.png").rename(images / "x")
    (images / "000004.png").rename(images / "000002.png")
    (images / "x").rename(images / "000004.png")
    with pytest.raises(VerificationError, match=r"^images/000002\.png: "):
        check(copy)
    (images / "000004.png").rename(copy / "000002.png")
    (images / "000002.png").rename(images / "000004.png")
    (images / "000002.png").symlink_to(copy / "000002.png")
    with pytest.raises(VerificationError, match=r"^images/000002\.png: is a link or no file"):
        check(copy)
    (images / "000002.png").unlink()
    (copy / "000002.png").rename(images / "000002.png")
    check(copy)
    images.rename(copy / "elsewhere")
    images.symlink_to(copy / "elsewhere")
    with pytest.raises(VerificationError, match=r"^images: is in the release but not in its certificate"):
        check(copy)


def rewrite(folder: Path, *, plain: bool = False, **changes: object) -> None:
    """A forged certificate: consistent in itself. plain: and with what is said in plain words."""
    path = folder / "release" / "certificate.json"
    forged = replace(read_certificate(path.read_bytes()), **changes)
    if plain:
        told = folder / "release" / "README.txt"
        told.write_text(readme(forged))
        entry = FileEntry(told.name, told.stat().st_size, file_hash(told))
        forged = replace(forged, files=tuple(entry if f.name == entry.name else f for f in forged.files))
    path.write_bytes(forged.to_bytes())


def test_consistent_forgeries(copy, made, private):
    old = made.certificate
    rewrite(copy, tau=replace(old.tau, value=2.0))
    with pytest.raises(VerificationError, match=r"^README\.txt: is not what certificate\.json says in plain words"):
        check(copy)
    for nothing in (
        {"tau": replace(old.tau, value=-1.0)},
        {"tau": replace(old.tau, value=0.0)},
        {"margin": -1.0},
        {"transformations": ()},
        {"presentations": ()},
    ):
        with pytest.raises(ValueError, match="that guarantees nothing"):
            read_certificate(replace(old, **nothing).to_bytes())
    rewrite(copy, plain=True, tau=replace(old.tau, value=2.0))
    assert "no signature" in check(copy)  # without one, or the audit, nobody can tell
    with pytest.raises(VerificationError, match=r"^certificate\.json: is not the one that the audit belongs to"):
        check(copy, private=private)
    rewrite(copy, plain=True, tau=old.tau)
    rewrite(copy, released=4)
    with pytest.raises(VerificationError, match=r"^images: 5 are there; the certificate says 4"):
        check(copy)
    for change in ({"mode": "dp"}, {"statement": "This is differential privacy."}, {"exactness": "none"}):
        with pytest.raises(ValueError, match=f"its {next(iter(change))} is not that of 'medsynth.certificate/4'"):
            read_certificate(replace(old, **change).to_bytes())
    for name in ("../audit/audit.json", "/etc/hosts", "images/../README.txt", "images/1.png", "images/000001.tiff", "extra.txt"):
        outside = tuple(replace(f, name=name) if f.name == "README.txt" else f for f in old.files)
        with pytest.raises(ValueError, match=f"it names the file '{re.escape(name)}'; expected manifest.json, README.txt and"):
            read_certificate(replace(old, files=outside).to_bytes())
    with pytest.raises(ValueError, match=r"it names the file 'README.txt' twice; expected each once"):
        read_certificate(replace(old, files=(*old.files, next(f for f in old.files if f.name == "README.txt"))).to_bytes())
    manifest = copy / "release" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"png16", b"png99"))
    entry = FileEntry("manifest.json", manifest.stat().st_size, file_hash(manifest))
    rewrite(copy, files=tuple(entry if f.name == entry.name else f for f in old.files))
    with pytest.raises(VerificationError, match=r"^images: cannot be loaded: .*files 'png99'"):
        check(copy)
    body = json.loads(old.to_bytes())
    for change in ({"tau": 1}, {"files": [1]}, {"transformations": "copy"}, {"more": 1}, {"versions": None}):
        text = json.dumps(body | change)
        with pytest.raises(ValueError, match="certificate"):
            read_certificate(text.encode())
    with pytest.raises(ValueError, match="not JSON"):
        read_certificate(b"[" * 100_000)


def hashes_redone(folder: Path) -> None:
    """A forger's last step: the certificate states the files as they are."""
    path = folder / "release" / "certificate.json"
    found = read_certificate(path.read_bytes())
    files = (
        FileEntry(f.name, (folder / "release" / f.name).stat().st_size, file_hash(folder / "release" / f.name))
        for f in found.files
    )
    path.write_bytes(replace(found, files=tuple(files)).to_bytes())


def remark(**changes: object) -> Callable[[bytes], bytes]:
    """A manifest of the same form that says something else."""
    return lambda content: (json.dumps(json.loads(content) | changes, indent=1, sort_keys=True) + "\n").encode()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (remark(meaning="Someone, 12.3.1956"), "is not, byte for byte, the manifest of the encoding that it states"),
        (lambda content: content.replace(b"{", b'{\n "unit": "Someone",', 1), "is not, byte for byte"),
        (lambda content: content + b"\n\n", "is not, byte for byte"),
        (lambda content: content.replace(b"65535", b"65535.0") + b" ", "is not, byte for byte"),
        (remark(unit="Some One"), "unit 'Some One'; expected its symbol"),
        (remark(range=[0.0, 1e30]), "expected a step of 1.5"),
        (remark(step=1.0), r"range \(0\.0, 1\.0\) and step 1\.0; expected a step of"),
    ],
)
def test_a_manifest_says_its_encoding_and_nothing_else(copy, change, found):
    path = copy / "release" / "manifest.json"
    path.write_bytes(change(path.read_bytes()))
    hashes_redone(copy)
    with pytest.raises(VerificationError, match=rf"^manifest\.json: .*{found}"):
        check(copy)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"commitment": "Some One"}, "commitment must be 64 hex digits"),
        ({"signed_by": "ab " * 32}, "key must be 64 hex digits"),
        ({"versions": ("numpy 2.1.0", "Someone 1956")}, "versions must be of packages"),
        ({"versions": ("numpy 1956 Someone",)}, "versions must be of packages"),
        ({"versions": ("numpy 1", "numpy 2")}, "versions must be of packages"),
    ],
)
def test_a_certificate_has_no_room_for_remarks(made, change, found):
    with pytest.raises(ValueError, match=f"its {found}"):
        read_certificate(replace(made.certificate, **change).to_bytes())


@pytest.mark.parametrize("how", ["chosen\nverified: all", "\x1b[31mchosen", "\u202echosen"])
def test_how_tau_was_chosen_is_one_line(made, how):
    with pytest.raises(ValueError, match=r"its tau\.how must be one line that can be printed"):
        read_certificate(replace(made.certificate, tau=replace(made.certificate.tau, how=how)).to_bytes())


def test_versions_as_packages_have_them():
    for number in ("3.13.0", "2.9.1+cu128", "0.1.dev12+g1a2b3c4.d20260101", "1.0rc1", "3.12.3+", "2.0.post1"):
        assert certificate_module._VERSION.fullmatch(number)


def test_a_feature_map_and_its_gallery_are_called_what_they_are(tmp_path, copy, made, make_set, private):
    rewrite(copy, plain=True, encoder=replace(made.certificate.encoder, name="Some One"))
    with pytest.raises(VerificationError, match=r"^feature map 'pixels': its name is 'pixels for tests', .* 'Some One'"):
        check(copy)
    make(tmp_path / "real", make_set(2, (1, SIDE, SIDE), seed=1), private, gate=Gate)
    real = read_certificate((tmp_path / "real" / "release" / "certificate.json").read_bytes())
    assert "verified" in verify(tmp_path / "real", maps=lambda _: RootMeanSquare())
    for what in ("transformations", "presentations"):
        rewrite(tmp_path / "real", plain=True, **{what: (*getattr(real, what)[:-1], "Some One")})
        with pytest.raises(VerificationError, match=f"^{what}: the installed ones are not the certificate's"):
            verify(tmp_path / "real", maps=lambda _: RootMeanSquare())
        rewrite(tmp_path / "real", plain=True, **{what: getattr(real, what)})


@pytest.mark.parametrize("shape", [(1, SIDE, SIDE), (1, 6, SIDE, 5)])
def test_a_gallery_has_its_names_whatever_its_images(make_set, shape):
    images = make_set(1, shape, split=None)
    gate = Gate(images, RootMeanSquare(), TAU)
    assert gallery_names(images) == (gate.copies, gate.presentations)


def test_a_unit_that_no_manifest_may_state_is_an_error_before_all_else(tmp_path, make_set, private):
    with pytest.raises(ValueError, match="unit 'Some One'; expected its symbol"):
        make(tmp_path / "out", make_set(2, (1, SIDE, SIDE), unit="Some One"), replace(private, unit="Some One"), gate=None)
    for unit in ("HU", "SUV", "g/ml", "1", "%", "10^-3mm²/s", "µm", "Bq/ml"):
        assert b'"unit"' in manifest(Encoding("png8", unit, (0.0, 1.0), 1 / 255, (8, 8)))


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        (lambda png: png + b"a patient's name", "16 bytes after its end"),
        (lambda png: png[:33] + chunk(b"tEXt", b"Name\0Someone") + png[33:], "a chunk 'tEXt'"),
        (lambda png: png[:33] + chunk(b"zTXt", b"Name\0\0") + png[33:], "a chunk 'zTXt'"),
        (lambda png: png[:-12] + chunk(b"eXIf", b"MM\0*") + png[-12:], "a chunk 'eXIf'"),
        (lambda png: png[:-12] + chunk(b"IDAT", b"hidden") + png[-12:], "6 bytes after its pixels"),
    ],
)
def test_a_png_holds_pixels_and_nothing_else(copy, payload, found):
    path = copy / "release" / "images" / "000001.png"
    path.write_bytes(payload(path.read_bytes()))
    hashes_redone(copy)
    with pytest.raises(VerificationError, match=rf"^images/000001\.png: holds {found}; a released file holds pixels and nothing"):
        check(copy)


def _header(nifti: bytes, at: int, text: bytes) -> bytes:
    raw = bytearray(gzip.decompress(nifti))
    raw[at : at + len(text)] = text
    return gzip.compress(bytes(raw), 6, mtime=0)


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        (lambda nifti: nifti + gzip.compress(b"a second member", mtime=0), r"\d+ bytes after its pixels"),
        (
            lambda nifti: gzip.compress(gzip.decompress(nifti) + b"more", 6, mtime=0),
            r"\d+ bytes of pixels where \d+ are expected",
        ),
        (lambda nifti: _header(nifti, 148, b"Someone, 12.3.1956"), "another header than the manifest's"),
        (lambda nifti: nifti[:4] + b"\1\2\3\4" + nifti[8:], "a name, a time or a comment in its gzip header"),
    ],
)
def test_a_nifti_holds_pixels_and_nothing_else(tmp_path, make_set, payload, found):
    volumes = {"shape": (1, 3, SIDE, SIDE), "split": None}
    private = make_set(3, role="private", **volumes)
    made = make(tmp_path / "out", make_set(3, seed=1, **volumes), private)
    assert "verified" in check(made.folder)
    path = made.folder / "release" / "images" / "000001.nii.gz"
    # gzip.compress names an operating system, which our writer does not
    changed = bytearray(payload(path.read_bytes()))
    changed[9] = 255
    path.write_bytes(changed)
    hashes_redone(made.folder)
    with pytest.raises(VerificationError, match=rf"^images/000001\.nii\.gz: holds {found}"):
        check(made.folder)


def test_pixels_packed_by_another_zlib_are_pixels(copy):
    path = copy / "release" / "images" / "000001.png"
    content = path.read_bytes()
    at = content.index(b"IDAT")
    length = int.from_bytes(content[at - 4 : at])
    stored = zlib.compress(zlib.decompress(content[at + 4 : at + 4 + length]), 0)
    path.write_bytes(content[: at - 4] + chunk(b"IDAT", stored) + content[at + 8 + length :])
    hashes_redone(copy)
    assert "verified" in check(copy)


def test_a_threshold_given_by_hand_says_so_first(tmp_path, make_set, private):
    made = make(tmp_path / "out", make_set(3, (1, SIDE, SIDE), seed=1), private, how="given by the operator", calibrated=False)
    release = made.folder / "release"
    first = json.loads((release / "certificate.json").read_text())
    assert next(iter(first)) == "about" and first["about"].startswith("NOT CALIBRATED")
    assert (release / "certificate.json").read_text().splitlines()[1].startswith(' "about": "NOT CALIBRATED')
    assert (release / "README.txt").read_text().startswith("NOT CALIBRATED")
    assert check(made.folder).startswith("NOT CALIBRATED") and check(made.folder).endswith("tau = 0.2, given by the operator")
    with pytest.raises(ValueError, match="it begins with 'NOT CALIBRATED"):
        read_certificate(replace(made.certificate, tau=replace(made.certificate.tau, calibrated=True)).to_bytes())


def test_what_was_not_tried_is_named(made):
    told = " ".join((made.folder / "release" / "README.txt").read_text().split())
    for kind in ("a part of an image", "overlays", "uneven shading", "CLAHE", "tone curves", "three alterations at once"):
        assert kind in told


def test_what_was_tried_is_bounded(made):
    told = " ".join((made.folder / "release" / "README.txt").read_text().split())
    for bound in (
        "shifted by up to 8% of a side", "turned by up to 10 degrees", "zoomed from 0.9 to 1.1", "up to 1/64 of the width",
        "darker by up to 20% of the range", "gamma 0.7 to 1.4", "noise of 5% of the range", "JPEG of quality 50", "1/8 of it",
        "brighter or darker by small steps", "anything beyond these bounds", "shrinking", "shear", "few grey levels",
        "pixel by pixel alone: one that was changed by one grey level may pass",
    ):  # fmt: skip
        assert bound in told


def test_another_feature_map(copy, made, private):
    def other(_: str) -> RootMeanSquare:
        phi = RootMeanSquare()
        phi.hash = "1" * 32
        return phi

    with pytest.raises(VerificationError, match=r"^feature map 'pixels': the installed one has hash 1+…, the certificate's 0+…"):
        verify(copy, maps=other)

    def gone(_: str) -> RootMeanSquare:
        raise ValueError("encoder.safetensors: sha256 differs")

    with pytest.raises(VerificationError, match=r"^feature map 'pixels': cannot be loaded here: encoder\.safetensors: sha256"):
        verify(copy, maps=gone)
    rewrite(copy, encoder=replace(made.certificate.encoder, key=""))
    with pytest.raises(ValueError, match="does not come with medsynth; verify from Python") as error:
        check(copy)
    assert not isinstance(error.value, VerificationError)


def test_a_private_set_that_has_changed(copy, private, make_set):
    moved = private.images.copy()
    moved[2, 0, 3, 3] = 1 - moved[2, 0, 3, 3]
    changed = [
        private.with_images(moved), private.select(np.arange(5)), private.select([0, 1, 2, 3, 4, 5, 5]),
        replace(private, unit="SUV"), replace(private, range=(0.0, 2.0)), make_set(6, (1, 4, 4)),
    ]  # fmt: skip
    for other in changed:
        with pytest.raises(VerificationError, match=r"^private set: it is not the one of this release: its commitment differs"):
            check(copy, private=other)
    # order, names and patient numbers are not pixels
    same = replace(private.select([3, 1, 5, 0, 2, 4]), name="x", patient=np.arange(6), split=None)
    assert "5 distances" in check(copy, private=same)


def test_a_copy_that_lies_on_its_side_is_refused(tmp_path, make_set, private):
    """NIfTI arrays are transposed against PNG, and some files are upside down."""
    far = make_set(4, (1, SIDE, SIDE), seed=1).images
    own = private.images[:4]
    laid = [own.swapaxes(2, 3), own[..., ::-1, :], np.rot90(own, axes=(2, 3)), np.rot90(own, 2, axes=(2, 3))]
    made = make(tmp_path / "out", make_set(20, images=np.concatenate([far, *laid])), private)
    assert (made.released, made.refused) == (4, {"copy": 16})


def test_a_negative_is_refused(tmp_path, make_set, private):
    """As it is, on its side, and when its codes are those of a file in the other polarity."""
    far = make_set(4, (1, SIDE, SIDE), seed=1).images
    own = 1 - private.images[:4]
    near = np.clip(own + 0.01, 0, 1)
    candidates = make_set(16, images=np.concatenate([far, own, np.rot90(own, axes=(2, 3)), near]))
    made = make(tmp_path / "out", candidates, private)
    assert (made.released, made.refused) == (4, {"copy": 8, "too close": 4})
    # and whatever the feature map says
    made = make(tmp_path / "again", candidates, private, tau=1e-12)
    assert (made.released, made.refused) == (8, {"copy": 8})


def test_a_stack_that_holds_a_private_plane_is_refused(tmp_path, make_set):
    """In whatever place, orientation and polarity, as the files have it; empty planes are nobody's."""
    rng = np.random.default_rng(0)
    own, other = (rng.integers(0, 65536, (5, 1, 8, SIDE, SIDE)) / 65535 for _ in range(2))
    own[:, :, -2:] = other[:, :, -2:] = 0
    taken = own[0, 0, 3]
    # nearer to the private plane than half a code
    for i, plane in enumerate((taken, np.rot90(taken), 1 - taken, np.clip(taken + 2e-6, 0, 1))):
        other[i, 0, 5] = plane
    private = make_set(5, images=own, role="private", patient=np.arange(5), split=None)
    candidates = make_set(5, images=other, patient=np.arange(5), split=None)
    made = make(tmp_path / "out", candidates, private, tau=1e-6)
    assert (made.released, made.refused) == (1, {"copy": 4})


def test_other_presentations(copy, private):
    class OneWay(Gate):
        def __init__(self, *rest: object, **options: object) -> None:
            super().__init__(*rest, **options)
            self.presentations = self.presentations[:1]

    with pytest.raises(VerificationError, match=r"^presentations: the installed ones are not the certificate's"):
        verify(copy, private=private, maps=lambda _: RootMeanSquare(), gate=lambda *a: OneWay(*a, copies=two_copies))


def test_other_transformations(copy, private):
    with pytest.raises(VerificationError, match=r"^transformations: the installed ones are not the certificate's"):
        verify(copy, private=private, maps=lambda _: RootMeanSquare(), gate=lambda *a: Gate(*a, copies=lambda s: [("copy", s)]))


def test_distances_that_are_not_beyond_tau(copy, private, monkeypatch):
    """A gate that lets everything pass is found out by one that does not."""

    class Blind(Gate):
        def judge(self, candidates):
            verdicts = super().judge(candidates)
            return replace(verdicts, accepted=np.ones(len(candidates), bool), reason=np.full(len(candidates), "", dtype="<U10"))

    shutil.rmtree(copy)
    monkeypatch.setattr("medsynth.privacy.release.certify.same_files", lambda images, *_: np.zeros(len(images), bool))
    make(copy, private.select([4]), private, gate=lambda *a: Blind(*a, copies=two_copies))
    assert "verified" in check(copy)
    with pytest.raises(VerificationError, match=r"^images/000001\.png: holds the pixels of a private image"):
        check(copy, private=private)
    shutil.rmtree(copy)
    near = private.select([4]).with_images(np.clip(private.images[[4]] + 0.01, 0, 1))
    make(copy, near, private, gate=lambda *a: Blind(*a, copies=two_copies))
    with pytest.raises(VerificationError, match=r"^images/000001\.png: too close: its distance 0\.01\d* is not above tau, 0\.2"):
        check(copy, private=private)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: (a / "commitment.key").write_text("00" * 32), "private set: .* its commitment differs"),
        (
            lambda a: (a / "commitment.key").write_text(""),
            r"audit: .* is missing or damaged \(0 bytes in commitment\.key; expected 32",
        ),
        (lambda a: (a / "commitment.key").write_text("xyz"), r"audit: commitment\.key or candidates\.csv is missing or damaged"),
        (lambda a: (a / "candidates.csv").unlink(), "audit: .* missing or damaged"),
        (lambda a: (a / "candidates.csv").write_text("a,b\n1,2\n"), "audit: .* missing or damaged"),
        (
            lambda a: (a / "candidates.csv").write_text("released,distance\n000001.png,9\n"),
            r"images/000001\.png: its distance is .* audit says 9",
        ),
        (
            lambda a: (a / "candidates.csv").write_text("released,distance\n000001.png,nan\n"),
            r"images/000001\.png: its distance is .* audit says nan",
        ),
        (lambda a: (a / "candidates.csv").write_text("released,distance\n"), r"images/000001\.png: .* the audit says nothing"),
        (lambda a: (a / "audit.json").unlink(), r"audit: audit\.json is missing"),
        (lambda a: (a / "audit.json").write_text("[]"), r"audit: audit\.json is damaged"),
    ],
)
def test_an_audit_that_does_not_fit(copy, private, change, message):
    change(copy / "audit")
    assert "verified" in check(copy)
    with pytest.raises(VerificationError, match=f"^{message}"):
        check(copy, private=private)


def test_where_there_is_nothing_to_verify(tmp_path, copy, private):
    with pytest.raises(FileNotFoundError, match=r"no release; expected a folder with certificate.json"):
        check(tmp_path / "gone")
    assert "5 distances" in check(copy / "release", private=private)
    shutil.rmtree(copy / "audit")
    with pytest.raises(FileNotFoundError, match="no audit beside the release; distances can only be checked by whoever holds it"):
        check(copy / "release", private=private)


def test_the_private_set_is_loaded_again_as_it_was(tmp_path, private, make_set):
    from PIL import Image

    for name, seed in (("mine", 0), ("theirs", 1)):
        (tmp_path / name).mkdir()
        for i, image in enumerate(np.random.default_rng(seed).integers(0, 255, (4, SIDE, SIDE), dtype=np.uint8)):
            Image.fromarray(image).save(tmp_path / name / f"{i}.png")
    values = Values((-1000.0, 400.0), "HU")
    make(tmp_path / "out", load(tmp_path / "theirs", values=values), load(tmp_path / "mine", values=values), values=values)
    assert "4 distances" in check(tmp_path / "out", private=tmp_path / "mine")
    (tmp_path / "mine" / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"0\.png: cannot be read"):
        check(tmp_path / "out", private=tmp_path / "mine")
    path = tmp_path / "out" / "audit" / "audit.json"
    path.write_text(path.read_text().replace('"values"', '"valeus"'))
    with pytest.raises(VerificationError, match=r"^audit: audit\.json is damaged \('values'\)"):
        check(tmp_path / "out", private=tmp_path / "mine")


def test_a_commitment_tells_nothing_without_its_key(private):
    keys = [bytes([k]) * 32 for k in range(2)]
    assert private.commitment(keys[0]) != private.commitment(keys[1])
    assert private.commitment(keys[0]) == private.select([5, 4, 3, 2, 1, 0]).commitment(keys[0])
    # other bytes would fail certificates that were passed on before
    told = f'{{\n "range": [\n  0.0,\n  1.0\n ],\n "shape": [\n  1,\n  {SIDE},\n  {SIDE}\n ],\n "unit": "{private.unit}"\n}}\n'
    said = "medsynth.private-set/1\n" + told + "".join(sorted(private.row_hashes))
    assert private.commitment(keys[0]) == hmac.new(keys[0], said.encode(), hashlib.sha256).hexdigest()


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    """Two Ed25519 key pairs and keys of other kinds, as openssl writes them."""
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    folder = tmp_path_factory.mktemp("keys")
    made = {"ours": ed25519.Ed25519PrivateKey.generate(), "other": ed25519.Ed25519PrivateKey.generate(),
            "curve": ec.generate_private_key(ec.SECP256R1())}  # fmt: skip
    for name, key in made.items():
        private = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
        locked = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"secret"))
        public = key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
        for suffix, content in ((".key", private), (".locked", locked), (".pem", public)):
            (folder / (name + suffix)).write_bytes(content)
    return folder


@pytest.fixture
def signed(tmp_path, make_set, private, keys) -> Path:
    make(tmp_path / "signed", make_set(2, (1, SIDE, SIDE), seed=1), private, sign=keys / "ours.key")
    return tmp_path / "signed"


def test_signatures(signed, keys, copy):
    public = read_certificate((signed / "release" / "certificate.json").read_bytes()).signed_by
    assert re.fullmatch("[0-9a-f]{64}", public)
    assert "its signature by the key given" in check(signed, public_key=keys / "ours.pem")
    assert f"its signature by the unknown key {public[:16]}…" in check(signed)
    with pytest.raises(VerificationError, match=r"^certificate\.sig: is by the key .*…, not by the one given"):
        check(signed, public_key=keys / "other.pem")
    with pytest.raises(VerificationError, match=r"^certificate\.json: is not signed; a signature was asked for"):
        check(copy, public_key=keys / "ours.pem")
    # a forger without the key
    rewrite(signed, released=3)
    with pytest.raises(VerificationError, match=r"^certificate\.sig: is no signature of certificate\.json by the key it names"):
        check(signed)
    (signed / "release" / "certificate.sig").unlink()
    with pytest.raises(VerificationError, match=r"^certificate\.sig: missing"):
        check(signed)


def test_every_changed_byte_of_a_signature_is_seen(signed):
    path = signed / "release" / "certificate.sig"
    content, message = path.read_bytes(), (signed / "release" / "certificate.json").read_bytes()
    public = read_certificate(message).signed_by
    assert is_signature(content, message, public) and not is_signature(content, message, "zz")
    damaged = [content[:i] + bytes([content[i] ^ flip]) + content[i + 1 :] for i in range(len(content)) for flip in (1, 32, 128)]
    for other in (*damaged, content[:-1], content + b"\n", b" " + content, b""):
        assert not is_signature(other, message, public)
    path.write_bytes(damaged[7])
    with pytest.raises(VerificationError, match=r"^certificate\.sig: is no signature"):
        check(signed)


def test_keys_of_other_kinds(tmp_path, make_set, private, keys, copy):
    candidates = make_set(2, (1, SIDE, SIDE), seed=1)
    for name, message in (("ours.pem", "not an unencrypted private key"), ("ours.locked", "not an unencrypted private key"),
                          ("curve.key", "ECPrivateKey; expected an Ed25519 key")):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            make(tmp_path / "new", candidates, private, sign=keys / name)
    for name, message in (("ours.key", "not a public key"), ("curve.pem", "ECPublicKey; expected an Ed25519 key")):
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            check(copy, public_key=keys / name)
    with pytest.raises(FileNotFoundError):
        make(tmp_path / "new", candidates, private, sign=keys / "gone")
    assert not (tmp_path / "new").exists()


def test_signing_without_the_optional_package(tmp_path, make_set, private, monkeypatch):
    for name in [m for m in sys.modules if m.split(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(
        ValueError, match=r"signatures need the package cryptography; install it with: pip install 'medsynth\[sign\]'"
    ):
        make(tmp_path / "out", make_set(2, (1, SIDE, SIDE), seed=1), private, sign=tmp_path / "key")
    assert list(tmp_path.iterdir()) == []


def test_the_statement_mentions_a_signature_only_if_there_is_one(made):
    assert "certificate.sig" not in readme(made.certificate)
    assert "certificate.sig is the signature of certificate.json (Ed25519)" in readme(
        replace(made.certificate, signed_by="0" * 64)
    )


# What could go wrong in a rewrite, planted: each must fail the test that the real thing passes.


def _judged_as_drawn(images, encoding, order, staged, written=certify_module._written):
    written(images, encoding, order, staged)
    return images.select(order, name="candidates")


def _readable_by_all(images, encoding, order, staged, written=certify_module._written):
    staged.chmod(0o755)
    return written(images, encoding, order, staged)


class _NoChance:
    def sample(self, population, k):
        return list(population)[:k]


_BUGS = {
    "check before quantisation": ("_written", _judged_as_drawn, test_the_files_are_judged_and_not_the_floats),
    "margin dropped": ("margin", lambda error: 0.0, test_images_are_accepted_only_beyond_the_margin),
    "files equal to a private one pass": (
        "same_files", lambda images, *_: np.zeros(len(images), bool), test_a_private_image_saved_with_fewer_codes_is_a_copy
    ),
    "released in the candidates' order": ("secrets.SystemRandom", _NoChance, test_file_names_are_in_no_order_of_the_candidates),
    "the same key every time": ("secrets.token_bytes", lambda n: bytes(n), test_a_release_can_be_gated_again),
    "candidates lie open until they are judged": (
        "_written", _readable_by_all, test_candidates_lie_in_no_place_that_others_can_read_before_they_are_judged
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", _BUGS)
def test_planted_bugs_are_found(bug, tmp_path, make_set, private, mixed, monkeypatch):
    where, what, test = _BUGS[bug]
    monkeypatch.setattr(f"medsynth.privacy.release.certify.{where}", what)
    needs = inspect.signature(test).parameters
    have = {"tmp_path": tmp_path, "make_set": make_set, "private": private}
    if "made" in needs:
        have["made"] = make(tmp_path / "made", mixed, private)
    with pytest.raises(AssertionError):
        test(**{k: v for k, v in have.items() if k in needs})


def test_a_release_is_not_taken_for_another_that_lies_in_it(copy):
    good = copy.parent / "good"
    shutil.copytree(copy / "release", good)
    shutil.copytree(copy / "release", good / "release")
    with pytest.raises(VerificationError, match="release: is in the release but not in its certificate"):
        check(good)
    (good / "certificate.json").unlink()
    with pytest.raises(VerificationError, match=r"certificate\.json: missing"):
        check(good)


def test_an_audit_that_others_may_open_is_noticed(copy, private):
    assert "others may open" not in check(copy, private=private)
    (copy / "audit").chmod(0o755)
    assert f"but others may open {copy / 'audit'}: chmod 700 it" in check(copy, private=private)

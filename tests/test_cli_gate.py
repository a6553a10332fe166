from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from shared import RootMeanSquare

from medsynth import cli
from medsynth.data.folder import load
from medsynth.ledger import Ledger
from medsynth.mechanism import NONE
from medsynth.privacy.gate import calibration, thresholds
from medsynth.privacy.gate import feature_maps as distances
from medsynth.privacy.release import gate_release

SIDE = 8


@pytest.fixture
def call(tmp_path, monkeypatch, capsys, cache):
    """Run the command as a user would; (exit code, stdout, stderr)."""
    asked = []

    def feature_map(name: str) -> RootMeanSquare:
        asked.append(name)
        return RootMeanSquare()

    monkeypatch.chdir(tmp_path)
    for module in (distances, gate_release):
        monkeypatch.setattr(module, "feature_map", feature_map)

    def threshold_for(phi: RootMeanSquare, dims: int, kind: str) -> thresholds.Threshold:
        if dims == 3:
            raise ValueError("no threshold ships")
        return thresholds.Threshold(tau=0.3, how="as tests are")

    monkeypatch.setattr(gate_release, "threshold_for", threshold_for)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medsynth", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (end.value.code or 0, *capsys.readouterr())

    run.asked = asked
    return run


def pngs(folder: Path, seed: int, n: int = 3, side: int = SIDE) -> Path:
    folder.mkdir()
    for i, image in enumerate(np.random.default_rng(seed).integers(0, 256, (n, side, side), dtype=np.uint8)):
        Image.fromarray(image).save(folder / f"scan{i}.png")
    return folder


@pytest.fixture
def sets(tmp_path) -> tuple[Path, Path]:
    return pngs(tmp_path / "drawn", 1), pngs(tmp_path / "ward", 0)


def test_a_folder_of_png_files(call, sets):
    candidates, private = sets
    Image.open(private / "scan1.png").save(candidates / "scan3.png")
    (candidates / "scan4.png").write_bytes(b"no image")
    Path("people.csv").write_text("file,patient\nscan0.png,A\nscan1.png,B\nscan2.png,A\n")
    code, out, err = call("gate", candidates, "--private", private, "--out", "out", "--patients", "people.csv")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "3 of 5 candidates released, 1 cannot be read, 1 copy",
        "compared with 3 images of 2 private patients",
        "out/release may be passed on as its README.txt says; out/audit is as private as the private set",
    ]
    assert len(load("out/release")) == 3
    assert "scan3.png,,copy,0.0,B\n" in Path("out/audit/candidates.csv").read_text()
    assert "as tests are" in Path("out/release/README.txt").read_text()
    (entry,) = Ledger().entries()
    assert (entry.stage, entry.reads, entry.patients, entry.mechanism) == ("gate", "ward", 2, NONE)
    line = "verified: 5 files and the certificate, the feature map 'pixels for tests'"
    line += ", no signature, so whoever passed it on could have written it"
    chosen = "; tau = 0.3, as tests are\n"
    assert call("verify", "out") == (0, line + chosen, "")
    assert call("verify", "out", "--private", private) == (0, f"{line}, the private set and 3 distances{chosen}", "")
    assert [e.stage for e in Ledger().entries()] == ["gate", "verify"]
    assert set(call.asked) == {"encoder"}
    # a list of patients may lie among their images
    people = private / "people.csv"
    Path("people.csv").rename(people)
    assert call("gate", candidates, "--private", private, "--out", "listed", "--patients", people)[0] == 0
    assert call("verify", "listed", "--private", private, "--patients", people)[0] == 0
    assert call("verify", "listed", "--private", private)[0] == 2
    assert "--patients belongs to a private folder" in call("verify", "listed", "--patients", people)[2]
    people.unlink()
    # and what comes out goes in again
    assert call("gate", "out/release", "--private", private, "--out", "again")[0] == 0


def test_what_fails_is_named_with_code_one(call, sets):
    candidates, private = sets
    call("gate", candidates, "--private", private, "--out", "out", "--tau", "0.2")
    told = Path("out/release/README.txt").read_text()
    assert told.startswith("NOT CALIBRATED") and "given by the operator, not calibrated" in " ".join(told.split())
    assert call("verify", "out")[1].startswith("NOT CALIBRATED")
    assert call("verify", "out", "--private", candidates) == (
        1, "", "failed: private set: it is not the one of this release: its commitment differs\n",
    )  # fmt: skip
    with open("out/release/images/000002.png", "ab") as f:
        f.write(b"x")
    code, out, err = call("verify", "out")
    assert (code, out) == (1, "") and err.startswith("failed: images/000002.png: longer than it was")


def test_volumes_in_nifti_files(call, tmp_path):
    for name, seed in (("drawn", 1), ("ward", 0)):
        (tmp_path / name).mkdir()
        volumes = np.random.default_rng(seed).integers(-1024, 3000, (3, SIDE, SIDE, 4)).astype(np.int16)
        for i, volume in enumerate(volumes):
            nib.Nifti1Image(volume, np.diag([-0.7, -0.7, 2.0, 1.0])).to_filename(tmp_path / name / f"{i}.nii.gz")
    base = ("gate", "drawn", "--private", "ward", "--out", "out")
    code, _, err = call(*base)
    assert code == 2 and "0.nii.gz: pixels of type int16 do not say which values an image can take; give --range" in err
    ct = ("--range", "-1024", "3071", "--unit", "HU")
    code, _, err = call(*base, *ct)
    assert (code, err) == (
        2, "error: no threshold ships; name another with --modality, or give --others or --tau\n",
    )  # fmt: skip
    code, out, _ = call(*base, *ct, "--tau", "0.2")
    assert code == 0 and out.startswith("3 of 3 candidates released\n")
    assert set(call.asked) == {"encoder_3d"}
    found = load("out/release")
    assert (found.unit, found.range, found.spacing) == ("HU", (-1024.0, 3071.0), (2.0, 0.7, 0.7))
    assert found.orientation == "LPS"
    # the private set is read again as it was read then
    assert "3 distances" in call("verify", "out", "--private", "ward")[1]
    code, out, err = call(*base[:-1], "windowed", "--window", "-160", "240", "--unit", "HU", "--tau", "0.01")
    assert code == 0, err
    assert load("windowed/release").range == (-160.0, 240.0)
    assert "3 distances" in call("verify", "windowed", "--private", "ward")[1]


def test_npz_files(call, tmp_path, make_set):
    make_set(3, (1, SIDE, SIDE), seed=1, name="drawn").save(tmp_path / "drawn.npz")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "ward.npz", image=rng.integers(0, 256, (4, SIDE, SIDE), dtype=np.uint8), patient=np.arange(4))
    code, out, _ = call("gate", "drawn.npz", "--private", "ward.npz", "--out", "out", "--phi", "pixels")
    assert code == 0 and out.startswith("3 of 3 candidates released\n") and set(call.asked) == {"pixels"}
    assert "3 distances" in call("verify", "out", "--private", "ward.npz")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--private", "gone"), "gone: no such file or folder"),
        (("--private", "ward", "--range", "0", "1", "--window", "0", "1"), "--range and --window exclude each other"),
        (("--private", "ward", "--tau", "0.3", "--modality", "mri"), "--modality mri; expected xray, ct, mr, pet, or phantom-"),
        (("--private", "ward", "--range", "1", "0"), "range 1 0; expected two finite numbers, the lower one first"),
        (("--private", "ward", "--patients", "gone.csv"), "gone.csv"),
        (("--private", "ward", "--tau", "-1"), "tau is -1.0; expected a positive, finite distance"),
        (("--private", "ward", "--tau", "nan"), "tau is nan"),
        (("--private", "drawn"), "none of 3 candidates was accepted (3 copy); nothing was written to out"),
        (("--private", "ward", "--unit", "HU", "--sign", "gone.pem"), "gone.pem"),
    ],
)
def test_bad_input_is_one_line_and_code_two(call, sets, arguments, message):
    if "--sign" in arguments:
        pytest.importorskip("cryptography")
    before = sorted(p.name for p in Path().iterdir())
    code, out, err = call("gate", "drawn", *arguments, "--out", "out")
    assert (code, out) == (2, "") and err.startswith("error: ") and message in err and len(err.splitlines()) == 1
    assert [n for n in sorted(p.name for p in Path().iterdir()) if n != "cache"] == [n for n in before if n != "cache"]


def test_there_is_something_to_verify(call, sets):
    code, _, err = call("verify", "drawn")
    assert code == 2 and err.startswith("error: drawn: no release; expected a folder with certificate.json")


def test_signed_releases(call, sets):
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    Path("k.key").write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
    Path("k.pem").write_bytes(key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    assert call("gate", "drawn", "--private", "ward", "--out", "out", "--sign", "k.key")[0] == 0
    assert "its signature by the key given" in call("verify", "out/release", "--public-key", "k.pem")[1]


def test_a_threshold_found_on_other_people(call, sets, monkeypatch):
    candidates, private = sets
    monkeypatch.setattr(calibration, "FAMILIES", (("gain and offset",), ("noise",), ("gain and offset", "noise")))
    strangers = pngs(Path("others"), 2, n=20)
    base = ("gate", candidates, "--private", private, "--out", "out", "--others", strangers)
    assert call(*base)[2] == (
        "error: --others: 20 patients; expected at least 299 to say with 95% confidence that at most 1.00% slip through; give "
        "images of more people, or let more copies pass with --miss\n"
    )
    assert not Path("out").exists() and not Ledger().entries()
    for share in ("0", "2", "nan"):
        assert f"--miss {share}; expected a share between 0 and 0.5" in call(*base, "--miss", share)[2]
    code, out, _ = call(*base, "--miss", "0.2")
    assert (code, json.loads(Path("out/audit/audit.json").read_text())["strangers"]["n"]) == (0, 20)
    assert "of images of other people it would refuse, in percent: " in out and "(n = 20); this too is for the audit only" in out
    said = " ".join(Path("out/release/README.txt").read_text().split())
    assert "one image each of 20 other patients (a set of the sender's); " in said and "(others)" not in said
    assert "at most 20.00% of any one alteration and 50.00% of any one pair" in said
    threshold, verdicts = Ledger().entries()[-2:]
    assert (threshold.reads, threshold.output, verdicts.stage) == ("others", "threshold", "gate")
    assert verdicts.output == "verdicts of the gate and the share of other people it refuses, for out"
    assert call(*base[:4], "--out", "tenth", *base[6:], "--miss", "0.14")[0] == 0
    said = " ".join(Path("tenth/release/README.txt").read_text().split())
    assert "at most 14.00% of any one alteration and 42.00% of any one pair" in said
    base = (*base[:4], "--out", "another", *base[6:])
    assert "--others and --tau exclude each other" in call(*base, "--tau", 0.2)[2]
    assert "--miss belongs to --others" in call(*base[:6], "--miss", 0.1)[2]
    assert "shape of the --others" in call(*base[:-1], pngs(Path("large"), 3, side=12))[2]
    (strangers / "mine.png").write_bytes((private / "scan0.png").read_bytes())
    code, _, err = call(*base[:4], "--out", "again", "--others", strangers, "--miss", "0.2")
    assert (code, Path("again").exists()) == (2, False)
    assert err.startswith("error: --others: 1 of 21 images are in the private set, or in another that the ledger (")


def test_folders_of_one_name_share_no_history_and_a_renamed_one_keeps_its_own(call, sets):
    candidates, _ = sets
    for seed, place in enumerate(("north", "south")):
        Path(place).mkdir()
        ward = pngs(Path(place) / "ward", 5 + seed)
        assert call("gate", candidates, "--private", ward, "--tau", 0.2, "--out", place + "-out")[0] == 0
    north, south = (load(Path(place) / "ward") for place in ("north", "south"))
    assert [e.output for e in Ledger().entries(north)] == ["verdicts of the gate, for north-out"]
    assert [e.output for e in Ledger().entries(south)] == ["verdicts of the gate, for south-out"]
    (Path("north") / "ward").rename("archive")
    assert "3 distances" in call("verify", "north-out", "--private", "archive")[1]
    assert [(e.stage, e.reads) for e in Ledger().entries(north)] == [("gate", "ward"), ("verify", "archive")]
    assert len(Ledger().entries(south)) == 1


@pytest.mark.parametrize(("shape", "modality", "said"), [
    ((64, 64), "ct", "taken for ct, of which no real images were free"),
    ((64, 64), "phantom-ct", "other phantoms (thorax-ct-private/other)"),
    ((64, 64), "", "each belongs to one kind of images; expected xray or ct or mr or pet or phantom-"),
    ((8, 64, 64), "ct", "none for 'ct'; expected phantom-heart"),
    ((8, 64, 64), "", "each belongs to one kind of images; expected phantom-heart"),
])  # fmt: skip
def test_thresholds_that_ship(shape, modality, said, make_set, tmp_path, monkeypatch, capsys, cache):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, n in (("drawn", 2), ("ward", 1)):
        make_set(n, (1, *shape), patient=np.arange(n), images=rng.random((n, 1, *shape)).astype(np.float32), modality="").save(
            f"{name}.npz"
        )
    chosen = ["--modality", modality] if modality else []
    monkeypatch.setattr(sys, "argv", ["medsynth", "gate", "drawn.npz", "--private", "ward.npz", "--out", "out", *chosen])
    with pytest.raises(SystemExit) as end:
        cli.main()
    told = capsys.readouterr().err
    done = Path("out/release/README.txt")
    # noise is nobody: both are released, and their certificate says whose threshold it was
    assert (end.value.code or 0) == (0 if done.exists() else 2)
    assert said in (" ".join(done.read_text().split()) if done.exists() else told)


def test_what_can_fail_at_once_leaves_no_line_in_the_ledger(call, sets, cache):
    candidates, private = sets
    Path("taken").mkdir()
    (Path("taken") / "file").write_text("")
    base = ("gate", candidates, "--private", private, "--tau", 0.2)
    for out, said in (
        ("taken", "is there already"),
        (".", ".: is the current folder; name a new one in it"),
        (private / "out", f"lies in {private}"),
        (candidates / "out", "choose a place"),
    ):
        code, _, err = call(*base, "--out", out)
        assert code == 2 and said in err
    assert call("verify", "nowhere", "--private", "nobody")[0] == 2
    assert not (cache / "ledger").exists()


def test_options_for_plain_files_are_not_taken_for_others(call, make_set):
    for name in ("drawn", "ward"):
        make_set(3, (1, 8, 8), seed=len(name)).save(f"{name}.npz")
    code, _, err = call("gate", "drawn.npz", "--private", "ward.npz", "--out", "out", "--tau", 0.1, "--range", 5, 9)
    assert (code, err) == (2, "error: --range and --unit say what plain files hold; an .npz file says it itself\n")


def test_a_stopped_gate_leaves_nothing(tmp_path, make_set, cache):
    for name, n in (("drawn", 4), ("ward", 4)):
        make_set(n, (1, 16, 16), seed=n).save(f"{tmp_path}/{name}.npz")
    script = (
        "import os, signal, sys\n"
        "from medsynth import cli\n"
        "from medsynth.privacy.release import certify\n"
        "certify.same_files = lambda *a: os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.argv = 'medsynth gate drawn.npz --private ward.npz --out out --phi pixels --tau 0.01'.split()\n"
        "cli.main()\n"
    )
    (tmp_path / "temporary").mkdir()
    place = {"MEDSYNTH_CACHE": str(cache), "TMPDIR": str(tmp_path / "temporary"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, **place}, capture_output=True, text=True
    )
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir() if p != cache) == ["drawn.npz", "temporary", "ward.npz"]
    assert not list((tmp_path / "temporary").iterdir())


def test_errors_of_the_system_begin_with_the_file(call, sets):
    base = ("gate", sets[0], "--private", sets[1], "--out", "out", "--tau", 0.2)
    for option in ("--patients", "--sign"):
        code, _, err = call(*base, option, "nowhere")
        assert (code, err) == (2, "error: nowhere: no such file or directory; check the name and who may read or write it\n")

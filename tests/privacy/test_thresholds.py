"""Thresholds that ship: they belong to weights, copies and kinds of images, and let strangers pass."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from medsynth.data.sources import cached_thorax
from medsynth.phantoms.thorax.thorax import MODALITIES
from medsynth.privacy.gate.alterations import gallery_hash
from medsynth.privacy.gate.feature_maps import feature_map
from medsynth.privacy.gate.gate import Gate
from medsynth.privacy.gate.thresholds import Threshold, kind_of, threshold_for

SETS = {
    "ward": {"tau": 0.3, "how": "on radiographs", "modality": "xray"},
    "clinic": {"tau": 0.4, "how": "on other radiographs", "modality": "xray"},
    "hearts": {"tau": 0.1, "how": "on hearts", "modality": "mr"},
    "phantom-ct": {"tau": 0.9, "how": "on phantoms", "modality": "ct"},
}
FLAT, DEEP, PIXELS = (SimpleNamespace(name=n, hash=n[0] * 32) for n in ("flat", "deep", "pixels"))


@pytest.fixture
def folder(tmp_path):
    def entry(phi, dims, sets=SETS):
        return {"phi": phi.name, "phi_hash": phi.hash, "sets": sets, "gallery": gallery_hash(dims)}

    entries = {
        "flat 2d": entry(FLAT, 2), "deep 3d": entry(DEEP, 3) | {"phi_hash": "0" * 32},
        "pixels 2d": entry(PIXELS, 2, {"phantom-ct": SETS["phantom-ct"]}),
    }  # fmt: skip
    (tmp_path / "thresholds.json").write_text(json.dumps(entries))
    return tmp_path


def test_a_threshold_is_that_of_its_kind(folder):
    assert threshold_for(FLAT, 2, "xray", folder=folder) == Threshold(0.4, "on other radiographs")
    assert threshold_for(FLAT, 2, "mr", folder=folder) == Threshold(0.1, "on hearts")
    assert threshold_for(FLAT, 2, "phantom-ct", folder=folder) == Threshold(0.9, "on phantoms")
    # phantoms say nothing of people: the largest threshold that was found on people stands in
    ct = threshold_for(FLAT, 2, "ct", folder=folder)
    assert ct.tau == 0.4 and ct.how.startswith(
        "on other radiographs; taken for ct, of which no real images were free to find one on"
    )


@pytest.mark.parametrize(
    ("phi", "dims", "kind", "message"),
    [
        (FLAT, 2, "", "each belongs to one kind of images; expected xray or ct or mr or pet or phantom-ct"),
        (FLAT, 2, "us", "none for 'us'; expected"),
        (PIXELS, 2, "ct", "none for 'ct'; expected phantom-ct"),
        (FLAT, 3, "mr", "flat: no threshold ships for images of 3 dimensions"),
        (SimpleNamespace(name="other", hash=""), 2, "mr", "other: no threshold ships"),
        (DEEP, 3, "mr", "tau of deep belongs to weights 0+…, not d+…"),
    ],
)
def test_where_there_is_none_it_is_said(folder, phi, dims, kind, message):
    with pytest.raises(ValueError, match=message):
        threshold_for(phi, dims, kind, folder=folder)


def test_a_threshold_belongs_to_its_copies(folder):
    file = folder / "thresholds.json"
    file.write_text(file.read_text().replace(gallery_hash(2), "few"))
    with pytest.raises(ValueError, match="tau of flat was found for other transformed copies \\(gallery few, not"):
        threshold_for(FLAT, 2, "ct", folder=folder)
    file.unlink()
    with pytest.raises(ValueError, match="no threshold ships"):
        threshold_for(FLAT, 2, "ct", folder=folder)


def test_phantoms_have_thresholds_of_their_own(make_set):
    phantoms, people = make_set(2, modality="ct"), make_set(2, modality="ct", origin="scan")
    assert (kind_of(phantoms), kind_of(people)) == ("phantom-ct", "ct")
    # samples of a network that saw people are of people
    assert kind_of(make_set(2, modality="ct", origin="synthetic", people=True)) == "ct"
    with pytest.raises(ValueError, match=r"tiny: its modality is not known; expected one of xray, ct"):
        kind_of(make_set(2, modality=""))


@pytest.mark.parametrize("modality", MODALITIES)
def test_thresholds_that_ship_let_strangers_pass(modality):
    people = cached_thorax(patients=12, scans=1, size=64, modality=modality, population="private", seed=77)
    private, strangers = (people.select(np.arange(6) + k) for k in (0, 6))
    phi = feature_map("encoder")
    gate = Gate(private, phi, threshold_for(phi, 2, f"phantom-{modality}").tau)
    assert gate.accepts(strangers).mean() > 0.8 and not gate.accepts(private).any()

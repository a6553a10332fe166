"""The measurement of what single precision errs by: every setting is asked, and the card says the worst of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medsynth.models.encoder import EncoderNet
from medsynth.models.weights import save_card
from medsynth.pretrain import feature_error
from medsynth.privacy.gate.feature_maps import ERROR_CARD, SAFETY, feature_map


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random encoders, few images, and processes that are none, the third of which errs by more."""
    torch.manual_seed(0)
    save_card(tmp_path, "encoder", EncoderNet().state_dict(), {"spatial_dims": 2})
    monkeypatch.setattr(feature_error, "PATIENTS", 1)
    monkeypatch.setattr(feature_error, "MODALITIES", ("ct",))
    asked = []

    def run(command: list[str], *, check: bool, env: dict[str, str]) -> None:
        asked.append(env)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", command[2:])
            feature_error.main()
        if len(asked) == 3:
            rows = Path(command[command.index("--rows") + 1])
            with np.load(rows) as f:
                np.savez(rows, **{k: v + 1e-3 * (np.arange(v.shape[1]) == 0) for k, v in f.items()})

    monkeypatch.setattr(feature_error.subprocess, "run", run)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(sys, "argv", ["feature_error", "--weights", str(tmp_path), "--maps", "encoder"])
    feature_error.main()
    assert [e.get("MKL_CBWR") for e in asked] == [None, "COMPATIBLE", None, None] * 2
    assert [e["OMP_NUM_THREADS"] for e in asked] == ["1"] * 4 + ["2"] * 4
    return tmp_path


def test_the_card_states_the_worst_setting_with_its_safety(folder: Path) -> None:
    said = json.loads((folder / "encoder.json").read_text())[ERROR_CARD]
    assert len(said["errors"]) == 8 * 3 and said["where"].startswith("MKL AVX2, threads: 1, batches of")
    assert said["largest"] == pytest.approx(1e-3, rel=0.05) and sorted(said["errors"].values())[-4] < 1e-5
    assert SAFETY * said["largest"] <= said["bound"] <= 2 * SAFETY * said["largest"]
    # the weights are still those of the card, and the map takes its error from there
    assert feature_map("encoder", folder=folder).error == said["bound"]


@pytest.mark.parametrize(("largest", "bound"), [(2.4e-6, 3e-4), (1e-6, 1e-4), (8.5e-8, 9e-6), (9.1e-8, 1e-5)])
def test_bounds_are_rounded_up(largest: float, bound: float) -> None:
    assert feature_error.bound_of(largest) == pytest.approx(bound, rel=1e-12)


def test_faded_images_are_what_is_left_of_an_image_in_one_shade(make_set) -> None:
    images = make_set(2, range=(-1.0, 3.0))
    faded = {s.name: s for s in feature_error._faded(images)}
    assert len(list(feature_error._faded(images))) == 7
    for s in faded.values():
        contrast = float(s.name.rpartition(" ")[2])
        assert np.ptp(s.images) == pytest.approx(contrast * np.ptp(images.images), rel=1e-3)
    shades = [float(s.images.mean()) for s in feature_error._faded(images)][1:]
    assert min(shades[-2:]) == pytest.approx(-1, abs=0.01) and max(shades[-2:]) == pytest.approx(3, abs=0.01)

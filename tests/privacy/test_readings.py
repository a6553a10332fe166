"""What a private set goes through from training to a verified release, as chapters do it: no reading is without its line."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from medsynth.diffusion.conditions import of_rows
from medsynth.diffusion.generator import Generator
from medsynth.downstream.restoration import RestorationTraining, train_restoration
from medsynth.downstream.restoration_nets import RestorationConfig
from medsynth.ledger import Ledger
from medsynth.privacy.attacks import gate_trial
from medsynth.privacy.gate.feature_maps import feature_map
from medsynth.privacy.gate.gate import Gate
from medsynth.privacy.gate.thresholds import Threshold, private_gate
from medsynth.privacy.release.certify import certify
from medsynth.privacy.release.verify import verify
from medsynth.settings.config import SamplingConfig


@pytest.fixture
def people(make_set):
    """A private set, and patients of whom the generator sees nothing."""
    return make_set(4, role="private", name="ward"), make_set(4, seed=1, role="eval", name="unseen")


def quick_gate(private, phi, tau):
    """The real gate, without transformed copies."""
    return Gate(private, phi, tau, copies=lambda images: [("copy", images)])


def test_training_gate_attack_and_verification_each_leave_a_line(people, tiny, shipped, cache, monkeypatch, tmp_path):
    private, unseen = people
    ledger = Ledger()
    monkeypatch.setattr("medsynth.privacy.gate.thresholds.threshold_for", lambda *_, **__: Threshold(1e-3, "as tests are"))
    table = SimpleNamespace(at_its_own_and_at_equal_price=lambda tau, **_: [])
    monkeypatch.setattr(gate_trial, "attack_trial", lambda *_, **__: table)

    models = {"denoiser": tiny.denoiser, "diffusion": tiny.diffusion, "sampling": SamplingConfig(images=4, steps=2)}
    generator = Generator.train(private, **models, ledger=ledger)
    drawn = generator.draw(of_rows(private, generator.names, 4, seed=0, ledger=ledger))
    assert private_gate(private, ledger=ledger, phi="pixels").accepts(drawn).any()
    named = {"chapter": "weights", "dataset": "ward", "seed": 0}
    gate_trial.attack_rows(gate_trial.Attacked(private, unseen), ("pixels",), **named, ledger=ledger)
    training = RestorationTraining(steps=1, batch=2, patch=None)
    noisy = private.with_images(np.clip(private.images + 0.1, 0, 1), name="noisy")
    train_restoration(noisy, private, net=RestorationConfig("edsr", width=4, blocks=1), training=training, ledger=ledger)
    chosen = {"tau": 1e-3, "how": "as tests are", "out": tmp_path / "out", "key": "pixels"}
    certify(drawn, private, feature_map("pixels"), **chosen, gate=quick_gate)
    # who verifies need not bring a ledger
    verify(tmp_path / "out", private=private, gate=quick_gate)

    assert [(e.stage, e.reads, e.content_hash == private.content_hash) for e in Ledger().entries(private, unseen)] == [
        ("train denoiser", "ward", True),
        ("train refiner", "ward", True),
        ("draw conditions", "ward", True),
        ("gate", "ward", True),
        ("try the gate", "ward", True),
        ("try the gate", "unseen", False),
        ("train restoration net", "ward", True),
        ("verify", "ward", True),
    ]
    # and nothing was trained on images that are in no line
    runs = [json.loads(file.read_text()) for file in (cache / "runs").glob("*/manifest.json")]
    trained_on = {run["kind"]: run["inputs"][key] for run in runs for key in ("images", "clean") if key in run["inputs"]}
    assert set(trained_on) == {"denoiser", "refiner", "restoration"}
    assert set(trained_on.values()) <= {e.content_hash for e in Ledger().entries()}
    assert Ledger().private_rows_in(private) == len(private)

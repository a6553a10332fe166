"""The audit of a generator of hearts and what it remembers, on generators whose answer is known."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from medsynth.imageset import ImageSet
from medsynth.mechanism import NONE, Mechanism
from medsynth.privacy.attacks import hearts
from medsynth.privacy.attacks.canaries import PatientScores
from medsynth.privacy.attacks.hearts import audited, audits, first_patients, remembered
from medsynth.privacy.attacks.one_run import split_by_coins
from medsynth.settings.config import DPConfig, PrivacyConfig

TRAINING = PrivacyConfig(steps=5, batch=10)
CONFIG = DPConfig(80, 20, 10, (10.0,), TRAINING, TRAINING, guesses=40, audited_patients=60, audit_draws=2)
DP_SGD = Mechanism("dp-sgd", unit="patient", epsilon=8.0, delta=1e-6, accountant="prv", q=0.1, steps=5)


def stacks(patients, seed, name="ward", role="private"):
    images = np.random.default_rng(seed).random((2 * patients, 1, 2, 8, 8), dtype=np.float32)
    patient = 1000 * seed + np.repeat(np.arange(patients), 2)
    return ImageSet(images=images, patient=patient, unit="1", range=(0, 1), name=name, role=role)


def pixels(images):
    return images.images.reshape(len(images), -1).astype(np.float64)


@pytest.fixture
def sides():
    return split_by_coins(stacks(80, 1), seed=0)


@pytest.fixture
def attack(sides, monkeypatch):
    """`audited` of a generator whose losses fell by `gain` for members, of 100 released images."""

    def run(gain, released, mechanism):
        members, canaries = sides
        asked = []

        def loss_scores(images, condition, *, draws, **_):
            asked.append((images.name, draws))
            noise = np.random.default_rng(len(images)).normal(size=len(images))
            return PatientScores.of(noise + gain * np.isin(images.patient, members.patient), images.patient)

        monkeypatch.setattr(hearts, "loss_scores", loss_scores)
        monkeypatch.setattr(hearts, "conditions_of", lambda images, names: np.zeros((len(images), 1)))
        entry = SimpleNamespace(mechanism=mechanism)
        made = SimpleNamespace(model=None, autoencoder=None, diffusion=None, names=(), entries=(entry,))
        public = SimpleNamespace(model=None)
        reference = stacks(len(released) // 2, 9)
        found = audited(
            made, public, members, canaries, released=released, reference=reference, features=pixels, config=CONFIG, seed=0
        )
        assert asked == [("ward/members", 2), ("ward/held out", 2)]
        return found

    return run


def test_who_is_audited_does_not_depend_on_the_coins(sides):
    inside, outside = first_patients(*sides, 60)
    assert sorted({*inside.patient.tolist(), *outside.patient.tolist()}) == list(range(1000, 1060))


def test_a_generator_that_repeats_its_members_is_caught_both_ways(attack, sides):
    members, _ = sides
    found = attack(20.0, members, NONE)
    for rows in found.values():
        assert rows["AUC"].low > 0.95 and rows["lower bound, any mechanism"] > 1 and rows["guesses that were right"] == 1
        assert rows["accountant"] == math.inf
        assert all(rows[f"lower bound, {k}"] == rows[f"ceiling, {k}"] for k in ("any mechanism", "Gaussian", "independent"))


def test_one_that_knows_nobody_is_not_and_the_promise_stands_beside(attack):
    found = attack(0.0, stacks(40, 5), DP_SGD)
    for rows in found.values():
        assert rows["AUC"].low < 0.5 < rows["AUC"].high and rows["lower bound, any mechanism"] < 0.5
        assert rows["accountant"] == 8.0 and rows["ceiling, any mechanism"] > 1.5


def test_generators_of_one_seed_from_public_weights_are_audited_beside_these_and_no_others_are(monkeypatch):
    calls = []
    monkeypatch.setattr(hearts, "audited", lambda *a, **k: (calls.append((a, k)), {"white box": {"AUC": 0.5}})[1])
    keys = [("pre-trained", 0.0, 1), ("pre-trained", 10.0, 1), ("pre-trained", 10.0, 2), ("scratch", 10.0, 1)]
    keys.append(("pre-trained, draws 4", 10.0, 1))
    named = {key: f"generator {key}" for key in keys}
    drawn = {key: f"samples {key}" for key in keys}
    found = audits(named, drawn, "members", "canaries", features=pixels, config="sizes", seed=1)
    assert found == {("pre-trained", 10.0, "white box"): {"AUC": 0.5}}
    [(positional, told)] = calls
    assert positional == (named[keys[1]], named[keys[0]], "members", "canaries")
    assert (told["released"], told["reference"], told["seed"]) == (drawn[keys[1]], drawn[keys[0]], 1)


def test_copies_are_found_and_controls_stand_beside(sides, monkeypatch):
    members, canaries = sides
    monkeypatch.setattr(hearts, "reconstruct", lambda _, images, batch: images)
    drawn = {"copies": members.select(np.arange(30)), "others": stacks(15, 7)}
    found = remembered(drawn, members, canaries, stacks(15, 8, role="eval"), features=pixels, autoencoder=None)
    assert found["copies"]["samples that are copies"].value == 1 and found["copies"]["patients remembered"].value > 0.3
    assert found["others"]["samples that are copies"].value < 0.3
    assert found["copies through the autoencoder"]["patients remembered"].value == 1
    assert {"other patients, fresh", "other patients, members"} <= set(found)

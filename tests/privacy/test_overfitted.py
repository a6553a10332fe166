"""The generator that an audit must catch: who it is trained on, and that its audit asks what was fixed beforehand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from medsynth.diffusion.generator import Generator
from medsynth.ledger import Ledger
from medsynth.phantoms.heart.heart import cardiac
from medsynth.privacy.attacks.hearts import audit_over_fitted, over_fitted
from medsynth.privacy.attacks.one_run import split_by_coins
from medsynth.settings.config import DPConfig, PrivacyConfig, SamplingConfig

TRAINING = PrivacyConfig(steps=2, batch=2, epsilon=math.inf, trainable="full", learning_rate=1e-2)
CONFIG = DPConfig(
    20, 2, 1, (10.0,), TRAINING, TRAINING, guesses=3, audited_patients=5, audit_draws=1, overfitted_patients=10,
    overfitted_guesses=6, overfitting=TRAINING,
)  # fmt: skip


@pytest.fixture
def sides():
    return split_by_coins(replace(cardiac(patients=14, slices=8, size=32, population="private", seed=2), name="ward"), seed=1)


@pytest.fixture
def settings(tiny, shipped, cache):
    return {"denoiser": tiny.denoiser_3d, "diffusion": tiny.diffusion, "sampling": SamplingConfig(images=1, steps=2)}


def test_members_among_the_first_patients_are_trained_on_by_one_stack_each(sides, settings):
    ledger = Ledger()
    generator, members, canaries = over_fitted(*sides, config=CONFIG, ledger=ledger, **settings)
    people = np.unique(np.concatenate([side.patient for side in sides]))[:10]
    assert sorted([*members.patient.tolist(), *canaries.patient.tolist()]) == people.tolist()
    assert set(members.patient) <= set(sides[0].patient) and set(canaries.patient) <= set(sides[1].patient)
    assert set(members.attributes["phase"]) == {0}
    (line,) = [e for e in ledger.entries() if e.stage == "train denoiser"]
    assert (line.reads, line.patients, line.mechanism.name) == ("ward/members", members.patients, "none")
    assert generator.entries == (line,)


def test_both_attacks_make_as_many_guesses_as_were_fixed(sides, settings):
    found = over_fitted(*sides, config=CONFIG, ledger=Ledger(), **settings)
    public = Generator.shipped(found.members, sampling=settings["sampling"])

    def features(images):
        return images.images.reshape(len(images), -1).astype(np.float64)

    rows = audit_over_fitted(found, public, features=features, config=CONFIG, seed=0)
    assert set(rows) == {("over-fitted", math.inf, "white box"), ("over-fitted", math.inf, "samples alone")}
    for of in rows.values():
        assert of["AUC"].n == 10 and of["accountant"] == math.inf
        assert (6 * of["guesses that were right"]).is_integer()
        # log(q / (1 - q)) of the q with q^6 = 0.05
        assert of["ceiling, any mechanism"] == pytest.approx(math.log(1 / (0.05 ** (-1 / 6) - 1)), abs=1e-3)


def test_a_promise_is_refused(sides, settings):
    kept = replace(CONFIG, overfitting=replace(TRAINING, epsilon=8.0))
    with pytest.raises(ValueError, match="epsilon 8; expected infinity"):
        over_fitted(*sides, config=kept, ledger=Ledger(), **settings)

from __future__ import annotations

import math

import pytest
import torch

from medsynth.privacy.dp.gradients import step_cost
from medsynth.privacy.dp.gradients.step_cost import STEPS, prepared_step, step_costs
from medsynth.privacy.dp.trainable import TRAINABLE
from medsynth.settings.config import DenoiserConfig

TINY, SHAPE = DenoiserConfig((16, 32), 1, (False, True), 16, 3), (2, 2, 4, 4)

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


@pytest.mark.parametrize("which", TRAINABLE)
def test_all_steps_come_to_the_same_gradient(which, monkeypatch):
    monkeypatch.setattr(step_cost, "CLIP", math.inf)
    plain, *others = (prepared_step(kind, which, TINY, SHAPE, batch=3, device="cpu")() for kind in STEPS)
    assert plain and any(g.any() for g in plain.values())
    for found in others:
        assert found.keys() == plain.keys()
        for name, expected in plain.items():
            torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kind", "computed"), [("plain", True), ("lean", False)])
def test_a_lean_step_asks_for_no_gradient_of_a_frozen_weight(kind, computed):
    step = prepared_step(kind, "bias", TINY, SHAPE, batch=2, device="cpu")
    with torch.profiler.profile(record_shapes=True) as seen:
        step()
    # what is asked for with the bias comes with the weight where oneDNN computes it
    asked = [e.concrete_inputs[-1] for e in seen.events() if e.name == "aten::convolution_backward"]
    assert asked and any(mask[1] or mask[2] for mask in asked) == computed


def test_each_set_has_a_row_of_each_step_and_ratios_are_of_one_round(monkeypatch):
    took = {"plain": [2.0, 4.0, 1.0], "lean": [1.0, 4.0, 2.0], "clipped": [3.0, 4.0, 3.0]}
    made = []

    def prepared(kind: str, which: str, *_: object, **__: object) -> str:
        made.append((which, kind))
        return kind

    times = iter([took[kind][i] for _ in range(2) for i in range(3) for kind in took])
    monkeypatch.setattr(step_cost, "prepared_step", lambda *a, **k: prepared(*a, **k) and dict)
    monkeypatch.setattr(step_cost, "_seconds", lambda *_: next(times))
    costs = step_costs(TINY, SHAPE, batch=2, rounds=3, sets=["bias", "full"], steps=["clipped"])
    assert made == [(which, kind) for which in ("bias", "full") for kind in took]
    assert [(c.trainable, c.step, c.seconds) for c in costs[:3]] == [
        ("bias", "plain", 2),
        ("bias", "lean", 2),
        ("bias", "clipped", 3),
    ]
    assert costs[2].of_plain == (1.5, 1.0, 3.0, 3, "rounds", 0.75)
    assert costs[2].of_lean == (1.5, 1.0, 3.0, 3, "rounds", 0.75)
    assert costs[5].trainable == "full" and costs[0].of_plain[:3] == (1, 1, 1)


def test_a_step_that_is_timed_takes_time():
    [plain, lean] = step_costs(TINY, SHAPE, batch=1, rounds=2, sets=["bias"], steps=[])
    assert plain.seconds > 0 and lean.of_lean[:3] == (1, 1, 1) and lean.of_plain.low <= lean.of_plain.high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prepared_step("fast", "full", TINY, SHAPE, batch=1, device="cpu"), "step 'fast'; expected one of plain, lean"),
        (lambda: prepared_step("plain", "some", TINY, SHAPE, batch=1, device="cpu"), "trainable set 'some'; expected one of"),
        (lambda: step_costs(TINY, SHAPE, batch=1, rounds=1), "rounds is 1; expected at least 2"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

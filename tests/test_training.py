from __future__ import annotations

import copy
import logging
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from medsynth import training
from medsynth.store.runs import Workspace
from medsynth.training import best_device, fit, learning_rate_at, progress, step_generator

STEPS, SETTINGS = 12, {"learning_rate": 0.05, "warmup": 3, "ema": 0.9, "clip_norm": 0.5, "seed": 4}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1))


def loss_of(model: nn.Module):
    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        x = torch.randn(8, 3, generator=generator)
        return (model(x) - x.sum(1, keepdim=True) * (1 + step % 3 / 100)).square().mean()

    return loss


class KilledError(Exception):
    pass


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_against_a_plain_loop():
    """AdamW, warm-up and cosine, clipping and the moving average, written out."""
    model = network()
    reference = copy.deepcopy(model)
    weights, metrics = fit(model, loss_of(model), steps=STEPS, weight_decay=0.1, **SETTINGS)
    parameters = list(reference.parameters())
    first, second = [torch.zeros_like(p) for p in parameters], [torch.zeros_like(p) for p in parameters]
    average = [p.detach().clone() for p in parameters]
    reference.train()
    losses = []
    for step in range(STEPS):
        rate = 0.05 * ((step + 1) / 3 if step < 3 else 0.5 * (1 + math.cos(math.pi * (step - 3) / 9)))
        value = loss_of(reference)(step, step_generator(4, step))
        losses.append(float(value.detach()))
        gradients = torch.autograd.grad(value, parameters)
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        decay = min(0.9, (1 + step) / (10 + step)) if step else 0.0
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
                g = g * min(1.0, 0.5 / (norm + 1e-6))
                first[i] = 0.9 * first[i] + 0.1 * g
                second[i] = 0.999 * second[i] + 0.001 * g**2
                p *= 1 - rate * 0.1
                p -= rate * (first[i] / (1 - 0.9 ** (step + 1))) / ((second[i] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
                average[i] = decay * average[i] + (1 - decay) * p
    names = [n for n, _ in reference.named_parameters()]
    for name, expected in zip(names, average, strict=True):
        torch.testing.assert_close(weights[name], expected, atol=2e-5, rtol=1e-4)
    # what is not trained is not averaged: running statistics come from the model itself
    torch.testing.assert_close(weights["1.running_mean"], reference[1].running_mean, atol=1e-5, rtol=1e-4)
    assert metrics == {"loss": pytest.approx(sum(losses) / STEPS, rel=1e-4), "steps": STEPS}


def test_it_learns_and_hands_back_what_the_model_holds():
    model = network()
    weights, metrics = fit(model, loss_of(model), steps=300, learning_rate=0.03, warmup=10, ema=0.9, clip_norm=5)
    first = float(loss_of(network())(0, step_generator(1, 0)).detach())
    assert metrics["loss"] < 0.3 * first
    assert not model.training
    assert same(weights, model.state_dict())
    # a copy: later changes of the model do not reach it
    with torch.no_grad():
        model[0].weight.zero_()
    assert weights["0.weight"].abs().sum() > 0


@pytest.mark.parametrize("every", [1, 4, 5])
@pytest.mark.parametrize("killed_at", [3, 5, 11])
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, every, killed_at):
    model = network()
    whole, _ = fit(model, loss_of(model), steps=STEPS, checkpoint_every=0, **SETTINGS)
    workspace = Workspace(tmp_path)

    def until_killed(step: int, generator: torch.Generator) -> torch.Tensor:
        if step == killed_at:
            raise KilledError
        return loss_of(model)(step, generator)

    model = network()
    with pytest.raises(KilledError):
        fit(model, until_killed, steps=STEPS, workspace=workspace, checkpoint_every=every, **SETTINGS)
    found = workspace.load_checkpoint()
    assert (found[0] if found else 0) == killed_at // every * every
    torch.manual_seed(99)
    # the new process starts from other weights: everything must come from the checkpoint
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1)) if found else network()
    seen = []

    def noted(step: int, generator: torch.Generator) -> torch.Tensor:
        seen.append(step)
        return loss_of(model)(step, generator)

    resumed, _ = fit(model, noted, steps=STEPS, workspace=workspace, checkpoint_every=every, **SETTINGS)
    assert seen == list(range(killed_at // every * every, STEPS))
    assert same(resumed, whole)


def test_parameters_that_get_no_gradient_for_a_while_resume_too(tmp_path):
    """As the adversary of an autoencoder: AdamW has no state for it when the checkpoint is written."""

    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 1), nn.Linear(3, 1)

    def run(workspace: Workspace | None, stop: int | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = Late()

        def loss(step: int, generator: torch.Generator) -> torch.Tensor:
            if step == stop:
                raise KilledError
            x = torch.randn(4, 3, generator=generator)
            value = (model.a(x) - 1).square().mean()
            return value if step < 6 else value + (model.b(x) + 1).square().mean()

        return fit(model, loss, steps=STEPS, workspace=workspace, checkpoint_every=2, **SETTINGS)[0]

    whole = run(None, None)
    workspace = Workspace(tmp_path)
    for stop in (5, 9):
        with pytest.raises(KilledError):
            run(workspace, stop)
    assert same(run(workspace, None), whole)


def test_frozen_parameters_stay():
    model = network()
    model[0].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    weights, _ = fit(model, loss_of(model), steps=5, **SETTINGS)
    assert torch.equal(weights["0.weight"], before["0.weight"])
    assert not torch.equal(weights["3.weight"], before["3.weight"])


def test_a_finished_checkpoint_needs_no_step(tmp_path):
    model = network()
    workspace = Workspace(tmp_path)
    fit(model, loss_of(model), steps=4, workspace=workspace, checkpoint_every=2, **SETTINGS)
    weights, metrics = fit(network(), loss_of(model), steps=2, workspace=workspace, **SETTINGS)
    assert math.isnan(metrics["loss"]) and "0.weight" in weights


def test_a_diverged_run_stops_and_says_so():
    model = network()
    with pytest.raises(FloatingPointError, match="denoiser: loss is nan before step 50; lower the learning rate"):
        fit(model, lambda step, _: model(torch.full((2, 3), math.nan)).mean(), steps=200, label="denoiser", **SETTINGS)


def test_randomness_is_a_function_of_seed_and_step():
    draw = torch.randn(3, generator=step_generator(1, 7))
    assert torch.equal(draw, torch.randn(3, generator=step_generator(1, 7)))
    for other in ((1, 8), (2, 7), (7, 1), (1, -8)):
        assert not torch.equal(draw, torch.randn(3, generator=step_generator(*other)))


def test_no_two_steps_of_the_usual_seeds_share_their_randomness():
    # PyTorch's CPU generator reads the low 32 bits of its seed alone
    low = {step_generator(seed, 0).initial_seed() % 2**32 for seed in range(200)}
    assert len(low) == 200
    a, b = (step_generator(*k).initial_seed() - step_generator(0, 0).initial_seed() for k in ((1, 0), (0, 1)))
    steps = 300_000
    for distance in range(1, 10):
        # seeds that far apart meet where their offset is a multiple of the step's: at what step?
        meets = distance * a * pow(b, -1, 2**32) % 2**32
        assert steps < meets < 2**32 - steps


@given(st.integers(0, 50), st.integers(1, 500), st.floats(1e-6, 1))
def test_learning_rate_rises_then_falls_to_zero(warmup, after, peak):
    steps = warmup + after
    rates = [learning_rate_at(s, steps=steps, peak=peak, warmup=warmup) for s in range(steps + 1)]
    assert max(rates) == pytest.approx(peak)
    assert rates[:warmup] == sorted(rates[:warmup]) and rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    if warmup:
        assert rates[0] == pytest.approx(peak / warmup)
    if after % 2 == 0:
        assert rates[warmup + after // 2] == pytest.approx(peak / 2)


def test_progress_counts_and_logs_for_a_listener(caplog, monkeypatch):
    clock = iter([0.0, 10.0, 20.0, 30.0])
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, logger="medsynth.training"):
        assert list(progress(2, 5, "job")) == [2, 3, 4]
    assert [r.getMessage() for r in caplog.records] == ["job: 4 of 5, 10 s each", "job: 5 of 5, 10 s each"]


def test_progress_shows_a_bar_where_nobody_reads_the_log(caplog, capsys):
    with caplog.at_level(logging.WARNING, logger="medsynth.training"):
        assert list(progress(0, 3, "job")) == [0, 1, 2]
    assert not caplog.records
    assert "job" in capsys.readouterr().err


def test_the_device_is_the_gpu_where_there_is_one(monkeypatch):
    for there, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert best_device() == expected

"""DP-SGD by hand, one line of the algorithm a test; planted bugs; kills at every step."""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medsynth.mechanism import NONE
from medsynth.privacy.dp import training
from medsynth.privacy.dp.accountant import Steps, epsilon_of
from medsynth.privacy.dp.noise import patient_generators, sampled_patients
from medsynth.privacy.dp.training import PrivacyState, Rows, delta_of, fit_privately, promised
from medsynth.settings.config import PrivacyConfig
from medsynth.store.hashes import json_hash
from medsynth.store.runs import Tensors, Workspace, load_or_train
from medsynth.training import learning_rate_at

PATIENTS = 12
# RDP is quick to ask, and sigma comes to about 2
CONFIG = PrivacyConfig(
    epsilon=6, steps=7, batch=4, clip=0.3, learning_rate=0.05, draws=3, warmup=2, ema=0.8, physical=3, accountant="rdp"
)


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


def records(patient: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """One to three of each patient, (r, 3)."""
    return torch.from_numpy(np.random.default_rng([5, patient]).normal(size=(1 + patient % 3, 3))).to(dtype)


class Cohort:
    """What the loop asks for: each record with `draws` noises, all from the patient's own generator."""

    def __init__(self, model: nn.Module, draws: int = CONFIG.draws, *, broken: int | None = None, stop: int | None = None):
        self.model, self.draws, self.broken, self.stop = model, draws, broken, stop
        self.asked: list[tuple[int, list[int]]] = []

    def rows(self, patient: int, generator: torch.Generator) -> torch.Tensor:
        x = records(patient, next(self.model.parameters()).dtype).repeat_interleave(self.draws, 0)
        x = x + 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return x * math.nan if patient == self.broken else x

    def losses(self, x: torch.Tensor) -> torch.Tensor:
        return (self.model(x) - x.sum(1, keepdim=True)).square().mean(1)

    def __call__(self, patients: torch.Tensor, step: int, generators: Sequence[torch.Generator]) -> Rows:
        if step == self.stop:
            raise KilledError
        self.asked.append((step, patients.tolist()))
        rows = [self.rows(p, g) for p, g in zip(patients.tolist(), generators, strict=True)]
        sizes = torch.tensor([len(r) for r in rows])
        return Rows(
            lambda: self.losses(torch.cat(rows)),
            torch.arange(len(rows)).repeat_interleave(sizes),
            (1 / sizes).repeat_interleave(sizes),
        )


class KilledError(Exception):
    pass


def fit(model: nn.Module, rows: Cohort | None = None, **changed: object) -> tuple[Tensors, PrivacyState]:
    options = {"keys": range(PATIENTS), "config": CONFIG, "seed": 1} | changed
    return fit_privately(model, rows or Cohort(model), **options)


def taken_in(step: int, config: PrivacyConfig, seed: int = 1) -> list[int]:
    """Who takes part in a step of `fit`."""
    names = json_hash([name for name, _ in network().named_parameters()])
    planned = PrivacyState(config, PATIENTS, delta_of(config, PATIENTS), seed=seed, trained=names)
    q = config.batch / PATIENTS
    return sampled_patients(PATIENTS, q, randomness="seeded", seed=planned.noise_seed, step=step).tolist()


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def clipped(model: nn.Module, rows: Cohort, patient: int, step: int, clip: float, seed: int = 1) -> Tensors:
    """One patient's gradient by autograd: the mean over its rows, then the clip."""
    [generator] = patient_generators([patient], seed=seed, step=step)
    x = rows.rows(patient, generator)
    names, parameters = zip(*[(k, p) for k, p in model.named_parameters() if p.requires_grad], strict=True)
    gradient = torch.autograd.grad(rows.losses(x).mean(), parameters)
    norm = torch.stack([g.square().sum() for g in gradient]).sum().sqrt()
    if not norm.isfinite():
        return {k: torch.zeros_like(g) for k, g in zip(names, gradient, strict=True)}
    return {k: g * min(1.0, clip / float(norm)) for k, g in zip(names, gradient, strict=True)}


def by_hand(noise: Callable[[int], Tensors], config: PrivacyConfig, seed: int = 1) -> Tensors:
    """The whole algorithm, a patient at a time, with Adam and the moving average written out."""
    model = network(torch.float64)
    rows = Cohort(model, config.draws)
    parameters = dict(model.named_parameters())
    first, second = ({k: torch.zeros_like(p) for k, p in parameters.items()} for _ in range(2))
    average = {k: p.detach().clone() for k, p in parameters.items()}
    clip = config.clip if math.isfinite(config.epsilon) else math.inf
    for step in range(config.steps):
        taken = taken_in(step, config, seed)
        gradients = [clipped(model, rows, p, step, clip, seed) for p in taken]
        rate = config.learning_rate * min(1, (step + 1) / 2)
        decay = min(config.ema, (1 + step) / (10 + step)) if step else 0.0
        added = noise(step)
        with torch.no_grad():
            for k, p in parameters.items():
                g = (sum((g[k] for g in gradients), torch.zeros_like(p)) + added[k]) / config.batch
                first[k] = 0.9 * first[k] + 0.1 * g
                second[k] = 0.999 * second[k] + 0.001 * g**2
                p -= rate * (first[k] / (1 - 0.9 ** (step + 1))) / ((second[k] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
                average[k] = decay * average[k] + (1 - decay) * p
    return average


def noise_of_the_loop(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> dict[int, Tensors]:
    """What the loop is going to add, kept by step."""
    kept: dict[int, Tensors] = {}
    real = training.with_noise

    def noted(sums: Tensors, sd: float, *, step: int, **rest: object) -> Tensors:
        noisy = real(sums, sd, step=step, **rest)
        assert step not in kept, "noise was added twice"
        kept[step] = {k: noisy[k] - v for k, v in sums.items()}
        return noisy

    monkeypatch.setattr(training, "with_noise", noted)
    return kept


# few patients a step, so that one of the seven steps has nobody and others have more than one physical batch
FEW = replace(CONFIG, batch=2, physical=1)
SEED = next(
    seed for seed in range(99)
    if {0, 3} <= {len(taken_in(s, FEW, seed)) for s in range(7)}
)  # fmt: skip


def check_against_the_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(torch.float64)
    noise = noise_of_the_loop(model, monkeypatch)
    weights, state = fit(model, config=FEW, seed=SEED)
    # the noise that was added is what the promise needs
    assert len(noise) == FEW.steps
    added = torch.cat([v.flatten() for step in noise.values() for v in step.values()])
    assert 0.75 * state.sigma * FEW.clip < float(added.std()) < 1.25 * state.sigma * FEW.clip
    assert 5.99 <= epsilon_of([Steps(state.sigma, 2 / PATIENTS, FEW.steps)], 1e-6, accountant="rdp") <= 6
    for k, expected in by_hand(noise.__getitem__, FEW, SEED).items():
        torch.testing.assert_close(weights[k], expected, rtol=1e-7, atol=1e-9)


def test_against_the_algorithm_by_hand(monkeypatch):
    check_against_the_algorithm(monkeypatch)


# What could go wrong in a rewrite, planted: each must fail the check that the real thing passes.

SOURCE = Path(training.__file__).read_text()
BUGS = {
    "noise omitted": ("        if state.sigma:\n", "        if False:\n"),
    "noise without the clip norm": ("state.sigma * config.clip, step", "state.sigma, step"),
    "noise in every physical batch": ("for name, value in part.items():", "for name, value in with_noise(part, 1.0, randomness="
                                      "'seeded', seed=seed, step=step).items():"),
    "clipping omitted": ("else config.clip", "else 1e9"),
    "realised batch size": ("/ config.batch)", "/ max(1, len(sampled)))"),
    "moving average on virtual steps": ("        average.step(parameters)\n", "        for _ in sampled.split(config.physical):\n"
                                        "            average.step(parameters)\n"),
    "empty batches skipped": ("        sums = shared_sum(", "        if not len(sampled):\n            continue\n"
                              "        sums = shared_sum("),
    "one randomness for all patients": ("[keys[p] for p in some.tolist()]", "[0 for p in some.tolist()]"),
    "the last physical batch dropped": ("sampled.split(config.physical) if", "sampled.split(config.physical)[:-1] if"),
    "a part that was not sampled": ("sampled_patients(len(keys), state.q, ", "sampled_patients(len(keys), state.q / 2, "),
    "noise for a target of its own": ("sigma=_sigma(c.epsilon, ", "sigma=_sigma(2 * c.epsilon, "),
}  # fmt: skip
FORGETFUL = {
    "steps that were begun are forgotten": ("return state, tensors\n", "return replace(state, spent=state.done), tensors\n"),
    "steps are written down afterwards": ("            write_json(workspace.path / _SAID, state)\n", "            pass\n"),
    "a run starts anew": ("        restore_training(tensors, ", "        state = replace(state, done=0, spent=0); (tensors, "),
}  # fmt: skip


def planted(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fit_privately` of the module with one piece of its source replaced takes the place of the real one."""
    assert SOURCE.count(old) == 1, old
    scope = {"__name__": training.__name__}
    exec(compile(SOURCE.replace(old, new), "planted", "exec"), scope)
    # what takes long is asked once, and noise is watched where a test watches
    scope["_sigma"] = training._sigma
    scope["with_noise"] = lambda *args, **options: training.with_noise(*args, **options)
    monkeypatch.setitem(globals(), "fit_privately", scope["fit_privately"])


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_of_a_step_are_found(bug, monkeypatch):
    planted(*BUGS[bug], monkeypatch)
    with pytest.raises(AssertionError):
        check_against_the_algorithm(monkeypatch)


@pytest.mark.parametrize("randomness", ["seeded", "secure"])
def test_the_noise_has_the_deviation_that_the_accountant_was_told(randomness, monkeypatch):
    model = nn.Linear(300, 100)
    noise = noise_of_the_loop(model, monkeypatch)
    config = replace(CONFIG, steps=2, randomness=randomness)

    def nothing(patients: torch.Tensor, *_: object) -> Rows:
        return Rows(
            lambda: model(torch.zeros(len(patients), 300)).sum(1) * 0, torch.arange(len(patients)), torch.ones(len(patients))
        )

    _, state = fit(model, nothing, config=config)
    for step in range(2):
        for values in noise[step].values():
            assert float(values.std()) == pytest.approx(state.sigma * CONFIG.clip, rel=0.02 if values.ndim == 2 else 0.3)
    assert abs(float((noise[0]["weight"] * noise[1]["weight"]).mean())) < 0.02 * (state.sigma * CONFIG.clip) ** 2


def test_an_empty_batch_is_a_step_with_noise(monkeypatch):
    config = replace(CONFIG, steps=1, batch=1, warmup=0)
    seed = next(s for s in range(99) if not taken_in(0, config, s))
    model = network()
    before, rows = copy.deepcopy(model.state_dict()), Cohort(model)
    noise = noise_of_the_loop(model, monkeypatch)
    weights, state = fit(model, rows, config=config, seed=seed)
    assert not rows.asked and (state.done, state.spent) == (1, 1)
    for k, v in before.items():
        # the first step of Adam goes a learning rate in the direction of the sign
        torch.testing.assert_close(weights[k], v - config.learning_rate * noise[0][k].sign(), rtol=1e-3, atol=1e-5)


def test_full_batches_are_accounted_for_exactly():
    _, state = fit(network(), config=replace(CONFIG, batch=PATIENTS, accountant="prv", steps=3))
    assert state.q == 1 and 5.99 <= state.mechanism().epsilon <= 6


@pytest.mark.parametrize("physical", [1, 2, 5, 100])
def test_the_physical_batch_bounds_memory_and_changes_nothing(physical):
    whole, _ = fit(network())
    model = network()
    rows = Cohort(model)
    weights, _ = fit(model, rows, config=replace(CONFIG, physical=physical))
    for k, v in whole.items():
        torch.testing.assert_close(weights[k], v, rtol=1e-5, atol=1e-6)
    # those who were sampled, each once, and never more than fit in memory
    assert max(len(some) for _, some in rows.asked) <= physical
    for step in range(CONFIG.steps):
        asked = [p for s, some in rows.asked if s == step for p in some]
        assert asked == taken_in(step, CONFIG)


def test_two_runs_of_one_seed_share_neither_noise_nor_who_takes_part(monkeypatch):
    """With one noise for both, two noisy sums at two epsilons give noise and sum away."""
    noise = []
    for change in ({}, {"config": replace(CONFIG, epsilon=3)}, {"data": "another set"}):
        with monkeypatch.context() as patch:
            kept = noise_of_the_loop(model := network(), patch)
            _, state = fit(model, **change)
            noise.append(torch.cat([v.flatten() / state.sigma for v in kept[0].values()]))
    for k, one in enumerate(noise):
        for other in noise[k + 1 :]:
            assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.7
    assert [taken_in(s, CONFIG) for s in range(7)] != [taken_in(s, replace(CONFIG, epsilon=3)) for s in range(7)]


def test_without_a_promise_the_same_loop_neither_clips_nor_adds_noise(monkeypatch):
    monkeypatch.setattr(training, "with_noise", None)
    config = replace(CONFIG, epsilon=math.inf, clip=1e-6)
    model = network(torch.float64)
    weights, state = fit(model, config=config)
    still = {k: torch.zeros_like(v) for k, v in model.named_parameters()}
    for k, expected in by_hand(lambda _: still, config).items():
        torch.testing.assert_close(weights[k], expected, rtol=1e-7, atol=1e-9)
    assert state.mechanism() == NONE == promised(config, PATIENTS)


def sum_of(model: nn.Module, rows: Cohort, patients: list[int], config: PrivacyConfig = CONFIG) -> Tensors:
    return training._clipped_sum(model, rows, torch.tensor(patients, dtype=torch.long), range(PATIENTS), config, 1, 0)


@settings(max_examples=12)
@given(
    st.lists(st.integers(0, PATIENTS - 1), min_size=1, max_size=8, unique=True), st.floats(1e-4, 50), st.integers(1, 4),
    st.floats(0.01, 100), st.integers(1, 8),
)  # fmt: skip
def test_a_patient_changes_the_sum_by_the_clip_norm_at_most(patients, clip, draws, scale, physical):
    model = network(torch.float64)
    with torch.no_grad():
        model[2].weight *= scale
    config = replace(CONFIG, clip=clip, physical=physical)
    whole = sum_of(model, Cohort(model, draws), patients, config)
    for gone in patients:
        rest = sum_of(model, Cohort(model, draws), [p for p in patients if p != gone], config)
        change = {k: whole[k] - rest[k] for k in whole}
        assert torch.stack([v.square().sum() for v in change.values()]).sum().sqrt() <= clip * (1 + 1e-9)
        # and by its own clipped gradient, whoever else took part
        for k, v in clipped(model, Cohort(model, draws), gone, 0, clip).items():
            torch.testing.assert_close(change[k], v, rtol=1e-6, atol=1e-9 * max(1, clip))


def test_a_patient_that_is_not_finite_adds_nothing_and_no_step_is_skipped():
    model = network(torch.float64)
    broken = sum_of(model, Cohort(model, broken=4), [2, 4, 7])
    others = sum_of(model, Cohort(model), [2, 7])
    for k, v in others.items():
        torch.testing.assert_close(broken[k], v)
    weights, state = fit(model, Cohort(model, broken=4))
    assert all(v.isfinite().all() for v in weights.values()) and state.done == CONFIG.steps


def test_sums_and_noise_stay_float32_under_bfloat16(monkeypatch):
    model = network()
    seen = []
    real = training.with_noise

    def noted(sums: Tensors, sd: float, **options: object) -> Tensors:
        noisy = real(sums, sd, **options)
        seen.extend([*sums.values(), *noisy.values()])
        return noisy

    monkeypatch.setattr(training, "with_noise", noted)

    class Half(Cohort):
        def losses(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                return super().losses(x)

    fit(model, Half(model))
    assert {v.dtype for v in seen} == {torch.float32}
    # more digits than bfloat16 has
    assert any((v != v.bfloat16().float()).any() for v in seen)


def test_only_what_requires_a_gradient_is_trained_and_all_is_handed_back():
    model = network()
    model[0].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    weights, state = fit(model)
    assert weights.keys() == before.keys()
    for k, v in before.items():
        assert torch.equal(weights[k], v) == k.startswith("0.")
    assert same(weights, model.state_dict()) and not model.training and all(p.grad is None for p in model.parameters())
    state.check(weights)


def test_dropout_is_off():
    plain, dropping = network(), network()
    dropping[1] = nn.Sequential(nn.Tanh(), nn.Dropout(0.5))
    dropping.train()
    assert same(fit(plain)[0], fit(dropping)[0])


def test_the_learning_rate_follows_the_public_schedule():
    config = replace(CONFIG, steps=10, warmup=4)
    assert [training._rate(s, config) for s in (0, 1, 3, 4, 9)] == pytest.approx([0.0125, 0.025, 0.05, 0.05, 0.05])
    assert training._rate(0, replace(config, warmup=0)) == 0.05
    for step in range(10):
        expected = learning_rate_at(step, steps=10, peak=0.05, warmup=4)
        assert training._rate(step, replace(config, schedule="cosine")) == expected


@pytest.mark.parametrize("randomness", ["seeded", "secure"])
def test_what_is_returned_says_what_was_promised(randomness):
    config = replace(CONFIG, randomness=randomness)
    _, state = fit(network(), config=config)
    mechanism = state.mechanism()
    assert mechanism == promised(config, PATIENTS)
    assert (mechanism.name, mechanism.unit, mechanism.accountant, mechanism.randomness) == (
        "dp-sgd",
        "patient",
        "rdp",
        randomness,
    )
    assert (mechanism.q, mechanism.steps, mechanism.delta, mechanism.sigma) == (4 / 12, 7, 1e-6, state.sigma)
    assert 5.99 <= mechanism.epsilon <= 6
    # as it is written to a manifest and read again
    assert PrivacyState.read(json.loads(json.dumps(asdict(state)))) == state


def test_what_was_spent_before_is_part_of_the_promise():
    warm = Steps(3.0, 1.0, 1)
    _, alone = fit(network())
    _, state = fit(network(), before=[warm])
    assert state.sigma > alone.sigma
    assert epsilon_of(state.events, state.delta, accountant="rdp") == state.mechanism().epsilon <= 6
    assert state.mechanism() == promised(CONFIG, PATIENTS, [warm])
    assert PrivacyState.read(json.loads(json.dumps(asdict(state)))) == state


def test_no_loss_leaves_the_loop(caplog, capsys):
    with caplog.at_level(logging.INFO):
        fit(network())
    assert [r.getMessage().split(",")[0] for r in caplog.records] == ["private training: 7 of 7"]
    printed = capsys.readouterr()
    assert "loss" not in printed.out + printed.err


def test_secure_noise_cannot_be_repeated_and_seeded_noise_can():
    assert same(fit(network())[0], fit(network())[0])
    assert not same(fit(network())[0], fit(network(), seed=2)[0])
    secure = replace(CONFIG, randomness="secure")
    assert not same(fit(network(), config=secure)[0], fit(network(), config=secure)[0])


def killed(folder: Path, stop: int, **changed: object) -> Workspace:
    model = network()
    with pytest.raises(KilledError):
        fit(model, Cohort(model, stop=stop), workspace=Workspace(folder), **changed)
    return Workspace(folder)


def full_steps(randomness: str) -> PrivacyConfig:
    """Nobody is left to chance, so that each step asks for rows and can be killed there."""
    return replace(CONFIG, batch=PATIENTS, randomness=randomness)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("stop", range(7))
def test_a_killed_seeded_run_ends_with_the_same_weights_and_spends_nothing_twice(tmp_path, stop, every):
    options = {"config": full_steps("seeded"), "checkpoint_every": every}
    whole, told = fit(network(), **options)
    workspace = killed(tmp_path, stop, **options)
    # the new process starts from other weights: all must come from the checkpoint, if there is one
    model = network()
    if stop >= every:
        nn.init.ones_(model[0].weight)
    rows = Cohort(model)
    weights, state = fit(model, rows, workspace=workspace, **options)
    assert same(weights, whole) and state == told
    assert sorted({step for step, _ in rows.asked}) == list(range(stop // every * every, 7))
    # and a finished one is only read
    rows = Cohort(model)
    assert same(fit(model, rows, workspace=workspace, **options)[0], whole) and not rows.asked


def check_that_nothing_is_forgotten(folder: Path) -> None:
    options = {"config": full_steps("secure"), "checkpoint_every": 3}
    workspace = killed(folder, 5, **options)
    model = network()
    rows = Cohort(model)
    _, state = fit(model, rows, workspace=workspace, **options)
    # six steps had begun, and three of them were lost; the seventh goes on from the third
    assert {step for step, _ in rows.asked} == {3}
    assert (state.done, state.spent) == (4, 7)
    assert state.mechanism().steps == 7 and state.mechanism().epsilon <= 6


def test_a_killed_secure_run_counts_the_steps_that_were_lost_and_keeps_its_promise(tmp_path, caplog):
    check_that_nothing_is_forgotten(tmp_path)
    assert "private training: 3 steps were cut off and count as spent; it ends at step 4" in caplog.text


@pytest.mark.parametrize("bug", FORGETFUL)
def test_planted_bugs_of_a_resumed_run_are_found(bug, tmp_path, monkeypatch):
    planted(*FORGETFUL[bug], monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        check_that_nothing_is_forgotten(tmp_path)


@pytest.mark.parametrize("stops", [(2, 1), (0, 0, 0), (6,), (3, 4)])
def test_however_often_a_secure_run_is_killed_each_begun_step_counts(tmp_path, stops):
    options = {"config": full_steps("secure"), "checkpoint_every": 3}
    for stop in stops:
        workspace = killed(tmp_path, stop, **options)
    begun = json.loads((tmp_path / "privacy.json").read_text())["spent"]
    _, state = fit(network(), workspace=workspace, **options)
    assert state.spent == 7 and state.done < 7 and begun <= 7
    assert state.mechanism() == promised(options["config"], PATIENTS)


def test_a_secure_run_whose_budget_is_gone_without_weights_does_not_begin_again(tmp_path):
    options = {"config": full_steps("secure"), "checkpoint_every": 100}
    for stop in (3, 2):
        killed(tmp_path, stop, **options)
    before = (tmp_path / "privacy.json").read_bytes()
    with pytest.raises(
        ValueError, match=r"all 7 steps are spent, and the weights that they gave are gone; nothing was overwritten"
    ):
        fit(network(), workspace=Workspace(tmp_path), **options)
    assert (tmp_path / "privacy.json").read_bytes() == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(folder: Path, message: str, **changed: object) -> None:
    before = contents(folder)
    with pytest.raises(ValueError, match=message):
        fit(changed.pop("model", None) or network(), workspace=Workspace(folder), **changed)
    assert contents(folder) == before


@pytest.mark.parametrize(
    "other",
    [{"epsilon": 7}, {"epsilon": math.inf}, {"steps": 8}, {"batch": 11}, {"clip": 0.4}, {"draws": 4}, {"delta": 1e-5},
     {"trainable": "bias"}, {"learning_rate": 0.1}, {"ema": 0.9}, {"randomness": "secure"}, {"accountant": "prv"}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("stop", [2, 6])
def test_a_run_that_is_asked_to_go_on_with_other_settings_is_refused(tmp_path, other, stop):
    """Before the first checkpoint as well: what was spent by then is spent."""
    config = full_steps("seeded")
    workspace = killed(tmp_path, stop, config=config, checkpoint_every=5)
    [name] = other
    refused(
        tmp_path,
        f"privacy.json: the run was begun with {name} .*; nothing was overwritten; continue with",
        config=replace(config, **other),
    )
    # memory is nobody's secret
    assert fit(network(), workspace=workspace, config=replace(config, physical=2), checkpoint_every=5)[1].done == 7


def test_a_run_is_resumed_on_its_own_patients_seed_and_parameters_alone(tmp_path):
    killed(tmp_path, 6, config=full_steps("seeded"), data="aaaa")
    options = {"config": full_steps("seeded"), "data": "aaaa"}
    for name, found, changed in (
        ("data", "'aaaa', not 'bbbb'", {"data": "bbbb"}),
        ("seed", "1, not 2", {"seed": 2}),
        ("patients", "12, not 13", {"keys": range(13)}),
        ("before", "", {"before": [Steps(9.0, 1.0, 1)]}),
    ):
        refused(tmp_path, f"the run was begun with {name} {found}", **(options | changed))
    frozen = network()
    frozen[0].requires_grad_(False)
    refused(tmp_path, "the run was begun with trained '", model=frozen, **options)


def rewritten(folder: Path, change: Callable[[Tensors], None], *, step: int | None = None) -> None:
    workspace = Workspace(folder)
    found, tensors = workspace.load_checkpoint()
    change(tensors)
    workspace.save_checkpoint(found if step is None else step, tensors)


def test_a_checkpoint_that_does_not_fit_its_privacy_state_is_refused(tmp_path):
    options = {"config": full_steps("seeded"), "checkpoint_every": 3}
    whole, _ = fit(network(), **options)
    killed(tmp_path, 5, **options)
    checkpoint, said = tmp_path / "checkpoint.safetensors", tmp_path / "privacy.json"
    good, told = checkpoint.read_bytes(), said.read_text()
    for change, message in (
        (lambda t: t["model.0.weight"].add_(1e-3), "checkpoint.safetensors: the privacy state is of other weights"),
        (lambda t: t["ema.0"].mul_(2), "the privacy state is of other weights"),
        (lambda t: t.pop("privacy"), "checkpoint.safetensors: its privacy state is missing; nothing was overwritten"),
        (lambda t: t["privacy"].zero_(), "checkpoint.safetensors: no privacy state"),
    ):
        rewritten(tmp_path, change)
        refused(tmp_path, message, **options)
        checkpoint.write_bytes(good)
    rewritten(tmp_path, lambda t: None, step=1)
    refused(tmp_path, "checkpoint.safetensors: ", **options)
    checkpoint.write_bytes(good)
    said.unlink()
    refused(tmp_path, "privacy.json: the privacy state of the checkpoint beside it is missing", **options)
    for body, message in (
        (told.replace('"spent": 6', '"spent": 2'), "3 steps are spent, 2 by privacy.json; expected at least as many"),
        ("[]", "privacy.json: found list"),
        ("{}", "privacy.json: missing key 'config'"),
        ("", "privacy.json: no privacy state"),
        (json.dumps(json.loads(told) | {"sigma": 0.5}), "the checkpoint is of sigma"),
    ):
        assert body != told
        said.write_text(body)
        refused(tmp_path, message, **options)
    said.write_text(told)
    assert same(fit(network(), workspace=Workspace(tmp_path), **options)[0], whole)


def test_a_sigma_that_does_not_keep_the_promise_is_refused(tmp_path):
    """Before the first checkpoint, where nothing else contradicts it."""
    killed(tmp_path, 1, config=full_steps("seeded"))
    said = tmp_path / "privacy.json"
    body = json.loads(said.read_text())
    for share in (0.9, 0.0, -1.0):
        said.write_text(json.dumps(body | {"sigma": share * body["sigma"]}))
        refused(tmp_path, r"privacy.json: sigma .* is too little for epsilon 6", config=full_steps("seeded"))


def test_a_damaged_checkpoint_costs_time_and_not_privacy(tmp_path):
    options = {"config": full_steps("seeded"), "checkpoint_every": 3}
    whole, told = fit(network(), **options)
    workspace = killed(tmp_path, 5, **options)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"damaged")
    weights, state = fit(network(), workspace=workspace, **options)
    assert same(weights, whole) and state == told


def test_a_finished_run_keeps_its_state_with_its_weights(cache):
    def train(workspace: Workspace) -> tuple[Tensors, dict[str, object]]:
        weights, state = fit(network(), workspace=workspace)
        return weights, {"privacy": asdict(state)}

    trained = load_or_train("private", CONFIG, {}, train)
    state = PrivacyState.read(trained.manifest["metrics"]["privacy"])
    state.check(trained.weights)
    other = trained.weights | {"0.bias": trained.weights["0.bias"] + 1}
    with pytest.raises(ValueError, match=r"RUN: the privacy state is of other weights .* what these have cost is unknown"):
        state.check(other, "RUN")
    state.bound_to(other).check(other)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"keys": range(3)}, "3 patients, and a step expects 4; use a smaller batch or more patients"),
        ({"config": replace(CONFIG, delta=0.2)}, "delta is 0.2 for 12 patients; expected less than 1/12"),
        ({"config": replace(CONFIG, delta=2.0, delta_rule="forced")}, r"delta is 2.0; expected a number above 0 and below 1"),
        ({"model": network().requires_grad_(False)}, "no parameter requires a gradient; choose with make_trainable"),
        ({"model": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))}, r"1 \(BatchNorm1d\)"),
        ({"before": [Steps(0.5, 1.0, 9)]}, "epsilon 6 is spent: the events before cost"),
    ],
    ids=["patients", "delta of 1/n", "no delta", "nothing to train", "batch norm", "spent"],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, changed, message):
    refused(tmp_path, message, **changed)
    assert not list(tmp_path.iterdir())


def test_a_delta_may_be_forced_and_the_state_says_so():
    _, state = fit(network(), config=replace(CONFIG, delta=0.2, delta_rule="forced"))
    assert state.mechanism().delta == 0.2 and state.config.delta_rule == "forced"

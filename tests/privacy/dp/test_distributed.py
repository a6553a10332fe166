"""Two processes on one training: the test's own is the first, and one that it started assists."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import distributed, nn

from medsynth.privacy.dp import distributed as module
from medsynth.privacy.dp import training
from medsynth.privacy.dp.distributed import DismissedError, assists, joined
from medsynth.privacy.dp.noise import sampled_patients, with_noise
from medsynth.privacy.dp.training import PrivacyState, Rows, fit_privately
from medsynth.settings.config import PrivacyConfig
from medsynth.store.hashes import json_hash
from medsynth.store.runs import Tensors, Workspace

PATIENTS = 12
# of these steps one has nobody, and some have one patient, so that a process has nothing to do
CONFIG = PrivacyConfig(epsilon=6, steps=6, batch=2, clip=0.3, learning_rate=0.05, physical=2, accountant="rdp")


def taken_in(step: int, seed: int) -> list[int]:
    """Who takes part in a step of `fit`."""
    trained = json_hash([name for name, p in network(0).named_parameters() if p.requires_grad])
    planned = PrivacyState(CONFIG, PATIENTS, training.delta_of(CONFIG, PATIENTS), seed=seed, trained=trained)
    return sampled_patients(PATIENTS, 2 / PATIENTS, randomness="seeded", seed=planned.noise_seed, step=step).tolist()


def network(start: int) -> nn.Module:
    torch.manual_seed(start)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    return model


SEED = next(seed for seed in range(99) if {0, 1, 4} <= {len(taken_in(step, seed)) for step in range(6)})


class Cohort:
    """One or two rows of each patient; who was asked for, and the weights that they met."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.asked: list[tuple[int, list[int], Tensors]] = []

    def __call__(self, patients: torch.Tensor, step: int, generators: Sequence[torch.Generator]) -> Rows:
        self.asked.append((step, patients.tolist(), {k: v.clone() for k, v in self.model.state_dict().items()}))
        sizes = 1 + patients % 2
        x = torch.cat([torch.randn(int(n), 3, generator=g) for n, g in zip(sizes, generators, strict=True)])
        patient = torch.arange(len(patients)).repeat_interleave(sizes)
        return Rows(lambda: (self.model(x) - x.sum(1, keepdim=True)).square().mean(1), patient, 1 / sizes[patient])


def fit(rows: Cohort, config: PrivacyConfig, **options: Any) -> tuple[Tensors, PrivacyState]:
    return fit_privately(rows.model, rows, keys=range(PATIENTS), config=config, seed=SEED, **options)


def noise_on_every_process(patch: pytest.MonkeyPatch) -> None:
    """The bug: noise enters what is added up, instead of the sum."""
    alone = training._clipped_sum
    sigma = training._with_sigma(PrivacyState(CONFIG, PATIENTS, training.delta_of(CONFIG, PATIENTS))).sigma

    def noisy(
        model: nn.Module, rows: Cohort, some: torch.Tensor, keys: Sequence[int], config: PrivacyConfig, seed: int, step: int
    ) -> Tensors:
        sums = alone(model, rows, some, keys, config, seed, step)
        return with_noise(sums, sigma * config.clip, randomness=config.randomness, seed=seed, step=step)

    patch.setattr(training, "_clipped_sum", noisy)
    patch.setattr(training, "with_noise", lambda sums, *_, **__: sums)


def everybody_on_every_process(patch: pytest.MonkeyPatch) -> None:
    """The bug: a patient counts once for each process."""
    patch.setattr(module, "_part", lambda patients: patients)


def weights_are_not_passed_on(patch: pytest.MonkeyPatch) -> None:
    """The bug: others stay with the weights that they began with."""
    patch.setattr(module, "_share", lambda tensors: None)


BUGS = (noise_on_every_process, everybody_on_every_process, weights_are_not_passed_on)


@contextlib.contextmanager
def group(rank: int, store: str) -> Iterator[None]:
    """As `joined`, of two processes that `torchrun` did not start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "is_torchelastic_launched", lambda: True)
        start = distributed.init_process_group
        patch.setattr(
            distributed, "init_process_group",
            lambda **options: start("gloo", init_method=f"file://{store}", rank=rank, world_size=2, **options),
        )  # fmt: skip
        with joined():
            yield


def assistant(pipe: Connection) -> None:
    """Joins a group for each job that it is sent; answers with who was asked for, or with the error."""
    torch.set_num_threads(1)
    while job := pipe.recv():
        store, config, bug = job
        rows = Cohort(network(start=7))
        try:
            with pytest.MonkeyPatch.context() as patch, group(1, store):
                for plant in BUGS:
                    if plant.__name__ == bug:
                        plant(patch)
                patch.setattr(training, "write_json", None)
                fit(rows, config, workspace=Workspace(Path("/nowhere")))
        except Exception as error:
            pipe.send(error)
        else:
            pipe.send(rows.asked)


Shared = Callable[..., tuple[Tensors, PrivacyState, Cohort, Any]]


@pytest.fixture(scope="module")
def pipe() -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=assistant, args=(theirs,), daemon=True)
    process.start()
    yield ours
    ours.send(None)
    process.join()


@pytest.fixture
def shared(pipe, tmp_path) -> Shared:
    """Trains in two processes: weights, state, what the first was asked for, and the answer of the other."""

    def run(config: PrivacyConfig = CONFIG, theirs: PrivacyConfig | None = None, bug: str = "", **options: Any) -> tuple:
        rows = Cohort(network(start=0))
        pipe.send((str(tmp_path / "store"), theirs or config, bug))
        with group(0, str(tmp_path / "store")):
            weights, state = fit(rows, config, **options)
        return weights, state, rows, pipe.recv()

    return run


def check(found: tuple[Tensors, PrivacyState, Cohort, Any], alone: tuple[Tensors, PrivacyState]) -> None:
    """AssertionError unless two processes came to what one comes to."""
    weights, state, rows, others = found
    assert replace(state, weights="") == replace(alone[1], weights="") and state.mechanism() == alone[1].mechanism()
    for name, expected in alone[0].items():
        torch.testing.assert_close(weights[name], expected, rtol=1e-5, atol=1e-6)
    # each patient once, by one of them, at the same weights
    for step in range(CONFIG.steps):
        sampled = taken_in(step, SEED)
        both = [(some, met) for s, some, met in [*rows.asked, *others] if s == step]
        assert sorted(p for some, _ in both for p in some) == sampled
        assert all(torch.equal(met[name], both[0][1][name]) for _, met in both for name in met)


def test_two_processes_come_to_the_weights_and_the_epsilon_of_one(shared):
    found = shared()
    check(found, fit(Cohort(network(start=0)), CONFIG))
    assert found[3] and max(len(some) for _, some, _ in found[2].asked) <= CONFIG.physical
    assert not distributed.is_initialized()


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_of_a_shared_step_are_found(bug, shared, monkeypatch):
    alone = fit(Cohort(network(start=0)), CONFIG)
    with monkeypatch.context() as patch:
        bug(patch)
        found = shared(bug=bug.__name__)
    with pytest.raises(AssertionError):
        check(found, alone)


def test_a_clipped_sum_is_the_same_from_two_processes(shared, monkeypatch):
    def sums_of(train: Callable[[], object]) -> list[Tensors]:
        seen: list[Tensors] = []
        with monkeypatch.context() as patch:
            patch.setattr(training, "with_noise", lambda sums, *_, **__: seen.append(sums) or sums)
            train()
        return seen

    one, two = sums_of(lambda: fit(Cohort(network(start=0)), CONFIG)), sums_of(shared)
    assert len(one) == len(two) == CONFIG.steps and any(v.any() for v in one[0].values())
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys() and {v.dtype for v in b.values()} == {torch.float32}
        for name, expected in a.items():
            torch.testing.assert_close(b[name], expected, rtol=1e-4, atol=1e-6)


def test_secure_noise_and_patients_are_drawn_once(shared, monkeypatch):
    drawn = []
    real, sampled = training.with_noise, training.sampled_patients
    monkeypatch.setattr(training, "with_noise", lambda *a, **k: (drawn.append("noise"), real(*a, **k))[1])
    taken = {}

    def noted(*args: object, step: int, **options: object) -> torch.Tensor:
        taken[step] = sampled(*args, step=step, **options)
        return taken[step]

    monkeypatch.setattr(training, "sampled_patients", noted)
    _, state, rows, others = shared(replace(CONFIG, randomness="secure"))
    assert drawn == ["noise"] * CONFIG.steps and state.spent == CONFIG.steps
    for step, patients in taken.items():
        assert sorted(p for s, some, _ in [*rows.asked, *others] if s == step for p in some) == patients.tolist()


def test_only_the_first_process_writes_and_a_killed_run_goes_on_shared(shared, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    whole = fit(Cohort(network(start=0)), CONFIG)
    rows = Cohort(network(start=0))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "with_noise", _killed_at(4))
        fit(rows, CONFIG, workspace=Workspace(run), checkpoint_every=2)
    weights, state, rows, others = shared(workspace=Workspace(run), checkpoint_every=2)
    assert {step for step, *_ in [*rows.asked, *others]} <= {4, 5} and state.spent == CONFIG.steps
    for name, expected in whole[0].items():
        torch.testing.assert_close(weights[name], expected, rtol=1e-5, atol=1e-6)


def _killed_at(step: int) -> Callable[..., Tensors]:
    def noise(sums: Tensors, sd: float, *, step: int, **options: Any) -> Tensors:
        if step == last:
            raise KeyboardInterrupt
        return with_noise(sums, sd, step=step, **options)

    last = step
    return noise


def test_a_process_with_another_plan_is_refused(shared, pipe):
    with pytest.raises(RuntimeError):
        shared(theirs=replace(CONFIG, clip=0.4))
    error = pipe.recv()
    assert isinstance(error, ValueError) and "start all on the same images and options" in str(error)


def test_an_assistant_goes_home_when_the_first_process_fails_or_has_nothing_to_train(pipe, tmp_path):
    pipe.send((str(tmp_path / "found"), CONFIG, ""))
    with group(0, str(tmp_path / "found")):
        assert not assists()
    assert pipe.recv() == []
    pipe.send((str(tmp_path / "failed"), CONFIG, ""))
    with pytest.raises(ValueError, match="on the way"), group(0, str(tmp_path / "failed")):
        raise ValueError("on the way")
    assert pipe.recv() == []


def test_a_process_alone_is_left_alone():
    with joined():
        assert not distributed.is_initialized() and not assists()


def test_there_are_no_more_processes_than_gpus(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    module._take_gpu(1, 2)
    with pytest.raises(ValueError, match=r"process 3 of this machine found 2 GPU\(s\); start at most one process for each"):
        module._take_gpu(2, 2)
    assert taken == [1]
    assert issubclass(DismissedError, Exception)

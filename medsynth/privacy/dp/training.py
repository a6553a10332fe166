"""Training under patient-level differential privacy: one loop for any network whose loss comes row by row.

DP-SGD (Abadi et al., arXiv:1607.00133) with the patient as the unit: patients are sampled, a patient's rows are averaged before
the clip, and the divisor is a public constant. A *logical* step is what the accountant counts; the *physical* batches that it is
computed in decide memory alone.

What a kill does to the budget. A step that is begun is written down first. "seeded": a step that is repeated has the same noise,
so it is the same release and counts once. "secure": it has other noise. The steps that were lost left no trace on disk, and
counting them is needed only if somebody saw the memory; they are counted all the same, and training ends as many steps early.
In both, what is spent never exceeds the promise.
"""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from medsynth.mechanism import NONE, Mechanism
from medsynth.privacy.dp.accountant import Steps, checked_delta, cross_check, default_delta, epsilon_of, noise_for
from medsynth.privacy.dp.distributed import assist, assists, begin, shared_sum
from medsynth.privacy.dp.gradients.clipped_sums import clipped_sums, refuse_unsuitable
from medsynth.privacy.dp.noise import patient_generators, run_stream, sampled_patients, with_noise
from medsynth.settings.config import PrivacyConfig
from medsynth.settings.parse import parse
from medsynth.store.hashes import json_hash, tensors_hash
from medsynth.store.runs import Tensors, Workspace, write_json
from medsynth.training import learning_rate_at, progress, restore_training, training_state

log = logging.getLogger(__name__)

_SAID = "privacy.json"  # in a run's folder: what was promised, and how many steps have begun


class Rows(NamedTuple):
    """A physical batch: what goes through the network, and whose it is."""

    losses: Callable[[], torch.Tensor]  # runs the network once, -> (rows,)
    patient: torch.Tensor  # (rows,) int64, the place of the row's patient among those that were asked for
    weight: torch.Tensor  # (rows,), 1 / (records of the patient * draws)


# (patients (p,) int64 in 0..n-1, step, one generator a patient) -> their rows; a patient's rows may depend on nothing else
RowsOf = Callable[[torch.Tensor, int, Sequence[torch.Generator]], Rows]


@dataclass(frozen=True)
class PrivacyState:
    """What was promised and what is spent of it, bound to the weights that it is true of."""

    config: PrivacyConfig
    patients: int
    delta: float
    before: tuple[Steps, ...] = ()  # what else was spent on these weights
    seed: int = 0
    data: str = ""  # hash of what is trained on
    trained: str = ""  # hash of the names of the trained parameters
    device: str = "cpu"  # seeded noise is another on a GPU
    sigma: float = 0.0  # 0: no noise, nothing is proved
    done: int = 0  # logical steps that the weights rest on
    spent: int = 0  # logical steps that have begun, at least `done`
    weights: str = ""  # hash of the weights

    @classmethod
    def read(cls, body: object, where: str = "privacy state") -> PrivacyState:
        """From what `asdict` and JSON made of it. Raises ValueError naming what is missing or wrong."""
        known = isinstance(body, dict)
        before = tuple(Steps(*event) for event in body.get("before", [])) if known else ()
        return replace(parse(cls, {**body, "before": []} if known else body, where), before=before)

    @property
    def q(self) -> float:
        """A patient's chance to be in a step."""
        return self.config.batch / self.patients

    @property
    def noise_seed(self) -> int:
        """Of seeded noise, and of who takes part: two runs of one seed share neither, so what is proved of them adds up."""
        said = asdict(replace(self, sigma=0.0, done=0, spent=0, weights="", device="", config=replace(self.config, physical=1)))
        return run_stream(self.seed, json_hash(said))

    @property
    def events(self) -> tuple[Steps, ...]:
        """What the accountant is asked about."""
        return (*self.before, Steps(self.sigma, self.q, self.spent))

    def mechanism(self) -> Mechanism:
        """For the ledger. Its epsilon is that of all events together, those `before` included: do not add them again."""
        if self.sigma == 0:
            return NONE
        epsilon = epsilon_of(self.events, self.delta, accountant=self.config.accountant)
        return Mechanism(
            "dp-sgd", unit="patient", epsilon=epsilon, delta=self.delta, accountant=self.config.accountant,
            q=self.q, steps=self.spent, sigma=self.sigma, randomness=self.config.randomness,
        )  # fmt: skip

    def bound_to(self, weights: Tensors) -> PrivacyState:
        """The same, of weights that follow from its own and nothing private, as those with adapters merged do."""
        return replace(self, weights=_hash(weights))

    def check(self, weights: Tensors, where: str = "weights") -> None:
        """ValueError unless this is the state of these weights."""
        if self.weights != _hash(weights):
            raise ValueError(
                f"{where}: the privacy state is of other weights (hash {self.weights!r}, found {_hash(weights)!r}), so what "
                "these have cost is unknown; nothing was overwritten; restore the files that belong together, or train anew"
            )


def fit_privately(
    model: nn.Module,
    rows_of: RowsOf,
    *,
    keys: Sequence[int],
    config: PrivacyConfig,
    seed: int,
    data: str = "",
    before: Sequence[Steps] = (),
    workspace: Workspace | None = None,
    checkpoint_every: int = 20,
    label: str = "private training",
) -> tuple[Tensors, PrivacyState]:
    """Minimise the patients' mean loss over the parameters that require gradients, with Adam; (EMA state dict on CPU, its state).

    Each logical step samples patients with rate batch / patients, adds up their clipped gradients, adds N(0, (sigma clip)^2) once
    and divides by `batch`, whoever took part. keys: one for each patient, which their own images alone decide, as `patient_keys`
    does; how many there are is taken for public. sigma is solved so that all steps, after the events `before`, cost epsilon at
    most. The network stays in evaluation mode: dropout would be neither the patient's own nor repeatable. No loss of a private
    patient is returned or logged, for none is covered by the promise. data: hash of what is trained on.
    With a workspace a killed run goes on, on the same data and kind of device; "seeded" it ends with the weights of an
    uninterrupted one (on a GPU nearly, as `fit`).
    Within `distributed.joined`, processes share the sums; on all but the first it ends in DismissedError, with no workspace used.
    Raises ValueError for fewer patients than `batch`, where `refuse_unsuitable` does, and for a folder whose state is missing,
    of other weights or of another run; then nothing is overwritten.
    """
    model.eval()
    refuse_unsuitable(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("no parameter requires a gradient; choose with make_trainable what is trained")
    parameters = list(trained.values())
    device = parameters[0].device.type
    delta = delta_of(config, len(keys))
    planned = PrivacyState(config, len(keys), delta, tuple(before), seed, data, json_hash(list(trained)), device)

    def own(some: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        return _clipped_sum(model, rows_of, some, keys, config, seed, step)

    if assists():
        assist(model, trained, planned, own)
    state, tensors = _stored(workspace, planned) if workspace else (None, None)
    state = state or _with_sigma(planned)
    optimiser = torch.optim.Adam(parameters, lr=config.learning_rate)
    average = EMAModel(parameters, decay=config.ema, foreach=device == "cuda")
    if tensors:
        restore_training(tensors, state.done, model, parameters, optimiser, average)
    repeats = config.randomness == "seeded" or not state.sigma
    stop = config.steps if repeats else config.steps - (state.spent - state.done)
    if stop < config.steps:
        log.warning("%s: %d steps were cut off and count as spent; it ends at step %d", label, config.steps - stop, stop)
    randomness = {"randomness": config.randomness, "seed": planned.noise_seed}
    begin(model, planned)
    for step in progress(state.done, stop, label):
        state = replace(state, spent=max(state.spent, step + 1) if repeats else state.spent + 1, weights="")
        if workspace:
            write_json(workspace.path / _SAID, state)
        sampled = sampled_patients(len(keys), state.q, step=step, **randomness)
        sums = shared_sum(trained, sampled, step, own)
        if state.sigma:
            sums = with_noise(sums, state.sigma * config.clip, step=step, **randomness)
        for name, p in trained.items():
            p.grad = (sums[name] / config.batch).to(p.dtype)
        for group in optimiser.param_groups:
            group["lr"] = _rate(step, config)
        optimiser.step()
        average.step(parameters)
        state = replace(state, done=step + 1)
        if workspace and (state.done % checkpoint_every == 0 or state.done == stop):
            _save(workspace, state, training_state(model, optimiser, average))
    optimiser.zero_grad(set_to_none=True)
    average.copy_to(parameters)
    weights = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
    return weights, state.bound_to(weights)


def promised(config: PrivacyConfig, patients: int, before: Sequence[Steps] = ()) -> Mechanism:
    """For the ledger, before the first reading: what a run will have proved when it ends, by two accountants that agree."""
    planned = PrivacyState(config, patients, delta_of(config, patients), tuple(before))
    ended = replace(_with_sigma(planned), spent=config.steps)
    if ended.sigma and config.accountant == "prv":
        cross_check(ended.events, ended.delta)
    return ended.mechanism()


def delta_of(config: PrivacyConfig, patients: int) -> float:
    """The delta that a run promises. Raises ValueError for fewer patients than a step expects, and as `checked_delta` does."""
    if patients < config.batch:
        raise ValueError(f"{patients} patients, and a step expects {config.batch}; use a smaller batch or more patients")
    given = default_delta(patients) if config.delta is None else config.delta
    return checked_delta(given, patients, forced=config.delta_rule == "forced")


def _with_sigma(planned: PrivacyState) -> PrivacyState:
    c = planned.config
    if math.isinf(c.epsilon):
        return planned
    return replace(planned, sigma=_sigma(c.epsilon, planned.delta, planned.q, c.steps, planned.before, c.accountant))


@functools.lru_cache(maxsize=32)
def _sigma(epsilon: float, delta: float, q: float, steps: int, before: tuple[Steps, ...], accountant: str) -> float:
    """Kept, since it takes seconds and is asked for twice: by the ledger, and by the run."""
    return noise_for(epsilon, delta, q=q, steps=steps, before=before, accountant=accountant)


def _clipped_sum(
    model: nn.Module, rows_of: RowsOf, sampled: torch.Tensor, keys: Sequence[int], config: PrivacyConfig, seed: int, step: int
) -> dict[str, torch.Tensor]:
    """Over the sampled patients, in physical batches; no patient adds more than clip, one that is not finite nothing."""
    clip = math.inf if math.isinf(config.epsilon) else config.clip
    device = next(model.parameters()).device
    nobody = sampled[:0].to(device)
    total = clipped_sums(model, lambda: nobody, nobody, nobody.float(), clip=clip).sums
    for some in sampled.split(config.physical) if len(sampled) else ():
        drawn = patient_generators([keys[p] for p in some.tolist()], seed=seed, step=step, device=device.type)
        rows = rows_of(some, step, drawn)
        part = clipped_sums(model, rows.losses, rows.patient.to(device), rows.weight.to(device), clip=clip).sums
        for name, value in part.items():
            total[name] += value
    return total


def _rate(step: int, config: PrivacyConfig) -> float:
    if config.schedule == "cosine":
        return learning_rate_at(step, steps=config.steps, peak=config.learning_rate, warmup=config.warmup)
    return config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup))


def _hash(tensors: Tensors) -> str:
    return tensors_hash(dict(sorted(tensors.items())))


def _save(workspace: Workspace, state: PrivacyState, tensors: Tensors) -> None:
    """Weights and state in one file, so that a kill leaves both or neither."""
    said = json.dumps(asdict(state.bound_to(tensors))).encode()
    workspace.save_checkpoint(state.done, tensors | {"privacy": torch.frombuffer(bytearray(said), dtype=torch.uint8)})


def _stored(workspace: Workspace, planned: PrivacyState) -> tuple[PrivacyState | None, Tensors | None]:
    """What the folder holds of this run. Raises ValueError where it is of another, or does not fit together."""
    file, checkpoint = workspace.path / _SAID, workspace.load_checkpoint()
    kept = "; nothing was overwritten; continue with the files and settings that it began with, or give this run its own folder"
    if not file.exists():
        if checkpoint:
            raise ValueError(f"{file}: the privacy state of the checkpoint beside it is missing{kept}")
        return None, None
    state = _said(file.read_bytes(), str(file))
    _refuse_another(state, planned, f"{file}: the run was begun with", kept)
    state, tensors = replace(state, config=planned.config, done=0, weights=""), None
    if checkpoint:
        step, tensors = checkpoint
        where = f"{workspace.path / 'checkpoint.safetensors'}"
        if (said := tensors.pop("privacy", None)) is None:
            raise ValueError(f"{where}: its privacy state is missing{kept}")
        own = _said(said.numpy().tobytes(), where)
        own.check(tensors, where)
        _refuse_another(own, state, f"{where}: the checkpoint is of", kept)
        if own.done != step or own.spent > state.spent:
            raise ValueError(f"{where}: {own.spent} steps are spent, {state.spent} by {_SAID}; expected at least as many{kept}")
        state = replace(state, done=step)
    elif state.spent >= planned.config.steps and planned.config.randomness == "secure" and state.sigma:
        raise ValueError(f"{file}: all {state.spent} steps are spent, and the weights that they gave are gone{kept}")
    if math.isfinite(planned.config.epsilon):
        cost = math.inf
        if state.sigma > 0:
            full = replace(state, spent=planned.config.steps)
            cost = epsilon_of(full.events, full.delta, accountant=full.config.accountant)
        if cost > planned.config.epsilon + 1e-6:
            raise ValueError(f"{file}: sigma {state.sigma:g} is too little for epsilon {planned.config.epsilon:g}{kept}")
    return state, tensors


def _said(text: bytes, where: str) -> PrivacyState:
    try:
        return PrivacyState.read(json.loads(text), where)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: no privacy state ({error}); nothing was overwritten; restore it, or train anew") from error


def _refuse_another(found: PrivacyState, expected: PrivacyState, where: str, kept: str) -> None:
    """ValueError naming the first setting that differs. sigma follows from the others, memory changes nothing."""
    a, b = (
        asdict(s.config) | asdict(s) | {"config": 0, "physical": 0, "done": 0, "spent": 0, "weights": ""}
        for s in (found, expected)
    )
    if expected.sigma == 0 and math.isfinite(expected.config.epsilon):
        a["sigma"] = b["sigma"]
    for key in a:
        if a[key] != b[key]:
            raise ValueError(f"{where} {key} {a[key]!r}, not {b[key]!r}{kept}")

"""One loop for every network: stateless randomness, so a killed run resumes to the weights of an uninterrupted one."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from diffusers.training_utils import EMAModel
from torch import nn
from tqdm.auto import tqdm

from medsynth.store.runs import Tensors, Workspace

log = logging.getLogger(__name__)

Loss = Callable[[int, torch.Generator], torch.Tensor]


def best_device() -> str:
    """ "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def precision(device: torch.device | str) -> torch.dtype:
    """What networks multiply in while they are trained or draw: bfloat16 on a GPU that has it, else float32."""
    gpu = torch.device(device).type == "cuda"
    return torch.bfloat16 if gpu and torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32


def autocast(device: torch.device | str) -> contextlib.AbstractContextManager[object]:
    """Around a network's forward pass: its products in `precision`; weights, their average, losses and solvers stay float32.

    What judges images (decoder, features, the gate's distances) never runs in it.
    """
    half = precision(device) == torch.bfloat16
    # weights are used once in a pass, and a graph may not remember the casts of an earlier one
    return torch.autocast(torch.device(device).type, torch.bfloat16, cache_enabled=False) if half else contextlib.nullcontext()


def described(device: torch.device | str) -> str:
    """For manifests: "cpu", or a GPU with its name and precision. It names no run: what a GPU trained is found on a CPU."""
    if torch.device(device).type == "cpu":
        return "cpu"
    return f"{torch.device(device).type} ({torch.cuda.get_device_name(device)}, {str(precision(device)).removeprefix('torch.')})"


@contextlib.contextmanager
def captured(model: nn.Module) -> Iterator[None]:
    """Around a training that calls `model(...)` with one shape: on a GPU its passes start as CUDA graphs, not kernel by kernel.

    Captured in half a second, they take a small network's step from 80 ms to 8 (one H200). Afterwards the model is as it was.
    """
    if not _on_gpu(model):
        yield
        return
    model.forward = functools.partial(_capture, model)
    try:
        with warnings.catch_warnings():
            # a graph is captured on a stream of its own, and each step waits for it
            warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream does not match")
            yield
    finally:
        # the class's own again: drawing asks for other shapes
        model.__dict__.pop("forward", None)


def _capture(model: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    """The first call: graphs of the forward and the backward pass take the place of `model.forward`."""
    del model.forward
    torch.cuda.make_graphed_callables(model, tuple(x.clone() for x in inputs), allow_unused_input=True)
    return model(*inputs)


@contextlib.contextmanager
def compiled(model: nn.Module) -> Iterator[None]:
    """As `captured`, with kernels compiled for the network, where there is a compiler: slow to start, fast from then on.

    The denoiser of `paper` compiles for one or two minutes, and a step takes 30 ms instead of 66 (one H200).
    """
    if not (_on_gpu(model) and _can_compile()):
        with captured(model):
            yield
        return
    model.compile(mode="reduce-overhead", dynamic=False)
    try:
        yield
    finally:
        # PyTorch has no public way back
        model._compiled_call_impl = None
        torch.compiler.reset()


def _on_gpu(model: nn.Module) -> bool:
    return next(model.parameters()).device.type == "cuda"


def _can_compile() -> bool:
    """Whether there is what makes kernels: Triton, and a C compiler for what launches them."""
    compilers = (os.environ.get("CC"), *map(shutil.which, ("cc", "gcc", "clang")))
    return importlib.util.find_spec("triton") is not None and any(compilers)


def step_generator(seed: int, step: int, device: str = "cpu") -> torch.Generator:
    """Randomness of one step, a function of (seed, step) alone: nothing about the past needs to be stored."""
    # odd multipliers spread neighbouring (seed, step) pairs over 63 bits
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03) % (1 << 63)
    return torch.Generator(device).manual_seed(mixed)


def learning_rate_at(step: int, *, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def fit(
    model: nn.Module,
    loss: Loss,
    *,
    steps: int,
    learning_rate: float,
    workspace: Workspace | None = None,
    seed: int = 0,
    warmup: int = 100,
    weight_decay: float = 0.01,
    ema: float = 0.999,
    clip_norm: float = 1.0,
    checkpoint_every: int = 500,
    label: str = "training",
) -> tuple[Tensors, dict[str, float]]:
    """Minimise `loss(step, generator)` with AdamW; (EMA state dict on CPU, metrics).

    With a workspace, checkpoints are written and a killed run goes on from the last one. It ends with the same weights: on a CPU
    bit by bit; on a GPU, whose kernels may add in any order, within a thousandth of the distance that training moves them.
    Raises FloatingPointError when the loss is not finite.
    """
    device = next(model.parameters()).device
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)
    average = EMAModel(parameters, decay=ema, foreach=device.type == "cuda")
    start, tensors = (workspace.load_checkpoint() if workspace else None) or (0, None)
    if tensors:
        restore_training(tensors, start, model, parameters, optimiser, average)
    model.train()
    recent: list[torch.Tensor] = []
    for step in progress(start, steps, label):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate_at(step, steps=steps, peak=learning_rate, warmup=warmup)
        value = loss(step, step_generator(seed, step, device.type))
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimiser.step()
        average.step(parameters)
        recent.append(value.detach())
        if (step + 1) % 50 == 0 or step + 1 == steps:
            # one synchronisation per 50 steps is enough to notice a diverged run
            mean = float(torch.stack(recent).mean())
            if not math.isfinite(mean):
                raise FloatingPointError(
                    f"{label}: loss is {mean} before step {step + 1}; lower the learning rate, or mend what is not finite"
                )
            recent = recent[-50:]
        if workspace and checkpoint_every and (step + 1) % checkpoint_every == 0 and step + 1 < steps:
            workspace.save_checkpoint(step + 1, training_state(model, optimiser, average))
    last = float(torch.stack(recent).mean()) if recent else float("nan")
    average.copy_to(parameters)
    model.eval()
    return {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}, {"loss": last, "steps": float(steps)}


def training_state(model: nn.Module, optimiser: torch.optim.Optimizer, average: EMAModel) -> Tensors:
    """All that a training has come to, as tensors for a checkpoint."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for i, slots in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{i}.{k}": torch.as_tensor(v) for k, v in slots.items()}
    return tensors | {f"ema.{i}": p for i, p in enumerate(average.shadow_params)}


def restore_training(
    tensors: Tensors, step: int, model: nn.Module, parameters: list[nn.Parameter], optimiser: torch.optim.Optimizer,
    average: EMAModel,
) -> None:  # fmt: skip
    """Put back what `training_state` gave after `step` steps."""
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    slots: dict[int, Tensors] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, index, name = key.split(".")
            # the fused optimiser walks memory, so moments must lie in the order of their parameter
            like = parameters[int(index)]
            slots.setdefault(int(index), {})[name] = torch.empty_like(like).copy_(value) if value.ndim else value
    optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
    average.shadow_params = [tensors[f"ema.{i}"].to(p.device) for i, p in enumerate(parameters)]
    average.optimization_step = step


def progress(start: int, stop: int, label: str) -> Iterator[int]:
    """Count from start to stop: throttled log lines where somebody listens to INFO, else a bar (terminal, JupyterLab)."""
    # a kernel's stderr is no terminal, so asking for one would leave notebooks without any progress
    interactive = not log.isEnabledFor(logging.INFO)
    began = said = time.monotonic()
    for i in tqdm(range(start, stop), initial=start, total=stop, desc=label, disable=not interactive, leave=False):
        yield i
        now = time.monotonic()
        if not interactive and (now - said > 15 or i + 1 == stop):
            said = now
            log.info("%s: %d of %d, %.3g s each", label, i + 1, stop, (now - began) / (i + 1 - start))

"""What a private step of a denoiser costs beside one without privacy: four ways to the same gradient, timed in one run.

"plain": an ordinary step of PyTorch. Where a convolution trains its bias alone, PyTorch on a CPU computes the gradient of its
weight as well, and drops it. "lean": the plain step without these, the least that such a training can cost, and so the fairer
baseline of small trainable sets. "clipped": ours. "opacus": the plain step under Opacus' own hooks, which leave a gradient of
each row and do not clip yet.
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from opacus import GradSampleModule
from torch import nn

from medsynth.language.vocabulary import HEART
from medsynth.models.denoiser import Denoiser
from medsynth.privacy.dp.gradients.clipped_sums import clipped_sums
from medsynth.privacy.dp.trainable import TRAINABLE, make_trainable
from medsynth.results import Estimate
from medsynth.settings.config import DenoiserConfig
from medsynth.training import autocast

STEPS = ("plain", "lean", "clipped", "opacus")
CLIP = 0.05

Step = Callable[[], dict[str, torch.Tensor]]  # forward and backward pass; gradients by the name of the parameter


class StepCost(NamedTuple):
    """Of one kind of step and one trainable set. Ratios are to a step of the same round: median over rounds [least, most]."""

    trainable: str
    step: str
    seconds: float  # median; on a CPU those that the process was given
    of_plain: Estimate
    of_lean: Estimate

    @property
    def ratios(self) -> dict[str, Estimate]:
        """By the names that a table has for them."""
        return {"time over plain": self.of_plain, "time over lean": self.of_lean}


def step_costs(
    config: DenoiserConfig,
    shape: Sequence[int],
    *,
    batch: int,
    rounds: int,
    sets: Sequence[str] = TRAINABLE,
    steps: Sequence[str] = STEPS,
    device: str = "cpu",
) -> list[StepCost]:
    """Costs of `steps`, plain and lean ones always among them, for latents (c, *spatial) and a batch of one row a patient.

    Steps of a round follow one another, so what else the machine does meets all of them alike.
    Raises ValueError for fewer than 2 rounds, and as `prepared_step` does.
    """
    if rounds < 2:
        raise ValueError(f"rounds is {rounds}; expected at least 2, for the least and the most of a ratio")
    costs = []
    for which in sets:
        kinds = list(dict.fromkeys(["plain", "lean", *steps]))
        prepared = [prepared_step(kind, which, config, shape, batch=batch, device=device) for kind in kinds]
        for step in prepared:
            step()
        spent = np.array([[_seconds(step, device) for step in prepared] for _ in range(rounds)])  # (rounds, kinds)
        of_plain, of_lean = spent / spent[:, :1], spent / spent[:, 1:2]
        costs += [
            StepCost(which, kind, float(np.median(spent[:, i])), _summary(of_plain[:, i]), _summary(of_lean[:, i]))
            for i, kind in enumerate(kinds)
        ]
    return costs


def prepared_step(kind: str, which: str, config: DenoiserConfig, shape: Sequence[int], *, batch: int, device: str) -> Step:
    """One of STEPS on a fixed batch, for one of TRAINABLE. Raises ValueError for another word of either."""
    if kind not in STEPS:
        raise ValueError(f"step {kind!r}; expected one of {', '.join(STEPS)}")
    torch.manual_seed(0)
    model = Denoiser(config, HEART, shape[0]).to(device).train()
    make_trainable(model, which)
    for p in model.parameters():
        # MONAI starts layers at zero, and gradients before them would vanish
        if not p.any():
            nn.init.normal_(p, std=0.1)
    noisy, target = (torch.randn(batch, *shape, device=device) for _ in range(2))
    times, condition = torch.randint(1000, (batch,), device=device), torch.randn(batch, len(HEART), device=device)
    if kind == "lean":
        _spare_frozen_weights(model)
    network: nn.Module = GradSampleModule(model, loss_reduction="sum") if kind == "opacus" else model

    def losses() -> torch.Tensor:
        with autocast(device):
            return (network(noisy, times, condition) - target).square().flatten(1).mean(1)

    if kind == "clipped":
        patient, weight = torch.arange(batch, device=device), torch.ones(batch, device=device)
        return lambda: clipped_sums(model, losses, patient, weight, clip=CLIP).sums

    def step() -> dict[str, torch.Tensor]:
        network.zero_grad(set_to_none=True)
        losses().sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    return step


class _BiasAlone(torch.autograd.Function):
    """Outputs (n, c, *spatial) that a bias was added to elsewhere, and the gradient of the bias."""

    @staticmethod
    def forward(ctx: Any, outputs: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return outputs.view_as(outputs)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return g, g.flatten(2).sum((0, 2))


def _spare_frozen_weights(model: nn.Module) -> None:
    """Let convolutions of `model` whose bias alone is trained have no gradient of their weight computed."""
    for layer in model.modules():
        if not isinstance(layer, nn.modules.conv._ConvNd) or layer.bias is None:
            continue
        if layer.bias.requires_grad and not layer.weight.requires_grad:
            layer._conv_forward = functools.partial(_convolved, layer._conv_forward)


def _convolved(form: Callable[..., torch.Tensor], x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return _BiasAlone.apply(form(x, weight, bias.detach()), bias)


def _seconds(step: Step, device: str) -> float:
    clock = time.perf_counter if device == "cuda" else time.process_time
    gc.collect()
    begun = clock()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - begun


def _summary(ratios: np.ndarray) -> Estimate:
    """Least and most are an interval for the median: all rounds fall on one side of it with chance 2^(1 - n)."""
    n = len(ratios)
    return Estimate(float(np.median(ratios)), float(ratios.min()), float(ratios.max()), n, "rounds", 1 - 2.0 ** (1 - n))

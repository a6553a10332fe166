"""Training a restoration network on pairs of degraded and clean images, and applying it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from medsynth.downstream.restoration_nets import Consistency, RestorationConfig, restoration_net
from medsynth.imageset import ImageSet
from medsynth.store.dependencies import code_hash
from medsynth.store.runs import Tensors, Trained, Workspace, load_or_train
from medsynth.training import autocast, best_device, captured, described, fit

if TYPE_CHECKING:
    from medsynth.ledger import Ledger


@dataclass(frozen=True)
class RestorationTraining:
    """Budget and schedule. Nothing here depends on the training set, so that sets can be compared."""

    steps: int  # optimiser steps
    batch: int = 16
    patch: int | None = 64  # side of random patches, pixels; None: whole images, which data consistency needs
    learning_rate: float = 1e-3  # of Adam; RED-CNN's
    warmup: int = 50
    clip: float = 1.0  # the norm that a gradient is cut to
    ema: float = 0.999
    checkpoint_every: int = 500
    seed: int = 0


def train_restoration(
    degraded: ImageSet,
    clean: ImageSet,
    *,
    net: RestorationConfig,
    training: RestorationTraining,
    ledger: Ledger,
    consistency: Consistency | None = None,
) -> tuple[nn.Module, Trained]:
    """A network trained to bring `degraded` to `clean` by mean squared error; found again if trained before.

    Row i of one set is row i of the other. Private images leave a line in the ledger (mechanism "none").
    Raises ValueError when the sets are not pairs, or when patches would cut images that data consistency needs whole.
    """
    _check_pairs(degraded, clean)
    side = min(clean.spatial)
    patch = side if training.patch is None else min(training.patch, side)
    if consistency is not None and (patch,) * 2 != clean.spatial:
        raise ValueError(f"{clean.name}: patches of {patch} px with data consistency; train on whole images (patch: None)")
    device = best_device()

    def build() -> nn.Module:
        torch.manual_seed(training.seed)
        return restoration_net(net, consistency)

    def train(workspace: Workspace) -> tuple[Tensors, dict[str, float]]:
        model = build().to(device)
        inputs, targets = (_unit(s).to(device) for s in (degraded, clean))
        # the arithmetic of a scanner (sparse matrices, FFT) has not been tried in a graph
        with captured(model) if consistency is None else contextlib.nullcontext():
            return fit(
                model,
                lambda step, random: patch_loss(model, inputs, targets, training.batch, patch, random),
                steps=training.steps,
                learning_rate=training.learning_rate,
                warmup=training.warmup,
                clip_norm=training.clip,
                weight_decay=0.0,
                ema=training.ema,
                seed=training.seed,
                checkpoint_every=training.checkpoint_every,
                workspace=workspace,
                label=f"restoration ({net.net})",
            )

    model = build()
    # the clean set stands for both: its rows are those that a ledger can recognise
    ledger.read(clean, stage="train restoration net", output=f"weights of {degraded.name}")
    config = {"net": net, "training": training, "consistency": None if consistency is None else consistency.description}
    inputs = {"degraded": degraded.content_hash, "clean": clean.content_hash, "code": code_hash(__name__)}
    trained = load_or_train("restoration", config, inputs, train, device=described(device))
    model.load_state_dict(trained.weights)
    return model.eval(), trained


@torch.no_grad()
def restore(model: nn.Module, degraded: ImageSet, *, batch: int = 16) -> ImageSet:
    """The images as a network restores them, clipped to their range; whole images, whatever it was trained on."""
    device = next(model.parameters()).device
    chunks = _unit(degraded).split(batch)
    restored = (
        torch.cat([model(chunk.to(device)).cpu() for chunk in chunks]) if len(degraded) else torch.empty(degraded.images.shape)
    )
    return degraded.with_images(degraded.unscaled(restored.numpy() * 2 - 1), name=f"{degraded.name}-restored")


def patch_loss(
    model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, batch: int, patch: int, random: torch.Generator
) -> torch.Tensor:
    """Mean squared error on `batch` patches of paired images (n, 1, h, w) that (seed, step) determine."""
    n, _, height, width = inputs.shape
    device = inputs.device
    rows = torch.randint(n, (batch, 1, 1), generator=random, device=device)
    top = torch.randint(height - patch + 1, (batch, 1, 1), generator=random, device=device)
    left = torch.randint(width - patch + 1, (batch, 1, 1), generator=random, device=device)
    offset = torch.arange(patch, device=device)
    index = (rows, 0, top + offset[:, None], left + offset[None, :])
    with autocast(device):
        # squared errors are float32 in there
        return nn.functional.mse_loss(model(inputs[index][:, None]), targets[index][:, None])


def _unit(images: ImageSet) -> torch.Tensor:
    """Images mapped from their range to [0, 1]: there zero padding is air, as the networks' sources have it."""
    return torch.from_numpy((images.scaled() + 1) / 2)


def _check_pairs(degraded: ImageSet, clean: ImageSet) -> None:
    for key in ("unit", "range", "role"):
        if getattr(degraded, key) != getattr(clean, key):
            raise ValueError(
                f"{degraded.name}: {key} {getattr(degraded, key)!r}; expected {clean.name}'s {getattr(clean, key)!r}"
            )
    if degraded.images.shape != clean.images.shape or not np.array_equal(degraded.patient, clean.patient):
        raise ValueError(
            f"{degraded.name}: {degraded.images.shape} is not, row by row and patient by patient, {clean.name}'s "
            f"{clean.images.shape}; degrade the clean set itself"
        )
    if len(clean) == 0 or len(clean.spatial) != 2 or clean.images.shape[1] != 1:
        raise ValueError(f"{clean.name}: images have shape {clean.images.shape}; expected (n, 1, h, w) with at least one row")

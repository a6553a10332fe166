"""What per-patient clipping costs: a 3D denoiser's step with and without it, per trainable set, and through Opacus's own hooks.

python benchmarks/dp_step.py [--rounds 7] [--batch 16] [--device cpu] [--threads 1] [--out dp_step.csv]

Steps of a round follow one another, and ratios are of one round, so that what else the machine does meets all of them alike. On
a CPU seconds are those of the process. Peak memory is what a fresh process takes for two steps beyond model and data.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from opacus import GradSampleModule
from torch import nn

from medsynth.config import DenoiserConfig
from medsynth.models.denoiser import Denoiser
from medsynth.privacy.dp.clipped_sums import clipped_sums
from medsynth.privacy.dp.trainable import TRAINABLE, make_trainable
from medsynth.training import autocast, best_device
from medsynth.vocabulary import HEART

SHAPE = (8, 8, 16, 16)  # of the latents of an 8 x 64 x 64 stack
CLIP = 0.05

Step = Callable[[], None]


def prepared(kind: str, which: str, batch: int, device: str) -> Step:
    """Forward and backward pass on a fixed batch, one row a patient: "plain", "clipped" (ours) or "opacus" (its hooks alone)."""
    torch.manual_seed(0)
    model: nn.Module = Denoiser(DenoiserConfig(channels=(32, 64, 96), spatial_dims=3), HEART, SHAPE[0]).to(device).train()
    make_trainable(model, which)
    noisy, target = (torch.randn(batch, *SHAPE, device=device) for _ in range(2))
    times, condition = torch.randint(1000, (batch,), device=device), torch.randn(batch, len(HEART), device=device)
    patient, weight = torch.arange(batch, device=device), torch.ones(batch, device=device)
    # kept by closures, not by the model: hooks are for one of them
    network = GradSampleModule(model, loss_reduction="sum") if kind == "opacus" else model

    def losses() -> torch.Tensor:
        with autocast(device):
            return (network(noisy, times, condition) - target).square().flatten(1).mean(1)

    def plain() -> None:
        model.zero_grad(set_to_none=True)
        losses().sum().backward()

    def clipped() -> None:
        clipped_sums(model, losses, patient, weight, clip=CLIP)

    def opacus() -> None:
        network.zero_grad(set_to_none=True)
        losses().sum().backward()

    return {"plain": plain, "clipped": clipped, "opacus": opacus}[kind]


def seconds(step: Step, device: str) -> float:
    """Of one step."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    gc.collect()
    begun = clock()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - begun


def peak(kind: str, which: str, batch: int, device: str) -> float:
    """MiB that two steps take beyond what was held before the first."""
    step = prepared(kind, which, batch, device)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        step(), step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = _resident()
    step(), step()
    return _resident() - before


def _resident() -> float:
    """MiB at most so far, on Linux; what `getrusage` says may be of the process that started this one."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def peak_of_a_fresh_process(kind: str, which: str, args: argparse.Namespace) -> float:
    """As `peak`, where nothing else has run."""
    command = [sys.executable, __file__, "--peak", kind, which, "--batch", str(args.batch), "--device", args.device]
    found = subprocess.run([*command, "--threads", str(args.threads)], check=True, capture_output=True, text=True)
    return float(found.stdout.split()[-1])


def compared(which: str, args: argparse.Namespace) -> list[dict[str, object]]:
    """Rows of one trainable set: seconds, and ratios to the plain step of the same round."""
    kinds = ["plain", "clipped", *(["opacus"] if which == "full" else [])]
    steps = {kind: prepared(kind, which, args.batch, args.device) for kind in kinds}
    for step in steps.values():
        step()
    rounds = pd.DataFrame([{kind: seconds(step, args.device) for kind, step in steps.items()} for _ in range(args.rounds)])
    memory = {kind: peak_of_a_fresh_process(kind, which, args) for kind in kinds}
    rows = []
    for kind in kinds:
        ratio = rounds[kind] / rounds["plain"]
        time_spent = {"seconds": rounds[kind].median(), "ratio": ratio.median(), "lowest": ratio.min(), "highest": ratio.max()}
        rows.append({"set": which, "step": kind} | time_spent | {"MiB": memory[kind], "of plain": memory[kind] / memory["plain"]})
    if "opacus" in kinds:
        print(f"full: opacus / clipped = {(rounds['opacus'] / rounds['clipped']).median():.2f}")
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default=best_device())
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", nargs=2, metavar=("STEP", "SET"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    if args.peak:
        print(peak(*args.peak, args.batch, args.device))
        return
    table = pd.DataFrame([row for which in TRAINABLE for row in compared(which, args)])
    print(table.round(3).to_string(index=False))
    if args.out:
        table.to_csv(args.out, index=False)


if __name__ == "__main__":
    main()

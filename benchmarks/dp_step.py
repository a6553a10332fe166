"""What per-patient clipping costs: a 3D denoiser's step with and without it, per trainable set, and through Opacus's own hooks.

python benchmarks/dp_step.py [--rounds 7] [--batch 16] [--device cpu] [--threads 1] [--out dp_step.csv]

"lean" is the plain step without gradients of frozen weights, which PyTorch computes and drops where a convolution trains its bias
alone. Steps of a round follow one another, and ratios are of one round, so that what else the machine does meets all of them
alike. On a CPU seconds are those of the process. Peak memory is what a fresh process takes for two steps beyond model and data.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from pathlib import Path

import pandas as pd
import torch

from medsynth.privacy.dp.gradients.step_cost import StepCost, prepared_step, step_costs
from medsynth.privacy.dp.trainable import TRAINABLE
from medsynth.settings.config import DenoiserConfig
from medsynth.training import best_device

CONFIG = DenoiserConfig(channels=(32, 64, 96), spatial_dims=3)
SHAPE = (8, 8, 16, 16)  # of the latents of an 8 x 64 x 64 stack


def peak(kind: str, which: str, batch: int, device: str) -> float:
    """MiB that two steps take beyond what was held before the first."""
    step = prepared_step(kind, which, CONFIG, SHAPE, batch=batch, device=device)
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
    """Rows of one trainable set: seconds, ratios to the plain and to the lean step of the same round, and memory."""
    kinds = ["plain", "lean", "clipped", *(["opacus"] if which == "full" else [])]
    costs = step_costs(CONFIG, SHAPE, batch=args.batch, rounds=args.rounds, sets=[which], steps=kinds, device=args.device)
    memory = {kind: peak_of_a_fresh_process(kind, which, args) for kind in kinds}
    return [_row(cost) | {"MiB": memory[cost.step], "of plain": memory[cost.step] / memory["plain"]} for cost in costs]


def _row(cost: StepCost) -> dict[str, object]:
    ratio, lean = cost.of_plain, cost.of_lean
    times = {"seconds": cost.seconds, "ratio": ratio.value, "lowest": ratio.low, "highest": ratio.high, "of lean": lean.value}
    return {"set": cost.trainable, "step": cost.step} | times


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
    seconds = table[table["set"] == "full"].set_index("step")["seconds"]
    print(f"full: opacus / clipped = {seconds['opacus'] / seconds['clipped']:.2f}")
    if args.out:
        table.to_csv(args.out, index=False)


if __name__ == "__main__":
    main()

"""Our training step against a plain loop over the same model: what resuming, averaging and reproducible randomness cost.

python benchmarks/training_step.py [--steps 20] [--rounds 3]
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import nn

from medsynth.config import DenoiserConfig, DiffusionConfig
from medsynth.diffusion.schedule import noise_schedule
from medsynth.diffusion.train import train_latents
from medsynth.models.conditioning import THORAX
from medsynth.models.denoiser import Denoiser


def plain(model: Denoiser, latents: torch.Tensor, condition: torch.Tensor, config: DiffusionConfig) -> None:
    """The shortest loop that trains the same model on the same objective."""
    schedule = noise_schedule(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
    for _ in range(config.steps):
        rows = torch.randint(len(latents), (config.batch,))
        clean, noise = latents[rows], torch.randn(config.batch, *latents.shape[1:])
        times = torch.randint(config.timesteps, (config.batch,))
        target = schedule.get_velocity(clean, noise, times)
        loss = nn.functional.mse_loss(model(schedule.add_noise(clean, noise, times), times, condition[rows]), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def main() -> None:
    """Time both, in turn, in one process; print seconds a step and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    config = DiffusionConfig(steps=args.steps, batch=32, checkpoint_every=0)
    latents, condition = torch.randn(256, 4, 16, 16), torch.zeros(256, len(THORAX))
    model = Denoiser(DenoiserConfig(), THORAX, 4)
    ours, theirs = [], []
    for _ in range(args.rounds + 1):
        for loop, times in ((train_latents, ours), (plain, theirs)):
            start = time.perf_counter()
            loop(model, latents, condition, config)
            times.append((time.perf_counter() - start) / args.steps)
    # the first round warms the machine up; the best of the others is least disturbed
    a, b = min(ours[1:]), min(theirs[1:])
    print(f"ours {a:.3f} s a step, plain loop {b:.3f} s a step, ratio {a / b:.3f} ({args.rounds} rounds of {args.steps} steps)")


if __name__ == "__main__":
    main()

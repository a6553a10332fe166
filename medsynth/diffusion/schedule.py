"""Noise schedules and solvers, from diffusers."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, SchedulerMixin

from medsynth.settings.config import DiffusionConfig

PREDICTIONS = ("epsilon", "v_prediction")
# Betas that diffusers has no name for: those of the published systems we compare with
BETAS = {"scaled_linear": (0.00085, 0.012), "linear": (1e-4, 0.02), "squaredcos_cap_v2": (1e-4, 0.02)}


def noise_schedule(config: DiffusionConfig) -> DDPMScheduler:
    """The forward process that training uses (Ho et al. 2020; cosine: Nichol & Dhariwal 2021)."""
    return DDPMScheduler(**_arguments(config), clip_sample=False)


def solver(config: DiffusionConfig, name: str, steps: int) -> SchedulerMixin:
    """A reverse process with `steps` evaluations: "dpm" (DPM-Solver++ 2M, Lu et al. 2022), "ddim" or "ddpm"."""
    if name == "dpm":
        made = DPMSolverMultistepScheduler(**_arguments(config), timestep_spacing="trailing", lower_order_final=True)
    elif name == "ddim":
        made = DDIMScheduler(**_arguments(config), clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True)
    elif name == "ddpm":
        made = DDPMScheduler(**_arguments(config), clip_sample=False, timestep_spacing="trailing")
    else:
        raise ValueError(f"solver {name!r}; expected 'dpm', 'ddim' or 'ddpm'")
    if not 1 <= steps <= config.timesteps:
        raise ValueError(f"{steps} sampling steps; expected 1 to {config.timesteps}")
    made.set_timesteps(steps)
    return made


def _arguments(config: DiffusionConfig) -> dict[str, object]:
    if config.schedule not in BETAS:
        raise ValueError(f"schedule {config.schedule!r}; expected one of {sorted(BETAS)}")
    if config.prediction not in PREDICTIONS:
        raise ValueError(f"prediction {config.prediction!r}; expected one of {PREDICTIONS}")
    low, high = BETAS[config.schedule]
    return {
        "num_train_timesteps": config.timesteps, "beta_schedule": config.schedule, "beta_start": low, "beta_end": high,
        "prediction_type": config.prediction,
    }  # fmt: skip


def objective(
    schedule: DDPMScheduler, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(noisy latents, what the network should predict): noise, or velocity (Salimans & Ho 2022)."""
    noisy = schedule.add_noise(clean, noise, timesteps)
    if schedule.config.prediction_type == "epsilon":
        return noisy, noise
    return noisy, schedule.get_velocity(clean, noise, timesteps)

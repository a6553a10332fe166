"""A generator guided away from its own errors: what a weaker version of it gets more wrong, it gets less wrong."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from medsynth.models.denoiser import Denoiser
from medsynth.settings.config import DenoiserConfig

# Chosen on low-dose CT of the private phantoms of chapter 04, who have no privacy to lose, by networks trained on samples and
# tried on people of another seed; not on the test patients
WEIGHT = 0.75


@dataclass(frozen=True)
class AutoguidedConfig:
    """What tells one guided denoiser from another, their weights aside."""

    denoiser: DenoiserConfig
    weight: float


class Autoguided(nn.Module):
    """strong + weight * (strong - weak), in the place of a denoiser (Karras et al. 2024, arXiv:2406.02507).

    A network that is too small or trained too briefly errs in the same direction as its weaker self, only less; so the
    difference points away from the error, and, unlike with guidance by labels, towards no kind of image. Raises ValueError for
    denoisers of two architectures or roles, and for a negative weight.
    """

    def __init__(self, strong: Denoiser, weak: Denoiser, weight: float = WEIGHT) -> None:
        super().__init__()
        if (strong.config, strong.names, strong.role) != (weak.config, weak.names, weak.role):
            raise ValueError(f"autoguidance: {strong.config} ({strong.role}) by {weak.config} ({weak.role}); expected one kind")
        if not weight >= 0:
            raise ValueError(f"autoguidance: weight {weight}; expected 0 (the strong network alone) or more")
        self.strong, self.weak, self.weight = strong, weak, weight
        self.config = AutoguidedConfig(strong.config, weight)
        self.latent_channels, self.role = strong.latent_channels, strong.role
        self.people = strong.people or weak.people

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """The guided prediction, of the shape of `noisy`."""
        # on a GPU the networks answer in bfloat16, in which a small difference of two answers is mostly rounding
        strong, weak = (model(noisy, timesteps, condition).to(noisy.dtype) for model in (self.strong, self.weak))
        return strong + self.weight * (strong - weak)

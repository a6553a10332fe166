"""Decoded images, sharpened: what the latents had no room for is drawn again, as it looks in public images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from medsynth.config import DiffusionConfig, SamplingConfig
from medsynth.diffusion.cached import cached_latents
from medsynth.imageset import ImageSet
from medsynth.models.refiner import Refiner, detail_scale, shuffled, unshuffled

# of training and of drawing; a coarse image leaves little to decide, so few steps do
DIFFUSION = DiffusionConfig(steps=6000, batch=16, learning_rate=1e-3, label_dropout=0.0)
DRAWING = SamplingConfig(images=0, steps=6, epsilon_scale=1.0, batch=64)
_OTHER_NOISE = 500_009  # added to the seed: the noise of the latents has been used


def refine(refiner: Refiner, images: ImageSet, *, seed: int, draw: Callable[..., torch.Tensor] = cached_latents) -> ImageSet:
    """Images as an autoencoder decodes them, with drawn detail added; clipped to their range.

    The refiner has seen public images alone, so the set stays what it was: the detail of a private one is not that of its
    patient. draw: `sample_latents`, or what keeps its result. Raises ValueError for volumes, whose planes it would draw apart.
    """
    coarse = torch.from_numpy(images.scaled())
    given = unshuffled(coarse)
    detail = draw(refiner, given, tuple(given.shape[2:]), DIFFUSION, replace(DRAWING, seed=seed + _OTHER_NOISE))
    sharp = coarse + detail_scale(coarse) * shuffled(detail)
    return images.with_images(images.unscaled(sharp.clamp(-1, 1).numpy()), name=f"{images.name}-refined")

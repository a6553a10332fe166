"""Decoded images, sharpened: what the latents had no room for is drawn again, as it looks in images of that kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from medsynth.diffusion.cached import cached_latents
from medsynth.diffusion.detail import DIFFUSION
from medsynth.imageset import ImageSet
from medsynth.models.refiner import Refiner, detail_scale, shuffled, unshuffled
from medsynth.settings.config import SamplingConfig

# a coarse image leaves little to decide, so few steps do
DRAWING = SamplingConfig(images=0, steps=6, epsilon_scale=1.0, batch=64)
_OTHER_NOISE = 500_009  # added to the seed: the noise of the latents has been used


def refine(refiner: Refiner, images: ImageSet, *, seed: int, draw: Callable[..., torch.Tensor] = cached_latents) -> ImageSet:
    """Images as an autoencoder decodes them, with drawn detail added; clipped to their range.

    draw: `sample_latents`, or what keeps its result. Raises ValueError for volumes, whose planes it would draw apart.
    """
    coarse = torch.from_numpy(images.scaled())
    given = unshuffled(coarse)
    detail = draw(refiner, given, tuple(given.shape[2:]), DIFFUSION, replace(DRAWING, seed=seed + _OTHER_NOISE))
    sharp = coarse + detail_scale(coarse) * shuffled(detail)
    return images.with_images(images.unscaled(sharp.clamp(-1, 1).numpy()), name=f"{images.name}-refined")

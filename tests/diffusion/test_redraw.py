"""Images drawn once more: each way alone does what it says, and strength leaves less and less of the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medsynth.diffusion.generator import Generator
from medsynth.diffusion.redraw import WAYS, redrawn_by_chance, vary_by_diffusion
from medsynth.diffusion.schedule import solver
from medsynth.models.weights import reconstruct
from medsynth.phantoms.thorax.thorax import thorax
from medsynth.settings.config import DiffusionConfig, SamplingConfig

DIFFUSION = DiffusionConfig(steps=1, timesteps=200)
SAMPLING = SamplingConfig(images=4, steps=8, batch=3)


@pytest.fixture(scope="module")
def chests():
    return thorax(patients=18, size=32, seed=3, modality="xray", population="private")


@pytest.fixture(scope="module")
def public(chests):
    return Generator.shipped(chests, sampling=SamplingConfig(images=1, steps=4))


def far(images, others):
    return float(np.abs(images.images - others.images).mean())


def test_one_pass_is_a_reconstruction_and_a_mixture_lies_between(monkeypatch, chests, public):
    bare = Generator(**{**vars(public), "refiner": None})
    strangers = chests.select(np.array([4]))
    monkeypatch.setattr(np.random, "default_rng", lambda *_: Chosen(0))
    once = redrawn_by_chance(chests, 0.25, generator=bare, seed=0, strangers=strangers)
    np.testing.assert_allclose(once.images, reconstruct(bare.autoencoder, chests).images, atol=1e-5)
    monkeypatch.setattr(np.random, "default_rng", lambda *_: Chosen(1))
    mixed = redrawn_by_chance(chests, 1.0, generator=bare, seed=0, strangers=strangers)
    # half-way to a stranger, an image and its stranger are equally far
    np.testing.assert_allclose(mixed.images[4], once.images[4], atol=1e-5)
    assert far(mixed, chests) > 3 * far(once, chests)
    other = redrawn_by_chance(strangers, 1.0, generator=bare, seed=0, strangers=chests.select(np.array([7])))
    np.testing.assert_allclose(other.images[0], mixed.images[7], atol=1e-4)


class Chosen:
    """Draws one way alone, and the first stranger."""

    def __init__(self, way: int) -> None:
        self.way = way

    def integers(self, high, *, size):
        return np.full(size, self.way if high == len(WAYS) else 0)


@pytest.mark.parametrize("way", range(len(WAYS)))
def test_the_stronger_the_less_is_left(monkeypatch, chests, public, way):
    monkeypatch.setattr(np.random, "default_rng", lambda *_: Chosen(way))
    told = {"generator": public, "seed": 1, "strangers": chests.select(np.array([4]))}
    lost = [far(redrawn_by_chance(chests, strength, **told), chests) for strength in (0.25, 0.5, 1.0)]
    assert 0 < lost[0] < lost[1] < lost[2] < 0.2


def test_all_ways_are_drawn_and_the_rest_stays(chests, public):
    told = {"generator": public, "strangers": chests}
    drawn = redrawn_by_chance(chests, 0.5, seed=2, **told)
    np.testing.assert_array_equal(redrawn_by_chance(chests, 0.5, seed=2, **told).images, drawn.images)
    assert (drawn.images != chests.images).any((1, 2, 3)).all() and (drawn.patient == chests.patient).all()
    assert drawn.role == chests.role and "/generator-like 0.5" in drawn.name
    with pytest.raises(ValueError, match="strength 0; expected a number above 0, up to 1"):
        redrawn_by_chance(chests, 0, seed=0, **told)


class Oracle(torch.nn.Module):
    """A denoiser that knows the only clean latents there are."""

    def __init__(self, clean: torch.Tensor) -> None:
        super().__init__()
        self.clean, self.signal = torch.nn.Parameter(clean), solver(DIFFUSION, "dpm", 8).alphas_cumprod

    def forward(self, noisy, times, condition):
        signal = self.signal[times].view(-1, 1, 1, 1)
        noise = (noisy - signal.sqrt() * self.clean) / (1 - signal).sqrt()
        return signal.sqrt() * noise - (1 - signal).sqrt() * self.clean


@pytest.mark.parametrize("strength", [0.06, 0.5, 0.999])
def test_a_model_that_knows_one_image_leads_everything_to_it(strength):
    clean = torch.randn(2, 4, 4)
    varied = vary_by_diffusion(Oracle(clean), torch.randn(5, 2, 4, 4), torch.zeros(5, 1), strength, DIFFUSION, SAMPLING)
    torch.testing.assert_close(varied, clean.expand(5, -1, -1, -1), rtol=1e-4, atol=1e-3)

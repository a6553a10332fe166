"""A denoiser guided by its weaker self."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from medsynth.diffusion.cached import cached_latents
from medsynth.diffusion.guidance import Autoguided
from medsynth.diffusion.sample import sample_latents
from medsynth.diffusion.schedule import noise_schedule
from medsynth.models.denoiser import Denoiser
from medsynth.settings.config import DiffusionConfig, SamplingConfig

NAMES = ("age", "sex")


@pytest.fixture
def pair(tiny):
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = Denoiser(tiny.denoiser, NAMES, 4)
        for p in model.parameters():
            nn.init.normal_(p, std=0.1)
        model.role = "private"
        made.append(model.eval())
    return made


@pytest.fixture
def seen():
    g = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 4, 4, generator=g), torch.tensor([3, 500, 990]), torch.rand(3, 2, generator=g)


@pytest.mark.parametrize("weight", [0.0, 0.75, 2.0])
def test_the_difference_to_the_weak_one_is_added(pair, seen, weight):
    strong, weak = (model(*seen) for model in pair)
    guided = Autoguided(*pair, weight)
    assert not torch.allclose(strong, weak)
    torch.testing.assert_close(guided(*seen), (1 + weight) * strong - weight * weak)
    assert (guided.role, guided.latent_channels) == ("private", 4)


def test_two_kinds_do_not_guide_each_other(pair, tiny):
    strong, weak = pair
    weak.role = "public"
    with pytest.raises(ValueError, match="expected one kind"):
        Autoguided(strong, weak)
    other = Denoiser(replace(tiny.denoiser, residual_blocks=2), NAMES, 4)
    with pytest.raises(ValueError, match="expected one kind"):
        Autoguided(Denoiser(tiny.denoiser, NAMES, 4), other)
    for weight in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="or more"):
            Autoguided(strong, strong, weight)


def test_samples_are_kept_by_both_networks_and_the_weight(pair, tiny, cache):
    job = {
        "condition": torch.tensor([[0.1, 1.0], [0.4, 0.0]]), "spatial": (4, 4), "diffusion": tiny.diffusion,
        "sampling": SamplingConfig(images=2, steps=2),
    }  # fmt: skip
    strong, weak = pair
    models = [Autoguided(strong, weak), Autoguided(strong, weak, 1.0), Autoguided(strong, strong), Autoguided(weak, strong)]
    drawn = [cached_latents(m, **job) for m in models]
    for model, kept in zip(models, drawn, strict=True):
        assert torch.equal(kept, sample_latents(model, **job)) and torch.equal(kept, cached_latents(model, **job))
    assert len({tuple(d.flatten().tolist()) for d in drawn}) == len(drawn)
    torch.testing.assert_close(drawn[2], sample_latents(strong, **job))


class Shrunk(nn.Module):
    """Velocity of a Gaussian of deviation 0.5 whose noise is removed `share` too eagerly."""

    latent_channels = 2

    def __init__(self, share: float, config: DiffusionConfig) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share))
        self.signal = noise_schedule(config).alphas_cumprod

    def forward(self, x, timesteps, condition):
        """Of the best guess, made smaller."""
        power = self.signal[timesteps].reshape(-1, 1, 1, 1)
        a, s = power.sqrt(), (1 - power).sqrt()
        clean = (1 - self.share) * a * 0.25 / (power * 0.25 + s**2) * x
        return a * (x - a * clean) / s - s * clean


def test_what_both_leave_out_comes_back():
    config = DiffusionConfig(steps=1)
    strong, weak = Shrunk(0.03, config), Shrunk(0.07, config)

    def spread(model) -> float:
        sampling = SamplingConfig(images=1, steps=40, epsilon_scale=1.0, batch=256)
        return float(sample_latents(model, torch.zeros(256, 1), (4, 4), config, sampling).std())

    class Both(nn.Module):
        latent_channels = 2
        forward = Autoguided.forward

    both = Both()
    both.strong, both.weak, both.weight = strong, weak, 0.75
    alone, guided = spread(strong), spread(both)
    assert spread(weak) < alone < 0.49 and abs(guided - 0.5) < 0.2 * (0.5 - alone)

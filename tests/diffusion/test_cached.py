"""Latents that were drawn are found again, and only when nothing that drew them has changed."""

from dataclasses import replace

import pytest
import torch

from medsynth.diffusion import cached
from medsynth.diffusion.cached import cached_latents
from medsynth.diffusion.sample import sample_images, sample_latents
from medsynth.models.denoiser import Denoiser
from medsynth.models.weights import shipped_autoencoder
from medsynth.settings.config import SamplingConfig
from medsynth.store.dependencies import code_hash

SAMPLING = SamplingConfig(images=3, steps=2, seed=5)


@pytest.fixture
def job(tiny, cache) -> dict:
    torch.manual_seed(0)
    return {
        "model": Denoiser(tiny.denoiser, ("age", "sex"), 4).eval(),
        "condition": torch.tensor([[0.1, 1], [torch.nan, 0], [0.3, 1]]),
        "spatial": (4, 4), "diffusion": tiny.diffusion, "sampling": SAMPLING,
    }  # fmt: skip


def never(*_: object, **__: object) -> None:
    raise AssertionError("drawn again")


def test_what_is_kept_is_what_was_drawn(job, cache, monkeypatch):
    first = cached_latents(**job)
    assert torch.equal(first, sample_latents(**job))
    monkeypatch.setattr(cached, "sample_latents", never)
    assert torch.equal(cached_latents(**job), first)
    # the configured number of images is not read: the condition has one row each
    assert torch.equal(cached_latents(**job | {"sampling": replace(SAMPLING, images=9)}), first)
    (folder,) = (cache / "runs").glob("samples-*/")
    # samples of a private model are as private as its images
    assert folder.stat().st_mode & 0o077 == 0


def test_whatever_changes_samples_draws_them_anew(job, tiny, monkeypatch):
    cached_latents(**job)
    monkeypatch.setattr(cached, "sample_latents", never)
    moved = Denoiser(tiny.denoiser, ("age", "sex"), 4).eval()
    changes = [
        {"model": moved}, {"condition": job["condition"].nan_to_num(0.2)}, {"condition": job["condition"][:2]},
        {"spatial": (4, 8)},
        {"diffusion": replace(tiny.diffusion, prediction="epsilon")}, {"sampling": replace(SAMPLING, seed=6)},
        {"sampling": replace(SAMPLING, guidance=2.0)}, {"sampling": replace(SAMPLING, epsilon_scale=1.0)},
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(AssertionError, match="drawn again"):
            cached_latents(**job | change)
    for program in ("medsynth.diffusion.sample", "medsynth.models.denoiser"):
        monkeypatch.setattr(cached, "code_hash", lambda name, new=program: "changed" if name == new else code_hash(name))
        with pytest.raises(AssertionError, match="drawn again"):
            cached_latents(**job)


def test_images_of_kept_latents_are_those_of_fresh_ones(job, shipped, make_set):
    autoencoder = shipped_autoencoder()
    side = 4 * autoencoder.factor
    like = make_set(2, (1, side, side))
    asked = job["condition"].numpy()
    arguments = {"like": like, "diffusion": job["diffusion"], "sampling": SAMPLING}
    fresh = sample_images(job["model"], autoencoder, asked, **arguments)
    for _ in range(2):
        kept = sample_images(job["model"], autoencoder, asked, **arguments, draw=cached_latents)
        assert (kept.images == fresh.images).all()

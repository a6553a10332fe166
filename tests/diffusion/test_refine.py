"""The refiner: detail goes where it belongs, is learnt where it can be, and what it was learnt from is on record."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from medsynth.diffusion import detail as training
from medsynth.diffusion import refine as refining
from medsynth.diffusion.detail import cut, decoded_with_noise, lost_detail, train_refiner
from medsynth.diffusion.refine import refine
from medsynth.diffusion.sample import sample_latents
from medsynth.ledger import Ledger
from medsynth.mechanism import NONE
from medsynth.models.refiner import Refiner, detail_scale, shuffled, unshuffled
from medsynth.models.weights import shipped_refiner
from medsynth.pretrain import diffusion as pretraining
from medsynth.pretrain.diffusion import pretrain_refiner
from medsynth.pretrain.public import PublicSet
from medsynth.settings.config import DiffusionConfig, RefinerConfig

SMALL = RefinerConfig(channels=(16, 16))


def test_unshuffled_pixels_come_back():
    x = torch.randn(2, 1, 8, 12)
    y = unshuffled(x)
    assert y.shape == (2, 4, 4, 6) and torch.equal(shuffled(y), x)
    # channel 1 holds every second column of every second row
    assert torch.equal(y[0, 1], x[0, 0, ::2, 1::2])


def test_detail_is_expected_where_there_is_fine_contrast():
    x = np.random.default_rng(0).normal(0, 0.1, (1, 1, 9, 9)).astype(np.float32)
    x[..., :4] = 0.5

    def mean(values: np.ndarray, width: int) -> np.ndarray:
        reach, size = width // 2, values.shape[0]
        window = [slice(max(0, i - reach), min(size, i + reach + 1)) for i in range(size)]
        return np.array([[values[a, b].mean() for b in window] for a in window])

    fine = x[0, 0] - mean(x[0, 0], 3)
    np.testing.assert_allclose(detail_scale(torch.from_numpy(x))[0, 0], 0.5 * (np.sqrt(mean(fine**2, 5)) + 0.01), rtol=1e-4)
    # an empty region keeps a scale that can be divided by
    assert float(detail_scale(torch.zeros(1, 1, 8, 8)).min()) == pytest.approx(0.005)


@pytest.mark.parametrize("shape", [(2, 1, 8, 10), (2, 2, 8, 8), (2, 1, 4, 8, 8)])
def test_what_the_network_could_not_halve_is_refused(shape):
    with pytest.raises(ValueError, match=r"refiner: images .*; expected \(n, 1, h, w\), sides a multiple of 4"):
        unshuffled(torch.zeros(shape))


def test_detail_is_added_in_its_own_unit_and_clipped(make_set):
    torch.manual_seed(0)
    images = make_set(3, (1, 8, 8), range=(-1000, 400), unit="HU", role="private", name="drawn")
    refiner = Refiner(SMALL)
    detail, asked = torch.randn(3, 4, 4, 4), []

    def draw(*arguments):
        asked.append(arguments)
        return detail

    made = refine(refiner, images, seed=3, draw=draw)
    coarse = torch.from_numpy(images.scaled())
    expected = np.clip(coarse + detail_scale(coarse) * shuffled(detail), -1, 1)
    np.testing.assert_allclose(made.scaled(), expected, atol=1e-6)
    assert (made.role, made.unit, made.range, made.name) == ("private", "HU", (-1000, 400), "drawn-refined")
    assert made.patient.tolist() == images.patient.tolist() and made.attributes.equals(images.attributes)
    model, given, spatial, diffusion, sampling = asked[0]
    assert model is refiner and spatial == (4, 4) and torch.equal(given, unshuffled(torch.from_numpy(images.scaled())))
    # a solver that takes for noise what it was told, and noise that no latent was made of
    assert sampling.epsilon_scale == 1 and sampling.seed != 3 and diffusion.label_dropout == 0


def test_other_noise_is_other_detail_and_the_same_is_the_same(shipped, make_set, cache):
    images = make_set(3, (1, 16, 16))
    first = refine(shipped_refiner(), images, seed=0)
    assert np.array_equal(first.images, refine(shipped_refiner(), images, seed=0).images)
    assert not np.array_equal(first.images, refine(shipped_refiner(), images, seed=1).images)
    # a row's detail is a function of its place and its pixels, not of the rows after it
    alone = refine(shipped_refiner(), images.select([0]), seed=0, draw=sample_latents)
    np.testing.assert_allclose(alone.images, first.images[:1], atol=1e-5)


def test_volumes_are_refused(shipped, make_set):
    with pytest.raises(ValueError, match="refiner: images"):
        refine(shipped_refiner(), make_set(2, (1, 4, 8, 8)), seed=0)


def test_crops_against_a_loop(monkeypatch):
    monkeypatch.setattr(training, "CROP", 3)
    x = torch.arange(2 * 25.0).view(2, 1, 5, 5)
    made = cut(x, torch.tensor([[0, 2], [1, 1]]))
    assert torch.equal(made[0, 0], x[0, 0, :3, 2:5]) and torch.equal(made[1, 0], x[1, 0, 1:4, 1:4])


class Means(nn.Module):
    """Stands for an autoencoder: keeps the mean of 4 x 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("latent_mean", torch.zeros(1))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(x, 4)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(z, scale_factor=4.0)


def test_noise_in_latents_has_the_stated_size():
    x = torch.zeros(4000, 1, 4, 4)
    made = decoded_with_noise(Means(), x, 0.6, torch.Generator().manual_seed(0))
    # uniform levels up to 0.6: a mean square of 0.12
    assert float(made.square().mean()) == pytest.approx(0.12, rel=0.1)
    assert torch.equal(decoded_with_noise(Means(), x, 0.0, torch.Generator().manual_seed(0)), x)


@pytest.fixture
def checkered(make_set) -> PublicSet:
    """Bright images carry a fine pattern and dark ones its negative, of which their means of 4 x 4 pixels show nothing."""
    level = np.random.default_rng(0).choice([-0.5, 0.5], 32)[:, None, None, None]
    pattern = np.where(np.indices((16, 16)).sum(0) % 2, 0.3, -0.3)[None, None]
    images = (level + np.sign(level) * pattern + 1) / 2
    return PublicSet(make_set(32, images=images.astype(np.float32)))


def test_detail_that_follows_from_the_coarse_image_is_learnt(checkered, monkeypatch):
    # flat as these images are, the usual unit of detail would be far too small for their pattern
    for module in (training, refining):
        monkeypatch.setattr(module, "detail_scale", lambda coarse: torch.full_like(coarse, 0.3))
    settings = DiffusionConfig(steps=300, batch=16, learning_rate=5e-3, warmup=10, label_dropout=0.0, ema=0.9)
    weights, metrics = pretrain_refiner({"a": checkered}, Means(), replace(SMALL, latent_noise=0.0), settings, device="cpu")
    refiner = Refiner(SMALL)
    refiner.load_state_dict(weights)
    assert metrics["steps"] == 300
    images = checkered.images
    coarse = images.with_images(images.unscaled(Means().decode(Means().encode(torch.from_numpy(images.scaled()))).numpy()))
    made = refine(refiner.eval(), coarse, seed=0, draw=sample_latents)
    left = [float(np.square(s.scaled() - images.scaled()).mean()) for s in (coarse, made)]
    assert left[1] < 0.15 * left[0]


def test_phantoms_are_shown_several_times_with_other_noise(checkered, monkeypatch):
    monkeypatch.setattr(pretraining, "CROP", 16)
    shown = SimpleNamespace()
    monkeypatch.setattr(pretraining, "train_latents", lambda model, detail, given, *_: vars(shown).update(d=detail, g=given))
    kinds = {
        "x": ("xray", "phantom", True),
        "ct": ("ct", "phantom", True),
        "heart": ("mr", "phantom", False),
        "real": ("ct", "scan", True),
    }
    sets = {
        name: PublicSet(replace(checkered.images, modality=modality, origin=origin, people=None), thorax=thorax)
        for name, (modality, origin, thorax) in kinds.items()
    }
    pretrain_refiner(sets, Means(), replace(SMALL, latent_noise=0.2), DiffusionConfig(steps=1), device="cpu")
    assert len(shown.d) == len(shown.g) == (2 + 4 + 1 + 1) * 32
    assert not torch.equal(shown.g[:32], shown.g[32:64])
    # detail in its unit, on top of what was decoded, is the image
    coarse = shuffled(shown.g[-32:])
    sharp = coarse + detail_scale(coarse) * shuffled(shown.d[-32:])
    np.testing.assert_allclose(sharp, checkered.images.scaled(), atol=1e-5)


@pytest.mark.parametrize("role", ["private", "eval"])
def test_only_public_sets_may_shape_what_ships(checkered, role):
    sets = {"a": PublicSet(checkered.images.with_role(role))}
    with pytest.raises(ValueError, match="a: not public"):
        pretrain_refiner(sets, Means(), SMALL, DiffusionConfig(steps=1), device="cpu")


def test_a_condition_that_is_never_dropped_reaches_the_network_as_it_is(monkeypatch):
    """Images given beside the latents have no "missing"."""
    seen = []

    class Spy(Refiner):
        def forward(self, noisy, timesteps, coarse):
            seen.append(coarse)
            return super().forward(noisy, timesteps, coarse)

    given = torch.randn(5, 4, 4, 4)
    settings = replace(refining.DIFFUSION, steps=2, batch=6)
    training.train_latents(Spy(SMALL), torch.randn(5, 4, 4, 4), given, settings)
    assert all(any(torch.equal(row, g) for g in given) for batch in seen for row in batch)


def test_crops_lie_anywhere_and_detail_is_what_they_lack(monkeypatch):
    monkeypatch.setattr(training, "CROP", 8)
    images = torch.rand(60, 1, 12, 8, generator=torch.Generator().manual_seed(0))
    given, wanted = lost_detail(Means(), images, 0.0, torch.Generator().manual_seed(1))
    assert given.shape == wanted.shape == (60, 4, 4, 4)
    coarse = Means().decode(Means().encode(images))
    tops = set()
    for i in range(60):
        top = next(t for t in range(5) if torch.equal(coarse[i, :, t : t + 8], shuffled(given[i : i + 1])[0]))
        unit = detail_scale(coarse[i : i + 1])[0, :, top : top + 8]
        restored = coarse[i, :, top : top + 8] + unit * shuffled(wanted[i : i + 1])[0]
        torch.testing.assert_close(restored, images[i, :, top : top + 8])
        tops.add(top)
    assert tops == set(range(5))


@pytest.fixture
def ledger(cache) -> Ledger:
    return Ledger()


def test_training_on_brings_it_nearer_to_the_set_and_is_on_record(shipped, checkered, ledger, monkeypatch):
    private = checkered.images.with_role("private")
    monkeypatch.setattr(training, "shipped_autoencoder", Means)
    monkeypatch.setattr(training, "DIFFUSION", replace(training.DIFFUSION, learning_rate=1e-2, ema=0.9))
    trained = train_refiner(private, steps=250, ledger=ledger)
    given, wanted = lost_detail(Means(), torch.from_numpy(private.scaled()), 0.0, torch.Generator().manual_seed(0))

    @torch.no_grad()
    def error(model: Refiner) -> float:
        # what is mostly noise: velocity is minus the detail
        velocity = model(
            torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2)), torch.full((len(wanted),), 999), given
        )
        return float((velocity + wanted).square().mean() / wanted.square().mean())

    assert error(trained) < 0.5 * error(shipped_refiner())
    assert [(e.stage, e.patients, e.mechanism) for e in ledger.entries()] == [("train refiner", private.patients, NONE)]
    assert not trained.training and not any(p.requires_grad for p in trained.parameters())


def test_it_is_trained_once_for_a_set_a_seed_and_a_number_of_steps(shipped, make_set, ledger, monkeypatch):
    runs, train = [], training.train_latents

    def note(*arguments):
        runs.append(arguments[3])
        return train(*arguments)

    monkeypatch.setattr(training, "train_latents", note)
    private = make_set(4, (1, 16, 16), role="private", name="ward")
    first = train_refiner(private, steps=2, ledger=ledger)
    again = train_refiner(private, steps=2, ledger=ledger)
    assert len(runs) == 1 and all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    train_refiner(private, steps=3, ledger=ledger)
    train_refiner(private, steps=2, ledger=ledger, seed=1)
    train_refiner(private.select(np.arange(3)), steps=2, ledger=ledger)
    assert [(r.steps, r.seed) for r in runs] == [(2, 0), (3, 0), (2, 1), (2, 0)]
    assert {e.stage for e in ledger.entries()} == {"train refiner"} and {e.mechanism for e in ledger.entries()} == {NONE}


def test_volumes_do_not_train_it(shipped, make_set, ledger):
    with pytest.raises(ValueError, match="train refiner"):
        train_refiner(make_set(2, (1, 8, 16, 16), role="private"), steps=1, ledger=ledger)

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from medsynth.language.vocabulary import HEART
from medsynth.models.autoencoder import Autoencoder
from medsynth.models.conditioning import SCALES, THORAX, Conditioning, drop
from medsynth.models.denoiser import Denoiser
from medsynth.models.weights import (
    latents_of,
    load_card,
    reconstruct,
    save_card,
    shipped_autoencoder,
    shipped_denoiser,
    shipped_hash,
    weights_folder,
)
from medsynth.settings.config import DenoiserConfig

NAMES = ("age", "sex", "none")


@pytest.fixture(scope="module")
def autoencoder(tiny) -> Autoencoder:
    torch.manual_seed(0)
    made = Autoencoder(tiny.autoencoder)
    made.latent_mean.copy_(torch.tensor([0.5, -1.0, 2.0, 0.0]))
    made.latent_scale.copy_(torch.tensor([2.0, 0.5, 1.0, 3.0]))
    return made.eval()


def denoiser(config: DenoiserConfig, names: tuple[str, ...] = NAMES, seed: int = 0) -> Denoiser:
    """MONAI starts layers at zero, which would make outputs equal and gradients vanish: every comparison would be empty."""
    torch.manual_seed(seed)
    model = Denoiser(config, names, 4).eval()
    for p in model.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return model


def test_padding_of_a_stack_comes_back_black_and_nothing_else_does(autoencoder, monkeypatch):
    """A decoder draws it nearly black, with a bright speck at times, which would count as a plane of somebody."""
    planes = autoencoder.reconstruct(torch.zeros(1, autoencoder.latent_channels, 4, 4)).detach()
    with torch.no_grad():
        # a decoder that draws a speck on black, or a heart where the first channel says so
        def drawn(latents):
            black = torch.full((len(latents), 1, *planes.shape[2:]), -0.97)
            black[:, :, 3, 3] = 0.9
            heart = black.clone()
            heart[:, :, 2:6, 2:6] = 0.2
            return torch.where((latents[:, :1, :1, :1] > 0), heart, black)

        monkeypatch.setattr(autoencoder, "reconstruct", drawn)
        z = torch.full((2, autoencoder.latent_channels, 3, 4, 4), -5.0)
        z[0, 0, 1] = 100.0
        y = autoencoder.decode(z)
    assert (y[0, :, 1] == drawn(torch.full((1, 1, 4, 4), 1.0))[0]).all() and y[0, 0, 1].max() > 0
    assert (y[1] == -1).all() and (y[0, :, [0, 2]] == -1).all()
    # of 2D images nothing is padding
    plane = autoencoder.decode(z[1, :, :1].transpose(0, 1))
    assert plane.max() == np.float32(0.9) and plane.min() == np.float32(-0.97)


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# autoencoder


@torch.no_grad()
@pytest.mark.parametrize("channels", [(32,), (32, 32), (32, 32, 64)])
@pytest.mark.parametrize("side", [16, 32])
def test_autoencoder_shapes(tiny, channels, side):
    made = Autoencoder(replace(tiny.autoencoder, channels=channels, latent_channels=3))
    assert made.factor == 2 ** len(channels)
    x = uniform(2, 1, side, 2 * side)
    z = made.encode(x)
    assert z.shape == (2, 3, side // made.factor, 2 * side // made.factor)
    y = made.decode(z)
    assert y.shape == x.shape
    assert y.abs().max() <= 1


@torch.no_grad()
def test_training_starts_from_principal_components_of_patches(tiny):
    torch.manual_seed(3)
    made = Autoencoder(tiny.autoencoder)
    images = torch.nn.functional.avg_pool2d(torch.rand(12, 1, 38, 38), 7, 1) - 0.3
    made.start_from_components(images)
    patches = images.numpy().reshape(12, 8, 4, 8, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 16).astype(np.float64)
    basis = np.linalg.svd(patches - patches.mean(0), full_matrices=False)[2][: tiny.autoencoder.latent_channels]
    level = patches.mean()
    expected = level + (patches - level) @ basis.T @ basis
    mean, std = made.posterior(images)
    found = made.reconstruct(mean).numpy().reshape(12, 8, 4, 8, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 16)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert mean.shape == (12, 4, 8, 8) and float(std.max()) < 0.02


@torch.no_grad()
def test_volumes_go_slice_by_slice(autoencoder):
    x = uniform(2, 1, 5, 8, 16)
    z = autoencoder.encode(x)
    assert z.shape == (2, 4, 5, 2, 4)
    y = autoencoder.decode(z)
    assert y.shape == x.shape
    for depth in range(5):
        torch.testing.assert_close(z[:, :, depth], autoencoder.encode(x[:, :, depth]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(y[:, :, depth], autoencoder.decode(z[:, :, depth]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_latents_are_standardised_by_the_stored_statistics(autoencoder):
    x = uniform(2, 1, 8, 8)
    raw = autoencoder.posterior(x)[0]
    for c, (mean, std) in enumerate(zip([0.5, -1.0, 2.0, 0.0], [2.0, 0.5, 1.0, 3.0], strict=True)):
        torch.testing.assert_close(autoencoder.encode(x)[:, c], (raw[:, c] - mean) / std)
    torch.testing.assert_close(autoencoder.decode(autoencoder.encode(x)), autoencoder.reconstruct(raw).clamp(-1, 1))


@torch.no_grad()
def test_statistics_travel_with_the_weights(autoencoder, tiny):
    other = Autoencoder(tiny.autoencoder)
    other.load_state_dict(autoencoder.state_dict())
    x = uniform(1, 1, 8, 8)
    assert torch.equal(other.eval().encode(x), autoencoder.encode(x))


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 6, 8), (2, 1, 8, 10), (2, 8, 8)])
def test_images_that_do_not_fit_are_refused(autoencoder, shape):
    with pytest.raises(ValueError, match=r"autoencoder: images .*; expected \(n, 1, h, w\), sides a multiple of 4"):
        autoencoder.posterior(uniform(*shape))


def test_latents_of_splits_into_batches(autoencoder):
    x = uniform(7, 1, 8, 8)
    whole, parts = latents_of(autoencoder, x), latents_of(autoencoder, x, batch=3)
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-5)
    assert not whole.requires_grad


def test_reconstruction_keeps_unit_patients_and_role(autoencoder, make_set):
    s = make_set(5, (1, 8, 8), images=make_set(5, (1, 8, 8)).images * 1400 - 1000, range=(-1000, 400), unit="HU", role="private")
    made = reconstruct(autoencoder, s, batch=2)
    with torch.no_grad():
        expected = s.unscaled(autoencoder.decode(autoencoder.encode(torch.from_numpy(s.scaled()))).numpy())
    np.testing.assert_allclose(made.images, expected, atol=0.1)
    assert (made.unit, made.role, made.name) == ("HU", "private", "tiny-reconstructed")
    assert made.patient.tolist() == s.patient.tolist() and made.attributes.equals(s.attributes)


# denoiser


@torch.no_grad()
@pytest.mark.parametrize("sides", [(13, 8, 8), (4, 7, 10), (8, 8, 8)])
def test_3d_denoiser_takes_any_depth(sides):
    model = denoiser(DenoiserConfig(channels=(64, 64, 64), attention=(False, False, True), spatial_dims=3, residual_blocks=1))
    out = model(uniform(2, 4, *sides), torch.tensor([3, 800]), torch.tensor([[50.0, 1, 0], [torch.nan] * 3]))
    assert out.shape == (2, 4, *sides)
    assert torch.isfinite(out).all() and out.std() > 0


@torch.no_grad()
def test_padding_is_zeros_behind_and_is_cut_off(tiny):
    model = denoiser(tiny.denoiser)
    x, t, c = uniform(2, 4, 7, 9), torch.tensor([1, 40]), uniform(2, 3)
    padded = model(functional.pad(x, (0, 1, 0, 1)), t, c)
    torch.testing.assert_close(model(x, t, c), padded[..., :7, :9])


@torch.no_grad()
@settings(max_examples=10)
@given(st.permutations(range(4)), st.integers(1, 3))
def test_an_output_does_not_depend_on_the_rest_of_the_batch(order, cut):
    model = _COMPOSITION
    x, t, c = uniform(4, 4, 8, 8), torch.tensor([0, 10, 500, 999]), uniform(4, 3)
    c[1] = torch.nan
    whole = model(x, t, c)
    part = list(order)[:cut]
    torch.testing.assert_close(model(x[part], t[part], c[part]), whole[part], atol=1e-5, rtol=1e-5)


_COMPOSITION = denoiser(DenoiserConfig(channels=(64, 64), attention=(False, True), residual_blocks=1))


@torch.no_grad()
def test_every_input_matters(tiny):
    model = denoiser(tiny.denoiser)
    x, t, c = uniform(1, 4, 8, 8), torch.tensor([500]), torch.tensor([[50.0, 1.0, 0.0]])
    base = model(x, t, c)
    assert not torch.allclose(base, model(x * 0.9, t, c), atol=1e-4)
    assert not torch.allclose(base, model(x, t + 300, c), atol=1e-4)
    for other in ([80.0, 1, 0], [50.0, 0, 0], [50.0, 1, 1], [torch.nan, 1, 0], [torch.nan] * 3):
        assert not torch.allclose(base, model(x, t, torch.tensor([other])), atol=1e-4)


@pytest.mark.parametrize("dropped", [True, False])
def test_every_parameter_gets_a_gradient_whatever_is_dropped(tiny, dropped):
    model = denoiser(tiny.denoiser)
    condition = torch.full((2, 3), torch.nan) if dropped else torch.tensor([[40.0, 0, 1], [60.0, 1, torch.nan]])
    model(uniform(2, 4, 8, 8), torch.tensor([3, 30]), condition).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    # and it moves what stands for "missing"
    assert model.unet.class_embedding.embed[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("channels", [(8, 64), (64, 84)])
def test_channels_in_which_time_and_condition_would_vanish_are_refused(tiny, channels):
    with pytest.raises(ValueError, match=r"denoiser: channels .*; expected multiples of 8 from 16 on"):
        Denoiser(replace(tiny.denoiser, channels=channels), NAMES, 4)


def test_names_are_kept(tiny):
    assert denoiser(tiny.denoiser).names == NAMES


# conditioning


@torch.no_grad()
@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3))
def test_a_missing_value_is_no_value(values):
    torch.manual_seed(0)
    embed = Conditioning(NAMES, 16)
    null = embed(torch.full((1, 3), torch.nan))
    row = torch.tensor([values])
    assert torch.equal(embed(torch.where(torch.ones(1, 3, dtype=torch.bool), torch.nan, row)), null)
    partly = row.clone()
    partly[0, 1] = torch.nan
    other = partly.clone()
    assert torch.equal(embed(partly), embed(other))
    assert not torch.allclose(embed(partly), embed(row))
    assert not torch.allclose(embed(partly), null)


@torch.no_grad()
def test_conditions_are_scaled_by_public_constants():
    torch.manual_seed(0)
    embed = Conditioning(("age", "sex", "unheard_of"), 8)
    first = embed.embed[0]
    first.weight.copy_(torch.eye(8, 9))
    first.bias.zero_()
    embed.embed = torch.nn.Sequential(first)
    values = embed(torch.tensor([[75.0, 1.0, 0.0], [55.0, 0.0, torch.nan]]))
    assert SCALES["age"] == (55.0, 20.0)
    torch.testing.assert_close(values[0], torch.tensor([1.0, 1, -1, 1, 1, 1, 0, 0]))
    torch.testing.assert_close(values[1], torch.tensor([0.0, -1, 0, 1, 1, 0, 0, 0]))
    # constants are no weights: a file of weights cannot carry a statistic of its data in them
    assert {k.split(".")[0] for k in embed.state_dict()} == {"embed"}


def test_names_must_differ():
    with pytest.raises(ValueError, match=r"conditioning: names \['age', 'age'\] repeat"):
        Conditioning(("age", "age"), 4)


def test_drop_has_the_asked_rates():
    n, k, row, entry = 40_000, 4, 0.1, 0.2
    x = torch.arange(float(n * k)).reshape(n, k)
    dropped = drop(x, torch.Generator().manual_seed(0), row=row, entry=entry)
    gone = torch.isnan(dropped)
    assert torch.equal(dropped[~gone], x[~gone])
    assert gone.float().mean() == pytest.approx(row + (1 - row) * entry, abs=0.005)
    assert gone.all(1).float().mean() == pytest.approx(row + (1 - row) * entry**k, abs=0.005)
    pairs = (gone[:, 0] & gone[:, 1]).float().mean()
    assert pairs == pytest.approx(row + (1 - row) * entry**2, abs=0.005)


def test_drop_at_the_ends_and_with_holes():
    x = torch.tensor([[1.0, torch.nan], [3.0, 4.0]])
    g = torch.Generator().manual_seed(0)
    torch.testing.assert_close(drop(x, g, row=0, entry=0), x, equal_nan=True)
    assert torch.isnan(drop(x, g, row=1, entry=0)).all()
    assert torch.isnan(drop(x, g, row=0, entry=1)).all()
    assert torch.equal(
        torch.isnan(drop(x, torch.Generator().manual_seed(3), row=0.5, entry=0.5)),
        torch.isnan(drop(x, torch.Generator().manual_seed(3), row=0.5, entry=0.5)),
    )


# shipped weights


def test_cards_round_trip_in_half_precision(tmp_path):
    weights = {"w": torch.tensor([1.0, 1e-3, 3.14159]), "k": torch.tensor([1, 2**40])}
    save_card(tmp_path, "net", weights, {"config": {"a": 1}})
    loaded, card = load_card("net", tmp_path)
    assert loaded["w"].dtype == torch.float32 and torch.equal(loaded["w"], weights["w"].half().float())
    assert torch.equal(loaded["k"], weights["k"])
    assert card["config"] == {"a": 1} and len(card["sha256"]) == 64
    assert (tmp_path / "net.safetensors").stat().st_size < 400


def test_a_file_that_is_not_the_cards_is_refused(tmp_path):
    save_card(tmp_path, "net", {"w": torch.ones(3)}, {})
    save_card(tmp_path / "other", "net", {"w": torch.zeros(3)}, {})
    shutil.copy(tmp_path / "other" / "net.safetensors", tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"net.safetensors: sha256 .* differs from its card's .*; reinstall medsynth"):
        load_card("net", tmp_path)


def test_shipped_autoencoder_is_frozen(shipped, tiny):
    made = shipped_autoencoder()
    assert not made.training and not any(p.requires_grad for p in made.parameters())
    assert made.factor == 4 and made.latent_channels == tiny.autoencoder.latent_channels
    x = uniform(1, 1, 8, 8)
    assert torch.equal(made.encode(x), shipped_autoencoder(shipped).encode(x))


def test_shipped_denoisers(shipped, tiny):
    for kind in ("phantom", "real", "heart"):
        made = shipped_denoiser(kind)
        expected = (tiny.denoiser_3d, HEART) if kind == "heart" else (tiny.denoiser, THORAX)
        assert (made.config, made.names) == expected
        assert not made.training and all(p.requires_grad for p in made.parameters())
        digest = json.loads((shipped / f"denoiser_{kind}.json").read_text())["sha256"]
        assert shipped_hash(f"denoiser_{kind}") == digest
    assert shipped_hash("denoiser_phantom") != shipped_hash("denoiser_real")
    with pytest.raises(ValueError, match=r"shipped denoiser 'cardiac'; expected one of \('phantom', 'real', 'heart'\)"):
        shipped_denoiser("cardiac")


def test_weights_that_are_not_there_are_named_with_those_that_are(shipped):
    with pytest.raises(FileNotFoundError, match=r"encoder: no such weights, found autoencoder, .*; make them with `python -m"):
        load_card("encoder", shipped)


def test_a_card_with_an_unknown_key_is_refused(shipped, tmp_path):
    weights, card = load_card("autoencoder", shipped)
    save_card(tmp_path, "autoencoder", weights, card | {"config": card["config"] | {"chanels": [1]}})
    with pytest.raises(ValueError, match=r"autoencoder.json: unknown key 'chanels'; did you mean 'channels'"):
        shipped_autoencoder(tmp_path)


def test_the_weights_live_in_the_package():
    assert weights_folder().name == "weights" and weights_folder().parent.name == "medsynth"

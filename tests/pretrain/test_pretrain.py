from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage

from medsynth.imageset import ImageSet
from medsynth.language.vocabulary import HEART, MODALITIES
from medsynth.models.autoencoder import Autoencoder
from medsynth.models.conditioning import THORAX
from medsynth.models.extractor import ExtractorNet
from medsynth.models.weights import DENOISERS, load_card, shipped_autoencoder, shipped_denoiser, shipped_refiner, weights_folder
from medsynth.pretrain import __main__ as command
from medsynth.pretrain import diffusion as denoiser_module
from medsynth.pretrain import public
from medsynth.pretrain.autoencoder import (
    CROP,
    autoencoder_loss,
    latent_statistics,
    random_crops,
    reconstruction_loss,
    standard_scale,
    train_autoencoder,
)
from medsynth.pretrain.diffusion import REAL_REPEATS, pretrain_denoiser
from medsynth.pretrain.extractor import degrade
from medsynth.pretrain.public import PublicSet, at_size, describe, phantoms, real_sets
from medsynth.settings.config import AutoencoderConfig, DiffusionConfig, RefinerConfig
from medsynth.settings.parse import parse
from medsynth.settings.profile import load_profile
from medsynth.training import step_generator


@pytest.fixture(scope="module")
def smooth_sets(make_set) -> dict[str, PublicSet]:
    """Three small sets with structure that can be learnt: stripes of random phase, on other scales of value."""

    def stripes(n: int, size: int, seed: int) -> np.ndarray:
        phase = np.random.default_rng(seed).uniform(0, 6, (n, 1, 1, 1))
        return (0.5 + 0.4 * np.sin(np.arange(size)[:, None] / 6 + phase) * np.ones((n, 1, size, size))).astype(np.float32)

    real = make_set(6).attributes.assign(licence="CC BY 4.0")
    return {
        "phantom": PublicSet(make_set(8, images=stripes(8, 64, 0), name="a")),
        "hu": PublicSet(
            make_set(6, images=stripes(6, 64, 1) * 1e3 - 700, range=(-1000, 400), unit="HU", name="b", modality="ct")
        ),
        "real": PublicSet(make_set(6, images=stripes(6, 128, 2), attributes=real, name="c", origin="scan")),
        "heart": PublicSet(make_set(4, images=stripes(4, 64, 3) ** 2, name="d"), thorax=False),
    }


# autoencoder


def test_reconstruction_loss_against_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 1, 8, 6)), rng.random((2, 1, 8, 6))
    spectrum = np.abs(np.fft.rfft2(b - a, norm="ortho"))
    expected = np.abs(b - a).mean() + 0.3 * spectrum.mean()
    assert float(reconstruction_loss(torch.tensor(a), torch.tensor(b), 0.3)) == pytest.approx(expected, rel=1e-5)
    assert float(reconstruction_loss(torch.tensor(a), torch.tensor(a), 0.3)) == 0


def test_kl_is_that_of_a_gaussian(tiny):
    torch.manual_seed(0)
    model = Autoencoder(tiny.autoencoder)
    real = torch.rand(2, 1, 64, 64) * 2 - 1
    values = [
        float(autoencoder_loss(model, real, replace(tiny.autoencoder, kl_weight=w), step_generator(0, 0)).detach())
        for w in (0.0, 1.0)
    ]
    with torch.no_grad():
        mean, std = model.posterior(real)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mean, std), normal(torch.zeros_like(mean), 1.0)).mean()
    assert values[1] - values[0] == pytest.approx(float(kl), rel=1e-3)


def test_the_loss_is_of_a_drawn_latent(tiny):
    torch.manual_seed(0)
    model, real = Autoencoder(tiny.autoencoder), torch.rand(2, 1, 64, 64) * 2 - 1
    config = replace(tiny.autoencoder, kl_weight=0.0, latent_noise=0.0)
    with torch.no_grad():
        mean, std = model.posterior(real)
        latents = mean + std * torch.randn(mean.shape, generator=step_generator(0, 3))
        expected = reconstruction_loss(real, model.reconstruct(latents), config.fourier_weight)
        torch.testing.assert_close(autoencoder_loss(model, real, config, step_generator(0, 3)), expected)
        assert autoencoder_loss(model, real, config, step_generator(0, 4)) != expected


@torch.no_grad()
def test_the_decoder_sees_noise_in_proportion_to_the_standard_scale(tiny):
    seen = []

    class Known(Autoencoder):
        def posterior(self, images):
            mean = torch.stack([4 * images, images], 1).squeeze(2)
            return mean, torch.full_like(mean, 1e-6)

        def reconstruct(self, latents):
            seen.append(latents)
            return torch.zeros(4, 1, 64, 64)

    torch.manual_seed(0)
    model, real = Known(tiny.autoencoder), torch.randn(4, 1, 64, 64)
    noise = [0.0, 0.5]
    for level in noise:
        autoencoder_loss(model, real, replace(tiny.autoencoder, latent_noise=level), step_generator(0, 3))
    error = (seen[1] - seen[0]).std((2, 3))
    # a level of its own for every image, at most that of the configuration, and twice as much where the spread is four times
    assert error.std(0).min() > 0.02 and (error <= 0.5 * standard_scale(torch.tensor([4.0, 1.0])) * 1.05).all()
    torch.testing.assert_close(error[:, 0] / error[:, 1], torch.full((4,), 2.0), atol=0.1, rtol=0)


def test_crops_come_from_their_images():
    """Every pixel says which image and place it is from, so a crop can be traced."""
    base = torch.arange(4, dtype=torch.uint8)[:, None, None, None] * 60
    small = (base + torch.zeros(4, 1, CROP, CROP, dtype=torch.uint8)).contiguous()
    ramp = torch.arange(100, dtype=torch.uint8).expand(3, 1, 100, 100).contiguous()
    crops = random_crops([small, ramp], torch.tensor([1.0, 3.0]), 400, step_generator(0, 0))
    assert crops.shape == (400, 1, CROP, CROP)
    grey = ((crops + 1) * 127.5).round()
    flat = (grey == grey[:, :, :1, :1]).flatten(1).all(1)
    assert flat.float().mean() == pytest.approx(0.25, abs=0.07)
    assert set(grey[flat][:, 0, 0, 0].tolist()) <= {0.0, 60.0, 120.0, 180.0}
    rows = grey[~flat][:, 0, 0]
    assert (rows.diff(dim=1).abs() == 1).all()
    assert ((rows[:, 1] < rows[:, 0]).float().mean() - 0.5).abs() < 0.1
    again = random_crops([small, ramp], torch.tensor([1.0, 3.0]), 400, step_generator(0, 0))
    assert torch.equal(crops, again)
    assert len(random_crops([small, ramp], torch.tensor([0.0, 1.0]), 3, step_generator(0, 1))) == 3


def test_training_lowers_the_loss_and_stores_the_statistics_of_latents(tiny, smooth_sets):
    config = replace(tiny.autoencoder, steps=16, batch=4, learning_rate=4e-3)
    before = Autoencoder(config)
    weights, metrics = train_autoencoder(smooth_sets, config, device="cpu")
    after = Autoencoder(config)
    after.load_state_dict(weights)
    assert set(weights) == set(before.state_dict())
    real = torch.from_numpy(smooth_sets["phantom"].images.scaled())
    with torch.no_grad():
        losses = [float((m.reconstruct(m.posterior(real)[0]) - real).abs().mean()) for m in (before, after)]
        assert losses[1] < 0.8 * losses[0] and np.isfinite(metrics["loss"])
        # sets of 64 pixels, each weighing the same, come out with mean 0, and variances as their spreads were, 1 on average
        small = [torch.from_numpy(s.images.scaled()) for s in smooth_sets.values() if s.images.spatial == (64, 64)]
        latents, raw = [after.encode(x) for x in small], [after.posterior(x)[0] for x in small]
    assert len(latents) == 3
    mean = torch.stack([z.mean((0, 2, 3)) for z in latents]).mean(0)
    square = torch.stack([z.square().mean((0, 2, 3)) for z in latents]).mean(0)
    centre = torch.stack([z.mean((0, 2, 3)) for z in raw]).mean(0)
    spread = torch.stack([(z - centre[:, None, None]).square().mean((0, 2, 3)) for z in raw]).mean(0).sqrt()
    torch.testing.assert_close(mean, torch.zeros(4), atol=0.02, rtol=0)
    torch.testing.assert_close(square, spread / spread.mean(), atol=0.02, rtol=0.05)
    assert spread.max() > 1.5 * spread.min()


def test_statistics_weigh_sets_alike():
    class Known:
        def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.cat([x, 2 * x + 1], 1), x

    # 1 image of value +1 and 9 of value -1: mean 0 and variance 1 whatever the sizes of the sets
    stores = [torch.full((1, 1, 4, 4), 255, dtype=torch.uint8), torch.zeros(9, 1, 4, 4, dtype=torch.uint8)]
    mean, std = latent_statistics(Known(), stores)
    torch.testing.assert_close(mean, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(std, torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("role", ["private", "eval"])
def test_only_public_sets_may_shape_what_ships(tiny, smooth_sets, role, shipped):
    sets = smooth_sets | {"smuggled": replace(smooth_sets["phantom"], images=replace(smooth_sets["phantom"].images, role=role))}
    with pytest.raises(ValueError, match="smuggled: not public; expected sets in their public role"):
        train_autoencoder(sets, tiny.autoencoder, device="cpu")
    with pytest.raises(ValueError, match="smuggled: not public"):
        pretrain_denoiser(sets, shipped_autoencoder(), tiny.denoiser, tiny.diffusion, device="cpu")


# denoiser


def test_the_denoiser_sees_thoraces_with_their_conditions_and_real_ones_more_often(tiny, smooth_sets, shipped, monkeypatch):
    seen = {}

    def train_latents(model, latents, condition, config, workspace):
        seen.update(latents=latents, condition=pd.DataFrame(condition.numpy(), columns=list(THORAX)), names=model.names)
        return {}, {}

    monkeypatch.setattr(denoiser_module, "train_latents", train_latents)
    sets = smooth_sets | {"real": replace(smooth_sets["real"], images=at_size(smooth_sets, 64)["real"].images)}
    pretrain_denoiser(sets, shipped_autoencoder(), tiny.denoiser, tiny.diffusion, device="cpu")
    assert seen["names"] == THORAX
    assert seen["latents"].shape == (8 + 6 + 6 * REAL_REPEATS, 4, 16, 16)
    condition = seen["condition"]
    assert condition["xray"].sum() == 8 + 6 * REAL_REPEATS and condition["ct"].sum() == 6
    assert (condition["phantom"] == 0).sum() == 6 * REAL_REPEATS
    expected = shipped_autoencoder().encode(torch.from_numpy(sets["hu"].images.scaled()))
    torch.testing.assert_close(seen["latents"][8:14], expected, atol=1e-5, rtol=1e-5)


def test_the_denoiser_goes_on_from_another(tiny, smooth_sets, shipped):
    start = shipped_denoiser("phantom")
    still = replace(tiny.diffusion, steps=1, learning_rate=0.0)
    weights, _ = pretrain_denoiser(
        {"phantom": smooth_sets["phantom"]}, shipped_autoencoder(), tiny.denoiser, still, device="cpu", start=start
    )
    assert all(torch.equal(v, weights[k]) for k, v in start.state_dict().items())


# the public sets


@pytest.fixture
def stub_phantoms(monkeypatch, make_set) -> list[dict]:
    calls = []

    def cached_thorax(*, patients, size, modality, seed):
        calls.append({"modality": modality, "patients": patients, "size": size, "seed": seed})
        return make_set(patients, (1, size, size), seed, name=modality, modality=modality)

    def cardiac(*, patients, slices, size, seed, jobs):
        calls.append({"modality": "heart", "patients": patients, "size": size, "seed": seed})
        return make_set(patients, (1, slices, size, size), seed, name="heart")

    monkeypatch.setattr(public, "cached_thorax", cached_thorax)
    monkeypatch.setattr(public, "cardiac", cardiac)
    return calls


def test_phantoms_of_every_modality_and_hearts_at_64(stub_phantoms):
    sets = phantoms(4, 64, seed=5, jobs=1)
    assert list(sets) == [*(f"phantom-{m}-64" for m in MODALITIES), "phantom-heart-64"]
    assert [s.images.modality if s.thorax else "other" for s in sets.values()] == [*MODALITIES, "other"]
    assert not any(s.images.people for s in sets.values()) and {c["seed"] for c in stub_phantoms} == {5}
    assert sets["phantom-heart-64"].images.images.shape == (2 * 16, 1, 64, 64)
    assert list(phantoms(2, 128, seed=5, jobs=1)) == [f"phantom-{m}-128" for m in MODALITIES]


def test_real_sets_keep_to_the_public_role_and_licences(real_folder):
    sets = real_sets(real_folder, "train")
    assert {k: len(s.images) for k, s in sets.items()} == {
        "cxr_kermany": 2, "cxr_nih": 4, "cxr_covid": 2, "mri_hippocampus": 4 * len(range(8, 40, 3)),
    }  # fmt: skip
    assert sets["cxr_kermany"].images.patient.tolist() == [0, 1]
    for s in sets.values():
        assert s.images.people and s.images.role == "public" and set(s.images.split.tolist()) == {"train"}
        assert "NC" not in s.images.data_licence.replace("NIH", "")
    assert [s.images.spatial[-1] for s in sets.values()] == [128, 64, 128, 12]
    held_out = real_sets(real_folder, "test")
    assert held_out["cxr_kermany"].images.patient.tolist() == [6, 7] and held_out["cxr_kermany"].images.role == "eval"


def test_sets_at_a_size_leave_out_what_is_smaller(real_folder):
    sets = real_sets(real_folder, "train")
    assert list(at_size(sets, 128)) == ["cxr_kermany", "cxr_covid"]
    small = at_size(sets, 64)
    assert list(small) == ["cxr_kermany", "cxr_nih", "cxr_covid"]
    assert all(s.images.spatial == (64, 64) and s.images.people for s in small.values())
    (row,) = describe({"x": small["cxr_nih"]})
    assert row == {
        "name": "x", "images": 4, "patients": 4, "size": 64, "licence": "NIH Clinical Center, attribution",
        "content_hash": sets["cxr_nih"].images.content_hash,
    }  # fmt: skip


# the command


@pytest.fixture
def run(monkeypatch, stub_phantoms, tiny, real_folder, tmp_path):
    """A function that runs the command with tiny networks and stand-ins for the phantoms, into `out`."""
    quick = replace(tiny.diffusion, steps=2)
    small = {"AUTOENCODER": tiny.autoencoder, "DENOISER": tiny.denoiser, "PHANTOM": quick, "REAL": quick}
    for name, value in small.items():
        monkeypatch.setattr(command, name, value)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)

    def run(what: str, *, real: Path = real_folder, steps: int = 2) -> dict:
        arguments = {"real": real, "out": tmp_path / "out", "work": tmp_path / "work", "patients": 4, "steps": steps}
        monkeypatch.setattr("sys.argv", ["pretrain", what, *[f"--{k}={v}" for k, v in arguments.items()]])
        command.main()
        return load_card(what, tmp_path / "out")[1]

    return run


def test_degraded_images_are_blurred_each_by_its_own_spread_and_then_noisy():
    images = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    blur, noise = torch.tensor([0.0, 0.7, 2.4]), torch.tensor([0.0, 0.0, 0.1])
    made = degrade(images, noise, blur, torch.Generator().manual_seed(1)).numpy()
    for image, one, sd in zip(images[:2, 0].numpy(), made[:2, 0], (0, 0.7), strict=True):
        soft = ndimage.gaussian_filter(image, sd, mode="mirror", radius=6) if sd else image
        np.testing.assert_allclose(one, soft, atol=1e-6)
    left = made[2, 0] - ndimage.gaussian_filter(images[2, 0].numpy(), 2.4, mode="mirror", radius=6)
    assert left.std() == pytest.approx(0.1, rel=0.05)


def test_the_command_makes_weights_with_cards_that_say_what_they_saw(run, tiny, tmp_path, monkeypatch):
    out = tmp_path / "out"
    card = run("autoencoder", steps=3)
    assert parse(AutoencoderConfig, card["config"], "card") == replace(tiny.autoencoder, steps=3)
    assert card["metrics"]["steps"] == 3
    names = {row["name"] for row in card["trained_on"]}
    assert {"cxr_kermany", "cxr_kermany@128", "phantom-xray-64", "phantom-xray-128@128", "phantom-heart-64"} <= names
    assert all(row.keys() >= {"images", "patients", "licence", "content_hash", "size"} for row in card["trained_on"])
    assert card["device"] in ("cpu", "cuda") and "torch" in card["versions"]
    assert shipped_autoencoder(out).latent_scale.min() > 0

    monkeypatch.setattr(command, "REFINER", RefinerConfig(channels=(16, 16)))
    refiner = run("refiner")
    assert {row["name"] for row in refiner["trained_on"]} == names and refiner["diffusion"]["steps"] == 2
    assert shipped_refiner(out).config == RefinerConfig(channels=(16, 16))

    # the phantom denoiser neither needs nor sees a real image
    phantom = run("denoiser_phantom", real=tmp_path / "there is none")
    real = run("denoiser_real")
    seen = [{row["name"] for row in card["trained_on"]} for card in (phantom, real)]
    assert seen[0] == {f"phantom-{m}-64" for m in MODALITIES}
    assert seen[1] == seen[0] | {"cxr_kermany", "cxr_nih", "cxr_covid"}
    assert (phantom["start"], real["start"]) == (False, "denoiser_phantom")
    for card in (phantom, real):
        assert card["names"] == list(THORAX) and card["latent_channels"] == 4
        assert parse(DiffusionConfig, card["diffusion"], "card") == replace(tiny.diffusion, steps=2)
    monkeypatch.setattr("medsynth.models.weights.weights_folder", lambda: out)
    assert shipped_denoiser("real").config == tiny.denoiser


def test_the_denoiser_of_hearts_sees_phantom_stacks_alone(run, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "HEART_PATIENTS", 2)
    monkeypatch.setattr(command, "HEART_DENOISER", tiny.denoiser_3d)
    monkeypatch.setattr(command, "HEART", replace(tiny.diffusion, steps=2))
    monkeypatch.setattr(command, "shipped_autoencoder", lambda _: Autoencoder(tiny.autoencoder))
    card = run("denoiser_heart", real=tmp_path / "there is none")
    assert card["names"] == list(HEART) and [row["name"] for row in card["trained_on"]] == ["phantom-heart-stack"]
    assert card["trained_on"][0]["images"] == 4 and card["trained_on"][0]["licence"] == "generated"


def test_the_extractor_is_one_of_its_targets(run, tmp_path, monkeypatch):
    asked = {}

    def train_extractor(sets, *, steps, **_):
        asked.update(sets=sets, steps=steps)
        return ExtractorNet().state_dict(), {"dim": 64}

    def fit_last_layer(net, sets, *, seed):
        asked.update(fitted=sets)
        with torch.no_grad():
            net.embedding.bias.fill_(0.25)
        return {"seed": seed}

    monkeypatch.setattr(command, "train_extractor", train_extractor)
    monkeypatch.setattr(command, "fit_last_layer", fit_last_layer)
    monkeypatch.setattr(command, "LAST_LAYER_PATIENTS", 6)
    card = run("extractor", steps=7)
    assert asked["steps"] == 7 and all(isinstance(s, ImageSet) for s in asked["sets"].values())
    # views are cropped out of images as large as they come
    assert asked["sets"]["cxr_kermany"].spatial[0] > 64
    assert card["dim"] == 64 and {row["name"] for row in card["trained_on"]} == set(asked["sets"])
    # the last layer sees more phantoms, and none that the convolutions saw
    fitted = {row["name"]: row for row in card["last_layer"]["trained_on"]}
    assert card["last_layer"]["seed"] == 0 and asked["fitted"].keys() == asked["sets"].keys() == fitted.keys()
    for row in card["trained_on"]:
        assert (row["content_hash"] == fitted[row["name"]]["content_hash"]) == (not row["name"].startswith("phantom"))
    # what ships is what was fitted, calibrated
    weights, _ = load_card("extractor", tmp_path / "out")
    assert (weights["embedding.bias"] == 0.25).all()
    assert not torch.equal(weights["matrix"], torch.eye(64))
    with pytest.raises(SystemExit):
        run("everything")


def test_identity_encoders_are_targets_too(run, monkeypatch, smooth_sets):
    asked = []

    def encoder_sets(folder, patients, *, spatial_dims, jobs):
        asked.append((patients, spatial_dims))
        return smooth_sets

    def train_encoder(sets, *, spatial_dims, steps, **_):
        return {"w": torch.ones(2)}, {"spatial_dims": spatial_dims, "steps": steps}

    monkeypatch.setattr(command, "encoder_sets", encoder_sets)
    monkeypatch.setattr(command, "train_encoder", train_encoder)
    for name, dims in (("encoder", 2), ("encoder_3d", 3)):
        card = run(name, steps=5)
        assert (card["spatial_dims"], card["steps"]) == (dims, 5)
        assert {row["name"] for row in card["trained_on"]} == set(smooth_sets)
    assert asked == [(4, 2), (4, 3)]


def test_the_defaults_build_and_fit_the_profiles(project):
    # profiles that start from shipped weights must ask for their architecture
    for name in ("smoke", "laptop", "full"):
        profile = load_profile(name, project / "profiles")
        assert (profile.denoiser, profile.denoiser_3d) == (command.DENOISER, command.HEART_DENOISER)


def test_all_weights_that_ship_are_at_most_40_megabytes():
    shipped = list(weights_folder().glob("*.safetensors"))
    assert {f"denoiser_{kind}" for kind in DENOISERS} <= {file.stem for file in shipped}
    assert sum(file.stat().st_size for file in shipped) <= 40e6

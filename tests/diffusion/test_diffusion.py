from __future__ import annotations

import json
import math
import signal
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from medsynth.diffusion import train as train_module
from medsynth.diffusion.conditions import conditions_of
from medsynth.diffusion.sample import (
    CLEANEST,
    NOISIEST,
    even_timesteps,
    guided_prediction,
    initial_noise,
    less_noise,
    sample_images,
    sample_latents,
)
from medsynth.diffusion.schedule import BETAS, PREDICTIONS, noise_schedule, objective, solver
from medsynth.diffusion.train import diffusion_loss, train_denoiser, train_latents
from medsynth.ledger import Ledger, RoleError
from medsynth.mechanism import NONE
from medsynth.models.conditioning import THORAX
from medsynth.models.denoiser import Denoiser
from medsynth.models.weights import load_card, save_card, shipped_autoencoder, shipped_denoiser
from medsynth.settings.config import DenoiserConfig, DiffusionConfig, SamplingConfig
from medsynth.store.runs import Workspace
from medsynth.training import step_generator

NAMES = ("age", "sex")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# schedules and objectives


def naive_signal(schedule: str, timesteps: int) -> np.ndarray:
    """Product of 1 - beta: the share of signal power that is left, (timesteps,)."""
    low, high = BETAS[schedule]
    if schedule == "linear":
        betas = np.linspace(low, high, timesteps)
    elif schedule == "scaled_linear":
        betas = np.linspace(low**0.5, high**0.5, timesteps) ** 2
    else:

        def signal_at(t: float) -> float:
            return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = np.array([min(1 - signal_at((i + 1) / timesteps) / signal_at(i / timesteps), 0.999) for i in range(timesteps)])
    return np.cumprod(1 - betas)


@pytest.mark.parametrize("schedule", sorted(BETAS))
@pytest.mark.parametrize("timesteps", [50, 1000])
def test_objectives_follow_their_formulas(schedule, timesteps):
    power = naive_signal(schedule, timesteps)
    clean, noise = normal(4, 2, 3, 3), normal(4, 2, 3, 3, seed=1)
    t = torch.tensor([0, 1, timesteps // 2, timesteps - 1])
    a = torch.tensor(power[t.numpy()] ** 0.5).reshape(4, 1, 1, 1)
    s = torch.tensor((1 - power[t.numpy()]) ** 0.5).reshape(4, 1, 1, 1)
    for prediction, expected in (("epsilon", noise.double()), ("v_prediction", a * noise - s * clean)):
        config = DiffusionConfig(steps=1, schedule=schedule, timesteps=timesteps, prediction=prediction)
        noisy, target = objective(noise_schedule(config), clean, noise, t)
        torch.testing.assert_close(noisy.double(), a * clean + s * noise, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(target.double(), expected, atol=2e-4, rtol=1e-4)


def test_names_of_schedules_solvers_and_predictions_are_checked():
    config = DiffusionConfig(steps=1)
    with pytest.raises(ValueError, match="solver 'euler'; expected 'dpm', 'ddim' or 'ddpm'"):
        solver(config, "euler", 10)
    with pytest.raises(ValueError, match=r"schedule 'cosine'; expected one of \['linear'"):
        noise_schedule(replace(config, schedule="cosine"))
    with pytest.raises(ValueError, match=r"prediction 'x0'; expected one of \('epsilon', 'v_prediction'\)"):
        noise_schedule(replace(config, prediction="x0"))
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=f"{steps} sampling steps; expected 1 to 1000"):
            solver(config, "dpm", steps)


@pytest.mark.parametrize("name", ["dpm", "ddim", "ddpm"])
@pytest.mark.parametrize("steps", [1, 2, 15, 50])
def test_solvers_start_at_pure_noise_and_take_the_asked_steps(name, steps):
    times = solver(DiffusionConfig(steps=1, timesteps=50), name, steps).timesteps.tolist()
    assert len(times) == steps and times[0] == 49
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("schedule", sorted(BETAS))
def test_steps_are_even_in_the_log_of_noise_over_signal(schedule):
    signal = noise_schedule(DiffusionConfig(steps=1, schedule=schedule)).alphas_cumprod
    times = even_timesteps(signal, 21)
    assert len(times) == 21 and times[0] == 999
    noise = np.log(((1 - naive_signal(schedule, 1000)) / naive_signal(schedule, 1000)) ** 0.5)[times[1:]]
    # schedules do not all reach the noisiest step, and at the clean end whole timesteps are coarse
    between = (noise < min(math.log(NOISIEST), noise.max()) - 0.5) & (noise > math.log(0.1))
    assert between.sum() >= 9
    assert np.diff(noise[between]) == pytest.approx(-math.log(NOISIEST / CLEANEST) / 19, abs=0.15)
    assert noise[-1] == pytest.approx(math.log(CLEANEST), abs=0.5)


@given(steps=st.integers(1, 60), timesteps=st.integers(60, 1000), schedule=st.sampled_from(sorted(BETAS)))
def test_steps_never_repeat_and_never_run_out(steps, timesteps, schedule):
    signal = noise_schedule(DiffusionConfig(steps=1, schedule=schedule, timesteps=timesteps)).alphas_cumprod
    times = even_timesteps(signal, steps)
    assert len(times) == steps and times[0] == timesteps - 1
    assert min(times) >= 0 and (np.diff(times) < 0).all()


# sampling against a known answer


class Gaussian(nn.Module):
    """The best denoiser of data N(mean, sd^2); the mean is the first condition, 0 where that is missing."""

    latent_channels = 2

    def __init__(self, config: DiffusionConfig, sd: float) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.power = noise_schedule(config).alphas_cumprod.double()
        self.prediction, self.sd = config.prediction, sd

    def forward(self, noisy: torch.Tensor, times: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        x = noisy.double()
        shape = (-1, *[1] * (x.ndim - 1))
        a, s = self.power[times].sqrt().reshape(shape), (1 - self.power[times]).sqrt().reshape(shape)
        mean = condition[:, 0].nan_to_num().double().reshape(shape)
        clean = mean + a * self.sd**2 / (a**2 * self.sd**2 + s**2) * (x - a * mean)
        noise = (x - a * clean) / s
        return (noise if self.prediction == "epsilon" else a * noise - s * clean).float()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize(("name", "steps", "tolerance"), [("dpm", 25, 0.02), ("ddim", 80, 0.03), ("ddpm", 150, 0.03)])
def test_sampling_recovers_a_gaussian(prediction, schedule, name, steps, tolerance):
    config = DiffusionConfig(steps=1, prediction=prediction, schedule=schedule)
    model = Gaussian(config, sd=0.5)
    sampling = SamplingConfig(images=1, solver=name, steps=steps, epsilon_scale=1, batch=512)
    made = sample_latents(model, torch.full((512, 1), 0.7), (4, 4), config, sampling)
    assert made.shape == (512, 2, 4, 4)
    # n = 16384: the standard error of the mean is 0.004
    assert float(made.mean()) == pytest.approx(0.7, abs=tolerance)
    assert float(made.std()) == pytest.approx(0.5, abs=tolerance)
    # samples are independent of one another
    assert abs(float(torch.corrcoef(made.flatten(1)[:, :2].T)[0, 1])) < 0.2
    assert abs(float(torch.corrcoef(made.flatten(1)[:2])[0, 1])) < 0.7


@pytest.mark.parametrize("name", ["dpm", "ddim", "ddpm"])
def test_samples_do_not_depend_on_the_batch_size(name):
    config = DiffusionConfig(steps=1)
    model = Gaussian(config, sd=0.5)
    condition = torch.linspace(-1, 1, 7)[:, None]
    made = [
        sample_latents(model, condition, (3, 3), config, SamplingConfig(images=7, solver=name, steps=5, batch=b, seed=3))
        for b in (1, 3, 7, 100)
    ]
    for other in made[1:]:
        torch.testing.assert_close(other, made[0], atol=1e-5, rtol=1e-5)
    # nor on how many are drawn
    few = sample_latents(model, condition[:2], (3, 3), config, SamplingConfig(images=2, solver=name, steps=5, seed=3))
    torch.testing.assert_close(few, made[0][:2], atol=1e-5, rtol=1e-5)
    another = sample_latents(model, condition, (3, 3), config, SamplingConfig(images=7, solver=name, steps=5, seed=4))
    assert (another - made[0]).abs().mean() > 0.1


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_less_noise_is_told_from_the_same_noisy_image(kind):
    clean, noise, power = normal(3, 2, 4, 4), normal(3, 2, 4, 4) + 0.1, torch.tensor(0.3)
    a, s = power.sqrt(), (1 - power).sqrt()
    noisy = a * clean + s * noise
    prediction = noise if kind == "epsilon" else a * noise - s * clean
    torch.testing.assert_close(less_noise(prediction, noisy, power, 1.0, kind), prediction)
    # a quarter less noise, and the image that the same input then leaves
    fewer = noise / 1.25
    rest = (noisy - s * fewer) / a
    expected = fewer if kind == "epsilon" else a * fewer - s * rest
    torch.testing.assert_close(less_noise(prediction, noisy, power, 1.25, kind), expected)


@pytest.mark.parametrize("name", ["dpm", "ddim", "ddpm"])
def test_what_is_not_taken_for_noise_stays_in_the_samples(name):
    config = DiffusionConfig(steps=1)
    # nearly all that is seen is noise, so an excess of it survives
    spread = [
        float(sample_latents(
            Gaussian(config, sd=0.05), torch.full((64, 1), 0.7), (4, 4), config,
            SamplingConfig(images=1, solver=name, steps=40, epsilon_scale=scale),
        ).std())
        for scale in (1.0, 1.02, 1.05)
    ]  # fmt: skip
    assert spread[0] < spread[1] < spread[2] < 1.6 * spread[0]


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_noise_cannot_be_scaled_to_nothing(scale):
    config = DiffusionConfig(steps=1)
    with pytest.raises(ValueError, match="expected a positive number"):
        sample_latents(Gaussian(config, sd=0.5), torch.zeros(1, 1), (4, 4), config, SamplingConfig(images=1, epsilon_scale=scale))


def test_noise_belongs_to_its_image():
    noise = initial_noise((5, 2, 3, 3), seed=1, first=10)
    torch.testing.assert_close(initial_noise((2, 2, 3, 3), seed=1, first=12), noise[2:4], atol=0, rtol=0)
    assert len({tuple(n.flatten().tolist()) for n in noise}) == 5
    many = initial_noise((400, 1, 4, 4), seed=0, first=0)
    assert float(many.mean()) == pytest.approx(0, abs=0.05) and float(many.std()) == pytest.approx(1, abs=0.05)
    # neighbours share nothing
    assert abs(float((many[1:] * many[:-1]).mean())) < 0.05


def test_guidance_is_linear_and_1_is_the_conditional_model():
    calls = []

    class Counting(Gaussian):
        def forward(self, noisy, times, condition):
            calls.append(len(noisy))
            return super().forward(noisy, times, condition)

    model = Counting(DiffusionConfig(steps=1), sd=0.5)
    x, t = normal(3, 2, 4, 4), torch.tensor(300)
    condition = torch.tensor([[0.5], [torch.nan], [-2.0]])
    conditional = model(x, t.expand(3), condition)
    null = model(x, t.expand(3), torch.full((3, 1), torch.nan))
    calls.clear()
    assert torch.equal(guided_prediction(model, x, t, condition, 1.0), conditional)
    assert calls == [3]
    for g in (0.0, 0.5, 2.0, 7.5):
        torch.testing.assert_close(guided_prediction(model, x, t, condition, g), null + g * (conditional - null))
    assert calls == [3, 6, 6, 6, 6]
    # where nothing is asked, guidance changes nothing
    torch.testing.assert_close(guided_prediction(model, x, t, condition, 7.5)[1], conditional[1])


# images


@pytest.fixture
def autoencoder(shipped):
    return shipped_autoencoder()


def test_sampled_images_are_like_the_set_they_are_to_resemble(autoencoder, shipped, tiny, make_set):
    like = make_set(4, images=np.full((4, 1, 16, 24), -500.0), range=(-1000, 400), unit="HU", role="private", spacing=(1, 2))
    condition = conditions_of(make_set(5, modality="ct"), THORAX)
    table = pd.DataFrame({"age": np.arange(5.0)}, index=range(10, 15))
    sampling = SamplingConfig(images=5, steps=2, batch=3)
    learned = shipped_denoiser("phantom")
    assert learned.role == "public"
    learned.role = "private"
    made = sample_images(
        learned, autoencoder, condition, like=like, diffusion=tiny.diffusion, sampling=sampling,
        attributes=table,
    )  # fmt: skip
    assert made.images.shape == (5, 1, 16, 24)
    assert (made.unit, made.range, made.spacing, made.role, made.name) == ("HU", (-1000, 400), (1, 2), "private", "synthetic")
    assert made.patient.tolist() == [0, 1, 2, 3, 4] and made.attributes["age"].tolist() == [0, 1, 2, 3, 4]
    assert len(set(made.row_hashes)) == 5
    bare = sample_images(
        shipped_denoiser("phantom"), autoencoder, condition, like=like, diffusion=tiny.diffusion,
        sampling=replace(sampling, batch=5), name="again",
    )  # fmt: skip
    assert bare.role == "public" and bare.name == "again" and bare.attributes.columns.empty
    np.testing.assert_allclose(bare.images, made.images, atol=0.05)


def test_volumes_are_sampled_with_a_3d_denoiser(autoencoder, tiny, make_set):
    torch.manual_seed(0)
    model = Denoiser(replace(tiny.denoiser, spatial_dims=3), NAMES, 4).eval()
    like = make_set(2, (1, 5, 8, 8))
    made = sample_images(
        model, autoencoder, np.zeros((3, 2), np.float32), like=like, diffusion=tiny.diffusion,
        sampling=SamplingConfig(images=3, steps=2, batch=2),
    )  # fmt: skip
    assert made.images.shape == (3, 1, 5, 8, 8)


# training


class Spy(nn.Module):
    """Predicts `answer` whatever it sees, and notes what that was."""

    apart = ()

    def __init__(self, answer: float = 0.0) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.tensor(answer))
        self.seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def forward(self, noisy, times, condition):
        self.seen.append((noisy, times, condition))
        return self.answer.expand_as(noisy)


def test_a_batch_covers_the_schedule_and_is_a_function_of_seed_and_step():
    config = DiffusionConfig(steps=1, batch=50, timesteps=1000, label_dropout=0.3)
    latents, condition = normal(20, 2, 4, 4), torch.arange(20.0)[:, None].expand(20, 2)
    spy = Spy()
    for step in (0, 0, 1):
        diffusion_loss(spy, latents, condition, config, step, step_generator(0, step))
    first, again, other = spy.seen
    assert all(torch.equal(a, b) for a, b in zip(first[:2], again[:2], strict=True))
    assert not torch.equal(first[1], other[1])
    for _, times, _ in spy.seen:
        # one timestep in each fiftieth of the schedule
        assert (times // 20).tolist() == list(range(50))
    gone = torch.isnan(torch.cat([c for *_, c in spy.seen]))
    assert gone.float().mean() == pytest.approx(0.3 + 0.7 * 0.3, abs=0.1)


def test_the_loss_is_the_mean_squared_error_of_the_target():
    config = DiffusionConfig(steps=1, batch=4000, prediction="epsilon", label_dropout=0)
    latents, condition = normal(8, 1, 2, 2), torch.zeros(8, 1)
    # predicting a constant c of standard normal noise costs 1 + c^2
    for answer in (0.0, 2.0):
        loss = diffusion_loss(Spy(answer), latents, condition, config, 0, step_generator(0, 0))
        assert float(loss.detach()) == pytest.approx(1 + answer**2, rel=0.05)
    spy = Spy()
    diffusion_loss(spy, latents * 0 + 1, condition, config, 0, step_generator(0, 0))
    noisy, times, _ = spy.seen[0]
    power = naive_signal(config.schedule, config.timesteps)[times.numpy()]
    early = power > 0.99
    assert noisy[torch.from_numpy(early)].mean() == pytest.approx((power[early] ** 0.5).mean(), abs=0.02)


def test_training_learns_the_mean_of_the_data():
    torch.manual_seed(0)
    latents = normal(64, 4, 4, 4) * 0.1 + 1.5
    model = Denoiser(DenoiserConfig(channels=(64,), attention=(False,), residual_blocks=1), NAMES, 4)
    config = DiffusionConfig(steps=60, batch=8, learning_rate=5e-3, warmup=5, ema=0.9, timesteps=50)
    weights, metrics = train_latents(model, latents, torch.full((64, 2), torch.nan), config)
    # a network that predicts zero pays the mean square of the velocity: about (1 + 1.5^2) / 2
    assert metrics["loss"] < 0.8
    model.load_state_dict(weights)
    sampling = SamplingConfig(images=16, steps=10)
    made = sample_latents(model.eval(), torch.full((16, 2), torch.nan), (4, 4), config, sampling)
    assert float(made.mean()) == pytest.approx(1.5, abs=0.4)


@pytest.fixture
def job(make_set, autoencoder, tiny, tmp_path, cache) -> dict:
    """Arguments of a tiny training on private images."""
    images = make_set(6, role="private", name="scans")
    return {
        "images": images, "condition": conditions_of(images, THORAX), "names": THORAX, "autoencoder": autoencoder,
        "denoiser": tiny.denoiser, "diffusion": tiny.diffusion, "ledger": Ledger(tmp_path / "ledger"),
    }  # fmt: skip


def test_training_is_remembered_and_recorded(job, monkeypatch):
    model, trained = train_denoiser(**job)
    assert not model.training and model.names == THORAX
    (entry,) = job["ledger"].entries()
    assert (entry.stage, entry.reads, entry.patients, entry.mechanism) == ("train denoiser", "scans", 3, NONE)
    assert entry.content_hash == job["images"].content_hash
    assert trained.manifest["inputs"]["images"] == job["images"].content_hash

    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "train_latents", never)
        again, _ = train_denoiser(**job)
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
        assert len(job["ledger"].entries()) == 1
        for change in (
            {"diffusion": replace(job["diffusion"], seed=1)}, {"start": "phantom"}, {"condition": job["condition"] * 0},
            {"images": job["images"].with_images(1 - job["images"].images)},
        ):  # fmt: skip
            with pytest.raises(AssertionError, match="trained again"):
                train_denoiser(**job | change)


def test_another_autoencoder_or_program_makes_another_run(job, shipped, tmp_path, monkeypatch):
    _, first = train_denoiser(**job)
    weights, card = load_card("autoencoder", shipped)
    save_card(tmp_path / "w", "autoencoder", weights | {"latent_scale": weights["latent_scale"] * 2}, card)
    _, other = train_denoiser(**job | {"autoencoder": shipped_autoencoder(tmp_path / "w")})
    monkeypatch.setattr(train_module, "code_hash", lambda _: "another program")
    _, changed = train_denoiser(**job)
    assert len({first.path, other.path, changed.path}) == 3


def test_training_starts_from_shipped_weights(job, tiny, shipped):
    still = replace(tiny.diffusion, learning_rate=0.0)
    public = shipped_denoiser("real")
    model, trained = train_denoiser(**job | {"diffusion": still, "start": "real"})
    assert all(torch.equal(v, public.state_dict()[k]) for k, v in model.state_dict().items())
    assert "start" in trained.manifest["inputs"]
    scratch, _ = train_denoiser(**job | {"diffusion": still})
    assert not torch.equal(scratch.unet.conv_in.conv.weight, model.unet.conv_in.conv.weight)


def test_what_does_not_fit_is_refused_before_anything_is_recorded(job, tiny):
    with pytest.raises(ValueError, match=r"scans: condition has shape \(6, 3\); expected \(6, 16\)"):
        train_denoiser(**job | {"condition": job["condition"][:, :3]})
    for change in (
        {"denoiser": replace(tiny.denoiser, residual_blocks=2)},
        {"names": THORAX[::-1]},
    ):
        with pytest.raises(ValueError, match="scans: the shipped weights have another architecture or other conditions"):
            train_denoiser(**job | change | {"start": "phantom"})
    with pytest.raises(ValueError, match="shipped denoiser 'other'"):
        train_denoiser(**job | {"start": "other"})
    assert job["ledger"].entries() == []


def test_private_rows_cannot_be_trained_on_as_public_ones(job):
    job["ledger"].declare(job["images"])
    with pytest.raises(RoleError, match="train denoiser: 6 of 6 rows of scans"):
        train_denoiser(**job | {"images": replace(job["images"], role="public")})


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from medsynth.models import weights as shipped
torch.set_num_threads(1)
shipped.weights_folder = lambda: Path(sys.argv[1])
from medsynth.settings.config import DenoiserConfig, DiffusionConfig
from medsynth.settings.parse import parse
from medsynth.diffusion.train import train_denoiser
from medsynth.imageset import ImageSet
from medsynth.diffusion.conditions import conditions_of
from medsynth.models.conditioning import THORAX
from medsynth.ledger import Ledger
from medsynth.store.runs import Workspace
import json
real, count = Workspace.save_checkpoint, []
def save_checkpoint(self, step, tensors):
    real(self, step, tensors)
    count.append(step)
    if len(count) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
Workspace.save_checkpoint = save_checkpoint
images = ImageSet.load(sys.argv[2])
train_denoiser(
    images, conditions_of(images, THORAX), THORAX, autoencoder=shipped.shipped_autoencoder(),
    denoiser=parse(DenoiserConfig, json.loads(sys.argv[4]), "denoiser"),
    diffusion=parse(DiffusionConfig, json.loads(sys.argv[5]), "diffusion"), ledger=Ledger(Path(sys.argv[3])),
)
"""


def test_training_killed_in_its_process_ends_with_the_weights_of_an_uninterrupted_one(
    job, shipped, tmp_path, start_python, finish, monkeypatch
):
    configs = [json.dumps(asdict(job[k])) for k in ("denoiser", "diffusion")]
    saved = job["images"].save(tmp_path / "scans.npz")
    status, _, errors = finish(start_python(KILLED, shipped, saved, tmp_path / "ledger", *configs))
    assert status == -signal.SIGKILL, errors
    steps = []
    real = train_module.diffusion_loss

    def counted(model, latents, condition, config, step, generator):
        steps.append(step)
        return real(model, latents, condition, config, step, generator)

    monkeypatch.setattr(train_module, "diffusion_loss", counted)
    resumed, trained = train_denoiser(**job)
    assert steps == [4, 5]
    monkeypatch.setenv("MEDSYNTH_CACHE", str(tmp_path / "other cache"))
    whole, elsewhere = train_denoiser(**job)
    assert steps == [4, 5, 0, 1, 2, 3, 4, 5] and elsewhere.path != trained.path
    assert trained.manifest["weights_sha256"] == elsewhere.manifest["weights_sha256"]
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in resumed.state_dict().items())
    # one reading, whichever process it was
    assert len(job["ledger"].entries()) == 1
    assert Workspace(trained.path).load_checkpoint() is None

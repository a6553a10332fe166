"""What a GPU changes, precision and graphs: tried on a CPU that is told to multiply in bfloat16, and on a GPU if there is one."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
from torch import nn

from medsynth import training
from medsynth.diffusion import train as train_module
from medsynth.diffusion.guidance import Autoguided
from medsynth.diffusion.sample import guided_prediction, sample_latents
from medsynth.diffusion.train import diffusion_loss, train_latents
from medsynth.downstream.fanbeam import FanBeam
from medsynth.downstream.restoration import patch_loss
from medsynth.downstream.restoration_nets import FanBeamConsistency, KSpaceConsistency, RestorationConfig, restoration_net
from medsynth.models.denoiser import Denoiser
from medsynth.settings.config import DenoiserConfig, DiffusionConfig, SamplingConfig
from medsynth.store.runs import Workspace
from medsynth.training import autocast, best_device, captured, compiled, described, fit, precision, step_generator

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
NAMES = ("age", "bmi")
CONFIG = DenoiserConfig(channels=(16, 32), attention=(False, True), head_channels=8)
BRIEF = DiffusionConfig(steps=6, batch=4, learning_rate=1e-3, warmup=2)


@pytest.fixture
def half(monkeypatch):
    """A CPU that multiplies as a GPU does."""
    monkeypatch.setattr(training, "precision", lambda device: torch.bfloat16)


def denoiser(seed: int = 0) -> Denoiser:
    torch.manual_seed(seed)
    model = Denoiser(CONFIG, NAMES, 2)
    # the last layer starts at zero, where every precision agrees
    nn.init.normal_(model.unet.out[2].conv.weight, std=0.1)
    return model


def data(n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 2, 8, 8, generator=g), torch.randn(n, 2, generator=g)


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([(a[k] - b[k]).flatten() for k in a]).norm())


# which precision


def test_a_cpu_and_a_gpu_without_bfloat16_multiply_in_float32(monkeypatch):
    assert precision("cpu") == torch.float32
    for there, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, there=there: there)
        assert precision("cuda") == expected
    with autocast("cpu"):
        assert not torch.is_autocast_enabled("cpu")
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_manifests_name_the_gpu_and_its_precision(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    assert (described("cpu"), described("cuda")) == ("cpu", "cuda (A GPU, bfloat16)")


# what stays float32


def test_the_network_multiplies_in_half_while_loss_gradients_and_weights_are_float32(half):
    model, (latents, condition) = denoiser(), data()
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    loss = diffusion_loss(model, latents, condition, BRIEF, 0, step_generator(0, 0))
    loss.backward()
    assert seen == [torch.bfloat16] and loss.dtype == torch.float32
    assert {p.grad.dtype for p in model.parameters()} == {p.dtype for p in model.parameters()} == {torch.float32}


def test_training_in_half_ends_near_training_in_float32(half, monkeypatch):
    start = denoiser().state_dict()
    in_half, metrics = train_latents(denoiser(), *data(), BRIEF)
    monkeypatch.setattr(training, "precision", lambda device: torch.float32)
    in_full, reference = train_latents(denoiser(), *data(), BRIEF)
    assert {v.dtype for v in in_half.values()} == {torch.float32}
    assert metrics["loss"] == pytest.approx(reference["loss"], rel=0.01)
    moved = apart(in_full, start)
    assert 0 < apart(in_half, in_full) < 0.5 * moved


@pytest.mark.parametrize("name", ["redcnn", "edsr", "restormer", "k-space", "fan beam"])
def test_restoration_networks_train_in_half_and_the_scanner_computes_in_float32(name, half, monkeypatch):
    scanner = FanBeam(views=24, detectors=32)
    consistency = {"k-space": KSpaceConsistency(24, 2), "fan beam": FanBeamConsistency(scanner, 24)}.get(name)
    net = RestorationConfig(net="unrolled" if consistency else name, width=4, blocks=2)
    torch.manual_seed(0)
    model = restoration_net(net, consistency)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    seen = []
    if consistency is not None:
        consistency.register_forward_hook(
            lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype, torch.is_autocast_enabled("cpu")))
        )
    images = torch.rand(4, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    loss = patch_loss(model, images, images.flip(0), 3, 24, step_generator(0, 0))
    loss.backward()
    assert loss.dtype == torch.float32 and all(p.grad.isfinite().all() for p in model.parameters())
    assert seen == ([(torch.float32, torch.float32, False)] * net.blocks if consistency else [])
    monkeypatch.setattr(training, "precision", lambda device: torch.float32)
    exact = patch_loss(model, images, images.flip(0), 3, 24, step_generator(0, 0))
    assert loss.item() != exact.item() and loss.item() == pytest.approx(exact.item(), rel=0.02)


def test_samples_are_float32_and_half_precision_moves_them_little(half, monkeypatch):
    model, condition = denoiser().eval(), data()[1]
    for guidance in (1.0, 2.0):
        sampling = SamplingConfig(images=12, steps=5, guidance=guidance)
        monkeypatch.setattr(training, "precision", lambda device: torch.bfloat16)
        drawn = sample_latents(model, condition, (8, 8), BRIEF, sampling)
        monkeypatch.setattr(training, "precision", lambda device: torch.float32)
        exact = sample_latents(model, condition, (8, 8), BRIEF, sampling)
        assert drawn.dtype == torch.float32
        assert 0 < float((drawn - exact).norm() / exact.norm()) < 0.02


class Wide(nn.Module):
    """Answers in bfloat16, `share` apart for the null condition."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, noisy, times, condition):
        """1, and a little more where nothing is asked."""
        return torch.where(condition[:, :1, None, None].isnan(), 1 + self.share, 1.0).expand_as(noisy).to(torch.bfloat16)


def test_guidance_is_arithmetic_in_float32():
    share = 2.0**-7  # the finest that bfloat16 tells from 1
    noisy, condition = torch.zeros(3, 1, 2, 2), torch.zeros(3, 2)
    out = guided_prediction(Wide(share), noisy, torch.tensor(5), condition, 1.3)
    # in bfloat16 it would be rounded to 1 or to 1 - share / 2
    torch.testing.assert_close(out, torch.full_like(noisy, 1 + share - 1.3 * share), rtol=1e-6, atol=0)
    assert guided_prediction(Wide(share), noisy, torch.tensor(5), condition, 1.0).dtype == torch.float32


def test_autoguidance_is_arithmetic_in_float32():
    class Both(nn.Module):
        forward = Autoguided.forward

    share, both, null = 2.0**-7, Both(), torch.full((1, 2), torch.nan)
    both.strong, both.weak, both.weight = Wide(share), Wide(0.0), 0.7
    out = both(torch.zeros(1, 1, 2, 2), torch.tensor([5]), null)
    torch.testing.assert_close(out, torch.full_like(out, 1 + share + 0.7 * share), rtol=1e-6, atol=0)
    assert out.dtype == torch.float32


# graphs and compiled kernels


@pytest.fixture
def graphs(monkeypatch):
    """A CPU that passes for a GPU: what stands in for graphs notes what it is asked for, and computes as ever."""
    noted = {"captured": [], "replayed": 0, "compiled": []}

    def make(model, inputs, allow_unused_input):
        original = model.forward

        def replay(*arguments):
            noted["replayed"] += 1
            return original(*arguments)

        noted["captured"].append(inputs)
        model.forward = replay

    def compile_(model, **how):
        noted["compiled"].append(how)
        model._compiled_call_impl = model._call_impl

    monkeypatch.setattr(training, "_on_gpu", lambda model: True)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make)
    monkeypatch.setattr(nn.Module, "compile", compile_)
    return noted


def test_a_training_is_captured_once_and_learns_the_same(graphs):
    reference = denoiser()
    expected, _ = fit(
        reference, lambda step, g: diffusion_loss(reference, *data(), BRIEF, step, g),
        steps=6, learning_rate=1e-3, warmup=2, checkpoint_every=0,
    )  # fmt: skip
    assert not graphs["captured"]
    model = denoiser()
    weights, _ = train_latents(model, *data(), BRIEF)
    assert list(weights) == list(expected) and all(torch.equal(weights[k], expected[k]) for k in expected)
    assert len(graphs["captured"]) == 1 and graphs["replayed"] == 6
    # the shapes of a batch, and copies of it: a graph writes its inputs
    assert [tuple(x.shape) for x in graphs["captured"][0]] == [(4, 2, 8, 8), (4,), (4, 2)]
    assert "forward" not in model.__dict__


@pytest.mark.parametrize("context", [captured, compiled])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_training_that_fails_leaves_the_model_as_it_was(graphs, monkeypatch, context, steps):
    monkeypatch.setattr(training, "_can_compile", lambda: True)
    model, (latents, condition) = denoiser(), data()
    names = list(model.state_dict())
    with contextlib.suppress(KeyError), context(model):
        for step in range(steps):
            diffusion_loss(model, latents, condition, BRIEF, step, step_generator(0, step))
        assert list(model.state_dict()) == names
        raise KeyError
    assert "forward" not in model.__dict__ and model._compiled_call_impl is None


def test_without_a_compiler_a_long_training_is_captured(graphs, monkeypatch):
    monkeypatch.setenv("CC", "")
    monkeypatch.setattr(training.shutil, "which", lambda name: None)
    model = denoiser()
    with compiled(model):
        diffusion_loss(model, *data(), BRIEF, 0, step_generator(0, 0))
    assert len(graphs["captured"]) == 1 and not graphs["compiled"]


def test_only_long_trainings_are_compiled(graphs, monkeypatch):
    monkeypatch.setattr(training, "_can_compile", lambda: True)
    monkeypatch.setattr(train_module, "fit", lambda *_, **__: ({}, {}))
    for steps, times in ((train_module.COMPILE_FROM - 1, 0), (train_module.COMPILE_FROM, 1)):
        train_latents(denoiser(), *data(), replace(BRIEF, steps=steps))
        assert len(graphs["compiled"]) == times


def test_a_cpu_knows_neither():
    model = denoiser()
    for context in (captured, compiled):
        with context(model):
            assert "forward" not in model.__dict__ and model._compiled_call_impl is None


# on a GPU


@gpu
def test_on_a_gpu_a_killed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    class KilledError(Exception):
        pass

    def run(workspace: Workspace | None = None, killed_at: int | None = None) -> dict[str, torch.Tensor]:
        model = denoiser().to(best_device())
        latents, condition = (x.to(best_device()) for x in data())

        def loss(step: int, generator: torch.Generator) -> torch.Tensor:
            if step == killed_at:
                raise KilledError
            return diffusion_loss(model, latents, condition, BRIEF, step, generator)

        with captured(model):
            return fit(model, loss, steps=60, learning_rate=1e-3, warmup=5, workspace=workspace, checkpoint_every=20)[0]

    whole, workspace = run(), Workspace(tmp_path)
    with pytest.raises(KilledError):
        run(workspace, killed_at=50)
    assert workspace.load_checkpoint()[0] == 40
    assert apart(run(workspace), whole) <= 1e-3 * apart(whole, denoiser().state_dict())


@gpu
def test_on_a_gpu_a_graph_learns_what_single_kernels_do():
    def run(context) -> dict[str, torch.Tensor]:
        model = denoiser().to(best_device())
        latents, condition = (x.to(best_device()) for x in data())
        with context(model):
            return fit(
                model, lambda step, g: diffusion_loss(model, latents, condition, BRIEF, step, g),
                steps=20, learning_rate=1e-3, warmup=5, checkpoint_every=0,
            )[0]  # fmt: skip

    graph, kernels = run(captured), run(contextlib.nullcontext)
    assert apart(graph, kernels) <= 0.05 * apart(kernels, denoiser().state_dict())

"""Our training step against a plain loop over the same model; where there is a GPU, what precision, layout and graphs are worth.

python benchmarks/training_step.py [--steps 20] [--rounds 3] [--seconds 1] [--out gpu.csv]
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from medsynth.diffusion.schedule import noise_schedule
from medsynth.diffusion.train import diffusion_loss, train_latents
from medsynth.downstream.restoration import patch_loss
from medsynth.downstream.restoration_nets import CPU_SIZES, restoration_net
from medsynth.models.conditioning import THORAX
from medsynth.models.denoiser import Denoiser
from medsynth.settings.config import DenoiserConfig, DiffusionConfig
from medsynth.training import captured, compiled, fit


def plain(model: Denoiser, latents: torch.Tensor, condition: torch.Tensor, config: DiffusionConfig) -> None:
    """The shortest loop that trains the same model on the same objective."""
    schedule = noise_schedule(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
    for _ in range(config.steps):
        rows = torch.randint(len(latents), (config.batch,))
        clean, noise = latents[rows], torch.randn(config.batch, *latents.shape[1:])
        times = torch.randint(config.timesteps, (config.batch,))
        target = schedule.get_velocity(clean, noise, times)
        loss = nn.functional.mse_loss(model(schedule.add_noise(clean, noise, times), times, condition[rows]), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@dataclass(frozen=True)
class Net:
    """A network and the shape of one batch of what it learns."""

    shape: tuple[int, ...]
    denoiser: DenoiserConfig | None = None  # without one, a restoration network

    def build(self, device: str) -> nn.Module:
        """The network, seeded, in training."""
        torch.manual_seed(0)
        model = Denoiser(self.denoiser, THORAX, self.shape[1]) if self.denoiser else restoration_net(CPU_SIZES["edsr"])
        return model.to(device).train()

    def inputs(self, device: str) -> tuple[torch.Tensor, ...]:
        """Random arguments of the network's forward pass."""
        first = torch.randn(self.shape, device=device)
        if not self.denoiser:
            return (first,)
        n = self.shape[0]
        return first, torch.randint(1000, (n,), device=device), torch.randn(n, len(THORAX), device=device)


NETS = {
    "2D, paper": Net((256, 8, 32, 32), DenoiserConfig(channels=(128, 192, 256))),
    "2D, full": Net((16, 8, 16, 16), DenoiserConfig()),
    "EDSR": Net((16, 1, 64, 64)),
    "3D": Net((64, 8, 8, 16, 16), DenoiserConfig(channels=(32, 64, 96), spatial_dims=3)),
}


@dataclass(frozen=True)
class Variant:
    """How a step is computed; each of VARIANTS changes one thing of an earlier one."""

    precision: str = "bfloat16"  # or "float32"; "default", where PyTorch convolves in TF32; "tf32", where it multiplies so too
    channels_last: bool = True
    fused: bool = True  # the optimiser: one kernel, or one for each of its operations
    sdpa: bool = False  # attention by one kernel instead of three
    run: str = "eager"  # a CUDA "graph" of the network, one of the whole "step", or a mode of torch.compile


VARIANTS = {
    "float32": Variant("float32", channels_last=False, fused=False),
    "float32, as PyTorch comes": Variant("default", channels_last=False, fused=False),
    "TF32": Variant("tf32", channels_last=False, fused=False),
    "bfloat16": Variant(channels_last=False, fused=False),
    "+ channels last": Variant(fused=False),
    "+ fused AdamW": Variant(),
    "+ one-kernel attention": Variant(sdpa=True),
    "+ CUDA graph of the network": Variant(run="graph"),
    "+ the same, contiguous": Variant(channels_last=False, run="graph"),
    "+ CUDA graph of the step": Variant(run="step"),
    "+ compile": Variant(run="default"),
    "+ compile and CUDA graphs": Variant(run="reduce-overhead"),
}


def prepared(net: Net, variant: Variant, device: str = "cuda") -> Callable[[], None]:
    """One optimiser step on a fixed batch: forward, squared error, backward, clipping, AdamW, moving average."""
    torch.backends.cudnn.allow_tf32 = variant.precision in ("default", "tf32")
    torch.backends.cuda.matmul.allow_tf32 = variant.precision == "tf32"
    model, inputs = net.build(device), net.inputs(device)
    target = torch.randn_like(inputs[0])
    flat = {4: torch.channels_last, 5: torch.channels_last_3d}
    for p in model.parameters():
        if p.ndim in flat:
            p.data = p.data.contiguous(memory_format=flat[p.ndim] if variant.channels_last else torch.contiguous_format)
    for module in model.modules():
        if variant.sdpa and hasattr(module, "use_flash_attention"):
            module.use_flash_attention = True
    parameters = list(model.parameters())
    # a graph replays its casts; a cast kept from outside of it would be a stale copy of the weights
    half = torch.autocast(torch.device(device).type, torch.bfloat16, variant.precision == "bfloat16", cache_enabled=False)
    if variant.run == "graph":
        with half:
            model = torch.cuda.make_graphed_callables(model, tuple(x.clone() for x in inputs))
    elif variant.run not in ("eager", "step"):
        model.compile(mode=variant.run)
    optimiser = torch.optim.AdamW(
        parameters, lr=1e-4, fused=variant.fused, foreach=not variant.fused, capturable=variant.run == "step"
    )
    average = EMAModel(parameters, decay=0.999, foreach=True)

    def step() -> None:
        with half:
            loss = nn.functional.mse_loss(model(*inputs), target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        average.step(parameters)

    return replayed(step) if variant.run == "step" else step


def replayed(step: Callable[[], None]) -> Callable[[], None]:
    """The step as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def seconds_per_step(step: Callable[[], None], seconds: float) -> float:
    """Mean over as many steps as fit into the given time, at least five."""
    step()
    torch.cuda.synchronize()
    began, done = time.perf_counter(), 0
    while done < 5 or time.perf_counter() - began < seconds:
        for _ in range(5):
            step()
        torch.cuda.synchronize()
        done += 5
    return (time.perf_counter() - began) / done


def ours(net: Net, steps: int, accelerated: Callable[..., Any] = captured, device: str = "cuda") -> tuple[float, float]:
    """(seconds before the eleventh step, seconds of each step after it) of the package's own loop."""
    model, (first, *others) = net.build(device), net.inputs(device)
    data, condition = torch.randn(1024, *net.shape[1:], device=device), torch.zeros(1024, len(THORAX), device=device)
    config, marks = DiffusionConfig(steps=steps, batch=len(first)), []

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        if step == 10:
            torch.cuda.synchronize()
            marks.append(time.perf_counter())
        if others:
            return diffusion_loss(model, data, condition, config, step, generator)
        return patch_loss(model, data, data, len(first), net.shape[-1], generator)

    began = time.perf_counter()
    with accelerated(model):
        fit(model, loss, steps=steps, learning_rate=1e-4, checkpoint_every=0)
    torch.cuda.synchronize()
    return marks[0] - began, (time.perf_counter() - marks[0]) / (steps - 10)


def gpu_table(name: str, seconds: float) -> pd.DataFrame:
    """Every variant of a net: seconds until the first steps are done, milliseconds a step, ratio to the first variant."""
    rows = []
    for variant, how in VARIANTS.items():
        began = time.perf_counter()
        step = prepared(NETS[name], how)
        step()
        torch.cuda.synchronize()
        ready = time.perf_counter() - began
        rows.append({"net": name, "variant": variant, "ready_s": ready, "ms": 1e3 * seconds_per_step(step, seconds)})
        del step
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()
    for variant, how in {"our loop": captured, "our loop, compiled": compiled}.items():
        ready, each = ours(NETS[name], 110, how)
        rows.append({"net": name, "variant": variant, "ready_s": ready, "ms": 1e3 * each})
    table = pd.DataFrame(rows)
    return table.assign(ratio=table.ms[0] / table.ms)


def main() -> None:
    """Time ours and the plain loop, in turn, in one process, on the CPU; then the variants on a GPU if there is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each variant on a GPU")
    parser.add_argument("--out", help="a csv file for the GPU's table")
    args = parser.parse_args()
    config = DiffusionConfig(steps=args.steps, batch=32, checkpoint_every=0)
    latents, condition = torch.randn(256, 4, 16, 16), torch.zeros(256, len(THORAX))
    model = Denoiser(DenoiserConfig(), THORAX, 4)
    ours_s, theirs = [], []
    for _ in range(args.rounds + 1):
        for loop, times in ((train_latents, ours_s), (plain, theirs)):
            start = time.perf_counter()
            loop(model, latents, condition, config)
            times.append((time.perf_counter() - start) / args.steps)
    # the first round warms the machine up; the best of the others is least disturbed
    a, b = min(ours_s[1:]), min(theirs[1:])
    print(f"ours {a:.3f} s a step, plain loop {b:.3f} s a step, ratio {a / b:.3f} ({args.rounds} rounds of {args.steps} steps)")
    if torch.cuda.is_available():
        table = pd.concat([gpu_table(name, args.seconds) for name in NETS], ignore_index=True)
        print(torch.cuda.get_device_name(), table.to_string(index=False, float_format="{:.3g}".format), sep="\n")
        if args.out:
            table.to_csv(args.out, index=False)


if __name__ == "__main__":
    main()

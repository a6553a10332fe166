"""Training of the public autoencoder."""

from __future__ import annotations

from typing import Any

import torch

from medsynth.evaluation.features import require_public
from medsynth.models.autoencoder import Autoencoder
from medsynth.pretrain.public import PublicSet
from medsynth.settings.config import AutoencoderConfig
from medsynth.store.runs import Tensors, Workspace
from medsynth.training import fit, step_generator

CROP = 64  # pixels; the network is convolutional, so crops of larger images teach it larger images


def reconstruction_loss(real: torch.Tensor, made: torch.Tensor, fourier_weight: float) -> torch.Tensor:
    """L1 in pixels plus L1 of the complex spectrum: the second weighs fine structure that the first averages away."""
    difference = (made - real).float()
    return difference.abs().mean() + fourier_weight * torch.fft.rfft2(difference, norm="ortho").abs().mean()


def autoencoder_loss(
    model: Autoencoder, real: torch.Tensor, config: AutoencoderConfig, generator: torch.Generator
) -> torch.Tensor:
    """Reconstruction from a drawn latent, plus its KL to the standard normal (Kingma & Welling 2014).

    The decoder sees latents with further noise, up to `latent_noise` of a standardised latent: a denoiser is off by as much.
    """
    mean, std = model.posterior(real)
    drawn = mean + std * torch.randn(mean.shape, generator=generator, device=real.device)
    level = config.latent_noise * torch.rand((len(real), 1, 1, 1), generator=generator, device=real.device)
    error = level * torch.randn(mean.shape, generator=generator, device=real.device)
    made = model.reconstruct(drawn + standard_scale(mean.detach().std((0, 2, 3)))[None, :, None, None] * error)
    kl = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).mean()
    return reconstruction_loss(real, made, config.fourier_weight) + config.kl_weight * kl


def standard_scale(spread: torch.Tensor) -> torch.Tensor:
    """What latents of these standard deviations (c,) are divided by: then their variances go as `spread`, and average one."""
    return (spread * spread.mean()).sqrt()


def random_crops(stores: list[torch.Tensor], weights: torch.Tensor, batch: int, generator: torch.Generator) -> torch.Tensor:
    """`batch` crops (CROP x CROP, half of them mirrored) of images drawn from stores (n, 1, h, w) uint8 with these weights."""
    device = generator.device
    counts = torch.bincount(
        torch.multinomial(weights.to(device), batch, replacement=True, generator=generator), minlength=len(stores)
    )
    crops = []
    for store, count in zip(stores, counts.tolist(), strict=True):
        if not count:
            continue
        rows = torch.randint(len(store), (count,), generator=generator, device=device)
        room = store.shape[-1] - CROP
        offset = torch.randint(room + 1, (2,), generator=generator, device=device).tolist() if room else (0, 0)
        crops.append(store[rows, :, offset[0] : offset[0] + CROP, offset[1] : offset[1] + CROP])
    out = torch.cat(crops).float() / 127.5 - 1
    mirrored = torch.rand(len(out), generator=generator, device=device) < 0.5
    return torch.where(mirrored[:, None, None, None], out.flip(-1), out)


def train_autoencoder(
    sets: dict[str, PublicSet],
    config: AutoencoderConfig,
    *,
    device: str,
    workspace: Workspace | None = None,
) -> tuple[Tensors, dict[str, Any]]:
    """(weights with latent statistics, metrics) of an autoencoder trained on public images of 64 pixels and more.

    Real images are drawn three times as often as phantoms would be: their texture is what a phantom lacks.
    """
    require_public({k: s.images for k, s in sets.items()})
    torch.manual_seed(config.seed)
    model = Autoencoder(config)
    model = model.to(device)
    stores = [torch.from_numpy(((s.images.scaled() + 1) * 127.5).round().astype("uint8")).to(device) for s in sets.values()]
    # small sets are not repeated as often as large ones are shown: weight ~ sqrt(number of images)
    weights = torch.tensor([(3.0 if s.images.people else 1.0) * len(s.images) ** 0.5 for s in sets.values()])
    model.start_from_components(random_crops(stores, weights, 2048, step_generator(config.seed, -1, torch.device(device).type)))
    state, metrics = fit(
        model,
        lambda _, generator: autoencoder_loss(model, random_crops(stores, weights, config.batch, generator), config, generator),
        steps=config.steps,
        learning_rate=config.learning_rate,
        warmup=min(500, config.steps // 10),
        weight_decay=1e-4,
        seed=config.seed,
        workspace=workspace,
        label="autoencoder",
    )
    mean, spread = latent_statistics(model, [s for s in stores if s.shape[-1] == CROP])
    state["latent_mean"], state["latent_scale"] = mean, standard_scale(spread)
    return state, metrics


@torch.no_grad()
def latent_statistics(autoencoder: Autoencoder, stores: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation per latent channel, every set weighing the same."""
    means, squares = [], []
    for store in stores:
        latents = torch.cat([autoencoder.posterior(c.float() / 127.5 - 1)[0] for c in store[:1024].split(256)]).double()
        means.append(latents.mean((0, 2, 3)))
        squares.append(latents.square().mean((0, 2, 3)))
    mean = torch.stack(means).mean(0)
    return mean.float().cpu(), (torch.stack(squares).mean(0) - mean.square()).sqrt().float().cpu()

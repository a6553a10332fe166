"""A generator whose training is differentially private per patient: public weights, trained on under DP-SGD."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from medsynth.diffusion.conditions import vocabulary_for
from medsynth.diffusion.generator import Generator, checked_conditions, sampling_for, without_images
from medsynth.diffusion.schedule import noise_schedule, objective
from medsynth.imageset import ImageSet
from medsynth.ledger import Ledger
from medsynth.models.autoencoder import Autoencoder
from medsynth.models.conditioning import drop
from medsynth.models.denoiser import Denoiser
from medsynth.models.lora import merge_adapters
from medsynth.models.weights import (
    denoiser_kind,
    latents_of,
    shipped_autoencoder,
    shipped_denoiser,
    shipped_hash,
    shipped_refiner,
)
from medsynth.privacy.dp.accountant import Steps
from medsynth.privacy.dp.central_images import GROUPS, WARM_UP, central_images, noise_for_share, public_subspace, warm_up
from medsynth.privacy.dp.distributed import assists
from medsynth.privacy.dp.noise import patient_keys, run_stream
from medsynth.privacy.dp.trainable import make_trainable
from medsynth.privacy.dp.training import PrivacyState, Rows, delta_of, fit_privately, promised
from medsynth.settings.config import DenoiserConfig, DiffusionConfig, PrivacyConfig, SamplingConfig
from medsynth.store.dependencies import code_hash
from medsynth.store.hashes import bytes_hash, tensors_hash
from medsynth.store.runs import Tensors, Workspace, load_or_train, load_tensors, run_folder, run_token, save_tensors
from medsynth.training import autocast, best_device, described

STARTS = ("public", "scratch")
_ENCODED: dict[tuple[str, str], torch.Tensor] = {}  # latents of the last set, by set and autoencoder


def train_privately(
    images: ImageSet, *, privacy: PrivacyConfig, denoiser: DenoiserConfig, diffusion: DiffusionConfig, sampling: SamplingConfig,
    ledger: Ledger, seed: int = 0, start: str = "public",
) -> Generator:  # fmt: skip
    """A generator of images (n, 1, h, w), or of stacks, that is (epsilon, delta)-DP for each patient; found again if made before.

    All else that it holds is public: autoencoder, refiner, scales, and the weights that it starts from; "scratch" has none.
    diffusion: its schedule, objective and label dropout. An infinite epsilon proves nothing. One line in the ledger.
    Within `distributed.joined` the first process alone reads for the ledger, keeps the run and returns.
    Raises ValueError where denoiser, images and public weights do not fit, and as `fit_privately` does.
    """
    if start not in STARTS:
        raise ValueError(f"start {start!r}; expected one of {STARTS}")
    autoencoder, names = shipped_autoencoder(), vocabulary_for(images)
    conditions, kind = checked_conditions(images, denoiser), denoiser_kind(images)
    public = shipped_denoiser(kind) if start == "public" else None
    if public and (public.config, public.names) != (denoiser, names):
        raise ValueError(
            f"{images.name}: the public weights have another architecture, {public.config}; train from scratch, or choose theirs"
        )
    people, number = np.unique(images.patient, return_inverse=True)
    diffusion = replace(diffusion, steps=privacy.steps, seed=seed)
    before = central_event(privacy, len(people))
    promise = promised(privacy, len(people), before)
    keys = patient_keys(images)
    _refuse_one_image_of_two(images)
    config = {"denoiser": denoiser, "diffusion": diffusion, "privacy": privacy, "names": list(names), "start": start}
    inputs = {
        "images": images.content_hash, "condition": bytes_hash(conditions.tobytes()), "code": code_hash(__name__),
        "autoencoder": tensors_hash(autoencoder.state_dict()),
    } | ({"start": shipped_hash(f"denoiser_{kind}")} if public else {})  # fmt: skip
    folder, device = run_folder("private-denoiser", config, inputs), best_device()
    run = folder.name

    def fresh() -> Denoiser:
        torch.manual_seed(seed)
        model = Denoiser(denoiser, names, autoencoder.latent_channels)
        if public:
            model.load_state_dict(public.state_dict())
        return model.to(device)

    def train(workspace: Workspace | None = None) -> tuple[Tensors, dict[str, object]]:
        model = fresh()
        make_trainable(model, privacy.trainable)
        private = PrivateRows.of(images, number, conditions, autoencoder, diffusion, privacy.draws)
        if before and workspace:
            noise = {"sigma": before[0].sigma, "randomness": privacy.randomness, "seed": run_stream(seed, run)}
            warm_up(model, _central(workspace, private, images, keys, autoencoder, **noise), replace(diffusion, **WARM_UP))
        _, state = fit_privately(
            model, lambda *asked: private.rows(model, *asked), keys=keys, config=privacy, seed=seed,
            data=run, before=before, workspace=workspace, label=f"{start}, epsilon {privacy.epsilon:g}",
        )  # fmt: skip
        merge_adapters(model)
        weights = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
        return weights, {"privacy": asdict(state.bound_to(weights))}

    if assists():
        train()  # ends in DismissedError
    with ledger.making(f"a private generator of {images.name}") as readings:
        what = f"weights of {images.name}, {privacy.trainable}, from {start}, seed {seed}, run {run_token(folder)}"
        ledger.read(images, stage="train denoiser", output=what, mechanism=promise)
        trained = load_or_train("private-denoiser", config, inputs, train, device=described(device))
    PrivacyState.read(trained.manifest["metrics"]["privacy"], str(trained.path)).check(trained.weights, str(trained.path))
    model = fresh()
    model.load_state_dict(trained.weights)
    model.role, model.people = images.role, images.people or kind == "real"
    refiner = shipped_refiner() if len(images.spatial) == 2 else None
    return Generator(
        without_images(images), model.eval().requires_grad_(False), autoencoder, refiner, diffusion,
        sampling_for(images, sampling, seed=seed), images.data_licence, tuple(readings),
    )  # fmt: skip


def central_event(privacy: PrivacyConfig, patients: int) -> tuple[Steps, ...]:
    """What central images of `privacy.central` cost, for the accountant; nothing where there are none."""
    if not privacy.central:
        return ()
    return (Steps(noise_for_share(privacy.central, privacy.epsilon, delta_of(privacy, patients)), q=1.0, steps=1),)


def _central(
    workspace: Workspace, private: PrivateRows, images: ImageSet, keys: Sequence[int], autoencoder: Autoencoder, **noise: object
) -> torch.Tensor:
    """Drawn once a run: after a kill the same are read again, for new ones would have to be paid for."""
    kept = workspace.path / "central.safetensors"
    if not kept.exists():
        subspace, clip = public_subspace(images, autoencoder)
        sizes = {"clip": clip, "patients": len(keys), "groups": GROUPS}
        found = central_images(private.latents, images.patient, keys, subspace, **sizes, **noise)
        save_tensors(kept, {"latents": found.latents})
    return load_tensors(kept)["latents"]


def _refuse_one_image_of_two(images: ImageSet) -> None:
    """ValueError where two patients have one and the same image: they are one, and what is promised to each is less than said."""
    _, first, same = np.unique(images.row_hashes, return_index=True, return_inverse=True)
    other = np.flatnonzero(images.patient != images.patient[first][same])
    # air, which many stacks end in, is nobody's
    shared = [row for row in other.tolist() if np.ptp(images.images[row]) > 0]
    if shared:
        raise ValueError(
            f"{images.name}: rows {first[same][shared[0]]} and {shared[0]} are one image of two patients; a person who counts as "
            "two is promised half as much; give both one patient number, or remove one of them"
        )


def _latents(images: ImageSet, autoencoder: Autoencoder) -> torch.Tensor:
    """Kept until another set comes: the arms of a study are trained on one, and encoding takes as long as many steps."""
    key = images.content_hash, tensors_hash(autoencoder.state_dict())
    if key not in _ENCODED:
        _ENCODED.clear()
        _ENCODED[key] = latents_of(autoencoder, torch.from_numpy(images.scaled()), batch=32)
    return _ENCODED[key]


@dataclass(frozen=True)
class PrivateRows:
    """Latents of all patients, and the rows that a patient adds to a step: each record with `draws` timesteps and noises."""

    latents: torch.Tensor  # (n, c, *spatial)
    condition: torch.Tensor  # (n, k)
    records: tuple[tuple[int, ...], ...]  # of each patient, rows of the latents
    diffusion: DiffusionConfig
    draws: int

    @classmethod
    def of(
        cls, images: ImageSet, number: np.ndarray, conditions: np.ndarray, autoencoder: Autoencoder, diffusion: DiffusionConfig,
        draws: int,
    ) -> PrivateRows:  # fmt: skip
        """From images, the number of the patient of each, and their conditions."""
        records = tuple(tuple(np.flatnonzero(number == p).tolist()) for p in range(number.max() + 1))
        return cls(_latents(images, autoencoder), torch.from_numpy(conditions), records, diffusion, draws)

    def rows(self, model: Denoiser, patients: torch.Tensor, step: int, generators: Sequence[torch.Generator]) -> Rows:
        """Rows of some patients; timesteps are stratified within each, and a condition is dropped for all draws of a record."""
        device, schedule = next(model.parameters()).device, noise_schedule(self.diffusion)
        parts = [self._of_one(p, g) for p, g in zip(patients.tolist(), generators, strict=True)]
        clean, asked, timesteps, noise = (torch.cat(column).to(device) for column in zip(*parts, strict=True))
        sizes = torch.tensor([len(part[0]) for part in parts])
        patient = torch.repeat_interleave(sizes)
        noisy, target = objective(schedule, clean, noise, timesteps)

        def losses() -> torch.Tensor:
            with autocast(device):
                return (model(noisy, timesteps, asked).float() - target).square().flatten(1).mean(1)

        return Rows(losses, patient, 1 / sizes[patient].float())

    def _of_one(self, patient: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        device = generator.device
        rows = torch.tensor(self.records[patient])
        clean = self.latents[rows].repeat_interleave(self.draws, 0)
        dropout = self.diffusion.label_dropout
        asked = self.condition[rows]
        if dropout:
            asked = drop(asked, generator, row=dropout, entry=dropout)
        n = len(clean)
        # each record takes strata from all over the schedule
        strata = torch.randperm(n, generator=generator, device=device)
        offsets = torch.rand(n, generator=generator, device=device)
        timesteps = ((strata + offsets) / n * self.diffusion.timesteps).long().clamp(max=self.diffusion.timesteps - 1)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        return clean, asked.repeat_interleave(self.draws, 0), timesteps.cpu(), noise.cpu()

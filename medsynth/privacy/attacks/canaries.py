"""Scores of patients for an audit: what the trained model knows better than the public one, or how near its release comes.

Both are calibrated by a model of public data alone: who is easy to draw is not taken for one who was trained on.
Scores are private outputs: who calls reads the images through the ledger.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial.distance import cdist

from medsynth.diffusion.schedule import noise_schedule, objective
from medsynth.evaluation.roc import Attack, membership
from medsynth.imageset import ImageSet
from medsynth.models.autoencoder import Autoencoder
from medsynth.models.denoiser import Denoiser
from medsynth.models.weights import latents_of
from medsynth.privacy.attacks.one_run import Audit, audit
from medsynth.settings.config import DiffusionConfig
from medsynth.store.dependencies import code_hash
from medsynth.store.hashes import bytes_hash, tensors_hash
from medsynth.store.runs import found_or_made
from medsynth.training import step_generator

_ROWS = 256  # whose distances to all others are held at once


class PatientScores(NamedTuple):
    """Patients (m,), ascending, and one score for each, higher for who looks trained on."""

    patient: np.ndarray
    score: np.ndarray

    @classmethod
    def of(cls, score: np.ndarray, patient: np.ndarray) -> PatientScores:
        """The mean over each patient's records; score and patient (n,)."""
        people, unit = np.unique(patient, return_inverse=True)
        return cls(people, np.bincount(unit, score) / np.bincount(unit))


def audit_patients(
    members: PatientScores, held_out: PatientScores, *, guesses: int, delta: float, seed: int, confidence: float = 0.95
) -> tuple[Audit, Attack]:
    """(what the scores prove of epsilon, how well they tell members from those left out by their coins); seed: of intervals."""
    score = np.concatenate([members.score, held_out.score])
    inside = np.arange(len(score)) < len(members.score)
    found = membership(members.score, held_out.score, member_patient=members.patient, other_patient=held_out.patient, seed=seed)
    return audit(score, inside, guesses=guesses, delta=delta, confidence=confidence), found


def loss_scores(
    images: ImageSet, condition: np.ndarray, *, trained: Denoiser, public: Denoiser, autoencoder: Autoencoder,
    diffusion: DiffusionConfig, draws: int = 32, batch: int = 64, seed: int,
) -> PatientScores:  # fmt: skip
    """White box: by how much training lowered the diffusion loss of each patient, from the public model's weights to the trained.

    condition: (n, k) float32, NaN = missing. The attacker knows images and conditions. Found again if computed before. See
    `loss_drop`.
    """
    told = {"diffusion": diffusion, "draws": draws, "seed": seed}
    key = {"images": images.content_hash, "condition": bytes_hash(condition.tobytes()), "code": code_hash(__name__), **told}
    key |= {
        name: tensors_hash(model.state_dict()) for name, model in (("trained", trained), ("public", public), ("of", autoencoder))
    }

    def drops() -> list[float]:
        latents = latents_of(autoencoder, torch.from_numpy(images.scaled()), batch=batch)
        models = {"trained": trained, "public": public, "batch": batch}
        return loss_drop(latents, torch.from_numpy(condition), **models, **told).tolist()

    return PatientScores.of(np.array(found_or_made("losses", key, drops)), images.patient)


@torch.no_grad()
def loss_drop(
    latents: torch.Tensor, condition: torch.Tensor, *, trained: Denoiser, public: Denoiser, diffusion: DiffusionConfig,
    draws: int, batch: int = 64, seed: int,
) -> np.ndarray:  # fmt: skip
    """Public minus trained squared error of each record, (n,) float64; latents (n, c, *spatial), condition (n, k).

    The mean over `draws` timesteps, one from each of as many equal parts of the schedule, each with one noise. Both models and
    all records meet the same: what a draw adds to every loss cancels, and no score depends on the order or number of records.
    Raises ValueError for models that are asked for different conditions.
    """
    if trained.names != public.names:
        raise ValueError(f"conditions {trained.names} of the trained model, {public.names} of the public one; expected the same")
    device, schedule = next(trained.parameters()).device, noise_schedule(diffusion)
    drop = np.zeros(len(latents))
    for k in range(draws):
        # drawn on the CPU, so that a GPU meets the same noise
        generator = step_generator(seed, k)
        timestep = int((k + float(torch.rand((), generator=generator))) / draws * diffusion.timesteps)
        noise = torch.randn(latents.shape[1:], generator=generator).to(device)
        for rows in np.split(np.arange(len(latents)), range(batch, len(latents), batch)):
            clean, asked = latents[rows].to(device), condition[rows].to(device)
            timesteps = torch.full((len(rows),), min(timestep, diffusion.timesteps - 1), device=device)
            noisy, target = objective(schedule, clean, noise.expand_as(clean), timesteps)
            before, after = (
                (model(noisy, timesteps, asked) - target).double().square().flatten(1) for model in (public, trained)
            )
            drop[rows] += (before - after).mean(1).cpu().numpy()
    return drop / draws


def distance_scores(
    images: ImageSet, released: ImageSet, reference: ImageSet, *, features: Callable[[ImageSet], np.ndarray]
) -> PatientScores:
    """Output only: how much nearer the release comes to each patient than as many images of a generator of public data do.

    Distance of a record to the nearest reference image minus that to the nearest released one, Euclidean in `features`, (n, d) of
    a set; the mean over a patient's records. Raises ValueError where released and reference differ in number: the nearest of more
    images is nearer.
    """
    if len(released) != len(reference) or not len(released):
        raise ValueError(
            f"{len(released)} released and {len(reference)} reference images; expected as many of each, at least one"
        )
    records = features(images)
    drop = _nearest(records, features(reference)) - _nearest(records, features(released))
    return PatientScores.of(drop, images.patient)


def _nearest(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance of each row to the nearest of y, (n,) float64, by direct differences."""
    y = np.asarray(y, dtype=np.float64)
    return np.concatenate([cdist(np.asarray(x[i : i + _ROWS], dtype=np.float64), y).min(1) for i in range(0, len(x), _ROWS)])

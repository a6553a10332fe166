"""Noisy central images: a cheap private look at what patients have in common, to warm a generator up before DP-SGD.

Li et al., "From Easy to Hard" (DP-FETA), arXiv:2504.01395: means of groups of images, with noise, are trained on first; that is
post-processing. Here a group's sum has one clipped vector per patient, and its divisor is a public constant: neither the number
of patients nor that of their records enters. What it costs is one Gaussian mechanism, composed with the steps of DP-SGD.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from medsynth.data.sources import cached_hearts, cached_thorax
from medsynth.diffusion.train import train_latents
from medsynth.imageset import ImageSet
from medsynth.models.autoencoder import Autoencoder
from medsynth.models.denoiser import Denoiser
from medsynth.models.weights import latents_of
from medsynth.privacy.dp.accountant import Steps, gaussian_mu
from medsynth.privacy.dp.noise import gaussian_noise, stream
from medsynth.settings.config import DiffusionConfig
from medsynth.store.runs import Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

_CENTRAL = 21  # purpose of the noise: DP-SGD of the same seed shares none of it

# Public constants, chosen on public phantoms
GROUPS = 8  # of patients: one central image each
DIRECTIONS = 24  # that central images may differ in
PUBLIC_PATIENTS = 200  # phantoms that say which directions these are, and how far patients lie apart
WARM_UP = {"steps": 30, "batch": 16, "learning_rate": 3e-4, "warmup": 5, "ema": 0.9}


class Subspace(NamedTuple):
    """What is public about the latents: where they lie, and the directions in which they differ.

    Noise falls on directions alone, so few of them leave the mean of few patients visible.
    """

    centre: np.ndarray  # (d,)
    directions: np.ndarray  # (k, d), orthonormal rows

    @classmethod
    def of(cls, latents: torch.Tensor, k: int) -> Subspace:
        """The mean and the first k principal components of *public* latents (n, c, *spatial).

        Raises ValueError for fewer than k + 1 latents.
        """
        rows = latents.flatten(1).double().numpy()
        if not 1 <= k < len(rows):
            raise ValueError(f"subspace of {k} directions from {len(rows)} latents; give at least {k + 1} public latents")
        centre = rows.mean(0)
        return cls(centre, np.linalg.svd(rows - centre, full_matrices=False)[2][:k])


def public_subspace(images: ImageSet, autoencoder: Autoencoder) -> tuple[Subspace, float]:
    """Directions and clip for images of this kind, from phantoms of the public population: half of their patients lie nearer."""
    drawn = {"patients": PUBLIC_PATIENTS, "population": "public", "seed": _CENTRAL}
    if len(images.spatial) == 3:
        public = cached_hearts(slices=images.spatial[0], size=images.spatial[1], **drawn)
    else:
        public = cached_thorax(size=images.spatial[0], modality=images.modality, **drawn)
    latents = latents_of(autoencoder, torch.from_numpy(public.scaled()), batch=32)
    subspace = Subspace.of(latents, DIRECTIONS)
    vectors = patient_vectors(latents, public.patient, subspace, clip=np.inf)
    return subspace, float(np.median(np.linalg.norm(vectors, axis=1)))


def noise_for_share(share: float, epsilon: float, delta: float) -> float:
    """Noise multiplier of a mechanism that takes a share of what (epsilon, delta) allows, as squares of mu add up.

    Dong et al., "Gaussian differential privacy" (arXiv:1905.02383), Corollary 3.3: mu of a composition is the root of their sum.
    """
    return 1 / (share**0.5 * gaussian_mu(epsilon, delta))


class CentralImages(NamedTuple):
    """latents float32 (groups, c, *spatial) that anybody may see, and the event that the accountant composes."""

    latents: torch.Tensor
    event: Steps


def central_images(
    latents: torch.Tensor,
    patient: np.ndarray,
    keys: Sequence[int],
    subspace: Subspace,
    *,
    clip: float,
    sigma: float,
    patients: int,
    groups: int,
    seed: int,
    randomness: str = "seeded",
) -> CentralImages:
    """Noisy means of `groups` random groups of patients, from latents (n, c, *spatial) of an autoencoder made without them.

    Each patient's mean over its records, less the public centre, is projected on the public directions and clipped to L2 norm
    `clip`. It enters the sum of one group, which the patient's own key decides, so the L2 sensitivity of all sums together is
    `clip`; the noise is N(0, (sigma clip)^2) in each direction. Divisor: patients / groups, `patients` being a *public* number,
    as that which the promise takes for public is. keys: in the order of patient numbers, as of `patient_keys`; seed: of the
    noise, another in every run. randomness: "seeded" or "secure".
    The caller leaves a line in the ledger before the reading.
    Raises ValueError for latents and patients of different lengths, and where a public constant is not positive.
    """
    if len(latents) != len(patient):
        raise ValueError(f"central images: {len(latents)} latents of {len(patient)} patient numbers; expected one each")
    for name, value in (("clip", clip), ("sigma", sigma), ("patients", patients), ("groups", groups)):
        if not value > 0:
            raise ValueError(f"central images: {name} is {value}; expected a positive public constant")
    vectors = patient_vectors(latents, patient, subspace, clip=clip)
    shape, source = (groups, vectors.shape[1]), {"randomness": randomness, "seed": stream(seed, _CENTRAL), "step": 0}
    noise = gaussian_noise(shape, sigma * clip, dtype=torch.float64, **source).numpy()
    sums = grouped_sums(vectors, group_of(keys, groups), groups) + noise
    means = subspace.centre + sums / (patients / groups) @ subspace.directions
    return CentralImages(torch.from_numpy(means).float().view(groups, *latents.shape[1:]), Steps(sigma=sigma, q=1.0, steps=1))


def patient_vectors(latents: torch.Tensor, patient: np.ndarray, subspace: Subspace, *, clip: float) -> np.ndarray:
    """Vectors (p, k) of L2 norm at most `clip`, in the order of patient numbers: one a patient, however many records it has.

    A patient whose latents are not finite counts as zero.
    """
    people, unit = np.unique(patient, return_inverse=True)
    coordinates = (latents.flatten(1).double().numpy() - subspace.centre) @ subspace.directions.T
    sums = np.zeros((len(people), coordinates.shape[1]))
    np.add.at(sums, unit, coordinates)
    means = sums / np.bincount(unit)[:, None]
    means[~np.isfinite(means).all(1)] = 0
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    return means * np.minimum(1, clip / np.maximum(norms, np.finfo(float).tiny))


def group_of(keys: Sequence[int], groups: int) -> np.ndarray:
    """The group (p,) of each patient: a function of their key alone, so nobody else's coming or going moves it."""
    return np.asarray(keys) % groups


def grouped_sums(vectors: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """Sums (groups, k) of vectors (p, k), each in its group (p,)."""
    sums = np.zeros((groups, vectors.shape[1]))
    np.add.at(sums, group, vectors)
    return sums


def warm_up(
    model: Denoiser, central: torch.Tensor, diffusion: DiffusionConfig, workspace: Workspace | None = None
) -> dict[str, float]:
    """Train `model` in place on central latents alone, asked for by no condition; its metrics. It reads nothing private.

    The weights are post-processing of the central images, and as private as these.
    """
    condition = torch.full((len(central), len(model.names)), torch.nan)
    weights, metrics = train_latents(model, central, condition, diffusion, workspace)
    model.load_state_dict(weights)
    return metrics

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medsynth.models.denoiser import Denoiser
from medsynth.models.weights import shipped_autoencoder
from medsynth.phantoms.heart.heart import cardiac
from medsynth.privacy.dp import central_images as module
from medsynth.privacy.dp.accountant import Steps, epsilon_of, gaussian_mu
from medsynth.privacy.dp.central_images import (
    Subspace,
    central_images,
    group_of,
    grouped_sums,
    noise_for_share,
    patient_vectors,
    public_subspace,
    warm_up,
)
from medsynth.privacy.dp.noise import gaussian_noise, patient_keys
from medsynth.settings.config import DenoiserConfig, DiffusionConfig

SHAPE = (2, 3, 4, 4)  # c, d, h, w
DIM = math.prod(SHAPE)


def public(n: int = 40) -> torch.Tensor:
    return torch.randn((n, *SHAPE), generator=torch.Generator().manual_seed(9)) + 3


SUBSPACE = Subspace.of(public(), 12)


def everything(d: int = DIM) -> Subspace:
    return Subspace(np.zeros(d), np.eye(d))


def records(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((n, *SHAPE), generator=torch.Generator().manual_seed(seed)) * 4


def central(latents: torch.Tensor, patient: np.ndarray, **changes):
    options = {"clip": 2.0, "sigma": 1e-9, "patients": 50, "groups": 1, "seed": 0} | changes
    return central_images(latents, patient, np.unique(patient).tolist(), options.pop("subspace", SUBSPACE), **options)


@given(
    counts=st.lists(st.integers(1, 25), min_size=1, max_size=6), clip=st.sampled_from([0.1, 1.0, 100.0]), seed=st.integers(0, 99)
)
@settings(max_examples=40, deadline=None)
def test_a_patient_is_one_vector_within_the_clip_however_many_records_it_has(counts, clip, seed):
    patient = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)) * 5, counts))
    latents = records(len(patient), seed)
    vectors = patient_vectors(latents, patient, SUBSPACE, clip=clip)
    assert len(vectors) == len(counts) and (np.linalg.norm(vectors, axis=1) <= clip * (1 + 1e-9)).all()
    for p, vector in zip(5 * np.arange(len(counts)), vectors, strict=True):
        mean = latents[torch.from_numpy(patient == p)].double().mean(0).flatten().numpy()
        plain = SUBSPACE.directions @ (mean - SUBSPACE.centre)
        np.testing.assert_allclose(vector, plain * min(1, clip / np.linalg.norm(plain)), atol=1e-9)


def largest_change(latents: torch.Tensor, patient: np.ndarray, **changes) -> float:
    """The most by which one patient changes the divisor times all central images together."""
    options = {"groups": 4, "sigma": 1e-12} | changes
    both = []
    for p in np.unique(patient):
        keep = patient != p
        pair = [central(x, q, **options) for x, q in ((latents, patient), (latents[torch.from_numpy(keep)], patient[keep]))]
        both.append(float((pair[0].latents - pair[1].latents).double().norm()) * 50 / 4)
    return max(both)


def test_a_patient_changes_all_sums_together_by_at_most_the_clip(monkeypatch):
    patient = np.repeat(np.arange(20), np.arange(1, 21))
    latents = records(len(patient))
    assert 1.9 < largest_change(latents, patient) <= 2 + 1e-4

    def without_clipping(*arguments, clip):
        return patient_vectors(*arguments, clip=1e9)

    monkeypatch.setattr(module, "patient_vectors", without_clipping)
    assert largest_change(latents, patient) > 2.5


def test_division_by_a_private_count_is_caught(monkeypatch):
    # patients clipped to one and the same vector, so that a private count would show in no other way
    patient = np.arange(20)
    latents = torch.full((20, *SHAPE), 5.0)
    assert largest_change(latents, patient, groups=4) <= 2 + 1e-4
    assert central(latents, patient).latents.equal(central(latents, patient).latents)

    def divided_by_a_private_count(vectors, group, groups):
        # undoes the public divisor
        return grouped_sums(vectors, group, groups) / np.maximum(np.bincount(group, minlength=groups), 1)[:, None] * 50 / groups

    def gain() -> float:
        """How much farther from the public centre the image of 20 patients is than that of 10 of them."""
        centre = torch.from_numpy(SUBSPACE.centre).float()
        far = [float((central(latents[:n], patient[:n]).latents[0].flatten() - centre).norm()) for n in (20, 10)]
        return far[0] / far[1]

    assert gain() == pytest.approx(2, rel=1e-4)
    monkeypatch.setattr(module, "grouped_sums", divided_by_a_private_count)
    assert gain() != pytest.approx(2, rel=1e-4)


def test_central_images_of_equal_patients_are_known():
    vector = torch.arange(DIM).float().view(1, *SHAPE) / DIM
    found = central(vector.expand(7, -1, -1, -1, -1), np.arange(7), subspace=everything(), clip=1e6, patients=10, sigma=1e-12)
    torch.testing.assert_close(found.latents, 0.7 * vector, rtol=1e-5, atol=1e-5)


def test_noise_has_the_stated_spread_and_lies_in_public_directions_alone():
    # patients at the public centre, so that there is nothing but noise
    latents = torch.from_numpy(SUBSPACE.centre).float().view(1, *SHAPE).expand(30, -1, -1, -1, -1)
    found = central(latents, np.arange(30), sigma=3.0, clip=2.0, groups=400, patients=800)
    noise = found.latents.double().flatten(1).numpy() - SUBSPACE.centre
    within = noise @ SUBSPACE.directions.T
    assert within.std() == pytest.approx(3.0 * 2.0 / (800 / 400), rel=0.05)
    np.testing.assert_allclose(within @ SUBSPACE.directions, noise, atol=1e-5)
    other = central(latents, np.arange(30), sigma=3.0, groups=400, patients=800, seed=1)
    assert (
        abs(np.corrcoef(noise.ravel(), other.latents.double().flatten(1).numpy().ravel() - np.tile(SUBSPACE.centre, 400))[0, 1])
        < 0.1
    )


def test_secure_noise_is_never_the_same_and_seeded_noise_is_not_that_of_training():
    latents, patient = records(4), np.arange(4)
    secure = [central(latents, patient, sigma=1.0, randomness="secure").latents for _ in range(2)]
    seeded = [central(latents, patient, sigma=1.0).latents for _ in range(2)]
    assert not secure[0].equal(secure[1]) and seeded[0].equal(seeded[1])
    noise = (seeded[0] - central(latents, patient).latents).double().flatten().numpy() @ SUBSPACE.directions.T
    of_training = gaussian_noise((12,), 1.0, randomness="seeded", seed=0, step=0, dtype=torch.float64).numpy()
    assert abs(np.corrcoef(noise, of_training)[0, 1]) < 0.8


def test_a_patients_group_is_its_own_business():
    images = cardiac(patients=60, slices=8, size=32)
    everyone = group_of(patient_keys(images), 4)
    without = images.of_patients(np.unique(images.patient)[3:])
    # another number for each, as a folder without the first patients gives
    moved = replace(without, patient=np.unique(without.patient, return_inverse=True)[1])
    assert group_of(patient_keys(moved), 4).tolist() == everyone[3:].tolist()
    assert np.bincount(everyone, minlength=4).min() > 5


def test_without_one_patient_the_sums_move_by_the_clip_at_most():
    """Also where patients are numbered anew: with places for keys all changed groups, and the sums moved by many clips."""
    images = cardiac(patients=40, slices=8, size=32)
    latents = torch.tensor(images.images).flatten(1)
    plane = Subspace(np.zeros(latents.shape[1]), np.eye(latents.shape[1])[3500:3564])
    left = images.of_patients(np.unique(images.patient)[1:])
    left = replace(left, patient=np.unique(left.patient, return_inverse=True)[1])

    def sums(some, rows):
        vectors = patient_vectors(rows, some.patient, plane, clip=0.5)
        return grouped_sums(vectors, group_of(patient_keys(some), 8), 8)

    moved = np.linalg.norm(sums(images, latents) - sums(left, latents[2:]))
    assert 0 < moved <= 0.5 + 1e-9


def test_each_patient_enters_one_group():
    vectors = np.random.default_rng(0).normal(size=(30, 5))
    group = group_of(np.random.default_rng(1).integers(2**60, size=30), 4)
    np.testing.assert_allclose(grouped_sums(vectors, group, 4), [vectors[group == g].sum(0) for g in range(4)])


def test_a_patient_that_is_not_finite_counts_as_zero():
    latents, patient = records(6), np.array([0, 0, 1, 1, 2, 2])
    latents[3, 0, 0, 0, 0] = torch.nan
    left = central(latents[[0, 1, 4, 5]], patient[[0, 1, 4, 5]])
    torch.testing.assert_close(central(latents, patient).latents, left.latents)


def test_the_event_is_one_gaussian_mechanism_of_known_epsilon():
    event = central(records(4), np.arange(4), sigma=5 * math.sqrt(2)).event
    assert event == Steps(sigma=5 * math.sqrt(2), q=1.0, steps=1)
    assert epsilon_of([event], 1e-5) == pytest.approx(0.4970, abs=1e-3)
    # composed with DP-SGD the warm-up has a price, and a small one
    training = Steps(sigma=1.5, q=0.04, steps=200)
    alone, both = epsilon_of([training], 1e-5), epsilon_of([event, training], 1e-5)
    assert 0.02 < both - alone < 0.3


def test_the_subspace_holds_the_public_spread():
    latents = public()
    full = Subspace.of(latents, 39)
    rows = latents.flatten(1).double().numpy()
    np.testing.assert_allclose((rows - full.centre) @ full.directions.T @ full.directions + full.centre, rows, atol=1e-8)
    np.testing.assert_allclose(SUBSPACE.directions @ SUBSPACE.directions.T, np.eye(12), atol=1e-10)
    with pytest.raises(ValueError, match="give at least 41 public latents"):
        Subspace.of(latents, 40)


def test_what_makes_no_sense_is_refused_by_name():
    for change, told in (({"clip": 0.0}, "clip is 0"), ({"sigma": -1.0}, "sigma is -1"), ({"patients": 0}, "patients is 0")):
        with pytest.raises(ValueError, match=told):
            central(records(4), np.arange(4), **change)
    with pytest.raises(ValueError, match="4 latents of 3 patient numbers"):
        central(records(4), np.arange(3))


def test_a_warmed_up_denoiser_denoises_central_images_better():
    torch.manual_seed(0)
    config = DenoiserConfig(channels=(16, 16), attention=(False, False), head_channels=16)
    model = Denoiser(config, ("age",), 2)
    found = central_images(
        torch.ones(20, 2, 8, 8), np.arange(20), range(20), everything(128), clip=100.0, sigma=0.01, patients=20, groups=2, seed=0
    )

    def error() -> float:
        # pure noise: the velocity to predict is minus the clean latent
        with torch.no_grad():
            noise = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
            wanted = model(noise, torch.tensor([999, 999]), torch.full((2, 1), torch.nan))
        return float((wanted + found.latents).square().mean())

    before = error()
    metrics = warm_up(model, found.latents, DiffusionConfig(steps=60, batch=16, learning_rate=3e-3, warmup=5, ema=0.8))
    assert error() < 0.5 * before and metrics


def test_a_share_of_the_budget_is_a_share_of_the_squares_of_mu():
    sigma = noise_for_share(0.25, 10.0, 1e-6)
    rest = (gaussian_mu(10.0, 1e-6) ** 2 - sigma**-2) ** -0.5
    assert epsilon_of([Steps(sigma, 1.0, 1), Steps(rest, 1.0, 1)], 1e-6) == pytest.approx(10.0, abs=0.05)
    assert noise_for_share(0.01, 10.0, 1e-6) == pytest.approx(5 * sigma)


def test_directions_and_clip_come_from_public_phantoms_of_the_same_grid(monkeypatch, shipped, cache):
    drawn = []
    monkeypatch.setattr(module, "PUBLIC_PATIENTS", 16)
    monkeypatch.setattr(module, "cached_hearts", lambda **how: (drawn.append(how), cardiac(**how))[1])
    hearts = cardiac(patients=2, slices=8, size=32, population="private", seed=3)
    subspace, clip = public_subspace(hearts, shipped_autoencoder())
    assert subspace.directions.shape == (module.DIRECTIONS, len(subspace.centre)) and clip > 0
    assert drawn == [{"patients": 16, "population": "public", "seed": 21, "slices": 8, "size": 32}]

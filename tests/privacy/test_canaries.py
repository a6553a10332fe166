"""Scores of patients against loops, and against models that are known to remember, or not to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from medsynth.diffusion.schedule import noise_schedule, objective
from medsynth.models.autoencoder import Autoencoder
from medsynth.models.denoiser import Denoiser
from medsynth.privacy.attacks.canaries import PatientScores, audit_patients, distance_scores, loss_drop, loss_scores
from medsynth.privacy.attacks.one_run import split_by_coins
from medsynth.settings.config import DiffusionConfig
from medsynth.training import step_generator

DIFFUSION = DiffusionConfig(steps=1, timesteps=100, prediction="epsilon")


class Remembers(nn.Module):
    """The denoiser without any error on the latents it holds (n, d), which has learned them by heart."""

    names = ("age",)

    def __init__(self, latents: torch.Tensor) -> None:
        super().__init__()
        self.known = nn.Parameter(latents.clone())
        self.register_buffer("bars", noise_schedule(DIFFUSION).alphas_cumprod)

    def forward(self, noisy, timesteps, condition):
        bar = self.bars[timesteps][:, None]
        square = ((noisy[:, None] - bar[..., None].sqrt() * self.known) ** 2).sum(-1)
        expected = torch.softmax(-square / (2 * (1 - bar)), 1) @ self.known
        return (noisy - bar.sqrt() * expected) / (1 - bar).sqrt()


def latents(n, seed, d=6):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32))


def unasked(n):
    return torch.full((n, 1), torch.nan)


def drop(x, trained, public, **changes):
    options = {"diffusion": DIFFUSION, "draws": 5, "batch": 4, "seed": 0} | changes
    return loss_drop(x, unasked(len(x)), trained=trained, public=public, **options)


def test_the_drop_is_that_of_a_loop_over_records_and_draws():
    x, trained, public = latents(7, 0), Remembers(latents(5, 1)), Remembers(latents(4, 2))
    expected, seen = np.zeros(7), []
    for k in range(5):
        generator = step_generator(0, k)
        timestep = int((k + torch.rand((), generator=generator).item()) * 20)
        seen.append(timestep)
        noise = torch.randn(6, generator=generator)
        for i, record in enumerate(x):
            noisy, target = objective(noise_schedule(DIFFUSION), record[None], noise[None], torch.tensor([timestep]))
            error = [((m(noisy, torch.tensor([timestep]), unasked(1)) - target) ** 2).mean().item() for m in (public, trained)]
            expected[i] += (error[0] - error[1]) / 5
    assert [t // 20 for t in seen] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(drop(x, trained, public), expected, rtol=1e-4, atol=1e-6)


def test_no_score_depends_on_order_batch_or_company():
    x, trained, public = latents(9, 0), Remembers(latents(5, 1)), Remembers(latents(4, 2))
    here = drop(x, trained, public)
    order = np.random.default_rng(0).permutation(9)
    np.testing.assert_allclose(drop(x[order], trained, public, batch=9), here[order], atol=1e-5)
    np.testing.assert_allclose(drop(x[2:3], trained, public), here[2:3], atol=1e-5)
    assert np.abs(drop(x, trained, public, seed=1) - here).max() > 1e-3


def test_a_model_that_learned_nothing_tells_nothing_and_one_by_heart_all():
    members, others, unseen = (latents(40, seed, d=40) for seed in (3, 4, 6))
    public = Remembers(latents(40, 5, d=40))
    assert (drop(members, public, public) == 0).all()
    trained = Remembers(members)
    # swapped models turn the sign
    np.testing.assert_allclose(drop(members, trained, public), -drop(members, public, trained), atol=1e-6)
    scores = [PatientScores.of(drop(x, trained, public, draws=8), np.arange(40)) for x in (members, others)]
    audited, attack = audit_patients(*scores, guesses=80, delta=1e-5, seed=0)
    assert attack.auc.low > 0.95 and attack.auc.n == 80
    assert (audited.canaries, audited.guesses) == (80, 80) and audited.correct >= 76
    assert 1 < audited.lower.any_mechanism < audited.ceiling.any_mechanism + 1e-9
    # a fair model in the same place: members and others are strangers to it
    scores = [PatientScores.of(drop(x, Remembers(unseen), public), np.arange(40)) for x in (members, others)]
    audited, attack = audit_patients(*scores, guesses=80, delta=1e-5, seed=0)
    assert attack.auc.low < 0.5 < attack.auc.high and audited.lower.any_mechanism < 0.3


def test_the_score_of_a_patient_is_the_mean_over_its_records():
    found = PatientScores.of(np.array([1.0, 5.0, 3.0, 2.0]), np.array([7, 2, 7, 7]))
    assert found.patient.tolist() == [2, 7] and found.score.tolist() == [5.0, 2.0]


@pytest.mark.parametrize("shape", [(1, 32, 32), (1, 8, 32, 32)])
def test_images_and_volumes_are_scored_patient_by_patient(make_set, tiny, shape):
    images = make_set(n=4, shape=shape)
    torch.manual_seed(0)
    autoencoder = Autoencoder(tiny.autoencoder).eval()
    config = replace(tiny.denoiser, spatial_dims=len(shape) - 1)
    public, trained = (Denoiser(config, ("age",), 4).eval() for _ in range(2))
    for parameter in trained.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    condition = np.array([[50], [np.nan], [60], [70]], dtype=np.float32)
    options = {"autoencoder": autoencoder, "diffusion": tiny.diffusion, "draws": 2, "seed": 0}
    found = loss_scores(images, condition, trained=trained, public=public, **options)
    assert found.patient.tolist() == [0, 1] and np.isfinite(found.score).all() and (found.score != 0).all()
    zero = loss_scores(images, condition, trained=public, public=public, **options)
    assert (zero.score == 0).all()
    # what is known of a patient is used
    other = loss_scores(images, condition + np.float32(30), trained=trained, public=public, **options)
    assert (other.score != found.score).all()


def test_models_of_different_conditions_are_not_compared(tiny):
    with pytest.raises(ValueError, match="of the public one; expected the same"):
        drop(latents(2, 0), *(Denoiser(tiny.denoiser, (name,), 4) for name in ("age", "sex")))


# output only


def values(images):
    """One feature: the mean of an image."""
    return images.images.reshape(len(images), -1).mean(1, dtype=np.float64)[:, None]


def of_values(make_set, means, patient=None):
    means = np.asarray(means, dtype=np.float32)
    pixels = np.broadcast_to(means[:, None, None, None], (len(means), 1, 2, 2))
    patient = np.arange(len(means)) if patient is None else np.array(patient)
    return make_set(n=len(means), images=pixels, patient=patient, split=None, attributes=make_set(n=len(means)).attributes)


def test_distances_to_release_and_reference_are_known(make_set):
    images = of_values(make_set, [0.125, 0.5, 0.75], [4, 4, 1])
    released, reference = of_values(make_set, [0.0, 0.75]), of_values(make_set, [0.25, 1.0])
    found = distance_scores(images, released, reference, features=values)
    # nearest reference minus nearest released: 0.125 - 0.125, 0.25 - 0.25, 0.25 - 0
    assert found.patient.tolist() == [1, 4]
    np.testing.assert_allclose(found.score, [0.25, 0.0], atol=1e-7)
    np.testing.assert_allclose(distance_scores(images, released, released, features=values).score, 0)
    with pytest.raises(ValueError, match="2 released and 1 reference images"):
        distance_scores(images, released, reference.select([0]), features=values)


def test_a_release_of_copies_is_caught_and_one_of_strangers_is_not(make_set):
    def pixels(images):
        return images.images.reshape(len(images), -1)

    members, others = split_by_coins(make_set(n=400, shape=(1, 4, 4)), seed=0)
    reference, strangers = (make_set(n=len(members), shape=(1, 4, 4), seed=seed) for seed in (1, 2))
    noise = np.random.default_rng(3).normal(scale=0.1, size=members.images.shape).astype(np.float32)
    copies = members.with_images(np.clip(members.images + noise, 0, 1))
    audits = {}
    for name, released in {"copies": copies, "strangers": strangers}.items():
        scores = [distance_scores(x, released, reference, features=pixels) for x in (members, others)]
        assert scores[0].patient.tolist() == np.unique(members.patient).tolist()
        audits[name] = audit_patients(*scores, guesses=200, delta=1e-5, seed=0)
    caught, attack = audits["copies"]
    assert attack.auc.value > 0.99 and caught.canaries == 200 and caught.lower.any_mechanism > 2.5
    missed, attack = audits["strangers"]
    assert attack.auc.low < 0.5 < attack.auc.high and missed.lower.any_mechanism < 0.2

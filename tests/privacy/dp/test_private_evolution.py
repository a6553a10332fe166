from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medsynth.diffusion.conditions import Conditions
from medsynth.imageset import ImageSet
from medsynth.language.vocabulary import HEART
from medsynth.ledger import Ledger
from medsynth.models.autoencoder import Autoencoder
from medsynth.models.denoiser import Denoiser
from medsynth.phantoms.heart.heart import cardiac
from medsynth.phantoms.heart.people import PUBLIC_SCANNER, draw_person, random_key
from medsynth.phantoms.heart.simulator import Heart, HeartSimulator
from medsynth.privacy.dp import private_evolution
from medsynth.privacy.dp.accountant import gaussian_epsilon
from medsynth.privacy.dp.private_evolution import (
    DiffusionSimulator,
    EvolutionConfig,
    Latent,
    evolve,
    learned_features,
    nearest_distances,
    nearest_votes,
    noisy_histogram,
    patient_votes,
    random_votes,
    resampled,
    stack_features,
    usual_votes,
    voting_sigma,
)
from medsynth.settings.config import AutoencoderConfig, DenoiserConfig, DiffusionConfig, SamplingConfig

SMALL = EvolutionConfig(rounds=4, candidates=60, samples=50, neighbours=1, threshold=2.0, strengths=(0.8, 0.06))


def images_of(points: np.ndarray, patient: np.ndarray, role: str = "public") -> ImageSet:
    pixels = np.clip(points, 0, 1).reshape(len(points), 1, 1, 2)
    return ImageSet(images=pixels, patient=patient, unit="1", range=(0, 1), name="points", role=role, origin="phantom")


class Points:
    """A simulator of images with two pixels."""

    def first(self, n, rng):
        return list(rng.random((n, 2)))

    def vary(self, candidates, strength, rng):
        return [np.clip(c + 0.4 * strength * rng.standard_normal(2), 0, 1) for c in candidates]

    def render(self, candidates):
        return images_of(np.array(candidates), np.arange(len(candidates)))


def pixels(images: ImageSet) -> np.ndarray:
    return images.images.reshape(len(images), -1).astype(float)


def people(n: int, records: int = 2, at: tuple[float, float] = (0.8, 0.2)) -> ImageSet:
    points = np.random.default_rng(1).normal(at, 0.03, (n * records, 2))
    return images_of(points, np.repeat(np.arange(n), records), "private")


def run(private: ImageSet, folder, *, epsilon: float = 10.0, config: EvolutionConfig = SMALL, **options):
    return evolve(private, Points(), pixels, epsilon=epsilon, delta=1e-6, config=config, ledger=Ledger(folder), **options)


def distance_to(private: ImageSet, candidates) -> float:
    return float(np.linalg.norm(np.array(candidates) - pixels(private).mean(0), axis=1).mean())


@given(seed=st.integers(0, 10**6), records=st.lists(st.integers(1, 30), min_size=1, max_size=8), neighbours=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_a_patient_weighs_one_however_many_records_it_has(seed, records, neighbours):
    rng = np.random.default_rng(seed)
    patient = rng.permutation(np.repeat(np.arange(len(records)) * 7 + 3, records))
    for ballot in (nearest_votes, random_votes):
        votes = ballot(rng.random((len(patient), 9)), neighbours, rng)
        assert (votes.sum(1) == neighbours).all() and set(np.unique(votes)) <= {0, 1}
        assert np.linalg.norm(patient_votes(votes, patient), axis=1) == pytest.approx(1)


def test_a_patient_without_votes_weighs_nothing():
    assert patient_votes(np.zeros((3, 4)), np.array([0, 0, 1])).tolist() == [[0] * 4] * 2


def largest_change(fold, seed: int = 0) -> float:
    """The most that one patient changes the sum of votes, over people of 1 to 12 records."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(12), np.arange(1, 13))
    votes = nearest_votes(nearest_distances(rng.random((len(patient), 2)), rng.random((20, 2)), np.arange(20)), 3, rng)
    everyone = fold(votes, patient).sum(0)
    return max(np.linalg.norm(everyone - fold(votes[patient != p], patient[patient != p]).sum(0)) for p in range(12))


def test_a_patient_changes_the_histogram_by_at_most_one_and_unscaled_votes_are_caught():
    assert largest_change(patient_votes) <= 1 + 1e-12

    def one_vote_per_record(votes, patient):
        return votes

    def scaled_per_record(votes, patient):
        return votes / np.linalg.norm(votes, axis=1, keepdims=True)

    assert largest_change(one_vote_per_record) > 5 and largest_change(scaled_per_record) > 3


def test_one_patient_more_changes_what_is_counted_in_a_run_by_at_most_one(tmp_path, monkeypatch):
    private = people(40, records=6)
    fewer = private.of_patients(range(1, 40))

    def change() -> float:
        # the same seed draws the same candidates and the same noise
        first = [run(images, tmp_path).histograms[0] for images in (private, fewer)]
        return float(np.linalg.norm(first[0] - first[1]))

    # noise is another for another set: here it has to be one, so that the votes are all that differs
    monkeypatch.setattr(private_evolution, "run_stream", lambda seed, run: seed)
    assert 0.9 < change() <= 1 + 1e-9
    monkeypatch.setattr(private_evolution, "patient_votes", lambda votes, patient: votes)
    assert change() > 2


def noise_in(private: ImageSet, folder) -> tuple[float, float]:
    """(sd of what a run adds to the votes of each bin, sigma that it states)."""
    start = list(np.random.default_rng(3).random((800, 2)))
    found = run(private, folder, start=start, config=replace(SMALL, rounds=1))
    distances = nearest_distances(pixels(private), np.array(start), np.arange(len(start)))
    exact = patient_votes(nearest_votes(distances, 1, np.random.default_rng()), private.patient).sum(0)
    return float((found.histograms[0] - exact).std()), found.sigma


def test_each_bin_gets_noise_of_the_stated_sigma_and_its_omission_is_caught(tmp_path, monkeypatch):
    sd, sigma = noise_in(people(30), tmp_path)
    assert sd == pytest.approx(sigma, rel=0.1)
    monkeypatch.setattr(private_evolution, "noisy_histogram", lambda votes, *_, **__: votes.sum(0))
    sd, sigma = noise_in(people(30), tmp_path)
    assert sd != pytest.approx(sigma, rel=0.1)


def test_secure_noise_is_never_the_same_and_the_record_says_so(tmp_path):
    runs = [run(people(30), tmp_path, config=replace(SMALL, rounds=1, randomness="secure")) for _ in range(2)]
    assert runs[0].mechanism.randomness == "secure" and not np.array_equal(runs[0].histograms[0], runs[1].histograms[0])
    assert run(people(30), tmp_path).mechanism.randomness == "seeded"


def test_noise_differs_between_rounds_and_seeds(tmp_path):
    a, b = (run(people(30), tmp_path, config=replace(SMALL, seed=seed)).histograms for seed in (0, 1))
    assert abs(np.corrcoef(a[0], b[0])[0, 1]) < 0.5 and abs(np.corrcoef(a[0], a[1])[0, 1]) < 0.5


@pytest.mark.parametrize(("rounds", "epsilon"), [(1, 0.4970), (5, 1.1994), (20, 2.5944)])
def test_sigma_of_known_epsilons(rounds, epsilon):
    assert voting_sigma(epsilon, 1e-5, rounds) == pytest.approx(5 * math.sqrt(2), rel=1e-4)


@pytest.mark.parametrize(("epsilon", "mu"), [(1, 0.2681), (10, 2.0004)])
def test_sigma_is_the_root_of_the_rounds_over_mu(epsilon, mu):
    assert voting_sigma(epsilon, 1e-5, 7) == pytest.approx(math.sqrt(7) / mu, rel=3e-4)


@given(epsilon=st.floats(0.1, 20), delta=st.sampled_from([1e-4, 1e-6, 1e-8]), rounds=st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_the_votes_of_all_rounds_never_cost_more_than_epsilon(epsilon, delta, rounds):
    spent = gaussian_epsilon(math.sqrt(rounds) / voting_sigma(epsilon, delta, rounds), delta)
    assert spent <= epsilon * (1 + 1e-6) and spent == pytest.approx(epsilon, rel=1e-3)


def test_distances_are_to_the_nearest_image_of_a_candidate():
    mine, theirs = np.array([[0.0, 0], [2, 0]]), np.array([[1.0, 0], [3, 0], [0, 1], [2, 2]])
    assert nearest_distances(mine, theirs, np.array([0, 0, 1, 2])).tolist() == [[1, 1, 8], [1, 5, 4]]


def test_without_noise_the_nearest_candidates_are_picked():
    distances = np.array([[0.1, 5, 9], [0.2, 4, 9], [8, 0.3, 9], [0.1, 7, 9]])
    votes = patient_votes(nearest_votes(distances, 1, np.random.default_rng(0)), np.arange(4))
    histogram = noisy_histogram(votes, 0.0, 0, seed=0, randomness="seeded")
    assert histogram.tolist() == [3, 1, 0]
    picks = resampled(histogram, np.ones(3), 8, 0.0, np.random.default_rng(0))
    assert np.bincount(picks, minlength=3).tolist() == [6, 2, 0]


@given(st.lists(st.floats(-3, 5), min_size=1, max_size=30), st.integers(1, 60), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_picks_are_in_proportion_to_what_is_above_the_threshold_over_the_usual(counts, n, seed):
    histogram = np.array(counts)
    usual = np.random.default_rng(seed).integers(1, 9, len(counts))
    picked = np.bincount(resampled(histogram, usual, n, 1.0, np.random.default_rng(seed)), minlength=len(counts))
    mass = np.maximum(histogram - 1, 0) / (usual / usual.mean() + 0.5)
    share = mass / mass.sum() if mass.any() else np.full(len(mass), 1 / len(mass))
    assert picked.sum() == n and (np.abs(picked - n * share) < 1 + 1e-6).all()


def test_usual_votes_are_those_of_the_other_candidates():
    # two images of the first candidate; the second is nearest to all, the last to none
    theirs, candidate = np.array([[0.0], [0.2], [1.0], [1.7], [9.0]]), np.array([0, 0, 1, 2, 3])
    assert usual_votes(theirs, candidate, 1, np.random.default_rng(0)).tolist() == [0, 2, 2, 0]


def spread_after(private: ImageSet, folder, monkeypatch, usual) -> float:
    monkeypatch.setattr(private_evolution, "voting_sigma", lambda *_: 1e-9)
    monkeypatch.setattr(private_evolution, "usual_votes", usual)
    config = EvolutionConfig(rounds=6, candidates=150, samples=150, neighbours=10, strengths=(0.05, 0.05))
    return float(np.array(run(private, folder, config=config).generations[-1]).std(0).mean())


def test_variety_stays_where_candidates_have_become_like_the_patients(tmp_path, monkeypatch):
    # patients everywhere: the first generation is already right
    private = images_of(np.random.default_rng(1).random((400, 2)), np.arange(400), "private")
    right = spread_after(private, tmp_path, monkeypatch, usual_votes)
    without = spread_after(private, tmp_path, monkeypatch, lambda theirs, candidate, *_: np.ones(candidate.max() + 1))
    assert right == pytest.approx(12**-0.5, rel=0.12) and without < right - 0.005


def test_without_noise_generations_come_closer_while_random_votes_do_not(tmp_path, monkeypatch):
    monkeypatch.setattr(private_evolution, "voting_sigma", lambda *_: 1e-9)
    private = people(40)
    voted = [distance_to(private, g) for g in run(private, tmp_path).generations]
    blind = [distance_to(private, g) for g in run(private, tmp_path, votes=random_votes).generations]
    assert voted[0] == blind[0] and voted[-1] < 0.15 * voted[0]
    assert (np.diff(voted[1:]) < 0).all() and blind[-1] > 0.7 * blind[0]


def test_at_a_moderate_epsilon_votes_beat_random_votes(tmp_path):
    private = people(100)
    voted, blind = (run(private, tmp_path, votes=votes).generations[-1] for votes in (nearest_votes, random_votes))
    assert distance_to(private, voted) < 0.4 * distance_to(private, blind)


def test_the_line_in_the_ledger_stands_before_the_first_look(tmp_path):
    private, ledger, looks = people(30), Ledger(tmp_path), []

    def features(images: ImageSet) -> np.ndarray:
        looks.append((images.role, len(ledger.entries())))
        return pixels(images)

    found = evolve(private, Points(), features, epsilon=3.0, delta=1e-6, config=SMALL, ledger=ledger)
    assert looks[0] == ("private", 1) and [role for role, _ in looks[1:]] == ["public"] * SMALL.rounds
    (line,) = ledger.entries()
    assert line.mechanism == found.mechanism and line.patients == 30 and line.stage == "private evolution"
    said = found.mechanism
    assert (said.name, said.unit, said.epsilon, said.delta, said.steps) == ("gaussian mechanism", "patient", 3.0, 1e-6, 4)
    assert said.sigma == found.sigma == voting_sigma(3.0, 1e-6, 4)


def test_samples_are_synthetic_and_as_private_as_what_was_read(tmp_path):
    found = run(people(30), tmp_path)
    assert (found.samples.role, found.samples.origin, found.samples.patients) == ("private", "synthetic", SMALL.samples)
    assert [len(g) for g in found.generations] == [60] * 4 + [50] and [len(h) for h in found.histograms] == [60] * 4
    again = run(people(30), tmp_path)
    assert again.samples.content_hash == found.samples.content_hash


def test_what_makes_no_sense_is_refused_by_name(tmp_path):
    for change, told in (({"rounds": 0}, "rounds is 0"), ({"neighbours": 60}, "neighbours is 60; expected 1 to 59"),
                         ({"strengths": (0.5, 0.0)}, "strengths")):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            replace(SMALL, **change)
    with pytest.raises(ValueError, match="delta"):
        evolve(people(30), Points(), pixels, epsilon=1.0, delta=0.1, config=SMALL, ledger=Ledger(tmp_path))
    with pytest.raises(ValueError, match="epsilon"):
        run(people(30), tmp_path, epsilon=0.0)
    assert Ledger(tmp_path).entries() == []


class MeanAndMost:
    """An extractor of two numbers."""

    name, dim = "mean and most", 2

    def __call__(self, images: ImageSet, *, batch: int = 256) -> np.ndarray:
        flat = images.images.reshape(len(images), -1)
        return np.stack([flat.mean(1), flat.max(1)], 1).astype(float)


def test_stack_features_are_of_every_so_manieth_plane_and_of_grey_levels():
    volumes = np.random.default_rng(0).random((3, 1, 4, 32, 32), dtype=np.float32)
    stacks = ImageSet(images=volumes, patient=np.array([4, 4, 7]), unit="1", range=(0, 1), name="stacks")
    found = stack_features(MeanAndMost(), every=2)(stacks)
    planes = np.stack([volumes[:, 0, ::2].mean((2, 3)), volumes[:, 0, ::2].max((2, 3))], 2)
    np.testing.assert_allclose(found[:, :4], np.concatenate([planes.mean(1), planes.std(1)], 1), rtol=1e-5)
    quantiles = [np.quantile(v, private_evolution.LEVELS) for v in volumes]
    np.testing.assert_allclose(found[:, 4:20], quantiles, rtol=1e-5)
    np.testing.assert_allclose(
        found[:, 36:], volumes[:, 0].mean(1).reshape(3, 16, 2, 16, 2).mean((2, 4)).reshape(3, -1), rtol=1e-5
    )
    # each image by itself, and padding is no grey level
    padded = stacks.with_images(np.concatenate([volumes, np.zeros_like(volumes)], 2))
    np.testing.assert_allclose(
        stack_features(MeanAndMost())(padded)[:, 4:], stack_features(MeanAndMost())(stacks)[:, 4:], rtol=1e-5
    )
    np.testing.assert_allclose(stack_features(MeanAndMost(), every=2)(stacks.select([2]))[0], found[2], rtol=1e-5)


HEARTS = HeartSimulator(slices=8, size=32)


def test_a_public_person_in_the_public_scanner_is_the_phantom_itself():
    phantom = cardiac(patients=2, slices=8, size=32, seed=3)
    hearts = [
        Heart(draw_person("public", 3, i), PUBLIC_SCANNER,
              int(np.random.default_rng(random_key("public", 3, i, 1)).integers(2**63)), 5)
        for i in range(2)
    ]  # fmt: skip
    drawn = HEARTS.render(hearts)
    pd.testing.assert_frame_equal(drawn.attributes[list(phantom.attributes)], phantom.attributes)
    # all but the noise is the same
    assert 0 < np.abs(drawn.images - phantom.images).mean() < 0.02
    assert (drawn.role, drawn.origin, drawn.people, drawn.patient.tolist()) == ("public", "phantom", False, [0, 0, 1, 1])
    assert set(HEART) <= set(drawn.attributes)


def test_hearts_vary_as_much_as_the_strength_says():
    first = HEARTS.first(60, np.random.default_rng(0))

    def kept(strength: float) -> float:
        varied = HEARTS.vary(first, strength, np.random.default_rng(1))
        assert not {h.body for h in first} & {h.body for h in varied} and not {h.noise for h in first} & {h.noise for h in varied}
        values = [lambda h: h.scanner.blood, lambda h: h.scanner.blur, lambda h: h.person.lvedv, lambda h: h.person.angle]
        same = [value(a) == value(b) for a, b in zip(first, varied, strict=True) for value in values]
        return float(np.mean(same))

    assert kept(1e-12) == 1 and kept(1.0) < 0.05
    assert 0.12 < kept(0.8) < 0.32 and 0.88 < kept(0.06) < 0.98


def test_anatomy_is_redrawn_as_a_whole_and_every_varied_heart_can_be_drawn():
    first = HEARTS.first(25, np.random.default_rng(4))
    varied = HEARTS.vary(first, 0.5, np.random.default_rng(5))
    for old, new in zip(first, varied, strict=True):
        same = [getattr(old.person, key) == getattr(new.person, key) for key in ("age", "bmi", "lvedv", "wall", "length")]
        assert all(same) or not any(same)
    images = HEARTS.render(varied)
    assert len(images) == 50 and np.isfinite(images.attributes["lvef"]).all()
    # independent of threads
    assert HeartSimulator(slices=8, size=32, jobs=2).render(varied[:4]).content_hash == HEARTS.render(varied[:4]).content_hash


def test_what_others_have_spreads_by_crossover():
    first = [h._replace(scanner=PUBLIC_SCANNER) for h in HEARTS.first(40, np.random.default_rng(0))]
    share = {}
    for crossover in (0.0, 0.5, 1.0):
        varied = HeartSimulator(slices=8, size=32, crossover=crossover).vary(first, 1.0, np.random.default_rng(1))
        share[crossover] = np.mean([h.scanner.blood == PUBLIC_SCANNER.blood for h in varied])
    assert share[0.0] == 0 and share[1.0] == 1 and 0.2 < share[0.5] < 0.8


def test_learned_features_find_parameters_from_images_of_others():
    features = learned_features(stack_features(MeanAndMost()), HEARTS, n=60, ridge=30.0)
    hearts = HEARTS.first(40, np.random.default_rng(99))
    found, true = features(HEARTS.render(hearts)), np.repeat(HEARTS.table(hearts), 2, axis=0)
    r = [np.corrcoef(found[:, k], true[:, k])[0, 1] for k in range(true.shape[1])]
    assert true.shape == (80, 15) and r[3] > 0.8 and r[5] > 0.6  # noise and blur


DIFFUSION = DiffusionConfig(steps=1, timesteps=200)
SAMPLING = SamplingConfig(images=4, steps=8, batch=3)


def diffuser(**changes) -> DiffusionSimulator:
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderConfig(channels=(16,), latent_channels=2)).eval()
    model = Denoiser(
        DenoiserConfig(channels=(16, 16), attention=(False, False), head_channels=16, spatial_dims=3), HEART, 2
    ).eval()
    values = np.full((3, len(HEART)), np.nan, np.float32)
    values[:, 0] = (100, 150, 200)
    conditions = Conditions(values, HEART, pd.DataFrame(index=range(3)), "asked for", **changes)
    like = cardiac(patients=1, slices=8, size=32)
    return DiffusionSimulator(model, autoencoder, DIFFUSION, SAMPLING, conditions, like)


def test_a_diffusion_model_evolves_stacks_and_small_strengths_change_little(tmp_path):
    simulator = diffuser()
    start = simulator.of_images(cardiac(patients=4, slices=8, size=32))
    near, far = (simulator.vary(start, s, np.random.default_rng(0)) for s in (0.02, 0.9))
    moved = [np.mean([float((a.latent - b.latent).abs().mean()) for a, b in zip(start, g, strict=True)]) for g in (near, far)]
    assert 0 < moved[0] < 0.25 * moved[1]
    assert all(np.array_equal(a.condition, b.condition, equal_nan=True) for a, b in zip(start, near, strict=True))
    again = simulator.vary(start, 0.02, np.random.default_rng(0))
    assert all(torch.equal(a.latent, b.latent) for a, b in zip(near, again, strict=True))

    private = cardiac(patients=5, slices=8, size=32, population="private")
    config = EvolutionConfig(rounds=1, candidates=4, samples=3, neighbours=1)
    options = {"epsilon": 5.0, "delta": 1e-6, "config": config, "ledger": Ledger(tmp_path)}
    found = evolve(private, simulator, stack_features(MeanAndMost()), **options)
    assert found.samples.images.shape == (3, 1, 8, 32, 32) and found.samples.role == "private"
    assert set(found.samples.attributes["lvedv"]) <= {100, 150, 200} and isinstance(found.generations[0][0], Latent)


def test_a_diffusion_model_takes_over_for_the_last_rounds_at_the_same_price(tmp_path):
    private = cardiac(patients=5, slices=8, size=32, population="private")
    config = EvolutionConfig(rounds=3, candidates=6, samples=3, neighbours=1, later=2)
    options = {"epsilon": 5.0, "delta": 1e-6, "config": config, "ledger": Ledger(tmp_path)}
    found = evolve(private, HeartSimulator(slices=8, size=32), stack_features(MeanAndMost()), **options, then=diffuser())
    # each heart of the second generation is two images, filled and emptied, which go on by themselves
    assert [type(g[0]) for g in found.generations] == [Heart, Latent, Latent, Latent]
    assert [len(g) for g in found.generations] == [6, 12, 6, 3] and [len(h) for h in found.histograms] == [6, 12, 6]
    assert found.sigma == pytest.approx(private_evolution.voting_sigma(5.0, 1e-6, 3)) and found.samples.images.shape[0] == 3
    with pytest.raises(ValueError, match="later is 0; expected 1 to inf"):
        replace(config, later=0)


def test_a_diffusion_model_that_saw_private_images_is_no_simulator():
    with pytest.raises(ValueError, match="give public ones"):
        diffuser(private=True)
    simulator = diffuser()
    simulator.denoiser.role = "private"
    with pytest.raises(ValueError, match="give public ones"):
        replace(simulator)

"""Private Evolution: differentially private images without training, from the votes of patients on public candidates.

Lin et al., arXiv:2305.15560, algorithm 1; with simulators arXiv:2502.05505. In each round every private patient votes for the
candidates nearest to its images. Noisy votes decide which have offspring, and offspring differ less from round to round.
Candidates are public, so the noisy votes are all that is learned of patients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import cdist

from medsynth.diffusion.conditions import Conditions, conditions_of
from medsynth.diffusion.redraw import vary_by_diffusion
from medsynth.diffusion.sample import sample_latents
from medsynth.evaluation.features import Extractor
from medsynth.imageset import ImageSet
from medsynth.ledger import Ledger
from medsynth.mechanism import Mechanism
from medsynth.models.autoencoder import Autoencoder
from medsynth.models.denoiser import Denoiser
from medsynth.models.weights import decoded, latents_of
from medsynth.phantoms.heart.simulator import HeartSimulator
from medsynth.privacy.dp.accountant import checked_delta, gaussian_mu
from medsynth.privacy.dp.noise import gaussian_noise, run_stream, stream
from medsynth.settings.config import DiffusionConfig, SamplingConfig
from medsynth.store.hashes import bytes_hash, json_hash

SMOOTHING = 0.5  # of usual votes, in their mean: a candidate that none votes for is no chance to take
BLOCKS, LEVELS = 16, np.linspace(0.03, 0.97, 16)  # of grey levels
_VOTING = 20  # purpose of the noise: no mechanism shares it with another
Features = Callable[[ImageSet], np.ndarray]  # (n, d) of n images; fixed beforehand, or fitted on public images
# squared distances (n, m) of n private images to m candidates, neighbours, rng -> votes (n, m), not scaled
Votes = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


class Simulator(Protocol):
    """What makes candidates: a public program or a public model. A candidate is whatever it can draw an image of."""

    def first(self, n: int, rng: np.random.Generator) -> Sequence[Any]:
        """n candidates that know nothing of the private images."""

    def vary(self, candidates: Sequence[Any], strength: float, rng: np.random.Generator) -> Sequence[Any]:
        """One variation of each; strength 1 leaves nothing of them, 0 everything."""

    def render(self, candidates: Sequence[Any]) -> ImageSet:
        """Their images, one or more of each; `patient` is the candidate's place in the sequence, rising."""


@dataclass(frozen=True)
class EvolutionConfig:
    """Public constants of a Private Evolution; chosen on public phantoms with another scanner and other people."""

    rounds: int = 5
    candidates: int = 600
    samples: int = 600  # of the last generation, which is released
    neighbours: int = 60  # candidates that an image votes for: the noise is that of one, the signal grows with their root
    threshold: float = 1.0  # in standard deviations of the noise: what is below may be noise alone
    strengths: tuple[float, float] = (0.8, 0.2)  # of the first and the last variation, in between geometric
    later: int = 2  # last rounds, of which a second simulator takes care where there is one
    seed: int = 0
    randomness: str = "seeded"  # of the noise, or "secure"

    def __post_init__(self) -> None:
        highest = {"rounds": math.inf, "samples": math.inf, "neighbours": self.candidates - 1, "later": math.inf}
        for key, high in highest.items():
            if not 1 <= (value := getattr(self, key)) <= high:
                raise ValueError(f"private evolution: {key} is {value}; expected 1 to {high}")
        if not all(0 < s <= 1 for s in self.strengths):
            raise ValueError(f"private evolution: strengths {self.strengths}; expected numbers above 0, at most 1")

    def rng(self, *key: int) -> np.random.Generator:
        """Randomness of one purpose in one round, stateless."""
        return np.random.default_rng([self.seed, *key])


class Evolution(NamedTuple):
    """What a Private Evolution releases. All of it covered by `mechanism`, the generations as well."""

    samples: ImageSet
    mechanism: Mechanism
    sigma: float  # of the noise in each bin of each histogram, whose sensitivity is 1
    generations: list[Sequence[Any]]  # candidates of round 0, 1, ...; the last are those of `samples`
    histograms: list[np.ndarray]  # noisy votes (m,) of each round


def voting_sigma(epsilon: float, delta: float, rounds: int) -> float:
    """Noise of `rounds` histograms of sensitivity 1 that are (epsilon, delta)-DP together: sqrt(T) / mu.

    T Gaussian mechanisms of mu_t = 1 / sigma are one of mu = sqrt(T) / sigma (Dong et al., arXiv:1905.02383, corollary 3.3).
    """
    return math.sqrt(rounds) / gaussian_mu(epsilon, delta)


def evolve(
    private: ImageSet,
    simulator: Simulator,
    features: Features,
    *,
    epsilon: float,
    delta: float,
    config: EvolutionConfig,
    ledger: Ledger,
    votes: Votes | None = None,
    start: Sequence[Any] | None = None,
    then: DiffusionSimulator | None = None,
    label: str = "private evolution",
) -> Evolution:
    """Images like `private` that are (epsilon, delta)-DP per patient (add or remove); the number of patients is public.

    votes: `nearest_votes` by default; `random_votes` is the control. start: candidates of round 0, of public images or of what
    was released before. then: takes the images over for the last `config.later` rounds; what all rounds cost is the same.
    label: which evolution the ledger's line is of. Unless randomness is "secure", who knows the seed can take off the noise.
    Raises ValueError for an epsilon or delta that means nothing.
    """
    mechanism = recorded(private, epsilon=epsilon, delta=delta, config=config, ledger=ledger, label=label)
    sigma = mechanism.sigma
    told = {"set": private.content_hash, "mechanism": asdict(mechanism), "config": asdict(config), "label": label}
    noise = {"seed": run_stream(config.seed, json_hash(told)), "randomness": config.randomness}
    mine = features(private)
    generations, histograms = [simulator.first(config.candidates, config.rng(0, 0)) if start is None else start], []
    for t, strength in enumerate(np.geomspace(*config.strengths, config.rounds)):
        images = simulator.render(generations[-1])
        if then and t == max(0, config.rounds - config.later):
            simulator, generations[-1] = then, then.of_images(images)
            images = simulator.render(generations[-1])
        theirs = features(images)
        distances = nearest_distances(mine, theirs, images.patient)
        ballot = (votes or nearest_votes)(distances, config.neighbours, config.rng(t, 1))
        histograms.append(noisy_histogram(patient_votes(ballot, private.patient), sigma, t, **noise))
        wanted = config.samples if t == config.rounds - 1 else config.candidates
        usual = usual_votes(theirs, images.patient, config.neighbours, config.rng(t, 5))
        picks = resampled(histograms[-1], usual, wanted, config.threshold * sigma, config.rng(t, 3))
        generations.append(simulator.vary([generations[-1][i] for i in picks], float(strength), config.rng(t, 4)))
    samples = simulator.render(generations[-1])
    said = {"role": private.role, "people": private.people or samples.people, "name": f"{private.name}-evolved"}
    return Evolution(replace(samples, origin="synthetic", **said), mechanism, sigma, generations, histograms)


def recorded(
    private: ImageSet, *, epsilon: float, delta: float, config: EvolutionConfig, ledger: Ledger, label: str
) -> Mechanism:
    """What an evolution proves, after its line in the ledger."""
    sigma = voting_sigma(epsilon, checked_delta(delta, private.patients), config.rounds)
    bound = {"unit": "patient", "epsilon": epsilon, "delta": delta, "accountant": "gaussian", "steps": config.rounds}
    mechanism = Mechanism("gaussian mechanism", **bound, sigma=sigma, randomness=config.randomness)
    output = f"samples and votes like {private.name}, {label}, seed {config.seed}"
    ledger.read(private, stage="private evolution", mechanism=mechanism, output=output)
    return mechanism


def nearest_distances(mine: np.ndarray, theirs: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Squared distances (n, m) of features (n, d) to the nearest image of each candidate; candidate (k,) rises."""
    return np.minimum.reduceat(cdist(mine, theirs, "sqeuclidean"), np.flatnonzero(np.diff(candidate, prepend=-1)), axis=1)


def nearest_votes(distances: np.ndarray, neighbours: int, rng: np.random.Generator) -> np.ndarray:
    """One vote (n, m) of each image for each of its nearest candidates."""
    return _marked(np.argpartition(distances, neighbours - 1, axis=1)[:, :neighbours], distances.shape)


def random_votes(distances: np.ndarray, neighbours: int, rng: np.random.Generator) -> np.ndarray:
    """As many votes as of `nearest_votes`, for candidates drawn blindly: the control that learns nothing of the patients.

    An image's own distances decide what is drawn for it, and not its place: so nobody's absence changes the votes of others.
    """
    base = int(rng.integers(2**32))
    drawn = (np.random.default_rng([base, int(bytes_hash(row.tobytes())[:15], 16)]).random(len(row)) for row in distances)
    return _marked(np.stack(list(drawn)).argsort(1)[:, :neighbours], distances.shape)


def _marked(columns: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    votes = np.zeros(shape)
    np.put_along_axis(votes, columns, 1, axis=1)
    return votes


def patient_votes(votes: np.ndarray, patient: np.ndarray) -> np.ndarray:
    """Votes (patients, m): the sum of each patient's votes (n, m), scaled to L2 norm 1, whatever its number of images."""
    people, unit = np.unique(patient, return_inverse=True)
    sums = (unit == np.arange(len(people))[:, None]) @ votes
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.divide(sums, norms, out=np.zeros_like(sums), where=norms > 0)


def noisy_histogram(votes: np.ndarray, sigma: float, t: int, *, seed: int, randomness: str) -> np.ndarray:
    """Sum (m,) of the patients' scaled votes (patients, m), whose L2 sensitivity is 1, with noise N(0, sigma^2) in each bin.

    t: the round; seed: of this evolution alone.
    """
    said = {"randomness": randomness, "seed": stream(seed, _VOTING), "step": t, "dtype": torch.float64}
    return votes.sum(0) + gaussian_noise((votes.shape[1],), sigma, **said).numpy()


def usual_votes(theirs: np.ndarray, candidate: np.ndarray, neighbours: int, rng: np.random.Generator) -> np.ndarray:
    """Votes (m,) that candidates, with features (k, d), have from one another: what patients would give who are as they are.

    In many dimensions a few points are everybody's nearest (Radovanović et al., JMLR 11:2487, 2010), whoever votes.
    """
    between = nearest_distances(theirs, theirs, candidate)
    between[np.arange(len(candidate)), candidate] = np.inf
    return patient_votes(nearest_votes(between, neighbours, rng), candidate).sum(0)


def resampled(histogram: np.ndarray, usual: np.ndarray, n: int, threshold: float, rng: np.random.Generator) -> np.ndarray:
    """Indices (n,) in proportion to what of the counts is above the threshold, over the usual counts; all alike if none is.

    A ratio of densities, so where candidates have become like the patients, none is preferred and their variety stays. Drawn
    systematically: a bin of share p is picked n p times, rounded up or down.
    """
    mass = np.maximum(histogram - threshold, 0) / (usual / usual.mean() + SMOOTHING)
    edges = np.cumsum(mass if mass.any() else np.ones_like(mass))
    return np.minimum(np.searchsorted(edges, (np.arange(n) + rng.random()) / n * edges[-1], side="right"), len(mass) - 1)


def stack_features(extractor: Extractor, *, every: int = 3) -> Features:
    """Features of stacks (n, 1, d, h, w): mean and spread over every so manieth plane of the extractor's, and of grey levels.

    Grey levels: quantiles of the pixels, log quantiles of the Laplacian's size (noise, sharpness), and means of 16 x 16 blocks.
    """

    def features(stacks: ImageSet) -> np.ndarray:
        planes = stacks.images[:, 0, ::every]
        n, depth, *plane = planes.shape
        said = {"unit": stacks.unit, "range": stacks.range, "name": stacks.name, "role": stacks.role}
        flat = ImageSet(images=planes.reshape(-1, 1, *plane), patient=np.repeat(stacks.patient, depth), **said)
        found = extractor(flat).reshape(n, depth, -1)
        return np.concatenate([found.mean(1), found.std(1), [_grey_levels(v, stacks.range[0]) for v in stacks.images[:, 0]]], 1)

    return features


def _grey_levels(volume: np.ndarray, empty: float) -> np.ndarray:
    planes = volume[volume.max((1, 2)) > empty]
    edges = planes[:, 1:-1, 1:-1] - (planes[:, :-2, 1:-1] + planes[:, 2:, 1:-1] + planes[:, 1:-1, :-2] + planes[:, 1:-1, 2:]) / 4
    rows, columns = (np.arange(BLOCKS) * side // BLOCKS for side in planes.shape[1:])
    blocks = np.add.reduceat(np.add.reduceat(planes.mean(0), rows, 0), columns, 1) / (planes[0].size / BLOCKS**2)
    sharp = np.log(np.quantile(np.abs(edges), LEVELS) + 1e-4 * np.ptp(planes))
    return np.concatenate([np.quantile(planes, LEVELS), sharp, blocks.ravel()])


def learned_features(base: Features, simulator: HeartSimulator, *, n: int = 600, ridge: float = 100.0, seed: int = 0) -> Features:
    """What of images tells a simulator's parameters: their linear prediction from `base`, learned on n public candidates.

    Distances between base features are of what differs between patients anyway; those between predictions count a parameter as
    much as images show of it (Fearnhead & Prangle, JRSS B 74:419, 2012: semi-automatic summary statistics).
    """
    hearts = simulator.first(n, np.random.default_rng([seed, n]))
    images = simulator.render(hearts)
    parameters = simulator.table(hearts)[images.patient]
    x = base(images)
    centre, spread = x.mean(0), x.std(0) + 1e-6
    x, y = (x - centre) / spread, (parameters - parameters.mean(0)) / parameters.std(0)
    weights = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y) / spread[:, None]
    return lambda others: (base(others) - centre) @ weights


class Latent(NamedTuple):
    """One candidate of the `DiffusionSimulator`: one image."""

    latent: torch.Tensor  # (c, *spatial)
    condition: np.ndarray  # (k,), NaN = missing


@dataclass(frozen=True)
class DiffusionSimulator:
    """A public diffusion model as a simulator: samples, and variations of them by SDEdit (Meng et al., arXiv:2108.01073)."""

    denoiser: Denoiser
    autoencoder: Autoencoder
    diffusion: DiffusionConfig
    sampling: SamplingConfig
    conditions: Conditions  # what candidates are asked for
    like: ImageSet  # the unit, range, shape and spacing of the images

    def __post_init__(self) -> None:
        if self.conditions.private or self.denoiser.role != "public":
            raise ValueError("private evolution: the denoiser or its conditions saw private images; give public ones")

    def first(self, n: int, rng: np.random.Generator) -> list[Latent]:
        """Samples for n rows of the conditions."""
        asked = self.conditions.values[rng.integers(len(self.conditions), size=n)]
        spatial = (*self.like.spatial[:-2], *(side // self.autoencoder.factor for side in self.like.spatial[-2:]))
        sampling = replace(self.sampling, seed=int(rng.integers(2**31)))
        latents = sample_latents(self.denoiser, torch.from_numpy(asked), spatial, self.diffusion, sampling)
        return list(map(Latent, latents, asked))

    def of_images(self, images: ImageSet) -> list[Latent]:
        """Images as candidates, so that a diffusion model goes on from what the `HeartSimulator` has found."""
        latents = latents_of(self.autoencoder, torch.from_numpy(images.scaled()))
        return list(map(Latent, latents, conditions_of(images, self.denoiser.names)))

    def vary(self, candidates: Sequence[Latent], strength: float, rng: np.random.Generator) -> list[Latent]:
        """Each with the noise of the timestep at this share of the schedule, and denoised again."""
        latents, condition = torch.stack([c.latent for c in candidates]), np.stack([c.condition for c in candidates])
        sampling = replace(self.sampling, seed=int(rng.integers(2**31)))
        varied = vary_by_diffusion(self.denoiser, latents, torch.from_numpy(condition), strength, self.diffusion, sampling)
        return list(map(Latent, varied, condition))

    @torch.no_grad()
    def render(self, candidates: Sequence[Latent]) -> ImageSet:
        """Decoded latents, one image of each candidate, with the conditions it was asked for as attributes."""
        scaled = decoded(self.autoencoder, torch.stack([c.latent for c in candidates]), batch=self.sampling.batch)
        table = pd.DataFrame(np.stack([c.condition for c in candidates]), columns=list(self.denoiser.names), dtype=float)
        said = {"role": "public", "origin": "synthetic", "people": self.denoiser.people, "name": "diffused", "attributes": table}
        rows = self.like.select(np.zeros(len(candidates), int))
        return rows.with_images(rows.unscaled(scaled.numpy()), patient=np.arange(len(candidates)), **said)

"""What private training is compared with at the same epsilon: Private Evolutions, which train nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace

import numpy as np

from medsynth.diffusion.conditions import public_marginals
from medsynth.diffusion.generator import Generator
from medsynth.evaluation.features import Extractor
from medsynth.imageset import ImageSet
from medsynth.ledger import Ledger
from medsynth.models.weights import shipped_hash
from medsynth.phantoms.heart.simulator import HeartSimulator
from medsynth.privacy.dp import private_evolution as pe
from medsynth.privacy.dp.accountant import default_delta
from medsynth.settings.config import DPConfig
from medsynth.store.dependencies import code_hash
from medsynth.store.hashes import json_hash
from medsynth.store.runs import cache_folder

METHODS = ("private evolution", "evolution then diffusion", "random votes")  # the last is the control of the first


def evolutions(
    members: ImageSet, public: Generator, extractor: Extractor, *, config: DPConfig, samples: int, seeds: Iterable[int],
    ledger: Ledger,
) -> dict[tuple[str, float, int], ImageSet]:  # fmt: skip
    """(method, epsilon, seed) -> `samples` hearts at both phases; found again if made before. A line in the ledger for each.

    Candidates are of the `HeartSimulator`; in "evolution then diffusion" the last rounds vary them by the model of `public`,
    as Lin et al. (arXiv:2502.05505) begin with a simulator.
    """
    made = {}
    for seed in seeds:
        settings = pe.EvolutionConfig(
            candidates=config.candidates, samples=samples, neighbours=-(-config.candidates // 10), seed=seed
        )
        simulator = HeartSimulator(slices=config.slices, size=config.size)
        features = _remembering(pe.learned_features(pe.stack_features(extractor), simulator, n=config.candidates))
        for epsilon in config.epsilons:
            how = {"epsilon": epsilon, "delta": default_delta(members.patients), "config": settings}
            # a diffusion model's candidate is one image, and a simulator's two
            diffused = {"then": _diffuser(public, simulator, seed), "config": replace(settings, samples=2 * samples)}
            changes = dict(zip(METHODS, ({}, diffused, {"votes": pe.random_votes}), strict=True))
            for method, changed in changes.items():
                made[method, epsilon, seed] = _kept(method, members, simulator, features, extractor, ledger, **how | changed)
    return made


def _diffuser(public: Generator, simulator: HeartSimulator, seed: int) -> pe.DiffusionSimulator:
    # an image goes on with its own conditions, which are released; no candidate begins with these
    conditions = public_marginals(public.like, public.names, 1, seed=seed)
    like = simulator.render(simulator.first(1, np.random.default_rng(seed)))
    return pe.DiffusionSimulator(public.model, public.autoencoder, public.diffusion, public.sampling, conditions, like)


def _remembering(features: pe.Features) -> pe.Features:
    """Features of private images are needed in every evolution, and those of candidates once."""
    known: dict[str, object] = {}

    def remembered(images: ImageSet) -> object:
        if images.origin == "synthetic":
            return features(images)
        if (key := images.content_hash) not in known:
            known[key] = features(images)
        return known[key]

    return remembered


def _kept(
    method: str, members: ImageSet, simulator: HeartSimulator, features: pe.Features, extractor: Extractor, ledger: Ledger,
    **how: object,
) -> ImageSet:  # fmt: skip
    told = {key: how[key] for key in ("epsilon", "delta", "config")}
    weights = [shipped_hash(name) for name in ("autoencoder", "denoiser_heart")] if "then" in how else []
    key = {"method": method, "members": members.content_hash, "extractor": extractor.name, "weights": weights, **told}
    key |= {"config": asdict(told["config"]), "grid": (simulator.slices, simulator.size), "code": code_hash(__name__)}
    path = cache_folder() / "sets" / f"evolved-{json_hash(key)}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        pe.recorded(members, **told, ledger=ledger, label=method)
    else:
        pe.evolve(members, simulator, features, **how, ledger=ledger, label=method).samples.save(path)
    return ImageSet.load(path)

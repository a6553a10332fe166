"""Attacks on generators of hearts, as a study has rows for them: the audit of what was promised, and what is remembered."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from medsynth.diffusion.conditions import asked_for, conditions_of
from medsynth.diffusion.generator import Generator
from medsynth.evaluation.statistics import Estimate
from medsynth.imageset import ImageSet
from medsynth.ledger import Ledger
from medsynth.models.weights import reconstruct
from medsynth.privacy.attacks.canaries import PatientScores, audit_patients, distance_scores, loss_scores
from medsynth.privacy.attacks.halves import one_image_each
from medsynth.privacy.attacks.memorisation import Memorisation, copied, copied_by_others, copy_threshold
from medsynth.privacy.dp.accountant import default_delta
from medsynth.privacy.dp.fine_tuning import train_privately
from medsynth.settings.config import DenoiserConfig, DiffusionConfig, DPConfig, SamplingConfig

Features = Callable[[ImageSet], np.ndarray]
Key = tuple[str, float, int]  # arm, epsilon, seed
Audits = dict[tuple[str, float, str], dict[str, Estimate | float]]  # arm, epsilon, attack -> rows
LINES = {"any_mechanism": "any mechanism", "gaussian": "Gaussian", "independent": "independent"}


def audited(
    made: Generator, public: Generator, members: ImageSet, canaries: ImageSet, *, released: ImageSet, reference: ImageSet,
    features: Features, config: DPConfig, seed: int,
) -> dict[str, dict[str, Estimate | float]]:  # fmt: skip
    """Attack -> lower bounds on epsilon, their ceilings, the accountant's epsilon, AUC and TPR; patients as in `first_patients`.

    members were trained on, canaries were left out by their coins. The white box knows the weights of both generators, the other
    sees `released`, and as many images that are drawn from public weights, `reference`. Both sets are read through the ledger by
    who calls.
    """
    inside, outside = first_patients(members, canaries, config.audited_patients)
    mechanism = made.entries[0].mechanism
    delta = mechanism.delta or default_delta(members.patients)
    drawn = {"trained": made.model, "public": public.model, "autoencoder": made.autoencoder, "diffusion": made.diffusion}

    def white(images: ImageSet) -> PatientScores:
        return loss_scores(images, conditions_of(images, made.names), **drawn, draws=config.audit_draws, batch=16, seed=seed)

    def black(images: ImageSet) -> PatientScores:
        return distance_scores(images, released, reference, features=features)

    found = {}
    for attack, score in (("white box", white), ("samples alone", black)):
        guesses = min(config.guesses, inside.patients + outside.patients)
        audit, guess = audit_patients(score(inside), score(outside), guesses=guesses, delta=delta, seed=seed)
        rows: dict[str, Estimate | float] = {"AUC": guess.auc, "TPR at 1 % FPR": guess.tpr}
        rows["guesses that were right"] = audit.correct / audit.guesses
        for field, name in LINES.items():
            rows[f"lower bound, {name}"] = getattr(audit.lower, field)
            rows[f"ceiling, {name}"] = getattr(audit.ceiling, field)
        found[attack] = rows | {"accountant": mechanism.epsilon or math.inf}
    return found


def audits(
    generators: Mapping[Key, Generator], samples: Mapping[Key, ImageSet], members: ImageSet, canaries: ImageSet, *,
    features: Features, config: DPConfig, seed: int,
) -> Audits:  # fmt: skip
    """Rows of `audited`, of the generators of one seed that were trained from the public weights, without their variants.

    Of a network from scratch no attack could subtract how easy a patient is: the public one, which tells, is another network.
    """
    start = ("pre-trained", 0.0, seed)
    told = {"reference": samples[start], "features": features, "config": config, "seed": seed}
    found = {}
    for key, made in generators.items():
        arm, epsilon, of_seed = key
        if arm == start[0] and of_seed == seed and epsilon:
            attacks = audited(made, generators[start], members, canaries, released=samples[key], **told)
            found |= {(arm, epsilon, attack): rows for attack, rows in attacks.items()}
    return found


def first_patients(members: ImageSet, canaries: ImageSet, n: int) -> tuple[ImageSet, ImageSet]:
    """Of both sides, those who are among the first n patients by number: who is audited is fixed whatever the coins said."""
    people = np.sort(np.concatenate([np.unique(members.patient), np.unique(canaries.patient)]))[:n]
    return members.of_patients(people), canaries.of_patients(people)


class OverFitted(NamedTuple):
    """A generator that an audit must catch, and both sides of those whose coins were tossed: one image of each patient."""

    generator: Generator
    members: ImageSet
    canaries: ImageSet


def over_fitted(
    members: ImageSet, canaries: ImageSet, *, config: DPConfig, denoiser: DenoiserConfig, diffusion: DiffusionConfig,
    sampling: SamplingConfig, ledger: Ledger, seed: int = 0,
) -> OverFitted:  # fmt: skip
    """A generator trained on the members among the first patients of both sides, as `config.overfitting` says: for many passes.

    An audit that finds nothing here finds nothing anywhere. It is found again if made before. The first image of each patient
    alone is kept, which makes a pass cheap. Who is among the first is fixed whatever the coins said, so a bound holds as it does
    for all patients. One line in the ledger.
    Raises ValueError for a training that promises something, and as `train_privately` does.
    """
    if math.isfinite(epsilon := config.overfitting.epsilon):
        raise ValueError(f"epsilon {epsilon:g}; expected infinity: what a promise covers is not over-fitted")
    inside, outside = (one_image_each(part) for part in first_patients(members, canaries, config.overfitted_patients))
    how = {"denoiser": denoiser, "diffusion": diffusion, "sampling": sampling, "ledger": ledger, "seed": seed}
    return OverFitted(train_privately(inside, privacy=config.overfitting, **how), inside, outside)


def audit_over_fitted(found: OverFitted, public: Generator, *, features: Features, config: DPConfig, seed: int) -> Audits:
    """Rows as of `audits`, of both attacks on an over-fitted generator, each with `config.overfitted_guesses` guesses.

    The attacker who sees samples alone knows the attributes of everybody, asks for one image of each, and asks the generator
    of public weights for the same. Both sides are read through the ledger by who calls.
    """
    sides = found.members, found.canaries
    everybody = pd.concat([side.attributes for side in sides], ignore_index=True)
    released, reference = (made.draw(asked_for(found.members, made.names, everybody)) for made in (found.generator, public))
    sizes = replace(config, audited_patients=config.overfitted_patients, guesses=config.overfitted_guesses)
    told = {"features": features, "config": sizes, "seed": seed}
    attacks = audited(found.generator, public, *sides, released=released, reference=reference, **told)
    return {("over-fitted", math.inf, attack): rows for attack, rows in attacks.items()}


def remembered(
    drawn: Mapping[str, ImageSet], members: ImageSet, canaries: ImageSet, fresh: ImageSet, *, features: Features,
    autoencoder: object,
) -> dict[str, dict[str, Estimate | float]]:  # fmt: skip
    """Arm -> share of samples that are copies, and of patients who own one; beside controls that no generator has a part in.

    The limit is what 95 % of canaries, who were left out by their coins, stay below. Controls: `fresh` patients in the place of
    samples, each member's nearest other member, and members after the autoencoder, which a copy would look like.
    """
    mine, theirs = features(members), features(canaries)
    limit = copy_threshold(theirs, mine, canaries.patient)
    found = {arm: copied(features(images), mine, members.patient, limit) for arm, images in drawn.items()}
    found["other patients, fresh"] = copied(features(fresh), mine, members.patient, limit)
    found["other patients, members"] = copied_by_others(mine, members.patient, limit, others="patients")
    copies = features(reconstruct(autoencoder, members, batch=16))
    found["copies through the autoencoder"] = copied(copies, mine, members.patient, limit)
    return {arm: _rows(shares) for arm, shares in found.items()}


def _rows(shares: Memorisation) -> dict[str, Estimate | float]:
    return {"patients remembered": shares.share_of_patients, "samples that are copies": shares.share_of_samples}

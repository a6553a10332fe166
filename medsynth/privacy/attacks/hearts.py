"""Attacks on generators of hearts, as a study has rows for them: the audit of what was promised, and what is remembered."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from medsynth.config import DPConfig
from medsynth.diffusion.conditions import conditions_of
from medsynth.diffusion.generator import Generator
from medsynth.evaluation.statistics import Estimate
from medsynth.imageset import ImageSet
from medsynth.models.weights import reconstruct
from medsynth.privacy.attacks.canaries import PatientScores, audit_patients, distance_scores, loss_scores
from medsynth.privacy.attacks.memorisation import Memorisation, copied, copied_by_others, copy_threshold
from medsynth.privacy.dp.accountant import default_delta

Features = Callable[[ImageSet], np.ndarray]
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


def first_patients(members: ImageSet, canaries: ImageSet, n: int) -> tuple[ImageSet, ImageSet]:
    """Of both sides, those who are among the first n patients by number: who is audited is fixed whatever the coins said."""
    people = np.sort(np.concatenate([np.unique(members.patient), np.unique(canaries.patient)]))[:n]
    return members.of_patients(people), canaries.of_patients(people)


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

"""Inference: does the release tell something of a person that their image, which the attacker has, was not asked for?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from medsynth.evaluation.retrieval import retrieved
from medsynth.privacy.attacks.legal.risk import Risk, risk_of


def inference(
    release: tuple[np.ndarray, pd.Series], members: tuple[np.ndarray, pd.Series], others: tuple[np.ndarray, pd.Series]
) -> Risk:  # fmt: skip
    """Share of people whose secret is that of the nearest image of the release; each side features (n, d) and secrets (n,).

    Images show something of a secret such as sex, so the guess is often right of anybody: that is the control. Baseline: the
    secret that most images of the release have. Rows without a secret are left out. Raises ValueError where none is left.
    """
    (images, told), mine, theirs = (_known(name, *side) for name, side in _named(release, members, others))
    common = told.mode().iloc[0]

    def right(side: tuple[np.ndarray, pd.Series]) -> np.ndarray:
        return told.to_numpy()[retrieved(images, side[0])] == side[1].to_numpy()

    return risk_of(right(mine), right(theirs), mine[1].to_numpy() == common)


def _named(*sides: tuple[np.ndarray, pd.Series]) -> list[tuple[str, tuple[np.ndarray, pd.Series]]]:
    return list(zip(("release", "members", "others"), sides, strict=True))


def _known(name: str, features: np.ndarray, secret: pd.Series) -> tuple[np.ndarray, pd.Series]:
    known = secret.notna().to_numpy()
    if not known.any():
        raise ValueError(f"{name}: nobody's secret is known; expected an attribute that some rows have")
    return features[known], secret[known].astype("string")

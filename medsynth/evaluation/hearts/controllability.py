"""Whether a sample shows the heart that was asked for: volumes, wall thickness and phase, asked against measured.

What is measured comes from `measure_volumes` of labels, true ones or a segmenter's. A segmenter's error lowers r, pulls the
slope below 1 and adds to the error, so every result is read beside the same functions on real held-out images, the most that a
generator can reach.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from medsynth.evaluation.statistics import Estimate, bootstrap, bootstrap_mean, clopper_pearson
from medsynth.phantoms.heart.people import CONDITIONS

# what is measured, and the attributes that ask for it at end-diastole and at end-systole
ASKED = {"lv": ("lvedv", "lvesv"), "rv": ("rvedv", "rvesv"), "wall": ("wall_ed", "wall_es")}
UNITS = {"lv": "ml", "rv": "ml", "wall": "mm"}
_FEWEST = 3  # people; with two, a line passes through all there is


class Control(NamedTuple):
    """Measured against asked. n = people who were asked for and could be measured.

    r: Pearson correlation, 0 where every sample shows the same. slope: of the least-squares line, measured on asked; 1 is
    ideal, 0 no control. error: mean of measured minus asked; absolute_error: mean of its size. absent: share of rows asked for
    in which the structure was not found; these rows are in no other number.
    """

    r: Estimate
    slope: Estimate
    error: Estimate
    absolute_error: Estimate
    absent: float


class Phases(NamedTuple):
    """pairs: share of people whose end-systolic sample holds less LV blood than their end-diastolic one; 0.5 without control.

    nearest: share of samples whose LV volume is nearer to the volume asked for in their own phase than to that of the other.
    """

    pairs: Estimate
    nearest: Estimate


def asked_for(attributes: pd.DataFrame) -> pd.DataFrame:
    """Columns lv, rv (ml) and wall (mm) of the phase (0 ED, 1 ES) of each row, NaN where nothing was asked for.

    Raises ValueError where a phase is missing or another number, and where no column of ASKED is there.
    """
    phase = _phase(attributes)
    known = {name: columns for name, columns in ASKED.items() if set(columns) & set(attributes)}
    if not known:
        raise ValueError(f"attributes {list(attributes)}; expected some of {[c for pair in ASKED.values() for c in pair]}")
    return pd.DataFrame(
        {name: np.where(phase, _column(attributes, es), _column(attributes, ed)) for name, (ed, es) in known.items()}
    )


def controllability(
    attributes: pd.DataFrame, measured: pd.DataFrame, *, person: np.ndarray, seed: int, replicates: int = 1000
) -> dict[str, Control]:
    """`control` of each of lv, rv and wall that was asked for; measured: rows of `measure_volumes` of the samples.

    attributes: what was asked for, with `phase`. person (n,): equal for samples asked for as one person, as a rule one at ED
    and one at ES; not the `patient` of drawn images, each of which is a patient of its own. Where nothing was asked for, the
    name is absent.
    """
    asked = asked_for(attributes)
    return {
        name: control(asked[name], measured[name], person=person, seed=seed, replicates=replicates)
        for name in asked
        if asked[name].notna().any()
    }


def control(
    asked: np.ndarray | pd.Series, measured: np.ndarray | pd.Series, *, person: np.ndarray, seed: int, replicates: int = 1000
) -> Control:
    """Measured against asked (n,), with intervals by bootstrap over people. NaN: not asked for, or not found in the sample.

    Where fewer than three people could be measured, all numbers are NaN but `absent`, and n says how many there are.
    Raises ValueError for lengths that differ and where every row asks for the same.
    """
    asked, measured, person = np.asarray(asked, float), np.asarray(measured, float), np.asarray(person)
    if not len(asked) == len(measured) == len(person):
        raise ValueError(f"{len(asked)} rows asked for, {len(measured)} measured, of {len(person)}; expected as many of each")
    wanted = np.isfinite(asked)
    if len(np.unique(asked[wanted])) < 2:
        raise ValueError(f"{wanted.sum()} rows ask for the same value or for none; ask for at least two different values")
    kept = wanted & np.isfinite(measured)
    absent = float(1 - kept.sum() / wanted.sum())
    x, y, person = asked[kept], measured[kept], person[kept]
    if (people := len(np.unique(person))) < _FEWEST:
        return Control(*[Estimate(np.nan, np.nan, np.nan, people)] * 4, absent)

    def estimate(statistic: Callable[[np.ndarray, np.ndarray], float]) -> Estimate:
        return bootstrap(lambda rows: statistic(x[rows], y[rows]), person, seed=seed, replicates=replicates)

    options = {"seed": seed, "replicates": replicates}
    return Control(
        estimate(_correlation), estimate(_slope), bootstrap_mean(y - x, person, **options),
        bootstrap_mean(np.abs(y - x), person, **options), absent,
    )  # fmt: skip


def phase_accuracy(attributes: pd.DataFrame, measured: pd.DataFrame, *, person: np.ndarray, seed: int) -> Phases:
    """ED/ES cycle accuracy, twice: over pairs of samples of a person, and over single samples. No classifier is trained.

    Of a pair, both volumes must differ in the right direction; a tie, as when nothing is found in either, is wrong. Its
    interval is exact. A single sample is held against the middle between the two volumes asked for, so one that ignores the
    phase is right half the time, whatever else it shows. Daum et al., arXiv:2407.16405, report an ED/ES cycle accuracy of
    their samples; this definition is ours.
    Raises ValueError where nobody has both phases, or somebody more than one sample of a phase, or no volumes were asked for.
    """
    phase, person, volume = _phase(attributes), np.asarray(person), measured["lv"].to_numpy(float)
    people, unit = np.unique(person, return_inverse=True)
    counts = np.stack([np.bincount(unit[phase == k], minlength=len(people)) for k in (0, 1)])
    if counts.max() > 1:
        twice = people[(counts > 1).any(0)]
        raise ValueError(
            f"{len(twice)} people, {twice[:3].tolist()} among them, with several samples of a phase; expected one each"
        )
    both = (counts == 1).all(0)
    if not both.any():
        raise ValueError(f"none of {len(people)} people has a sample of both phases; ask for each person at ED and at ES")
    filled, emptied = np.full(len(people), np.nan), np.full(len(people), np.nan)
    filled[unit[~phase]], emptied[unit[phase]] = volume[~phase], volume[phase]
    pairs = clopper_pearson(int((emptied < filled)[both].sum()), int(both.sum()), n_of="patients")
    ed, es = (_column(attributes, column) for column in ASKED["lv"])
    told = np.isfinite(ed) & np.isfinite(es)
    if len(np.unique(person[told])) < 2:
        raise ValueError(f"{told.sum()} rows ask for both {' and '.join(ASKED['lv'])}; expected those of at least two people")
    right = (volume < (ed + es) / 2) == phase
    return Phases(pairs, bootstrap_mean(right[told], person[told], seed=seed))


def rows_by_condition(attributes: pd.DataFrame) -> Mapping[str, np.ndarray]:
    """Rows of each condition that occurs (normal, dilated, hypertrophic, rv-enlarged), in this order; for scores by group.

    Raises ValueError where there is no column `condition`.
    """
    if "condition" not in attributes:
        raise ValueError(f"attributes {list(attributes)}; expected a column 'condition', with values such as {CONDITIONS}")
    found = {name: np.flatnonzero((attributes["condition"] == name).fillna(False).to_numpy(bool)) for name in CONDITIONS}
    return {name: rows for name, rows in found.items() if len(rows)}


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    # a generator that draws one heart whatever is asked for has no control; a number, for curves that reach down to it
    if np.ptp(y) == 0:
        return 0.0 if np.ptp(x) else np.nan
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) else np.nan


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    away = x - x.mean()
    return float(away @ (y - y.mean()) / (away @ away)) if np.ptp(x) else np.nan


def _phase(attributes: pd.DataFrame) -> np.ndarray:
    """True at end-systole, (n,)."""
    phase = _column(attributes, "phase")
    if not np.isin(phase, (0, 1)).all():
        odd = np.unique(phase[~np.isin(phase, (0, 1))]).tolist()
        raise ValueError(f"phase holds {odd[:3]}; expected 0 (ED) or 1 (ES) in every row")
    return phase == 1


def _column(attributes: pd.DataFrame, name: str) -> np.ndarray:
    if name not in attributes:
        return np.full(len(attributes), np.nan)
    return attributes[name].astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan)

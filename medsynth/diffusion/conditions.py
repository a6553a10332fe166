"""What a generator is asked for, and where that comes from: rows or images of a set, public marginals, or sentences."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from medsynth.attributes import typed
from medsynth.evaluation.features import shipped_extractor
from medsynth.imageset import ImageSet
from medsynth.language.sentences import LARGE, SIDED, SPOKEN_OF, TEXT, TOKENS, meaning, numbered, numbers_of, tokens_of
from medsynth.language.vocabulary import FINDINGS, HEART, MODALITIES, PHANTOM_FINDINGS
from medsynth.models.conditioning import FEATURES, THORAX
from medsynth.phantoms.heart.people import draw_person

if TYPE_CHECKING:
    from medsynth.ledger import Ledger

log = logging.getLogger(__name__)

# of adults who are scanned, from no set: mean and spread
AGE, BMI = (55.0, 17.0), (26.0, 4.5)  # years, kg/m^2
BOUNDS = {"age": (18.0, 95.0), "bmi": (16.5, 42.0)}
_STATED = frozenset((*THORAX, *HEART, *FINDINGS, *SPOKEN_OF, "condition", "sentence", "modality"))
_DIAMETER = (LARGE - 7, LARGE + 7)  # mm, of nodules: as many small as large ones


@dataclass(frozen=True)
class Conditions:
    """values float32 (n, k), NaN = missing, columns `names`; attributes: the table of n rows that they stand for.

    source: where they come from, "rows of NAME", "features of NAME", "public marginals", "sentences" or "asked for"; private:
    whether from rows or images of a private set.
    """

    values: np.ndarray
    names: tuple[str, ...]
    attributes: pd.DataFrame
    source: str
    private: bool = False

    def __len__(self) -> int:
        return len(self.values)


def vocabulary_for(images: ImageSet) -> tuple[str, ...]:
    """Names of the conditions that such images are asked for by: of stacks of hearts, or of chests."""
    return HEART if len(images.spatial) == 3 else THORAX


def conditions_of(images: ImageSet, names: Sequence[str]) -> np.ndarray:
    """Conditions (n, len(names)) float32 of a set: its modality, phantom or person, finding, and attributes of these names.

    FEATURES are those of its images, TEXT is the sentence of each row. NaN where the set does not say.
    Raises ValueError for a set of unknown modality where `names` has modalities, and for FEATURES or TEXT of volumes.
    """
    out = _of_table(images, names)
    if seen := [name for name in names if name in FEATURES]:
        features = dict(zip(FEATURES, features_of(images).T, strict=True))
        for name in seen:
            out[:, list(names).index(name)] = features[name]
    return out


def features_of(images: ImageSet) -> np.ndarray:
    """What the shipped extractor sees in each image, of length 1: float32 (n, len(FEATURES)). Raises ValueError for volumes."""
    features = shipped_extractor()(images)
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def _of_table(images: ImageSet, names: Sequence[str]) -> np.ndarray:
    """`conditions_of` without a look at the images, whose features are missing."""
    if set(names) & set(MODALITIES) and not images.modality:
        raise ValueError(f"{images.name}: its modality is not known; expected one of {MODALITIES}")
    table = images.attributes
    # a finding outside the vocabulary is unknown, not "none of these"
    finding = table["finding"].where(table["finding"].isin(FINDINGS)) if "finding" in table else None
    if finding is not None and set(names) & set(FINDINGS):
        _say_what_is_not_asked_by(images.name, int((finding.isna() & table["finding"].notna()).sum()))
    spoken = {}
    if set(names) & set(TEXT):
        if len(images.spatial) == 3:
            raise ValueError(f"{images.name}: volumes; expected images, since sentences speak of chests in two dimensions")
        spoken = dict(zip(TEXT, numbers_of(table, images.modality).T, strict=True))
    out = np.full((len(images), len(names)), np.nan, np.float32)
    for k, name in enumerate(names):
        if name in spoken:
            out[:, k] = spoken[name]
        elif name in FEATURES:
            continue
        elif name in MODALITIES:
            out[:, k] = float(name == images.modality)
        elif name == "phantom":
            out[:, k] = float(not images.people)
        elif name in FINDINGS:
            out[:, k] = np.nan if finding is None else _numbers(finding == name)
        elif name in table:
            out[:, k] = _numbers(table[name])
    return out


def of_rows(images: ImageSet, names: tuple[str, ...], n: int, *, seed: int, ledger: Ledger) -> Conditions:
    """Attributes of n rows of `images`, drawn with replacement; unless the set is public, a line in the ledger."""
    ledger.read(images, stage="draw conditions", output=f"{', '.join(_told(images, names)) or 'none'} of sampled rows")
    rows = np.random.default_rng([seed, n]).integers(len(images), size=n)
    values = conditions_of(images, names)[rows]
    table = _stated(images.attributes.iloc[rows])
    return Conditions(values, names, table, f"rows of {images.dataset}", private=images.role == "private")


def of_images(images: ImageSet, names: tuple[str, ...], *, ledger: Ledger) -> Conditions:
    """Pseudo-conditions: of each image its features and nothing else; unless the set is public, a line in the ledger.

    What is drawn resembles its source, whose attributes it is given. Raises ValueError where no features are among `names`.
    """
    if not set(FEATURES) <= set(names):
        raise ValueError(f"conditions {names}; expected {FEATURES[0]!r} to {FEATURES[-1]!r} among them, to ask by features")
    ledger.read(images, stage="draw conditions", output="features of images")
    values = np.full((len(images), len(names)), np.nan, np.float32)
    values[:, [names.index(name) for name in FEATURES]] = features_of(images)
    table = _stated(images.attributes)
    return Conditions(values, names, table, f"features of {images.dataset}", private=images.role == "private")


def of_sentences(sentences: str | Sequence[str], like: ImageSet, names: tuple[str, ...]) -> Conditions:
    """What sentences ask for, by their words alone, of images such as `like`, whose modality a sentence need not say.

    Attributes: the sentence, and what it means. Raises ValueError where `names` have no text, as `tokens_of` does, for a modality
    that is not that of `like`, and without a sentence.
    """
    if not set(TEXT) <= set(names):
        raise ValueError(f"conditions {names}; expected {', '.join(TEXT)} among them: this generator has not learned sentences")
    sentences = [sentences] if isinstance(sentences, str) else list(sentences)
    if not sentences:
        raise ValueError("no sentence; expected at least one")
    own = {like.modality} & set(MODALITIES)
    values = np.full((len(sentences), len(names)), np.nan, np.float32)
    rows = []
    for i, sentence in enumerate(sentences):
        said = set(tokens_of(sentence))
        if others := said & set(MODALITIES) - own:
            raise ValueError(f"{sentence!r} asks for {min(others)}; expected {like.modality}, which is what is drawn")
        values[i, [names.index(name) for name in TEXT]] = numbered([token for token in TOKENS if token in said | own])
        rows.append({"sentence": sentence, **meaning(sorted(said))})
    return Conditions(values, names, typed(pd.DataFrame(rows), len(rows), "sentences"), "sentences")


def public_marginals(like: ImageSet, names: tuple[str, ...], n: int, *, seed: int) -> Conditions:
    """Findings at even shares, sex at even odds, age and BMI of adults who are scanned; every other attribute is missing.

    Where sentences are said: also sides at even odds, and diameters of nodules about what is called large.
    Hearts are asked for by what people of the phantoms' public population have, filled (ED) and emptied (ES) in turn.
    No image is read: `like` says modality and origin alone.
    """
    if names == HEART:
        return asked_for(like, names, _hearts(n, seed), source="public marginals")
    rng = np.random.default_rng([seed, n])
    table = pd.DataFrame({"sex": rng.integers(0, 2, n)})
    for column, (mean, spread) in (("age", AGE), ("bmi", BMI)):
        table[column] = np.clip(rng.normal(mean, spread, n), *BOUNDS[column])
    if set(PHANTOM_FINDINGS) & set(names):
        table["finding"] = rng.choice(PHANTOM_FINDINGS, n)
        if set(TEXT) & set(names):
            table["left"] = np.where(table["finding"].isin(SIDED), rng.integers(0, 2, n), np.nan)
            table["diameter"] = np.where(table["finding"] == "nodule", rng.uniform(*_DIAMETER, n), np.nan)
    return asked_for(like, names, table, source="public marginals")


def _hearts(n: int, seed: int) -> pd.DataFrame:
    """Of each person two rows, ED and ES; what only an image tells is missing. seed and n: other people for each pair of them."""
    rows = []
    for i in range(-(-n // 2)):
        p = draw_person("public", int(np.random.default_rng([seed, n]).integers(2**31)), i)
        found = {
            "lvedv": p.lvedv, "lvesv": p.lvedv * (1 - p.lvef / 100), "lvef": p.lvef,
            "rvedv": p.rvedv, "rvesv": p.rvedv * (1 - p.rvef / 100), "rvef": p.rvef,
            "wall_ed": p.wall, "age": p.age, "sex": int(p.male), "bmi": p.bmi, "angle": p.angle, "condition": p.condition,
        }  # fmt: skip
        rows += [found | {"phase": phase} for phase in (0, 1)]
    return pd.DataFrame(rows[:n])


def asked_for(like: ImageSet, names: tuple[str, ...], table: pd.DataFrame, *, source: str = "asked for") -> Conditions:
    """Conditions that a table states, one row each, for images such as `like`.

    They are private where a private set holds the table, or it was cut out of one: pandas passes the mark on. A table that is
    built anew of the same values has no mark, and private attributes are then read unseen. Columns that nothing is asked by, such
    as names of files, are not kept.
    """
    private = table.attrs.get("role") == "private"
    stated = _stated(table)
    blank = np.full((len(stated), *like.images.shape[1:]), like.range[0], np.float32)
    empty = like.with_images(blank, patient=np.arange(len(stated)), split=None, attributes=stated)
    return Conditions(_of_table(empty, names), names, empty.attributes, source, private)


def known_from_elsewhere(table: pd.DataFrame) -> pd.DataFrame:
    """The same attributes, as an attacker has them who knows a patient: what is drawn for them is measured, and not released."""
    copy = table.copy()
    copy.attrs = {}
    return copy


def _stated(table: pd.DataFrame) -> pd.DataFrame:
    """What of a table may stand beside a drawn image: what something is asked by. No name of a file, and no patient's."""
    return table[[column for column in table if column in _STATED]].reset_index(drop=True)


def _told(images: ImageSet, names: tuple[str, ...]) -> list[str]:
    """Which attributes of a set a condition speaks of."""
    finding = ["finding"] if "finding" in images.attributes and set(PHANTOM_FINDINGS) & set(names) else []
    told = finding + [name for name in names if name in images.attributes and name not in PHANTOM_FINDINGS]
    if set(TEXT) & set(names):
        told += [column for column in SPOKEN_OF if column in images.attributes and column not in told]
    return told + ["features"] * bool(set(FEATURES) & set(names))


@cache
def _say_what_is_not_asked_by(name: str, rows: int) -> None:
    """Once for each set, what would otherwise be lost in silence; not in its own words, which may name somebody on a page."""
    if rows:
        log.warning("%s: the findings of %d images are taken for unknown; expected %s", name, rows, ", ".join(FINDINGS))


def _numbers(column: pd.Series) -> np.ndarray:
    return column.astype("Float64").to_numpy(dtype=np.float32, na_value=np.nan)

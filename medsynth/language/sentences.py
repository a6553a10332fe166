"""Sentences that chests are asked for by: a closed vocabulary, what attributes are in it, and what a sentence means."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from medsynth.language.vocabulary import FINDINGS
from medsynth.language.words import did_you_mean

LARGE = 34.0  # mm across, for a nodule: half of the phantoms' are; of Fleischner's 30 mm four fifths would be
OVERWEIGHT, OBESE, NORMAL = 25.0, 30.0, 18.5  # kg/m^2, of the World Health Organisation
# what has one side, and what a size; of a heart or a whole lung nobody says either
SIDED, SIZED = ("nodule", "effusion", "consolidation"), ("nodule",)

_DECADES = ("20s", "30s", "40s", "50s", "60s", "70s", "80s", "90s")
_TENS = ("twenties", "thirties", "forties", "fifties", "sixties", "seventies", "eighties", "nineties")
# kind -> token -> phrases of that meaning, the first of which is said; a sentence has at most one token of a kind
KINDS: dict[str, dict[str, tuple[str, ...]]] = {
    "modality": {
        "xray": ("xray", "x-ray", "radiograph"), "ct": ("ct", "computed tomography"),
        "mr": ("mr", "mri", "magnetic resonance"), "pet": ("pet", "positron emission tomography"),
    },
    "size": {"small": ("small", "little", "tiny"), "large": ("large", "big")},
    "side": {"left": ("left",), "right": ("right",)},
    "finding": {
        "none": ("no finding", "no findings", "no abnormality", "normal", "healthy", "unremarkable"),
        "nodule": ("nodule", "mass", "tumour", "tumor", "lump"),
        "effusion": ("effusion", "pleural effusion", "pleural fluid"),
        "consolidation": ("consolidation", "infiltrate"),
        "cardiomegaly": ("cardiomegaly", "enlarged heart", "large heart", "big heart"),
        "pneumonia_bacterial": ("bacterial pneumonia",), "pneumonia_viral": ("viral pneumonia",),
        "abnormal": ("abnormal", "abnormality"),
    },
    "sex": {"female": ("female", "woman", "f", "she", "her"), "male": ("male", "man", "m", "he", "his")},
    "age": {
        "0s": ("child", "infant"), "10s": ("teenager", "teens", "10s"),
        **{decade: (decade, word) for decade, word in zip(_DECADES, _TENS, strict=True)},
    },
    "build": {
        "underweight": ("underweight", "thin"), "normal weight": ("normal weight", "average build"),
        "overweight": ("overweight", "heavy"), "obese": ("obese", "very heavy"),
    },
}  # fmt: skip
KIND_OF = {token: kind for kind, tokens in KINDS.items() for token in tokens}
TOKENS = tuple(KIND_OF)
TEXT = tuple(f"token {k}" for k in range(len(KINDS)))  # columns of a condition: numbers of tokens, in the order of TOKENS
SPOKEN_OF = ("finding", "left", "diameter", "sex", "age", "bmi")  # attributes

# words that change nothing; whatever else is not known may change something
_FILLERS = (
    "a", "an", "the", "of", "with", "in", "on", "at", "and", "is", "has", "there", "patient", "person", "chest", "thorax", "lung",
    "scan", "image", "slice", "shows", "showing", "side", "sided", "aged", "age", "year", "years", "year old", "years old",
)  # fmt: skip
_NEGATIONS = ("no", "not", "without")
_EXAMPLE = "'ct, large left nodule, female, 60s'"
_OLDEST = 120  # years
_WORD = re.compile(r"\d+\.\d+|[^\W_]+")
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)(mm|cm|yo|y)?")
# an attribute that is told in a token's stead, where a number has to stand for it
_MEANING: dict[str, dict[str, float | str]] = {
    "small": {"diameter": 30.0}, "large": {"diameter": 38.0}, "left": {"left": 1}, "right": {"left": 0},
    "female": {"sex": 0}, "male": {"sex": 1},
    "underweight": {"bmi": 17.5}, "normal weight": {"bmi": 22.0}, "overweight": {"bmi": 27.5}, "obese": {"bmi": 33.0},
    **{token: {"age": 10.0 * i + 5} for i, token in enumerate(KINDS["age"])},
    **{token: {"finding": token} for token in KINDS["finding"]},
}  # fmt: skip


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold().replace("'", "").replace("’", "")))


_PHRASES = {_words(phrase): token for tokens in KINDS.values() for token, phrases in tokens.items() for phrase in phrases}
_KNOWN = _PHRASES | {_words(filler): "" for filler in _FILLERS}
_LONGEST = max(map(len, _KNOWN))
_NUMBER_OF = {token: number for number, token in enumerate(TOKENS)}


def tokens_of(sentence: str) -> tuple[str, ...]:
    """What a sentence says, in the order of TOKENS; that of its words, and capitals, say nothing.

    Raises ValueError for an empty sentence, a word outside the vocabulary (with the nearest known ones), and for what contradicts
    itself or cannot be meant.
    """
    words, said, at = _words(sentence), {}, 0
    while at < len(words):
        token, length = _first(words[at:], sentence)
        if token and (other := said.setdefault(KIND_OF[token], token)) != token:
            raise ValueError(f"{sentence!r} says {other!r} and {token!r}; expected one {KIND_OF[token]}")
        at += length
    if not said:
        raise ValueError(f"{sentence!r} says nothing; expected a sentence such as {_EXAMPLE}")
    finding = said.get("finding")
    for kind, those in (("side", SIDED), ("size", SIZED)):
        if kind in said and finding not in those:
            of = f"of {KINDS['finding'][finding][0]!r}" if finding else "without a finding"
            raise ValueError(f"{sentence!r}: {said[kind]!r} {of}; expected a {kind} only of {', '.join(those)}")
    return tuple(token for token in TOKENS if token in said.values())


def numbered(tokens: Sequence[str]) -> np.ndarray:
    """Numbers of tokens as a row of a condition, float32 (len(TEXT),); NaN where there are no more."""
    row = np.full(len(TEXT), np.nan, np.float32)
    row[: len(tokens)] = sorted(_NUMBER_OF[token] for token in tokens)
    return row


def spoken(tokens: Sequence[str]) -> str:
    """The sentence that says these tokens, in plain order; "" of none."""
    said = {KIND_OF[token]: KINDS[KIND_OF[token]][token][0] for token in tokens}
    finding = " ".join(said[kind] for kind in ("size", "side", "finding") if kind in said)
    return ", ".join(part for part in (said.get("modality"), finding, *map(said.get, ("sex", "age", "build"))) if part)


def meaning(tokens: Sequence[str]) -> dict[str, float | str]:
    """Attributes that tokens stand for; numbers are amidst those that would be called so. A modality is none."""
    return {name: value for token in tokens for name, value in _MEANING.get(token, {}).items()}


def numbers_of(table: pd.DataFrame, modality: str = "") -> np.ndarray:
    """What the sentence of each row of attributes says, as `numbered`, float32 (n, len(TEXT)).

    It speaks of the modality and of columns SPOKEN_OF, where a row has them: left (1, or 0 = right), diameter (mm), sex (1 male),
    age (years), bmi (kg/m^2). A finding outside the vocabulary is not said.
    """
    # numbers rise from kind to kind, and what is missing is sorted last
    return np.sort(_said(table, modality), axis=1).astype(np.float32)


def by_kind(table: pd.DataFrame) -> pd.DataFrame:
    """The same by kind: a column for each kind of token but the modality, the row's token or none, as a set's attributes."""
    tokens = np.array([*TOKENS, None], dtype=object)
    said = tokens[np.nan_to_num(_said(table), nan=len(TOKENS)).astype(int)]
    return pd.DataFrame(said, columns=list(KINDS), dtype="string").drop(columns="modality")


def by_chance(tokens: Sequence[str], n: int, *, seed: int) -> list[str]:
    """n sentences of one of these tokens of each kind but the modality; a size or a side only of what can have one."""
    rng, said = np.random.default_rng([seed, n]), []
    for _ in range(n):
        one = {kind: rng.choice(mine) for kind in KINDS if (mine := [t for t in tokens if KIND_OF[t] == kind])}
        unfit = {"modality"} | {k for k, those in (("side", SIDED), ("size", SIZED)) if one.get("finding") not in those}
        said.append(spoken([token for kind, token in one.items() if kind not in unfit]))
    return said


def _said(table: pd.DataFrame, modality: str = "") -> np.ndarray:
    """Number of each row's token of each kind, in the order of KINDS, float64 (n, len(KINDS)); NaN where nothing is said."""
    found = table["finding"] if "finding" in table else pd.Series(pd.NA, table.index)
    finding = found.map({name: _NUMBER_OF[name] for name in FINDINGS}).to_numpy(dtype=float, na_value=np.nan)
    left, sex = _numbers(table, "left"), _numbers(table, "sex")
    said = [
        np.full(len(table), _NUMBER_OF.get(modality, np.nan)),
        _binned(_numbers(table, "diameter"), (LARGE,), "size", among=_are(finding, SIZED)),
        _binned(1 - left, (0.5,), "side", among=_are(finding, SIDED)),
        finding,
        _binned(sex, (0.5,), "sex"),
        _binned(_numbers(table, "age"), range(10, 100, 10), "age"),
        _binned(_numbers(table, "bmi"), (NORMAL, OVERWEIGHT, OBESE), "build"),
    ]
    return np.stack(said, axis=1)


def sentences_of(table: pd.DataFrame, modality: str = "") -> list[str]:
    """A sentence for each row of attributes, as `numbers_of`; "" where nothing is known."""
    return [spoken([TOKENS[int(k)] for k in row if not np.isnan(k)]) for row in numbers_of(table, modality)]


def sentence(row: Mapping[str, object], modality: str = "") -> str:
    """The sentence of one row of attributes."""
    return sentences_of(pd.DataFrame([dict(row)]), modality)[0]


def _first(words: Sequence[str], sentence: str) -> tuple[str, int]:
    """Token that words begin with, "" for none, and how many words it takes: the longest phrase counts."""
    for length in range(min(_LONGEST, len(words)), 0, -1):
        if (phrase := tuple(words[:length])) in _KNOWN:
            return _KNOWN[phrase], length
    word = words[0]
    if number := _NUMBER.fullmatch(word):
        following = words[1] if len(words) > 1 and words[1] in ("mm", "cm") else ""
        return _measured(float(number[1]), number[2] or following, sentence), 2 if following else 1
    if word in _NEGATIONS:
        raise ValueError(f"{sentence!r} denies something; expected 'no finding', or nothing of what is not there")
    near = [" ".join(phrase) for phrase in _PHRASES if word in phrase] or map(" ".join, _PHRASES)
    raise ValueError(f"{sentence!r}: {word!r} is no word of the vocabulary; {did_you_mean(word, near)}")


def _measured(number: float, unit: str, sentence: str) -> str:
    """The size of so many mm or cm, or else the decade of an age in years."""
    if unit in ("mm", "cm"):
        return "large" if number * (10 if unit == "cm" else 1) >= LARGE else "small"
    if number > _OLDEST:
        raise ValueError(f"{sentence!r}: {number:g} is no age; expected at most {_OLDEST} years, or a size in mm")
    return list(KINDS["age"])[min(int(number) // 10, 9)]


def _numbers(table: pd.DataFrame, column: str) -> np.ndarray:
    if column not in table:
        return np.full(len(table), np.nan)
    return table[column].astype("Float64").to_numpy(dtype=float, na_value=np.nan)


def _binned(values: np.ndarray, edges: Sequence[float], kind: str, among: np.ndarray | bool = True) -> np.ndarray:
    """Numbers of a kind's tokens: the k-th where k edges are at or below the value, NaN where it is missing or not `among`."""
    first = _NUMBER_OF[next(iter(KINDS[kind]))]
    return np.where(np.isnan(values) | ~np.asarray(among), np.nan, first + np.digitize(values, list(edges)))


def _are(finding: np.ndarray, those: Sequence[str]) -> np.ndarray:
    return np.isin(finding, [_NUMBER_OF[name] for name in those])

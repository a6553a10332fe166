"""Sentences: what is said is what is understood, for every word, and what is not understood is said."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsynth.language import sentences
from medsynth.language.sentences import (
    KIND_OF,
    KINDS,
    TEXT,
    TOKENS,
    by_chance,
    by_kind,
    meaning,
    numbered,
    numbers_of,
    sentence,
    sentences_of,
    spoken,
    tokens_of,
)
from medsynth.language.vocabulary import FINDINGS, MODALITIES
from medsynth.phantoms.thorax.pathology import SIDED
from medsynth.phantoms.thorax.thorax import thorax


def said_of(*tokens: str) -> tuple[str, ...]:
    """The tokens, with a finding that their size and side can be of."""
    kinds = {KIND_OF[t] for t in tokens}
    more = ("nodule",) if kinds & {"size", "side"} and "finding" not in kinds else ()
    return tuple(t for t in TOKENS if t in tokens + more)


@st.composite
def token_sets(draw) -> tuple[str, ...]:
    """Any that can be said together."""
    said = {kind: draw(st.sampled_from(sorted(tokens))) for kind, tokens in KINDS.items() if draw(st.booleans())}
    if said.get("finding") not in sentences.SIDED:
        said.pop("side", None)
    if said.get("finding") not in sentences.SIZED:
        said.pop("size", None)
    return tuple(t for t in TOKENS if t in said.values())


def test_the_vocabulary_is_that_of_attributes():
    assert tuple(KINDS["modality"]) == MODALITIES and set(KINDS["finding"]) == set(FINDINGS)
    assert len(TOKENS) == sum(map(len, KINDS.values())) and len(TEXT) == len(KINDS)
    # no phrase has two meanings
    phrases = [p for tokens in KINDS.values() for several in tokens.values() for p in several]
    assert len(sentences._PHRASES) == len(set(phrases)) == len(phrases)
    assert not set(sentences._PHRASES) & {sentences._words(filler) for filler in sentences._FILLERS}
    assert sentences.SIDED == SIDED


@pytest.mark.parametrize("token", TOKENS)
def test_every_phrase_of_a_token_means_it_and_its_meaning_is_said_by_it(token):
    expected = said_of(token)
    for phrase in KINDS[KIND_OF[token]][token]:
        rest = [t for t in expected if t != token]
        assert tokens_of(" ".join([phrase.upper(), *rest])) == expected
    assert tokens_of(spoken(expected)) == expected
    row, modality = meaning(expected), token if token in MODALITIES else ""
    assert tokens_of(sentence(row, modality)) == expected
    np.testing.assert_array_equal(numbers_of(pd.DataFrame([row]), modality)[0], numbered(expected))


@given(token_sets())
def test_what_is_said_is_understood(tokens):
    modality = next((t for t in tokens if t in MODALITIES), "")
    table = pd.DataFrame([{"licence": "generated", **meaning(tokens)}])
    (said,) = sentences_of(table, modality)
    assert said == spoken(tokens)
    if not tokens:
        assert said == "" and np.isnan(numbers_of(table)).all()
        return
    assert tokens_of(said) == tokens
    # in any order, since none of the phrases but the finding's take several words that would join
    assert tokens_of(", ".join(reversed(said.split(", ")))) == tokens


def test_sentences_as_people_say_them():
    for said, meant in {
        "ct, large left nodule, female, 60s": ("ct", "large", "left", "nodule", "female", "60s"),
        "xray, no finding, male, 40s, heavy": ("xray", "none", "male", "40s", "overweight"),
        "Chest X-ray of a 63-year-old woman with a 3.5 cm mass in the left lung.": (
            "xray", "large", "left", "nodule", "female", "60s",
        ),
        "left pleural effusion in her sixties": ("left", "effusion", "female", "60s"),
        "normal": ("none",), "normal weight": ("normal weight",), "a man of 100 years": ("male", "90s"),
        "enlarged heart, 60's": ("cardiomegaly", "60s"), "right-sided 12mm nodule": ("small", "right", "nodule"),
        "viral pneumonia": ("pneumonia_viral",), "a woman, she is aged 7": ("female", "0s"),
    }.items():  # fmt: skip
        assert tokens_of(said) == tuple(t for t in TOKENS if t in meant)
    assert spoken(("ct", "large", "left", "nodule", "female", "60s")) == "ct, large left nodule, female, 60s"


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("", r"^'' says nothing; expected a sentence such as 'ct, large left nodule"),
        (" ,.", "says nothing"),
        ("a patient", "says nothing"),
        ("large left nodle", r"^'large left nodle': 'nodle' is no word of the vocabulary; did you mean 'nodule'\?$"),
        ("pneumonia", r"'pneumonia' is no word .*; did you mean '(viral|bacterial) pneumonia'\?"),
        ("dense heart", r"'dense' is no word of the vocabulary; "),
        ("normal heart", r"'heart' is no word of the vocabulary; did you mean 'big heart'\?"),
        ("nodule, upper lobe", "'upper' is no word of the vocabulary; expected one of xray, x ray"),
        ("no nodule", "denies something; expected 'no finding'"),
        ("ct without nodule", "denies something"),
        ("left right nodule", "says 'left' and 'right'; expected one side"),
        ("female, male", "says 'female' and 'male'; expected one sex"),
        ("nodule and effusion", "says 'nodule' and 'effusion'; expected one finding"),
        ("63, 50s", "says '60s' and '50s'; expected one age"),
        ("large effusion", "'large' of 'effusion'; expected a size only of nodule"),
        ("left, no finding", "'left' of 'no finding'; expected a side only of nodule, effusion, consolidation"),
        ("ct, left", "'left' without a finding; expected a side only of"),
        ("a man of 150", "150 is no age; expected at most 120 years, or a size in mm"),
    ],
)
def test_what_is_not_understood_is_said(said, error):
    with pytest.raises(ValueError, match=error):
        tokens_of(said)


def test_a_set_is_told_row_by_row():
    s = thorax(patients=30, size=16, modality="ct", seed=1)
    numbers = numbers_of(s.attributes, s.modality)
    assert numbers.dtype == np.float32 and numbers.shape == (30, len(TEXT))
    for row, (_, a), said in zip(numbers, s.attributes.iterrows(), sentences_of(s.attributes, s.modality), strict=True):
        tokens = tokens_of(said)
        np.testing.assert_array_equal(row, numbered(tokens))
        assert {"ct", a["finding"], f"{int(a['age']) // 10 * 10}s", "male" if a["sex"] else "female"} <= set(tokens)
        assert ("left" in tokens, "right" in tokens) == (a["left"] == 1, a["left"] == 0)
        assert ("small" in tokens, "large" in tokens) == (a["diameter"] < 34, a["diameter"] >= 34)


def test_what_a_table_does_not_know_is_not_said():
    table = pd.DataFrame(
        {
            "finding": pd.array(["nodule", None, "todo", "cardiomegaly"], dtype="string"),
            "left": [np.nan, 1, 1, 1], "diameter": [40.0] * 4, "sex": pd.array([1, None, 0, None], dtype="Int64"),
        }
    )  # fmt: skip
    # a side of nothing, of what is not known, or of a heart is none
    assert sentences_of(table, "pet") == ["pet, large nodule, male", "pet", "pet, female", "pet, cardiomegaly"]
    assert sentences_of(table.iloc[:0], "ct") == [] and sentence({"smoker": True}) == ""


def test_numbers_rise_from_kind_to_kind():
    """So that sorting them is the plain order, in whichever order a sentence was said."""
    starts = [TOKENS.index(next(iter(tokens))) for tokens in KINDS.values()]
    assert starts == list(itertools.accumulate([0, *map(len, KINDS.values())]))[:-1]
    np.testing.assert_array_equal(numbered(("60s", "ct")), numbered(("ct", "60s")))


def test_what_is_said_stands_by_kind():
    table = pd.DataFrame({"finding": ["nodule", "other"], "left": [0, 1], "diameter": [20.0, 40.0], "age": [51, np.nan]})
    said = by_kind(table)
    assert list(said) == ["size", "side", "finding", "sex", "age", "build"] and set(map(str, said.dtypes)) == {"string"}
    assert said.iloc[0].dropna().to_dict() == {"size": "small", "side": "right", "finding": "nodule", "age": "50s"}
    assert said.iloc[1].isna().all()


def test_sentences_by_chance_say_what_can_be_said_of_each_kind():
    tokens = ("xray", "small", "left", "right", "nodule", "cardiomegaly", "female", "50s")
    said = by_chance(tokens, 200, seed=1)
    assert said == by_chance(tokens, 200, seed=1) != by_chance(tokens, 200, seed=2)
    assert set(said) == {"small left nodule, female, 50s", "small right nodule, female, 50s", "cardiomegaly, female, 50s"}
    assert {t for s in said for t in tokens_of(s)} == set(tokens) - {"xray"}
    assert by_chance(("xray", "male"), 2, seed=0) == ["male"] * 2

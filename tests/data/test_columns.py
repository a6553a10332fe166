from __future__ import annotations

import numpy as np
import pytest

from medsynth.data.columns import table_of


@pytest.mark.parametrize(
    ("given", "sex"),
    [
        (["M", "F", ""], [1, 0, None]),
        (["m", " f", "?"], [1, 0, None]),
        (["male", "Female", "unknown"], [1, 0, None]),
        ([b"M", b"F", b"O"], [1, 0, None]),
        ([1, 0, 0], [1, 0, 0]),
        ([1.0, np.nan, 0.0], [1, None, 0]),
        ([True, False, True], [1, 0, 1]),
    ],
)
def test_sex_in_the_words_of_hospitals(given, sex):
    found = table_of("mine.npz", {"sex": np.array(given)}, 3, "unknown")["sex"]
    assert [None if missing else int(v) for v, missing in zip(found, found.isna(), strict=True)] == sex


@pytest.mark.parametrize(
    ("given", "odd"), [([1, 2, 2], "2"), (["M", "W", "F"], "w"), ([0.0, 9.0, np.nan], "9.0"), (["1", "2", ""], "1, 2")]
)
def test_sex_in_other_words_is_named(given, odd):
    with pytest.raises(
        ValueError, match=rf"mine\.npz: column 'sex' holds {odd}; expected M or F, or 1 \(male\) and 0 \(female\)"
    ):
        table_of("mine.npz", {"sex": np.array(given)}, 3, "unknown")


@pytest.mark.parametrize(
    ("key", "given", "odd"),
    [
        ("age", [50.0, 121.0, -1.0], "121.0, -1.0; expected 0 to 120 years as numbers, and NaN where it is not known"),
        ("age", ["057Y", "057Y", ""], "057Y; expected 0 to 120 years"),
        ("bmi", [22.0, np.inf, 3.0], "inf, 3.0; expected 5 to 120 kg/m2"),
    ],
)
def test_ages_and_weights_of_nobody_are_named(key, given, odd):
    with pytest.raises(ValueError, match=rf"mine\.npz: column '{key}' holds {odd}"):
        table_of("mine.npz", {key: np.array(given)}, 3, "unknown")


def test_ages_are_numbers_or_missing():
    columns = {"age": np.array(["57", " 3.5 ", ""]), "bmi": np.array([22.0, np.nan, 120.0]), "kernel": np.array(["B", "", "C"])}
    found = table_of("mine.npz", columns, 3, "unknown")
    np.testing.assert_array_equal(found["age"], [57, 3.5, np.nan])
    np.testing.assert_array_equal(found["bmi"], columns["bmi"])
    assert found["kernel"].tolist() == ["B", "", "C"]


@pytest.mark.parametrize("spelling", ["license", "licence"])
def test_terms_by_row_in_either_spelling(spelling):
    terms = np.array(["CC BY 4.0", "CC BY-NC 4.0"])
    found = table_of("mine.npz", {spelling: terms}, 2, "unknown")
    assert found.columns.tolist() == ["licence"] and found["licence"].tolist() == terms.tolist()
    assert table_of("mine.npz", {"age": np.array([1, 2])}, 2, "CC BY 4.0")["licence"].tolist() == ["CC BY 4.0"] * 2
    with pytest.raises(ValueError, match=r"mine\.npz: holds the columns 'license' and 'licence'; expected one of them"):
        table_of("mine.npz", {"license": terms, "licence": terms}, 2, "unknown")

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsynth.imageset import ImageSet
from medsynth.privacy.gate.refill import Filled, acceptance_by, farthest, sample_until


def drawer(wishes: int, seen: list[tuple[list[int], int]] | None = None):
    """Draws images whose first pixel is the row and second the attempt."""

    def draw(rows: np.ndarray, attempt: int) -> ImageSet:
        if seen is not None:
            seen.append((rows.tolist(), attempt))
        images = np.zeros((len(rows), 1, 2, 2), dtype=np.float32)
        images[:, 0, 0, 0], images[:, 0, 0, 1] = rows, attempt
        table = pd.DataFrame({"row": rows.astype(float)})
        return ImageSet(
            images=images, patient=np.arange(len(rows)), unit="1", range=(0, 1000), name="drawn", role="private", attributes=table
        )

    return draw


class Passing:
    """A gate that lets row r pass from its attempt `needed[r]` on."""

    def __init__(self, needed):
        self.needed = np.asarray(needed)

    def accepts(self, candidates: ImageSet) -> np.ndarray:
        rows, attempt = candidates.images[:, 0, 0, 0].astype(int), candidates.images[:, 0, 0, 1]
        return attempt >= self.needed[rows]


@given(needed=st.lists(st.integers(0, 4), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_every_wish_gets_the_first_image_that_passes_in_its_place(needed):
    filled = sample_until(len(needed), drawer(len(needed)), Passing(needed), attempts=5)
    assert filled.images.images[:, 0, 0, 0].tolist() == list(range(len(needed)))
    assert filled.images.images[:, 0, 0, 1].tolist() == needed
    assert filled.images.attributes["row"].tolist() == list(range(len(needed)))
    assert filled.images.patient.tolist() == list(range(len(needed))) and filled.images.role == "private"
    assert filled.tries.tolist() == [k + 1 for k in needed]


def test_only_refused_wishes_are_drawn_again():
    seen: list[tuple[list[int], int]] = []
    sample_until(4, drawer(4, seen), Passing([0, 2, 0, 1]), attempts=5)
    assert seen == [([0, 1, 2, 3], 0), ([1, 3], 1), ([1], 2)]


def test_the_cap_is_an_error_that_counts():
    with pytest.raises(ValueError, match=r"drawn: 2 of 3 wishes have no accepted image after 3 attempts each \(1 have one\)"):
        sample_until(3, drawer(3), Passing([0, 3, 9]), attempts=3)
    with pytest.raises(ValueError, match="0 images in at most 3 attempts"):
        sample_until(0, drawer(0), Passing([]), attempts=3)
    with pytest.raises(ValueError, match="drawn: 1 images for 2 wishes"):
        sample_until(2, lambda rows, attempt: drawer(2)(rows[:1], attempt), Passing([0, 0]))


def test_acceptance_shows_where_the_gate_refuses_most():
    needed = [0] * 30 + [1] * 30
    filled = sample_until(60, drawer(60), Passing(needed))
    table = pd.DataFrame({"finding": ["none"] * 30 + ["nodule"] * 29 + [None], "age": np.arange(60.0), "sex": [0, 1] * 30})
    rates = acceptance_by(filled, table, bins=2).set_index(["attribute", "group"])
    assert rates.loc[("finding", "none"), "value"] == 1.0
    assert rates.loc[("finding", "nodule"), "value"] == 0.5 and rates.loc[("finding", "nodule"), "candidates"] == 58
    assert rates.loc[("finding", "missing"), "candidates"] == 2
    assert rates.loc["age"].value.tolist() == [1.0, 0.5]
    assert set(rates.loc["sex"].index) == {"0", "1"}
    assert (rates.low <= rates.value).all() and (rates.value <= rates.high).all()
    few = acceptance_by(replace_tries(filled, 1), table)
    assert (few.value == 1).all()


def replace_tries(filled, value):
    return filled._replace(tries=np.full_like(filled.tries, value))


def test_sets_keep_their_unit():
    draw = drawer(2)
    filled = sample_until(2, lambda rows, k: replace(draw(rows, k), unit="HU", spacing=(1, 2)), Passing([0, 1]))
    assert (filled.images.unit, filled.images.range, filled.images.spacing) == ("HU", (0, 1000), (1, 2))


def test_the_share_of_candidates_that_passed_has_their_number():
    found = Filled(drawer(3)(np.arange(3), 0), np.array([1, 1, 8])).acceptance
    assert found.value == 0.3 and (found.n, found.n_of) == (10, "candidates") and found.low < 0.3 < found.high


@given(st.lists(st.floats(0, 1), min_size=8, max_size=30), st.sampled_from([0.0, 0.25, 0.5]), st.integers(0, 5))
def test_what_is_kept_lies_farther_than_what_is_refused(distances, share, seed):
    distance = np.array(distances)
    kept, tau = farthest(distance, share, 3, seed=seed)
    assert len(kept) == 3 and (np.diff(kept) > 0).all()
    refused = round(share * len(distance))
    assert (distance[kept] >= np.sort(distance)[refused]).all() and tau == np.quantile(distance, share)


def test_an_image_that_was_not_measured_is_the_first_to_be_refused():
    kept, tau = farthest(np.array([0.3, np.nan, 0.1, 0.2]), 0.25, 3, seed=0)
    assert kept.tolist() == [0, 2, 3] and np.isfinite(tau)
    with pytest.raises(ValueError, match=r"2 of 4 images are left at share 0\.5; expected at least 3"):
        farthest(np.arange(4.0), 0.5, 3, seed=0)

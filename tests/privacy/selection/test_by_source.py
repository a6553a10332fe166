"""What is kept for each source, and that nobody can tell which source it was."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from medsynth.imageset import ImageSet
from medsynth.privacy.selection.by_source import Search, select_by_source, unlinked

N = 40


class Toy:
    """Draws images whose first pixel is the source, the second the attempt, the third the guidance; others are noise."""

    def draw(self, conditions, rows, *, attempt, guidance):
        images = np.random.default_rng([attempt, len(rows)]).random((len(rows), 1, 2, 4)).astype(np.float32)
        images[:, 0, 0, :3] = np.stack([rows / 100, np.full(len(rows), attempt / 100), np.full(len(rows), guidance / 2)], 1)
        table = pd.DataFrame({"finding": [("none", "nodule")[r % 2] for r in rows], "age": rows.astype(float)})
        return ImageSet(images=images, patient=np.arange(len(rows)), unit="1", range=(0, 1), attributes=table, name="toy")


class Gate:
    """Accepts source r from attempt `first[r]` on."""

    def __init__(self, first):
        self.first = np.asarray(first)

    def accepts(self, candidates):
        pixels = candidates.images[:, 0, 0]
        return np.rint(pixels[:, 1] * 100) >= self.first[np.rint(pixels[:, 0] * 100).astype(int)]


def classify(images):
    share = images.images[:, 0, 1, 0].astype(float)
    return np.stack([share, 1 - share], 1)


def selected(first, search, n=N, wanted=0.5):
    target = np.full((n, 2), [wanted, 1 - wanted])
    return select_by_source(Toy(), range(n), Gate(first), wanted=target, classify=classify, search=search)


def source_of(images):
    return np.rint(images.images[:, 0, 0, 0] * 100).astype(int)


def test_each_source_gets_the_accepted_candidate_that_keeps_its_label_best():
    found = selected([3] * N, Search(candidates=8, rounds=1))
    toy = Toy()
    every = np.stack([classify(toy.draw(None, np.arange(N), attempt=k, guidance=1.4))[:, 0] for k in range(3, 8)])
    best = 3 + np.abs(every - 0.5).argmin(0)
    taken = np.rint(found.images.images[:, 0, 0, 1] * 100).astype(int)
    assert taken.tolist() == best[source_of(found.images)].tolist()
    assert sorted(source_of(found.images)) == list(range(N)) and found.refused.value == 3 / 8 and found.unserved == 0


def test_guidance_falls_from_round_to_round_to_one_and_sources_without_an_image_are_counted():
    search = Search(candidates=2, guidance=1.25, lowered=0.1, rounds=4)
    first = np.full(N, 99)
    first[:4] = [0, 2, 4, 6]
    found = selected(first, search)
    assert found.round_served[:4].tolist() == [0, 1, 2, 3] and (found.round_served[4:] == -1).all()
    assert found.unserved == N - 4 and len(found.images) == 4
    by_source = found.images.images[np.argsort(source_of(found.images)), 0, 0, 2] * 2
    np.testing.assert_allclose(by_source, [1.25, 1.15, 1.05, 1.0], atol=1e-6)
    with pytest.raises(ValueError, match=f"none of {N} sources has an acceptable image after {N * 8} candidates"):
        selected([99] * N, search)


def test_nobody_links_an_image_to_its_source_by_place_number_or_attributes():
    found = selected([0] * N, Search(candidates=2, rounds=1)).images
    source = source_of(found)
    assert (source == np.arange(N)).mean() < 0.2 and abs(stats.spearmanr(source, np.arange(N)).statistic) < 0.35
    assert found.patient.tolist() == list(range(N)) and list(found.attributes) == ["finding"]
    # the same images in another order are released as the same set
    again = unlinked(found.select(np.random.default_rng(0).permutation(N)), ("finding",))
    np.testing.assert_array_equal(again.images, found.images)


@pytest.mark.parametrize("change", [{"candidates": 0}, {"rounds": 0}, {"guidance": 0.9}, {"lowered": -0.1}])
def test_a_search_that_cannot_be_is_refused(change):
    with pytest.raises(ValueError, match="expected at least one candidate and round"):
        Search(**change)


def test_wishes_of_another_number_are_refused():
    with pytest.raises(ValueError, match="3 rows of class probabilities for 40 conditions"):
        select_by_source(Toy(), range(N), Gate([0] * N), wanted=np.ones((3, 2)), classify=classify, search=Search())

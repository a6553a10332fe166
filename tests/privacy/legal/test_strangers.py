"""Strangers of whom only features are kept."""

import numpy as np
import pytest

from medsynth.phantoms.thorax.thorax import thorax
from medsynth.privacy.attacks.legal import strangers
from medsynth.privacy.attacks.legal.singling_out import play
from medsynth.privacy.attacks.legal.strangers import file_strangers, people_of, phantom_strangers

SIZES = {"fitted": 5, "certified": 7, "baseline": 4, "seed": 0, "size": 16, "modality": "ct"}


def thumbnails(images):
    return images.images.reshape(len(images), 4, 4, 4, 4).mean((2, 4)).reshape(len(images), -1) / 1000


def test_strangers_are_drawn_once_in_chunks_and_are_nobody_else(cache, monkeypatch):
    monkeypatch.setattr(strangers, "_CHUNK", 3)
    found = phantom_strangers(thumbnails, "thumbnails", **SIZES)
    assert [group.patients for group in found] == [5, 7, 4]
    rows = np.concatenate([group.features for group in found])
    own = people_of(thorax(patients=6, size=16, modality="ct", population="private"), thumbnails)
    assert len(np.unique(np.concatenate([rows, own.features]), axis=0)) == 16 + 6
    again = phantom_strangers(None, "thumbnails", **SIZES)
    np.testing.assert_array_equal(again.certified.features, found.certified.features)
    assert again.fitted.attributes["finding"].tolist() == found.fitted.attributes["finding"].tolist()


def test_a_game_is_played_among_them_with_attributes(cache):
    sizes = SIZES | {"fitted": 40, "certified": 90, "baseline": 8}
    others = phantom_strangers(thumbnails, "thumbnails", **sizes)
    private = people_of(thorax(patients=4, size=16, modality="ct", population="private"), thumbnails)
    found = play(private, private, others, weight=1 / 30, match=("sex", "finding"), aim=0.01)
    assert found.attack.value > 0.5 and found.light > 0.5


def test_the_people_of_a_file_are_divided_into_groups_that_share_nobody():
    images = thorax(patients=70, scans=2, size=16, modality="ct", population="private")
    found = file_strangers(images, thumbnails, baseline=10, seed=3)
    assert [group.patients for group in found] == [12, 48, 10]
    assert sorted(np.concatenate([np.unique(group.patient) for group in found])) == sorted(np.unique(images.patient))
    assert all(len(group.features) == 2 * group.patients == len(group.attributes) for group in found)
    with pytest.raises(ValueError, match="70 patients, of whom 30 are for the baseline; 40 are left, expected at least 50"):
        file_strangers(images, thumbnails, baseline=30, seed=3)

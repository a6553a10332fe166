"""All scores of a set of stacks: which there are, and that a set with another heart in each row is told from the right one."""

import numpy as np
import pytest
import torch

from medsynth.evaluation.features import shipped_extractor
from medsynth.evaluation.hearts import scores as scoring
from medsynth.evaluation.hearts.scores import UNITS, HeartScores, heart_scores
from medsynth.evaluation.hearts.volumes import DAUM_FID
from medsynth.ledger import Ledger
from medsynth.phantoms.heart.heart import cardiac, cardiac_labels
from medsynth.settings.config import DPConfig, PrivacyConfig


@pytest.fixture(scope="module")
def people():
    return {seed: cardiac(patients=12, slices=8, size=32, seed=seed) for seed in (0, 1)}


@pytest.fixture
def scores(people, monkeypatch):
    """Measured by the true labels, which a table of images knows."""
    truth = {}
    for seed, images in people.items():
        labels = cardiac_labels(patients=12, slices=8, size=32, seed=seed)
        truth |= dict(zip(images.row_hashes.tolist(), labels, strict=True))
    monkeypatch.setattr(scoring, "segment", lambda _, images: np.stack([truth[h] for h in images.row_hashes.tolist()]))
    return HeartScores(people[0].with_role("eval"), shipped_extractor(), torch.nn.Identity(), seed=0, splits=2)


def test_quality_has_every_score_and_other_people_of_the_population_score_well(scores, people):
    found = scores.quality(people[1])
    assert {"KID", "KID floor", "KID of volumes", "MS-SSIM", DAUM_FID} <= set(found)
    noise = people[1].with_images(np.random.default_rng(0).random(people[1].images.shape, dtype=np.float32))
    worse = scores.quality(noise)
    assert worse["KID"].value > 10 * abs(found["KID"].value) and worse["KID of volumes"].value > found["KID of volumes"].value


def test_a_smaller_set_is_compared_at_its_own_number(scores, people):
    assert "KID" in scores.quality(people[1].select(np.arange(12)))


def test_control_is_full_where_each_row_is_its_own_and_none_where_rows_are_shuffled(scores, people):
    found = scores.control(people[0], people[0])
    assert found["lv r"].value > 0.999 and found["cycle accuracy"].value == 1 and set(UNITS) <= set(found)
    order = np.arange(24).reshape(12, 2)[np.random.default_rng(3).permutation(12)].ravel()
    shuffled = scores.control(people[0].select(order), people[0])
    assert shuffled["rv r"].value < 0.8


def test_nothing_is_controlled_where_no_volume_was_asked_for(scores, people):
    bare = people[0].with_images(people[0].images, attributes=people[0].attributes[["phase"]])
    assert scores.control(people[0], bare) == {} and scores.by_condition(people[0], bare) == {}


def test_conditions_are_scored_apart_where_enough_have_them(scores, people):
    found = scores.by_condition(people[1], people[1])
    common = [k for k in ("normal", "dilated") if all((p.attributes["condition"] == k).sum() >= 10 for p in people.values())]
    assert set(common) <= set(found) and all({"KID of volumes"} <= set(v) for v in found.values())
    # of 128 planes a side and more there is a FID as well
    assert {name for name, v in found.items() if "FID minus floor" in v} <= set(common)


def test_a_condition_with_planes_enough_has_a_fid_which_sees_a_set_that_is_not_of_it(monkeypatch):
    sets = [cardiac(patients=40, slices=8, size=32, seed=seed) for seed in (0, 1)]
    scores = HeartScores(sets[0].with_role("eval"), shipped_extractor(), torch.nn.Identity(), seed=0, splits=2)
    found = scores.by_condition(sets[1], sets[1])["normal"]
    blurred = sets[1].with_images(sets[1].images * 0.5)
    assert found["FID"].value < scores.by_condition(blurred, sets[1])["normal"]["FID"].value
    assert set(found) == {"FID", "FID floor", "FID minus floor", "KID of volumes"}


def test_joined_features_tell_planes_apart(scores, people):
    assert scores.joined(people[0]).shape == (24, 8 * 64)


def test_the_ruler_of_a_study_is_read_on_real_hearts_and_after_the_autoencoder(people, monkeypatch):
    asked = {}

    def segmenter_for(private, unseen, data, config, *, ledger, seed):
        asked.update(data=data, size=config.size, unseen=[images.patients for images in unseen])
        return torch.nn.Identity(), {"Dice LV": 0.9}

    monkeypatch.setattr(scoring, "segmenter_for", segmenter_for)
    labels = cardiac_labels(patients=12, slices=8, size=32)
    monkeypatch.setattr(scoring, "segment", lambda _, images: labels[: len(images)])
    private, test = people[1], people[0].with_role("eval")
    first, others = (test.of_patients(part) for part in np.split(np.unique(test.patient), [5]))
    training = PrivacyConfig(steps=1, batch=1)
    config = DPConfig(12, 7, 5, (1.0,), training, training, slices=8, size=32)
    told = {"config": config, "splits": 2, "ledger": Ledger(), "seed": 0}
    scores, ruler = heart_scores(private, first, others, "mine.npz", **told)
    assert asked == {"data": "mine.npz", "size": 32, "unseen": [5, 7]} and scores.test is others
    assert list(ruler) == ["segmenter", "real", "reconstructed"] and ruler["segmenter"] == {"Dice LV": 0.9}
    assert ruler["real"]["lv r"].value > 0.999 and ruler["reconstructed"]["PSNR"].value > 15
    assert scores.units["PSNR"] == "dB"


def test_what_was_measured_is_found_again_with_the_same_values_in_their_order(scores, people, cache, monkeypatch):
    first = scores.quality(people[1]), scores.control(people[1], people[1]), scores.by_condition(people[1], people[1])
    for private in ("_quality", "_control", "_by_condition"):
        monkeypatch.setattr(HeartScores, private, lambda *_: pytest.fail("measured again"))
    again = scores.quality(people[1]), scores.control(people[1], people[1]), scores.by_condition(people[1], people[1])
    assert repr(again) == repr(first) and [list(found) for found in again] == [list(found) for found in first]
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        scores.quality(people[1].select(np.arange(20)))

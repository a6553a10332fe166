"""The segmenter of hearts: what it sees, that it learns, that it is found again, and that private stacks leave a line."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medsynth.evaluation.hearts import labels as heart_labels
from medsynth.evaluation.hearts.labels import STRUCTURES, SegmenterConfig, dice, heart_segmenter, segment, train_segmenter
from medsynth.imageset import ImageSet
from medsynth.ledger import Ledger, RoleError
from medsynth.phantoms.heart.heart import LEFT_VENTRICLE, cardiac, cardiac_labels
from medsynth.training import step_generator

SIZE = {"slices": 8, "size": 32}
TINY = SegmenterConfig(patients=4, **SIZE, reach=1, channels=(16, 16, 16, 16, 16, 16), steps=3, batch=4)


@pytest.fixture(scope="module")
def private() -> tuple[ImageSet, np.ndarray]:
    people = {"patients": 6, **SIZE, "population": "private", "seed": 9}
    return cardiac(**people), cardiac_labels(**people)


def test_a_plane_is_seen_between_its_neighbours_and_beyond_the_ends_is_padding(private):
    images, _ = private
    stacks = heart_labels._padded(images, 2)
    found = heart_labels._windows(stacks, torch.tensor([[1, 0], [0, 4], [2, 7]]), 2)
    scaled = images.scaled()[:, 0]
    np.testing.assert_array_equal(found[1], scaled[0, 2:7])
    np.testing.assert_array_equal(found[0][2:], scaled[1, :3])
    np.testing.assert_array_equal(found[2][:3], scaled[2, 5:])
    assert (found[0][:2] == -1).all() and (found[2][3:] == -1).all()


def test_images_and_labels_are_distorted_alike():
    rows = torch.arange(64)[:, None]
    disc = (((rows - 24) ** 2 + (rows.T - 40) ** 2) < 100).float().expand(8, 1, 64, 64)
    grey, target = heart_labels._distorted(2 * disc - 1, disc, step_generator(0, 0))
    for i in range(8):
        assert np.corrcoef(grey[i].flatten(), target[i].flatten())[0, 1] > 0.9
        assert (target[i] != disc[i]).float().sum() > 10
    assert set(target.unique().tolist()) == {0, 1}


def test_it_learns_from_public_phantoms_to_find_the_left_ventricle_of_others(private, cache):
    images, labels = private
    found = segment(heart_segmenter(replace(TINY, patients=16, steps=60, batch=8)), images)
    assert found.shape == labels.shape and found.dtype == np.uint8 and set(np.unique(found)) <= {0, 1, 2, 3}
    left = list(STRUCTURES).index(LEFT_VENTRICLE)
    # the best disc that is the same in every stack has 0.55
    assert dice(found, labels)[:, left].mean() > 0.6


def test_it_is_trained_once_and_found_again(cache, monkeypatch):
    first = heart_segmenter(TINY)

    def no_training(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(heart_labels, "fit", no_training)
    again = heart_segmenter(TINY)
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    with pytest.raises(AssertionError, match="trained again"):
        heart_segmenter(replace(TINY, seed=1))


def test_training_twice_gives_the_same_weights_whatever_was_drawn_before(tmp_path, monkeypatch):
    found = []
    for folder in ("a", "b"):
        monkeypatch.setenv("MEDSYNTH_CACHE", str(tmp_path / folder))
        torch.rand(len(found) + 1)
        found.append(heart_segmenter(TINY).state_dict())
    for a, b in zip(found[0].values(), found[1].values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_labels_do_not_depend_on_the_batch(private, cache):
    images, _ = private
    segmenter = heart_segmenter(TINY)
    whole = segment(segmenter, images)
    assert (segment(segmenter, images, batch=5) != whole).mean() < 1e-4
    assert (segment(segmenter, images.select([3]))[0] != whole[3]).mean() < 1e-4
    assert segment(segmenter, images.select([])).shape == (0, 8, 32, 32)


def test_private_stacks_leave_a_line_and_held_out_ones_are_refused(private, cache):
    images, labels = private
    ledger = Ledger()
    train_segmenter(images, labels, TINY, ledger=ledger)
    assert [(e.stage, e.reads) for e in ledger.entries(images)] == [("train segmenter", images.name)]
    with pytest.raises(RoleError, match="held out"):
        train_segmenter(images.with_images(images.images, role="eval"), labels, TINY, ledger=Ledger())


def test_other_labels_are_another_training(private, cache, monkeypatch):
    images, labels = private
    train_segmenter(images, labels, TINY, ledger=Ledger())
    monkeypatch.setattr(heart_labels, "fit", lambda *_, **__: pytest.fail("trained"))
    train_segmenter(images, labels, TINY, ledger=Ledger())
    with pytest.raises(pytest.fail.Exception, match="trained"):
        train_segmenter(images, np.where(labels == 1, 0, labels), TINY, ledger=Ledger())


def test_labels_that_do_not_fit_the_images_are_refused(private):
    images, labels = private
    with pytest.raises(ValueError, match=r"expected \(12, 8, 32, 32\), 0 to 3"):
        train_segmenter(images, labels[:5], TINY, ledger=Ledger())
    with pytest.raises(ValueError, match="up to 4"):
        train_segmenter(images, np.full_like(labels, 4), TINY, ledger=Ledger())


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 2, 8, 32, 32), (2, 1, 8, 24, 32), (2, 1, 8, 33, 32)])
def test_what_is_no_stack_of_this_size_is_refused(shape, cache):
    images = ImageSet(images=np.zeros(shape), patient=np.arange(2), unit="1", range=(0, 1), name="odd")
    with pytest.raises(ValueError, match="expected stacks"):
        segment(heart_labels.HeartSegmenter(TINY), images)


def test_dice_by_hand():
    true, found = np.zeros((2, 1, 2, 4), np.uint8), np.zeros((2, 1, 2, 4), np.uint8)
    true[0, 0, 0] = [1, 1, 2, 3]
    found[0, 0, 0] = [1, 2, 2, 0]
    scores = dice(found, true)
    np.testing.assert_allclose(scores[0], [2 / 3, 2 / 3, 0])
    assert np.isnan(scores[1]).all()

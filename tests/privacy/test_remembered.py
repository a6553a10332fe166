"""What is remembered, on samples whose answer is known: copies of trained planes, of kept planes, of others, and of nobody."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medsynth.imageset import ImageSet
from medsynth.privacy.attacks import remembered
from medsynth.privacy.attacks.halves import planes_halved
from medsynth.privacy.attacks.memorisation import correlations
from medsynth.privacy.attacks.remembered import (
    COPIES,
    MARGIN,
    NEARER,
    OTHER_HALF,
    OTHERS,
    REMEMBERED,
    Memory,
    Ward,
    likeness,
    recipe,
    ward,
)
from medsynth.privacy.attacks.remembered import _Planes as Planes
from medsynth.settings.audits import MemorisationConfig

CONFIG = MemorisationConfig(patients=5, others=7, passes=(3, 20), epsilons=(1.0,), private_passes=4, batch=2, planes=4, size=32)


def people(n, seed, *, depth=8, likeness=0.5, role="private"):
    """Stacks whose planes have a part in common, by which a patient is like himself: the share `likeness` of their variance."""
    rng = np.random.default_rng(seed)
    own, planes = rng.normal(size=(n, 1, 1, 6, 6)), rng.normal(size=(n, 1, depth, 6, 6))
    images = np.sqrt(likeness) * own + np.sqrt(1 - likeness) * planes
    return ImageSet(
        images=1 / (1 + np.exp(-images)), patient=100 * seed + np.arange(n), unit="1", range=(0, 1), name="ward", role=role
    )


def pixels(images):
    return images.images.reshape(len(images), -1).astype(np.float64)


@pytest.fixture(scope="module")
def known():
    halves = planes_halved(people(40, 1), planes=4, seed=0)
    return Memory(Ward(halves, planes_halved(people(40, 2), planes=4, seed=0).trained), pixels)


def value(found):
    return {name: estimate.value for name, estimate in found.items()}


def test_copies_of_trained_planes_are_memory(known):
    found = value(known.of(known.ward.halves.trained))
    assert found[REMEMBERED] == found[COPIES] == found[NEARER] == 1 and found[MARGIN] > 0.2
    # and by the limit alone the patient would seem remembered by planes that nobody saw
    assert found[OTHER_HALF] > 0.5 and found[OTHERS] < 0.3


def test_planes_that_were_kept_are_likeness_and_no_memory(known):
    found = value(known.of(known.ward.halves.held_out))
    assert found[REMEMBERED] > 0.5 and found[NEARER] == 0


def test_new_images_of_the_same_patients_pass_the_test_of_the_coins(known):
    again = people(40, 1)
    noise = np.random.default_rng(3).normal(0, 0.05, again.images.shape)
    # the mean over planes is what both halves have in common
    mean = np.repeat(again.images.mean(2, keepdims=True), 8, 2)
    found = known.of(again.with_images(np.clip(mean + noise, 0, 1)))
    assert found[REMEMBERED].value > 0.5
    assert found[NEARER].low < 0.5 < found[NEARER].high and found[NEARER].n == 40
    assert found[MARGIN].low < 0 < found[MARGIN].high


def test_strangers_are_not_remembered(known):
    found = known.of(people(40, 9))
    assert found[COPIES].value < 0.2 and found[REMEMBERED].low < 0.15 and found[NEARER].low < 0.5 < found[NEARER].high
    assert found[COPIES].n_of == "samples" and found[REMEMBERED].n_of == "patients"


def test_one_copy_among_samples_finds_one_patient(known):
    mixed = known.ward.halves.trained.images.copy()
    mixed[1:] = planes_halved(people(40, 9), planes=4, seed=0).trained.images[1:]
    before = known.of(planes_halved(people(40, 9), planes=4, seed=0).trained.select(np.arange(1, 40)))
    found = known.of(known.ward.halves.trained.with_images(mixed))
    assert found[REMEMBERED].value == pytest.approx(before[REMEMBERED].value + 1 / 40)


def test_controls_say_what_to_expect(known, monkeypatch):
    monkeypatch.setattr(remembered, "reconstruct", lambda _, images: images)
    found = {images: value(rows) for images, rows in known.controls(None).items()}
    assert found["copy"][REMEMBERED] == found["copy"][NEARER] == 1
    assert found["another patient"][REMEMBERED] < 0.2 and 0.2 < found["another patient"][NEARER] < 0.8
    assert found["the patient's other planes"][REMEMBERED] > 0.5 and NEARER not in found["the patient's other planes"]


def test_the_limit_is_what_95_percent_of_held_out_patients_stay_below(known):
    mine, others = (Planes.of(x, pixels) for x in (known.ward.halves.trained, known.ward.others))
    assert (likeness(others, mine).max(1) > known.limit).sum() == 2


def test_likeness_is_the_mean_of_the_best_planes():
    a, b = people(3, 1, depth=4), people(5, 2, depth=3)
    dark = b.images.copy()
    dark[2, :, 1:] = 0
    found = likeness(Planes.of(a, pixels), Planes.of(b.with_images(dark), pixels))
    for i in range(3):
        for j in range(5):
            rows = [b.images[j, :, z].ravel() for z in range(1 if j == 2 else 3)]
            best = [max(np.corrcoef(a.images[i, :, z].ravel(), row)[0, 1] for row in rows) for z in range(4)]
            assert found[i, j] == pytest.approx(np.mean(best))


def test_an_image_without_planes_is_like_nobody_and_images_are_planes():
    a = people(3, 1)
    black = a.with_images(np.where(np.arange(3)[:, None, None, None, None] == 1, 0, a.images))
    found = likeness(Planes.of(black, pixels), Planes.of(a, pixels))
    assert found[1].tolist() == [-1, -1, -1] and found[0, 0] == pytest.approx(1)
    flat = ImageSet(images=a.images[:, :, 0], patient=np.array([4, 4, 2]), unit="1", range=(0, 1), name="ct")
    planes, between = Planes.of(flat, pixels), correlations(pixels(flat), pixels(flat))
    np.testing.assert_allclose(likeness(planes, planes), np.stack([between[:, 2], between[:, :2].max(1)], 1))


def test_a_ward_of_phantoms_has_half_of_their_planes_and_others(cache):
    found = ward(CONFIG, seed=1)
    (trained, kept), others = found
    assert trained.patients == 5 and others.patients == 7 and not set(trained.patient) & set(others.patient)
    assert trained.spatial == others.spatial == (4, 32, 32) and set(kept.patient) <= set(trained.patient)
    assert (trained.role, others.role, trained.dataset) == ("private", "eval", "phantom-heart")


def test_a_ward_of_a_file_has_one_stack_of_each_patient(cache, tmp_path):
    rng = np.random.default_rng(0)
    patient, split = np.repeat(np.arange(12), 2), np.repeat(["train"] * 8 + ["test"] * 4, 2)
    volumes = rng.integers(1, 255, (24, 6, 40, 40)).astype(np.uint8)
    np.savez(tmp_path / "mine.npz", volume=volumes, patient=patient, split=split)
    (trained, kept), others = ward(CONFIG, str(tmp_path / "mine.npz"))
    assert trained.patient.tolist() == kept.patient.tolist() == [0, 1, 2, 3, 4] and trained.spatial == (4, 32, 32)
    # four test patients, and the three who are left
    assert others.patients == len(others) == 7
    both = np.concatenate([trained.images[0, 0], kept.images[0, 0]])[:, 0, 0]
    assert set(volumes[0, :, 4, 4].tolist()) == set(np.round(255 * both).astype(int).tolist()) - {0}


def test_a_ward_of_images_caps_what_a_patient_adds(cache, tmp_path):
    rng = np.random.default_rng(0)
    patient = np.concatenate([np.repeat(np.arange(8), 2), np.full(40, 8)])
    split = np.where(patient < 5, "train", "test")
    split[patient == 8] = "train"
    images = rng.integers(-1000, 300, (56, 32, 32)).astype(np.int16)
    np.savez(tmp_path / "mine.npz", image=images, patient=patient, split=split)
    config = MemorisationConfig(6, 9, (3,), (1.0,), 4, planes=4, size=32)
    (trained, kept), others = ward(config, str(tmp_path / "mine.npz"), "ct")
    assert dict(zip(*np.unique(trained.patient, return_counts=True), strict=True)) == {0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 8: 4}
    assert len(kept) == len(trained) and others.patients == 3


def test_passes_are_over_patients():
    assert CONFIG.arms == ("passes/3", "passes/20", "epsilon/1", "epsilon/inf")
    long, private = recipe(CONFIG, "passes/20", 5), recipe(CONFIG, "epsilon/1", 5)
    assert (long.steps, long.batch, long.epsilon, long.trainable) == (50, 2, math.inf, "full")
    assert (private.steps, private.batch, private.epsilon, private.trainable) == (4, 5, 1.0, "bias")
    assert recipe(CONFIG, "epsilon/inf", 5).steps == private.steps and recipe(CONFIG, "passes/20", 1).steps == 20

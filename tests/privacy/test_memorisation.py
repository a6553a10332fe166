"""Copies among samples: planted ones, chance ones, and counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsynth.evaluation.statistics import clopper_pearson
from medsynth.privacy.attacks import memorisation
from medsynth.privacy.attacks.memorisation import copied, copied_by_others, copy_threshold, correlations, memorised

DIM = 24


def rows(n, seed, d=DIM):
    return np.random.default_rng(seed).normal(size=(n, d))


def alone(n):
    return np.arange(n)


# correlations


@given(st.integers(1, 6), st.integers(1, 6), st.integers(2, 9), st.integers(0, 2**32))
def test_correlations_are_pearsons(n, m, d, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, d)) * 10.0 ** rng.integers(-6, 6), rng.normal(size=(m, d)) + rng.normal() * 100
    found = correlations(a, b)
    for i in range(n):
        for j in range(m):
            assert found[i, j] == pytest.approx(np.corrcoef(a[i], b[j])[0, 1], abs=1e-9)


def test_shift_and_scale_change_nothing_however_large():
    a = rows(5, 0)
    np.testing.assert_allclose(np.diag(correlations(a, 3 * a + 7)), 1)
    np.testing.assert_allclose(np.diag(correlations(1e200 * a, -1e-200 * a)), -1)


def test_a_constant_row_correlates_with_nothing():
    constant = np.full((1, 4), 0.1)
    assert correlations(constant, constant).tolist() == [[0.0]] and (correlations(constant, rows(3, 0, 4)) == 0).all()
    assert correlations(np.zeros((1, 4)), rows(3, 0, 4)).tolist() == [[0, 0, 0]]
    # nor does one that varies by roundings alone
    assert (correlations(7 + 1e-15 * np.arange(4)[None], rows(3, 0, 4)) == 0).all()


def test_copies_correlate_alike_however_their_sums_were_rounded():
    a = rows(300, 0, 50)
    assert (np.diag(correlations(a, 3 * a)) == 1).all()
    assert copied(a, a, alone(300), 1.0).share_of_samples.value == 0


def test_features_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match=r"features \(0, 24\); expected"):
        correlations(rows(2, 0), rows(0, 0))
    with pytest.raises(ValueError, match="all finite"):
        correlations(np.array([[np.nan, 1.0]]), rows(2, 0, 2))
    with pytest.raises(ValueError, match="of 24 and of 3 dimensions"):
        correlations(rows(2, 0), rows(2, 0, 3))


# counts


def at(degrees):
    """Rows of two independent directions, whose correlation is the cosine of the angle between them."""
    angle = np.deg2rad(np.atleast_1d(np.asarray(degrees, dtype=float)))
    u, v = np.array([1.0, -1, 0, 0]) / 2**0.5, np.array([0.0, 0, 1, -1]) / 2**0.5
    return np.cos(angle)[:, None] * u + np.sin(angle)[:, None] * v


def test_counts_are_those_by_hand():
    training, patient = at([0, 40, 80, 120]), np.array([5, 5, 6, 7])
    limit = np.cos(np.deg2rad(10))
    # 3 and 36 are near patient 5, 95 lies 15 from patient 6, 121 is near patient 7
    found = copied(at([3, 36, 95, 121]), training, patient, limit)
    assert found.share_of_patients == clopper_pearson(2, 3, n_of="patients")
    assert found.share_of_samples == clopper_pearson(3, 4, n_of="samples")
    assert found.threshold == limit
    # what equals the threshold does not exceed it
    assert copied(at(0), training, patient, 1.0).share_of_samples.value == 0


def test_the_threshold_is_exceeded_by_few_held_out_patients_each_weighing_the_same():
    training = at([0])
    held_out = at([10, 20, 30, 40])
    # one of four may exceed it
    assert copy_threshold(held_out, training, alone(4), percentile=75) == pytest.approx(np.cos(np.deg2rad(20)))
    assert copy_threshold(held_out, training, alone(4), percentile=95) == pytest.approx(np.cos(np.deg2rad(10)))
    # two images of one patient are half a patient each
    assert copy_threshold(held_out, training, np.array([0, 0, 1, 2]), percentile=60) == pytest.approx(np.cos(np.deg2rad(30)))
    # the nearest training image counts, not all
    assert copy_threshold(held_out, at([0, 90]), alone(4), percentile=95) == pytest.approx(np.cos(np.deg2rad(10)))
    with pytest.raises(ValueError, match="percentile 100; expected"):
        copy_threshold(held_out, training, alone(4), percentile=100)


def test_planted_copies_are_found_through_noise_and_their_patients_named():
    training, held_out, patient = rows(200, 0), rows(400, 1), np.arange(200) // 2
    noise = 0.1 * rows(50, 3)
    # copies of images 0..49, of 25 patients, and as many samples that are nobody's
    samples = np.concatenate([training[:50] + noise, rows(50, 4)])
    found = memorised(samples, training, held_out, patient, alone(400), percentile=99)
    assert found.share_of_samples.value == pytest.approx(0.5, abs=0.03)
    assert found.share_of_patients.value == pytest.approx(0.25, abs=0.03) and found.share_of_patients.n == 100
    # those who were left out are not found
    others = copied(samples[:50], rows(200, 5), patient, found.threshold)
    assert others.share_of_samples.value < 0.1
    # a copy with a hundredth of noise, in other units, is all the same
    assert copied(4 * (training + 0.01 * rows(200, 6)) - 2, training, patient, found.threshold).share_of_patients.value == 1


@pytest.mark.parametrize("percentile", [80, 95])
def test_samples_that_are_new_patients_are_taken_for_copies_as_often_as_the_percentile_says(percentile):
    training, held_out = rows(150, 0), rows(2000, 1)
    found = memorised(rows(2000, 2), training, held_out, alone(150), alone(2000), percentile=percentile)
    expected = 1 - percentile / 100
    # the threshold varies as well as the share
    assert abs(found.share_of_samples.value - expected) < 4 * (2 * expected * (1 - expected) / 2000) ** 0.5
    assert found.share_of_samples.n == 2000 and found.share_of_samples.n_of == "samples"


def test_by_chance_alone_more_samples_find_more_patients():
    """Why shares of patients are compared at equal numbers, and beside new patients in the place of samples."""
    training, held_out, many = rows(150, 0), rows(600, 1), rows(3000, 2)
    limit = copy_threshold(held_out, training, alone(600))
    few, all_ = (copied(s, training, alone(150), limit) for s in (many[:100], many))
    assert few.share_of_patients.value < 0.1 and all_.share_of_patients.value > 0.4
    assert abs(few.share_of_samples.value - all_.share_of_samples.value) < 0.06


@given(st.integers(0, 2**32))
def test_the_order_of_rows_and_the_numbers_of_patients_change_nothing(seed):
    rng = np.random.default_rng(seed)
    training, patient = rng.normal(size=(30, 6)), rng.integers(0, 12, 30)
    held_out, theirs = rng.normal(size=(20, 6)), rng.integers(0, 9, 20)
    # some samples are held-out and training rows themselves, where rounding could decide
    samples = np.concatenate([rng.normal(size=(15, 6)), training[:3], held_out])
    t, h, s = (rng.permutation(len(x)) for x in (training, held_out, samples))
    here = memorised(samples, training, held_out, patient, theirs, percentile=80)
    there = memorised(samples[s], training[t], held_out[h], 7 - 2 * patient[t], theirs[h] + 100, percentile=80)
    assert here == there


def test_blocks_change_nothing(monkeypatch):
    training, samples, patient = rows(40, 0), rows(30, 1), np.arange(40) // 2
    here = copied(samples, training, patient, 0.4), copied_by_others(training, patient, 0.4, others="patients")
    monkeypatch.setattr(memorisation, "_ROWS", 7)
    assert (copied(samples, training, patient, 0.4), copied_by_others(training, patient, 0.4, others="patients")) == here
    assert 0 < here[0].share_of_samples.value < 1


def test_slices_of_one_sample_are_no_independent_samples():
    training, patient = at([0, 90]), alone(2)
    samples, volume = at([1, 2, 3, 45, 46, 91]), np.array([0, 0, 0, 1, 1, 2])
    whole = copied(samples, training, patient, 0.99, volume=volume).share_of_samples
    # where slices of a volume agree, volumes are counted exactly
    assert whole == clopper_pearson(2, 3, n_of="samples")
    mixed = copied(samples, training, patient, 0.99, volume=np.array([0, 0, 1, 1, 2, 2])).share_of_samples
    # one volume whole, two by half
    assert (mixed.value, mixed.n, mixed.n_of) == (pytest.approx(2 / 3), 3, "samples") and mixed.low < mixed.high


# controls


def test_images_beside_all_others_and_beside_other_patients():
    images, patient = at([0, 4, 50, 57, 100]), np.array([0, 0, 1, 2, 3])
    limit = np.cos(np.deg2rad(10))
    # 0 and 4 are one patient's; 50 and 57 are of two
    beside = {others: copied_by_others(images, patient, limit, others=others) for others in ("images", "patients")}
    assert [beside[k].share_of_patients.value for k in ("images", "patients")] == [0.75, 0.5]
    assert beside["images"].share_of_samples.value == pytest.approx(3 / 4)
    assert beside["patients"].share_of_samples.value == pytest.approx(2 / 4)
    with pytest.raises(ValueError, match="others 'rows'; expected"):
        copied_by_others(images, patient, limit, others="rows")
    with pytest.raises(ValueError, match="5 images of 1 patients; expected patients beside each"):
        copied_by_others(images, np.zeros(5), limit, others="patients")


def test_the_control_counts_as_copied_does_without_the_image_itself():
    images, patient = rows(25, 0, 5), np.arange(25) // 2
    hits, copies = set(), np.zeros(25)
    for i in range(25):
        others = np.flatnonzero(patient != patient[i])
        alike = correlations(images[[i]], images[others])[0]
        if alike.max() > 0.9:
            copies[i] = 1
            hits.add(patient[others[alike.argmax()]])
    found = copied_by_others(images, patient, 0.9, others="patients")
    assert found.share_of_patients == clopper_pearson(len(hits), 13, n_of="patients") and 0 < len(hits) < 13
    means = [copies[patient == p].mean() for p in range(13)]
    assert found.share_of_samples.value == pytest.approx(np.mean(means))

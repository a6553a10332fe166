"""What meets in a release, and what is told by it, where the answer is known."""

import numpy as np
import pandas as pd
import pytest

from medsynth.evaluation.statistics import Estimate
from medsynth.privacy.attacks.legal.inference import inference
from medsynth.privacy.attacks.legal.linkability import linkability, scan_pairs
from medsynth.privacy.attacks.legal.risk import residual, risk_of

N, DIM = 300, 6


def scans(rng, n=N, spread=0.3):
    """Two scans of each of n people."""
    person = rng.normal(size=(n, DIM))
    return tuple(person + spread * rng.normal(size=(n, DIM)) for _ in range(2))


def test_copies_of_members_link_members_and_nobody_else():
    rng = np.random.default_rng(0)
    members, others = scans(rng), scans(rng)
    middle = sum(members) / 2
    found = linkability(middle, members, others, seed=0)
    assert found.attack.value > 0.9 and found.beats_its_baseline and found.residual.low > 0.5
    assert found.control.value < 0.6 and found.baseline.value < 0.05 and found.attack.n == N


def test_a_release_of_strangers_links_members_no_more_than_others():
    rng = np.random.default_rng(1)
    found = linkability(rng.normal(size=(N, DIM)), scans(rng), scans(rng), seed=0)
    # scans of a person are alike, so they meet; that is no leak
    assert found.beats_its_baseline and found.residual.low <= 0 <= found.residual.high


def test_one_released_image_links_everybody_with_everybody():
    rng = np.random.default_rng(2)
    found = linkability(np.zeros((1, DIM)), scans(rng), scans(rng), seed=0)
    assert found.attack.value == found.baseline.value == 1 and not found.beats_its_baseline and found.residual.value == 0


def test_scans_that_are_no_pairs_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="expected two of each person, row by row"):
        linkability(np.zeros((3, DIM)), (rng.normal(size=(4, DIM)), rng.normal(size=(5, DIM))), scans(rng), seed=0)
    with pytest.raises(ValueError, match="1 members; expected at least two"):
        linkability(np.zeros((3, DIM)), scans(rng, 1), scans(rng), seed=0)


def told(rng, n, shows):
    """Features and a secret that the first of them shows, for so large a share of people."""
    secret = rng.integers(0, 2, n)
    features = rng.normal(size=(n, DIM))
    features[:, 0] += np.where(rng.random(n) < shows, 6 * secret, 6 * rng.integers(0, 2, n))
    return features, pd.Series(secret)


def test_copies_tell_what_images_do_not_show():
    rng = np.random.default_rng(0)
    members, others = told(rng, N, 0.0), told(rng, N, 0.0)
    found = inference(members, members, others)
    assert found.attack.value == 1 and abs(found.control.value - 0.5) < 0.1 and found.residual.low > 0.9


def test_what_images_show_is_inferred_of_everybody_and_is_no_leak():
    rng = np.random.default_rng(0)
    found = inference(told(rng, N, 1.0), told(rng, N, 1.0), told(rng, N, 1.0))
    assert found.attack.value > 0.95 and found.control.value > 0.95 and found.beats_its_baseline
    assert found.residual.low <= 0 <= found.residual.high


def test_rows_without_a_secret_are_left_out():
    rng = np.random.default_rng(0)
    features, secret = told(rng, N, 0.0)
    half = secret.astype("Int64").mask(np.arange(N) % 2 == 0)
    assert inference((features, half), (features, half), (features, secret)).attack.n == N // 2
    with pytest.raises(ValueError, match="members: nobody's secret is known"):
        inference((features, secret), (features, half.mask(half.notna())), (features, secret))


def test_the_residual_is_what_is_left_of_what_could_be_gained():
    found = risk_of(np.arange(10) < 8, np.arange(10) < 6, np.arange(10) < 5)
    assert found.residual.value == pytest.approx(0.5) and found.residual.low < 0 < found.residual.high
    assert residual(Estimate(1, 1, 1, 5), Estimate(1, 1, 1, 5)).value == 0


def test_the_first_two_images_of_who_has_two_stand_row_by_row(make_set):
    images = make_set(7, patient=np.array([5, 2, 5, 9, 2, 5, 1]), split=None)
    first, second = scan_pairs(images)
    assert first.patient.tolist() == second.patient.tolist() == [2, 5]
    np.testing.assert_array_equal(first.images, images.images[[1, 0]])
    np.testing.assert_array_equal(second.images, images.images[[4, 2]])
    with pytest.raises(ValueError, match="1 of 3 patients have two images; expected at least two"):
        scan_pairs(images.select([0, 2, 3, 6]))

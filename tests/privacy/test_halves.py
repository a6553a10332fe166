"""Halves of patients' planes: every plane once, the coin fair and the patient's own."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsynth.imageset import ImageSet
from medsynth.privacy.attacks.halves import one_image_each, planes_at, planes_halved


def stacks(depths, *, depth=12, side=8, patient=None):
    """Plane z of stack i is 0.001 + i % 50 / 100 + z / 1000 throughout; planes from its depth on are black."""
    images = np.zeros((len(depths), 1, depth, side, side), np.float32)
    for i, planes in enumerate(depths):
        for z in range(planes):
            images[i, 0, z] = 0.001 + i % 50 / 100 + z / 1000
    patient = np.arange(len(depths)) if patient is None else patient
    table = pd.DataFrame({"n_slices": depths, "age": 40.0 + np.arange(len(depths))})
    return ImageSet(images=images, patient=patient, unit="1", range=(0, 1), name="ward", role="private", attributes=table)


def shown(stack):
    """Numbers of the planes of one stack that `stacks` made."""
    values = stack[0, :, 0, 0]
    return [round(1000 * float(v) - 1) % 10 for v in values if v > 0]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 99))
def test_every_plane_is_in_one_half_and_neighbours_are_in_different_ones(depths, seed):
    halves = planes_halved(stacks(depths), planes=5, seed=seed)
    trained = dict(zip(halves.trained.patient.tolist(), map(shown, halves.trained.images), strict=True))
    held_out = dict(zip(halves.held_out.patient.tolist(), map(shown, halves.held_out.images), strict=True))
    for i, planes in enumerate(depths):
        mine, others = trained[i], held_out.get(i, [])
        assert sorted(mine + others) == list(range(planes))
        assert {z % 2 for z in mine} | {z % 2 for z in others} <= {0, 1} and len({z % 2 for z in mine}) == 1
        assert (planes == 1) == (i not in held_out)
    for half, planes in zip(halves, (trained, held_out), strict=True):
        assert half.attributes["n_slices"].tolist() == [len(planes[p]) for p in half.patient.tolist()]
        assert half.attributes["age"].tolist() == [40.0 + p for p in half.patient.tolist()]
        assert half.role == "private" and half.spatial == (5, 8, 8)


def test_planes_of_deep_stacks_are_evenly_spaced_and_none_is_twice():
    halves = planes_halved(stacks([9]), planes=3, seed=0)
    planes = [shown(half.images[0]) for half in halves]
    assert sorted(planes[0] + planes[1]) == [0, 2, 3, 5, 6, 8] and {len(p) for p in planes} == {3}


def test_images_are_halved_and_capped_patient_by_patient():
    patient = np.repeat([7, 3, 5], [1, 4, 30])
    images = np.random.default_rng(0).random((35, 1, 4, 4), dtype=np.float32)
    halves = planes_halved(ImageSet(images=images, patient=patient, unit="1", range=(0, 1), name="ct"), planes=6, seed=0)
    counts = [dict(zip(*np.unique(half.patient, return_counts=True), strict=True)) for half in halves]
    assert counts == [{3: 2, 5: 6, 7: 1}, {3: 2, 5: 6}]
    assert not set(halves.trained.row_hashes) & set(halves.held_out.row_hashes)


def test_a_patients_half_depends_on_nobody_else():
    alone, among = (planes_halved(stacks([8] * n), planes=4, seed=5).trained.images[3] for n in (4, 9))
    np.testing.assert_array_equal(alone, among)


def test_coins_are_fair():
    first = [0 in shown(stack) for stack in planes_halved(stacks([4] * 400, depth=4, side=2), planes=2, seed=1).trained.images]
    assert 160 < sum(first) < 240


def test_several_stacks_of_a_patient_are_refused_and_the_first_of_each_can_be_taken():
    both = stacks([4, 5, 6, 4], patient=np.array([2, 2, 1, 1]))
    with pytest.raises(ValueError, match="ward: 4 stacks of 2 patients; expected one of each"):
        planes_halved(both, planes=4, seed=0)
    assert one_image_each(both).attributes["n_slices"].tolist() == [4, 6]


def test_planes_are_made_smaller_one_by_one():
    wide = stacks([3, 12], side=20)
    small = planes_at(wide, 8)
    assert small.spatial == (12, 8, 8) and small.spacing is None
    np.testing.assert_allclose(small.images[..., 0, 0], wide.images[..., 0, 0])
    varied = np.random.default_rng(0).random((1, 1, 2, 20, 20), dtype=np.float32)
    found = planes_at(wide.select([0]).with_images(varied), 8).images
    np.testing.assert_allclose(found[0, 0, 1, 0, 0], varied[0, 0, 1, 2:4, 2:4].mean(), rtol=1e-6)

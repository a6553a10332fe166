"""Heads tell what they were trained to tell, a filter refuses what its likeness says, and who sees nothing is not counted."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from scipy.stats import binom, norm

from medsynth.imageset import ImageSet
from medsynth.ledger import Ledger
from medsynth.phantoms.thorax.thorax import thorax
from medsynth.privacy.attacks.reidentification import (
    AllOf,
    Distance,
    Filter,
    altered_by_chance,
    altered_copies,
    auc_of,
    fitted_and_fresh,
    registered_correlation,
    same_person_filter,
    scans_of_people,
    trained_head,
    two_views,
    unseen_attackers,
    without,
)
from medsynth.privacy.gate.kinds import ALTERATIONS, KINDS, altered


class Pixels(NamedTuple):
    name: str = "pixels"

    def __call__(self, images: ImageSet) -> np.ndarray:
        return images.images.reshape(len(images), -1).astype(np.float32)


@pytest.fixture
def people(make_set):
    """A function: so many patients, each with two scans that share the first half of their pixels, from a seed."""

    def drawn(patients: int, seed: int) -> ImageSet:
        rng = np.random.default_rng(seed)
        images = rng.random((patients, 2, 1, 8, 8))
        images[:, 1, :, :4] = images[:, 0, :, :4]
        return make_set(2 * patients, images=images.reshape(-1, 1, 8, 8), patient=np.repeat(np.arange(patients) + 100 * seed, 2))

    return drawn


def test_pairs_are_scans_of_one_patient_and_of_one_with_the_next(people):
    images = people(5, 1)
    pairs = scans_of_people(images)
    assert len(pairs.first) == len(pairs.second) == 10 and pairs.same.tolist() == [True] * 5 + [False] * 5
    ours, theirs = (x.images[:, 0, :4] for x in (pairs.first, pairs.second))
    assert (ours == theirs).all((1, 2)).tolist() == pairs.same.tolist()
    np.testing.assert_array_equal(pairs.second.images[5:9], images.images[3::2])
    with pytest.raises(ValueError, match="images of one patient; expected at least two"):
        altered_copies(images.select([0, 1]), ["blur"], seed=0, strangers=images)


def test_copies_are_altered_in_the_ways_that_are_named(people):
    images, other = people(40, 1), people(3, 2)
    pairs = altered_copies(images, ["box", "blend"], seed=3, strangers=other)
    assert pairs.same.sum() == 80 and (pairs.patient[:80] == images.patient).all()
    changed = (pairs.second.images[:80] != images.images).any((1, 2, 3))
    assert changed.all()
    again = altered_copies(images, ["box", "blend"], seed=3, strangers=other)
    np.testing.assert_array_equal(again.second.images, pairs.second.images)
    # at one strength in one way, the alteration as it is called
    once = altered_by_chance(images, ["blur"], [0.5], seed=3, strangers=other)
    np.testing.assert_array_equal(once.images, altered(images, "blur", 0.5, seed=3).images)
    assert set(without("mixing")) | set(KINDS["mixing"]) == set(ALTERATIONS) and not set(without("mixing")) & set(KINDS["mixing"])


@pytest.mark.parametrize("hidden", [0, 16])
def test_a_head_learns_what_is_alike_in_pairs_and_finds_it_in_unseen_patients(people, hidden):
    head = trained_head(Pixels(), scans_of_people(people(200, 1)), seed=1, hidden=hidden)
    unseen = scans_of_people(people(80, 2))
    found, near = auc_of(head, unseen, seed=0, replicates=100), auc_of(Distance(Pixels()), unseen, seed=0, replicates=100)
    assert found.value > 0.99 >= found.low - 0.01 and found.n == 160 and found.value > near.value > 0.6


def test_an_attacker_who_sees_nothing_is_not_counted(people, make_set):
    blind = make_set(120, images=np.random.default_rng(0).random((120, 1, 8, 8)), patient=np.repeat(np.arange(60), 2))
    with pytest.raises(ValueError, match=r"pixels: an AUC of 0\.\d+ .* no better than chance; train it on more pairs"):
        auc_of(Distance(Pixels()), scans_of_people(blind), seed=0, replicates=200)


def test_a_filter_refuses_what_is_alike_at_the_cost_that_was_fixed(people, monkeypatch):
    monkeypatch.setattr("medsynth.privacy.attacks.reidentification._BLOCK", 64 * 7 * 3)
    private, unseen = people(10, 1).select(np.arange(0, 20, 2)), people(50, 2)
    head = trained_head(Pixels(), scans_of_people(people(200, 3)))
    stop = Filter([head], private, unseen, cost=0.1)
    x, y = head.phi(unseen), head.phi(private)
    naive = [max(head.score(a[None], b[None])[0] for b in y) for a in x]
    np.testing.assert_allclose(stop.likeness(unseen)[:, 0], naive, rtol=1e-4)
    # of 100, 4 refused say with 95 % confidence that less than a tenth of everybody is; 5 do not
    assert (~stop.accepts(unseen)).sum() == 4 and binom.cdf(4, 100, 0.1) < 0.05 < binom.cdf(5, 100, 0.1)
    # the other scan of a private patient is refused
    assert not stop.accepts(people(10, 1).select(np.arange(1, 20, 2))).any()
    with pytest.raises(ValueError, match="58 patients; expected at least 59 to say with 95% confidence"):
        Filter([head], private, unseen.select(np.arange(58)))


class _Column(NamedTuple):
    """An attacker that scores by one number of the candidate's features."""

    column: int
    phi: Pixels = Pixels()

    def score(self, x, y):
        return x[..., self.column] + 0 * y[..., 0]


@pytest.mark.parametrize("together", [0.0, 0.9, -0.9])
def test_attackers_of_one_filter_share_its_cost_whether_they_agree_or_not(make_set, together):
    rng, columns = np.random.default_rng(1), [_Column(0), _Column(1), _Column(2)]
    mix = np.eye(3) + together * np.roll(np.eye(3), 1, 0)
    private = make_set(1, images=np.zeros((1, 1, 1, 3)))

    def drawn(n):
        return make_set(n, images=norm.cdf(rng.normal(size=(n, 3)) @ mix / 2).reshape(n, 1, 1, 3))

    trials, many = 200, drawn(10_000)
    costs = [(~Filter(columns, private, drawn(200), cost=0.1).accepts(many)).mean() for _ in range(trials)]
    # of 200, 12 refused say so: the expected cost is 13 / 201, and 95 in 100 such filters cost at most a tenth
    assert abs(np.mean(costs) - 13 / 201) < 0.01 and np.mean(np.array(costs) <= 0.1) >= 0.92
    with pytest.raises(ValueError, match="100 patients; expected at least 124, for each of 3 attackers"):
        Filter(columns, private, drawn(100))


def test_every_second_patient_sets_a_threshold_and_the_others_say_what_it_costs(people):
    fitted, fresh = fitted_and_fresh(people(7, 1))
    assert (len(fitted), len(fresh)) == (4, 3) and not set(fitted.patient) & set(fresh.patient)
    assert {*fitted.patient, *fresh.patient} == set(people(7, 1).patient)


def test_attackers_that_a_filter_has_no_part_in_find_what_it_finds():
    form = {"size": 32, "modality": "xray", "seed": 7}
    learned, unseen = (scans_of_people(thorax(patients=60, scans=2, population=of, **form)) for of in ("public", "private"))
    found = {name: auc_of(a, unseen, seed=0, replicates=50) for name, a in unseen_attackers(learned, hidden=8).items()}
    assert set(found) == {"another seed", "another network", "pixels", "plain distance"}
    maps = {a.phi.name for a in (*unseen_attackers(learned, hidden=8).values(), *two_views(learned).values())}
    assert len(maps) == 5 and found["another seed"].value > 0.95


def test_several_filters_accept_what_all_accept(people):
    class Odd(NamedTuple):
        left: int

        def accepts(self, candidates):
            return np.arange(len(candidates)) % 2 == self.left

    images = people(2, 1)
    assert not AllOf((Odd(0), Odd(1))).accepts(images).any() and AllOf((Odd(1),)).accepts(images).tolist() == [False, True] * 2


def test_the_filter_for_persons_learns_of_phantoms_and_leaves_its_lines(cache, monkeypatch):
    form = {"size": 32, "modality": "xray", "population": "private"}
    twice = thorax(patients=24, scans=2, seed=4, **form)
    ward = twice.select(np.arange(0, 48, 2)).with_images(twice.images[::2], name="ward", role="private")
    again = twice.select(np.arange(1, 48, 2))
    unseen = replace(thorax(patients=200, seed=5, **form), role="eval", name="others")
    ledger = Ledger()
    stop = same_person_filter(ward, unseen, patients=60, ledger=ledger, seed=1)
    assert [(e.stage, e.reads) for e in ledger.entries()] == [("filter", "ward"), ("filter", "others")]
    assert (~stop.accepts(again)).mean() >= 0.75 and stop.accepts(unseen).mean() >= 0.95


def test_correlation_is_the_best_over_small_moves(make_set):
    rng = np.random.default_rng(0)
    private = make_set(3, images=rng.random((3, 1, 16, 16)))
    moved = make_set(3, images=np.roll(private.images, (2, -3), axis=(2, 3)))
    far = make_set(2, images=np.roll(private.images[:2], (5, 0), axis=(2, 3)))
    np.testing.assert_allclose(registered_correlation(moved, private), 1, atol=1e-6)
    found = registered_correlation(far, private)
    naive = [
        max(
            np.corrcoef(a[0, d : d + 10, r : r + 10].ravel(), b[0, 3:-3, 3:-3].ravel())[0, 1]
            for b in private.images
            for d in range(7)
            for r in range(7)
        )
        for a in far.images
    ]
    np.testing.assert_allclose(found, naive, atol=1e-5)
    assert found.max() < 0.9

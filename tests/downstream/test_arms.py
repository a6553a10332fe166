"""The grid: sets of one size, networks that learn from what they were given, the same unseen patients for all."""

from dataclasses import replace

import numpy as np
import pytest

from medsynth.downstream import arms as grid
from medsynth.downstream.arms import Pairs, best, pairs, restored, schedule, scores, training_sets, untrained
from medsynth.downstream.restoration_nets import CPU_SIZES
from medsynth.downstream.tasks import experiment
from medsynth.ledger import Ledger
from medsynth.phantoms.thorax.thorax import thorax

NAME = "mr-x2/edsr"


@pytest.fixture(scope="module")
def people():
    return {p: thorax(patients=6, size=16, modality="mr", population=p) for p in ("public", "private")}


@pytest.fixture
def sets(make_set):
    made = {}
    for k, name in enumerate(("real", "synthetic", "gated")):
        some = make_set(12, seed=k, name=name, role="private")
        made[name] = some.with_images(np.clip(some.images, 0, 0.9) + 0.02 * k)
    return made


def rows_of(made, other):
    return np.isin(made.row_hashes, other.row_hashes)


def test_sets_have_one_size_and_are_what_they_are_called(sets):
    names = ["real", "synthetic", "gated", "synthetic + real"]
    made = training_sets(names, sets, images=9, seed=0)
    assert list(made) == names and {len(s) for s in made.values()} == {9}
    for arm, source in sets.items():
        assert rows_of(made[arm], source).all()
    mixed = made["synthetic + real"]
    # half of each, rounded: the real ones among those that "real" has
    assert rows_of(mixed, made["synthetic"]).sum() == 5 and rows_of(mixed, made["real"]).sum() == 4
    assert {s.role for s in made.values()} == {"private"}
    other = training_sets(["real"], sets, images=9, seed=1)
    assert set(other["real"].row_hashes) != set(made["real"].row_hashes)


def test_versions_of_the_same_people_are_the_same_people_and_no_one_counts_twice(sets):
    reconstructed = sets["real"].with_images(sets["real"].images * 0.5)
    made = training_sets(["real", "copy", "copy + real"], {"real": sets["real"], "copy": reconstructed}, images=6, seed=0)
    np.testing.assert_array_equal(made["copy"].images, made["real"].images * 0.5)
    halved = made["copy + real"].images.copy()
    halved[3:] *= 0.5
    assert len(np.unique(halved.reshape(6, -1), axis=0)) == 6


def test_no_set_is_larger_than_the_real_one(sets):
    few = sets | {"real": sets["real"].select(np.arange(7))}
    assert {len(s) for s in training_sets(["real", "gated"], few, images=100, seed=0).values()} == {7}
    assert len(training_sets(["real"], sets, images=100, seed=0)["real"]) == 12


@pytest.mark.parametrize(
    ("names", "change", "problem"),
    [
        (["real", "gatd"], {}, "training set 'gatd' does not exist .*; did you mean 'gated'"),
        (["real", "gated + zzz"], {}, r"'zzz' does not exist \(two are joined by .*\); expected one of real, synthetic, gated"),
        (["gated"], {}, "'real' is missing"),
        (["real", "gated"], {"gated": 3}, "gated: 3 images; expected at least 9"),
        (["real"], {"real": 1}, "real: 1 images; expected at least 2"),
    ],
)
def test_sets_that_would_not_be_fair_are_refused(sets, names, change, problem):
    fewer = {key: sets[key].select(np.arange(n)) for key, n in change.items()}
    with pytest.raises(ValueError, match=problem):
        training_sets(names, sets | fewer, images=9, seed=0)


def test_training_test_and_tuning_have_noise_of_their_own(people):
    images = thorax(patients=2, size=16, modality="pet")
    made = [pairs("pet-low-count/edsr", images, part, seed=s).degraded.images for s in (0, 1) for part in grid.PARTS]
    for i, one in enumerate(made):
        assert sum(np.array_equal(one, other) for other in made) == 1, i
    with pytest.raises(ValueError, match="part 'tests'; expected one of"):
        pairs(NAME, people["public"], "tests", seed=0)


def test_networks_learn_from_their_own_set_and_meet_the_same_patients(people, tmp_path, cache, monkeypatch):
    job, net = experiment(NAME)
    monkeypatch.setattr(grid, "experiment", lambda _: (job, replace(net, width=8, blocks=1)))
    ledger = Ledger(tmp_path / "ledger")
    real, public = pairs(NAME, people["private"], "train", seed=0), pairs(NAME, people["public"], "tuning", seed=0)
    # a planted fault: targets without anatomy
    flat = Pairs(real.degraded, real.clean.with_images(np.full_like(real.clean.images, 0.1)))
    unseen = thorax(patients=8, size=16, modality="mr", population="private", seed=5)
    tests = {"a": pairs(NAME, unseen, "test", seed=0), "b": public}
    made = restored(NAME, {"real": real, "flat": flat}, tests, steps=150, seeds=[0, 1], ledger=ledger)
    assert {(t, arm): len(sets) for t, arms in made.items() for arm, sets in arms.items()} == {
        ("a", "real"): 2, ("a", "flat"): 2, ("b", "real"): 2, ("b", "flat"): 2,
    }  # fmt: skip
    plain = untrained(NAME, tests["a"], public)
    assert list(plain) == ["degraded", "zero-filled", "bicubic"]
    compared = scores({"a": tests["a"]}, {"a": plain | made["a"]})["a"]
    assert compared.patients == 8 and compared.matrix("real", "psnr").shape == (2, 8)
    assert best(compared, ["degraded", "real", "flat"]) == "real" and best(compared, ["flat", "degraded"]) == "degraded"
    assert [e.stage for e in ledger.entries()] == 2 * ["train restoration net"]
    assert ledger.private_rows_in(people["private"]) == 6


def test_the_schedule_is_that_of_the_network_alone():
    assert schedule("edsr", 7, 3) == schedule("edsr", 7, 3)
    assert (schedule("edsr", 7, 3).steps, schedule("edsr", 7, 3).seed) == (7, 3)
    assert schedule("unrolled", 7, 3).patch is None and schedule("redcnn", 7, 3).patch is not None
    assert set(grid.LEARNING_RATES) == set(CPU_SIZES)
    # a tenth of any budget where ReLUs die otherwise, but never less than the usual; a slow rise may go higher
    slow = [schedule("redcnn", steps, 0) for steps in (100, 4990, 5000, 10000)]
    assert [(t.warmup, t.learning_rate) for t in slow] == [(50, 2e-3), (499, 2e-3), (500, 4e-3), (1000, 4e-3)]
    assert (schedule("redcnn", 10, 0).clip, schedule("edsr", 10, 0).clip) == (0.05, 1.0)
    assert (schedule("edsr", 10000, 0).warmup, schedule("edsr", 10000, 0).learning_rate) == (50, 5e-3)
    assert [schedule("unrolled", steps, 0).steps for steps in (5000, 1)] == [2500, 1]
    # twice the steps are nothing but that: the rate stays where a warm-up twice as long would have doubled it
    for net in ("redcnn", "edsr", "unrolled"):
        for steps in (400, 3000, 5000):
            once, twice = schedule(net, steps, 0), schedule(net, steps, 0, times=2)
            assert (twice.steps, twice.learning_rate) == (2 * once.steps, once.learning_rate)
        assert schedule(net, 5000, 0, times=2) == schedule(net, 10000, 0)

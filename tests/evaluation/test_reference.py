"""Reference: naive loops, known truth in any number of rows, coverage of its intervals, damage of known level, planted bugs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared import naive_fid

from medsynth.evaluation import reference as module
from medsynth.evaluation import ruler
from medsynth.evaluation.diversity import prdc
from medsynth.evaluation.fidelity import kid_value, subsample
from medsynth.evaluation.reference import EXCESS, FID, KID, LEVELS, Reference, describe_damage
from medsynth.evaluation.statistics import Estimate, generator, patient_halves
from medsynth.imageset import ImageSet


class Pixels:
    """Features are the pixels; counts how often it is asked."""

    name = "pixels"

    def __init__(self, dim):
        self.dim, self.calls = dim, 0

    def __call__(self, images, *, batch=256):
        self.calls += 1
        return images.images.reshape(len(images), -1).astype(np.float64)


def set_of(features, patient=None, name="set"):
    """Images one pixel high whose pixels are these features."""
    patient = np.arange(len(features)) if patient is None else patient
    return ImageSet(images=features[:, None, None], patient=patient, unit="1", range=(-99, 99), name=name)


def gaussians(n, d, *key, spread=1.0, shift=0.0):
    x = spread * generator(*key).normal(size=(n, d))
    x[:, 0] += shift
    return x.astype(np.float32).astype(np.float64)


def reference_of(features, patient=None, *, splits=4, kind=Reference, **options):
    return kind(set_of(features, patient, "real"), Pixels(features.shape[1]), seed=0, splits=splits, **options)


# naive references


@pytest.mark.parametrize("per_patient", [1, 3])
def test_every_score_is_the_mean_over_halves_that_a_loop_gives(per_patient):
    real, patient = gaussians(60, 3, 0), np.arange(60) // per_patient
    made, person = gaussians(54, 3, 1, spread=0.8, shift=0.4), np.arange(54) // per_patient
    reference = reference_of(real, patient, rows=18)
    found = reference.score(set_of(made, person))
    halves, arms = (patient_halves(p, seed=0, splits=4, n=18) for p in (patient, person))
    pairs = [(h, t) for half, arm in zip(halves, arms, strict=True) for h, t in zip(half, arm, strict=True)]
    fid = np.mean([naive_fid(real[h], made[t]) for h, t in pairs])
    floor, own = (np.mean([naive_fid(x[a], x[b]) for a, b in split]) for x, split in ((real, halves), (made, arms)))
    expected = {
        FID: fid,
        "FID floor": floor,
        "FID own floor": own,
        EXCESS: fid - (floor + own) / 2,
        KID: np.mean([kid_value(real[h], made[t], patient[h], person[t]) for h, t in pairs]),
        "KID floor": np.mean([kid_value(real[a], real[b], patient[a], patient[b]) for a, b in halves]),
    }
    assert {k: e.value for k, e in found.items()} == pytest.approx(expected)
    assert list(found) == list(expected)
    assert all(e.low <= e.value <= e.high for e in found.values())
    assert found["FID floor"].n == found[EXCESS].n == reference.images.patients
    assert found["FID own floor"].n == 54 // per_patient
    assert {k: found[k] for k in reference.floor} == reference.floor


def test_of_an_arm_too_small_for_two_halves_the_own_floor_is_scaled_from_fewer_rows():
    real, made = gaussians(80, 3, 0), gaussians(50, 3, 1, spread=0.7)
    reference = reference_of(real)
    found = reference.score(made)
    own = np.mean([naive_fid(made[a], made[b]) for a, b in patient_halves(np.arange(50), seed=0, splits=4)])
    at = {
        n: np.mean([naive_fid(real[a], real[b]) for a, b in patient_halves(np.arange(80), seed=0, splits=4, n=n)])
        for n in (25, 40)
    }
    assert found["FID own floor"].value == pytest.approx(own * at[40] / at[25])
    # of the half as many rows it would be twice as large, and the score below the floor
    many = reference.score(gaussians(4000, 3, 2, spread=0.7))
    assert found["FID own floor"].value == pytest.approx(many["FID own floor"].value, rel=0.35)


def test_what_is_derived_meets_other_patients_alone():
    real, patient = gaussians(60, 3, 0), np.arange(60) // 2
    made = 0.9 * real + 0.1
    reference = reference_of(real, patient)
    found = reference.score_derived(set_of(made, patient))
    halves = patient_halves(patient, seed=0, splits=4)
    crossed = [pair for a, b in halves for pair in ((a, b), (b, a))]
    fid = np.mean([naive_fid(real[h], made[t]) for h, t in crossed])
    own = np.mean([naive_fid(made[a], made[b]) for a, b in halves])
    floor = np.mean([naive_fid(real[a], real[b]) for a, b in halves])
    assert found[EXCESS].value == pytest.approx(fid - (floor + own) / 2)
    k = lambda x, y: ((x @ y.T / 3 + 1) ** 3)[patient[:, None] != patient]  # noqa: E731
    assert found[KID].value == pytest.approx(np.mean(k(real, real) + k(made, made) - 2 * k(real, made)))
    # held against themselves, images and what was made of them look nearer than the floor
    assert np.mean([naive_fid(real[h], made[h]) for half in halves for h in half]) < 0.5 * floor


def test_undamaged_copies_cost_exactly_nothing():
    real = gaussians(60, 3, 0)
    reference = reference_of(real, np.arange(60) // 2)
    found = reference.score_derived(reference.images)
    assert found[EXCESS].value == pytest.approx(0, abs=1e-9)
    assert found[KID].value == pytest.approx(0, abs=1e-9) and found[KID].low <= 1e-9 and found[KID].high >= -1e-9


def test_variety_is_prdc_of_the_common_number_of_rows():
    real, made = gaussians(60, 3, 0), gaussians(90, 3, 1)
    reference = reference_of(real)
    few = subsample(made, 30, seed=module.branch(0, 0))
    expected = prdc(real, few, patient=np.arange(60), seed=0, replicates=50)
    assert reference.variety(made, replicates=50) == expected._asdict()
    assert expected.precision.n == 30


def test_an_image_set_scores_as_its_features_do_and_features_are_computed_once():
    real, made = gaussians(40, 3, 0), gaussians(40, 3, 1)
    reference = reference_of(real)
    assert reference.score(set_of(made)) == reference.score(made)
    reference.score(made)
    assert reference.extractor.calls == 2  # the real images, and the arm that came as images
    smaller = reference.at(10)
    smaller.score(made)
    assert reference.extractor.calls == 2 and smaller.rows == 10 and reference.rows == 20


def test_without_rows_enough_for_fid_its_entries_are_absent():
    assert set(reference_of(gaussians(40, 11, 0)).score(gaussians(40, 11, 1))) == {KID, "KID floor"}
    assert FID in reference_of(gaussians(40, 10, 0)).score(gaussians(40, 10, 1))


# known truth


def worlds(count, n, m, *, d=4, spread=1.0, shift=0.0, kind=Reference, per_patient=1):
    """Estimates of "FID minus floor" and KID in `count` worlds, and their true values for one Gaussian and another."""
    found = {EXCESS: [], KID: []}
    for world in range(count):
        real = gaussians(2 * n // per_patient, d, world, 0)
        real = np.repeat(real, per_patient, axis=0)
        reference = reference_of(real, np.arange(len(real)) // per_patient, kind=kind)
        score = reference.score(gaussians(m, d, world, 1, spread=spread, shift=shift))
        for metric, values in found.items():
            values.append(score[metric])
    return {k: np.array([e[:3] for e in v]) for k, v in found.items()}, {
        EXCESS: shift**2 + d * (1 - spread) ** 2,
        KID: true_kid(d, spread, shift),
    }


def true_kid(d, spread, shift):
    """MMD^2 of (x.y / d + 1)^3 between N(0, I) and N(shift e1, spread^2 I), from moments of x.y."""

    def mean_cube(a, b, ma, mb):
        # x.y given x is normal with mean mb x1 and variance b^2 |x|^2
        square, first = d * a**2 + ma**2, ma
        second = a**2 + ma**2
        cross = mb * (ma * square + 2 * ma * a**2)  # mb E[x1 |x|^2]
        one, two = mb * first, mb**2 * second + b**2 * square
        three = mb**3 * (ma**3 + 3 * ma * a**2) + 3 * b**2 * cross
        return 1 + 3 * one / d + 3 * two / d**2 + three / d**3

    return mean_cube(1, 1, 0, 0) + mean_cube(spread, spread, shift, shift) - 2 * mean_cube(1, spread, 0, shift)


def test_the_true_kid_is_that_of_a_large_sample():
    x, y = gaussians(2000, 3, 0), gaussians(2000, 3, 1, spread=0.6, shift=0.7)
    assert kid_value(x, y, np.arange(2000)) == pytest.approx(true_kid(3, 0.6, 0.7), rel=0.1)


@pytest.mark.parametrize("changed", [{"shift": 0.7}, {"spread": 0.7}, {"spread": 1.3, "shift": 0.4}])
def test_the_expectation_does_not_move_with_the_number_of_rows(changed, monkeypatch):
    monkeypatch.setattr(module, "_REPLICATES", {FID: 2, KID: 2})
    for n in (12, 24, 72):
        found, truth = worlds(40, n, 2 * n, **changed)
        for metric in (EXCESS, KID):
            values = found[metric][:, 0]
            noise = 3 * values.std() / np.sqrt(len(values))
            # what is left of the bias: (d + 1) / 4n of what spreads differ by
            left = 5 / (4 * n) * 4 * (1 - changed.get("spread", 1)) ** 2 if metric == EXCESS else 0
            assert -1.5 * left - noise < values.mean() - truth[metric] < noise, (metric, n)


class RealFloor(Reference):
    """Planted bug: the floor of the real images alone."""

    def _own_floors(self, arm):
        return np.array(self._floor_fids(self.rows))


class HalfTheRows(Reference):
    """Planted bug: floors at half as many rows as the score."""

    def _floor_fids(self, rows):
        return super()._floor_fids(rows // 2)


class OwnInBothHalves(Reference):
    """Planted bug: halves of rows, so that images of one patient lie in both."""

    def __init__(self, images, *rest, **options):
        super().__init__(images, *rest, **options)
        self.halves = patient_halves(np.arange(len(images)), seed=0, splits=self.splits, n=self.rows)

    def _floor_fids(self, rows):
        return [naive_fid(self.features[a][:rows], self.features[b][:rows]) for a, b in self.halves]


@pytest.mark.parametrize(
    ("bug", "world", "at_least"),
    [
        (RealFloor, {"spread": 0.5}, -0.3),  # too low
        (HalfTheRows, {}, -0.3),
        (OwnInBothHalves, {"per_patient": 3}, 0.4),  # the floor too low, so the value too high
    ],
)
def test_a_wrong_floor_is_seen(bug, world, at_least, monkeypatch):
    monkeypatch.setattr(module, "_REPLICATES", {FID: 2, KID: 2})
    right, truth = worlds(30, 18, 36, **world)
    wrong, _ = worlds(30, 18, 36, **world, kind=bug)
    off = wrong[EXCESS][:, 0].mean() - truth[EXCESS]
    assert off < at_least if at_least < 0 else off > at_least
    assert abs(right[EXCESS][:, 0].mean() - truth[EXCESS]) < 0.5 * abs(at_least)


@pytest.mark.parametrize(
    "world",
    [{}, {"shift": 0.8}, {"spread": 0.75}, {"n": 45, "m": 60, "per_patient": 3, "shift": 0.8}],
    ids=["no difference", "shift", "spread", "three images a patient"],
)
def test_intervals_hold_the_truth(world, monkeypatch):
    monkeypatch.setattr(module, "_REPLICATES", {FID: 120, KID: 120})
    found, truth = worlds(100, **{"n": 24, "m": 40} | world)
    for metric, e in found.items():
        assert np.mean((e[:, 1] <= truth[metric]) & (truth[metric] <= e[:, 2])) >= 0.92, metric
        # nor are they wider than they must be: where nothing differs, a resample spreads as three samples do
        width = (e[:, 2] - e[:, 1]).mean() / (2 * 1.96 * e[:, 0].std())
        assert 0.9 < width < 1.8, metric


# refusals


def test_an_arm_of_fewer_rows_is_refused_and_told_what_to_do():
    reference = reference_of(gaussians(60, 3, 0))
    for arm in (gaussians(29, 3, 1), set_of(gaussians(29, 3, 1), name="arm")):
        for measure in (reference.score, reference.variety):
            with pytest.raises(ValueError, match=r"29 rows, but .* 30 a side, and nothing is compared across n; .*at\(29\)"):
                measure(arm)
    assert reference.at(29).score(gaussians(29, 3, 1))[KID].n == 60
    with pytest.raises(ValueError, match="have 30; ask for fewer"):
        reference.at(31)


def test_images_of_the_reference_among_the_arm_are_refused():
    real = gaussians(60, 3, 0)
    arm = np.concatenate([gaussians(59, 3, 1), real[7:8]])
    with pytest.raises(ValueError, match=r"1 of its images are images of the reference real .* score_derived"):
        reference_of(real).score(set_of(arm))


def test_what_cannot_have_been_made_of_the_reference_is_refused():
    real, patient = gaussians(60, 3, 0), np.arange(60) // 2
    reference = reference_of(real, patient)
    for made in (real[:59], set_of(real, patient[::-1])):
        with pytest.raises(ValueError, match="not, one by one, made of the 60 images of real"):
            reference.score_derived(made)


def test_another_unit_range_or_number_of_features_is_refused():
    reference = reference_of(gaussians(60, 3, 0))
    arm = set_of(gaussians(60, 3, 1), name="arm")
    for other in (arm.with_images(arm.images, unit="HU"), arm.with_images(arm.images, range=(-100, 99))):
        for score in (reference.score, reference.score_derived):
            with pytest.raises(ValueError, match=r"arm: .*; expected 1 in \(-99.0, 99.0\), as real"):
                score(other)
    with pytest.raises(ValueError, match=r"\(60, 2\); expected \(m, 3\)"):
        reference.score(gaussians(60, 2, 1))


# equivalent damage


class Sharpness:
    """Features that see brightness, noise and blur."""

    name, dim = "sharpness", 3

    def __call__(self, images, *, batch=256):
        x = images.images[:, 0].astype(np.float64)
        rough, fine = np.abs(np.diff(x, axis=2)).mean((1, 2)), np.abs(np.diff(x, n=2, axis=1)).mean((1, 2))
        return 10 * np.stack([x.mean((1, 2)), rough, fine], 1)


def scenes(n, seed):
    rng = generator(seed)
    contrast, noise = rng.uniform(0.2, 0.4, (n, 1, 1)), rng.uniform(0.01, 0.04, (n, 1, 1))
    grid = np.sin(np.arange(64) * rng.uniform(0.5, 1.5, (n, 1)) + rng.uniform(0, 6, (n, 1)))
    pixels = 0.5 + contrast * grid[:, None] * grid[:, :, None] + noise * rng.normal(size=(n, 64, 64))
    return ImageSet(images=pixels.clip(0, 1)[:, None], patient=np.arange(n) // 2, unit="1", range=(0, 1), name=f"scenes-{seed}")


@pytest.fixture(scope="module")
def sharp():
    return Reference(scenes(240, 0), Sharpness(), seed=0, splits=6)


@pytest.mark.parametrize("by", [EXCESS, KID])
@pytest.mark.parametrize(("kind", "level"), [("blur", 0.8), ("blur", 2.6), ("noise", 0.03), ("noise", 0.13)])
def test_others_images_damaged_by_a_known_level_are_found_to_be(sharp, kind, level, by):
    others = scenes(400, 1)
    damaged = ruler.blurred(others, level) if kind == "blur" else ruler.noisy(others, level, seed=9)
    found = sharp.equivalent_damage(sharp.score(damaged), kind, by=by)
    assert found.value == pytest.approx(level, rel=0.15)
    assert found.low <= level <= found.high and found.n == 120
    assert f"{kind} of {found.value:.2g} [" in describe_damage(found, kind)


def test_nothing_is_extrapolated(sharp):
    for kind in LEVELS:
        first, last = LEVELS[kind][0], LEVELS[kind][-1]
        costs = sharp._cost(kind, EXCESS)
        assert (costs > 0).all() and (np.diff(costs) > 0).all()
        below = sharp.equivalent_damage({EXCESS: Estimate(costs[0] / 9, -1.0, costs[0] / 2, 5)}, kind)
        assert below == Estimate(0.0, 0.0, first, 5)
        assert describe_damage(below, kind).startswith(f"below the first level of {kind}: at most {first:g}")
        beyond = sharp.equivalent_damage({EXCESS: Estimate(costs[-1] * 2, costs[-1] * 1.1, costs[-1] * 3, 5)}, kind)
        assert beyond == Estimate(np.inf, last, np.inf, 5)
        assert describe_damage(beyond, kind).startswith(f"beyond the largest level of {kind}: at least {last:g}")
        wide = sharp.equivalent_damage({EXCESS: Estimate(costs[2], costs[0] / 2, costs[-1] * 2, 5)}, kind)
        assert (wide.value, wide.low, wide.high) == (pytest.approx(LEVELS[kind][2]), 0, np.inf)


def test_damage_is_measured_once_and_asks_for_a_score_that_is_there(sharp):
    calls, score = [], {KID: Estimate(0.1, 0.05, 0.2, 120)}
    first = sharp.equivalent_damage(score, "blur", by=KID)
    sharp.extractor, kept = (lambda images: calls.append(images)), sharp.extractor
    assert sharp.equivalent_damage(score, "blur", by=KID) == first and not calls
    sharp.extractor = kept
    for by in (EXCESS, "FID"):
        with pytest.raises(ValueError, match=r"expected 'FID minus floor' or 'KID' in it"):
            sharp.equivalent_damage(score, "blur", by=by)


@given(
    st.lists(st.floats(-1, 5), min_size=8, max_size=8).map(sorted),
    st.lists(st.floats(-2, 9), min_size=2, max_size=2).map(sorted),
)
def test_a_higher_cost_never_reads_as_less_damage(costs, pair):
    levels = LEVELS["blur"]
    (low, value, high), (low2, value2, high2) = (module._levels(c, levels, np.array(costs)) for c in pair)
    assert low <= value <= high and low2 <= value2 <= high2
    assert value <= value2 * (1 + 1e-12) and low <= low2 * (1 + 1e-12) and high <= high2 * (1 + 1e-12)
    assert value in (0, np.inf) or levels[0] <= value <= levels[-1]


@given(st.floats(0.36, 3.9), st.floats(0.5, 4), st.floats(0.01, 10))
def test_between_levels_a_power_law_is_read_exactly(level, power, scale):
    costs = scale * np.array(LEVELS["blur"]) ** power
    assert module._levels(scale * level**power, LEVELS["blur"], costs) == pytest.approx((level,) * 3)


def test_a_ruler_that_sees_no_damage_says_so():
    blind = np.array([-0.2, -0.2, -0.1, -0.1, -0.1, -0.1, 0.0, 0.0])
    assert module._levels(0.3, LEVELS["blur"], blind) == (4.0, np.inf, np.inf)
    assert module._levels(-0.3, LEVELS["blur"], blind) == (0.0, 0.0, np.inf)

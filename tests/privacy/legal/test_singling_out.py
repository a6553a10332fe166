"""The singling-out game against a naive one, where its answer is known, and its power to find planted copies."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medsynth.mechanism import Mechanism
from medsynth.privacy.attacks.legal.singling_out import (
    Others,
    People,
    Predicates,
    _holds,
    _isolations,
    allowed_weight,
    bound_rows,
    dp_bound,
    game_rows,
    planted,
    play,
    radii,
    upper_weight,
)

DIM, N = 6, 200
WEIGHT = 1 / (10 * N)


def people(n, rng, first=0, images=1):
    """n people of one population, with a few images each that lie near one another."""
    who = np.repeat(np.arange(first, first + n), images)
    features = rng.normal(size=(n, DIM))[who - first] + 0.02 * rng.normal(size=(n * images, DIM))
    return People(features, who)


def population(seed=0, certified=30 * N):
    rng = np.random.default_rng(seed)
    private = people(N, rng, images=2)
    return private, Others(people(10 * N, rng, 10**5), people(certified, rng, 2 * 10**5), people(5 * N, rng, 3 * 10**5)), rng


def release(features):
    return People(features, np.arange(len(features)))


def naive(made: Predicates, private: People) -> list[int]:
    """Whom each predicate isolates, by looking at everybody; -1 for nobody."""
    found = []
    for centre, radius, light in zip(made.release.features, made.radius, made.light, strict=True):
        near = {int(p) for x, p in zip(private.features, private.patient, strict=True) if np.linalg.norm(x - centre) <= radius}
        found.append(near.pop() if light and len(near) == 1 else -1)
    return found


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_isolated_are_those_whom_a_predicate_holds_of_alone(seed):
    rng = np.random.default_rng(seed)
    private = People(rng.integers(0, 4, (14, 2)).astype(float), rng.integers(0, 6, 14))
    centres, k = rng.integers(0, 4, (9, 2)).astype(float), 9
    made = Predicates(release(centres), rng.uniform(0, 2, k), (), rng.random(k) < 0.8)
    isolated = [who for who in naive(made, private) if who >= 0]
    share, counts = _isolations(made, private, private.patients, seed=0)
    names = np.unique(private.patient)
    assert share.value == pytest.approx(len(isolated) / k) and share.low <= share.value <= share.high
    assert counts.tolist() == [isolated.count(name) for name in names]


def test_a_predicate_asks_for_what_its_image_tells():
    table = pd.DataFrame({"sex": ["f", "m", "f"], "finding": pd.array(["a", None, "b"], dtype="string")})
    private = People(np.zeros((3, 2)), np.arange(3), table)
    asked = People(np.zeros((3, 2)), np.arange(3), pd.DataFrame({"sex": ["f", "m", None], "finding": ["a", None, "b"]}))
    made = Predicates(asked, np.ones(3), ("sex", "finding"), np.ones(3, bool))
    predicate, person = _holds(made, private)
    # the second image tells no finding, the third no sex; a patient without a finding has none of those asked for
    assert sorted(zip(predicate.tolist(), person.tolist(), strict=True)) == [(0, 0), (1, 1), (2, 2)]
    with pytest.raises(ValueError, match="no attribute 'age' to match; there are"):
        _holds(made._replace(match=("age",)), private)


def test_radii_hold_of_the_share_of_people_that_they_aim_at_also_of_fewer_than_one():
    rng = np.random.default_rng(0)
    centres, some, many = rng.normal(size=(200, 3)), rng.normal(size=(2000, 3)), rng.normal(size=(100_000, 3))
    near = np.linalg.norm(centres[:, None] - some, axis=2)
    for weight in (0.02, 0.0001):
        radius = radii(near, weight)
        held = np.mean([(np.linalg.norm(many - c, axis=1) <= r).mean() for c, r in zip(centres, radius, strict=True)])
        assert 0.6 * weight < held < 1.8 * weight, weight


def test_of_people_of_whom_none_can_be_near_a_radius_is_nothing():
    near = np.full((3, 50), np.inf)
    near[1, :1], near[2, :4] = 0.5, [0.5, 0.6, 0.7, 1.0]
    assert radii(near, 1e-3)[:2].tolist() == [0, 0] and 0 < radii(near, 1e-3)[2] < 0.5
    assert radii(near, 0.1).tolist() == [0, 0, 0]


def test_weights_are_bounded_as_the_binomial_says():
    for hits, of in ((0, 30), (3, 200)):
        upper = float(upper_weight(np.array(hits), of))
        assert stats.binom.cdf(hits, of, upper) == pytest.approx(0.05)
    assert upper_weight(np.array([5, 0]), 5).tolist()[0] == 1.0
    assert float(upper_weight(np.array(0), 30 * N)) <= WEIGHT


def test_copies_of_everybody_single_out_nearly_everybody():
    private, others, _ = population()
    found = play(release(private.features[::2]), private, others, weight=WEIGHT)
    assert found.attack.value > 0.8 * found.light and found.light > 0.6 and found.beats_its_baseline
    assert found.singled_out.value == found.attack.value and found.singled_out.n == N
    # a smaller aim is a smaller ball, which is certified nearly always
    near = play(release(private.features[::2]), private, others, weight=WEIGHT, aim=0.01)
    assert near.attack.value > 0.9


def test_five_copies_in_a_hundred_are_found_in_at_least_four_of_five_releases():
    seen = 0
    for repeat in range(10):
        private, others, rng = population(repeat)
        drawn = rng.normal(size=(N, DIM))
        drawn[: N // 20] = private.features[: N // 10 : 2]
        seen += play(release(drawn), private, others, weight=WEIGHT, aim=0.01).beats_its_baseline
    assert seen >= 8


def test_what_knows_nobody_matches_its_baseline():
    values, above = [], 0
    for repeat in range(12):
        private, others, rng = population(100 + repeat)
        found = play(release(rng.normal(size=(4 * N, DIM))), private, others, weight=WEIGHT, aim=0.5)
        above += found.beats_its_baseline
        values.append((found.attack.value, found.baseline.value))
        assert found.residual.low <= 0 <= found.residual.high and found.attack.value < found.guess
    attack, baseline = np.mean(values, axis=0)
    assert above == 0 and attack == pytest.approx(baseline, abs=0.005) and attack > 0


def test_nothing_that_is_found_has_an_interval_of_nothing():
    private, others, rng = population()
    far = play(release(100 + rng.normal(size=(50, DIM))), private, others, weight=WEIGHT)
    assert far.attack.value == 0 and 0 < far.attack.high < 0.08 and not far.beats_its_baseline


@pytest.mark.parametrize(("epsilon", "delta", "bound"), [(1, 1e-5, 0.244), (1, 1e-6, 0.049), (1, 1e-7, 0.029), (10, 1e-7, 1.0)])
def test_the_bound_that_is_proved(epsilon, delta, bound):
    n = 21_724
    assert dp_bound(n, 1 / (100 * n), epsilon, delta) == pytest.approx(bound, abs=6e-4)
    assert dp_bound(n, 1 / (100 * n), np.inf, delta) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight": 1 / N}, "below 1/n = 0.005"),
        ({"weight": 1 / (100 * N)}, "certified people bound no weight below"),
        ({"baseline": 1}, "expected at least as many as are private, 200"),
        ({"shared": 1}, "patient 0 is in both groups private and fitted"),
    ],
)
def test_a_game_that_says_nothing_is_not_played(change, said):
    private, others, rng = population()
    if "baseline" in change:
        others = others._replace(baseline=people(N - 1, rng, 10**6))
    if "shared" in change:
        others = others._replace(fitted=private)
    with pytest.raises(ValueError, match=said):
        play(release(private.features), private, others, weight=change.get("weight", WEIGHT))


def test_the_allowed_weight_is_what_was_asked_or_the_least_that_can_be_bounded_and_below_one_person():
    assert allowed_weight(N, 30 * N, 0.1) == WEIGHT
    least = allowed_weight(N, 5 * N, 0.1)
    assert float(upper_weight(np.array(0), 5 * N)) <= least < 1 / N
    private, others, _ = population(certified=5 * N)
    assert play(private, private, others, weight=least).light > 0.5
    with pytest.raises(ValueError, match=r"400 certified people bound no weight below 1/n = 0\.005; expected more than 598"):
        allowed_weight(N, 2 * N, 0.1)


def test_planted_images_take_the_places_of_others_and_are_seen():
    private, others, rng = population()
    drawn = release(rng.normal(size=(100, DIM)))
    mixed = planted(drawn, private, 0.05, seed=1)
    moved = (mixed.features != drawn.features).any(1)
    assert moved.sum() == 5 and len(mixed.features) == 100
    assert all((row == private.features).all(1).any() for row in mixed.features[moved])
    assert (planted(drawn, private, 1e-6, seed=1).features != drawn.features).any(1).sum() == 1
    game = play(mixed, private, others, weight=WEIGHT)
    assert 0 < game.attack.value <= 0.05 and list(game_rows(game)) == [
        "isolated", "strangers isolated", "residual", "patients singled out", "light descriptions", "guess",
    ]  # fmt: skip


def test_a_bound_stands_where_something_is_promised():
    proved = Mechanism("dp-sgd", unit="patient", epsilon=1.0, delta=1e-7, accountant="prv", q=0.1, steps=10, sigma=5.0)
    assert bound_rows(proved, 21_724, 1 / (100 * 21_724)) == {"proved bound": pytest.approx(0.029, abs=1e-3)}
    assert bound_rows(None, 5, 0.1) == {}

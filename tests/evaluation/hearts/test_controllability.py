"""Asked against measured: known answers, formulas written out, generators that ignore what they are asked."""

import numpy as np
import pandas as pd
import pytest

from medsynth.evaluation.hearts.controllability import (
    Phases,
    asked_for,
    control,
    controllability,
    phase_accuracy,
    rows_by_condition,
)
from medsynth.phantoms.heart.heart import cardiac, cardiac_labels, measure_volumes


def people(n: int = 40, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """What n people are asked for at ED and at ES, rows in turn, and whose rows they are."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"lvedv": rng.uniform(100, 250, n), "rvedv": rng.uniform(100, 250, n), "wall_ed": rng.uniform(6, 14, n)})
    table = table.assign(lvesv=table["lvedv"] * 0.4, rvesv=table["rvedv"] * 0.5, wall_es=table["wall_ed"] * 1.3)
    person = np.repeat(np.arange(n), 2)
    return table.iloc[person].reset_index(drop=True).assign(phase=np.tile([0, 1], n)), person


def test_each_phase_asks_for_its_own_volume_and_wall():
    attributes, _ = people(3)
    asked = asked_for(attributes)
    np.testing.assert_allclose(asked["lv"][:2], [attributes["lvedv"][0], attributes["lvesv"][0]])
    np.testing.assert_allclose(asked["rv"][4:], [attributes["rvedv"][4], attributes["rvesv"][5]])
    np.testing.assert_allclose(asked["wall"][2:4], [attributes["wall_ed"][2], attributes["wall_es"][3]])


def test_what_was_not_asked_for_is_missing_and_not_zero():
    attributes, person = people(4)
    attributes = attributes.drop(columns=["rvedv", "rvesv", "wall_es"])
    asked = asked_for(attributes)
    assert list(asked) == ["lv", "wall"]
    assert asked["wall"].isna().tolist() == [False, True] * 4
    measured = pd.DataFrame({"lv": asked["lv"], "rv": 1.0, "wall": 9.0})
    assert set(controllability(attributes, measured, person=person, seed=0)) == {"lv", "wall"}


@pytest.mark.parametrize("phase", [[0, 2], [0, None]])
def test_a_phase_that_is_neither_ed_nor_es_is_refused(phase):
    with pytest.raises(ValueError, match=r"expected 0 \(ED\) or 1 \(ES\)"):
        asked_for(pd.DataFrame({"lvedv": [1.0, 2.0], "phase": phase}))


def test_a_table_without_anything_to_ask_for_is_refused():
    with pytest.raises(ValueError, match=r"expected some of .*lvedv"):
        asked_for(pd.DataFrame({"age": [50.0], "phase": [0]}))


def test_true_labels_answer_exactly_what_the_phantoms_were_asked_for():
    size = {"patients": 6, "slices": 8, "size": 32, "seed": 3}
    images, labels = cardiac(**size), cardiac_labels(**size)
    found = controllability(
        images.attributes, measure_volumes(labels, images.spacing), person=images.patient, seed=0, replicates=50
    )
    for name in ("lv", "rv", "wall"):
        values = [found[name].r.value, found[name].slope.value, found[name].error.value, found[name].absolute_error.value]
        np.testing.assert_allclose(values, [1, 1, 0, 0], atol=1e-9)
        assert found[name].absent == 0 and found[name].r.n == 6
    phases = phase_accuracy(images.attributes, measure_volumes(labels, images.spacing), person=images.patient, seed=0)
    assert phases.pairs.value == phases.nearest.value == 1


def test_a_line_with_noise_has_the_slope_r_and_errors_of_the_formulas():
    attributes, person = people()
    x = asked_for(attributes)["lv"].to_numpy()
    y = 0.6 * x + 20 + np.random.default_rng(1).normal(0, 8, len(x))
    found = control(x, y, person=person, seed=0)
    slope, _ = np.polyfit(x, y, 1)
    assert found.slope.value == pytest.approx(slope)
    assert found.r.value == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found.error.value == pytest.approx(np.mean(y - x))
    assert found.absolute_error.value == pytest.approx(np.mean(np.abs(y - x)))
    assert all(e.low < e.value < e.high and e.n == 40 for e in found[:4])
    # asked against measured the wrong way round would have another slope
    assert found.slope.value != pytest.approx(np.polyfit(y, x, 1)[0], rel=0.05)


def test_intervals_are_over_people_and_not_over_rows():
    rng = np.random.default_rng(0)
    x, own = rng.uniform(50, 200, 60), rng.normal(0, 20, 30)
    person = np.repeat(np.arange(30), 2)
    y = x + own[person]
    width = {
        name: np.ptp(control(x, y, person=p, seed=0).error[1:3]) for name, p in (("people", person), ("rows", np.arange(60)))
    }
    assert width["people"] > 1.2 * width["rows"]


def test_one_heart_whatever_is_asked_for_is_no_control():
    attributes, person = people()
    asked = asked_for(attributes)["lv"]
    found = control(asked, np.full(len(asked), 120.0), person=person, seed=0)
    assert found.r[:3] == (0, 0, 0) and found.slope[:3] == (0, 0, 0)
    assert found.error.value == pytest.approx(120 - asked.mean())


def test_rows_without_the_structure_are_counted_and_left_out():
    x = np.array([1.0, 2, 3, 4, 5, 6, 7, 8])
    y = np.where(x > 6, np.nan, 2 * x)
    found = control(x, y, person=np.arange(8), seed=0)
    assert found.absent == 0.25 and found.slope.value == pytest.approx(2) and found.r.n == 6


def test_samples_without_any_heart_give_no_numbers_but_their_share():
    found = control(np.arange(4.0), np.full(4, np.nan), person=np.arange(4), seed=0)
    assert found.absent == 1 and found.r.n == 0 and np.isnan([e.value for e in found[:4]]).all()


def test_asking_everybody_for_the_same_is_refused():
    with pytest.raises(ValueError, match="at least two different values"):
        control(np.full(6, 100.0), np.arange(6.0), person=np.arange(6), seed=0)
    with pytest.raises(ValueError, match="expected as many of each"):
        control(np.arange(6.0), np.arange(5.0), person=np.arange(6), seed=0)


def phases_of(volumes: np.ndarray, attributes: pd.DataFrame, person: np.ndarray) -> Phases:
    return phase_accuracy(attributes, pd.DataFrame({"lv": volumes}), person=person, seed=0)


def test_the_phase_is_found_whatever_the_order_of_rows():
    attributes, person = people(20)
    volumes = asked_for(attributes)["lv"].to_numpy() * 1.1
    order = np.random.default_rng(0).permutation(len(person))
    found = phases_of(volumes[order], attributes.iloc[order].reset_index(drop=True), person[order])
    assert found.pairs.value == found.nearest.value == 1
    assert (found.pairs.n, found.pairs.n_of) == (20, "patients")
    assert found.pairs.low == pytest.approx(0.025 ** (1 / 20))  # exact: Clopper and Pearson of 20 in 20


def test_a_generator_deaf_to_the_phase_is_right_half_the_time_at_best():
    attributes, person = people(200)
    rng = np.random.default_rng(0)
    noisy = phases_of(attributes["lvedv"].to_numpy() * rng.uniform(0.95, 1.05, len(person)), attributes, person)
    assert noisy.nearest.value == 0.5 and abs(noisy.pairs.value - 0.5) < 0.1
    nothing = phases_of(np.zeros(len(person)), attributes, person)
    assert nothing.pairs.value == 0 and nothing.nearest.value == 0.5


def test_exchanged_phases_are_never_right():
    attributes, person = people(20)
    found = phases_of(asked_for(attributes)["lv"].to_numpy().reshape(-1, 2)[:, ::-1].ravel(), attributes, person)
    assert found.pairs.value == found.nearest.value == 0


def test_who_has_one_phase_alone_makes_no_pair():
    attributes, person = people(5)
    volumes = asked_for(attributes)["lv"].to_numpy()
    kept = np.arange(9)
    found = phases_of(volumes[kept], attributes.iloc[kept], person[kept])
    assert found.pairs.n == 4 and found.nearest.n == 5


def test_pairs_need_two_phases_of_a_person_once_each():
    attributes, person = people(5)
    volumes = asked_for(attributes)["lv"].to_numpy()
    with pytest.raises(ValueError, match="ask for each person at ED and at ES"):
        phases_of(volumes, attributes, np.arange(10))
    with pytest.raises(ValueError, match="several samples of a phase"):
        phases_of(volumes, attributes, person // 2)


def test_rows_of_conditions_come_in_their_order_and_hold_each_row_once():
    table = pd.DataFrame({"condition": pd.array(["dilated", "normal", None, "rv-enlarged", "normal"], dtype="string")})
    found = rows_by_condition(table)
    assert {name: rows.tolist() for name, rows in found.items()} == {"normal": [1, 4], "dilated": [0], "rv-enlarged": [3]}
    assert list(found) == ["normal", "dilated", "rv-enlarged"]
    with pytest.raises(ValueError, match="column 'condition'"):
        rows_by_condition(pd.DataFrame({"age": [1.0]}))

"""Names of arms and what they mean, and the share of a gap that is closed."""

import math
from dataclasses import replace

import pytest

from medsynth.privacy.dp.study import CENTRAL, CHOSEN, arm_of, chosen_rows, closed, places, seeds_of
from medsynth.results import Row
from medsynth.settings.config import DPConfig, DPPatientsConfig, PrivacyConfig

TRAINING = PrivacyConfig(steps=5, batch=10)
SCRATCH = PrivacyConfig(steps=7, batch=10, trainable="full", learning_rate=2e-3)
CONFIG = DPConfig(100, 20, 10, (1.0, 10.0), TRAINING, SCRATCH, variants=("trainable bias", "draws 8", "clip 0.1"))


def test_every_arm_has_a_name_and_every_name_says_its_arm():
    assert CONFIG.arms == (
        "pre-trained/1", "pre-trained/10", "pre-trained/inf", "scratch/10", "scratch/inf",
        "pre-trained/10/trainable bias", "pre-trained/10/draws 8", "pre-trained/10/clip 0.1",
    )  # fmt: skip
    assert arm_of(CONFIG, "pre-trained/1") == ("pre-trained", "public", replace(TRAINING, epsilon=1.0))
    assert arm_of(CONFIG, "scratch/inf") == ("scratch", "scratch", replace(SCRATCH, epsilon=math.inf))
    varied = [arm_of(CONFIG, name).privacy for name in CONFIG.arms[-3:]]
    assert (varied[0].trainable, varied[1].draws, varied[2].clip) == ("bias", 8, 0.1)
    assert {v.epsilon for v in varied} == {10.0} and arm_of(CONFIG, CONFIG.arms[-2]).name == "pre-trained, draws 8"


def test_arms_that_begin_with_central_images_give_them_a_share():
    config = replace(CONFIG, central_epsilons=(1.0,), central=0.2)
    assert "central images first/1" in config.arms
    assert arm_of(config, f"{CENTRAL}/1") == (CENTRAL, "public", replace(TRAINING, epsilon=1.0, central=0.2))
    with pytest.raises(ValueError, match="a share of an infinite epsilon"):
        arm_of(config, f"{CENTRAL}/inf")


@pytest.mark.parametrize(
    ("variant", "said"), [("drws 8", "did you mean 'draws'"), ("draws 0", "draws is 0"), ("draws many", "variant 'draws many'")]
)
def test_a_variant_that_cannot_be_is_named(variant, said):
    with pytest.raises(ValueError, match=said):
        arm_of(CONFIG, f"pre-trained/10/{variant}")


def test_held_out_people_are_asked_for_or_measured_against():
    assert CONFIG.asked(30) == 10 and CONFIG.asked(33) == 11
    # of few people neither side may be too few
    assert CONFIG.asked(17) == 8


def test_more_patients_are_more_in_every_step():
    few = DPPatientsConfig((60, 250), (10.0,), replace(TRAINING, batch=20))
    assert few.arms == ("60/10", "60/inf", "250/10", "250/inf")
    assert few.recipe(60, 10.0) == replace(TRAINING, batch=20, epsilon=10.0)
    assert few.recipe(250, math.inf) == replace(TRAINING, batch=83, epsilon=math.inf) and few.recipe(1, 1.0).batch == 1


def row(epsilon, value, *, arm="pre-trained", seed=0):
    return Row(chapter="dp", dataset="d", metric="FID", arm=arm, value=value, seed=seed, extra={"epsilon": epsilon})


def test_the_closed_gap_is_a_share_of_what_training_gains():
    rows = [row(0.0, 20.0), row(1.0, 15.0), row(10.0, 11.0), row(math.inf, 10.0), row(10.0, 99.0, arm="scratch")]
    found = {r.extra["epsilon"]: r.value for r in closed(rows)}
    assert found == {1.0: 0.5, 10.0: 0.9, math.inf: 1.0}
    assert {r.metric for r in closed(rows)} == {"FID gap closed"}
    # of a second seed beside its own training without privacy
    rows += [row(10.0, 16.0, seed=1), row(math.inf, 12.0, seed=1)]
    assert {(r.seed, r.value) for r in closed(rows) if r.extra["epsilon"] == 10.0} == {(0, 0.9), (1, 0.5)}
    # a variant without privacy that is better is what might have been had
    rows += [row(math.inf, 8.0, arm="pre-trained, steps 9"), row(10.0, 5.0, arm="pre-trained, draws 2")]
    assert {(r.seed, r.value) for r in closed(rows) if r.extra["epsilon"] == 10.0} == {(0, 0.75), (1, 4 / 12)}


def test_without_a_gain_there_is_no_gap():
    assert closed([row(0.0, 20.0), row(1.0, 25.0), row(math.inf, 21.0)]) == []


def test_places_rise_and_end_without_privacy():
    assert places([row(math.inf, 1), row(10.0, 1), row(0.0, 1), row(0.5, 1)]) == {
        0.0: "0", 0.5: "0.5", 10.0: "10", math.inf: "not private"
    }  # fmt: skip


def test_the_chosen_line_is_what_was_best_elsewhere_also_where_it_is_not_here():
    rows = [
        row(1.0, 9.0, arm="a"),
        row(1.0, 8.0, arm="b"),
        row(10.0, 7.0, arm="a", seed=3),
        row(10.0, 6.0, arm="b"),
        row(0.0, 1.0),
    ]
    config = replace(CONFIG, chosen=("b", "a"))
    found = chosen_rows(rows, config)
    assert [(r.arm, r.value, r.seed, r.extra) for r in found] == [
        (CHOSEN, 8.0, 0, {"epsilon": 1.0, "method": "b"}), (CHOSEN, 7.0, 3, {"epsilon": 10.0, "method": "a"}),
    ]  # fmt: skip
    assert chosen_rows(rows, CONFIG) == []
    with pytest.raises(ValueError, match="chosen has 1 methods; expected one for each of 2 epsilons"):
        replace(CONFIG, chosen=("b",))


def test_what_is_compared_has_every_seed_and_all_else_one():
    names = (*CONFIG.arms, f"{CENTRAL}/10")
    every = [name for name in names if len(seeds_of(arm_of(CONFIG, name), CONFIG, [4, 5, 6])) == 3]
    assert every == [name for name in names if name.startswith("pre-trained/") and name.count("/") == 1] + ["scratch/10"]
    assert seeds_of(arm_of(CONFIG, f"{CENTRAL}/10"), CONFIG, [4, 5, 6]) == [4]


def test_a_variant_is_of_the_largest_epsilon_unless_it_names_an_arm():
    config = replace(CONFIG, variants=("draws 8", "scratch/inf/batch 9", "pre-trained/inf/steps 60"))
    assert config.arms[-3:] == ("pre-trained/10/draws 8", "scratch/inf/batch 9", "pre-trained/inf/steps 60")
    assert arm_of(config, config.arms[-2])[:2] == ("scratch, batch 9", "scratch")
    longer = arm_of(config, config.arms[-1])
    assert longer == ("pre-trained, steps 60", "public", replace(TRAINING, epsilon=math.inf, steps=60))

"""TOST against the classical t tests, verdicts with known answers, and intervals that cover as often as they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from shared import pixels_in_hu

from medsynth.evaluation.equivalence import METRICS, Comparison, compare, equivalence, image_scores, tost, two_level
from medsynth.evaluation.image_quality import psnr, rmse, ssim


@pytest.fixture(scope="module")
def clean():
    return pixels_in_hu(np.random.default_rng(0).uniform(-800, 300, (10, 1, 16, 16)), "clean")


def noisy(clean, sd, seed):
    noise = np.random.default_rng([seed, int(10 * sd)]).normal(0, sd, clean.images.shape)
    return clean.with_images(np.clip(clean.images + noise, *clean.range), name=f"noisy-{sd}-{seed}")


def t_tost(differences, margin, alpha=0.05):
    """The classical paired TOST: both one-sided t tests reject."""
    low = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    high = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    return max(low, high) < alpha


def t_interval(differences, level):
    return stats.t.interval(level, len(differences) - 1, np.mean(differences), stats.sem(differences))


# ------------------------------------------------------------------------------------------------ intervals


@pytest.mark.parametrize("n", [6, 10, 40])
def test_one_level_interval_is_that_of_student_on_normal_data(n):
    shortfall = []
    for seed in range(6):
        d = np.random.default_rng([n, seed]).normal(0.2, 1, n)
        found, expected = two_level([(1, d)], seed=seed, replicates=4000, level=0.9), t_interval(d, 0.9)
        assert found.value == pytest.approx(d.mean()) and found.n == n
        assert (found.low + found.high) / 2 == pytest.approx(d.mean(), abs=0.15 * (expected[1] - expected[0]))
        shortfall.append((found.high - found.low) / (expected[1] - expected[0]))
    assert np.mean(shortfall) == pytest.approx(1, abs=0.04)


def test_a_plain_percentile_interval_would_be_too_short():
    d = np.random.default_rng(0).normal(size=6)
    rows = np.random.default_rng(1).integers(6, size=(4000, 6))
    plain = np.quantile(d[rows].mean(1), [0.05, 0.95])
    found = two_level([(1, d)], seed=0, replicates=4000, level=0.9)
    assert found.high - found.low > 1.2 * (plain[1] - plain[0])


def test_intervals_over_patients_and_seeds_cover_as_often_as_they_say():
    """90 % intervals of a difference of two arms, 4 seeds each whose spread dominates, 10 patients; 120 simulated studies."""
    hits = []
    for study in range(120):
        rng = np.random.default_rng([7, study])
        patient = rng.normal(0, 1, 10)
        arms = [patient + rng.normal(0, 0.3, (4, 1)) + rng.normal(0, 0.2, (4, 10)) for _ in range(2)]
        found = two_level([(1, arms[0]), (-1, arms[1])], seed=study, replicates=300, level=0.9)
        hits.append(found.low <= 0 <= found.high)
    # 90 % plus or minus 3.3 standard errors of a share of 120
    assert 0.81 <= np.mean(hits) <= 0.99


def test_intervals_hold_where_one_arm_has_seeds_that_differ_and_there_are_three():
    """A percentile interval is bounded by the seeds that were seen: 83 % instead of 90 %."""
    hits = []
    for study in range(400):
        rng = np.random.default_rng([8, study])
        patient = rng.normal(0, 1, 30)
        moody, steady = (patient + rng.normal(0, spread, (3, 1)) + rng.normal(0, 0.05, (3, 30)) for spread in (0.3, 0.01))
        found = two_level([(1, moody), (-1, steady)], seed=study, replicates=200, level=0.9)
        hits.append(found.low <= 0 <= found.high)
    # 90 % plus or minus 3 standard errors of a share of 400
    assert 0.855 <= np.mean(hits) <= 0.945
    # known answer: three seeds, one of which lost itself
    lost = np.array([-0.1, -0.1, -0.655])[:, None] + np.zeros(30)
    low, high = t_interval(lost[:, 0], 0.9)
    found = two_level([(1, lost), (-1, np.zeros((3, 30)))], seed=0, replicates=20_000, level=0.9)
    assert (found.low, found.high) == pytest.approx((low, high), rel=0.03)


def test_seeds_widen_an_interval_and_paired_patients_do_not():
    rng = np.random.default_rng(0)
    patient, shift = rng.normal(0, 5, 12), rng.normal(0, 1, (5, 1))
    steady, moody = np.tile(patient, (5, 1)), patient + shift
    same = two_level([(1, steady), (-1, steady + 0.25)], seed=0)
    assert (same.value, same.low, same.high) == pytest.approx((-0.25, -0.25, -0.25))
    wide = two_level([(1, moody), (-1, steady)], seed=0)
    assert wide.low < shift.mean() < wide.high and wide.high - wide.low > 1
    # five seeds have a Student interval of their own
    expected = t_interval(shift[:, 0], 0.95)
    assert wide.high - wide.low == pytest.approx(expected[1] - expected[0], rel=0.25)


@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_an_interval_does_not_depend_on_the_order_of_equal_things(seed):
    values = np.random.default_rng(seed).normal(size=(3, 8))
    found = two_level([(1, values)], seed=seed, replicates=200)
    assert found == two_level([(1, values)], seed=seed, replicates=200)
    assert found.low <= found.value <= found.high
    shifted = two_level([(1, values + 5)], seed=seed, replicates=200)
    assert shifted[:4] == pytest.approx((found.value + 5, found.low + 5, found.high + 5, 8))
    mirrored = two_level([(-1, values)], seed=seed, replicates=200)
    assert mirrored[:4] == pytest.approx((-found.value, -found.high, -found.low, 8))


# ------------------------------------------------------------------------------------------------ TOST


@pytest.mark.parametrize("n", [8, 25])
def test_tost_agrees_with_the_t_tests_on_normal_data(n):
    """Margins well inside and well outside those at which the t tests turn."""
    for seed in range(8):
        d = np.random.default_rng([n, seed]).normal(0.1, 0.5, n)
        edge = max(abs(v) for v in t_interval(d, 0.9))
        for margin in (0.75 * edge, 1.25 * edge):
            found = tost(d, margin=margin, seed=seed, replicates=2000)
            assert (found.verdict == "equivalent") == t_tost(d, margin) == (margin > edge)


def test_verdicts_with_known_answers():
    spread = np.linspace(-1, 1, 21)
    equal = tost(0.1 * spread, margin=0.5, seed=0)
    assert equal.verdict == "equivalent" and equal.reasons == (f"90 % interval [{equal.difference.low:.3g}, "
        f"{equal.difference.high:.3g}] lies inside +-0.5",)  # fmt: skip
    for sign in (1, -1):
        far = tost(sign * 2 + 0.1 * spread, margin=0.5, seed=0)
        assert far.verdict == "different" and "excludes zero" in far.reasons[0]
    assert tost(5 * spread, margin=0.5, seed=0).verdict == "not shown"
    # a difference that is real, and smaller than what matters, is no difference
    assert tost(0.2 + 0.1 * spread, margin=0.5, seed=0).verdict == "equivalent"
    assert tost(np.zeros(9), margin=0.1, seed=0).difference[:3] == (0, 0, 0)
    # a difference that touches the margin is not inside it
    assert tost(np.full(9, 0.5), margin=0.5, seed=0).verdict == "different"
    # "no significant difference" is not equivalence
    few = np.array([-2.0, 2.0, 0.5])
    assert stats.ttest_1samp(few, 0).pvalue > 0.5 and tost(few, margin=0.5, seed=0).verdict == "not shown"


def test_false_claims_of_equivalence_are_rare_at_the_margin():
    """True difference = margin: at most alpha = 5 % of 150 studies may claim equivalence (3.3 standard errors above)."""
    claims = [
        tost(np.random.default_rng([3, s]).normal(0.5, 0.2, 8), margin=0.5, seed=s, replicates=300).verdict == "equivalent"
        for s in range(150)
    ]
    assert np.mean(claims) <= 0.05 + 3.3 * np.sqrt(0.05 * 0.95 / 150)


# ------------------------------------------------------------------------------------------------ comparison


def test_image_scores_are_those_of_the_restoration_metrics(clean):
    other = noisy(clean, 60.0, 0)
    scores = image_scores(clean, other)
    for metric, function in {"psnr": psnr, "ssim": ssim, "rmse": rmse}.items():
        assert scores[metric].mean() == pytest.approx(function(clean, other, seed=0, replicates=10).value)


def test_every_patient_counts_once(clean):
    patient = np.array([0] * 8 + [1, 2])
    reference = pixels_in_hu(clean.images, patient=patient)
    other = pixels_in_hu(noisy(clean, 60.0, 0).images, patient=patient)
    scores = image_scores(reference, other)["psnr"]
    found = compare(reference, {"a": [other]})
    assert found.patients == 3
    assert found.scores["a"]["psnr"] == pytest.approx(np.array([[scores[:8].mean(), scores[8], scores[9]]]))
    assert found.estimate("a", "psnr", seed=0, replicates=100).value == pytest.approx(found.scores["a"]["psnr"].mean())


def test_estimates_say_their_patients_and_their_level(clean):
    arms = {"real": [noisy(clean, 20.0, s) for s in range(3)], "synthetic": [noisy(clean, 30.0, s) for s in range(2)]}
    found = compare(clean, arms)
    for arm, sets in arms.items():
        for metric in METRICS:
            assert found.matrix(arm, metric).shape == (len(sets), 5)
            e = found.estimate(arm, metric, seed=0, replicates=200)
            assert e.low <= e.value <= e.high and (e.n, e.n_of, e.level) == (5, "patients", 0.95)
    # what a verdict is made from
    assert tost(np.arange(5.0), margin=1.0, seed=0).difference.level == pytest.approx(0.9)
    gap = found.difference("real", "synthetic", "psnr", seed=0)
    # 20 against 30 HU of noise
    assert gap.value == pytest.approx(20 * np.log10(1.5), abs=0.3) and gap.low > 2
    assert found.difference("synthetic", "real", "rmse", seed=0).value == pytest.approx(10, abs=1)


def test_scores_of_other_scans_are_refused(clean):
    for wrong, message in (
        (clean.select([0, 1]), "shape"),
        (pixels_in_hu(clean.images, "suv", unit="SUV"), "SUV; expected"),
        (pixels_in_hu(clean.images, "wide", high=900.0), "expected .*400"),
        (pixels_in_hu(clean.images, "others", patient=np.arange(10)), "others: patients differ from those of clean"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(clean, {"a": [wrong]})
    for sets in (clean, []):
        with pytest.raises(ValueError, match="arm 'a': expected a list of ImageSets, one per seed"):
            compare(clean, {"a": sets})


# ------------------------------------------------------------------------------------------------ sensitivity


def study(gap=0.0, gain=3.0, change=0.05, seeds=3, patients=12, moody=0.05):
    """Scores whose arms differ by the given dB."""
    rng = np.random.default_rng(0)
    base = rng.normal(33, 2, patients)

    def arm(level, seeds, spread):
        psnr = base + level + rng.normal(0, spread, (seeds, 1)) + rng.normal(0, spread, (seeds, patients))
        return {"psnr": psnr, "ssim": 0.9 + psnr / 1000, "rmse": 100 - psnr}

    levels = {"real": (0, seeds, 0.02), "synthetic": (gap, seeds, moody), "twice": (change, seeds, 0.02), "tv": (-gain, 1, 0.02)}
    return Comparison({name: arm(*how) for name, how in levels.items()}, patients)


NAMES = {"real": "real", "twice": "twice", "baseline": "tv", "seed": 0, "replicates": 1000}


def test_equivalence_is_claimed_where_a_difference_would_have_shown():
    found = equivalence(study(), "synthetic", **NAMES)
    assert found.verdict == "equivalent" and len(found.reasons) == 1 and found.margin == 0.5
    assert equivalence(study(), "synthetic", metric="ssim", **NAMES).margin == 0.01
    assert equivalence(study(), "synthetic", metric="rmse", margin=1.0, **NAMES).verdict == "equivalent"


def test_equivalence_is_not_claimed_where_none_could_show():
    for change, said in (
        ({"gain": 1.2}, "real beats tv by 1."), ({"change": 0.6}, "twice the budget changes real by 0."),
        ({"change": -0.6}, "twice the budget changes real by -0."),
    ):  # fmt: skip
        found = equivalence(study(**change), "synthetic", **NAMES)
        assert found.verdict == "experiment not sensitive"
        assert said in found.reasons[1] and "lies inside" in found.reasons[0]
    both = equivalence(study(gain=0.0, change=1.0), "synthetic", **NAMES)
    assert len(both.reasons) == 3
    # nor is a wide interval blamed on the number of patients alone
    assert equivalence(study(gain=0.0, moody=1.5), "synthetic", **NAMES).verdict == "experiment not sensitive"


def test_a_difference_that_is_seen_is_one_even_in_a_poor_experiment():
    assert equivalence(study(gap=-1.5), "synthetic", **NAMES).verdict == "different"
    found = equivalence(study(gap=-1.5, gain=0.5), "synthetic", **NAMES)
    assert found.verdict == "different" and "real beats tv" in found.reasons[1]
    assert equivalence(study(moody=1.5), "synthetic", **NAMES).verdict == "not shown"


def test_one_seed_is_said_to_be_one():
    found = equivalence(study(seeds=1), "synthetic", **NAMES)
    assert found.verdict == "equivalent" and found.reasons[-1].startswith("one seed")


def test_questions_without_an_answer_are_refused():
    for margin in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="expected a positive number, chosen before the data were seen"):
            tost(np.arange(5.0), margin=margin, seed=0)
    with pytest.raises(ValueError, match="level 1"):
        two_level([(1, np.arange(5.0))], seed=0, level=1)
    with pytest.raises(ValueError, match=r"scores of \[4, 5\] patients"):
        two_level([(1, np.zeros(4)), (-1, np.zeros(5))], seed=0)
    with pytest.raises(ValueError, match="expected finite scores"):
        two_level([(1, np.array([1.0, np.nan]))], seed=0)
    with pytest.raises(ValueError, match=r"1 patient.* expected at least 2"):
        two_level([(1, np.zeros((3, 1)))], seed=0)
    with pytest.raises(ValueError, match="no margin is agreed for 'rmse'"):
        equivalence(study(), "synthetic", metric="rmse", **NAMES)
    with pytest.raises(ValueError, match=r"no arm 'gated'; expected one of \['real'"):
        equivalence(study(), "gated", **NAMES)
    with pytest.raises(ValueError, match="no metric 'fid'"):
        study().estimate("real", "fid", seed=0)

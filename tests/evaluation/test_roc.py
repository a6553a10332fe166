"""ROC, AUC and TPR of scores against loops, scikit-learn and what must not change them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from medsynth.evaluation.roc import Scored, auc, membership, roc, share_above, threshold_at, tpr_at
from medsynth.evaluation.statistics import generator, resample

# few distinct scores, so that most are tied, and weights of which some are zero
KIND = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=15)


def scored(rows):
    score, weight = (np.array(c, dtype=float) for c in zip(*rows, strict=True))
    return Scored.of(score, weight)


def repeated(kind):
    return np.repeat(kind.score, kind.weight.astype(int))


@given(KIND, KIND)
def test_auc_counts_pairs_and_ties_half(members, others):
    pairs = [(w * v, (s > t) + (s == t) / 2) for s, w in members for t, v in others]
    total = sum(weight for weight, _ in pairs)
    found = auc(scored(members), scored(others))
    assert np.isnan(found) if not total else found == pytest.approx(sum(w * won for w, won in pairs) / total)


@given(KIND, KIND, st.sampled_from([0.0, 0.01, 0.2, 0.5, 0.99]))
def test_tpr_is_the_best_that_keeps_to_the_false_positive_rate(members, others, fpr):
    member, other = scored(members), scored(others)
    yes, no = repeated(member), repeated(other)
    found = tpr_at(member, other, fpr)
    if not len(yes) or not len(no):
        assert np.isnan(found)
        return
    # every threshold there is, and none: what exceeds it is taken for a member
    allowed = [np.mean(yes > t) for t in [*yes, *no, -1] if np.mean(no > t) <= fpr]
    assert found == pytest.approx(max(allowed))


@given(KIND, KIND)
def test_the_roc_is_that_of_scikit_learn_and_its_area_the_auc(members, others):
    member, other = (Scored.of(scored(k).score) for k in (members, others))
    points = roc(member, other)
    label, score = np.repeat([1, 0], [len(members), len(others)]), np.concatenate([member.score, other.score])
    false, true, _ = roc_curve(label, score, drop_intermediate=False)
    np.testing.assert_allclose(points, np.stack([false, true], 1))
    assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(auc(member, other))
    assert auc(member, other) == pytest.approx(roc_auc_score(label, score))


def test_equal_scores_are_one_step_of_the_roc():
    points = roc(Scored.of(np.array([2.0, 1.0])), Scored.of(np.array([1.0, 0.0])))
    np.testing.assert_allclose(points, [[0, 0], [0, 0.5], [0.5, 1], [1, 1]])


def test_a_thinned_roc_holds_points_of_the_whole_one():
    member, other = Scored.of(generator(0).normal(size=300) + 1), Scored.of(generator(1).normal(size=5000).round(2))
    whole, some = roc(member, other), roc(member, other, points=40)
    assert 20 < len(some) <= 42 and {tuple(p) for p in some} <= {tuple(p) for p in whole}
    # most of them where few are taken for members by mistake
    assert (some[:, 0] < 0.01).sum() >= 12


def test_only_the_highest_scores_of_others_are_needed_where_their_weight_is_known():
    rng = generator(2)
    other = Scored.of(rng.normal(size=400), rng.random(400))
    top = Scored(*(column[:40] for column in other))
    assert threshold_at(top, 0.05, total=other.weight.sum()) == threshold_at(other, 0.05)
    with pytest.raises(LookupError, match="do not reach a false positive rate"):
        threshold_at(top, 0.5, total=other.weight.sum())


def test_the_interval_is_a_bootstrap_over_patients_of_both_kinds():
    """Each replicate equals the statistic of the rows that its patients bring, repeated."""
    rng = generator(3)
    member, other = rng.normal(size=60) + 0.8, rng.normal(size=90)
    member_patient, other_patient = np.arange(60) // 3, np.arange(90) // 2
    found = membership(member, other, member_patient=member_patient, other_patient=other_patient, seed=4, fpr=0.1, replicates=80)
    # outsiders first: patients are numbered by kind, then by number
    values = []
    for counts in resample(65, seed=4, replicates=80):
        yes, no = (Scored.of(np.repeat(s, counts[p])) for s, p in ((member, member_patient + 45), (other, other_patient)))
        values.append((auc(yes, no), tpr_at(yes, no, 0.1)))
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    assert (found.auc.low, found.tpr.low) == pytest.approx(tuple(low))
    assert (found.auc.high, found.tpr.high) == pytest.approx(tuple(high))
    assert found.auc.value == pytest.approx(auc(Scored.of(member), Scored.of(other))) and found.fpr == 0.1
    assert found.tpr.value == share_above(Scored.of(member), np.sort(other)[-10])
    assert found.auc.n == found.tpr.n == 65


def test_patients_of_the_two_kinds_are_never_one():
    # members 0..4 and outsiders 0..4 are ten persons
    numbers = np.arange(5)
    options = {"member_patient": numbers, "other_patient": numbers, "seed": 0, "replicates": 200}
    assert membership(numbers * 1.0, numbers * 1.0, **options).auc.n == 10

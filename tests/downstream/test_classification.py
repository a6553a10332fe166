"""Classifiers learn what can be seen; their scores are those of scikit-learn, and intervals know patients and seeds."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_auc_score

from medsynth.downstream.classification import (
    ClassifierConfig,
    auroc,
    class_aurocs,
    codes_of,
    differences,
    few_of,
    frequent_classes,
    labels_of,
    of_classes,
    probabilities,
    scores,
    thumbnail_probabilities,
    told_apart,
    train_classifier,
)
from medsynth.imageset import ImageSet
from medsynth.ledger import Ledger

CLASSES = ("none", "nodule")
TINY = ClassifierConfig(steps=60, batch=16, learning_rate=3e-3, warmup=5, ema=0.9, features=8, growth=4, blocks=(2, 2))


def striped(n, seed, role="public"):
    """All images have a patch of fine stripes somewhere; the finding is that they stand upright. Two images of each patient."""
    rng = np.random.default_rng(seed)
    images = rng.normal(0.4, 0.05, (n, 1, 32, 32)).astype(np.float32)
    has = np.repeat(rng.random(n // 2) < 0.5, 2)
    stripes = 0.3 * np.where(np.arange(8) % 2, 1, -1) * np.ones((8, 1))
    for k in range(n):
        y, x = rng.integers(2, 22, 2)
        images[k, 0, y : y + 8, x : x + 8] += stripes if has[k] else stripes.T
    table = pd.DataFrame({"finding": np.where(has, "nodule", "none")})
    return ImageSet(
        images=images.clip(0, 1), patient=np.repeat(np.arange(n // 2), 2), unit="1", range=(0, 1), attributes=table, role=role,
        name="stripes",
    )  # fmt: skip


def test_a_classifier_sees_what_thumbnails_do_not_tell_and_leaves_a_line(cache):
    training, test, ledger = striped(240, 0, "private"), striped(120, 1), Ledger()
    model = train_classifier(training, CLASSES, TINY, ledger=ledger)
    label = labels_of(test, CLASSES)
    found = scores(label, probabilities(model, test), test.patient, seed=0, replicates=100)
    assert found.auroc.value > 0.95 and found.auroc.n == 60 and found.auroc.low <= found.auroc.value <= found.auroc.high
    (line,) = ledger.entries(training)
    assert line.stage == "train classifier" and "not released" in line.output
    again = train_classifier(training, CLASSES, TINY, ledger=Ledger())
    np.testing.assert_array_equal(probabilities(again, test), probabilities(model, test))
    floor = thumbnail_probabilities(training, test, CLASSES, ledger=ledger)
    assert len(ledger.entries(training)) == 2
    assert floor.shape == (120, 2) and auroc(label, floor) < 0.8


@given(st.integers(0, 10**6), st.integers(2, 4))
@settings(max_examples=30, deadline=None)
def test_scores_are_those_of_scikit_learn(seed, kinds):
    rng = np.random.default_rng(seed)
    label = np.concatenate([np.arange(kinds), rng.integers(0, kinds, 40)])
    probability = rng.dirichlet(np.ones(kinds), len(label)).round(2)
    probability /= probability.sum(1, keepdims=True)
    weight = rng.integers(1, 4, len(label)).astype(float)
    expected = (
        roc_auc_score(label, probability[:, 1], sample_weight=weight)
        if kinds == 2
        else np.mean([roc_auc_score(label == k, probability[:, k], sample_weight=weight) for k in range(kinds)])
    )
    assert auroc(label, probability, weight) == pytest.approx(expected)
    found = scores(label, probability, np.arange(len(label)), seed=0, replicates=20)
    each = [brier_score_loss(label == k, probability[:, k]) for k in range(kinds)]
    assert found.brier.value == pytest.approx(sum(each))
    per_class = class_aurocs(label, probability, [str(k) for k in range(kinds)], np.arange(len(label)), seed=0, replicates=20)
    assert per_class["1"].value == pytest.approx(roc_auc_score(label == 1, probability[:, 1]))


def test_confidence_that_is_the_share_of_right_answers_is_calibrated_and_boasting_is_not():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1, 20_000)
    label = (rng.random(20_000) < p).astype(int)
    honest, boasting = np.stack([1 - p, p], 1), np.stack([(1 - p) ** 3, 1 - (1 - p) ** 3], 1)
    told = {"patient": np.arange(20_000), "seed": 0, "replicates": 20}
    assert scores(label, honest, **told).calibration.value < 0.02
    expected = np.abs(boasting[:, 1] - p).mean()
    assert scores(label, boasting, **told).calibration.value == pytest.approx(expected, abs=0.01)


def test_a_difference_is_paired_and_grows_with_what_was_lost():
    rng = np.random.default_rng(0)
    label, patient = rng.integers(0, 2, 600), np.repeat(np.arange(300), 2)

    def network(noise, seed):
        score = label + noise * np.random.default_rng(seed).normal(size=600)
        return np.stack([-score, score], 1)

    shared = [network(1.0, k) for k in range(3)]
    made = {"real": shared, "same": shared, "like": [network(1.0, k) for k in range(9, 12)], "worse": [network(2.0, 5)] * 2}
    found = differences(label, made, "real", patient, seed=0, replicates=300)
    assert set(found) == {"same", "like", "worse"} and found["same"].value == 0 and found["like"].n == 300
    assert found["like"].low < 0 < found["like"].high and found["worse"].high < -0.05
    lone = differences(label, {"real": shared[:1], "same": shared[:1]}, "real", patient, seed=0, replicates=50)["same"]
    assert (lone.low, lone.value, lone.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"finding": ["mass"] * 40}, "finding is 'mass' in 40 rows; select rows of none, nodule"),
        ({"finding": pd.array([None] * 40, dtype="string")}, "finding is <NA> in 40 rows"),
        ({"finding": ["none"] * 36 + ["nodule"] * 4}, "2 patients with finding 'nodule'; expected at least 5"),
        (None, "no attribute 'finding'; there are"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(change, said):
    images = striped(40, 0)
    table = images.attributes.drop(columns="finding") if change is None else images.attributes.assign(**change)
    with pytest.raises(ValueError, match=said):
        labels_of(images.with_images(images.images, attributes=table), CLASSES)


def with_findings(*counts, role="public"):
    """A set with so many patients of each of the findings a, b, c, two rows each."""
    finding = np.repeat(np.repeat([*"abc"], counts), 2)
    patient = np.repeat(np.arange(sum(counts)), 2)
    images = np.zeros((len(patient), 1, 4, 4), np.float32)
    return ImageSet(
        images=images, patient=patient, unit="1", range=(0, 1), attributes=pd.DataFrame({"finding": finding}), role=role,
        name="set",
    )  # fmt: skip


def test_classes_that_both_sets_have_enough_patients_of_are_chosen_or_those_asked_for():
    ours, theirs = with_findings(9, 5, 6), with_findings(5, 4, 7)
    assert frequent_classes(ours, theirs) == ("a", "c") and frequent_classes(ours, ours, "c, b") == ("c", "b")
    assert told_apart(ours, theirs, ["finding"]) == {"finding": ("a", "c")}
    chosen = of_classes(ours, ("c", "a"))
    assert chosen.patients == 15 and np.unique(codes_of(chosen, ("c", "a")), return_counts=True)[1].tolist() == [12, 18]
    with pytest.raises(ValueError, match="'b' has fewer than 5 patients"):
        frequent_classes(ours, theirs, "a, b")
    with pytest.raises(ValueError, match=r"classes \['a'\] of 'finding'; expected at least two"):
        frequent_classes(ours, with_findings(5, 4, 4))
    assert told_apart(ours, with_findings(5, 4, 4), ["finding"]) == {}
    with pytest.raises(ValueError, match="no attribute 'sex'"):
        frequent_classes(ours, theirs, attribute="sex")


def test_few_patients_are_the_first_of_each_class_and_refused_where_there_are_not_enough():
    few = few_of(with_findings(9, 6, 5), ("a", "b", "c"), 15)
    assert np.unique(few.patient).tolist() == [*range(5), *range(9, 14), *range(15, 20)] and len(few) == 30
    with pytest.raises(ValueError, match="5 patients of 'c'; expected 6, or choose fewer"):
        few_of(with_findings(9, 6, 5), ("a", "b", "c"), 18)

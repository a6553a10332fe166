from __future__ import annotations

import numpy as np
import pytest

from medsynth.evaluation.roc import membership
from medsynth.privacy.attacks.negative_space import expected_hits, hole_attack, hole_score, within


def features(n: int, seed: int, d: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def attack(member, outsider):
    return membership(
        member, outsider, member_patient=np.arange(len(member)), other_patient=np.arange(len(outsider)), seed=0, replicates=200
    )


def test_counts_are_those_of_a_loop():
    targets, images = np.stack([features(7, 0), features(7, 3), features(7, 4)]), features(40, 1)
    near = [
        [min(np.linalg.norm((c - i).astype(np.float64)) for c in copies) <= 0.7 for i in images]
        for copies in targets.swapaxes(0, 1)
    ]
    naive = [sum(row) for row in near]
    # the copies' balls overlap, and what lies in several counts once
    assert sum(naive) < sum(within(copies[None], images, 0.7).sum() for copies in targets)
    assert within(targets, images, 0.7).tolist() == naive
    assert expected_hits(targets, images, 0.7).tolist() == [k / 40 for k in naive]
    score = hole_score(targets, images, features(80, 2), 0.7)
    expected = within(targets, features(80, 2), 0.7) / 2
    np.testing.assert_allclose(score, [e if k == 0 else -k for e, k in zip(expected, naive, strict=True)])
    with pytest.raises(ValueError, match="0 released and 40 reference"):
        hole_score(targets, images[:0], images, 1.0)


def test_a_hole_is_as_large_as_the_copies_make_it():
    """A gate empties the surroundings of every copy; who looks around the original alone sees a part of that."""
    people, turned = features(360, 3), features(360, 7)
    gallery = np.stack([people, turned])
    reference, ungated = features(20000, 5), features(4000, 6)
    released = ungated[within(ungated[None], np.concatenate(list(gallery[:, :60])), 0.1) == 0]
    aucs = [
        attack(*(hole_score(seen[:, some], released, reference, 0.1) for some in (slice(60), slice(60, None)))).auc.value
        for seen in (gallery[:1], gallery)
    ]
    assert 0.6 < aucs[0] < aucs[1] - 0.02


def test_a_gate_can_be_seen_from_outside_and_its_absence_cannot():
    # 2D, so that the generator draws many images around everybody: the attack's best case
    members, outsiders, radius = features(60, 3), features(300, 4), 0.1
    reference, ungated = features(20000, 5), features(4000, 6)
    holes = within(ungated[None], members, radius) == 0
    scores = {
        name: [hole_score(t[None], released, reference, radius) for t in (members, outsiders)]
        for name, released in {"gated": ungated[holes], "ungated": ungated}.items()
    }
    gated, open_ = attack(*scores["gated"]), attack(*scores["ungated"])
    assert gated.auc.low > 0.8
    assert open_.auc.low < 0.5 < open_.auc.high
    assert gated.curve[0].tolist() == [0, 0] and gated.curve[-1].tolist() == [1, 1]
    assert (np.diff(gated.curve, axis=0) >= 0).all()
    assert gated.auc.n == 360
    area = float(np.trapezoid(gated.curve[:, 1], gated.curve[:, 0]))
    assert area == pytest.approx(gated.auc.value)


def test_the_attack_is_membership_of_the_hole_scores():
    members, others = features(40, 10)[None], features(30, 11)[None]
    released, reference = features(200, 12), features(300, 13)
    released = released[within(released[None], members[0], 0.4) == 0]  # a gate around members
    patients = np.arange(40) // 2, np.arange(30)
    found = hole_attack(members, others, released, reference, 0.4, patients=patients, seed=0, replicates=100)
    scores = [hole_score(targets, released, reference, 0.4) for targets in (members, others)]
    naive = membership(*scores, member_patient=patients[0], other_patient=patients[1], seed=0, replicates=100)
    assert found.auc == naive.auc and (found.curve == naive.curve).all() and found.auc.value > 0.6 and found.auc.n == 50
    assert found.expected == pytest.approx(np.maximum(scores[0], 0).mean())

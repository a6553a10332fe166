"""A gate is tried: who is attacked, who is a stranger, what is counted and what the ledger knows."""

from types import SimpleNamespace

import numpy as np
import pytest

from medsynth.ledger import Ledger
from medsynth.privacy.attacks import gate_trial
from medsynth.privacy.attacks.gate_trial import (
    Attacked,
    attack_rows,
    nearness_of_patients,
    nearness_of_samples,
    scanned_twice,
)
from medsynth.privacy.gate.gate import Verdicts
from medsynth.results import Row, table_of


@pytest.fixture
def met(monkeypatch):
    """What is tried, (map, private, unseen, other scans), in place of a trial that takes long."""
    found = []

    def trial(phi, private, unseen, *, seed, other_scans, store):
        found.append((phi, private, unseen, other_scans))
        return SimpleNamespace(
            at_its_own_and_at_equal_price=lambda tau, *, seed, **named: [Row(metric="tau", value=tau, seed=seed, **named)]
        )

    monkeypatch.setattr(gate_trial, "attack_trial", trial)
    monkeypatch.setattr(gate_trial, "feature_map", lambda name: name)
    monkeypatch.setattr(gate_trial, "threshold_for", lambda phi, dims, kind: SimpleNamespace(tau=dims / 10))
    return found


def test_each_map_is_tried_on_the_same_people_and_each_set_has_a_line(met, make_set, tmp_path):
    private, scans = make_set(12, role="private", name="ward"), make_set(12, seed=2, role="private", name="again")
    given, ledger = Attacked(private, make_set(6, seed=1, role="eval", name="unseen"), scans), Ledger(tmp_path)
    named = {"ledger": ledger, "seed": 3, "chapter": "weights", "dataset": "ward"}
    rows = attack_rows(given, ("encoder", "pixels"), **named)
    assert met == [(phi, *given) for phi in ("encoder", "pixels")]
    table = table_of(rows)
    assert table[["chapter", "dataset", "arm", "seed", "value"]].to_numpy().tolist() == [
        ["weights", "ward", phi, 3, 0.2] for phi in ("encoder", "pixels")
    ]
    lines = [(e.stage, e.reads, e.role) for e in ledger.entries()]
    assert lines == [("try the gate", n, r) for n, r in (("ward", "private"), ("unseen", "eval"), ("again", "private"))]


def test_without_other_scans_the_trial_finds_its_own(met, make_set, tmp_path):
    given = Attacked(make_set(role="private"), make_set(6, seed=1, role="eval", name="unseen"))
    assert set(given.named("ward")) == {"private ward", "unseen ward"}
    attack_rows(given, ("pixels",), ledger=Ledger(tmp_path), seed=0, chapter="weights", dataset="ward")
    assert met[0][3] is None and len(Ledger(tmp_path).entries()) == 2


def test_private_patients_are_attacked_and_strangers_are_not_among_them(make_set):
    drawn = make_set(20, (1, 8, 8), role="private", split=None)
    private, unseen, second = scanned_twice(drawn, 6)
    assert (private.patients, unseen.patients, len(private), len(second)) == (6, 4, 6, 6)
    assert not set(private.patient) & set(unseen.patient) and private.patient.tolist() == second.patient.tolist()
    np.testing.assert_array_equal(private.images, drawn.images[0:12:2])
    np.testing.assert_array_equal(second.images, drawn.images[1:12:2])
    np.testing.assert_array_equal(unseen.images, drawn.images[12::2])
    assert second.name == "tiny/second scans" and {s.role for s in (private, unseen, second)} == {"private"}


@pytest.mark.parametrize("patient", [[0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 2]])
def test_patients_without_two_scans_in_turn_are_refused(make_set, patient):
    drawn = make_set(len(patient), (1, 8, 8), patient=np.array(patient), split=None)
    with pytest.raises(ValueError, match=rf"tiny: {len(patient)} scans of \d patients; expected two of each, in turn"):
        scanned_twice(drawn, 1)


class FakeGate:
    """Refuses what lies within 0.5 of somebody, and what has no distance."""

    def __init__(self, distance):
        self.distance = np.array(distance)

    def judge(self, images):
        return Verdicts(self.distance > 0.5, np.full(len(images), ""), self.distance, np.zeros(len(images), dtype=int))


def test_samples_are_nobodys_and_what_cannot_be_measured_is_refused(make_set):
    found = nearness_of_samples(FakeGate([0.0, 0.1, 0.9, np.nan]), make_set(4, (1, 8, 8), name="drawn"), seed=0)
    assert {k: (round(e.value, 3), e.n, e.n_of) for k, e in found.items()} == {
        "median distance": (0.1, 3, "images"), "share too close": (0.75, 4, "images"),
    }  # fmt: skip
    assert all(e.low <= e.value <= e.high for e in found.values())


def test_of_people_the_patient_is_the_unit(make_set):
    unseen = make_set(12, (1, 8, 8), role="eval")
    distance = np.linspace(0.4, 0.6, 12)
    distance[0] = np.nan
    (found,) = nearness_of_patients(FakeGate(distance), unseen, seed=0).items()
    assert found[0] == "median distance" and (found[1].n, found[1].n_of) == (unseen.patients, "patients")
    assert found[1].value == pytest.approx(np.median(distance[1:])) and found[1].low < found[1].value < found[1].high

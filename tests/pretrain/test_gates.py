"""The tables on gates: who is attacked, who is a stranger, what is written and what the ledger knows."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from medsynth.ledger import Ledger
from medsynth.pretrain import gates
from medsynth.privacy.gate.gate import Verdicts
from medsynth.results import Row, read_results, table_of


def test_private_patients_are_attacked_and_strangers_are_not_among_them(monkeypatch, make_set, tmp_path):
    met = []

    def trial(phi, private, unseen, *, seed, other_scans, store):
        met.append((private, unseen, other_scans))
        return SimpleNamespace(
            at_its_own_and_at_equal_price=lambda tau, *, seed, **named: [Row(metric="tau", value=tau, seed=seed, **named)]
        )

    def drawn(**k):
        return make_set(2 * k["patients"], (1, 8, 8), role=k["population"], split=None)

    monkeypatch.setattr(gates, "attack_trial", trial)
    monkeypatch.setattr(gates, "threshold_for", lambda phi, dims, kind: SimpleNamespace(tau=0.5))
    monkeypatch.setattr(gates, "cached_thorax", drawn)
    monkeypatch.setattr(
        gates, "load_npz", lambda path, role: make_set(12, (1, 8, 8), role=role, split=np.full(12, "test"), name=path.stem)
    )
    ledger = Ledger(tmp_path / "ledger")
    rows, sets = gates.attack_rows(gates.of_known_kind(tmp_path, 8, 6), seed=0, ledger=ledger)
    assert {e.stage for e in ledger.entries()} == {"try the gate"} and len(ledger.entries()) == 5
    assert table_of(rows)[["chapter", "dataset", "arm"]].drop_duplicates().shape == (7, 3) and len(sets) == 11
    private, unseen, second = met[4]
    assert (private.patients, unseen.patients, len(private), len(second)) == (6, 4, 6, 6)
    assert not set(private.patient) & set(unseen.patient) and private.patient.tolist() == second.patient.tolist()
    assert not set(private.row_hashes) & set(second.row_hashes)
    assert met[0][0].role == "private" and met[0][1].role == "eval" and met[0][2] is None


def test_slices_are_those_of_the_chapter_on_restoration(monkeypatch, make_set, tmp_path):
    asked = []

    def sources(config, data, modality):
        asked.append((Path(data).name, modality, config.size))
        return make_set(role="private", modality=modality), make_set(role="eval")

    monkeypatch.setattr(gates, "private_and_test", sources)
    found = gates.slices(tmp_path, 8)
    assert asked == [("ct_tcia_hu_256.npz", "ct", 8), ("mri_acdc_3d.npz", "mr", 8)]
    assert {k: (t.private.modality, t.private.role, t.unseen.role, t.scans) for k, t in found.items()} == {
        "ct_tcia_hu_256": ("ct", "private", "eval", None), "mri_acdc_3d": ("mr", "private", "eval", None),
    }  # fmt: skip


def test_samples_are_judged_by_the_gate_of_the_set_they_were_made_from(monkeypatch, make_set, tmp_path):
    private, unseen = (make_set(12, (1, 8, 8), role=role, name=role, seed=i) for i, role in enumerate(("private", "eval")))
    distance = {"drawn": np.array([0.0, 0.1, 0.9, np.nan]), "eval": np.linspace(0.4, 0.6, 12)}

    class FakeGate:
        tau = 0.5

        def judge(self, images):
            d = distance[images.name]
            return Verdicts(d > self.tau, np.full(len(d), ""), d, np.zeros(len(d), dtype=int))

    class FakeGenerator:
        names = ("age",)

        def draw(self, conditions):
            assert len(conditions) == 12
            return make_set(4, (1, 8, 8), name="drawn")

    monkeypatch.setattr(gates.Generator, "train", lambda *a, **k: FakeGenerator())
    monkeypatch.setattr(gates, "private_gate", lambda *a, **k: FakeGate())
    ledger = Ledger(tmp_path)
    rows, met = gates.sample_rows({"ward": gates.Attacked(private, unseen)}, 0, ledger)
    found = {(r.metric, r.arm): (round(r.value, 3), r.n, r.n_of) for r in rows}
    assert found == {
        # what cannot be measured is refused, and has no distance
        ("median distance", "no gate"): (0.1, 3, "images"),
        ("share too close", "no gate"): (0.75, 4, "images"),
        ("median distance", "unseen patients"): (0.5, unseen.patients, "patients"),
    }
    assert all(r.low <= r.value <= r.high for r in rows) and met == [private, unseen]
    assert [(e.reads, e.stage) for e in ledger.entries()] == [
        ("private", "judge samples"),
        ("eval", "judge samples"),
        ("private", "draw conditions"),
    ]


def test_only_the_tables_that_are_asked_for_are_written(monkeypatch, make_set, tmp_path, cache):
    rows = [Row(chapter="weights", dataset="ward", metric="share refused", arm="encoder", value=1.0)]
    for name in ("of_known_kind", "slices"):
        monkeypatch.setattr(gates, name, lambda *_: {})
    monkeypatch.setattr(gates, "attack_rows", lambda *_: (rows, [make_set(role="private"), make_set(role="eval")]))
    monkeypatch.setattr(gates, "sample_rows", lambda *_: (rows, [make_set(role="private")]))
    base = ["gates", "--real", str(tmp_path), "--out"]
    monkeypatch.setattr(sys, "argv", [*base, str(tmp_path / "all")])
    gates.main()
    assert {p.stem for p in (tmp_path / "all").iterdir()} == set(gates.TABLES)
    sidecars = {name: read_results(tmp_path / "all", name).sidecar for name in gates.TABLES}
    assert [bool(sidecars[name]["notes"]) for name in gates.TABLES] == [False, True, True]
    assert "thresholds" in sidecars["weights-gate-attacks"]["inputs"] and "refiner" in sidecars["weights-gate-samples"]["inputs"]
    monkeypatch.setattr(sys, "argv", [*base, str(tmp_path / "one"), "--tables", "weights-gate-samples"])
    gates.main()
    assert {p.stem for p in (tmp_path / "one").iterdir()} == {"weights-gate-samples"}

"""The report on shipped weights: rows for every set, and a ledger line for every private one."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from medsynth.evaluation.features import PCAExtractor
from medsynth.pretrain import report
from medsynth.privacy.ledger import Ledger
from medsynth.results import read_results


def pixels(images):
    """An extractor of 4 numbers: enough for scores, quick enough for tests."""
    flat = images.images.reshape(len(images), -1).astype(np.float64)
    return np.stack([flat.mean(1), flat.std(1), flat[:, 0], flat[:, -1]], 1)


pixels.name, pixels.dim = "pixels", 4


@pytest.fixture
def small(monkeypatch, tmp_path, make_set, tiny, cache):
    """All that takes long replaced by something small."""
    classes = np.array(["a", "a", "b", "b"] * 10)

    def some(seed, role="private"):
        drawn = make_set(40, seed=seed, role=role, name=f"set-{seed}")
        return drawn.with_images(drawn.images, attributes=drawn.attributes.assign(finding=classes, collection=classes))

    names = ("cxr_kermany", "cxr_nih", "ct_tcia", "mri_acdc", "mri_hippocampus")
    monkeypatch.setattr(
        report, "unseen", lambda folder, size: {n: some(i, "private" if n == "ct_tcia" else "eval") for i, n in enumerate(names)}
    )
    monkeypatch.setattr(
        report, "cached_thorax", lambda **k: some(10 * k["seed"] - 850 + report.MODALITIES.index(k["modality"]), k["population"])
    )
    twice = {"phantom-xray": (some(7), "encoder")} | {n: (some(i, "eval"), "encoder") for i, n in enumerate(names)}
    monkeypatch.setattr(report, "people_seen_twice", lambda folder, size, patients: twice)
    table = pd.DataFrame({"kind": ["attack"], "refused": [1.0]})
    monkeypatch.setattr(report, "radiographs", lambda *_: {})
    monkeypatch.setattr(report, "slices", lambda *_: {})
    monkeypatch.setattr(report, "attack_tables", lambda *_: (table, [some(8), some(9, "eval")]))
    monkeypatch.setattr(report, "feature_map", lambda name: pixels)
    monkeypatch.setattr(report, "pretraining_phantoms", lambda *a, **k: {})
    monkeypatch.setattr(report, "real_sets", lambda folder, split: {})
    monkeypatch.setattr(report, "shipped_extractor", lambda: pixels)
    monkeypatch.setattr(report, "random_twin", lambda sets, seed: pixels)
    monkeypatch.setattr(PCAExtractor, "fit", classmethod(lambda cls, sets: pixels))
    monkeypatch.setattr(report, "shipped_hash", lambda name: name)
    monkeypatch.setattr(report, "reconstruct", lambda coder, images: images.with_images(images.images * 0.9))
    monkeypatch.setattr(report, "shipped_autoencoder", lambda: None)
    options = {"--real": tmp_path, "--out": tmp_path / "out", "--populations": 2, "--splits": 1}
    monkeypatch.setattr(sys, "argv", ["report", *(str(word) for pair in options.items() for word in pair)])
    return tmp_path / "out", cache


@pytest.fixture
def reported(small):
    report.main()
    return small


def test_every_set_has_its_rows_and_real_ones_a_line_in_the_ledger(reported):
    rows = read_results(reported[0], "reconstruction").rows
    assert {"cxr_kermany", "ct_tcia", "mri_acdc", "phantom-pet"} <= set(rows["dataset"])
    assert {"PSNR", "SSIM", "FID", "FID floor", "KID"} <= set(rows["metric"])
    assert (rows["n"] == 20).all()
    assert set(read_results(reported[0], "ruler-levels").rows["dataset"]) == {
        "cxr_kermany",
        "ct_tcia",
        "phantom-xray",
        "phantom-ct",
    }
    assert "copies" in set(read_results(reported[0], "ruler-power").rows["perturbation"])
    levels = read_results(reported[0], "ruler-levels").rows
    # noise moves the mean and the spread of pixels; whether at every step is said in rows of their own
    noise = levels.query("perturbation == 'noise' and metric == 'fid'").pivot(index="dataset", columns="level", values="value")
    assert (noise[0.2] > noise[0.0]).all() and len(noise) == 4
    assert set(levels.query("metric == 'fid never falls (1 = yes)'").value) <= {0.0, 1.0}
    assert (reported[0] / "ruler-levels.svg").exists()

    # the real sets, held out or private, are read and the ledger says so
    entries = Ledger(reported[1] / "ledger" / "report").entries()
    assert [e.stage for e in entries] == ["measure shipped weights"] * 5 + ["measure the identity encoder"] * 3
    assert read_results(reported[0], "gate-attacks").rows["refused"].tolist() == [1.0]
    known = read_results(reported[0], "identification").rows
    assert set(known["arm"]) == {"encoder", "pixels"} and set(known["metric"]) == {"TPR at 1 % FPR", "AUC"}
    rocs = read_results(reported[0], "identification-roc").rows
    assert set(rocs["arm"]) == {"encoder", "pixels"} and set(rocs["dataset"]) == set(known["dataset"])
    assert rocs["value"].between(0, 1).all() and (reported[0] / "identification-roc.svg").exists()
    sidecar = read_results(reported[0], "identification").sidecar
    # what was compared, and not what other tables are about
    assert {"encoder", "encoder_3d"} < sidecar["inputs"].keys() and "autoencoder" not in sidecar["inputs"]
    assert (
        read_results(reported[0], "gate-attacks-slices").sidecar["notes"]
        and not read_results(reported[0], "gate-attacks").sidecar["notes"]
    )
    assert (known["same_pairs"] == 20).all() and {"phantom-xray", "mri_acdc"} <= set(known["dataset"])


def test_power_over_several_populations_is_their_mean_beside_each(reported):
    power = read_results(reported[0], "ruler-power").rows.query("perturbation == 'copies' and metric == 'z_kid'")
    # extractor, twins and PCA are one and the same here
    phantom = power[power.dataset == "phantom-ct"]
    each, mean = phantom[phantom.population.notna()], phantom[phantom.populations == 2]
    assert sorted(set(each.population)) == [0, 1] and each.value.nunique() == 2
    assert mean.value.iloc[0] == pytest.approx(each.groupby("population").value.first().mean())
    assert mean.n.iloc[0] == 2 * each.n.iloc[0]
    assert power[power.dataset == "cxr_kermany"].population.isna().all()


def test_only_the_tables_that_are_asked_for_are_written(small, monkeypatch):
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--tables", "reconstruction"])
    report.main()
    assert {p.stem for p in small[0].iterdir()} == {"reconstruction"}


def test_people_seen_twice_are_those_whose_number_is_one_person(monkeypatch, make_set, tmp_path):
    classes = np.array(["none", "none", "pneumonia_viral", "pneumonia_viral"] * 10)

    def load(path, role="private"):
        images = make_set(40, (1, 8, 8), role="eval" if role == "private" else role, split=np.full(40, "test"), name=path.stem)
        return images.with_images(images.images, attributes=images.attributes.assign(finding=classes))

    monkeypatch.setattr(report, "load_npz", load)
    monkeypatch.setattr(report, "cached_thorax", lambda **k: make_set(2 * k["patients"], name=k["modality"]))
    found = report.people_seen_twice(tmp_path, 8, 3)
    assert {k: len(v[0]) for k, v in found.items()} == {f"phantom-{m}": 6 for m in report.MODALITIES} | {
        "cxr_kermany": 20, "cxr_nih": 40, "mri_acdc": 40,
    }  # fmt: skip
    assert [k for k, v in found.items() if v[1] == "encoder_3d"] == ["mri_acdc"]


def test_private_patients_are_attacked_and_strangers_are_not_among_them(monkeypatch, make_set, tmp_path):
    met = []

    def trial(phi, private, unseen, *, seed, other_scans):
        met.append((private, unseen, other_scans))
        return SimpleNamespace(at_its_own_and_at_equal_price=lambda tau, seed: pd.DataFrame({"tau": [tau]}))

    def drawn(**k):
        return make_set(2 * k["patients"], (1, 8, 8), role=k["population"], split=None)

    monkeypatch.setattr(report, "attack_trial", trial)
    monkeypatch.setattr(report, "shipped_threshold", lambda private, modality, name: SimpleNamespace(tau=0.5))
    monkeypatch.setattr(report, "cached_thorax", drawn)
    monkeypatch.setattr(
        report, "load_npz", lambda path, role: make_set(12, (1, 8, 8), role=role, split=np.full(12, "test"), name=path.stem)
    )
    ledger = Ledger(tmp_path / "ledger")
    table, sets = report.attack_tables(report.radiographs(tmp_path, 8, 6), seed=0, ledger=ledger)
    assert {e.stage for e in ledger.entries()} == {"try the gate"} and len(ledger.entries()) == 5
    assert table[["dataset", "measured_in"]].drop_duplicates().shape == (8, 2) and len(sets) == 5
    private, unseen, second = met[0]
    assert (private.patients, unseen.patients, len(private), len(second)) == (6, 4, 6, 6)
    assert not set(private.patient) & set(unseen.patient) and private.patient.tolist() == second.patient.tolist()
    assert not set(private.row_hashes) & set(second.row_hashes)
    assert met[4][0].role == "private" and met[4][1].role == "eval" and met[4][2] is None


def test_slices_are_those_of_the_chapter_on_restoration(monkeypatch, make_set, tmp_path):
    asked = []

    def sources(config, data, modality):
        asked.append((Path(data).name, modality, config.size))
        return SimpleNamespace(private=make_set(role="private"), test=make_set(role="eval"))

    monkeypatch.setattr(report, "thorax_sources", sources)
    found = report.slices(tmp_path, 8)
    assert asked == [("ct_tcia_hu_256.npz", "ct", 8), ("mri_acdc_3d.npz", "mr", 8)]
    assert {k: (t.modality, t.private.role, t.unseen.role, t.scans) for k, t in found.items()} == {
        "ct_tcia_hu_256": ("ct", "private", "eval", None), "mri_acdc_3d": ("mr", "private", "eval", None),
    }  # fmt: skip

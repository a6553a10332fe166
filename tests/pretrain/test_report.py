"""The report on shipped weights: rows for every set, and a ledger line for every private one."""

import sys

import numpy as np
import pytest

from medsynth.evaluation.features import PCAExtractor
from medsynth.ledger import Ledger
from medsynth.pretrain import report
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
    rows = read_results(reported[0], "weights-reconstruction").rows
    assert {"cxr_kermany", "ct_tcia", "mri_acdc", "phantom-pet"} <= set(rows["dataset"])
    assert {"PSNR", "SSIM", "FID", "FID floor", "KID"} <= set(rows["metric"])
    assert (rows["n"] == 20).all()
    assert set(read_results(reported[0], "weights-ruler-levels").rows["dataset"]) == {
        "cxr_kermany",
        "ct_tcia",
        "phantom-xray",
        "phantom-ct",
    }
    assert "copies" in set(read_results(reported[0], "weights-ruler-power").rows["perturbation"])
    levels = read_results(reported[0], "weights-ruler-levels").rows
    # noise moves the mean and the spread of pixels; whether at every step is said in rows of their own
    noise = levels.query("perturbation == 'noise' and metric == 'fid'").pivot(index="dataset", columns="strength", values="value")
    assert (noise[0.2] > noise[0.0]).all() and len(noise) == 4
    assert set(levels.query("metric == 'fid never falls (1 = yes)'").value) <= {0.0, 1.0}
    assert (reported[0] / "weights-ruler-levels-figure.svg").exists()

    # private or held out, what is read has a line; populations of phantoms that were measured before have theirs
    entries = Ledger().entries()
    weights, encoder = "measure shipped weights", "measure the identity encoder"
    assert [e.stage for e in entries] == [weights] * 9 + [encoder] * 6 + [weights] * 2
    known = read_results(reported[0], "weights-identification").rows
    assert set(known["arm"]) == {"encoder", "pixels"} and set(known["metric"]) == {"TPR at 1 % FPR", "AUC"}
    rocs = read_results(reported[0], "weights-identification-roc").rows
    assert set(rocs["arm"]) == {"encoder", "pixels"} and set(rocs["dataset"]) == set(known["dataset"])
    assert rocs["value"].between(0, 1).all() and (reported[0] / "weights-identification-roc.svg").exists()
    sidecar = read_results(reported[0], "weights-identification").sidecar
    # what was compared, and not what other tables are about
    assert {"encoder", "encoder_3d"} < sidecar["inputs"].keys() and "autoencoder" not in sidecar["inputs"]
    assert (known["same_pairs"] == 20).all() and {"phantom-xray", "mri_acdc"} <= set(known["dataset"])


def test_power_over_several_populations_is_their_mean_beside_each(reported):
    power = read_results(reported[0], "weights-ruler-power").rows.query("perturbation == 'copies' and metric == 'z_kid'")
    # extractor, twins and PCA are one and the same here
    phantom = power[power.dataset == "phantom-ct"]
    each, mean = phantom[phantom.population.notna()], phantom[phantom.populations == 2]
    assert sorted(set(each.population)) == [0, 1] and each.value.nunique() == 2
    assert mean.value.iloc[0] == pytest.approx(each.groupby("population").value.first().mean())
    assert mean.n.iloc[0] == 2 * each.n.iloc[0]
    assert power[power.dataset == "cxr_kermany"].population.isna().all()


def test_only_the_tables_that_are_asked_for_are_written(small, monkeypatch):
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--tables", "weights-reconstruction"])
    report.main()
    assert {p.stem for p in small[0].iterdir()} == {"weights-reconstruction"}


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

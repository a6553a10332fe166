import matplotlib.pyplot as plt
import numpy as np
import pytest
from stub_project import ROOT

from medsynth.chapter import WITHHELD, Chapter
from medsynth.diffusion.generator import Generator
from medsynth.results import Estimate, read_results


@pytest.fixture
def chapter(tmp_path, cache, monkeypatch, make_set):
    monkeypatch.chdir(ROOT)
    made = Chapter("gate", "smoke", seed=3, out=str(tmp_path))
    made.note("encoder", private_set=make_set(role="private"))
    return made


def estimate(value, n=5):
    return Estimate(value, value - 1, value + 1, n)


def test_a_cell_that_is_run_again_replaces_its_rows(chapter):
    for value in (1.0, 2.0):
        chapter.add("samples", {"FID": estimate(value), "loss": value}, dataset="x", seed=0, guidance=1.5)
    chapter.add("samples", {"FID": estimate(7.0)}, dataset="x", seed=0, guidance=2.0)
    assert [(r.metric, r.value, r.extra) for r in chapter.rows()] == [
        ("FID", 2.0, {"guidance": 1.5}), ("loss", 2.0, {"guidance": 1.5}), ("FID", 7.0, {"guidance": 2.0}),
    ]  # fmt: skip
    assert [r.value for r in chapter.rows(metric="FID", guidance=[2.0])] == [7.0]


def test_a_table_is_written_whole_and_shown_in_part(chapter, tmp_path):
    chapter.add("a", {"FID": estimate(1.0), "KID": estimate(2.0)}, dataset="x", units={"FID": "px"})
    chapter.add("b", {"FID": estimate(3.0)}, dataset="x")
    chapter.add("b", {"TPR": 0.5}, dataset="x", table="attacks")
    shown = chapter.table(rows="metric", columns="arm", metric="FID")
    assert shown.to_dict() == {"a": {"FID": "1 [0, 2] (n = 5)"}, "b": {"FID": "3 [2, 4] (n = 5)"}}
    found = read_results(tmp_path, "gate")
    assert len(found.rows) == 3 and found.rows["unit"].tolist() == ["px", "", ""]
    assert set(found.sidecar["inputs"]) == {"private set", "encoder"} and found.sidecar["people"] is False
    assert found.sidecar["seeds"] == [3] and found.sidecar["parameters"]["profile"] == "smoke"
    chapter.table(rows="metric", table="attacks")
    assert read_results(tmp_path, "gate-attacks").rows["metric"].tolist() == ["TPR"]


def test_what_a_person_was_scanned_for_is_withheld(chapter, make_set):
    assert chapter.secret(7) == 7 and not chapter.people
    chapter.note(test_set=make_set(origin="scan"))
    assert chapter.secret(7) == WITHHELD and chapter.people and chapter.sidecar["people"]


def test_sets_are_noted_and_their_readings_leave_lines(chapter, monkeypatch, make_set):
    def drawn(*, patients, modality, **_):
        return make_set(2 * patients, role="private", modality=modality, split=None, patient=np.arange(2 * patients) // 2)

    monkeypatch.setattr("medsynth.data.sources.cached_thorax", drawn)
    sources = chapter.sets(modality="ct", stage="measure quality")
    assert {"private ct", "test ct"} <= set(chapter.sidecar["inputs"])
    assert [(e.stage, e.reads) for e in chapter.ledger.entries()] == [("measure quality", "phantom-ct/test")]
    assert chapter.ledger.private_rows_in(sources.private) == len(sources.private)


def test_plots_are_drawn_and_saved_with_what_they_show(chapter, tmp_path):
    for g in (1.0, 2.0):
        chapter.add("trained", {"KID": estimate(g), "KID floor": estimate(0.0)}, dataset="x", seed=0, guidance=g)
    chapter.estimates(["KID"], "fidelity", label="{metric} to test patients", guidance=1.0)
    chapter.curves("guidance", [["KID", "KID floor"]], "guidance")
    assert {p.name for p in tmp_path.glob("*.svg")} == {"gate-fidelity.svg", "gate-guidance.svg"}
    assert read_results(tmp_path, "gate-fidelity").rows["metric"].tolist() == ["KID"]
    assert len(read_results(tmp_path, "gate-guidance").rows) == 4


def test_panels_have_names_limits_and_every_row(chapter, tmp_path):
    for arm in ("a", "b", "c"):
        chapter.add(arm, {"PSNR": estimate(1.0)}, dataset="x", seed=0)
    rows = chapter.rows(metric="PSNR")
    drawn = {"one": rows, "two": rows[:2], "three": rows[:2]}
    chapter.panels(drawn, "psnr", label="PSNR (dB)", across=2, limits=(0, 3), named=lambda row: row.arm.upper())
    assert len(read_results(tmp_path, "gate-psnr").rows) == 7
    axes = plt.gcf().axes
    assert [ax.get_title() for ax in axes] == ["one", "two", "three"] and {ax.get_xlim() for ax in axes} == {(0, 3)}
    assert [tick.get_text() for tick in axes[0].get_yticklabels()] == ["A", "B", "C"]
    # names stand once in a line, and again where they are others
    assert [ax.yaxis.get_tick_params()["labelleft"] for ax in axes] == [True, True, True]
    chapter.panels({"one": rows, "two": rows}, "psnr", label="PSNR (dB)")
    assert [ax.yaxis.get_tick_params()["labelleft"] for ax in plt.gcf().axes] == [True, False]


def test_a_roc_and_a_histogram_save_what_they_show(chapter, tmp_path):
    chapter.roc({"a": np.array([[0, 0], [0.1, 0.5], [1, 1]]), "b": np.array([[0, 0], [1, 1]])}, "roc", x_label="x", y_label="y")
    curves = read_results(tmp_path, "gate-roc").rows
    assert curves["arm"].tolist() == ["a"] * 3 + ["b"] * 2 and curves["value"].tolist() == [0, 0.5, 1, 0, 1]
    groups = {"near": np.array([0.1, 0.2, np.nan]), "far": np.array([1.0])}
    chapter.histogram(groups, "distances", {"tau": 0.5}, label="distance")
    counts = read_results(tmp_path, "gate-distances").rows
    assert counts.groupby("group")["count"].sum().to_dict() == {"far": 1, "near": 2} and counts["to"].max() == 1


def test_columns_that_say_where_patients_are_are_left_out_for_people(chapter, make_set):
    assert chapter.secrets(tau=0.5) == {"tau": 0.5}
    chapter.note(test_set=make_set(origin="scan"))
    assert chapter.secrets(tau=0.5) == {}


def test_a_generator_has_the_sizes_the_ledger_and_the_seed_of_its_chapter(chapter, monkeypatch, make_set):
    asked = {}
    monkeypatch.setattr(Generator, "train", lambda private, **options: asked.update(options) or private)
    private = make_set(role="private", origin="phantom")
    assert chapter.generator(private, seed=7) is private
    assert asked["diffusion"] == chapter.settings.diffusion and asked["ledger"] is chapter.ledger and asked["seed"] == 7
    assert {"autoencoder", "refiner", "denoiser_phantom"} <= set(chapter.sidecar["inputs"])
    chapter.generator(private)
    assert asked["seed"] == 3

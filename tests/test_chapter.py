import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from stub_project import ROOT

from medsynth import figures
from medsynth.chapter import WITHHELD, Chapter, part_of
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
    assert chapter.secret(7) == WITHHELD and chapter.people and chapter.sidecar()["people"]


def test_sets_are_noted_and_their_readings_leave_lines(chapter, monkeypatch, make_set):
    def drawn(*, patients, modality, **_):
        return make_set(2 * patients, role="private", modality=modality, split=None, patient=np.arange(2 * patients) // 2)

    monkeypatch.setattr("medsynth.data.sources.cached_thorax", drawn)
    sources = chapter.sets(modality="ct", stage="measure quality")
    assert {"private ct", "test ct"} <= set(chapter.sidecar()["inputs"])
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


def test_a_figure_does_not_take_the_place_of_a_table(chapter):
    chapter.add("real", {"PSNR": 1.0}, dataset="phantom", table="cost")
    with pytest.raises(ValueError, match="figure 'cost': a table of this chapter has that name; call it 'cost-figure'"):
        chapter.estimates(["PSNR"], "cost", table="cost")


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


def test_points_of_single_patients_are_saved_for_phantoms_and_left_out_for_people(chapter, tmp_path, make_set, capsys):
    points = {"real": pd.DataFrame({"asked": [90.0, 150], "measured": [92.0, 147]})}
    chapter.scatter(points, "asked", x="asked", y="measured", unit="ml")
    saved = read_results(tmp_path, "gate-asked").rows
    assert saved["measured"].tolist() == [92, 147] and set(saved["group"]) == {"real"}
    chapter.note(test_set=make_set(origin="scan"))
    chapter.scatter(points, "again", x="asked", y="measured", unit="ml")
    assert WITHHELD in capsys.readouterr().out and not list(tmp_path.glob("gate-again*"))


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
    assert {"autoencoder", "refiner", "denoiser_phantom"} <= set(chapter.sidecar()["inputs"])
    chapter.generator(private)
    assert asked["seed"] == 3


def test_a_table_names_what_its_own_numbers_rest_on_and_no_other_ones(chapter, tmp_path, make_set):
    chapter.note("extractor", "thresholds", table="levels", hearts=make_set(seed=1, name="hearts", origin="scan"))
    for table in ("levels", "power"):
        chapter.add("a", {"FID": estimate(1.0)}, dataset="x", table=table)
        chapter.table(table=table, rows="metric")
    levels, power = (read_results(tmp_path, f"gate-{table}").sidecar for table in ("levels", "power"))
    assert set(levels["inputs"]) == {"private set", "encoder", "hearts", "extractor", "thresholds"}
    assert set(power["inputs"]) == {"private set", "encoder"}
    assert (levels["people"], power["people"], chapter.people) == (True, False, True)
    # a figure rests on what its table does
    for name, table in (("levels-figure", "levels"), ("other", "")):
        chapter.save(figures.new_figure()[0], name, chapter.rows("levels"), table=table)
    assert read_results(tmp_path, "gate-levels-figure").sidecar["inputs"] == levels["inputs"]
    assert read_results(tmp_path, "gate-other").sidecar["inputs"] == power["inputs"]


@pytest.mark.parametrize(
    ("terms", "note"),
    [
        ("CC BY 4.0", ""), ("NIH Clinical Center, attribution", ""),
        ("CC BY-NC 4.0", "hearts is CC BY-NC 4.0: its rows are for non-commercial use"),
        ("CC BY-NC-SA 4.0", "hearts is CC BY-NC-SA 4.0: its rows are for non-commercial use, under the same licence"),
    ],
)  # fmt: skip
def test_terms_against_commercial_use_stand_in_the_notes_of_the_table_that_they_bind(chapter, make_set, terms, note):
    hearts = make_set(name="hearts/test", origin="scan")
    attributes = hearts.attributes.assign(licence=["CC BY 3.0"] + [terms] * (len(hearts) - 1))
    # two parts of one set are one note
    both = {part: hearts.with_images(hearts.images, attributes=attributes) for part in ("private", "test")}
    chapter.note(table="levels", **both)
    assert chapter.sidecar("levels")["notes"] == note and chapter.sidecar("power")["notes"] == ""


def test_sets_that_are_read_are_noted_and_leave_lines_unless_they_are_public(chapter, make_set):
    sets = {"ward": make_set(role="private", seed=1, name="ward"), "known": make_set(role="public", seed=2, name="known")}
    chapter.read(sets, "extractor", stage="measure", table="levels")
    assert [(e.stage, e.reads, e.output) for e in chapter.ledger.entries()] == [("measure", "ward", "result rows")]
    assert {"ward", "known", "extractor"} < set(chapter.sidecar("levels")["inputs"])


def test_a_part_of_the_experiments_keeps_their_order():
    every = ("ct-low-dose/edsr", "mr-x2/edsr", "mr-x2/redcnn", "mr-x4/edsr")
    assert part_of(every, "") == every == part_of(every, " , ")
    assert part_of(every, "mr-x2/redcnn, ct-low-dose/edsr,") == ("ct-low-dose/edsr", "mr-x2/redcnn")
    assert part_of(every, "mr, mr-x2/edsr") == every[1:]
    assert part_of(every, "mr-x2") == every[1:3]
    assert part_of([1, 10, 2], "1, 2") == (1, 2)
    with pytest.raises(ValueError, match=r"'mr-x2/edrs' is not in this profile; did you mean 'mr-x2/edsr'\?"):
        part_of(every, "ct, mr-x2/edrs")
    for nothing in ("?", "mr-", "m"):
        with pytest.raises(ValueError, match=r"expected one of ct-low-dose/edsr, |did you mean"):
            part_of(every, nothing)

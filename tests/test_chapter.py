import numpy as np
import pytest
from stub_project import ROOT

from medsynth.chapter import WITHHELD, Chapter, part_of
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
        with pytest.raises(ValueError, match=r"expected some of ct-low-dose/edsr, |did you mean"):
            part_of(every, nothing)

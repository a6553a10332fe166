import re

import numpy as np
import pandas as pd
import pytest

from medsynth.publish.pages import answers as share
from medsynth.publish.pages.answers import (
    CELLS,
    METHODS,
    NOTHING,
    PARTLY,
    QUESTIONS,
    UNKNOWN,
    VARIES,
    Cell,
    images_of,
    matching,
    share_section,
)
from medsynth.publish.pages.cells import DRAWN, GATED, PRIVATE
from medsynth.results import Estimate, Row, write_results

SIDECAR = {"parameters": {}, "seeds": [0], "inputs": {}, "data_licence": "generated"}


def shown(*arguments):
    """The section with spaces that may break a line."""
    return share_section(*arguments).replace("\xa0", " ")


def cell(**changes):
    fields = {"method": GATED, "question": QUESTIONS[1], "kind": "measured", "says": "AUC", "tables": ("gate",)}
    return Cell(**fields | {"where": {"metric": "negative-space AUC", "arm": "distance gate"}} | changes)


def auc(value=0.625, arm="distance gate", dataset="phantom-xray", metric="negative-space AUC", **extra):
    return Row.of(Estimate(value, 0.5, 0.75, 80), chapter="gate", metric=metric, dataset=dataset, arm=arm, **extra)


def refused(value, family, kind="attack", chapter="gate", **extra):
    named = {"chapter": chapter, "dataset": "phantom-xray", "metric": "share refused", "arm": "encoder"}
    return Row.of(Estimate(value, value - 0.125, 1.0, 40), **named, kind=kind, family=family, phi="the encoder", **extra)


@pytest.fixture
def places(tmp_path):
    """Folders of published and own tables, with a function that writes one: (published, own, write)."""
    published, own = tmp_path / "published", tmp_path / "results"
    return published, own, lambda place, name, rows: write_results(tmp_path / place, name, rows, **SIDECAR)


def test_without_a_table_every_place_says_so(places):
    text = share_section(*places[:2])
    table, details = text.split("\n:::\n")
    assert table.startswith(":::{list-table}") and [table.count(f"* - {m}") for m in METHODS] == [1] * len(METHODS)
    assert [table.count(f"  - {q}") for q in QUESTIONS] == [1] * len(QUESTIONS)
    assert len(re.findall(r"^  - ", table, re.MULTILINE)) == (1 + len(METHODS)) * len(QUESTIONS)
    defined = {(c.method, c.question) for c in CELLS if c.verdict and not c.tables}
    assert table.count(f"  - **{UNKNOWN}**") == len(METHODS) * len(QUESTIONS) - len(defined)
    # a place for every pair, a sentence for every cell that needs rows, and one where there is no cell at all
    empty = {(m, q) for m in METHODS for q in QUESTIONS} - {(c.method, c.question) for c in CELLS}
    assert details.count(NOTHING) == sum(c.kind == "measured" for c in CELLS) + len(empty)
    assert details.count("*Proved*") == sum(c.kind == "proved" for c in CELLS) == 2 and "*Measured*" not in details


def test_a_verdict_shows_the_worst_row_on_real_images(places):
    published, own, write = places
    head = {"verdict": "Not bounded", "worst": "highest", "brief": "AUC"}
    write("published/full", "gate", [auc(0.875), auc(0.625, dataset="cxr_a"), auc(0.75, dataset="cxr_b")])
    table = shown(published, own, [cell(**head)]).split("\n:::\n")[0]
    assert "  - **Not bounded**<br>AUC: 0.75 [0.5, 0.75] (n = 80), {ref}`cxr_b <rows-gate>`\n" in table and "0.875" not in table
    # of phantoms where there are no others
    write("published/full", "gate", [auc(0.875), auc(0.625)])
    assert "AUC: 0.875 [" in shown(published, own, [cell(**head)]).split("\n:::\n")[0]
    # and so of a modality of which no people were measured
    write("published/full", "gate", [auc(0.875, dataset="phantom-pet"), auc(0.9375), auc(0.625, dataset="cxr_a")])
    assert "AUC: 0.875 [0.5, 0.75] (n = 80), {ref}`PET phantoms" in shown(published, own, [cell(**head)]).split("\n:::\n")[0]
    # a file that nobody knows is of the modality that its task is of
    scans = auc(0.25, dataset="mine", task="pet-low-count", net="edsr")
    write("published/full", "gate", [auc(0.875, dataset="phantom-pet"), auc(0.9375), scans])
    assert "AUC: 0.938 [" in shown(published, own, [cell(**head)]).split("\n:::\n")[0]


def test_of_phantoms_a_published_run_goes_before_the_readers_own(places):
    published, own, write = places
    head = {"verdict": "Not bounded", "worst": "highest", "brief": "AUC"}
    write("results/03_gate", "gate", [auc(0.875)])
    assert "AUC: 0.875 [" in shown(published, own, [cell(**head)]).split("\n:::\n")[0]
    write("published/full", "gate", [auc(0.625)])
    assert "AUC: 0.625 [" in shown(published, own, [cell(**head)]).split("\n:::\n")[0]


def test_the_worst_is_who_can_be_worst_and_what_stands_beside_has_its_name(places):
    published, own, write = places
    head = {"verdict": "Mostly refused", "below": (0.75, "Many pass"), "worst": "lowest", "brief": "share", "beside": "patients"}
    where = {"where": {"metric": "share refused"}, "tables": ("gate",)}
    wide = Row.of(Estimate(0.875, 0.25, 1.0, 5), chapter="gate", metric="share refused", dataset="cxr_a", arm="x", patients=33)
    narrow = Row.of(Estimate(0.8125, 0.8, 0.825, 900), chapter="gate", metric="share refused", dataset="cxr_b", arm="x")
    write("published/full", "gate", [wide, narrow])
    table = shown(published, own, [cell(**head, **where)]).split("\n:::\n")[0]
    assert "**Mostly refused**<br>share: 0.875 [0.25, 1] (n = 5), {ref}`cxr_a <rows-gate>`, patients 33\n" in table
    low = Row.of(Estimate(0.125, 0.1, 0.2, 5), chapter="gate", metric="share refused", dataset="cxr_c", arm="x")
    write("published/full", "gate", [wide, narrow, low])
    assert f"**{VARIES}**<br>share: 0.125 [" in shown(published, own, [cell(**head, **where)])
    write("published/full", "gate", [low])
    assert "**Many pass**<br>share: 0.125 [" in shown(published, own, [cell(**head, **where)])


def test_verdicts_come_from_rows_and_disagreement_is_said(places):
    published, own, write = places
    head = {"verdict": "{verdict}", "worst": "lowest", "brief": "dB"}
    write("published/full", "gate", [auc(0.875, verdict="equivalent", net="a"), auc(0.625, verdict="equivalent", net="b")])
    assert "  - **Within half a decibel**<br>dB: 0.625 [" in shown(published, own, [cell(**head)])
    write("published/full", "gate", [auc(0.875, verdict="different", net="a"), auc(0.625, verdict="equivalent", net="b")])
    assert f"  - **{VARIES}**<br>dB: 0.625 [" in shown(published, own, [cell(**head)])
    # an experiment that could see nothing does not disagree with one that saw something
    write("published/full", "gate", [auc(0.875, verdict="different", net="a"), auc(0.625, verdict="not shown", net="b")])
    assert f"  - **{PARTLY}**<br>dB: 0.625 [" in shown(published, own, [cell(**head)])
    # nor with one that saw nothing
    blind = auc(0.625, verdict="experiment not sensitive", net="b")
    write("published/full", "gate", [auc(0.875, verdict="not shown", net="a"), blind])
    assert "  - **Not shown**<br>dB: 0.625 [" in shown(published, own, [cell(**head)])


def test_a_verdict_links_to_rows_that_are_on_the_page(places):
    published, own, write = places
    head = {"verdict": "Not bounded", "worst": "highest", "brief": "AUC"}
    write("results/03_gate", "gate", [auc(0.625, dataset="mine_a")])
    assert "(n = 80), mine\\_a\n" in shown(published, own, [cell(**head)])
    write("published/full", "gate", [auc(0.5)])
    assert "{ref}`mine_a <rows-gate>`\n" in shown(published, own, [cell(**head)])


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("cxr_kermany_128", "X-ray of people"),
        ("mri_acdc_3d", "MR of people"),
        ("phantom-pet", "PET phantoms"),
        ("ct", "ct"),
        ("phantom-heart", "heart phantoms"),
        ("mine", "mine"),
    ],
)
def test_data_sets_have_names_that_a_stranger_knows(dataset, words):
    assert images_of(dataset) == words


def test_the_copies_that_a_gate_misses_most_are_in_the_table():
    """Whether altered once or twice."""
    counted = [c for c in CELLS if c.where.get("kind") in ("attack", "pair")]
    assert len(counted) == 4 and all(c.verdict and c.worst == c.pick == "lowest" for c in counted)


def dp(metric, value, table="dp", arm="pre-trained", **extra):
    """A row of a chapter on differential privacy, at epsilon 10 unless it says another."""
    named = {"chapter": table.partition("-")[0], "dataset": "phantom-heart", "metric": metric, "arm": arm, "value": value}
    return Row(**named, extra={"epsilon": 10.0} | extra)


def test_differential_privacy_is_bounded_by_the_accountant_and_useful_by_what_is_left_of_the_gain(places):
    published, own, write = places
    audit = {"table": "dp-audit", "attack": "white box"}
    write("published/full", "dp-audit", [
        dp("accountant", 9.75, **audit), dp("accountant", 1.0, **audit | {"epsilon": 1.0}),
        dp("lower bound, Gaussian", 0.5, **audit), dp("lower bound, Gaussian", 2.5, **audit | {"epsilon": np.inf}),
    ])  # fmt: skip
    gaps = [dp("FID gap closed", 0.875, run="a"), dp("FID gap closed", 0.75, run="b"), dp("FID gap closed", 0.25, epsilon=1.0)]
    write("published/full", "dp", [*gaps, dp("FID minus floor", 3.5), dp("FID minus floor", 2.0, epsilon=np.inf)])
    table, details = shown(published, own).split("\n:::\n")
    line = table[table.index(f"* - {PRIVATE}") :].splitlines()
    assert line[1] == f"  - **{UNKNOWN}**" == line[3]
    assert line[2].startswith("  - **Bounded**<br>") and "1 a strong" not in line[2] and ": 9.75, {ref}`heart phantoms" in line[2]
    assert line[4].startswith("  - **Mostly kept**<br>") and ": 0.75, {ref}`heart phantoms <rows-dp>`" in line[4]
    details = details[details.index(f"{PRIVATE}: every number") :]
    assert re.findall(r"^- (\S+, heart .*)$", details, re.MULTILINE) == [
        "9.75, heart phantoms (full)", "0.5, heart phantoms (full)", "2.5, heart phantoms (full)",
        "0.875, heart phantoms (full)", "0.75, heart phantoms (full)", "3.5, heart phantoms (full)", "2, heart phantoms (full)",
    ]  # fmt: skip


def test_where_privacy_costs_most_of_the_gain_the_page_says_so(places):
    published, own, write = places
    write(
        "published/full", "dp_images", [dp("FID gap closed", 0.25, table="dp_images"), dp("accountant", 9.5, table="dp_images")]
    )
    table = shown(published, own)
    assert "**More than half is lost**<br>" in table and "**Bounded**<br>" in table


def test_phantom_hearts_stand_back_where_people_s_were_measured(places):
    published, own, write = places
    head = {"verdict": "Mostly kept", "worst": "lowest", "brief": "share", "tables": ("dp",), "where": {"metric": "gap"}}
    people = Row(chapter="dp", dataset="mri_acdc_3d", metric="gap", arm="x", value=0.75)
    write("published/full", "dp", [Row(chapter="dp", dataset="phantom-heart", metric="gap", arm="x", value=0.25), people])
    assert "share: 0.75, {ref}`MR of people <rows-dp>`" in shown(published, own, [cell(**head)]).split("\n:::\n")[0]


def test_what_drawn_images_give_away_names_chance_and_training_without_privacy(places):
    published, own, write = places
    arms = {"pre-trained, epsilon 10": 0.125, "pre-trained, epsilon inf": 0.5, "other patients, fresh": 0.0625}
    rows = [
        Row.of(Estimate(v, 0.0, 0.75, 80), chapter="dp", dataset="phantom-heart", metric="patients remembered", arm=arm)
        for arm, v in arms.items()
    ]
    write("published/full", "dp-memorisation", rows)
    table, details = shown(published, own).split("\n:::\n")
    assert (
        "**Not ruled out**<br>" in table and ": 0.125 [0, 0.75] (n = 80), {ref}`heart phantoms <rows-dp-memorisation>`" in table
    )
    assert [details.index(f"- {v:.3g} [") for v in arms.values()] == sorted(details.index(f"- {v:.3g} [") for v in arms.values())


def test_a_phone_shows_each_answer_below_its_question(project):
    style = (project / "book" / "_static" / "book.css").read_text()
    assert re.findall(r"td:nth-child\((\d)\)::before \{ content: \"(.*)\"; \}", style) == [
        (str(k), question) for k, question in enumerate(QUESTIONS, 2)
    ]


def test_a_number_has_its_interval_its_patients_its_data_and_its_run(places):
    published, own, write = places
    write("published/full", "gate", [auc(0.5625), auc(0.9, arm="no gate"), auc(0.1, metric="FID")])
    write("results/03_gate", "gate", [auc(), auc(0.75, dataset="cxr_a_*")])
    text = share_section(published, own, [cell()])
    # people first, phantoms second
    assert re.findall(r"^ *- (\S+ \[.*)$", text, re.MULTILINE) == [
        r"0.75 [0.5, 0.75] (n = 80), cxr\_a\_\* (this run)",
        "0.562 [0.5, 0.75] (n = 80), X-ray phantoms (full)",
        "0.625 [0.5, 0.75] (n = 80), X-ray phantoms (this run)",
    ]
    assert NOTHING in share_section(published, own, [cell(method=DRAWN, where={"metric": "negative-space AUC", "arm": "else"})])


def test_a_number_beside_another_has_its_name(places):
    published, own, write = places
    write("results/03_gate", "gate", [auc(expected=0.1758), auc(0.75, dataset="cxr_a")])
    lines = re.findall(r"^ *- (\S+ \[.*)$", share_section(published, own, [cell(beside="expected")]), re.MULTILINE)
    assert lines == [
        "0.75 [0.5, 0.75] (n = 80), cxr\\_a (this run)",
        "0.625 [0.5, 0.75] (n = 80), X-ray phantoms, expected 0.176 (this run)",
    ]
    # a whole number too
    write("results/03_gate", "gate", [auc(private_patients=33)])
    assert "X-ray phantoms, private patients 33 (this run)" in share_section(published, own, [cell(beside="private_patients")])


def test_of_several_networks_each_has_its_name(places):
    published, own, write = places
    write("results/03_gate", "gate", [auc(task="mr-x2", net=n, verdict="equivalent") for n in ("edsr", "redcnn")])
    lines = re.findall(r"^ *- (\S+ \[.*)$", share_section(published, own, [cell(beside="verdict")]), re.MULTILINE)
    assert lines == [f"0.625 [0.5, 0.75] (n = 80), X-ray phantoms, mr-x2/{n}, equivalent (this run)" for n in ("edsr", "redcnn")]


def test_the_worst_of_several_rows_is_named_and_counted(places):
    published, own, write = places
    write(
        "results/03_gate", "gate-attacks",
        [
            refused(1.0, "shift"), refused(0.97, "zoom"), refused(0.5, "shift + zoom", kind="pair"),
            Row(chapter="gate", dataset="phantom-xray", metric="tau", arm="encoder", value=0.25, extra={"phi": "the encoder"}),
        ],
    )  # fmt: skip
    write("published/weights", "weights-gate-attacks", [refused(0.75, "noise", chapter="weights")])
    both = {"tables": ("gate-attacks", "weights-gate-attacks")}
    text = share_section(published, own, [cell(**both, where={"kind": "attack"}, pick="lowest", beside="family")])
    assert "- 0.97 [0.845, 1] (n = 40), X-ray phantoms, zoom, lowest of 2 (this run)" in text
    # of another chapter's table, in the same cell
    assert "- 0.75 [0.625, 1] (n = 40), X-ray phantoms, noise (weights)" in text
    proved = cell(**both, kind="proved", where={"metric": "tau"}, beside="phi")
    assert "*Proved*: AUC.\n- 0.25, X-ray phantoms, the encoder (this run)" in share_section(published, own, [proved])


def test_equal_rows_count_and_where_all_are_equal_none_is_the_worst():
    where = {"where": {}, "pick": "lowest", "beside": "family"}
    table = pd.DataFrame({"source": "a", "dataset": "x", "family": ["shift", "zoom", "noise"], "value": [1.0, 0.9, 1.0]})
    (worst,) = matching(table, cell(**where))
    assert (worst["family"], worst["picked"]) == ("zoom", "lowest of 3")
    (worst,) = matching(table.assign(value=1.0), cell(**where))
    assert (worst["family"], worst["picked"], worst["value"]) == (None, "all 3", 1.0)


def test_each_data_set_and_run_has_its_own_worst():
    table = pd.DataFrame({"source": ["a", "a", "a", "b"], "dataset": ["x", "x", "y", "x"], "value": [3.0, 2.0, 1.0, 4.0]})
    assert [r["value"] for r in matching(table, cell(where={}, pick="lowest"))] == [2, 1, 4]
    assert [r["picked"] for r in matching(table, cell(where={}, pick="lowest"))] == ["lowest of 2", "", ""]
    assert [r["value"] for r in matching(table, cell(where={}))] == [3, 2, 1, 4]


@pytest.mark.parametrize("table", [pd.DataFrame(), pd.DataFrame({"source": ["a"], "value": [1.0]})])
def test_a_table_without_the_columns_shows_nothing(table):
    assert matching(table, cell()) == []


def test_numbers_select_rows_too(places):
    rows = [auc(0.1 * k, guidance=float(k)) for k in (1, 2)]
    places[2]("results/02", "gate", rows)
    text = share_section(*places[:2], [cell(where={"guidance": 2.0})])
    assert "- 0.2 [" in text and "- 0.1 [" not in text


def test_what_n_counts_and_another_level_are_said(places):
    share = Row.of(Estimate(0.5, 0.25, 0.75, 283, "images", 0.9), chapter="gate", dataset="x", metric="share", arm="no gate")
    places[2]("results/03_gate", "gate", [share])
    assert "- 0.5 [0.25, 0.75] (90 %, n = 283 images), x (this run)" in share_section(*places[:2], [cell(where={})])


def test_an_edited_table_stops_the_page(places):
    path = places[2]("results/03_gate", "gate", [auc()])
    path.write_text(path.read_text().replace("0.625", "0.5"))
    with pytest.raises(ValueError, match="differs from the"):
        share_section(*places[:2], [cell()])
    path.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match=r"its sidecar gate\.json is missing"):
        share_section(*places[:2], [cell()])


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"method": "Gate"}, "method 'Gate'"),
        ({"question": "Why?"}, "question 'Why?'"),
        ({"kind": "likely"}, "kind 'likely'"),
        ({"pick": "mean"}, "pick 'mean'"),
        ({"verdict": "Yes"}, "worst ''"),
        ({"worst": "lowest"}, "worst 'lowest'"),
        ({"kind": "by definition"}, "a number needs one"),
        ({"tables": ()}, "a number needs one"),
    ],
)
def test_a_cell_that_cannot_be_is_refused(changes, found):
    with pytest.raises(ValueError, match=re.escape(found)):
        cell(**changes)


def test_the_page_holds_the_mark_once(project):
    assert (project / "book" / "share.md").read_text().count(share.MARK) == 1

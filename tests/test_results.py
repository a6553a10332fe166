import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medsynth import results
from medsynth.evaluation.statistics import bootstrap_mean, clopper_pearson
from medsynth.results import (
    FIGURE,
    ROWS,
    YOURS,
    Estimate,
    Row,
    both,
    own_tables,
    published,
    published_names,
    read_results,
    show_value,
    side_by_side,
    table_of,
    write_figure_data,
    write_results,
)
from medsynth.store.hashes import file_hash

NO_INTERVAL = {"low": math.nan, "high": math.nan, "level": math.nan}
SIDECAR = {"parameters": {"steps": 3}, "seeds": [0, 1], "inputs": {"phantoms": "ab12"}, "data_licence": "generated"}


def row(**changes):
    fields = {
        "chapter": "quality",
        "dataset": "phantom",
        "metric": "KID",
        "arm": "ours",
        "value": 0.5,
        "low": 0.25,
        "high": 0.75,
        "level": 0.95,
        "n": 9,
        "n_of": "patients",
    }
    return Row(**fields | changes)


names = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S"), exclude_characters="\r\n"), min_size=1, max_size=12)
values = st.floats(allow_nan=False, width=64)


@given(name=names, unit=st.sampled_from(["", "1", "HU", "NA"]), value=values, n=st.none() | st.integers(0, 10**9), extra=values)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_come_back_as_they_were_written(tmp_path, name, unit, value, n, extra):
    counted = {"n": n, "n_of": "" if n is None else "images"}
    written = [row(arm=name, unit=unit, value=value, **counted, extra={"guidance": extra}), row(arm="NA", **NO_INTERVAL)]
    write_results(tmp_path, "quality", written, **SIDECAR)
    pd.testing.assert_frame_equal(read_results(tmp_path, "quality").rows, table_of(written), check_dtype=False)


def test_an_estimate_becomes_a_row_with_all_that_it_knows():
    named = {"chapter": "gate", "dataset": "phantom", "metric": "share", "arm": "pixels"}
    share = Row.of(clopper_pearson(3, 40, n_of="images", level=0.9), **named, seed=1, tau=0.5)
    assert (share.n, share.n_of, share.level, share.seed, share.extra) == (40, "images", 0.9, 1, {"tau": 0.5})
    assert share.shown == "0.075 [0.0208, 0.183] (90 %, n = 40 images)"
    mean = Row.of(bootstrap_mean([1.0, 2.0, 6.0], [0, 0, 1], seed=0), **named, unit="dB")
    assert (mean.value, mean.n, mean.n_of, mean.level, mean.unit) == (3.0, 2, "patients", 0.95, "dB")
    assert mean.shown.endswith("(n = 2)")
    # what has no interval has no level of one
    assert math.isnan(Row.of(Estimate(0.5, math.nan, math.nan, 9), **named).level)


def test_numbers_that_look_like_names_stay_names(tmp_path):
    write_results(tmp_path, "02", [row(chapter="02", arm="1e3")], **SIDECAR)
    found = read_results(tmp_path, "02").rows.iloc[0]
    assert (found.chapter, found.arm) == ("02", "1e3")


def test_the_sidecar_says_how_the_numbers_came_to_be(tmp_path):
    path = write_results(tmp_path / "deep", "quality-deep", [row()], notes="a note", **SIDECAR)
    sidecar = read_results(tmp_path / "deep", "quality-deep").sidecar
    assert sidecar | SIDECAR == sidecar
    assert {"versions", "commit", "dirty", "device", "created", "csv_sha256"} <= set(sidecar)
    assert sidecar["notes"] == "a note"
    assert "python" in sidecar["versions"]
    assert [p.name for p in sorted(path.parent.iterdir())] == ["quality-deep.csv", "quality-deep.json"]


def test_a_row_refuses_a_reversed_interval_and_hidden_columns():
    with pytest.raises(ValueError, match="reversed"):
        row(low=2.0, high=1.0)
    with pytest.raises(ValueError, match=r"extra columns \['metric'\]"):
        row(extra={"metric": 1})


@pytest.mark.parametrize("changes", [{"n_of": ""}, {"n": None}])
def test_a_number_says_what_it_counts(changes):
    with pytest.raises(ValueError, match="expected both a number and what it counts, or neither"):
        row(**changes)


def test_an_interval_says_its_level():
    with pytest.raises(ValueError, match="does not say its level"):
        row(level=math.nan)


def test_a_table_is_called_after_its_chapter(tmp_path):
    for name in ("gate", "ruler-quality", "qualityplus"):
        with pytest.raises(ValueError, match=f"results '{name}': rows of 'quality'; expected a name that is their chapter's"):
            write_results(tmp_path, name, [row()], **SIDECAR)
    with pytest.raises(ValueError, match="rows of 'gate'"):
        write_results(tmp_path, "quality", [row(), row(chapter="gate")], **SIDECAR)
    assert not list(tmp_path.iterdir())


def test_a_table_of_any_other_shape_is_the_data_of_a_figure(tmp_path):
    points = pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0]})
    with pytest.raises(ValueError, match=r"save it with figures\.save_figure"):
        write_results(tmp_path, "quality-loss", points, **SIDECAR)
    write_figure_data(tmp_path, "quality-loss", points, **SIDECAR)
    write_results(tmp_path, "quality", [row()], **SIDECAR)
    assert [read_results(tmp_path, name).kind for name in ("quality", "quality-loss")] == [ROWS, FIGURE]


def test_rows_that_lack_a_column_are_not_read(tmp_path):
    path = write_figure_data(tmp_path, "quality", table_of([row()]).drop(columns=["n_of", "level"]), **SIDECAR)
    sidecar = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(sidecar | {"kind": ROWS}))
    with pytest.raises(ValueError, match="rows without a column level, n_of"):
        read_results(tmp_path, "quality")


@pytest.mark.parametrize("kind", [None, "curve"])
def test_a_table_of_an_unknown_kind_is_not_read(tmp_path, kind):
    path = write_results(tmp_path, "quality", [row()], **SIDECAR)
    sidecar = {k: v for k, v in read_results(tmp_path, "quality").sidecar.items() if k != "kind"}
    path.with_suffix(".json").write_text(json.dumps(sidecar | ({"kind": kind} if kind else {})))
    with pytest.raises(ValueError, match=f"its sidecar calls it '{kind or ''}'; expected 'rows' or 'figure'"):
        read_results(tmp_path, "quality")


def test_two_chapters_with_one_table_are_found(tmp_path):
    for chapter in ("01_data", "03_gate"):
        write_results(tmp_path / chapter, "quality", [row()], **SIDECAR)
    with pytest.raises(ValueError, match=r"03_gate.quality\.csv: 01_data holds a table 'quality' too"):
        own_tables(tmp_path)


def test_writing_needs_rows_and_a_licence(tmp_path):
    with pytest.raises(ValueError, match="no rows"):
        write_results(tmp_path, "quality", [], **SIDECAR)
    with pytest.raises(ValueError, match="data_licence"):
        write_results(tmp_path, "quality", [row()], **SIDECAR | {"data_licence": ""})
    assert not list(tmp_path.iterdir())


def test_reading_names_what_is_missing(tmp_path):
    write_results(tmp_path, "quality", [row()], **SIDECAR)
    with pytest.raises(FileNotFoundError, match="did you mean 'quality'"):
        read_results(tmp_path, "qualty")
    (tmp_path / "quality.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"quality\.json is missing"):
        read_results(tmp_path, "quality")


def test_a_changed_table_is_not_read(tmp_path):
    path = write_results(tmp_path, "quality", [row()], **SIDECAR)
    path.write_text(path.read_text().replace("0.5", "0.4"))
    with pytest.raises(ValueError, match="differs from the"):
        read_results(tmp_path, "quality")


def test_a_kill_between_table_and_sidecar_is_noticed(tmp_path, monkeypatch):
    write_results(tmp_path, "quality", [row()], **SIDECAR)
    monkeypatch.setattr(results, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_results(tmp_path, "quality", [row(value=0.6)], **SIDECAR)
    with pytest.raises(ValueError, match="half written"):
        read_results(tmp_path, "quality")


@pytest.mark.parametrize("content", ["[]", "{", "\xe9", '{"parameters": 3}'])
def test_a_sidecar_that_cannot_be_read_is_named(tmp_path, content):
    write_results(tmp_path, "quality", [row()], **SIDECAR)
    (tmp_path / "quality.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"quality\.json: no .*; (run|expected)"):
        read_results(tmp_path, "quality")


def test_a_table_that_cannot_be_read_is_named(tmp_path):
    path = write_results(tmp_path, "quality", [row()], **SIDECAR)
    path.write_bytes(b"\x89PNG\xff")
    facts = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(facts | {"csv_sha256": file_hash(path)}))
    with pytest.raises(ValueError, match=r"quality\.csv: not a table"):
        read_results(tmp_path, "quality")


@pytest.mark.parametrize(
    ("sidecar", "people"),
    [
        ({"data_licence": "generated"}, False),
        ({"data_licence": "CC BY 4.0; generated"}, True),
        ({"data_licence": "CC BY 4.0", "people": False}, False),
        ({"data_licence": "CC BY 4.0", "people": None}, True),
        ({}, True),
    ],
)
def test_a_sidecar_says_whether_somebody_was_scanned(sidecar, people):
    assert results.of_people(sidecar) is people


@pytest.fixture
def runs(tmp_path):
    write_results(tmp_path / "published" / "xray", "quality", [row(dataset="xray", value=1.0), row(arm="PCA")], **SIDECAR)
    write_results(tmp_path / "own", "quality", [row(value=0.25), row(arm="new", extra={"guidance": 2.0})], **SIDECAR)
    return tmp_path


def test_published_runs_are_found_by_name(runs):
    assert published_names(runs / "published") == ["xray"]
    assert published("xray", runs / "published") == runs / "published" / "xray"
    with pytest.raises(FileNotFoundError, match="did you mean 'xray'"):
        published("xrays", runs / "published")


def test_published_rows_stand_beside_ones_own(runs):
    table = both(runs / "own", "quality", runs / "published")
    assert table["source"].tolist() == ["xray", "xray", "this run", "this run"]
    wide = side_by_side(table)
    assert "seed" in side_by_side(table.assign(seed=[0, 1, 0, 1]))
    assert wide.columns.tolist() == ["dataset", "metric", "arm", "unit", "guidance", "xray", "this run"]
    shown = {(r.dataset, r.arm): (r.xray, r[-1]) for r in wide.itertuples(index=False, name="R")}
    assert shown["xray", "ours"] == ("1 [0.25, 0.75] (n = 9)", "")
    assert shown["phantom", "new"][1] == "0.5 [0.25, 0.75] (n = 9)"


def test_both_needs_at_least_one_table(runs):
    with pytest.raises(FileNotFoundError, match="published or own"):
        both(runs / "own", "absent", runs / "published")


def test_published_results_default_to_the_project(monkeypatch, tmp_path):
    for folder in ("profiles", "notebooks", "results/published/one"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert published_names() == ["one"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ((1.23456,), "1.23"),
        ((2, 1, 3), "2 [1, 3]"),
        ((2, math.nan, 3, 7), "2 (n = 7)"),
        ((2, 1, 3, pd.NA), "2 [1, 3]"),
        ((2, 1, 3, 7, "images"), "2 [1, 3] (n = 7 images)"),
        ((2, 1, 3, 7, "patients", 0.9), "2 [1, 3] (90 %, n = 7)"),
    ],
)
def test_values_are_shown_to_three_digits(value, text):
    assert show_value(*value) == text


def test_the_newest_published_run_stands_first(runs):
    later = read_results(runs / "published" / "xray", "quality").sidecar | {"created": "2999-01-01T00:00:00Z"}
    for name in ("a", "z"):
        path = write_results(runs / "published" / name, "quality", [row()], **SIDECAR)
    path.with_suffix(".json").write_text(json.dumps(later | {"csv_sha256": file_hash(path)}))
    order = both(runs / "own", "quality", runs / "published").source.unique().tolist()
    assert (order[0], order[-1], len(order)) == ("z", "this run", 4)


def test_device_and_commit_are_said_as_they_are(monkeypatch):
    gpu = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True, get_device_name=lambda: "A GPU"))
    monkeypatch.setitem(sys.modules, "torch", gpu)
    monkeypatch.setattr(results.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(OSError("no git")))
    found = results.provenance()
    assert (found["device"], found["commit"], found["dirty"]) == ("A GPU", None, None)
    assert json.dumps(found)
    monkeypatch.delitem(sys.modules, "torch")
    assert results.provenance()["device"].startswith("cpu")


def test_side_by_side_keeps_lines_that_lack_an_entry():
    shown = pd.DataFrame(
        {
            "source": ["published", "this run"], "chapter": "c", "dataset": "d", "metric": "m", "arm": ["a", None],
            "value": [1.0, 2.0],
            "low": float("nan"), "high": float("nan"), "level": float("nan"), "n": None, "n_of": "", "unit": None, "seed": 0,
            "strength": [None, 3.0],
        }
    )  # fmt: skip
    table = side_by_side(shown)
    assert len(table) == 2 and {"published", "this run"} <= set(table.columns)


def test_runs_with_other_thresholds_stand_side_by_side():
    named = {"chapter": "gate", "dataset": "d", "metric": "share refused", "arm": "encoder"}
    runs = {
        "full": Row.of(Estimate(0.5, 0.25, 0.75, 9), **named, tau=0.3),
        YOURS: Row.of(Estimate(1.0, 0.5, 1.0, 4), **named, tau=0.4),
    }
    table = pd.concat([table_of([row]).assign(source=source) for source, row in runs.items()], ignore_index=True)
    (line,) = side_by_side(table)[list(runs)].to_numpy().tolist()
    assert line == ["0.5 [0.25, 0.75] (n = 9)", "1 [0.5, 1] (n = 4)"]


def test_new_results_are_no_local_change(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        named = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", "-C", str(tmp_path), *named, *arguments], check=True, capture_output=True)

    for name in ("medsynth/results.py", "results/published/a.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("old")
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    monkeypatch.setattr(results, "__file__", str(tmp_path / "medsynth" / "results.py"))
    (tmp_path / "results/published/a.csv").write_text("new")
    assert results.provenance()["dirty"] is False
    (tmp_path / "medsynth/results.py").write_text("new")
    assert results.provenance()["dirty"] is True

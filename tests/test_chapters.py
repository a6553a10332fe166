"""Every chapter as a reader meets it in JupyterLab: short cells, each of which may be run again."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from matplotlib import pyplot as plt
from stub_project import ROOT, write_notebook
from traitlets.config import Config

from medsynth.publish.notebook import declared_parameters, tagged

CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PROFILE = ROOT / "tests" / "tests.yaml"  # seconds a chapter
TIMED = {"dp-cost.csv", "dp-cost-figure.csv"}  # measured times
LONG = {"06_dp", "90_weights"}  # as much as three others: every question to every set, or every arm


def code_cells(chapter: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(chapter, 4).cells if cell.cell_type == "code"]


# how long


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda p: p.stem)
def test_cells_are_short_and_hold_no_outputs(chapter):
    found = declared_parameters(chapter)
    assert {"profile", "seed", "out"} <= set(found)
    for cell in code_cells(chapter):
        lines = cell.source.splitlines()
        assert len(lines) <= (10 if tagged(cell, "hide-input") else 20), cell.id
        assert max(map(len, lines), default=0) <= 110, cell.id
        assert (cell.outputs, cell.execution_count) == ([], None), cell.id


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_has_at_most_120_lines_of_code(chapter):
    assert sum(len(cell.source.splitlines()) for cell in code_cells(chapter)) <= 120


# run twice


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """The shell of a notebook, within this process; it takes the place of the main module while it lives."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    yield InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    InteractiveShell.clear_instance()


def run(shell: InteractiveShell, chapter: Path, out: Path, times: int, **parameters: object) -> dict[str, object]:
    """Run each code cell of a chapter `times` times in a row; the tables it wrote, and those that it showed."""
    shell.reset()
    out.mkdir()
    shown = {}
    for cell in code_cells(chapter):
        for _ in range(times):
            with capture_output() as captured:
                result = shell.run_cell(cell.source)
            result.raise_error()
            plt.close("all")
        if tagged(cell, "parameters"):
            shell.push({**parameters, "out": str(out)})
        shown[cell.id] = [o.data["text/html"] for o in captured.outputs if "text/html" in o.data]
    return {p.name: p.read_bytes() for p in out.glob("*.csv")} | shown


def check_twice(shell: InteractiveShell, chapter: Path, folder: Path, **parameters: object) -> None:
    once, twice = (run(shell, chapter, folder / str(times), times, **parameters) for times in (1, 2))
    assert any(name.endswith(".csv") for name in once)
    # times differ from run to run, their rows do not
    for found in (once, twice):
        found.update({name: len(pd.read_csv(io.BytesIO(found[name]))) for name in TIMED & found.keys()})
    assert {k for k in once.keys() | twice.keys() if once.get(k) != twice.get(k)} == set()


@pytest.mark.parametrize(
    "chapter", [pytest.param(p, marks=[pytest.mark.slow] if p.stem in LONG else [], id=p.stem) for p in CHAPTERS]
)
def test_a_cell_that_is_run_twice_changes_no_table(chapter, shell, tmp_path):
    check_twice(shell, chapter, tmp_path, profile=str(PROFILE))


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ("rows = []", "rows.append(1)", "{'a.csv'}"),
        ("rows = [1]", "rows = [2 * rows[0]]", "{'a.csv'}"),
        ("rows = [1, 2]", "rows.pop()", "{'a.csv'}"),
        ("rows = [1]", "seen = [*globals().get('seen', []), 1]; display(pd.DataFrame(seen))", "{'cell-3'}"),
        ("rows = [1]", "rows.append(2); rows = rows[:2]", None),
    ],
)
def test_cells_that_add_up_are_found(shell, tmp_path, first, second, found):
    write = "pd.DataFrame(rows).to_csv(f'{out}/a.csv')"
    stub = write_notebook(tmp_path / "00_stub.ipynb", f"import pandas as pd; {first}", second, write)
    if found is None:
        return check_twice(shell, stub, tmp_path)
    with pytest.raises(AssertionError, match=re.escape(found)):
        check_twice(shell, stub, tmp_path)

import json
import shutil

import pandas as pd
import pytest
from stub_project import ROOT, write_notebook

from medsynth.publish import site as book
from medsynth.publish.fill import PLACEHOLDER
from medsynth.publish.site import MARK, assemble, build_book, published_section
from medsynth.results import Row, write_results

SIDECAR = {"parameters": {}, "seeds": [0, 1], "inputs": {}, "data_licence": "CC BY 4.0", "notes": "Half of the patients."}


def row(**changes):
    fields = {"chapter": "02", "dataset": "xray", "metric": "KID", "arm": "ours", "value": 0.5, "low": 0.25, "high": 0.75, "n": 9}
    return Row(**fields | changes)


@pytest.fixture
def project(tmp_path):
    shutil.copytree(ROOT / "book", tmp_path / "book", ignore=shutil.ignore_patterns("_build"))
    # the published rows stay at home
    for page in (tmp_path / "book").rglob("*.md"):
        page.write_text(PLACEHOLDER.sub("0.5", page.read_text()))
    write_notebook(tmp_path / "build" / "smoke" / "chapters" / "00_first.ipynb", "1 + 1", title="First, with $a^2$")
    published = tmp_path / "results" / "published" / "xray-full"
    write_results(published, "quality", [row(), row(arm="a|b")], **SIDECAR)
    (published / "quality.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>')
    write_results(published, "loss_curve", pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0]}), **SIDECAR)
    write_results(tmp_path / "build" / "smoke" / "results" / "02_generator", "quality", [row(value=0.625)], **SIDECAR)
    return tmp_path


def section(project):
    return published_section(project / "results" / "published", project / "build" / "smoke" / "results", project / "page")


def test_published_values_stand_beside_ones_own(project):
    text = section(project)
    assert "| dataset | metric | arm | xray-full | this run |" in text
    assert "| xray | KID | ours | 0.5 [0.25, 0.75] (n = 9) | 0.625 [0.25, 0.75] (n = 9) |" in text
    assert r"a\|b" in text
    assert "seeds 0, 1, data CC BY 4.0. Half of the patients." in text
    assert "## Loss curve" in text
    assert sorted(str(p.relative_to(project / "page")) for p in (project / "page").rglob("*.*")) == [
        "rows/this-run/quality.csv", "rows/xray-full/loss_curve.csv", "rows/xray-full/quality.csv", "rows/xray-full/quality.svg",
    ]  # fmt: skip


def test_long_tables_are_folded(project):
    rows = [row(arm=str(k)) for k in range(book.LONG + 1)]
    write_results(project / "results" / "published" / "xray-full", "quality", rows, **SIDECAR)
    assert ":::{dropdown} 32 rows" in section(project)


def test_a_changed_published_table_stops_the_book(project):
    path = project / "results" / "published" / "xray-full" / "quality.csv"
    path.write_text(path.read_text().replace("0.5", "0.1"))
    with pytest.raises(ValueError, match="differs from the"):
        assemble(project, project / "build" / "smoke")


def test_nothing_published_is_said(tmp_path):
    assert published_section(tmp_path / "none", tmp_path, tmp_path) == "Nothing has been published yet."


def test_prose_and_chapters_are_filled_from_published_rows(project):
    number = "{{row: xray-full/quality; arm=ours}}"
    (project / "book" / "published.md").write_text(f"# Rows: {number}")
    chapter = project / "build" / "smoke" / "chapters" / "00_first.ipynb"
    write_notebook(chapter, "1 + 1", title=f"First: {number}")
    target = assemble(project, project / "build" / "smoke")
    for page in (target / "published.md", target / "chapters" / "00_first.ipynb"):
        assert ": 0.5 [0.25, 0.75] (n = 9)" in page.read_text()
    write_notebook(chapter, "1 + 1", title=number.replace("ours", "theirs"))
    with pytest.raises(ValueError, match=r"book/chapters/00_first\.ipynb: .*no row has arm=theirs"):
        assemble(project, project / "build" / "smoke")


def test_a_book_needs_executed_chapters(project):
    folder = project / "build" / "smoke"
    (folder / "chapters" / "00_first.ipynb").rename(folder / "chapters" / "00_first.failed.ipynb")
    with pytest.raises(FileNotFoundError, match="run `medsynth reproduce` first"):
        assemble(project, folder)


@pytest.mark.slow
def test_the_book_builds_without_a_warning_and_fetches_nothing(project):
    said = []
    page = project / build_book(project, project / "build" / "smoke", say=said.append)
    assert page == project / "book" / "_build" / "html" / "index.html"
    pages = {p.stem: p.read_text() for p in page.parent.rglob("*.html")}
    assert {"intro", "share", "00_first", "published", "architecture", "tour", "glossary", "bibliography"} <= set(pages)
    assert MARK not in pages["published"]
    assert "Distance gate" in pages["share"]
    assert "xray-full" in pages["published"]
    assert "<math" in pages["00_first"]
    for text in pages.values():
        for tag in ('<script src="http', '<link rel="stylesheet" href="http', '<img src="http', "MathJax-script", "tex-mml"):
            assert tag not in text
    # nothing changed: the same pages
    before = page.stat().st_mtime_ns
    build_book(project, project / "build" / "smoke", say=said.append)
    assert len(said) == 1
    assert page.stat().st_mtime_ns == before


def test_a_warning_is_an_error_and_leaves_the_old_book(project, monkeypatch):
    monkeypatch.setattr(book, "_run_jupyter_book", lambda *_: project / "fresh")
    (project / "fresh").mkdir()
    (project / "fresh" / "index.html").write_text("first")
    build_book(project, project / "build" / "smoke", say=print)
    stamp = project / "book" / "_build" / "inputs.json"
    assert set(json.loads(stamp.read_text())) == {"source", "jupyter-book", "sphinx"}
    monkeypatch.undo()
    (project / "book" / "intro.md").write_text("# A title\n\n{cite:p}`nobody1999`\n")
    with pytest.raises(ValueError, match=r"(?s)did not build without warnings.*nobody1999"):
        build_book(project, project / "build" / "smoke", say=print)
    assert (project / "book" / "_build" / "html" / "index.html").read_text() == "first"

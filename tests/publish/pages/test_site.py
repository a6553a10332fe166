import json
import math
import re
import shutil

import pandas as pd
import pytest
from stub_project import ROOT, table_lines, write_notebook

from medsynth.publish.notebook import read_notebook
from medsynth.publish.pages import published, site
from medsynth.publish.pages.answers import QUESTIONS
from medsynth.publish.pages.entries import OTHER, RULER
from medsynth.publish.pages.fill import PLACEHOLDER
from medsynth.publish.pages.published import MARK, published_section
from medsynth.publish.pages.site import assemble, build_book, page_of, without_missing
from medsynth.results import Estimate, Row, write_figure_data, write_results

SIDECAR = {"parameters": {}, "seeds": [0, 1], "inputs": {}, "data_licence": "CC BY 4.0", "notes": "Half of the patients."}


def row(value=0.5, arm="ours", **changes):
    return Row.of(Estimate(value, 0.25, 0.75, 9), **{"chapter": "gate", "dataset": "xray", "metric": "KID", "arm": arm} | changes)


@pytest.fixture
def project(tmp_path):
    shutil.copytree(ROOT / "book", tmp_path / "book", ignore=shutil.ignore_patterns("_build"))
    # the published rows stay at home
    for page in (tmp_path / "book").rglob("*.md"):
        page.write_text(PLACEHOLDER.sub("0.5", page.read_text()))
    write_notebook(tmp_path / "build" / "smoke" / "chapters" / "00_first.ipynb", "1 + 1", title="First, with $a^2$")
    full = tmp_path / "results" / "published" / "xray-full"
    write_results(full, "gate", [row(), row(arm="a<b>|" + 60 * "c")], **SIDECAR)
    (full / "gate-loss.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>')
    write_figure_data(full, "gate-loss", pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0]}), **SIDECAR)
    write_results(tmp_path / "build" / "smoke" / "results" / "03_gate", "gate", [row(value=0.625)], **SIDECAR)
    return tmp_path


def section(project):
    return published_section(project / "results" / "published", project / "build" / "smoke" / "results", project / "page")


def test_published_values_stand_beside_ones_own(project):
    text = section(project)
    (header, ours, other) = table_lines(text)
    assert header == ["arm", "xray-full", "this run"]
    assert ours == ["ours", "0.5 [0.25, 0.75] (n = 9)", "0.625 [0.25, 0.75] (n = 9)"]
    # what all rows share stands above them, once
    assert "In every row: dataset *xray*, metric *KID*.\n\n```{raw} html" in text
    # whatever an arm is called, a reader sees it, whole
    assert other[0] == "a&lt;b&gt;|" + 60 * "c"
    assert "seeds 0, 1, data CC BY 4.0. Half of the patients." in text
    assert sorted(str(p.relative_to(project / "page")) for p in (project / "page").rglob("*.*")) == [
        "rows/this-run/gate.csv", "rows/xray-full/gate-loss.csv", "rows/xray-full/gate-loss.svg", "rows/xray-full/gate.csv",
    ]  # fmt: skip


def test_a_figure_is_shown_and_its_data_are_for_download(project):
    text = section(project)
    _, figure = text.split("### gate-loss")
    assert "```{figure} rows/xray-full/gate-loss.svg\ngate-loss: xray-full, data CC BY 4.0.\n```" in figure
    assert "{download}`Rows <rows/xray-full/gate-loss.csv>`" in figure and "<td>" not in figure


def test_tables_stand_by_question_the_newest_first(project):
    days = {"gate-attacks": "2026-01-02", "weights-gate-attacks": "2026-01-03", "data-populations": "2026-01-01"}
    more = project / "results" / "published" / "more"
    for name, day in (days | {"gate-attacks-figure": "2026-01-02", "nowhere": "2026-01-09"}).items():
        (more / f"{name}.svg").parent.mkdir(exist_ok=True, parents=True)
        (more / f"{name}.svg").write_text("<svg/>")
        write = write_figure_data if name.endswith("figure") else write_results
        path = write(more, name, [row(chapter=name.split("-")[0])], **SIDECAR)
        facts = json.loads(path.with_suffix(".json").read_text())
        path.with_suffix(".json").write_text(json.dumps(facts | {"created": f"{day}T00:00:00Z"}))
    text = section(project)
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [*QUESTIONS, RULER, OTHER]
    order = ["weights-gate-attacks", "gate-attacks", "gate-attacks-figure", "gate", "data-populations", "gate-loss", "nowhere"]
    assert re.findall(r"^\(rows-(.*)\)=$", text, re.MULTILINE) == order
    # a question without rows says so
    assert "## Can someone be singled out?\n\nNothing has been published yet.\n\n## Is it useful?" in text


def test_two_chapters_that_write_one_name_stop_the_book(project):
    write_results(project / "build" / "smoke" / "results" / "02_generator", "gate", [row()], **SIDECAR)
    with pytest.raises(ValueError, match="02_generator holds a table 'gate' too"):
        section(project)


def test_long_tables_are_folded(project):
    rows = [row(arm=str(k)) for k in range(published.LONG + 1)]
    write_results(project / "results" / "published" / "xray-full", "gate", rows, **SIDECAR)
    assert f":::{{dropdown}} {published.LONG + 2} rows" in section(project)


def test_a_changed_published_table_stops_the_book(project):
    path = project / "results" / "published" / "xray-full" / "gate.csv"
    path.write_text(path.read_text().replace("0.5", "0.1"))
    with pytest.raises(ValueError, match="differs from the"):
        assemble(project, project / "build" / "smoke")


def test_nothing_published_is_said(tmp_path):
    assert published_section(tmp_path / "none", tmp_path, tmp_path) == "Nothing has been published yet."


def test_prose_and_chapters_are_filled_from_published_rows(project):
    number = "{{row: xray-full/gate; arm=ours}}"
    (project / "book" / "published.md").write_text(f"# Rows: {number}")
    chapter = project / "build" / "smoke" / "chapters" / "00_first.ipynb"
    write_notebook(chapter, "1 + 1", title=f"First: {number}")
    target = assemble(project, project / "build" / "smoke")
    for page in (target / "published.md", target / "chapters" / "00_first.ipynb"):
        said = page.read_text().replace("\xa0", " ").replace("\\u00a0", " ")
        assert ": 0.5 [0.25, 0.75] (n = 9)" in said
    write_notebook(chapter, "1 + 1", title=number.replace("ours", "theirs"))
    with pytest.raises(ValueError, match=r"book/chapters/00_first\.ipynb: .*no row has arm=theirs"):
        assemble(project, project / "build" / "smoke")


def test_what_papermill_injected_stands_folded_in_the_parameters_cell(tmp_path):
    parameters = 'profile: str = "laptop"  # how much\nseed: int = 0\nout: str = ""'
    executed = read_notebook(write_notebook(tmp_path / "00_first.ipynb", 'profile = "own"', "1 + 1", parameters=parameters))
    executed.cells[2].source = '# Parameters\nprofile = "smoke"\nout = "a = b"\n'
    executed.cells[2].metadata["tags"] = ["injected-parameters"]
    cells = page_of(executed).cells
    assert [c.source for c in cells[1:]] == ['profile: str = "smoke"  # how much\nseed: int = 0\nout: str = "a = b"', "1 + 1"]
    assert cells[1].metadata["tags"] == ["parameters", "hide-input"] and not cells[2].metadata.get("tags")


def test_captions_are_set_apart(tmp_path):
    executed = read_notebook(write_notebook(tmp_path / "00_first.ipynb", "1 + 1", title="What to see."))
    executed.cells[0].metadata["tags"] = ["caption"]
    assert page_of(executed).cells[0].source == ":::{container} caption\n# What to see.\n:::"


def test_a_link_to_a_chapter_that_did_not_run_becomes_its_words(tmp_path):
    (tmp_path / "chapters").mkdir()
    (tmp_path / "chapters" / "03_gate.ipynb").touch()
    text = "[gate](chapters/03_gate.ipynb), [sites](chapters/05_sites.ipynb), [share](share.md)"
    assert without_missing(text, tmp_path) == "[gate](chapters/03_gate.ipynb), sites, [share](share.md)"


def test_the_first_page_has_its_figures_whatever_has_run(project):
    folder = project / "build" / "smoke"
    target = assemble(project, folder)
    named = re.findall(r"\{image\} (\S+)", (target / "intro.md").read_text())
    empty = {name: (target / name).read_text() for name in named}
    assert len(empty) == 3
    own, rows = folder / "results" / "00_quickstart", project / "results" / "published" / "ct-tcia-full"
    write_figure_data(own, "quickstart-samples", pd.DataFrame({"finding": ["none"]}), **SIDECAR)
    (own / "quickstart-samples.svg").write_text("<svg>four and four</svg>")
    shutil.copytree(ROOT / "results" / "published" / "ct-tcia-full", rows)
    found = {0.0: 9.0, 10.0: 5.0, math.inf: 4.0}
    of = {"chapter": "dp", "dataset": "phantom-heart", "arm": "pre-trained", "low": 3.0, "high": 9.5, "level": 0.95}
    dp = [Row(**of, metric="FID", value=v + s, seed=s, extra={"epsilon": e}) for e, v in found.items() for s in (0, 1)]
    floor = Row(**of, metric="FID floor", value=3.5, seed=0, extra={"epsilon": 0.0})
    write_results(project / "results" / "published" / "phantoms-full", "dp", [*dp, floor], **SIDECAR)
    target = assemble(project, folder)
    assert (target / "front" / "samples.svg").read_text() == "<svg>four and four</svg>"
    drawn = (target / "front" / "psnr.svg").read_text()
    assert drawn != empty["front/psnr.svg"]
    assert (target / "front" / "epsilon.svg").read_text() != empty["front/epsilon.svg"] and assemble(project, folder)
    # the same rows are the same file: nothing is built again
    assert (target / "front" / "psnr.svg").read_text() == drawn


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
    assert "Synthetic images, after a gate" in pages["share"]
    assert "injected" not in pages["00_first"] and "<figcaption" in pages["published"]
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
    monkeypatch.setattr(site, "_run_jupyter_book", lambda *_: project / "fresh")
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

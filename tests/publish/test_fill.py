import re
import shutil

import nbformat
import pytest
from stub_project import ROOT, write_notebook

from medsynth.publish.fill import fill, fill_page
from medsynth.results import Row, write_results

SIDECAR = {"parameters": {}, "seeds": [0], "inputs": {}, "data_licence": "generated"}
BOOK = [*sorted((ROOT / "book").glob("*.md")), *sorted((ROOT / "book" / "decisions").glob("*.md"))]


def row(arm="pooled real, all", **changes):
    fields = {"chapter": "05", "dataset": "clinic", "metric": "PSNR", "unit": "dB", "value": 0.5, "low": 0.25}
    return Row(
        arm=arm, **fields | {"high": 0.75, "n": 9, "extra": {"net": "edsr", "tau": 0.25, "verdict": "not shown"}} | changes
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    rows = [row(), row("encoder 3bf9 (64 px)", value=1.0, seed=0), row("encoder 3bf9 (64 px)", value=2.0, seed=1)]
    write_results(folder / "published" / "full", "sites", rows, **SIDECAR)
    write_results(folder / "trials" / "solver", "steps", [row("even", low=0.125)], **SIDECAR)
    return folder


@pytest.mark.parametrize(
    ("placeholder", "shown"),
    [
        ("{{row: full/sites; arm=pooled real, all}}", "0.5 [0.25, 0.75] (n = 9)"),
        ("{{ row:full/sites;\n  arm=pooled   real, all ; show=verdict }}", "not shown"),
        ("{{row: full/sites; arm=pooled*; show=tau}}", "0.25"),
        ("{{row: full/sites; arm=pooled*; show=n}}", "9"),
        ("{{row: full/sites; seed=}}", "0.5 [0.25, 0.75] (n = 9)"),
        ("{{row: full/sites; arm=encoder*; seed=1}}", "2 [0.25, 0.75] (n = 9)"),
        ("{{row: full/sites; arm=nobody | pooled*}}", "0.5 [0.25, 0.75] (n = 9)"),
        ("{{row: trials/solver/steps; tau=0.25}}", "0.5 [0.125, 0.75] (n = 9)"),
        (
            "{{table: full/sites; seed=; lines=arm,net; show=value,verdict}}",
            "| arm | net | PSNR (dB) | verdict |\n| --- | --- | --- | --- |\n"
            "| pooled real, all | edsr | 0.5 [0.25, 0.75] (n = 9) | not shown |",
        ),
        (
            "{{table: full/sites; arm=encoder*; lines=arm; columns=seed}}",
            "| arm | 0 | 1 |\n| --- | --- | --- |\n| encoder 3bf9 (64 px) | 1 [0.25, 0.75] (n = 9) | 2 [0.25, 0.75] (n = 9) |",
        ),
    ],
)
def test_a_placeholder_becomes_its_row(results, placeholder, shown):
    assert fill(f"before {placeholder} after", results, "page") == f"before {shown} after"


@pytest.mark.parametrize(
    ("placeholder", "found"),
    [
        ("row: full/sites; arm=pooled synthetic", "no row has arm=pooled synthetic; among those"),
        ("row: full/sites; arm=encoder*", "2 rows fit; they differ in seed: say which"),
        ("row: full/sites; arms=x", "the table has no column 'arms'; it has chapter, dataset, metric, arm"),
        ("row: full/sites; seed=; show=seed", "its row has no 'seed'; it has chapter"),
        ("table: full/sites; arm=encoder*; lines=arm", "several rows fit one place of the table; arm do not tell them apart"),
        ("table: full/sites; lines=arms", "the table has no column 'arms'"),
        ("table: full/sites; arm=x; lines=arm", "no row has arm=x"),
        ("row: full/site; arm=x", "no such results; did you mean 'sites'"),
        ("row: half/sites; arm=x", "no such results"),
        ("row: full/sites; arm", "not a placeholder"),
        ("rows: full/sites; arm=x", "not a placeholder"),
    ],
)
def test_a_placeholder_without_its_one_row_stops_the_book_and_is_named(results, placeholder, found):
    with pytest.raises(ValueError, match=re.escape(f"book/page.md: {{{{{placeholder}}}}}: ") + ".*" + re.escape(found)):
        fill(f"text {{{{{placeholder}}}}}", results, "book/page.md")


def test_a_row_that_was_edited_stops_the_book(results, tmp_path):
    table = shutil.copytree(results, tmp_path / "edited") / "published" / "full" / "sites.csv"
    table.write_text(table.read_text().replace("0.5", "0.6"))
    with pytest.raises(ValueError, match=r"page: .*differs from the"):
        fill("{{row: full/sites; seed=}}", tmp_path / "edited", "page")


def test_of_a_notebook_the_markdown_is_filled_and_the_code_is_not(results, tmp_path):
    code, text = "print('{{row: full/sites; seed=}}')", "{{row: full/sites; seed=; show=net}}"
    page = write_notebook(tmp_path / "00_first.ipynb", code, title=text)
    fill_page(page, results, "chapters/00_first.ipynb")
    cells = nbformat.read(page, as_version=4).cells
    assert (cells[0].source, cells[-1].source) == ("# edsr", code)


@pytest.mark.parametrize("page", [*BOOK, *sorted((ROOT / "notebooks").glob("*.ipynb"))], ids=lambda p: p.name)
def test_every_placeholder_of_the_book_has_its_row(page, tmp_path):
    copy = tmp_path / page.name
    copy.write_text(page.read_text())
    fill_page(copy, ROOT / "results", page.name)

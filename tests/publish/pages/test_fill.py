import hashlib
import json
import re
import shutil

import nbformat
import pytest
from stub_project import ROOT, write_notebook

from medsynth.publish.pages.fill import fill, fill_page, unbroken

BOOK = [*sorted((ROOT / "book").glob("*.md")), *sorted((ROOT / "book" / "decisions").glob("*.md"))]
COLUMNS = "chapter,dataset,metric,arm,value,low,high,n,unit,seed,net,tau,verdict"
POOLED = 'sites,clinic,PSNR,"pooled real, all",0.5,{low},0.75,9,dB,,edsr,0.25,not shown'
ENCODER = "sites,clinic,PSNR,encoder 3bf9 (64 px),{value},0.25,0.75,9,dB,{seed},edsr,0.25,not shown"


def write(folder, name, *rows):
    """A table in any shape, with the least that a sidecar must say."""
    folder.mkdir(parents=True)
    text = "\n".join([COLUMNS, *rows, ""])
    (folder / f"{name}.csv").write_text(text)
    (folder / f"{name}.json").write_text(json.dumps({"kind": "figure", "csv_sha256": hashlib.sha256(text.encode()).hexdigest()}))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    encoders = [ENCODER.format(value=value, seed=seed) for value, seed in ((1.0, 0), (2.0, 1))]
    write(folder / "published" / "full", "sites", POOLED.format(low=0.25), *encoders)
    write(folder / "trials" / "solver", "steps", POOLED.format(low=0.125))
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
        ("{{row: full/sites; pick=highest}}", "2 [0.25, 0.75] (n = 9)"),
        ("{{row: full/sites; arm=encoder*; pick=lowest; show=seed}}", "0"),
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
    assert fill(f"before {placeholder} after", results, "page").replace("\xa0", " ") == f"before {shown} after"


def test_no_line_breaks_within_an_interval_or_its_n(results):
    shown = "0.5 [0.25,\xa00.75] (n\xa0=\xa09)"
    assert fill("{{row: full/sites; seed=}}", results, "page") == unbroken(shown) == shown


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
        ("row: full/sites; pick=best", "pick=best: a row; of rows pick the lowest or highest"),
        ("table: full/sites; arm=encoder*; lines=seed; pick=lowest", "pick=lowest: a table; of rows pick the lowest"),
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

"""What the project publishes: every table in one schema, under a name that is its chapter's, and on the page."""

import ast
import re
import shutil

import pytest
from stub_project import ROOT, table_lines

from medsynth.publish.check import run_problems
from medsynth.publish.fingerprint import code_of
from medsynth.publish.pages.answers import CELLS, matching
from medsynth.publish.pages.entries import ENTRIES, OTHER, entry
from medsynth.publish.pages.published import published_section
from medsynth.publish.plan import chapter_sources
from medsynth.results import COLUMNS, FIGURE, ROWS, both, chapter_of, published_names, read_results, table_names

PUBLISHED = ROOT / "results" / "published"
# of chapters whose full runs are not over: the page says so in the place of their numbers
UNPUBLISHED = {"singling_out", "singling_out-legal", "diversity-classification"}
TABLES = [(run, name) for run in published_names(PUBLISHED) for name in table_names(PUBLISHED / run)]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return published_section(PUBLISHED, PUBLISHED / "none", tmp_path_factory.mktemp("page"))


@pytest.mark.parametrize("run", published_names(PUBLISHED))
def test_nothing_stands_against_a_published_run(run):
    assert run_problems(PUBLISHED / run, ROOT) == []


@pytest.mark.parametrize(("run", "name"), TABLES)
def test_a_published_table_is_rows_in_the_schema_on_the_page_or_the_data_of_a_figure(page, run, name):
    found = read_results(PUBLISHED / run, name)
    (section,) = re.findall(rf"^\(rows-{name}\)=\n(.*?)(?=^\(rows-|^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert section.startswith(f"### {ENTRIES[name].title}\n") and ENTRIES[name].see in section
    if found.kind == FIGURE:
        assert f"rows/{run}/{name}.svg" in section and f"rows/{run}/{name}.csv" in section and "<td>" not in section
        return
    assert found.kind == ROWS and found.rows.columns[: len(COLUMNS)].tolist() == list(COLUMNS)
    assert set(found.rows["chapter"]) == {chapter_of(name)}
    # an n says of what, an interval at which level
    assert (found.rows["n"].isna() == (found.rows["n_of"] == "")).all()
    assert (found.rows["low"].isna() == found.rows["level"].isna()).all()
    header, *lines = table_lines(section)
    shown = [value for line in lines for value in line[header.index(run)].split("; ") if value]
    assert len(shown) == len(found.rows)


def test_titles_tell_tables_apart_and_nothing_is_described_that_is_not_published():
    titles = [about.title for about in ENTRIES.values()]
    assert len(set(titles)) == len(titles) and set(ENTRIES) == {name for _, name in TABLES}
    assert entry("dp-accountant") == (OTHER, "dp-accountant", "")


def test_no_two_chapters_write_one_name():
    written = {
        name: chapter.partition("_")[2] for chapter, path in chapter_sources(ROOT).items() for name in names_in(code_of(path))
    }
    assert len(written) > 30 and {name: chapter_of(name) for name in written} == written


def names_in(code):
    """Names of the tables and figures that a program writes; of a name that is put together, its beginning."""
    calls = [n for n in ast.walk(code) if isinstance(n, ast.Call)]
    for call in calls:
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name in ("write_results", "save_figure"):
            written = call.args[2 if name == "save_figure" else 1]
            yield beginning(written)
        # a chapter puts its name before those of its tables and figures
        if name == "Chapter":
            yield (chapter := ast.literal_eval(call.args[0]))
            for of in (c for c in calls if getattr(getattr(c.func, "value", None), "id", "") == "chapter"):
                place = {"estimates": 1, "panels": 1, "roc": 1, "histogram": 1, "curves": 2, "save": 1}.get(of.func.attr)
                own = [of.args[place]] if place else [k.value for k in of.keywords if (of.func.attr, k.arg) == ("table", "table")]
                yield from (f"{chapter}-{beginning(n)}" for n in own)


def test_what_is_said_to_be_unpublished_is():
    assert not UNPUBLISHED & {name for _, name in TABLES}


def beginning(name):
    return ast.literal_eval(name.values[0] if isinstance(name, ast.JoinedStr) else name)


@pytest.mark.parametrize("cell", [c for c in CELLS if c.tables], ids=lambda c: f"{c.method}, {c.says[:30]}")
def test_every_number_of_the_share_page_is_found_in_what_is_published(cell):
    tables = {name for _, name in TABLES} & set(cell.tables)
    assert tables == set(cell.tables) - UNPUBLISHED
    for name in tables:
        assert matching(both(PUBLISHED / "none", name, PUBLISHED), cell), name


def test_what_there_is_to_see_is_said_of_published_figures_alone(tmp_path):
    own = tmp_path / "own" / "chapter"
    own.mkdir(parents=True)
    for end in ("csv", "json", "svg"):
        shutil.copyfile(PUBLISHED / "phantoms-full" / f"gate-distances.{end}", own / f"gate-distances.{end}")
    found = published_section(PUBLISHED, own.parent, tmp_path / "page")
    about = ENTRIES["gate-distances"]
    captions = [line for line in found.splitlines() if line.startswith(f"{about.title}: ")]
    assert [about.see in line for line in captions] == ["this run" not in line for line in captions] and len(captions) == 2

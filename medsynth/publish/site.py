"""The book: prose, executed chapters and published rows, assembled into one source tree and built without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from medsynth.hashes import file_hash, json_hash
from medsynth.publish.answers import MARK as SHARE_MARK
from medsynth.publish.answers import share_section
from medsynth.publish.fill import fill_page
from medsynth.results import (
    FIGURE,
    ROWS,
    YOURS,
    Results,
    chapter_of,
    newest_first,
    own_tables,
    published_names,
    read_results,
    side_by_side,
    table_names,
    together,
)
from medsynth.runs import write_json

MARK = "<!-- published results -->"  # where book/published.md receives the tables and figures
LONG = 30  # rows beyond which a table is folded away
# chapters in the order of the page; others follow by name
TITLES = {
    "quickstart": "Quickstart", "data": "The images and the ruler", "generator": "The generator", "gate": "The gate",
    "restoration": "Restoration", "sites": "Pooled sites", "weights": "The weights that ship",
}  # fmt: skip


def build_book(root: Path, folder: Path, *, say: Callable[[str], None] = print) -> Path:
    """Build book/_build/html from the chapters executed in `folder`; returns its first page.

    Does nothing if what it is made of has not changed. Raises FileNotFoundError if no chapter has run, ValueError if the
    build prints a warning.
    """
    source = assemble(root, folder)
    built, stamp = root / "book" / "_build" / "html", root / "book" / "_build" / "inputs.json"
    inputs = {"source": _hash_of_tree(source), "jupyter-book": version("jupyter-book"), "sphinx": version("sphinx")}
    page = (built / "index.html").relative_to(root)
    if stamp.exists() and json.loads(stamp.read_text()) == inputs and (root / page).exists():
        return page
    say(f"building the book from {folder.relative_to(root)}/chapters")
    fresh = _run_jupyter_book(source, folder)
    stamp.unlink(missing_ok=True)
    # pages that no longer exist go, and a reader never meets half a book
    old = built.with_name("html.old")
    shutil.rmtree(old, ignore_errors=True)
    built.parent.mkdir(parents=True, exist_ok=True)
    if built.exists():
        built.rename(old)
    shutil.move(fresh, built)
    shutil.rmtree(old, ignore_errors=True)
    write_json(stamp, inputs)
    return page


def assemble(root: Path, folder: Path) -> Path:
    """Lay out the sources of the book of `folder` in folder/book: book/, executed chapters, published and own results.

    Raises FileNotFoundError if no chapter has run, ValueError for a placeholder in the prose that no published row fits.
    """
    chapters = sorted((folder / "chapters").glob("[0-9][0-9]_*.ipynb"))
    chapters = [c for c in chapters if not c.name.endswith(".failed.ipynb")]
    if not chapters:
        raise FileNotFoundError(f"{folder.relative_to(root)}/chapters: no executed chapters; run `medsynth reproduce` first")
    target = folder / "book"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(root / "book", target, ignore=shutil.ignore_patterns("_build", "__pycache__"))
    (target / "chapters").mkdir()
    for chapter in chapters:
        shutil.copyfile(chapter, target / "chapters" / chapter.name)
    for page in sorted([*target.rglob("*.md"), *target.rglob("*.ipynb")]):
        fill_page(page, root / "results", f"book/{page.relative_to(target)}")
    published, own = root / "results" / "published", folder / "results"
    _fill(target / "published.md", MARK, published_section(published, own, target))
    _fill(target / "share.md", SHARE_MARK, share_section(published, own))
    return target


def _fill(page: Path, mark: str, text: str) -> None:
    page.write_text(page.read_text().replace(mark, text))


def published_section(published: Path, own: Path, target: Path) -> str:
    """Markdown of all that is published, by chapter: values beside the reader's own, how each came to be, and the figures.

    Of a table the newest run stands first. published, own: folders of folders of tables; figures and rows that the text shows
    are copied into `target`/rows. Raises ValueError for a table that is not its sidecar's, or where two chapters wrote one name.
    """
    runs = published_names(published)
    if not runs:
        return "Nothing has been published yet."
    places: dict[str, dict[str, Path]] = {}
    for run in runs:
        for name in table_names(published / run):
            places.setdefault(name, {})[run] = published / run
    for name, place in own_tables(own).items():
        if name in places:
            places[name][YOURS] = place
    chapters = sorted({chapter_of(name) for name in places}, key=lambda c: ([*TITLES, c].index(c), c))
    text = []
    for chapter in chapters:
        text.append(f"## {TITLES.get(chapter, chapter.capitalize())}")
        for name in sorted(name for name in places if chapter_of(name) == chapter):
            text += _section(name, places[name], target / "rows")
    return "\n\n".join(text)


def _section(name: str, places: dict[str, Path], rows: Path) -> list[str]:
    known = newest_first({source: read_results(place, name) for source, place in places.items()})
    text = [f"### {name}"]
    if tables := {source: found for source, found in known.items() if found.kind == ROWS}:
        text.append(_table(side_by_side(together(tables))))
    for source, found in known.items():
        place, copied = places[source], rows / source.replace(" ", "-")
        copied.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place / f"{name}.csv", copied / f"{name}.csv")
        if found.kind == FIGURE:
            shutil.copyfile(place / f"{name}.svg", copied / f"{name}.svg")
            text.append(f"```{{figure}} rows/{copied.name}/{name}.svg\n{source}\n```")
        text.append(f"{_facts(source, found)} {{download}}`Rows <rows/{copied.name}/{name}.csv>`")
    return text


def _table(table: pd.DataFrame) -> str:
    shown = table.loc[:, [c for c in table if table[c].astype(str).str.strip().any()]]
    # as HTML: as Markdown the page's four thousand rows took longer to parse than the rest of the book
    with pd.option_context("display.max_colwidth", None):
        text = f"```{{raw}} html\n{shown.to_html(index=False, border=0, justify='left', classes='table')}\n```"
    return text if len(table) <= LONG else f":::{{dropdown}} {len(table)} rows\n{text}\n:::"


def _facts(source: str, results: Results) -> str:
    facts: dict[str, Any] = results.sidecar
    commit = f"commit `{facts['commit'][:10]}`" if facts["commit"] else "no commit"
    commit += " with local changes" if facts["dirty"] else ""
    seeds = ", ".join(map(str, facts["seeds"])) or "none"
    text = f"**{source}**: {commit}, {facts['device']}, {facts['created'][:10]}, seeds {seeds}, data {facts['data_licence']}."
    return f"{text} {facts['notes']}".strip()


def _run_jupyter_book(source: Path, folder: Path) -> Path:
    output = folder / "book-html"
    # pages kept from a build that failed would not warn again
    shutil.rmtree(output, ignore_errors=True)
    command = [
        sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(source),
        "--path-output", str(output), "-W", "-n", "--keep-going", "--quiet",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    (folder / "book.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "WARNING" in line or "ERROR" in line]
        shown = "\n".join(f"  {line}" for line in (lines or (done.stdout + done.stderr).splitlines())[-10:])
        raise ValueError(f"the book did not build without warnings (all in {folder / 'book.log'})\n{shown}")
    return output / "_build" / "html"


def _hash_of_tree(folder: Path) -> str:
    files = (path for path in folder.rglob("*") if path.is_file())
    return json_hash({str(file.relative_to(folder)): file_hash(file) for file in files})

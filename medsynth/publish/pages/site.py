"""The book: prose, executed chapters and published rows, assembled into one source tree and built without a network."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import nbformat

from medsynth.publish.notebook import read_notebook, tagged
from medsynth.publish.pages import answers, front, published
from medsynth.publish.pages.fill import fill_page
from medsynth.store.hashes import file_hash, json_hash
from medsynth.store.runs import write_json


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
        nbformat.write(page_of(read_notebook(chapter)), target / "chapters" / chapter.name)
    first = target / "intro.md"
    first.write_text(without_missing(first.read_text(), target))
    for page in sorted([*target.rglob("*.md"), *target.rglob("*.ipynb")]):
        fill_page(page, root / "results", f"book/{page.relative_to(target)}")
    rows, own = root / "results" / "published", folder / "results"
    front.draw(rows, own, target)
    _fill(target / "published.md", published.MARK, published.published_section(rows, own, target))
    _fill(target / "share.md", answers.MARK, answers.share_section(rows, own))
    return target


def without_missing(text: str, target: Path) -> str:
    """The text of a page; links to chapters that did not run, as on data of one's own, become their words."""

    def kept(link: re.Match[str]) -> str:
        return link[0] if (target / link[2]).exists() else link[1]

    return re.sub(r"\[([^\]]+)\]\((chapters/[^)]+)\)", kept, text)


def page_of(executed: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A chapter as it is read: injected values stand, folded, in the parameters cell; captions are set apart."""
    given = {n: v for c in executed.cells if tagged(c, "injected-parameters") for n, v in _assigned(c.source)}
    executed.cells = [cell for cell in executed.cells if not tagged(cell, "injected-parameters")]
    for cell in executed.cells:
        if tagged(cell, "parameters"):
            cell.source = _with_values(cell.source, given)
            cell.metadata["tags"] = [*cell.metadata["tags"], "hide-input"]
            cell.metadata["mystnb"] = {"code_prompt_show": "Parameters of this run"}
        elif tagged(cell, "caption"):
            cell.source = f":::{{container}} caption\n{cell.source}\n:::"
    return executed


def _assigned(source: str) -> list[tuple[str, str]]:
    statements = [s for s in ast.parse(source).body if isinstance(s, ast.Assign)]
    return [(ast.unparse(s.targets[0]), ast.get_source_segment(source, s.value) or "") for s in statements]


def _with_values(source: str, given: dict[str, str]) -> str:
    """A parameters cell, `name: type = literal` in each line, with other literals."""
    lines = source.splitlines()
    for statement in ast.parse(source).body:
        assert isinstance(statement, ast.AnnAssign) and statement.value is not None
        old, line = ast.get_source_segment(source, statement.value), statement.lineno - 1
        new = given.get(ast.unparse(statement.target), old)
        lines[line] = lines[line].replace(f"= {old}", f"= {new}", 1)
    return "\n".join(lines)


def _fill(page: Path, mark: str, text: str) -> None:
    page.write_text(page.read_text().replace(mark, text))


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

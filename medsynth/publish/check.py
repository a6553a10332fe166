"""What must hold before anything is published: clean notebooks, rows with sidecars, and no picture of a person."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import nbformat

from medsynth.figures import has_pictures
from medsynth.hashes import file_hash
from medsynth.publish.fingerprint import called, code_of
from medsynth.publish.notebook import declared_parameters, read_notebook
from medsynth.publish.plan import chapter_sources
from medsynth.results import ROWS, Results, chapter_of, read_results

# calls that put pixels on a page without asking whose they are; figures.image_grid asks
PIXEL_CALLS = {"imshow", "matshow", "figimage", "imsave", "fromarray"}
PUBLISHED_KINDS = {".csv", ".json", ".svg", ".md"}


def problems(root: Path) -> list[str]:
    """Everything that stands in the way of publishing, one sentence each; empty if nothing does."""
    return [*_sources(root), *_executed(root), *_published(root)]


def _sources(root: Path) -> Iterator[str]:
    for path in chapter_sources(root).values():
        place = path.relative_to(root)
        try:
            declared_parameters(path)
            code = code_of(path)
        except ValueError as error:
            yield str(error)
            continue
        cells = [c for c in read_notebook(path).cells if c.cell_type == "code"]
        with_output = [k for k, c in enumerate(cells, 1) if c.outputs or c.execution_count is not None]
        if with_output:
            yield f"{place}: code cells {with_output[:5]} hold outputs or counts; clear all outputs before committing"
        for node in ast.walk(code):
            if isinstance(node, ast.ClassDef):
                yield f"{place}: defines the class {node.name}; move it into the library"
            elif isinstance(node, ast.Call) and (name := called(node)) in PIXEL_CALLS:
                yield f"{place}: calls {name}; draw pictures with figures.image_grid, which withholds those of people"


def _executed(root: Path) -> Iterator[str]:
    """Chapters executed on somebody's data (and the book made of them) may not hold a picture of any kind."""
    for path in sorted(root.glob("build/*/chapters/[0-9][0-9]_*.ipynb")):
        notebook = read_notebook(path)
        if notebook.metadata.get("medsynth", {}).get("data"):
            for number, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), 1):
                if any(_shows_picture(output) for output in cell.outputs):
                    yield f"{path.relative_to(root)}: code cell {number} shows a picture in a chapter that ran on real data"


def _shows_picture(output: nbformat.NotebookNode) -> bool:
    for kind, content in output.get("data", {}).items():
        text = "".join(content) if isinstance(content, list) else str(content)
        raster = kind.startswith("image/") and kind != "image/svg+xml"
        if raster or has_pictures(text) or "<img" in text or "data:image/" in text:
            return True
    return False


def _published(root: Path) -> Iterator[str]:
    for run in sorted((root / "results" / "published").glob("*")):
        yield from run_problems(run, root)


def run_problems(run: Path, root: Path) -> list[str]:
    """What is wrong with the files of one published run, each named from `root`; empty if nothing is."""
    files = sorted(p for p in run.rglob("*") if p.is_file()) if run.is_dir() else [run]
    found: list[str] = []
    tables: dict[Path, Results] = {}
    for path in (p for p in files if p.suffix == ".csv"):
        try:
            tables[path] = read_results(path.parent, path.stem)
        except (ValueError, FileNotFoundError) as error:
            found.append(str(error).replace(f"{root}/", ""))
    chapters = {chapter_of(path.stem) for path, table in tables.items() if table.kind == ROWS}
    problems = {path: _table_problem(path, table, chapters) for path, table in tables.items()}
    problems |= {path: _figure_problem(path, tables.get(path.with_suffix(".csv"))) for path in files if path.suffix == ".svg"}
    problems |= {
        path: "no table stands beside it" for path in files if path.suffix == ".json" and path.with_suffix(".csv") not in files
    }
    problems |= {
        path: f"only {', '.join(sorted(PUBLISHED_KINDS))} files are published; remove it"
        for path in files if path.suffix not in PUBLISHED_KINDS
    }  # fmt: skip
    return found + [f"{path.relative_to(root)}: {problem}" for path, problem in problems.items() if problem]


def _table_problem(csv: Path, table: Results, chapters: set[str]) -> str:
    """A table is rows of the chapter that it is called after, or the data of a figure that stands beside such rows."""
    chapter = chapter_of(csv.stem)
    if table.kind == ROWS:
        strange = sorted(set(table.rows["chapter"]) - {chapter})
        return f"holds rows of {strange[0]!r}; a table is called after its chapter" if strange else ""
    if not csv.with_suffix(".svg").exists():
        return f"the data of a figure without {csv.stem}.svg"
    return "" if chapter in chapters else f"the data of a figure, and no rows of a chapter {chapter!r} stand beside it"


def _figure_problem(svg: Path, table: Results | None) -> str:
    # sidecars of older runs say by the licence of phantoms whether people were scanned
    if has_pictures(svg.read_text()) and (
        table is None or table.sidecar.get("people", table.sidecar["data_licence"] != "generated")
    ):
        return "holds a picture, and its sidecar does not say that all data are generated"
    if table is None:
        return "no rows stand behind it"
    if table.sidecar["parameters"].get("svg_sha256") != file_hash(svg):
        return "not the figure that its sidecar was written with; run the chapter again"
    return ""

"""What must hold before anything is published: clean notebooks, rows with sidecars, and no picture of a person."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import nbformat

from medsynth.figures import has_pictures
from medsynth.publish.fingerprint import code_of
from medsynth.publish.notebook import declared_parameters, read_notebook
from medsynth.publish.plan import chapter_sources
from medsynth.results import read_results

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
            elif isinstance(node, ast.Call) and (name := _name(node.func)) in PIXEL_CALLS:
                yield f"{place}: calls {name}; draw pictures with figures.image_grid, which withholds those of people"


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


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
    folder = root / "results" / "published"
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        place = path.relative_to(root)
        if path.suffix not in PUBLISHED_KINDS:
            yield f"{place}: only {', '.join(sorted(PUBLISHED_KINDS))} files are published; remove it"
        elif path.suffix == ".csv":
            try:
                read_results(path.parent, path.stem)
            except (ValueError, FileNotFoundError) as error:
                yield str(error)
        elif path.suffix == ".svg" and has_pictures(path.read_text()) and not _generated(path):
            yield f"{place}: holds a picture, and its sidecar does not say that all data are generated"


def _generated(svg: Path) -> bool:
    try:
        sidecar = read_results(svg.parent, svg.stem).sidecar
        # sidecars of older runs say it by the licence of phantoms
        return not sidecar.get("people", sidecar["data_licence"] != "generated")
    except (ValueError, FileNotFoundError, KeyError):
        return False

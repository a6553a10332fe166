"""What must hold before anything is published: clean notebooks, rows with sidecars, and no picture of a person."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import nbformat

from medsynth.publish.fingerprint import code_of
from medsynth.publish.notebook import declared_parameters, read_notebook, tagged
from medsynth.publish.pictures import has_pictures, pictures_in
from medsynth.publish.plan import AREAS, chapter_sources
from medsynth.results import ROWS, Results, chapter_of, git, of_people, read_results
from medsynth.store.hashes import file_hash

# what puts pixels on a page without asking whose they are; figures.image_grid asks
PIXEL_NAMES = {
    "AxesImage", "Image", "contourf", "figimage", "fromarray", "imsave", "imshow", "matshow", "pcolor", "pcolorfast",
    "pcolormesh", "tripcolor",
}  # fmt: skip
PUBLISHED_KINDS = {".csv", ".json", ".svg", ".md"}
PAGES = ("notebooks", "book", "results")  # folders of text without a picture in it
MADE = {"_build", "__pycache__", ".ipynb_checkpoints"}  # folders in them of which git knows nothing


def problems(root: Path) -> list[str]:
    """Everything that stands in the way of publishing, one sentence each; empty if nothing does."""
    return [*_sources(root), *_committed(root), *_executed(root), *_published(root)]


def _sources(root: Path) -> Iterator[str]:
    for path in chapter_sources(root).values():
        place = path.relative_to(root)
        try:
            declared_parameters(path)
            code = code_of(path)
        except ValueError as error:
            yield str(error)
            continue
        notebook = read_notebook(path)
        cells = [c for c in notebook.cells if c.cell_type == "code"]
        with_output = [k for k, c in enumerate(cells, 1) if c.outputs or c.execution_count is not None]
        if with_output:
            yield f"{place}: code cells {with_output[:5]} hold outputs or counts; clear all outputs before committing"
        yield from (f"{place}: {cell} shows a picture; remove it" for cell in pictures_in(notebook))
        for node in ast.walk(code):
            if isinstance(node, ast.ClassDef):
                yield f"{place}: defines the class {node.name}; move it into the library"
        if names := sorted(PIXEL_NAMES.intersection(_named(code))):
            yield f"{place}: uses {', '.join(names)}; draw pictures with figures.image_grid, which withholds those of people"


def _named(code: ast.Module) -> Iterator[str]:
    """All that code names: in attributes, imports and texts too, from which what is called later may come."""
    for node in ast.walk(code):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name.rpartition(".")[2]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _committed(root: Path) -> Iterator[str]:
    """What git has, or would take, beside chapters and published runs: other notebooks, pages and what lies among them."""
    for path in _files(root):
        if path.suffix == ".ipynb" and not path.is_symlink():
            yield from _shown(path, root, lambda _: "; remove it")
        elif why := _no_text(path) or (path.suffix != ".py" and _pictured(path)):
            yield f"{path.relative_to(root)}: {why}"


def _files(root: Path) -> list[Path]:
    listed = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PAGES, "*.ipynb")
    if listed is None:
        found = [p for folder in PAGES for p in (root / folder).rglob("*") if not MADE.intersection(p.relative_to(root).parts)]
    else:
        found = [root / name for name in listed.split("\0") if name]
    files = {path for path in found if path.is_file() or path.is_symlink()} - set(chapter_sources(root).values())
    return sorted(path for path in files if not path.is_relative_to(root / "results" / "published"))


def _no_text(path: Path) -> str:
    """Why a file cannot be read as one that shows what it holds; "" if it can be."""
    if path.is_symlink():
        return "a link, of which nobody can say what it will show; put the file itself there"
    try:
        text = path.read_text("utf-8")
    except ValueError:
        text = "\0"
    return "a picture or something else that is no text; remove it" if "\0" in text else ""


def _pictured(path: Path) -> str:
    return "shows a picture; remove it" if has_pictures(path.read_text("utf-8")) else ""


def _executed(root: Path) -> Iterator[str]:
    """Chapters executed on somebody's data (and the book made of them) may not hold a picture of any kind."""
    for pattern in ("runs/*.ipynb", "*/chapters/*.ipynb", "*/arms/**/*.ipynb"):
        for path in sorted((root / "build").glob(pattern)):
            yield from _shown(path, root, _ran_on)


def _shown(path: Path, root: Path, against: Callable[[nbformat.NotebookNode], str]) -> Iterator[str]:
    """The cells of a notebook that show a picture, with what is `against` it; none where nothing is."""
    try:
        notebook = read_notebook(path)
    except ValueError as error:
        yield str(error).replace(f"{root}/", "")
        return
    if why := against(notebook):
        yield from (f"{path.relative_to(root)}: {cell} shows a picture{why}" for cell in pictures_in(notebook))


def _ran_on(notebook: nbformat.NotebookNode) -> str:
    """What speaks against a picture in an executed copy; "" where it ran on phantoms."""
    said = notebook.metadata.get("medsynth", {}).get("data")
    given: dict[str, object] = {}
    for cell in (c for c in notebook.cells if tagged(c, "parameters") or tagged(c, "injected-parameters")):
        with suppress(SyntaxError):
            for node in (n for n in ast.parse(cell.source).body if isinstance(n, (ast.Assign, ast.AnnAssign))):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                given[ast.unparse(target)] = getattr(node.value, "value", "unknown")
    if said or any(given.get(parameter) for parameter in AREAS.values()):
        return " in a chapter that ran on real data"
    return " and does not say that it ran on phantoms" if said is None and not given else ""


def _published(root: Path) -> Iterator[str]:
    for run in sorted((root / "results" / "published").glob("*")):
        yield from run_problems(run, root)


def run_problems(run: Path, root: Path) -> list[str]:
    """What is wrong with the files of one published run, each named from `root`; empty if nothing is."""
    files = sorted(p for p in run.rglob("*") if p.is_file() or p.is_symlink()) if run.is_dir() and not run.is_symlink() else [run]
    # of figures, the sidecar says whose data they show
    strange = {path: why for path in files if (why := _no_text(path) or (path.suffix != ".svg" and _pictured(path)))}
    files = [path for path in files if path not in strange]
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
    problems |= strange
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
    if has_pictures(svg.read_text("utf-8")) and (table is None or of_people(table.sidecar)):
        return "holds a picture, and its sidecar does not say that all data are generated"
    if table is None:
        return "no rows stand behind it"
    if table.sidecar.get("parameters", {}).get("svg_sha256") != file_hash(svg):
        return "not the figure that its sidecar was written with; run the chapter again"
    return ""

"""Numbers in prose: `{{row: RUN/TABLE; COLUMN=VALUE; ...}}` becomes one result row when the book is assembled.

RUN is a folder of results/published, or `trials/NAME` one of results/trials. A VALUE may hold the wildcards of `fnmatch`; an
empty one asks for a missing entry. `show=COLUMN` shows that column alone, without it the value stands with its interval and n.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import nbformat
import pandas as pd

from medsynth.publish.notebook import read_notebook
from medsynth.results import read_results, show_value

PLACEHOLDER = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)


def fill_page(page: Path, results: Path, name: str) -> None:
    """Fill a Markdown file, or the Markdown cells of a notebook, in place; `name` stands in errors."""
    if not PLACEHOLDER.search(page.read_text()):
        return
    if page.suffix == ".md":
        page.write_text(fill(page.read_text(), results, name))
        return
    notebook = read_notebook(page)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = fill(cell.source, results, name)
    nbformat.write(notebook, page)


def fill(text: str, results: Path, name: str) -> str:
    """The text with every placeholder replaced by its row; ValueError names page and placeholder if it fits none, or several."""

    def shown(found: re.Match[str]) -> str:
        try:
            return _shown(found[1], results)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"{name}: {' '.join(found[0].split())}: {error}") from error

    return PLACEHOLDER.sub(shown, text)


def _shown(placeholder: str, results: Path) -> str:
    kind, _, rest = placeholder.strip().partition(":")
    place, *conditions = (" ".join(part.split()) for part in rest.split(";"))
    if kind != "row" or "/" not in place or not all("=" in c for c in conditions):
        raise ValueError("not a placeholder; expected {{row: RUN/TABLE; COLUMN=VALUE; ...}}")
    wanted = dict(condition.split("=", 1) for condition in conditions)
    show = wanted.pop("show", "value")
    run, table = place.rsplit("/", 1)
    folder = results / run if run.startswith("trials/") else results / "published" / run
    row = _one(read_results(folder, table).rows, wanted)
    if show not in row or pd.isna(row[show]):
        raise ValueError(f"its row has no {show!r}; it has {', '.join(c for c in row.index if pd.notna(row[c]))}")
    if show == "value":
        return show_value(row["value"], row["low"], row["high"], row["n"])
    cell = row[show]
    return cell if isinstance(cell, str) else str(int(cell)) if cell == int(cell) else f"{cell:.3g}"


def _one(rows: pd.DataFrame, wanted: dict[str, str]) -> pd.Series:
    """The one row in which every wanted column has its value."""
    for column, value in wanted.items():
        if column not in rows:
            raise ValueError(f"the table has no column {column!r}; it has {', '.join(rows)}")
        fit = rows[[_is(cell, value) for cell in rows[column]]]
        if fit.empty:
            found = ", ".join(sorted({str(cell) for cell in rows[column]})[:8])
            raise ValueError(f"no row has {column}={value}; among those that fit so far there is {found}")
        rows = fit
    if len(rows) > 1:
        differ = [c for c in rows if c not in ("value", "low", "high") and rows[c].nunique(dropna=False) > 1]
        raise ValueError(f"{len(rows)} rows fit; they differ in {', '.join(differ) or 'their values alone'}: say which")
    return rows.iloc[0]


def _is(cell: object, wanted: str) -> bool:
    if pd.isna(cell) or cell == "":
        return wanted == ""
    if isinstance(cell, str):
        return fnmatchcase(cell, wanted)
    try:
        return float(cell) == float(wanted)
    except ValueError:
        return False

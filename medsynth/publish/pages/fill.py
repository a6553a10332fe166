"""Numbers in prose: placeholders that become result rows when the book is assembled.

    {{row: RUN/TABLE; COLUMN=VALUE; ...}}                        one row: its value with interval and n, or `show=COLUMN` of it;
                                                                 of several the one of `pick=lowest` or `highest` value
    {{table: RUN/TABLE; COLUMN=VALUE; ...; lines=COLUMN,...}}    a line for each row, or one column per value of `columns=COLUMN`

RUN is a folder of results/published, or `trials/NAME` one of results/trials. A VALUE may hold the wildcards of `fnmatch` and
several alternatives, `a|b`; an empty one asks for a missing entry.
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
PICKS = {"lowest": pd.Series.idxmin, "highest": pd.Series.idxmax}


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
    if kind not in ("row", "table") or "/" not in place or not all("=" in c for c in conditions):
        raise ValueError("not a placeholder; expected {{row: RUN/TABLE; COLUMN=VALUE; ...}}, or table: with lines=COLUMN,...")
    wanted = dict(condition.split("=", 1) for condition in conditions)
    show, lines, columns, pick = (wanted.pop(key, "") for key in ("show", "lines", "columns", "pick"))
    if pick not in ("", *PICKS) or (pick and kind != "row"):
        raise ValueError(f"pick={pick}: a {kind}; of rows pick the {' or '.join(PICKS)}")
    run, table = place.rsplit("/", 1)
    folder = results / run if run.startswith("trials/") else results / "published" / run
    rows = _matching(read_results(folder, table).rows, wanted)
    if kind == "table":
        return _table(rows, lines.split(","), columns, (show or "value").split(","))
    if pick:
        rows = rows.loc[[PICKS[pick](rows["value"])]]
    if len(rows) > 1:
        differ = [c for c in rows if c not in ("value", "low", "high") and rows[c].nunique(dropna=False) > 1]
        raise ValueError(f"{len(rows)} rows fit; they differ in {', '.join(differ) or 'their values alone'}: say which")
    return _cell(rows.iloc[0], show or "value")


def unbroken(value: str) -> str:
    """A shown value, which a line may break before its interval and its n, and not within them."""
    return re.sub(r"[\[(][^\])]*[\])]", lambda part: part[0].replace(" ", "\xa0"), value)


def _matching(rows: pd.DataFrame, wanted: dict[str, str]) -> pd.DataFrame:
    """The rows, at least one, in which every wanted column has one of its values."""
    for column, value in wanted.items():
        _require(rows, [column])
        fit = rows[[any(_is(cell, v.strip()) for v in value.split("|")) for cell in rows[column]]]
        if fit.empty:
            found = ", ".join(sorted({str(cell) for cell in rows[column]})[:8])
            raise ValueError(f"no row has {column}={value}; among those that fit so far there is {found}")
        rows = fit
    return rows


def _require(rows: pd.DataFrame, columns: list[str]) -> None:
    if missing := [c for c in columns if c not in rows]:
        raise ValueError(f"the table has no column {missing[0]!r}; it has {', '.join(rows)}")


def _is(cell: object, wanted: str) -> bool:
    if pd.isna(cell) or cell == "":
        return wanted == ""
    if isinstance(cell, str):
        return fnmatchcase(cell, wanted)
    try:
        return float(cell) == float(wanted)
    except ValueError:
        return False


def _cell(row: pd.Series, show: str) -> str:
    if show not in row or pd.isna(row[show]):
        raise ValueError(f"its row has no {show!r}; it has {', '.join(c for c in row.index if pd.notna(row[c]))}")
    if show == "value":
        # a table that says what its n counts also says the level of its intervals
        said = ("n_of", "level") if "n_of" in row else ()
        return unbroken(show_value(*(row[c] for c in ("value", "low", "high", "n", *said))))
    cell = row[show]
    return cell if isinstance(cell, str) else str(int(cell)) if cell == int(cell) else f"{cell:.3g}"


def _table(rows: pd.DataFrame, lines: list[str], columns: str, show: list[str]) -> str:
    """Markdown: `lines` name a line; beside them stand the columns `show`, or one column per value of `columns`."""
    keys = [*lines, *([columns] if columns else [])]
    _require(rows, keys)
    if rows.duplicated(keys).any():
        raise ValueError(f"several rows fit one place of the table; {', '.join(keys)} do not tell them apart")
    shown = rows.assign(**{c: [_cell(row, c) for _, row in rows.iterrows()] for c in {*keys, *show}})
    if columns:
        shown = shown.pivot_table(index=lines, columns=columns, values=show[0], aggfunc="first", sort=False).fillna("")
        shown = shown.reset_index().rename_axis(columns=None)
    else:
        shown = shown[[*keys, *show]]
        if "value" in show and rows["metric"].nunique() == 1:
            unit = rows["unit"].iloc[0]
            shown = shown.rename(columns={"value": rows["metric"].iloc[0] + f" ({unit})" * bool(unit)})
    body = [[str(v).replace("|", r"\|") for v in line] for line in [shown.columns, *shown.itertuples(index=False)]]
    return "\n".join("| " + " | ".join(line) + " |" for line in (body[0], ["---"] * len(body[0]), *body[1:]))

"""May I share this? A table of verdicts, ways to share down and questions across, and below it every number behind them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from medsynth.data.npz import KNOWN
from medsynth.publish.pages.cells import CELLS, METHODS, QUESTIONS, Cell
from medsynth.publish.pages.fill import unbroken
from medsynth.results import YOURS, both, own_tables, show_value

MARK = "<!-- may I share this -->"  # where book/share.md receives the table
NOTHING = "Nothing has been measured yet"
# verdicts: where no row counts, where rows disagree, and where some say nothing
UNKNOWN, VARIES, PARTLY = "Not measured", "It varies", "Partly shown"
NOT_SHOWN = "not shown"
# how the table says verdicts of equivalence; an experiment that could not have seen a difference shows nothing
WORDS = {"equivalent": "within half a decibel", "experiment not sensitive": NOT_SHOWN}
KINDS_OF_IMAGE = {"xray": "X-ray", "ct": "CT", "mr": "MR", "pet": "PET", "heart": "heart"}
_STACKS = {"heart": "mr"}  # phantoms that are called by what they show -> what people's are


def share_section(published: Path, own: Path, cells: Sequence[Cell] = CELLS) -> str:
    """Markdown of the table, a verdict and one number for each place, and below it, folded, every number of every run.

    Real data come before phantoms, and of several rows the worst is shown. published, own: folders of folders of tables. Raises
    ValueError for a table that is not its sidecar's, FileNotFoundError for one without a sidecar.
    """
    places = own_tables(own)
    # a chapter may not have run, or be yet to be written
    known = {*places, *(path.stem for path in published.glob("*/*.csv"))} & {name for cell in cells for name in cell.tables}
    tables = {name: both(places.get(name, own), name, published) for name in known}
    lines = [":::{list-table}", ":header-rows: 1", ":stub-columns: 1", ":class: share", ""]
    lines += ["* - Way to share", *(f"  - {question}" for question in QUESTIONS)]
    details = []
    for method in METHODS:
        lines.append(f"* - {method}")
        details += ["", f"::::{{dropdown}} {method}: every number"]
        for question in QUESTIONS:
            there = [c for c in cells if (c.method, c.question) == (method, question)]
            lines.append("  - " + _verdict(there, tables))
            answers = [_answer(c, tables) for c in there] or [f"{NOTHING}."]
            details += ["", f"**{question}**", "", "\n\n".join(answers)]
        details += ["", "::::"]
    return "\n".join([*lines, ":::", *details])


def _verdict(cells: Sequence[Cell], tables: Mapping[str, pd.DataFrame]) -> str:
    """The verdict of a place, and its worst row on real data, or else on phantoms, with a link to the rows behind it."""
    heads = [c for c in cells if c.verdict]
    if fixed := next((c for c in heads if not c.tables), None):
        return f"**{fixed.verdict}**"
    found = [(c, name, row) for c in heads for name in c.tables if name in tables for row in matching(tables[name], c)]
    counted = _counted(found)
    if not counted:
        return f"**{UNKNOWN}**"
    words = {_word(c, row) for c, _, row in counted}
    lowest = heads[0].worst == "lowest"
    cell, name, row = (min if lowest else max)(counted, key=lambda entry: _end(entry[2], "low" if lowest else "high"))
    word = words.pop() if len(words) == 1 else PARTLY if NOT_SHOWN in words and len(words) == 2 else VARIES
    value = unbroken(show_value(*(row[c] for c in ("value", "low", "high", "n", "n_of", "level"))))
    images = images_of(str(row["dataset"]))
    # what this run alone has measured is on no page of published rows
    shown = f"{{ref}}`{images} <rows-{name}>`" if set(tables[name]["source"]) != {YOURS} else plain(images)
    return f"**{word[0].upper()}{word[1:]}**<br>{cell.brief}: {value}, {', '.join([shown, *_beside(row, cell)])}"


def _counted(found: list[tuple[Cell, str, dict[str, object]]]) -> list[tuple[Cell, str, dict[str, object]]]:
    """Of each kind of image the rows on people, or else those on phantoms; of phantoms, published runs before the reader's."""
    people = {_kind(row) for _, _, row in found if not _phantom(row)}
    published = {(name, row["dataset"]) for _, name, row in found if row["source"] != YOURS}
    return [
        (c, name, row)
        for c, name, row in found
        if not _phantom(row) or (_kind(row) not in people and (row["source"] != YOURS or (name, row["dataset"]) not in published))
    ]


def _kind(row: Mapping[str, object]) -> str:
    """The modality of a row's images; files that nobody knows are X-rays, unless the row names a task of another modality."""
    name, task = str(row["dataset"]), row.get("task")
    if name in KNOWN:
        return KNOWN[name].modality
    if _phantom(row):
        return _STACKS.get(kind := name.removeprefix("phantom-"), kind)
    return task.partition("-")[0] if isinstance(task, str) else "xray"


def _end(row: Mapping[str, object], end: str) -> tuple[float, float]:
    """An end of a row's interval, or where there is none its value; the value tells equal ends apart."""
    return (row["value"] if pd.isna(row[end]) else row[end]), row["value"]


def _word(cell: Cell, row: Mapping[str, object]) -> str:
    said = cell.below[1] if cell.below and row["value"] < cell.below[0] else cell.verdict.format(**row)
    return WORDS.get(said, said)


def images_of(dataset: str) -> str:
    """A data set in words: "CT of people", "MR phantoms"; of a file that nobody knows, its name."""
    if dataset in KNOWN:
        return f"{KINDS_OF_IMAGE[KNOWN[dataset].modality]} of people"
    kind = KINDS_OF_IMAGE.get(dataset.removeprefix("phantom-"))
    return f"{kind} phantoms" if kind and _phantom({"dataset": dataset}) else dataset


def _phantom(row: Mapping[str, object]) -> bool:
    return str(row["dataset"]).startswith("phantom")


def _answer(cell: Cell, tables: Mapping[str, pd.DataFrame]) -> str:
    if not cell.tables:
        return cell.says
    rows = [row for name in cell.tables if name in tables for row in matching(tables[name], cell)]
    rows.sort(key=_phantom)
    # what is proved holds before anybody has measured
    kind = cell.kind.capitalize() if rows or cell.kind == "proved" else NOTHING
    return f"*{kind}*: {cell.says}." + "".join(f"\n- {_line(row, cell)}" for row in rows)


def matching(table: pd.DataFrame, cell: Cell) -> list[dict[str, object]]:
    """The rows of a table that a cell shows, in the table's order; `picked` says among how many, "" where all are shown."""
    if not set(cell.where) <= set(table):
        return []
    chosen = table[table.value.notna()]
    for column, wanted in cell.where.items():
        chosen = chosen[chosen[column] == wanted]
    if not cell.pick:
        return chosen.assign(picked="").to_dict("records")
    return [_picked(rows, cell) for _, rows in chosen.groupby(["source", "dataset"], sort=False)]


def _picked(rows: pd.DataFrame, cell: Cell) -> dict[str, object]:
    """The lowest or highest of some rows; of rows that are all equal none is, and so none is named."""
    row = rows.loc[rows.value.idxmin() if cell.pick == "lowest" else rows.value.idxmax()].to_dict()
    if rows.value.nunique() > 1:
        return row | {"picked": f"{cell.pick} of {len(rows)}"}
    several = cell.beside in rows and rows[cell.beside].nunique() > 1
    return row | ({"picked": f"all {len(rows)}", cell.beside: None} if several else {"picked": ""})


def _line(row: Mapping[str, object], cell: Cell) -> str:
    parts = [show_value(*(row[c] for c in ("value", "low", "high", "n", "n_of", "level")))]
    # of several networks, the one of this number
    trained = "/".join(row[c] for c in ("task", "net") if isinstance(row.get(c), str))
    named = (images_of(str(row["dataset"])), trained, row.get(cell.beside))
    parts += [plain(text) for text in named if isinstance(text, str) and text]
    parts += _beside(row, cell)
    parts += [str(row["picked"])] if row["picked"] else []
    return f"{', '.join(parts)} ({plain(row['source'])})"


def _beside(row: Mapping[str, object], cell: Cell) -> list[str]:
    """The number that stands beside the value, which says nothing without its name."""
    beside = row.get(cell.beside)
    number = isinstance(beside, int | float) and not math.isnan(beside)
    return [f"{plain(cell.beside.replace('_', ' '))} {beside:.3g}"] if number else []


def plain(text: object) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|$~^])", r"\\\1", str(text))

"""Published results by question, the newest first: tables and figures with titles, and what to see in them."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd

from medsynth.publish.pages.answers import QUESTIONS, images_of, plain
from medsynth.publish.pages.entries import GROUPS, entry
from medsynth.results import (
    FIGURE,
    ROWS,
    YOURS,
    Results,
    newest_first,
    own_tables,
    published_names,
    read_results,
    side_by_side,
    table_names,
    together,
)

MARK = "<!-- published results -->"  # where book/published.md receives the tables and figures
LONG = 12  # rows beyond which a table is folded away


def published_section(published: Path, own: Path, target: Path) -> str:
    """Markdown of all that is published, by question: values beside the reader's own, figures, and where they come from.

    Within a question, and of a table's runs, the newest stands first. published, own: folders of folders of
    tables; figures and rows that the text shows are copied into `target`/rows. Raises ValueError for a table
    that is not its sidecar's, or where two chapters wrote one name.
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
    known = {
        name: newest_first({source: read_results(place, name) for source, place in found.items()})
        for name, found in places.items()
    }
    text = []
    for question in GROUPS:
        # a figure follows its table: of one day, names decide
        names = sorted(n for n in known if entry(n).question == question)
        names.sort(key=lambda n: _day(known[n]), reverse=True)
        if names or question in QUESTIONS:
            text.append(f"## {question}")
            text += [] if names else ["Nothing has been published yet."]
            sections = (_section(name, known[name], places[name], target / "rows") for name in names)
            text += [part for section in sections for part in section]
    return "\n\n".join(text)


def _day(found: dict[str, Results]) -> str:
    """Of the newest published run."""
    return max(one.sidecar["created"][:10] for source, one in found.items() if source != YOURS)


def _section(name: str, known: dict[str, Results], places: dict[str, Path], rows: Path) -> list[str]:
    about = entry(name)
    text = [f"(rows-{name})=\n### {about.title}", f"`{name}`"]
    if tables := {source: found for source, found in known.items() if found.kind == ROWS}:
        text[-1] = f"{text[-1]} {about.see}".strip()
        text.append(_table(side_by_side(together(tables)), tables))
    facts = []
    for source, found in known.items():
        place, copied = places[source], rows / source.replace(" ", "-")
        copied.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place / f"{name}.csv", copied / f"{name}.csv")
        if found.kind == FIGURE:
            shutil.copyfile(place / f"{name}.svg", copied / f"{name}.svg")
            # what to see was written of what is published: the next run may show something else
            caption = f"{about.title}: {source}, {_data(found)}. {about.see if source != YOURS else ''}".strip()
            text.append(f"```{{figure}} rows/{copied.name}/{name}.svg\n{caption}\n```")
        facts.append(f"- {_facts(source, found)} {{download}}`Rows <rows/{copied.name}/{name}.csv>`")
    return [*text, ":::{dropdown} Where it comes from", *facts, ":::"]


def _table(table: pd.DataFrame, sources: Collection[str]) -> str:
    """The table as HTML; what all its lines share stands above it, once."""
    shown = table.loc[:, [c for c in table if table[c].astype(str).str.strip().any()]]
    shared = [c for c in shown if c not in sources and len(shown) > 1 and shown[c].nunique() == 1]
    above = "".join(f", {c.replace('_', ' ')} *{plain(shown[c].iloc[0])}*" for c in shared)
    shown = shown.drop(columns=shared)
    # as HTML: as Markdown the page's four thousand rows took longer to parse than the rest of the book
    with pd.option_context("display.max_colwidth", None):
        text = f"```{{raw}} html\n{shown.to_html(index=False, border=0, justify='left', classes='table')}\n```"
    said = f"In every row{above}.\n\n".replace("row, ", "row: ") if above else ""
    return said + (text if len(table) <= LONG else f":::{{dropdown}} {len(table)} rows\n{text}\n:::")


def _data(results: Results) -> str:
    """Whose images a figure is about, in a few words."""
    if "dataset" in results.rows and results.sidecar["data_licence"] != "generated":
        return ", ".join(dict.fromkeys(plain(images_of(name)) for name in results.rows["dataset"]))
    licence = results.sidecar["data_licence"]
    return "phantoms" if licence == "generated" else f"data {licence}"


def _facts(source: str, results: Results) -> str:
    facts: dict[str, Any] = results.sidecar
    commit = f"commit `{facts['commit'][:10]}`" if facts["commit"] else "no commit"
    commit += " with local changes" if facts["dirty"] else ""
    seeds = ", ".join(map(str, facts["seeds"])) or "none"
    made = f"{facts['created'][:10]}, {commit}, {facts['device']}, seeds {seeds}, data {facts['data_licence']}"
    return f"**{source}**: {made}. {facts['notes']}".strip()

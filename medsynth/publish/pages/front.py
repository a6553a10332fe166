"""Figures of the first page, small enough to stand side by side; prose and table are in book/intro.md."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from medsynth import figures
from medsynth.results import own_tables, read_results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES = "quickstart-samples"  # of the run that builds the book: no pictures are published elsewhere
PSNR = ("ct-tcia-full", "restoration", {"metric": "PSNR", "task": "ct-low-dose", "net": "edsr"})
# training sets and what needs none, as a reader calls them
ARMS = {"degraded": "as scanned", "TV": "filter", "real": "real", "synthetic": "synthetic", "gated": "gated"}
SIZE = (3.2, 2.6)  # inches: a third of a page


def draw(published: Path, own: Path, target: Path) -> None:
    """Put front/samples.svg and front/psnr.svg below `target`; one that nothing was measured for says so."""
    front = target / "front"
    front.mkdir(parents=True)
    place = own_tables(own).get(SAMPLES)
    if place is None:
        _save(_empty("drawn when the quickstart has run"), front / "samples.svg")
    else:
        read_results(place, SAMPLES)
        shutil.copyfile(place / f"{SAMPLES}.svg", front / "samples.svg")
    run, table, where = PSNR
    rows = read_results(published / run, table).rows if (published / run / f"{table}.csv").exists() else None
    _save(_empty("not measured") if rows is None else _psnr(rows, where), front / "psnr.svg")


def _psnr(rows: pd.DataFrame, where: dict[str, str]) -> Figure:
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    rows = rows.set_index("arm").loc[list(ARMS)].rename(index=ARMS).reset_index()
    figure, ax = figures.new_figure(size=SIZE)
    figures.estimates_plot(ax, rows, label="PSNR (dB), 95 %")
    return figure


def _empty(says: str) -> Figure:
    figure, ax = figures.new_figure(size=SIZE)
    ax.set_axis_off()
    ax.text(0.5, 0.5, says, ha="center", va="center")
    return figure


def _save(figure: Figure, path: Path) -> None:
    import matplotlib.pyplot as plt

    with plt.rc_context(figures.STYLE):
        figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)

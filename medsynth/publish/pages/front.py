"""Figures of the first page, small enough to stand side by side; prose and table are in book/intro.md."""

from __future__ import annotations

import math
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
EPSILON = ("phantoms-full", "dp", {"metric": "FID", "arm": "pre-trained"})
# training sets and what needs none, as a reader calls them
ARMS = {"degraded": "as scanned", "TV": "filter", "real": "real", "synthetic": "synthetic", "gated": "gated"}
SIZE = (3.2, 2.6)  # inches: a third of a page


def draw(published: Path, own: Path, target: Path) -> None:
    """Put front/samples.svg, front/psnr.svg and front/epsilon.svg below `target`; one that nothing was measured for says so."""
    front = target / "front"
    front.mkdir(parents=True)
    place = own_tables(own).get(SAMPLES)
    if place is None:
        _save(_empty("drawn when the quickstart has run"), front / "samples.svg")
    else:
        read_results(place, SAMPLES)
        shutil.copyfile(place / f"{SAMPLES}.svg", front / "samples.svg")
    for name, (run, table, where), drawn in (("psnr", PSNR, _psnr), ("epsilon", EPSILON, _epsilon)):
        there = (published / run / f"{table}.csv").exists()
        figure = drawn(read_results(published / run, table).rows, where) if there else _empty("not measured")
        _save(figure, front / f"{name}.svg")


def _chosen(rows: pd.DataFrame, where: dict[str, str]) -> pd.DataFrame:
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    return rows


def _psnr(rows: pd.DataFrame, where: dict[str, str]) -> Figure:
    rows = _chosen(rows, where)
    rows = rows.set_index("arm").loc[list(ARMS)].rename(index=ARMS).reset_index()
    figure, ax = figures.new_figure(size=SIZE)
    figures.estimates_plot(ax, rows, label="PSNR (dB), 95 %")
    return figure


def _epsilon(rows: pd.DataFrame, where: dict[str, str]) -> Figure:
    """Over seeds as a chapter draws them: the mean, the least low and the largest high."""
    floor = next(_chosen(rows, where | {"metric": f"{where['metric']} floor"}).itertuples(), None)
    over_seeds = _chosen(rows, where).groupby(["arm", "epsilon"], sort=True).agg({"value": "mean", "low": "min", "high": "max"})
    points = list(over_seeds.reset_index().itertuples())
    places = {point.epsilon: "not private" if math.isinf(point.epsilon) else f"{point.epsilon:g}" for point in points}
    figure, ax = figures.new_figure(size=SIZE)
    figures.steps_plot(ax, points, places, by=lambda point: point.epsilon, y_label=where["metric"], floor=floor)
    ax.set_xlabel("epsilon")
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

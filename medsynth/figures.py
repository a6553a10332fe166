"""Figures in one house style, each saved with the rows it shows; pictures of people are withheld unless they are generated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from medsynth.imageset import ImageSet
from medsynth.results import Row, write_figure_data
from medsynth.store.hashes import file_hash
from medsynth.store.runs import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008): told apart by readers with any of the common colour vision deficiencies
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = "os^Dv<>"

STYLE: dict[str, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "image.cmap": "gray",
    "image.interpolation": "nearest",
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    # element ids of an SVG come from this salt instead of a random number: the same figure is the same file
    "svg.hashsalt": "medsynth",
    "svg.fonttype": "path",
}


def use_style() -> None:
    """Put the house style on every figure of a notebook, displayed as SVG, in which a picture can be told from a plot."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(STYLE | {"axes.prop_cycle": cycler(color=COLOURS)})
    if "inline" in mpl.get_backend():
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg", metadata={"Date": None})


@contextmanager
def _styled() -> Iterator[Any]:
    import matplotlib as mpl
    import matplotlib.pyplot as plt
    from cycler import cycler

    with mpl.rc_context(STYLE | {"axes.prop_cycle": cycler(color=COLOURS)}):
        yield plt


def new_figure(rows: int = 1, columns: int = 1, *, size: tuple[float, float] = (6.4, 3.6), **options: Any) -> tuple[Figure, Any]:
    """`plt.subplots` in the house style; size (width, height) in inches. Returns (figure, axes)."""
    with _styled() as plt:
        return plt.subplots(rows, columns, figsize=size, **options)


def save_figure(fig: Figure, folder: str | Path, name: str, rows: Iterable[Row] | pd.DataFrame, **sidecar: Any) -> Path:
    """Write `name.svg`, `name.png`, the rows shown as `name.csv` and their sidecar `name.json`; returns the path of the svg.

    sidecar: as of `results.write_results`. The same figure gives the same bytes on one machine.
    """
    folder = Path(folder)
    options: dict[str, dict[str, Any]] = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
    with _styled():
        # constrained layout moves by thousandths of a point at every drawing: settle it once
        fig.draw_without_rendering()
        fig.set_layout_engine("none")
        for ending, metadata in options.items():
            with atomic_path(folder / f"{name}.{ending}") as temporary:
                fig.savefig(temporary, format=ending, metadata=metadata)
    hashes = {f"{ending}_sha256": file_hash(folder / f"{name}.{ending}") for ending in options}
    write_figure_data(folder, name, rows, **(sidecar | {"parameters": {**sidecar.get("parameters", {}), **hashes}}))
    return folder / f"{name}.svg"


def may_show(*sets: ImageSet) -> bool:
    """Whether pictures of these sets may be shown in what is published: only if no person was scanned for any of them."""
    return not any(images.people for images in sets)


def image_rows(lines: Mapping[str, ImageSet], *, columns: int = 8, title: str = "", width: float = 7.5) -> Figure:
    """A grid with the first images of each set in a line of its own, named by its key; a set of fewer leaves places empty,
    and one of none its line.

    All are drawn over the first set's range, and all are withheld if a person was scanned for any of them (`image_grid`).
    """
    lines = {label: images for label, images in lines.items() if len(images)}
    first = next(iter(lines.values()))
    empty = np.full((columns, *first.images.shape[1:]), np.nan, np.float32)
    pixels = [np.concatenate([images.images[:columns], empty])[:columns] for images in lines.values()]
    whose = next((images for images in lines.values() if images.people), first)
    return image_grid(
        np.concatenate(pixels), rows=len(lines), columns=columns, of=whose, row_labels=list(lines), limits=first.range,
        title=title, width=width,
    )  # fmt: skip


def image_grid(
    images: ImageSet | np.ndarray,
    *,
    rows: int = 2,
    columns: int = 8,
    of: ImageSet | None = None,
    titles: Sequence[str] = (),
    row_labels: Sequence[str] = (),
    title: str = "",
    limits: tuple[float, float] | None = None,
    channel: int = 0,
    width: float = 7.5,
) -> Figure:
    """A grid of the first rows * columns images; volumes (n, c, d, h, w) show their middle slice.

    An ImageSet is drawn over its declared range; an array (n, c, *spatial) or (n, h, w) needs the set `of` which it was computed.
    If a person was scanned for that set, the grid is drawn empty and says why: pictures of people, and of models trained on them,
    stay out of notebooks and books. width: inches.
    """
    pixels, whose, limits = _pixels(images, of, limits, channel)
    shown = may_show(whose)
    height, breadth = pixels.shape[1:]
    with _styled() as plt:
        cell = width / columns
        room = 0.22 * bool(titles) + 0.35 * bool(title) / rows
        fig, axes = plt.subplots(rows, columns, figsize=(width, rows * (cell * height / breadth + room)), squeeze=False)
        for k, ax in enumerate(axes.flat):
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
            ax.spines[:].set_visible(False)
            if shown and k < len(pixels):
                ax.imshow(pixels[k], vmin=limits[0], vmax=limits[1])
            elif k < len(pixels):
                ax.set_facecolor("#e6e6e6")
                ax.set_box_aspect(height / breadth)
            if shown and k < len(titles):
                ax.set_title(titles[k], fontsize=9)
            if k % columns == 0 and k // columns < len(row_labels):
                # upright it would be longer than its picture
                ax.set_ylabel(row_labels[k // columns], rotation=0, ha="right", va="center")
        if not shown:
            fig.text(0.5, 0.5, f"pictures withheld: images of people\n(licence: {whose.data_licence})", ha="center", va="center")
        if title:
            fig.suptitle(title)
        return fig


def _pixels(
    images: ImageSet | np.ndarray, of: ImageSet | None, limits: tuple[float, float] | None, channel: int
) -> tuple[np.ndarray, ImageSet, tuple[float, float]]:
    if isinstance(images, ImageSet):
        if of is not None:
            raise ValueError(f"{images.name}: an ImageSet says itself whose images it holds; leave out `of`")
        of, limits, array = images, limits or images.range, images.images
    else:
        if of is None:
            raise ValueError("an array does not say whose images it shows; pass `of`, the set that it comes from")
        array = np.asarray(images)
    if array.ndim == 5:
        array = array[:, :, array.shape[2] // 2]
    if array.ndim == 4:
        array = array[:, channel]
    if array.ndim != 3 or not len(array):
        raise ValueError(f"images have shape {array.shape}; expected at least one of (n, c, *spatial) or (n, h, w)")
    return array, of, limits or (float(array.min()), float(array.max()))


def estimates_plot(
    ax: Axes,
    table: Iterable[Row] | pd.DataFrame,
    *,
    label: str,
    floor: Mapping[str, Any] | Row | None = None,
    log: bool = False,
    by: str = "arm",
) -> Axes:
    """Points with intervals, one line per arm (top to bottom), and the floor as a dashed line with its interval as a band.

    table: columns arm, value, low, high; label: the x axis, with unit; floor: anything with value, low, high; by: the column
    whose values have a colour and a marker each.
    """
    rows = _rows(table)
    kinds = list(dict.fromkeys(row[by] for row in rows))
    for k, row in enumerate(rows):
        kind = kinds.index(row[by])
        colour = COLOURS[kind % len(COLOURS)]
        ax.plot(row["value"], k, MARKERS[kind % len(MARKERS)], color=colour)
        if np.isfinite([row["low"], row["high"]]).all():
            ax.plot([row["low"], row["high"]], [k, k], color=colour)
    if floor is not None:
        _floor_line(ax, floor)
    ax.set_yticks(range(len(rows)), [row["arm"] for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(False, axis="y")
    ax.set_xlabel(label)
    if log:
        ax.set_xscale("log")
    return ax


def _floor_line(ax: Axes, floor: Mapping[str, Any] | Row) -> None:
    value, low, high = ((floor[k] if isinstance(floor, Mapping) else getattr(floor, k)) for k in ("value", "low", "high"))
    ax.axvline(value, color="#555555", linestyle="--", linewidth=1.2, label="real against real (floor)")
    if np.isfinite([low, high]).all():
        ax.axvspan(low, high, color="#999999", alpha=0.25, linewidth=0)
    ax.legend(loc="best", frameon=False)


def curve(
    ax: Axes, table: pd.DataFrame, *, x: str, x_label: str, y_label: str, by: str = "arm", kinds: Sequence[Any] = ()
) -> Axes:
    """One line per value of column `by`, `value` over column `x`, with the band from low to high where there is one.

    kinds: all values that `by` has in the figure, where another panel has more: each keeps its colour.
    """
    kinds = list(kinds or table[by].unique())
    for name, part in table.groupby(by, sort=False):
        k, part = kinds.index(name), part.sort_values(x)
        colour = COLOURS[k % len(COLOURS)]
        ax.plot(
            part[x], part["value"], marker=MARKERS[k % len(MARKERS)] if len(part) <= 30 else None, color=colour, label=str(name)
        )
        if {"low", "high"} <= set(part) and part[["low", "high"]].notna().all(axis=None):
            ax.fill_between(part[x], part["low"], part["high"], color=colour, alpha=0.2, linewidth=0)
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    if len(kinds) > 1:
        ax.legend(frameon=False)
    return ax


def steps_plot(
    ax: Axes, rows: Sequence[Row], places: Mapping[Any, str], *, by: Callable[[Row], Any], y_label: str, floor: Row | None = None
) -> Axes:
    """Points with intervals at named places along x, a line for each arm, and the floor as a dashed line with a band.

    places: what `by` says of a row -> its label, from left to right. The legend is left to the figure, which may have more axes.
    """
    at = {place: k for k, place in enumerate(places)}
    kinds = list(dict.fromkeys(row.arm for row in rows))
    for k, arm in enumerate(kinds):
        own = sorted((row for row in rows if row.arm == arm), key=lambda row: at[by(row)])
        # lines beside each other, so that intervals do not hide one another
        x = [at[by(row)] + 0.08 * (k - (len(kinds) - 1) / 2) for row in own]
        colour = COLOURS[k % len(COLOURS)]
        ax.plot(x, [row.value for row in own], marker=MARKERS[k % len(MARKERS)], color=colour, label=arm)
        ax.vlines(x, [row.low for row in own], [row.high for row in own], color=colour)
    if floor is not None:
        ax.axhline(floor.value, color="#555555", linestyle="--", linewidth=1.2, label="real against real")
        ax.axhspan(floor.low, floor.high, color="#999999", alpha=0.25, linewidth=0)
    # words stand below each other: panels are narrow, and the last label would run into the one before
    ax.set_xticks(range(len(at)), [label.replace(" ", "\n") for label in places.values()])
    ax.set(xlim=(-0.5, len(at) - 0.5), ylabel=y_label)
    return ax


def curve_panels(
    table: pd.DataFrame, panel: str, *, rows: int, size: tuple[float, float], x: str, x_label: str, y_label: str, by: str = "arm"
) -> tuple[Figure, list[Axes]]:
    """A panel in so many rows for each value of column `panel`, which is its title, with a `curve` of its part."""
    parts = list(table.groupby(panel, sort=False))
    figure, axes = new_figure(rows, -(-len(parts) // rows), size=size, layout="constrained", squeeze=False)
    for ax, (title, part) in zip(axes.flat, parts, strict=False):
        curve(ax, part, x=x, x_label=x_label, y_label=y_label, by=by, kinds=list(table[by].unique())).set_title(str(title))
    for ax in axes.flat[len(parts) :]:
        ax.remove()
    return figure, list(axes.flat[: len(parts)])


def scatter_panels(groups: Mapping[str, pd.DataFrame], *, across: int, x: str, y: str, unit: str) -> Figure:
    """Column y over column x, a panel for each group, beside the line on which both agree."""
    lines = -(-len(groups) // across)
    figure, axes = new_figure(lines, across, size=(7.5, 0.4 + 1.8 * lines), layout="constrained", squeeze=False)
    most = max(float(np.nanmax(points[[x, y]])) for points in groups.values()) * 1.05
    for ax, (title, points) in zip(axes.flat, groups.items(), strict=False):
        ax.scatter(points[x], points[y], s=6, alpha=0.5, color=COLOURS[0], linewidth=0)
        ax.plot([0, most], [0, most], color="#555555", linestyle="--", linewidth=0.8)
        ax.set(title=title, xlim=(0, most), ylim=(0, most), aspect="equal")
    for ax in axes.flat[len(groups) :]:
        ax.remove()
    figure.supxlabel(f"{x} ({unit})")
    figure.supylabel(f"{y} ({unit})")
    return figure


def _rows(table: Iterable[Row] | pd.DataFrame) -> list[dict[str, Any]]:
    if isinstance(table, pd.DataFrame):
        return table.to_dict("records")
    return [{"arm": r.arm, "value": r.value, "low": r.low, "high": r.high} for r in table]

"""What every notebook repeats: style, profile, sets, ledger, seeds; rows with keys; tables and plots that draw and save."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from medsynth import figures
from medsynth.data.hearts import Hearts, hearts_of
from medsynth.data.sources import Sources, private_and_test
from medsynth.imageset import ImageSet
from medsynth.language.words import did_you_mean
from medsynth.ledger import Ledger
from medsynth.models.weights import denoiser_kind, shipped_hash, weights_folder
from medsynth.results import COLUMNS, Estimate, Row, Scalar, write_results
from medsynth.settings.config import ThoraxConfig
from medsynth.settings.profile import load_profile, project_root
from medsynth.store.hashes import file_hash

if TYPE_CHECKING:
    from medsynth.diffusion.generator import Generator

WITHHELD = "left out: it would say something of people"


class Chapter:
    """One chapter in one run: `name`, its `settings`, `seed` and `seeds`, its `ledger`, and the `folder` of its results.

    A row has a key, so that a cell that is run again replaces its rows and doubles none. Every set and every shipped weight that
    passes through is noted, and stands in the sidecars. Whether something may be shown is decided here alone: whatever a person
    was scanned for is withheld.
    """

    def __init__(self, name: str, profile: str, *, seed: int = 0, out: str = "") -> None:
        figures.use_style()
        self.name, self.settings, self.seed = name, load_profile(profile), seed
        self.seeds = [seed + s for s in self.settings.seeds]
        self.folder = Path(out or project_root() / "build" / self.settings.name)
        self.ledger = Ledger()
        self._rows: dict[tuple[Scalar, ...], tuple[str, Row]] = {}
        self._sets: dict[tuple[str, str], ImageSet] = {}
        self._weights: set[tuple[str, str]] = set()
        self._parameters: dict[str, Any] = {"profile": self.settings.name}

    def sets(
        self, data: str = "", modality: str = "xray", *, sizes: ThoraxConfig | None = None, stage: str = "measure",
        output: str = "result rows",
    ) -> Sources:  # fmt: skip
        """Private images and held-out patients of a modality: phantoms, or those of the file `data`; noted, and in the ledger.

        The private set is declared; that the held-out one will be measured against leaves a line.
        """
        sources = private_and_test(sizes or self.settings.thorax, data, modality, self.seed)
        self._noted({f"private {modality}": sources.private, f"test {modality}": sources.test}, stage, output)
        return sources

    def hearts(self, data: str = "", *, stage: str = "measure", output: str = "result rows") -> Hearts:
        """As `sets`, of stacks of hearts; volumes that the labels of a file say stand among their attributes."""
        from medsynth.evaluation.hearts.annotated import labels_of, with_volumes

        hearts = hearts_of(self.settings.privacy, data, self.seed)
        hearts = Hearts(*(with_volumes(part, labels_of(data, part)) for part in hearts))
        self._noted({"private hearts": hearts.private, "asked hearts": hearts.asked, "test hearts": hearts.test}, stage, output)
        return hearts

    def _noted(self, sets: Mapping[str, ImageSet], stage: str, output: str) -> None:
        """The first is private, and declared; that the others will be measured against leaves a line each."""
        first, *others = sets.values()
        self.ledger.declare(first)
        for images in others:
            self.ledger.read(images, stage=stage, output=output)
        self.note(**sets)

    def generator(self, private: ImageSet, *, seed: int | None = None, table: str = "") -> Generator:
        """A generator at the settings, trained on these images; found again if trained before. Its weights are noted."""
        # torch takes seconds to import, and not every chapter draws
        from medsynth.diffusion.generator import Generator

        self.note("autoencoder", "refiner", f"denoiser_{denoiser_kind(private)}", table=table)
        of = self.settings
        sizes = {"denoiser": of.denoiser, "diffusion": of.diffusion, "sampling": of.sampling}
        return Generator.train(private, **sizes, ledger=self.ledger, seed=self.seed if seed is None else seed)

    def note(self, *weights: str, table: str = "", **sets: ImageSet) -> None:
        """Remember what numbers rest on: shipped weights by name, sets under the name that the sidecar gives them.

        weights: also "thresholds". table: the one whose numbers they are; by default those of all tables.
        """
        self._weights |= {(table, name) for name in weights}
        self._sets |= {(table, key.replace("_", " ")): images for key, images in sets.items()}

    def read(self, sets: Mapping[str, ImageSet], *weights: str, stage: str, table: str = "") -> None:
        """Note what result rows rest on, and leave a line in the ledger for each set that is not public."""
        for images in sets.values():
            self.ledger.read(images, stage=stage, output="result rows")
        self.note(*weights, table=table, **sets)

    def parameters(self, **values: Any) -> None:
        """Remember what decided the numbers beside the profile."""
        self._parameters |= values

    @property
    def people(self) -> bool:
        """Whether a person was scanned for any of the sets."""
        return any(images.people for images in self._sets.values())

    def sidecar(self, table: str = "") -> dict[str, Any]:
        """Where the numbers of a table come from, as `write_results` wants it; notes name terms against commercial use."""
        sets = {key: images for (of, key), images in self._sets.items() if of in ("", table)}
        licences = {(s.dataset, terms) for s in sets.values() for terms in s.data_licence.split("; ")}
        inputs = {key: images.content_hash for key, images in sets.items()}
        inputs |= {name: _hash_of(name) for of, name in sorted(self._weights) if of in ("", table)}
        return {
            "parameters": self._parameters, "seeds": self.seeds, "inputs": inputs,
            "data_licence": "; ".join(sorted({terms for _, terms in licences})) or "generated",
            "people": any(images.people for images in sets.values()),
            "notes": "; ".join(note for licence in sorted(licences) if (note := _restricted(*licence))),
        }  # fmt: skip

    def add(
        self, arm: str, estimates: Mapping[str, Estimate | float], *, dataset: str, table: str = "", seed: int | None = None,
        units: Mapping[str, str] | None = None, **extra: Scalar,
    ) -> list[Row]:  # fmt: skip
        """Rows of an arm, one for each metric; those of the same metric, arm, dataset, seed and extra columns are replaced.

        table: "" for the chapter's own, or NAME for CHAPTER-NAME. units: metric -> unit.
        """
        made = []
        for metric, estimate in estimates.items():
            named = {
                "chapter": self.name,
                "dataset": dataset,
                "metric": metric,
                "arm": arm,
                "unit": (units or {}).get(metric, ""),
            }
            row = (
                Row.of(estimate, **named, seed=seed, **extra)
                if isinstance(estimate, Estimate)
                else Row(**named, value=float(estimate), seed=seed, extra=extra)
            )
            made.append(row)
        self.extend(table, made)
        return made

    def extend(self, table: str, rows: Iterable[Row]) -> None:
        """Add rows that were made elsewhere to a table, as `add` does."""
        for row in rows:
            self._rows[(table, row.dataset, row.metric, row.arm, row.seed, *sorted(row.extra.items()))] = (table, row)

    def rows(self, table: str = "", **where: object) -> list[Row]:
        """Rows of a table whose columns have these values; a list or tuple of values allows any of them."""
        chosen = [row for of, row in self._rows.values() if of == table]
        for column, wanted in where.items():
            allowed = wanted if isinstance(wanted, list | tuple | set) else [wanted]
            chosen = [row for row in chosen if _value(row, column) in allowed]
        return chosen

    def table(
        self, *, rows: str | list[str], columns: str | list[str] | None = None, table: str = "", **where: object
    ) -> pd.DataFrame:
        """Write a table with all its rows; shown are those `where`, as `value [low, high] (n)`, laid out by rows and columns."""
        name = f"{self.name}-{table}" if table else self.name
        write_results(self.folder, name, self.rows(table), **self.sidecar(table))
        lines, heads = ([keys] if isinstance(keys, str) else list(keys or []) for keys in (rows, columns))
        cells = [{key: _value(row, key) for key in (*lines, *heads)} | {"": row.shown} for row in self.rows(table, **where)]
        shown = pd.DataFrame(cells).fillna("")
        if not heads:
            return shown.set_index(lines)
        return shown.pivot_table(index=lines, columns=heads, values="", aggfunc="; ".join, sort=False).fillna("")

    def save(self, figure: Any, name: str, data: Iterable[Row] | pd.DataFrame, *, table: str = "") -> None:
        """Save a figure as CHAPTER-NAME, with what it shows and whence, as the numbers of `table`; ValueError for its name."""
        if name in {of for of, _ in self._rows.values()}:
            raise ValueError(f"figure {name!r}: a table of this chapter has that name; call it '{name}-figure'")
        figures.save_figure(figure, self.folder, f"{self.name}-{name}", data, **self.sidecar(table))

    def estimates(
        self, metrics: Iterable[str], name: str, *, label: str = "{metric}", floors: bool = True, table: str = "", **where: object
    ) -> None:  # fmt: skip
        """Draw and save points with intervals, a panel for each metric, beside its floor where there is one."""
        panels = {m: found for m in metrics if (found := self.rows(table, metric=m, **where))}
        labels = [label.format(metric=m, unit=found[0].unit) for m, found in panels.items()]
        floor = [next(iter(self.rows(table, metric=f"{m} floor", **where)), None) if floors else None for m in panels]
        self._panels(list(panels.values()), name, labels=labels, floors=floor, table=table)

    def panels(
        self, panels: Mapping[str, Sequence[Row]], name: str, *, label: str, across: int = 0,
        named: Callable[[Row], str] | None = None, limits: tuple[float, float] | None = None,
    ) -> None:  # fmt: skip
        """Draw and save points with intervals, a panel for each title, side by side or `across` in a line.

        named: what a point is called; by default its arm, with the seed where there is one. limits: of the axis, for all panels.
        """
        of = {"labels": [label] * len(panels), "titles": list(panels), "across": across, "named": named, "limits": limits}
        self._panels(list(panels.values()), name, **of)

    def _panels(
        self, panels: list[Sequence[Row]], name: str, *, labels: list[str], titles: Sequence[str] = (), across: int = 0,
        floors: Sequence[Row | None] = (), named: Callable[[Row], str] | None = None, limits: tuple[float, float] | None = None,
        table: str = "",
    ) -> None:  # fmt: skip
        across = across or len(panels)
        lines, most = -(-len(panels) // across), max(len(found) for found in panels)
        size = (7.5, lines * (0.8 + (0.4 if most < 4 else 0.25) * most))
        figure, axes = figures.new_figure(lines, across, size=size, layout="constrained", squeeze=False)
        called = [[(named or _label)(row) for row in found] for found in panels]
        for k, (ax, found) in enumerate(zip(axes.flat, panels, strict=False)):
            points = pd.DataFrame(
                {"arm": arm, "value": row.value, "low": row.low, "high": row.high}
                for arm, row in zip(called[k], found, strict=True)
            )
            figures.estimates_plot(ax, points, label=labels[k], floor=floors[k] if floors else None)
            ax.set(title=titles[k] if titles else "", xlim=limits or ax.get_xlim())
            # the same names stand once in a line
            ax.tick_params(labelleft=k % across == 0 or called[k] != called[k - 1])
        for ax in axes.flat[len(panels) :]:
            ax.remove()
        self.save(figure, name, [row for found in panels for row in found], table=table)

    def roc(self, curves: Mapping[str, np.ndarray], name: str, *, x_label: str, y_label: str, log: bool = False) -> None:
        """Draw and save true over false positive rates, (k, 2) of each arm, beside those of a guess."""
        points = [pd.DataFrame(found, columns=["false positive rate", "value"]).assign(arm=arm) for arm, found in curves.items()]
        figure, ax = figures.new_figure(size=(4.6, 3.2), layout="constrained")
        figures.curve(ax, pd.concat(points), x="false positive rate", x_label=x_label, y_label=y_label)
        guess = np.linspace(0, 1, 1001)
        ax.plot(guess, guess, color="#999999", linewidth=0.8)
        if log:
            ax.set(xscale="log", xlim=(1e-4, 1))
        self.save(figure, name, pd.concat(points))

    def histogram(self, groups: Mapping[str, np.ndarray], name: str, marks: Mapping[str, float], *, label: str) -> None:
        """Draw and save how the values of each group are spread, and where the `marks` lie; what is not a number is left out."""
        bins = np.linspace(0, max(float(np.nanmax(values)) for values in groups.values()), 60)
        counts = {group: np.histogram(values, bins)[0] for group, values in groups.items()}
        figure, ax = figures.new_figure(size=(6.4, 3.2), layout="constrained")
        for group, count in counts.items():
            ax.stairs(count / count.sum(), bins, fill=True, alpha=0.5, label=group)
        for mark, value in marks.items():
            ax.axvline(value, color="black", linestyle="--", label=mark)
        ax.set(xlabel=label, ylabel="share of the group")
        ax.legend()
        table = [pd.DataFrame({"group": k, "from": bins[:-1], "to": bins[1:], "count": v}) for k, v in counts.items()]
        self.save(figure, name, pd.concat(table))

    def curves(
        self, x: str, panels: Iterable[Iterable[str]], name: str, *, x_label: str = "", by: str = "metric", table: str = "",
        **where: object,
    ) -> None:  # fmt: skip
        """Draw and save metrics over an extra column, a panel for each list of metrics, a line for each value of `by`."""
        drawn = [(list(metrics), self.rows(table, metric=list(metrics), **where)) for metrics in panels]
        drawn = [(metrics, [row for row in found if x in row.extra]) for metrics, found in drawn]
        drawn = [(metrics, found) for metrics, found in drawn if found]
        figure, axes = figures.new_figure(1, len(drawn), size=(7.5, 3), layout="constrained", squeeze=False)
        for ax, (metrics, found) in zip(axes[0], drawn, strict=True):
            points = pd.DataFrame(
                {x: row.extra[x], "arm": _value(row, by), "value": row.value, "low": row.low, "high": row.high} for row in found
            )
            figures.curve(ax, points, x=x, x_label=x_label or x, y_label=", ".join(metrics) if len(metrics) < 3 else "score")
            ax.set_ylim(bottom=min(0, points["low"].min(), points["value"].min()))
        self.save(figure, name, [row for _, found in drawn for row in found], table=table)

    def over(
        self, x: str, places: Mapping[Any, str], metrics: Sequence[str], name: str, *, x_label: str, floors: bool = True,
        table: str = "", **where: object,
    ) -> None:  # fmt: skip
        """Draw and save metrics at the named values of an extra column, a panel for each metric, a line for each arm.

        Of several seeds the mean is drawn, and as its bar the least low and the largest high.
        """
        drawn = {m: found for m in metrics if (found := self.rows(table, metric=m, **{x: list(places)}, **where))}
        figure, axes = figures.new_figure(1, len(drawn), size=(7.5, 3), layout="constrained", squeeze=False)
        for ax, (metric, found) in zip(axes[0], drawn.items(), strict=True):
            floor = next(iter(self.rows(table, metric=f"{metric} floor", **where)), None) if floors else None
            unit = f"{metric} ({found[0].unit})" if found[0].unit else metric
            over_seeds = [_mean(rows) for rows in _grouped(found, lambda row: (row.arm, row.extra[x]))]
            figures.steps_plot(ax, over_seeds, places, by=lambda row: row.extra[x], y_label=unit, floor=floor)
            ax.set_xlabel(x_label)
        lines = {label: line for ax in axes[0] for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        across = min(len(lines), 4 if len(lines) < 5 else 3)
        figure.legend(lines.values(), lines, loc="outside upper center", ncols=across, frameon=False)
        self.save(figure, name, [row for found in drawn.values() for row in found], table=table)

    def scatter(self, groups: Mapping[str, pd.DataFrame], name: str, *, x: str, y: str, unit: str, across: int = 4) -> None:
        """Draw and save points of each group, of which each is of one patient: so none of people."""
        if self.people:
            print(f"scatter {name}: {WITHHELD}")
            return
        table = pd.concat(points.assign(group=group) for group, points in groups.items())
        self.save(figures.scatter_panels(groups, across=across, x=x, y=y, unit=unit), name, table)

    def secret(self, value: Any) -> Any:
        """A value that says where single patients are: itself for phantoms, a word that it is left out for people."""
        return WITHHELD if self.people else value

    def secrets(self, **columns: Scalar) -> dict[str, Scalar]:
        """Columns of a row that say where single patients are: themselves for phantoms, none for people."""
        return {} if self.people else columns


def _grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> list[list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())


def _mean(rows: list[Row]) -> Row:
    value = float(np.mean([row.value for row in rows]))
    low, high = min(row.low for row in rows), max(row.high for row in rows)
    return replace(rows[0], value=value, low=low, high=high)


def _hash_of(name: str) -> str:
    """Of weights that ship, or of the thresholds that lie beside them."""
    return file_hash(weights_folder() / f"{name}.json") if name == "thresholds" else shipped_hash(name)


def _restricted(name: str, terms: str) -> str:
    """A sentence on a set whose licence forbids commercial use, "" of others."""
    if "-NC" not in terms:
        return ""
    return f"{name} is {terms}: its rows are for non-commercial use" + ", under the same licence" * ("-SA" in terms)


def part_of(names: Iterable[Any], only: str) -> tuple[Any, ...]:
    """Those that `only` names, separated by commas, in their order; all where it names none.

    A beginning stands for all that go on with a dash or a stroke: "ct" for "ct-low-dose/edsr". ValueError for what fits none.
    """
    every = {str(name): name for name in names}
    asked = [name for part in only.split(",") if (name := part.strip())]
    fits = {name: {full for full in every if full == name or full.startswith((f"{name}-", f"{name}/"))} for name in asked}
    for name in (name for name, found in fits.items() if not found):
        raise ValueError(f"{name!r} is not in this profile; {did_you_mean(name, every)}")
    chosen = set(every) if not asked else set().union(*fits.values())
    return tuple(name for full, name in every.items() if full in chosen)


def _value(row: Row, column: str) -> object:
    return getattr(row, column) if column in COLUMNS else row.extra.get(column)


def _label(row: Row) -> str:
    return row.arm if row.seed is None else f"{row.arm}, seed {row.seed}"

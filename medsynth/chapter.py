"""What every notebook repeats: style, profile, sets, ledger, seeds; rows with keys; tables and plots that draw and save."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd

from medsynth import figures
from medsynth.config import ThoraxConfig, load_profile, project_root
from medsynth.data.sources import Sources, private_and_test
from medsynth.imageset import ImageSet
from medsynth.ledger import Ledger
from medsynth.models.weights import shipped_hash
from medsynth.results import COLUMNS, Estimate, Row, Scalar, write_results

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
        self._sets: dict[str, ImageSet] = {}
        self._weights: set[str] = set()
        self._parameters: dict[str, Any] = {"profile": self.settings.name}

    def sets(
        self, data: str = "", modality: str = "xray", *, sizes: ThoraxConfig | None = None, stage: str = "measure",
        output: str = "result rows",
    ) -> Sources:  # fmt: skip
        """Private images and held-out patients of a modality: phantoms, or those of the file `data`; noted, and in the ledger.

        The private set is declared; that the held-out one will be measured against leaves a line.
        """
        sources = private_and_test(sizes or self.settings.thorax, data, modality, self.seed)
        self.ledger.declare(sources.private)
        self.ledger.read(sources.test, stage=stage, output=output)
        self.note(**{f"private {modality}": sources.private, f"test {modality}": sources.test})
        return sources

    def note(self, *weights: str, **sets: ImageSet) -> None:
        """Remember what numbers rest on: shipped weights by name, sets under the name that the sidecar gives them."""
        self._weights |= set(weights)
        self._sets |= {key.replace("_", " "): images for key, images in sets.items()}

    def parameters(self, **values: Any) -> None:
        """Remember what decided the numbers beside the profile."""
        self._parameters |= values

    @property
    def people(self) -> bool:
        """Whether a person was scanned for any of the sets."""
        return any(images.people for images in self._sets.values())

    @property
    def sidecar(self) -> dict[str, Any]:
        """Where the numbers of this chapter come from, as `write_results` wants it."""
        licences = {terms for images in self._sets.values() for terms in images.data_licence.split("; ")}
        inputs = {key: images.content_hash for key, images in self._sets.items()}
        inputs |= {name: shipped_hash(name) for name in sorted(self._weights)}
        return {
            "parameters": self._parameters, "seeds": self.seeds, "inputs": inputs,
            "data_licence": "; ".join(sorted(licences)) or "generated", "people": self.people,
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
        write_results(self.folder, f"{self.name}-{table}" if table else self.name, self.rows(table), **self.sidecar)
        lines, heads = ([keys] if isinstance(keys, str) else list(keys or []) for keys in (rows, columns))
        cells = [{key: _value(row, key) for key in (*lines, *heads)} | {"": row.shown} for row in self.rows(table, **where)]
        shown = pd.DataFrame(cells).fillna("")
        if not heads:
            return shown.set_index(lines)
        return shown.pivot_table(index=lines, columns=heads, values="", aggfunc="; ".join, sort=False).fillna("")

    def save(self, figure: Any, name: str, data: Iterable[Row] | pd.DataFrame) -> None:
        """Save a figure as CHAPTER-NAME, with what it shows and where that comes from."""
        figures.save_figure(figure, self.folder, f"{self.name}-{name}", data, **self.sidecar)

    def estimates(
        self, metrics: Iterable[str], name: str, *, label: str = "{metric}", floors: bool = True, table: str = "", **where: object
    ) -> None:  # fmt: skip
        """Draw and save points with intervals, a panel for each metric, beside its floor where there is one."""
        panels = [(m, found) for m in metrics if (found := self.rows(table, metric=m, **where))]
        size = (7.5, 0.8 + 0.4 * max(len(found) for _, found in panels))
        figure, axes = figures.new_figure(1, len(panels), size=size, layout="constrained", squeeze=False)
        for ax, (metric, found) in zip(axes[0], panels, strict=True):
            floor = next(iter(self.rows(table, metric=f"{metric} floor", **where)), None) if floors else None
            named = pd.DataFrame([{"arm": _label(row), "value": row.value, "low": row.low, "high": row.high} for row in found])
            figures.estimates_plot(ax, named, label=label.format(metric=metric, unit=found[0].unit), floor=floor)
            ax.tick_params(labelleft=ax is axes[0][0])
        self.save(figure, name, [row for _, found in panels for row in found])

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
        self.save(figure, name, [row for _, found in drawn for row in found])

    def secret(self, value: Any) -> Any:
        """A value that says where single patients are: itself for phantoms, a word that it is left out for people."""
        return WITHHELD if self.people else value


def part_of(names: Iterable[Any], only: str) -> tuple[Any, ...]:
    """Those that `only` names, separated by commas, in their order; all where it names none.

    A beginning stands for all that go on with a dash or a stroke: "ct" for "ct-low-dose/edsr". ValueError for what fits none.
    """
    every = {str(name): name for name in names}
    asked = [name for part in only.split(",") if (name := part.strip())]
    fits = {name: {full for full in every if full == name or full.startswith((f"{name}-", f"{name}/"))} for name in asked}
    for name in (name for name, found in fits.items() if not found):
        close = get_close_matches(name, every, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected some of {', '.join(every)}"
        raise ValueError(f"{name!r} is not in this profile; {hint}")
    chosen = set(every) if not asked else set().union(*fits.values())
    return tuple(name for full, name in every.items() if full in chosen)


def _value(row: Row, column: str) -> object:
    return getattr(row, column) if column in COLUMNS else row.extra.get(column)


def _label(row: Row) -> str:
    return row.arm if row.seed is None else f"{row.arm}, seed {row.seed}"

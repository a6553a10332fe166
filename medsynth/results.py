"""Estimate -> Row -> table: every number in one schema, and a sidecar that says how it came to be."""

from __future__ import annotations

import contextlib
import json
import math
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from medsynth.language.words import did_you_mean
from medsynth.settings.profile import project_root
from medsynth.store.hashes import file_hash
from medsynth.store.runs import atomic_path, package_versions, write_json

Scalar = str | int | float | bool | None
YOURS = "this run"  # the column of the reader's own rows, beside the published ones


class Estimate(NamedTuple):
    """A value with its interval [low, high] at `level`, and the number n of independent units, which are `n_of`."""

    value: float
    low: float
    high: float
    n: int
    n_of: str = "patients"
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}], n={self.n}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured value with its interval: `arm` of an experiment, on `dataset`, by `metric`.

    low, high, level: the interval, NaN where none was computed; n, n_of: how many the interval is over, and of what ("patients",
    "images", ...). seed: None where the value is over several seeds, which the sidecar lists.
    Raises ValueError if low > high, for an interval without its level, and for an n that does not say of what.
    """

    chapter: str
    dataset: str
    metric: str
    arm: str
    value: float
    low: float = math.nan
    high: float = math.nan
    level: float = math.nan
    n: int | None = None
    n_of: str = ""
    unit: str = ""
    seed: int | None = None
    extra: Mapping[str, Scalar] = field(default_factory=dict)  # further columns, e.g. {"guidance": 1.5}

    def __post_init__(self) -> None:
        name = f"row {self.metric}/{self.arm}"
        if self.low > self.high:
            raise ValueError(f"{name}: [{self.low:g}, {self.high:g}] is reversed; expected low <= high")
        if not math.isnan(self.low) and math.isnan(self.level):
            raise ValueError(f"{name}: [{self.low:g}, {self.high:g}] does not say its level; expected one such as 0.95")
        if (self.n is None) == bool(self.n_of):
            raise ValueError(f"{name}: n = {self.n} of {self.n_of!r}; expected both a number and what it counts, or neither")
        taken = sorted(set(self.extra) & set(COLUMNS))
        if taken:
            raise ValueError(f"{name}: extra columns {taken} are columns of every row; rename them")

    @classmethod
    def of(
        cls, estimate: Estimate, *, chapter: str, dataset: str, metric: str, arm: str, unit: str = "", seed: int | None = None,
        **extra: Scalar,
    ) -> Row:  # fmt: skip
        """The row of an estimate; every further keyword is an extra column."""
        measured = estimate._asdict() | ({"level": math.nan} if math.isnan(estimate.low) else {})
        return cls(chapter=chapter, dataset=dataset, metric=metric, arm=arm, unit=unit, seed=seed, extra=extra, **measured)

    @property
    def shown(self) -> str:
        """Value, interval and n as `show_value` writes them."""
        return show_value(self.value, self.low, self.high, self.n, self.n_of, self.level)


COLUMNS = tuple(f.name for f in fields(Row) if f.name != "extra")
NAMES = ("chapter", "dataset", "metric", "arm", "n_of", "unit")
ROWS, FIGURE = "rows", "figure"  # what a csv holds: rows in the schema, or the data of the figure of its name, in any shape


@dataclass(frozen=True)
class Results:
    """A table read back: its rows and the sidecar they were written with."""

    rows: pd.DataFrame
    sidecar: dict[str, Any]

    @property
    def kind(self) -> str:
        """ROWS or FIGURE."""
        return self.sidecar["kind"]


def table_of(rows: Iterable[Row]) -> pd.DataFrame:
    """The rows as a table: the fixed columns, then the extra ones in order of first appearance."""
    rows = list(rows)
    extra = list(dict.fromkeys(key for row in rows for key in row.extra))
    records = [{**{c: getattr(row, c) for c in COLUMNS}, **row.extra} for row in rows]
    return pd.DataFrame(records, columns=[*COLUMNS, *extra]).astype({"n": "Int64", "seed": "Int64"})


def chapter_of(name: str) -> str:
    """The chapter whose table `name` is: tables are called CHAPTER or CHAPTER-NAME, so no two chapters write one."""
    return name.split("-")[0]


def write_results(folder: str | Path, name: str, rows: Iterable[Row], **sidecar: Any) -> Path:
    """Write rows as `name.csv` with their sidecar `name.json`; returns the path of the csv.

    sidecar: parameters, seeds, inputs (name of each data set or model -> content hash), data_licence (of the data behind the
    numbers, "generated" for phantoms), people (whether somebody was scanned for them) and, if any, notes. Raises ValueError if
    there are no rows, or if the table is not called after their chapter.
    """
    if isinstance(rows, pd.DataFrame):
        raise ValueError(f"results {name!r}: a table of any shape is the data of a figure; save it with figures.save_figure")
    rows = list(rows)
    strange = sorted({row.chapter for row in rows} - {chapter_of(name)})
    if strange:
        raise ValueError(f"results {name!r}: rows of {strange[0]!r}; expected a name that is their chapter's or begins with it")
    return _write(folder, name, table_of(rows), kind=ROWS, **sidecar)


def write_figure_data(folder: str | Path, name: str, data: Iterable[Row] | pd.DataFrame, **sidecar: Any) -> Path:
    """Write what the figure `name` shows, in any tidy shape; otherwise as `write_results`."""
    return _write(folder, name, data if isinstance(data, pd.DataFrame) else table_of(data), kind=FIGURE, **sidecar)


def _write(
    folder: str | Path,
    name: str,
    table: pd.DataFrame,
    *,
    kind: str,
    parameters: Mapping[str, Any],
    seeds: Sequence[int],
    inputs: Mapping[str, str],
    data_licence: str,
    people: bool | None = None,
    notes: str = "",
) -> Path:
    if table.empty:
        raise ValueError(f"results {name!r}: no rows to write; expected at least one")
    if not data_licence:
        raise ValueError(f"results {name!r}: data_licence is empty; expected the data's licences, or 'generated' for phantoms")
    target = Path(folder) / f"{name}.csv"
    with atomic_path(target) as temporary:
        # repr of a float reads back as the same float
        table.to_csv(temporary, index=False, lineterminator="\n")
    sidecar = {
        "kind": kind, "csv_sha256": file_hash(target), "parameters": dict(parameters), "seeds": list(seeds),
        "inputs": dict(inputs), "data_licence": data_licence, "notes": notes, **provenance(),
        **({} if people is None else {"people": people}),
    }  # fmt: skip
    # the sidecar comes last: a kill in between leaves a hash that does not match, which reading reports
    write_json(target.with_suffix(".json"), sidecar)
    return target


def read_results(folder: str | Path, name: str) -> Results:
    """Read a table and its sidecar.

    Raises FileNotFoundError if either is missing; ValueError if they cannot be read or do not belong together, if the sidecar
    does not say what the table holds, or if rows lack a column of the schema.
    """
    csv = Path(folder) / f"{name}.csv"
    if not csv.exists():
        raise FileNotFoundError(f"{csv}: no such results; {did_you_mean(name, table_names(folder))}")
    if not csv.with_suffix(".json").exists():
        raise FileNotFoundError(f"{csv}: its sidecar {name}.json is missing; run the chapter that wrote it again")
    sidecar = read_sidecar(csv.with_suffix(".json"))
    found = file_hash(csv)
    if found != sidecar.get("csv_sha256"):
        raise ValueError(
            f"{csv}: sha256 {found[:12]} differs from the {str(sidecar.get('csv_sha256'))[:12]} in its sidecar; "
            "the table was edited or half written: run the chapter that wrote it again"
        )
    kind = sidecar.get("kind", "")
    if kind not in (ROWS, FIGURE):
        raise ValueError(
            f"{csv}: its sidecar calls it {kind!r}; expected {ROWS!r} or {FIGURE!r}: run the chapter that wrote it again"
        )
    # an arm called "NA" or "02" is a name, and an empty unit is a unit
    try:
        rows = pd.read_csv(csv, keep_default_na=False, na_values=[""], dtype={c: "str" for c in NAMES})
    except ValueError as error:
        raise ValueError(f"{csv}: not a table ({error}); run the chapter that wrote it again") from error
    missing = [c for c in COLUMNS if c not in rows] if kind == ROWS else []
    if missing:
        raise ValueError(f"{csv}: rows without a column {', '.join(missing)}; run the chapter that wrote it again")
    rows = rows.assign(**{c: rows[c].fillna("") for c in NAMES if c in rows})
    return Results(rows.astype({c: "Int64" for c in ("n", "seed") if c in rows}), sidecar)


def read_sidecar(path: Path) -> dict[str, Any]:
    """What a sidecar says; ValueError naming the file if it is no JSON object, or its parameters are none."""
    try:
        sidecar = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error}); run the chapter that wrote it again") from error
    if not isinstance(sidecar, dict) or not isinstance(sidecar.get("parameters", {}), dict):
        raise ValueError(f"{path}: no sidecar; expected a JSON object with an object 'parameters': run the chapter again")
    return sidecar


def of_people(sidecar: Mapping[str, Any]) -> bool:
    """Whether somebody was scanned for the numbers of a table; older sidecars say it by the licence of phantoms."""
    people = sidecar.get("people")
    return sidecar.get("data_licence") != "generated" if people is None else bool(people)


def table_names(folder: str | Path) -> list[str]:
    """Names of the tables in a folder."""
    return sorted(p.stem for p in Path(folder).glob("*.csv"))


def own_tables(folder: Path) -> dict[str, Path]:
    """Folder of each table in the chapters' folders below `folder`; ValueError where two chapters wrote one name."""
    found: dict[str, Path] = {}
    for csv in sorted(folder.glob("*/*.csv")):
        if csv.stem in found:
            raise ValueError(f"{csv}: {found[csv.stem].name} holds a table {csv.stem!r} too; a table is named after its chapter")
        found[csv.stem] = csv.parent
    return found


def published_folder() -> Path:
    """Where rows of full-size and real-data runs are committed."""
    return project_root() / "results" / "published"


def published_names(root: Path | None = None) -> list[str]:
    """Names of the published runs."""
    return sorted(p.name for p in (root or published_folder()).glob("*") if p.is_dir())


def published(name: str, root: Path | None = None) -> Path:
    """The folder of one published run; FileNotFoundError names the closest one."""
    root = root or published_folder()
    if name not in published_names(root):
        hint = did_you_mean(name, published_names(root))
        raise FileNotFoundError(f"results/published/{name}: no such published run; {hint}")
    return root / name


def both(folder: str | Path, name: str, root: Path | None = None) -> pd.DataFrame:
    """Rows of table `name` from every published run that has it, the newest first, and from `folder`, as `together`."""
    root = root or published_folder()
    places = {run: root / run for run in published_names(root)} | {YOURS: Path(folder)}
    found = {source: read_results(place, name) for source, place in places.items() if (place / f"{name}.csv").exists()}
    if not found:
        raise FileNotFoundError(f"{Path(folder) / name}.csv: no such results, published or own; run the chapter first")
    return together(newest_first(found))


def together(found: Mapping[str, Results]) -> pd.DataFrame:
    """Rows of several runs, told apart by a first column `source`."""
    table = pd.concat([one.rows.assign(source=source) for source, one in found.items()], ignore_index=True)
    return table[["source", *[c for c in table if c != "source"]]]


def newest_first(found: Mapping[str, Results]) -> dict[str, Results]:
    """The same runs in the order in which they are shown: published ones, the newest first, then one's own."""
    return dict(sorted(found.items(), key=lambda run: (run[0] != YOURS, run[1].sidecar["created"]), reverse=True))


def side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of `both` for reading: one line per dataset, metric, arm and so on, one column per source, cells as `show_value`.

    Seeds make lines of their own where there are several. A threshold is found anew in each run, and tells no lines apart.
    """
    keys = ["dataset", "metric", "arm", "unit", *(["seed"] if table.seed.nunique() > 1 else [])]
    extra = [c for c in table if c not in (*COLUMNS, "source", "tau")]
    measured = ("value", "low", "high", "n", "n_of", "level")
    lines = table.assign(shown=[show_value(*v) for v in zip(*(table[c] for c in measured), strict=True)])
    # a missing entry is a value of its own: grouping would drop its lines
    for column in {*keys, *extra, "seed"}:
        lines[column] = ["" if pd.isna(v) else str(v) for v in lines[column]]
    sources = [s for s in dict.fromkeys(table.source) if s != YOURS] + [YOURS] * (YOURS in set(table.source))
    wide = lines.pivot_table(index=[*keys, *extra], columns="source", values="shown", aggfunc="; ".join, sort=False)
    return wide[sources].fillna("").reset_index().rename_axis(columns=None)


def show_value(
    value: float,
    low: float = math.nan,
    high: float = math.nan,
    n: object = None,
    n_of: str = "patients",
    level: float = 0.95,
) -> str:
    """`1.23 [1.10, 1.40] (n = 56)`, each number to three significant digits.

    What n counts is said unless it is patients, and the level of the interval unless it is 95 %.
    """
    text, said = f"{value:.3g}", []
    if not (math.isnan(low) or math.isnan(high)):
        text += f" [{low:.3g}, {high:.3g}]"
        said += [f"{100 * level:g} %"] if level != 0.95 else []
    if not (n is None or pd.isna(n)):
        said += [f"n = {n}" if n_of == "patients" else f"n = {n} {n_of}"]
    return f"{text} ({', '.join(said)})" if said else text


def provenance() -> dict[str, Any]:
    """Versions, commit, device and time of the process that measures."""
    here = Path(__file__).parent
    commit = git(here, "rev-parse", "HEAD")
    return {
        "versions": package_versions(),
        "commit": commit,
        # results that were just written are no change to what wrote them
        "dirty": bool(git(here, "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)results"))
        if commit
        else None,
        "device": _device(),
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def git(folder: Path, *arguments: str) -> str | None:
    """What git answers in a folder; None where it cannot."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return None


def _device() -> str:
    # a process that has not imported torch has not computed on a GPU with it
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu ({platform.machine()})"

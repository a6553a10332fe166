"""Result rows: one tidy table per question, with a sidecar that says how each number came to be."""

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
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd

from medsynth.config import project_root
from medsynth.runs import atomic_path, file_hash, package_versions, write_json

Scalar = str | int | float | bool | None
YOURS = "this run"  # the column of the reader's own rows, beside the published ones


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured value with its interval: `arm` of an experiment, on `dataset`, by `metric`.

    low, high: ends of the interval, NaN where none was computed; n: the patients (or images) the interval is over.
    seed: None where the value is over several seeds, which the sidecar lists. Raises ValueError if low > high.
    """

    chapter: str
    dataset: str
    metric: str
    arm: str
    value: float
    low: float = math.nan
    high: float = math.nan
    n: int | None = None
    unit: str = ""
    seed: int | None = None
    extra: Mapping[str, Scalar] = field(default_factory=dict)  # further columns, e.g. {"guidance": 1.5}

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"row {self.metric}/{self.arm}: [{self.low:g}, {self.high:g}] is reversed; expected low <= high")
        taken = sorted(set(self.extra) & set(COLUMNS))
        if taken:
            raise ValueError(f"row {self.metric}/{self.arm}: extra columns {taken} are columns of every row; rename them")


COLUMNS = tuple(f.name for f in fields(Row) if f.name != "extra")
NAMES = ("chapter", "dataset", "metric", "arm", "unit")


@dataclass(frozen=True)
class Results:
    """A table read back: its rows and the sidecar they were written with."""

    rows: pd.DataFrame
    sidecar: dict[str, Any]


def table_of(rows: Iterable[Row]) -> pd.DataFrame:
    """The rows as a table: the fixed columns, then the extra ones in order of first appearance."""
    rows = list(rows)
    extra = list(dict.fromkeys(key for row in rows for key in row.extra))
    records = [{**{c: getattr(row, c) for c in COLUMNS}, **row.extra} for row in rows]
    return pd.DataFrame(records, columns=[*COLUMNS, *extra]).astype({"n": "Int64", "seed": "Int64"})


def write_results(
    folder: str | Path,
    name: str,
    rows: Iterable[Row] | pd.DataFrame,
    *,
    parameters: Mapping[str, Any],
    seeds: Sequence[int],
    inputs: Mapping[str, str],
    data_licence: str,
    notes: str = "",
) -> Path:
    """Write `name.csv` and its sidecar `name.json`; returns the path of the csv.

    rows: Rows, or any tidy table (the data behind a curve). inputs: name of each data set or model -> content hash.
    data_licence: licences of the data behind the numbers, "generated" for phantoms. Raises ValueError if there are no rows.
    """
    table = rows if isinstance(rows, pd.DataFrame) else table_of(rows)
    if table.empty:
        raise ValueError(f"results {name!r}: no rows to write; expected at least one")
    if not data_licence:
        raise ValueError(f"results {name!r}: data_licence is empty; expected the data's licences, or 'generated' for phantoms")
    target = Path(folder) / f"{name}.csv"
    with atomic_path(target) as temporary:
        # repr of a float reads back as the same float
        table.to_csv(temporary, index=False, lineterminator="\n")
    sidecar = {
        "csv_sha256": file_hash(target), "parameters": dict(parameters), "seeds": list(seeds), "inputs": dict(inputs),
        "data_licence": data_licence, "notes": notes, **provenance(),
    }  # fmt: skip
    # the sidecar comes last: a kill in between leaves a hash that does not match, which reading reports
    write_json(target.with_suffix(".json"), sidecar)
    return target


def read_results(folder: str | Path, name: str) -> Results:
    """Read a table and its sidecar; FileNotFoundError if either is missing, ValueError if they do not belong together."""
    csv = Path(folder) / f"{name}.csv"
    if not csv.exists():
        raise FileNotFoundError(f"{csv}: no such results; {_closest(name, table_names(folder))}")
    if not csv.with_suffix(".json").exists():
        raise FileNotFoundError(f"{csv}: its sidecar {name}.json is missing; run the chapter that wrote it again")
    sidecar = json.loads(csv.with_suffix(".json").read_text())
    found = file_hash(csv)
    if found != sidecar.get("csv_sha256"):
        raise ValueError(
            f"{csv}: sha256 {found[:12]} differs from the {str(sidecar.get('csv_sha256'))[:12]} in its sidecar; "
            "the table was edited or half written: run the chapter that wrote it again"
        )
    # an arm called "NA" or "02" is a name, and an empty unit is a unit
    rows = pd.read_csv(csv, keep_default_na=False, na_values=[""], dtype={c: "str" for c in NAMES})
    rows = rows.assign(**{c: rows[c].fillna("") for c in NAMES if c in rows})
    return Results(rows.astype({c: "Int64" for c in ("n", "seed") if c in rows}), sidecar)


def table_names(folder: str | Path) -> list[str]:
    """Names of the tables in a folder."""
    return sorted(p.stem for p in Path(folder).glob("*.csv"))


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
        raise FileNotFoundError(f"results/published/{name}: no such published run; {_closest(name, published_names(root))}")
    return root / name


def both(folder: str | Path, name: str, root: Path | None = None) -> pd.DataFrame:
    """Rows of table `name` from every published run that has it and from `folder`, told apart by a first column `source`."""
    root = root or published_folder()
    sources = {run: root / run for run in published_names(root)} | {YOURS: Path(folder)}
    parts = [
        read_results(place, name).rows.assign(source=source)
        for source, place in sources.items()
        if (place / f"{name}.csv").exists()
    ]
    if not parts:
        raise FileNotFoundError(f"{Path(folder) / name}.csv: no such results, published or own; run the chapter first")
    table = pd.concat(parts, ignore_index=True)
    return table[["source", *[c for c in table if c != "source"]]]


def side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of `both` for reading: one line per dataset, metric, arm and so on, one column per source, cells as `show_value`.

    Seeds make lines of their own where there are several.
    """
    keys = ["dataset", "metric", "arm", "unit", *(["seed"] if table.seed.nunique() > 1 else [])]
    extra = [c for c in table if c not in (*COLUMNS, "source")]
    lines = table.assign(shown=[show_value(*v) for v in zip(table.value, table.low, table.high, table.n, strict=True)])
    # a missing entry is a value of its own: grouping would drop its lines
    for column in {*keys, *extra, "seed"}:
        lines[column] = ["" if pd.isna(v) else str(v) for v in lines[column]]
    sources = [s for s in dict.fromkeys(table.source) if s != YOURS] + [YOURS] * (YOURS in set(table.source))
    wide = lines.pivot_table(index=[*keys, *extra], columns="source", values="shown", aggfunc="; ".join, sort=False)
    return wide[sources].fillna("").reset_index().rename_axis(columns=None)


def show_value(value: float, low: float = math.nan, high: float = math.nan, n: object = None) -> str:
    """`1.23 [1.10, 1.40] (n = 56)`, each number to three significant digits."""
    text = f"{value:.3g}"
    if not (math.isnan(low) or math.isnan(high)):
        text += f" [{low:.3g}, {high:.3g}]"
    return text if n is None or pd.isna(n) else f"{text} (n = {n})"


def provenance() -> dict[str, Any]:
    """Versions, commit, device and time of the process that measures."""
    commit = _git("rev-parse", "HEAD")
    return {
        "versions": package_versions(),
        "commit": commit,
        # results that were just written are no change to what wrote them
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)results"))
        if commit
        else None,
        "device": _device(),
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _git(*arguments: str) -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return None


def _device() -> str:
    # a process that has not imported torch has not computed on a GPU with it
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu ({platform.machine()})"


def _closest(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"found {list(known) or 'none'}"

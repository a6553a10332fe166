"""What files say of each image beside its pixels, in the words that they use: nothing is lost because it is spelled otherwise."""

from __future__ import annotations

import numpy as np
import pandas as pd

LICENCE = ("license", "licence")
# words -> numbers, and what is expected of a column
_CODES = {
    "sex": ({"m": 1, "male": 1, "f": 0, "female": 0}, "M or F, or 1 (male) and 0 (female)"),
    "phase": ({"ed": 0, "es": 1}, "ED or ES, or 0 (filled) and 1 (emptied)"),
}
_UNKNOWN = ("", "?", "-", "u", "unknown", "o", "other", "na", "n/a", "nan", "none")
_VOLUME, _SHARE, _WALL = (0, 1000, "ml"), (0, 100, "%"), (0, 60, "mm")
_POSSIBLE = {
    "age": (0, 120, "years"), "bmi": (5, 120, "kg/m2"), "angle": (-180, 180, "degrees"), "n_slices": (1, 1000, "planes"),
    **dict.fromkeys(("lvedv", "lvesv", "rvedv", "rvesv"), _VOLUME), **dict.fromkeys(("lvef", "rvef"), _SHARE),
    **dict.fromkeys(("wall_ed", "wall_es"), _WALL),
}  # fmt: skip


def table_of(where: str, columns: dict[str, np.ndarray], n: int, licence: str) -> pd.DataFrame:
    """Columns of n rows as a table of attributes, of one licence if none says it by row; ValueError naming a column that is odd.

    "sex" becomes 1 (male) or 0 (female), "phase" 0 (ED) or 1 (ES), "age" and what is measured numbers; unknown is missing.
    """
    columns = {key: np.char.decode(v, "utf-8", "replace") if v.dtype.kind == "S" else v for key, v in columns.items()}
    if len(found := [key for key in LICENCE if key in columns]) > 1:
        raise ValueError(f"{where}: holds the columns {found[0]!r} and {found[1]!r}; expected one of them: remove the other")
    terms = columns.pop(found[0]) if found else licence
    for key in _CODES.keys() & columns.keys():
        columns[key] = _coded(where, key, columns[key])
    for key in _POSSIBLE.keys() & columns.keys():
        columns[key] = _measured(where, key, columns[key])
    return pd.DataFrame(columns, index=range(n)).assign(licence=terms)


def _coded(where: str, key: str, values: np.ndarray) -> np.ndarray | pd.Series:
    known, expected = _CODES[key]
    words = pd.Series(values).astype(str).str.strip().str.lower()
    if values.dtype.kind == "U":
        odd = sorted(set(words) - known.keys() - set(_UNKNOWN))
        coded = words.map(known).astype("Int64")
    else:
        odd = sorted(set(words[~pd.Series(values).isna()]) - {"0", "1", "0.0", "1.0", "true", "false"})
        coded = values
    if odd:
        raise ValueError(
            f"{where}: column {key!r} holds {', '.join(odd[:5])}; expected {expected}, and nothing or ? where it is not known"
        )
    return coded


def _measured(where: str, key: str, values: np.ndarray) -> np.ndarray:
    low, high, unit = _POSSIBLE[key]
    if values.dtype.kind == "U":
        words = pd.Series(values).str.strip()
        known = ~words.str.lower().isin(_UNKNOWN)
        numbers = pd.to_numeric(words.where(known), errors="coerce").to_numpy(np.float64)
        odd = words[known & np.isnan(numbers)].tolist()
    else:
        numbers, odd = values, []
    # NaN, a missing value, is on neither side
    odd += values[(numbers < low) | (numbers > high)].tolist()
    if odd:
        found = ", ".join(dict.fromkeys(map(str, odd[:5])))
        raise ValueError(
            f"{where}: column {key!r} holds {found}; expected {low} to {high} {unit} as numbers, and NaN where it is not known"
        )
    return numbers

"""What files say of each image beside its pixels, in the words that they use: nothing is lost because it is spelled otherwise."""

from __future__ import annotations

import numpy as np
import pandas as pd

LICENCE = ("license", "licence")
_SEX = {"m": 1, "male": 1, "f": 0, "female": 0}
_UNKNOWN = ("", "?", "-", "u", "unknown", "o", "other", "na", "n/a", "nan", "none")
_POSSIBLE = {"age": (0, 120, "years"), "bmi": (5, 120, "kg/m2")}


def table_of(where: str, columns: dict[str, np.ndarray], n: int, licence: str) -> pd.DataFrame:
    """Columns of n rows as a table of attributes, of one licence if none says it by row; ValueError naming a column that is odd.

    "sex" becomes 1 (male) or 0 (female), "age" and "bmi" numbers; what is not known is missing.
    """
    columns = {key: np.char.decode(v, "utf-8", "replace") if v.dtype.kind == "S" else v for key, v in columns.items()}
    if len(found := [key for key in LICENCE if key in columns]) > 1:
        raise ValueError(f"{where}: holds the columns {found[0]!r} and {found[1]!r}; expected one of them: remove the other")
    terms = columns.pop(found[0]) if found else licence
    if "sex" in columns:
        columns["sex"] = _sex(where, columns["sex"])
    for key in _POSSIBLE.keys() & columns.keys():
        columns[key] = _measured(where, key, columns[key])
    return pd.DataFrame(columns, index=range(n)).assign(licence=terms)


def _sex(where: str, values: np.ndarray) -> np.ndarray | pd.Series:
    words = pd.Series(values).astype(str).str.strip().str.lower()
    if values.dtype.kind == "U":
        odd = sorted(set(words) - _SEX.keys() - set(_UNKNOWN))
        coded = words.map(_SEX).astype("Int64")
    else:
        odd = sorted(set(words[~pd.Series(values).isna()]) - {"0", "1", "0.0", "1.0", "true", "false"})
        coded = values
    if odd:
        raise ValueError(
            f"{where}: column 'sex' holds {', '.join(odd[:5])}; expected M or F, or 1 (male) and 0 (female), and nothing or ? "
            "where it is not known"
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

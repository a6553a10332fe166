"""Tables of attributes whose missing values are explicit: four column types, and how they are stored without pickle."""

from __future__ import annotations

import numpy as np
import pandas as pd

_TYPES = {"boolean": "boolean", "integer": "Int64", "floating": "float64", "mixed-integer-float": "float64"}  # else "string"


def typed(table: pd.DataFrame, n: int, name: str) -> pd.DataFrame:
    """Bring every column to one of four types in which a missing value is explicit."""
    if not len(table.columns):
        return pd.DataFrame(index=range(n))
    if len(table) != n:
        raise ValueError(f"{name}: attributes have {len(table)} rows; expected {n}")
    out = pd.DataFrame(index=range(n))
    for column in table:
        values = table[column].reset_index(drop=True)
        # inferred from the values: a hole makes pandas store booleans and integers as objects
        kind = _TYPES.get(pd.api.types.infer_dtype(values, skipna=True), "string")
        try:
            out[str(column)] = values.astype(kind)
        except (TypeError, OverflowError) as error:
            raise ValueError(f"{name}: column {str(column)!r} does not fit into {kind} ({error}); save it as text") from error
    return out


def to_arrays(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    missing = column.isna().to_numpy(dtype=bool)
    kind = str(column.dtype)
    if kind == "Int64":
        return column.fillna(0).to_numpy(dtype=np.int64), missing
    if kind == "boolean":
        return column.fillna(False).to_numpy(dtype=bool), missing
    if kind == "float64":
        return column.to_numpy(dtype=np.float64), missing
    return column.fillna("").to_numpy(dtype=object).astype(str), missing


def from_arrays(values: np.ndarray, missing: np.ndarray, dtype: str) -> pd.Series:
    column = pd.Series(values)
    if dtype == "float64":
        return column.astype("float64")
    kind = dtype if dtype in ("Int64", "boolean") else "string"
    return column.astype(kind).mask(missing)

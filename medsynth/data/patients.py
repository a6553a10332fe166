"""Which files are of one person: tables of patients as people write them, and names sorted as people count."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from medsynth.data.columns import table_of
from medsynth.language.vocabulary import HEART
from medsynth.language.words import did_you_mean

ATTRIBUTES = (*HEART, "finding")  # that a model can be asked by
_NEEDED = ("file", "patient")


def natural(names: Iterable[str]) -> list[str]:
    """Names sorted as people count: scan2 before scan10."""

    def key(name: str) -> tuple[list[tuple[int, int, str]], str]:
        parts = re.split(r"([0-9]+)", name.lower())
        return [(0, int(p), "") if p.isascii() and p.isdigit() else (1, 0, p) for p in parts if p], name

    return sorted(names, key=key)


def read_patients(path: Path, names: Iterable[str]) -> tuple[dict[str, str], pd.DataFrame]:
    """File name -> patient id, and further attributes with a row for each name, of a CSV with the columns file and patient.

    Raises ValueError unless it names every file once, and for a column that no model is asked by.
    """
    names = list(names)
    known, found = set(names), {}
    # a file system may spell an umlaut in two characters where a spreadsheet takes one
    composed = {unicodedata.normalize("NFC", name): name for name in known}
    try:
        # utf-8-sig: spreadsheets put a mark in front of the first column's name
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")), strict=True)
        columns = [c.strip() for c in reader.fieldnames or []]
        _check(path.name, columns)
        reader.fieldnames = columns
        for row in reader:
            line = {c: str(row[c] or "").strip() for c in columns}
            file, where = line["file"], f"{path.name}, line {reader.line_num}"
            if file not in known:
                file = composed.get(unicodedata.normalize("NFC", file), file)
            if file not in known:
                raise ValueError(f"{where}: no file {file!r} in the folder; remove the line or add the file")
            if file in found:
                raise ValueError(f"{where}: {file} has two lines; expected one")
            if not line["patient"] or None in row:
                wrong = "too many columns" if line["patient"] else "no patient"
                raise ValueError(f"{where}: {file} has {wrong}; expected {','.join(columns)}")
            found[file] = line
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: not a CSV file in UTF-8 ({error})") from error
    if missing := natural(known - set(found)):
        raise ValueError(
            f"{path.name}: no line for {missing[0]} ({len(missing)} of {len(known)} files have none); add its patient"
        )
    further = {c: _numbers_or_words([found[name][c] for name in names]) for c in columns if c not in _NEEDED}
    people = {name: found[name]["patient"] for name in names}
    _refuse_two_spellings(path.name, sorted(set(people.values())))
    return people, table_of(path.name, further, len(names), "").drop(columns="licence")


def _refuse_two_spellings(name: str, ids: list[str]) -> None:
    """ValueError for ids that a hand or a spreadsheet writes for one person: who counts as two is promised half as much."""
    spelt: dict[str, str] = {}
    for one in ids:
        bare = re.sub(r"[\s_.-]+", "", re.sub(r"\.0+$", "", unicodedata.normalize("NFKC", one).casefold().strip()))
        plain = re.sub(r"(?<![0-9])0+(?=[0-9])", "", bare)
        if (other := spelt.setdefault(plain, one)) != one:
            raise ValueError(
                f"{name}: patients {other!r} and {one!r} differ in blanks, case, signs or leading zeros alone; if they are one "
                "person write one id, if they are two tell them apart by more"
            )


def _numbers_or_words(values: list[str]) -> np.ndarray:
    numbers = pd.to_numeric(pd.Series(values).replace("", None), errors="coerce").to_numpy(np.float64)
    return numbers if np.isnan(numbers).sum() == values.count("") else np.array(values)


def _check(name: str, columns: list[str]) -> None:
    if not set(_NEEDED) <= set(columns) or len(set(columns)) != len(columns):
        raise ValueError(f"{name}: first line is {','.join(columns)!r}; expected file,patient, and attributes if known")
    for column in (c for c in columns if c not in (*_NEEDED, *ATTRIBUTES)):
        raise ValueError(f"{name}: unknown column {column!r}; {did_you_mean(column, ATTRIBUTES)}")

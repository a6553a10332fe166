"""Which files are of one person: tables of patients as people write them, and names sorted as people count."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path


def natural(names: Iterable[str]) -> list[str]:
    """Names sorted as people count: scan2 before scan10."""

    def key(name: str) -> tuple[list[tuple[int, int, str]], str]:
        parts = re.split(r"([0-9]+)", name.lower())
        return [(0, int(p), "") if p.isascii() and p.isdigit() else (1, 0, p) for p in parts if p], name

    return sorted(names, key=key)


def read_patients(path: Path, names: Iterable[str]) -> dict[str, str]:
    """File name -> patient id from a CSV with the columns file and patient; ValueError unless it names every file once."""
    known, people = set(names), {}
    # a file system may spell an umlaut in two characters where a spreadsheet takes one
    composed = {unicodedata.normalize("NFC", name): name for name in known}
    try:
        # utf-8-sig: spreadsheets put a mark in front of the first column's name
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")), strict=True)
        columns = [c.strip() for c in reader.fieldnames or []]
        if sorted(columns) != ["file", "patient"]:
            raise ValueError(f"{path.name}: first line is {','.join(columns)!r}; expected the columns file,patient")
        reader.fieldnames = columns
        for row in reader:
            file, patient = (str(row[c] or "").strip() for c in ("file", "patient"))
            where = f"{path.name}, line {reader.line_num}"
            if file not in known:
                file = composed.get(unicodedata.normalize("NFC", file), file)
            if file not in known:
                raise ValueError(f"{where}: no file {file!r} in the folder; remove the line or add the file")
            if file in people:
                raise ValueError(f"{where}: {file} has two lines; expected one")
            if not patient or None in row:
                found = "too many columns" if patient else "no patient"
                raise ValueError(f"{where}: {file} has {found}; expected file,patient")
            people[file] = patient
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: not a CSV file in UTF-8 ({error})") from error
    if missing := natural(known - set(people)):
        raise ValueError(
            f"{path.name}: no line for {missing[0]} ({len(missing)} of {len(known)} files have none); add its patient"
        )
    return people

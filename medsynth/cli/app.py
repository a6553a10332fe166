"""What all commands share: the application, options of the same meaning, and how a line is said."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)

ProfileOption = Annotated[str, typer.Option("--profile", help="smoke, laptop, full or paper: a file of profiles/.")]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="AREA=PATH: your thorax, ct, mr or hearts instead of phantoms, e.g. ct=x.npz; real=FOLDER: the public sets that "
        "the shipped weights are measured on.",
    ),
]


PatientsOption = Annotated[Path | None, typer.Option(help="CSV file,patient for a private folder; else each file is one.")]
Pair = tuple[float, float] | None
RangeOption = Annotated[Pair, typer.Option("--range", help="LOW HIGH of plain files; PNG codes are spread over it.")]
CodesOption = Annotated[Pair, typer.Option(help="LOW HIGH, the PNG codes that stand for the ends of --range.")]
WindowOption = Annotated[Pair, typer.Option(help="LOW HIGH, to which values of NIfTI, and of CT in .npz files, are clipped.")]
UnitOption = Annotated[str, typer.Option(help="Unit of plain files, e.g. HU.")]


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """Synthetic medical images whose privacy and quality are measured."""


def say(line: str) -> None:
    print(line, flush=True)


def outside(out: Path, *given: Path) -> None:
    """ValueError where `out` lies in a folder of images that are read."""
    for folder in (path for path in given if path.is_dir() and out.resolve().is_relative_to(path.resolve())):
        raise ValueError(f"{out}: lies in {folder}, whose images it would mix with; choose a place outside")

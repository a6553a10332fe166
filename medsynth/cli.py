"""The command line: `medsynth reproduce`, `book`, `run` and `check`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from medsynth.config import project_root
from medsynth.runner import ChapterError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)

ProfileOption = Annotated[str, typer.Option("--profile", help="smoke, laptop, full or paper: a file of profiles/.")]
DataOption = Annotated[
    list[str] | None, typer.Option("--data", help="AREA=PATH: your images instead of phantoms, e.g. thorax=x.npz.")
]


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """Synthetic medical images whose privacy and quality are measured."""


@app.command()
def reproduce(
    profile: ProfileOption = "laptop",
    data: DataOption = None,
    only: Annotated[str | None, typer.Option(help="One chapter, e.g. generator or 02; the book is not built.")] = None,
    jobs: Annotated[int, typer.Option("-j", "--jobs", min=1, help="Chapters that run at the same time.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and why.")] = False,
    snakemake: Annotated[list[str] | None, typer.Argument(help="After --: options for Snakemake, e.g. --executor slurm.")] = None,
) -> None:
    """Run every chapter that something has changed for, then build the book."""
    from medsynth.book import build_book
    from medsynth.reproduce import make_plan, measured, parse_data, run_plan

    with measured() as cost:
        plan = make_plan(project_root(), profile, data=parse_data(data or []), only=only)
        ran = run_plan(plan, jobs=jobs, dry_run=dry_run, options=snakemake or [], say=_say)
        page = None if only or dry_run else build_book(plan.root, plan.folder, say=_say)
    if dry_run:
        _say(f"{ran} of {len(plan.chapters)} chapters would run")
        return
    place = plan.folder.relative_to(plan.root)
    _say(f"{ran} of {len(plan.chapters)} chapters ran in profile {profile}; rows and figures are in {place}/results/")
    _say(f"took {_minutes(cost.seconds)}, at most {cost.peak_bytes / 2**30:.1f} GiB of memory")
    if page:
        _say(f"the book is at {page}")


@app.command()
def book(profile: ProfileOption = "laptop", data: DataOption = None) -> None:
    """Build the book from what has already run."""
    from medsynth.book import build_book
    from medsynth.reproduce import build_folder, parse_data

    root = project_root()
    page = build_book(root, build_folder(root, profile, parse_data(data or [])), say=_say)
    _say(f"the book is at {page}")


@app.command()
def run(
    notebook: Path,
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", help="name=value, as the notebook declares it.")
    ] = None,
    target: Annotated[Path | None, typer.Option(help="Where the executed copy goes; default build/runs/.")] = None,
) -> None:
    """Run one notebook with given parameters; unknown ones are errors."""
    from medsynth.runner import parse_parameters, run_notebook

    root = project_root()
    target = target or root / "build" / "runs" / notebook.name
    _say(f"executed copy: {run_notebook(notebook, target, parse_parameters(notebook, parameter or []), cwd=root, log=_say)}")


@app.command()
def check() -> None:
    """Check what is to be published: clean notebooks, rows with sidecars, no pictures of people."""
    from medsynth.check import problems

    found = problems(project_root())
    for problem in found:
        _say(f"- {problem}")
    if found:
        raise ValueError(f"{len(found)} problem(s) stand in the way of publishing; see above")
    _say("nothing stands in the way of publishing")


@app.command(hidden=True)
def chapter(plan: Path, name: str) -> None:
    """Run one chapter of a plan; called by Snakemake."""
    from medsynth.reproduce import run_chapter

    run_chapter(plan, name, log=_say)


def _say(line: str) -> None:
    print(line, flush=True)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def main() -> None:
    """Entry point: an error of ours is one line and exit code 2 (1 for a failed chapter); `--debug` shows its traceback."""
    try:
        app()
    except (ChapterError, ValueError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1 if isinstance(error, ChapterError) else 2)

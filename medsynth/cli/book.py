"""Commands around the book: `reproduce`, `book`, `run`, `promote` and `check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from medsynth.cli.app import DataOption, ProfileOption, app, say
from medsynth.settings.profile import project_root


@app.command()
def reproduce(
    profile: ProfileOption = "laptop",
    data: DataOption = None,
    only: Annotated[str | None, typer.Option(help="One chapter, e.g. generator or 02; the book is not built.")] = None,
    jobs: Annotated[
        int | None, typer.Option("-j", "--jobs", min=1, help="Runs at the same time; default: as many as fit, on a cluster all.")
    ] = None,
    cluster: Annotated[Literal["slurm"] | None, typer.Option(help="slurm: each run is a job of the cluster.")] = None,
    partition: Annotated[str, typer.Option(help="Of the cluster; default its own.")] = "",
    account: Annotated[str, typer.Option(help="That the cluster charges; default its own.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and why.")] = False,
    snakemake: Annotated[list[str] | None, typer.Argument(help="After --: options for Snakemake, e.g. --retries 1.")] = None,
) -> None:
    """Run every chapter that something has changed for, then build the book."""
    from medsynth.publish.engine import measured, run_plan
    from medsynth.publish.pages.site import build_book
    from medsynth.publish.plan import make_plan, parse_data
    from medsynth.publish.slurm import SlurmRun

    if (partition or account) and not cluster:
        raise ValueError("--partition and --account belong to --cluster slurm; give it too")
    with measured() as cost:
        plan = make_plan(project_root(), profile, data=parse_data(data or []), only=only)
        slurm = SlurmRun(plan.folder / "slurm", partition, account) if cluster else None
        ran = run_plan(plan, jobs=jobs, slurm=slurm, dry_run=dry_run, options=snakemake or [], say=say)
        page = None if only or dry_run else build_book(plan.root, plan.folder, say=say)
    if dry_run:
        say(f"{ran} of {len(plan.chapters)} chapters would run")
        return
    place = plan.folder.relative_to(plan.root)
    say(f"{ran} of {len(plan.chapters)} chapters ran in profile {profile}; rows and figures are in {place}/results/")
    # what a chapter held on another machine is not known here
    memory = "" if cluster else f", at most {cost.peak_bytes / 2**30:.1f} GiB of memory"
    say(f"took {_minutes(cost.seconds)}{memory}")
    if page:
        say(f"the book is at {page}")


@app.command()
def book(profile: ProfileOption = "laptop", data: DataOption = None) -> None:
    """Build the book from what has already run."""
    from medsynth.publish.pages.site import build_book
    from medsynth.publish.plan import build_folder, parse_data

    root = project_root()
    page = build_book(root, build_folder(root, profile, parse_data(data or [])), say=say)
    say(f"the book is at {page}")


@app.command()
def run(
    notebook: Path,
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", help="name=value, as the notebook declares it.")
    ] = None,
    target: Annotated[Path | None, typer.Option(help="Where the executed copy goes; default build/runs/.")] = None,
) -> None:
    """Run one notebook with given parameters; unknown ones are errors."""
    from medsynth.publish.notebook import parse_parameters, run_notebook

    root = project_root()
    target = target or root / "build" / "runs" / notebook.name
    say(f"executed copy: {run_notebook(notebook, target, parse_parameters(notebook, parameter or []), cwd=root, log=say)}")


@app.command()
def promote(
    chapter: Annotated[str, typer.Argument(help="Whose tables and figures, e.g. gate or 03.")],
    name: Annotated[str, typer.Option(help="The published run that receives them, e.g. phantoms-full.")],
    profile: ProfileOption = "full",
    data: DataOption = None,
    source: Annotated[Path | None, typer.Option("--from", help="Where they lie; default build/PROFILE[-DATA].")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also where others are published; removes those of the chapter that this run lacks.")
    ] = False,
) -> None:
    """Put a chapter's rows and figures from build/ into results/published/NAME, if nothing speaks against it."""
    from medsynth.publish.plan import build_folder, parse_data
    from medsynth.publish.promote import promote as publish

    root = project_root()
    folder = source or build_folder(root, profile, parse_data(data or []))
    tables = publish(root, chapter, name, folder, replace=replace)
    say(f"results/published/{name}: {', '.join(tables)}; look at them, then commit")


@app.command()
def check() -> None:
    """Check what is to be published: clean notebooks, rows with sidecars, no pictures of people."""
    from medsynth.publish.check import problems

    found = problems(project_root())
    for problem in found:
        say(f"- {problem}")
    if found:
        raise ValueError(f"{len(found)} problem(s) stand in the way of publishing; see above")
    say("nothing stands in the way of publishing")


@app.command(hidden=True)
def chapter(plan: Path, name: str) -> None:
    """Run one chapter of a plan, or an arm of one; called by Snakemake."""
    from medsynth.publish.plan import run_one

    run_one(plan, name, log=say)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"

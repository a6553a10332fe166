"""Snakemake makes the runs of a plan that have to be made: here, several at a time, or as jobs of a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import filelock
import psutil

import medsynth
from medsynth.publish.notebook import ChapterError
from medsynth.publish.plan import Plan, Run, due, reasons
from medsynth.publish.slurm import SlurmRun, errors
from medsynth.store.runs import write_json

THREADS = 1  # of a run, by default: two runs with one each do more than one with two


def run_plan(
    plan: Plan,
    *,
    jobs: int | None = None,
    slurm: SlurmRun | None = None,
    dry_run: bool = False,
    options: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> int:
    """Make the runs that have to be made, `jobs` at a time; the number of chapters among them.

    Here runs share the processors, and by default as many go at a time as `jobs_for` says. With `slurm` they are jobs of a
    cluster, by default all at once, and each has what it needs. One at a time, a chapter has no arms: they would save nothing.
    options: further arguments for Snakemake. Raises ChapterError if a run failed, ValueError if there is no Slurm.
    """
    why = due(plan)
    if not why:
        return 0
    runs = [run for run in plan.runs if run.name in why]
    jobs = jobs or (len(runs) if slurm else jobs_for(runs))
    runs = runs if jobs > 1 else [run for run in runs if run in plan.chapters]
    if slurm and not dry_run:
        options = [*slurm.options(jobs), *options]
    for run in runs:
        more = f" and {len(why[run.name]) - 4} more" if len(why[run.name]) > 4 else ""
        asks = f"; asks for {', '.join(f'{key} {value}' for key, value in run.needs.items())}" if slurm else ""
        say(f"{run.name}: {'would run' if dry_run else 'runs'} ({', '.join(why[run.name][:4])}{more}){asks}")
    ran = sum(run in plan.chapters for run in runs)
    if dry_run and not options:
        return ran
    plan.folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(plan.folder / ".lock", timeout=0):
            threads = _threads_told() or max(1, (os.cpu_count() or 1) // jobs)
            config = {"root": str(plan.root), "python": sys.executable, "plan": str(plan.file)}
            # 0 threads: as many as each run needs
            config |= {"threads": 0, "resources": slurm.resources()} if slurm else {"threads": threads, "resources": {}}
            write_json(plan.file, config | {"runs": [asdict(run) for run in runs]})
            if slurm and not dry_run:
                _on_slurm(plan, runs, slurm, options, say)
            else:
                _here(plan, runs, jobs * threads, ["--dry-run"] * dry_run + list(options))
    except filelock.Timeout:
        raise ValueError(
            f"{plan.folder.relative_to(plan.root)} is in use by another `medsynth reproduce`; wait for it to end"
        ) from None
    return ran


def jobs_for(runs: Sequence[Run]) -> int:
    """How many runs go at a time on this machine: as many as have processors, and memory by what they are said to need."""
    memory = psutil.virtual_memory().total >> 20
    fit = memory // max(run.needs["mem_mb"] for run in runs)
    return max(1, min((os.cpu_count() or 1) // (_threads_told() or THREADS), fit, len(runs)))


def _threads_told() -> int:
    """What the user asks for in OMP_NUM_THREADS, which may be a list, of which the first entry counts here; 0 for nothing."""
    told = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(told) if told.isdigit() else 0


def _command(plan: Plan, *options: str) -> list[str]:
    return [
        sys.executable, "-m", "snakemake", "--snakefile", str(plan.root / "Snakefile"), "--configfile", str(plan.file),
        # its records lie beside the outputs they describe; our own lock also covers the time before and after
        "--directory", str(plan.folder), "--nolock", "--rerun-incomplete",
        # what has to run is known, and nothing else is in the plan
        "--forceall", *options,
    ]  # fmt: skip


def _environment() -> dict[str, str]:
    # Snakemake works in the plan's folder, where a relative path would lead nowhere
    paths = [str(Path(medsynth.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def _here(plan: Plan, runs: Sequence[Run], cores: int, options: Sequence[str]) -> None:
    began = time.time()
    command = _command(plan, "--cores", str(cores), "--quiet", "all", *options)
    if subprocess.run(command, cwd=plan.root, env=_environment()).returncode:
        left = {run.name: (plan.folder / run.target).with_suffix(".failed.ipynb") for run in runs}
        failed = [name for name, copy in left.items() if copy.exists() and copy.stat().st_mtime >= began]
        raise ChapterError(f"chapters that failed: {', '.join(failed) or 'none; Snakemake itself stopped, see above'}")


def _on_slurm(plan: Plan, runs: Sequence[Run], slurm: SlurmRun, options: Sequence[str], say: Callable[[str], None]) -> None:
    slurm.folder.mkdir(exist_ok=True)
    log = slurm.folder / "snakemake.log"
    with log.open("w") as f:
        snakemake = subprocess.Popen(
            _command(plan, *options), cwd=plan.root, env=slurm.environment(_environment()), stdout=f, stderr=f
        )
        why = slurm.watch(snakemake, say)
    # what counts is what the runs left, whatever Slurm or Snakemake know of their jobs
    left = [run for run in runs if reasons(plan, run)]
    # a chapter whose arm failed was never begun
    failed = {run.name: slurm.jobs.get(run.name) for run in left if not {r.name for r in left}.intersection(run.after)}
    logs = {name: slurm.log(job) if job else log for name, job in failed.items()}
    for path in dict.fromkeys(logs.values()):
        for line in errors(path):
            say(line)
    words = [f"{name} ({job or 'no job'}, see {logs[name].relative_to(plan.root)})" for name, job in failed.items()]
    if failed:
        raise ChapterError(f"chapters that failed: {', '.join(words)}" + (f"; {why}" if why else ""))
    if snakemake.returncode and not why:
        raise ChapterError(f"chapters that failed: none; Snakemake itself stopped, see {log.relative_to(plan.root)}")


@contextmanager
def measured() -> Iterator[SimpleNamespace]:
    """Wall time in `seconds`; in `peak_bytes` the most memory this process and all below it held, sampled each second."""
    result = SimpleNamespace(seconds=0.0, peak_bytes=0)
    began, done = time.monotonic(), threading.Event()

    def watch() -> None:
        while True:
            result.peak_bytes = max(result.peak_bytes, _resident())
            if done.wait(1.0):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield result
    finally:
        done.set()
        watcher.join()
        result.seconds = time.monotonic() - began


def _resident() -> int:
    total = 0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.Error:
            # it ended between the two calls
            continue
    return total

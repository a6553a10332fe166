"""One entry that regenerates every result: a plan of chapters, run by Snakemake where something they depend on has changed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace

import filelock
import psutil

import medsynth
from medsynth.config import load_profile
from medsynth.data.npz import known_folder
from medsynth.publish.fingerprint import changes, digest, fingerprint
from medsynth.publish.notebook import ChapterError, check_parameters, declared_parameters, read_notebook, run_notebook
from medsynth.publish.slurm import SlurmRun, errors
from medsynth.runs import write_json

# what `--data AREA=PATH` names -> the notebook parameter that receives the path
AREAS = {"thorax": "data", "ct": "ct", "mr": "mr", "real": "real"}


@dataclass(frozen=True)
class Chapter:
    """One papermill run. `source` is relative to the project root, `target` and `out` to the folder of the plan."""

    name: str
    source: str
    target: str  # the executed copy
    out: str  # folder of its result rows and figures
    parameters: dict[str, str]
    depends: dict[str, str]
    fingerprint: str
    needs: dict[str, int]  # what a cluster is asked for, by Snakemake's names of resources


@dataclass(frozen=True)
class Plan:
    """All runs of one profile on one choice of data, under `folder`."""

    root: Path
    folder: Path
    profile: str
    chapters: tuple[Chapter, ...]

    @property
    def file(self) -> Path:
        """Where Snakemake finds the plan."""
        return self.folder / "plan.json"


def chapter_sources(root: Path) -> dict[str, Path]:
    """Chapters by name, in order: every notebooks/NN_name.ipynb."""
    found = {p.stem: p for p in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))}
    if not found:
        raise FileNotFoundError(f"{root / 'notebooks'}: no chapters; expected files such as 00_quickstart.ipynb")
    return found


def find_chapter(name: str, known: Sequence[str]) -> str:
    """The chapter meant by "02_generator", "generator", "02" or "2"; ValueError names the closest."""
    for chapter in known:
        number, _, words = chapter.partition("_")
        if name in (chapter, words, number, str(int(number))):
            return chapter
    words = [chapter.partition("_")[2] for chapter in known]
    close = get_close_matches(name, [*known, *words], n=1)
    raise ValueError(
        f"chapter {name!r} does not exist; " + (f"did you mean {close[0]!r}?" if close else f"expected one of {list(known)}")
    )


def parse_data(assignments: Sequence[str]) -> dict[str, Path]:
    """`thorax=PATH` texts: notebook parameter -> existing file, absolute, in the order of AREAS; of "real" the folder of all."""
    found = {}
    for text in assignments:
        area, _, path = text.partition("=")
        if area not in AREAS or not path:
            raise ValueError(f"--data {text!r}: expected AREA=PATH with an area of {', '.join(AREAS)}")
        if area == "real":
            known_folder(path)
        elif not Path(path).is_file():
            raise FileNotFoundError(f"--data {text!r}: no file at {path}; expected an .npz file (data/README.md)")
        if AREAS[area] in found:
            raise ValueError(f"--data {text!r}: {area} has a file already, {found[AREAS[area]].name}; expected one for each area")
        found[AREAS[area]] = Path(path).resolve()
    return {parameter: found[parameter] for parameter in AREAS.values() if parameter in found}


def build_folder(root: Path, profile: str, data: Mapping[str, Path]) -> Path:
    """Where one profile on one choice of data puts everything it makes, e.g. build/laptop-mine."""
    return root / "build" / "-".join([profile, *(path.stem for path in data.values())])


def needs(root: Path, profile: str, chapter: str) -> dict[str, int]:
    """The first row of profiles/needs.csv for a chapter: `mem_mb`, `runtime` in minutes, `threads`, and `gpu` where it helps.

    A name may hold `*`, as in a shell. Chapters that run at once wait for a model that one of them trains: run time counts that.
    Raises ValueError for a column without a whole number, or if no row is for the chapter.
    """
    path = root / "profiles" / "needs.csv"
    with path.open(newline="") as f:
        for number, row in enumerate(csv.DictReader(f), 2):
            if fnmatchcase(profile, row["profile"]) and fnmatchcase(chapter, row["chapter"]):
                try:
                    found = {key: int(row[key]) for key in ("mem_mb", "runtime", "threads", "gpu")}
                except (TypeError, ValueError, KeyError):
                    raise ValueError(f"{path}: line {number} is {row}; expected whole numbers from mem_mb to gpu") from None
                return {key: value for key, value in found.items() if value}
    raise ValueError(f"{path}: no row for chapter {chapter} in profile {profile}; add one, such as *,*,16000,1440,4,0,estimated")


def make_plan(root: Path, profile: str, *, data: Mapping[str, Path] | None = None, only: str | None = None) -> Plan:
    """What has to run for `profile`, with what, and what each run depends on. Raises ValueError or FileNotFoundError early."""
    data = data or {}
    load_profile(profile, root / "profiles")
    sources = chapter_sources(root)
    wanted = [find_chapter(only, list(sources))] if only else list(sources)
    folder = build_folder(root, profile, data)
    package = Path(medsynth.__file__).parent
    chapters = []
    for name in wanted:
        source, out = sources[name], Path("results") / name
        declared = declared_parameters(source)
        given = {"profile": profile, "out": str(folder.relative_to(root) / out)}
        files = {key: path for key, path in data.items() if key in declared}
        given |= {key: str(path) for key, path in files.items()}
        depends = fingerprint(source, package=package, profile=root / "profiles" / f"{profile}.yaml", data=files)
        chapters.append(
            Chapter(
                name=name,
                source=str(source.relative_to(root)),
                target=f"chapters/{name}.ipynb",
                out=str(out),
                parameters=check_parameters(source, {k: v for k, v in given.items() if k in declared}),
                depends=depends,
                fingerprint=digest(depends),
                needs=needs(root, profile, name),
            )
        )
    return Plan(root, folder, profile, tuple(chapters))


def reasons(plan: Plan, chapter: Chapter) -> list[str]:
    """Why a chapter has to run: what changed since its executed copy was made, or which output is gone; empty if nothing."""
    target = plan.folder / chapter.target
    if not target.exists():
        return ["not run yet"]
    remark = read_notebook(target).metadata.get("medsynth", {})
    gone = [name for name in remark.get("wrote", []) if not (plan.folder / chapter.out / name).exists()]
    return changes(remark.get("depends", {}), chapter.depends) + [f"{name} is missing" for name in gone]


def run_chapter(plan_file: Path, name: str, *, log: Callable[[str], None] = print) -> Path:
    """Run one chapter of a plan: what a Snakemake rule calls."""
    plan = json.loads(Path(plan_file).read_text())
    chapter = Chapter(**next(c for c in plan["chapters"] if c["name"] == name))
    root, folder = Path(plan["root"]), Path(plan_file).parent
    out = folder / chapter.out
    # rows of an earlier version of the chapter would pass for rows of this one
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)

    def remark() -> dict[str, object]:
        data = sorted(set(chapter.parameters) & set(AREAS.values()))
        return {"depends": chapter.depends, "data": data, "wrote": sorted(p.name for p in out.iterdir())}

    return run_notebook(root / chapter.source, folder / chapter.target, chapter.parameters, cwd=root, log=log, remark=remark)


def run_plan(
    plan: Plan,
    *,
    jobs: int | None = None,
    slurm: SlurmRun | None = None,
    dry_run: bool = False,
    options: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> int:
    """Run what has to run, `jobs` chapters at a time; the number of chapters that ran.

    Here chapters share the processors, and by default run one at a time. With `slurm` they are jobs of a cluster, by default all
    at once, and each has what it needs. options: further arguments for Snakemake. Raises ChapterError if a chapter failed,
    ValueError if there is no Slurm.
    """
    jobs = jobs or (len(plan.chapters) if slurm else 1)
    if slurm and not dry_run:
        options = [*slurm.options(jobs), *options]
    why = {chapter.name: found for chapter in plan.chapters if (found := reasons(plan, chapter))}
    for chapter in plan.chapters:
        if found := why.get(chapter.name):
            more = f" and {len(found) - 4} more" if len(found) > 4 else ""
            asks = f"; asks for {', '.join(f'{key} {value}' for key, value in chapter.needs.items())}" if slurm else ""
            say(f"{chapter.name}: {'would run' if dry_run else 'runs'} ({', '.join(found[:4])}{more}){asks}")
    plan.folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(plan.folder / ".lock", timeout=0):
            # OpenMP allows a list, of which the first entry counts here
            told = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
            threads = int(told) if told.isdigit() and int(told) else max(1, (os.cpu_count() or 1) // jobs)
            config = {"root": str(plan.root), "python": sys.executable, "plan": str(plan.file)}
            # 0 threads: as many as each chapter needs
            config |= {"threads": 0, "resources": slurm.resources()} if slurm else {"threads": threads, "resources": {}}
            write_json(plan.file, config | {"chapters": [asdict(c) for c in plan.chapters]})
            if slurm and not dry_run:
                _on_slurm(plan, list(why), slurm, options, say)
            else:
                _here(plan, list(why), jobs * threads, dry_run, options)
    except filelock.Timeout:
        raise ValueError(
            f"{plan.folder.relative_to(plan.root)} is in use by another `medsynth reproduce`; wait for it to end"
        ) from None
    return len(why)


def _command(plan: Plan, forced: list[str], *options: str) -> list[str]:
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", str(plan.root / "Snakefile"), "--configfile", str(plan.file),
        # its records lie beside the outputs they describe; our own lock also covers the time before and after
        "--directory", str(plan.folder), "--nolock", "--rerun-incomplete", "--rerun-triggers", "params", *options,
    ]  # fmt: skip
    return command + (["--forcerun", *(f"chapter_{name}" for name in forced)] if forced else [])


def _environment() -> dict[str, str]:
    # Snakemake works in the plan's folder, where a relative path would lead nowhere
    paths = [str(Path(medsynth.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def _here(plan: Plan, forced: list[str], cores: int, dry_run: bool, options: Sequence[str]) -> None:
    dry = ["--dry-run"] if dry_run else []
    command = _command(plan, forced, "--cores", str(cores), "--quiet", "all", *dry, *options)
    # what would run, and why, has been said in our words
    silence = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} if dry_run and not options else {}
    if subprocess.run(command, cwd=plan.root, env=_environment(), **silence).returncode:
        failed = [c.name for c in plan.chapters if (plan.folder / c.target).with_name(f"{c.name}.failed.ipynb").exists()]
        raise ChapterError(f"chapters that failed: {', '.join(failed) or 'none; Snakemake itself stopped, see above'}")


def _on_slurm(plan: Plan, forced: list[str], slurm: SlurmRun, options: Sequence[str], say: Callable[[str], None]) -> None:
    slurm.folder.mkdir(exist_ok=True)
    log = slurm.folder / "snakemake.log"
    with log.open("w") as f:
        snakemake = subprocess.Popen(
            _command(plan, forced, *options), cwd=plan.root, env=slurm.environment(_environment()), stdout=f, stderr=f
        )
        why = slurm.watch(snakemake, say)
    # what counts is what the chapters left, whatever Slurm or Snakemake know of their jobs
    failed = {chapter.name: slurm.jobs.get(chapter.name) for chapter in plan.chapters if reasons(plan, chapter)}
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

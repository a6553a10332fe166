"""One entry that regenerates every result: a plan of chapters, run by Snakemake where something they depend on has changed."""

from __future__ import annotations

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
from pathlib import Path
from types import SimpleNamespace

import filelock
import psutil

import medsynth
from medsynth.config import load_profile
from medsynth.publish.fingerprint import changes, digest, fingerprint
from medsynth.publish.notebook import ChapterError, check_parameters, declared_parameters, read_notebook, run_notebook
from medsynth.runs import write_json

# what `--data AREA=PATH` names -> the notebook parameter that receives the path
AREAS = {"thorax": "data", "ct": "ct", "mr": "mr"}


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
    """`thorax=PATH` texts: notebook parameter -> existing file, absolute, in the order of AREAS."""
    found = {}
    for text in assignments:
        area, _, path = text.partition("=")
        if area not in AREAS or not path:
            raise ValueError(f"--data {text!r}: expected AREA=PATH with an area of {', '.join(AREAS)}")
        if not Path(path).is_file():
            raise FileNotFoundError(f"--data {text!r}: no file at {path}; expected an .npz file (data/README.md)")
        if AREAS[area] in found:
            raise ValueError(f"--data {text!r}: {area} has a file already, {found[AREAS[area]].name}; expected one for each area")
        found[AREAS[area]] = Path(path).resolve()
    return {parameter: found[parameter] for parameter in AREAS.values() if parameter in found}


def build_folder(root: Path, profile: str, data: Mapping[str, Path]) -> Path:
    """Where one profile on one choice of data puts everything it makes, e.g. build/laptop-mine."""
    return root / "build" / "-".join([profile, *(path.stem for path in data.values())])


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
    plan: Plan, *, jobs: int = 1, dry_run: bool = False, options: Sequence[str] = (), say: Callable[[str], None] = print
) -> int:
    """Run what has to run, `jobs` chapters at a time, which share the processors; the number of chapters that ran.

    options: further arguments for Snakemake, such as ("--executor", "slurm"). Raises ChapterError if a chapter failed.
    """
    why = {chapter.name: found for chapter in plan.chapters if (found := reasons(plan, chapter))}
    for name, found in why.items():
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        say(f"{name}: {'would run' if dry_run else 'runs'} ({', '.join(found[:4])}{more})")
    plan.folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(plan.folder / ".lock", timeout=0):
            # OpenMP allows a list, of which the first entry counts here
            told = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
            threads = int(told) if told.isdigit() and int(told) else max(1, (os.cpu_count() or 1) // jobs)
            config = {"root": str(plan.root), "python": sys.executable, "plan": str(plan.file), "threads": threads}
            write_json(plan.file, config | {"chapters": [asdict(c) for c in plan.chapters]})
            _snakemake(plan, list(why), jobs * threads, dry_run, options)
    except filelock.Timeout:
        raise ValueError(
            f"{plan.folder.relative_to(plan.root)} is in use by another `medsynth reproduce`; wait for it to end"
        ) from None
    return len(why)


def _snakemake(plan: Plan, forced: list[str], cores: int, dry_run: bool, options: Sequence[str]) -> None:
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", str(plan.root / "Snakefile"), "--configfile", str(plan.file),
        # its records lie beside the outputs they describe; our own lock also covers the time before and after
        "--directory", str(plan.folder), "--nolock", "--cores", str(cores), "--rerun-incomplete", "--rerun-triggers", "params",
        "--quiet", "all", *(["--dry-run"] if dry_run else []), *options,
    ]  # fmt: skip
    if forced:
        command += ["--forcerun", *(f"chapter_{name}" for name in forced)]
    # Snakemake works in the plan's folder, where a relative path would lead nowhere
    paths = [str(Path(medsynth.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    # what would run, and why, has been said in our words
    silence = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} if dry_run and not options else {}
    if subprocess.run(command, cwd=plan.root, env=environment, **silence).returncode:
        failed = [c.name for c in plan.chapters if (plan.folder / c.target).with_name(f"{c.name}.failed.ipynb").exists()]
        raise ChapterError(f"chapters that failed: {', '.join(failed) or 'none; Snakemake itself stopped, see above'}")


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

"""What regenerates every result: chapters and the arms they are begun in, each a notebook run that knows what it depends on."""

from __future__ import annotations

import csv
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import attrgetter
from pathlib import Path

import medsynth
from medsynth.data.npz import known_folder
from medsynth.language.words import did_you_mean
from medsynth.publish.fingerprint import changes, fingerprint
from medsynth.publish.notebook import (
    Arms,
    check_parameters,
    declared_arms,
    declared_parameters,
    read_notebook,
    run_notebook,
)
from medsynth.settings.profile import Profile, load_profile

# what `--data AREA=PATH` names -> the notebook parameter that receives the path
AREAS = {"thorax": "data", "ct": "ct", "mr": "mr", "hearts": "hearts", "real": "real"}


@dataclass(frozen=True)
class Run:
    """One papermill run: a chapter, or an arm of one, which is its beginning for one part of what it trains.

    Arms fill the run cache; the chapter then finds everything trained, and is the only one whose rows are read.
    `source` is relative to the project root, `target` and `out` to the folder of the plan.
    """

    name: str  # "04_restoration"; of an arm "04_restoration/ct-low-dose-edsr"
    source: str
    target: str  # the executed copy
    out: str  # folder of its result rows and figures; nothing reads that of an arm
    parameters: dict[str, str]
    depends: dict[str, str]
    needs: dict[str, int]  # what a cluster is asked for, by Snakemake's names of resources
    until: str = ""  # id of the last cell of an arm
    after: tuple[str, ...] = ()  # names of the arms that have to be over before it begins

    @property
    def chapter(self) -> str:
        """The chapter that it is, or is an arm of."""
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class Plan:
    """All runs of one profile on one choice of data, under `folder`; the arms of a chapter stand before it."""

    root: Path
    folder: Path
    profile: str
    runs: tuple[Run, ...]

    @property
    def chapters(self) -> tuple[Run, ...]:
        """The runs that are no arms."""
        return tuple(run for run in self.runs if run.name == run.chapter)

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
    raise ValueError(f"chapter {name!r} does not exist; {did_you_mean(name, [*known, *words])}")


def parse_data(assignments: Sequence[str]) -> dict[str, Path]:
    """`thorax=PATH` texts: notebook parameter -> existing file, absolute, in the order of AREAS; of "real" the folder of all.

    Raises ValueError or FileNotFoundError for what is no such text, and for a file without arrays of the names that images of
    patients have; what the arrays hold is looked at when a chapter reads them.
    """
    found = {}
    for text in assignments:
        area, _, path = text.partition("=")
        if area not in AREAS or not path:
            raise ValueError(f"--data {text!r}: expected AREA=PATH with an area of {', '.join(AREAS)}")
        if area == "real":
            known_folder(path)
        elif not Path(path).is_file():
            raise FileNotFoundError(f"--data {text!r}: no file at {path}; expected an .npz file (data/README.md)")
        elif not _holds_images(Path(path)):
            raise ValueError(f"--data {text!r}: not an .npz file of 'image' or 'volume', and 'patient' (data/README.md)")
        if AREAS[area] in found:
            raise ValueError(f"--data {text!r}: {area} has a file already, {found[AREAS[area]].name}; expected one for each area")
        found[AREAS[area]] = Path(path).resolve()
    return {parameter: found[parameter] for parameter in AREAS.values() if parameter in found}


def _holds_images(path: Path) -> bool:
    """Whether a file has arrays of the names that images of patients have, or those of a set that was saved."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except zipfile.BadZipFile:
        return False
    return "meta" in names or ("patient" in names and bool(names & {"image", "volume"}))


def build_folder(root: Path, profile: str, data: Mapping[str, Path]) -> Path:
    """Where one profile on one choice of data puts everything it makes: build/laptop-mine, or build/laptop-ct=mine-mr=yours.

    Radiographs alone are named by their file; other choices say the area. No two choices of areas and names share a folder.
    """
    areas = {parameter: area for area, parameter in AREAS.items()}
    # a sign in the name of a file is doubled, so that a single one stands behind an area
    named = {areas[parameter]: path.stem.replace("=", "==") for parameter, path in data.items()}
    parts = list(named.values()) if list(named) == ["thorax"] else [f"{area}={stem}" for area, stem in named.items()]
    return root / "build" / "-".join([profile, *parts])


def needs(root: Path, profile: str, chapter: str) -> dict[str, int]:
    """The first row of profiles/needs.csv for a run: `mem_mb`, `runtime` in minutes, `threads`, and `gpu` where it helps.

    A name may hold `*`, as in a shell; `04_restoration/*` are the arms of a chapter.
    Raises ValueError for a column without a whole number, or if no row is for the run.
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
    settings = load_profile(profile, root / "profiles")
    sources = chapter_sources(root)
    wanted = [find_chapter(only, list(sources))] if only else list(sources)
    in_arms = {find_chapter(name, list(sources)) for name in settings.arms}
    _all_taken(data or {}, {name: set(declared_parameters(sources[name])) for name in wanted})
    folder = build_folder(root, profile, data or {})
    package, sizes = Path(medsynth.__file__).parent, root / "profiles" / f"{profile}.yaml"

    def run(name: str, place: str, after: Sequence[str], until: str = "", **part: str) -> Run:
        source = sources[name.partition("/")[0]]
        declared = declared_parameters(source)
        out = Path("results" if place == "chapters" else place, name)
        files = {key: path for key, path in (data or {}).items() if key in declared}
        given = {"profile": profile, "out": str(folder.relative_to(root) / out)}
        given = {key: value for key, value in given.items() if key in declared} | {k: str(v) for k, v in files.items()} | part
        return Run(
            name=name, source=str(source.relative_to(root)), target=f"{place}/{name}.ipynb", out=str(out),
            parameters=check_parameters(source, given),
            depends=fingerprint(source, package=package, profile=sizes, data=files, until=until),
            needs=needs(root, profile, name), until=until, after=tuple(after),
        )  # fmt: skip

    runs: list[Run] = []
    for name in wanted:
        arms: list[str] = []
        for until, parameter, values in stages(sources[name], settings) if name in in_arms else ():
            # arms of one cell never wait for one another, and find what those of the cells before have trained
            named = [f"{name}/{re.sub(r'[^A-Za-z0-9]+', '-', value).strip('-')}" for value in values]
            runs += [run(arm, "arms", arms, until, **{parameter: v}) for arm, v in zip(named, values, strict=True)]
            arms = [*arms, *named]
        if len(set(arms)) < len(arms):
            raise ValueError(f"{sources[name]}: its arms in profile {profile} are {arms}; expected names that differ")
        runs.append(run(name, "chapters", arms))
    return Plan(root, folder, profile, tuple(runs))


def _all_taken(data: Mapping[str, Path], chapters: Mapping[str, set[str]]) -> None:
    """ValueError for data that none of the chapters takes, which would run on phantoms under the name of the data."""
    taken = {name: [area for area, parameter in AREAS.items() if parameter in declared] for name, declared in chapters.items()}
    for area, parameter in AREAS.items():
        if parameter in data and not any(area in areas for areas in taken.values()):
            said = "; ".join(f"{name} takes {', '.join(areas)}" for name, areas in taken.items() if areas)
            raise ValueError(
                f"--data {area}={data[parameter]}: no chapter that is to run takes it; {said or 'they take no data'}"
            )


def stages(source: Path, settings: Profile) -> list[Arms]:
    """What a notebook can be begun as in a profile, cell after cell; where nothing is divided at the end, the chapter does it.

    Raises ValueError for a field that the profile does not have, and for a notebook that declares no arms.
    """
    found = []
    for until, parameter, values in declared_arms(source):
        if isinstance(values, str):
            try:
                values = [str(value) for value in attrgetter(values)(settings)]
            except (AttributeError, TypeError):
                raise ValueError(f"{source}: the profile has no list {values!r}, by which cell {until} has its arms") from None
        found.append(Arms(until, parameter, values))
    if not found:
        raise ValueError(f"{source}: has no arms, but is among `arms` of profiles/{settings.name}.yaml; remove it there")
    while found and len(found[-1].values) < 2:
        found.pop()
    return found


def reasons(plan: Plan, run: Run) -> list[str]:
    """Why a run has to be made: what changed since its executed copy was made, or which output is gone; empty if nothing."""
    target = plan.folder / run.target
    if not target.exists():
        return ["not run yet"]
    remark = read_notebook(target).metadata.get("medsynth", {})
    gone = [name for name in remark.get("wrote", []) if not (plan.folder / run.out / name).exists()]
    return changes(remark.get("depends", {}), run.depends) + [f"{name} is missing" for name in gone]


def due(plan: Plan) -> dict[str, list[str]]:
    """Name of each run that has to be made -> why, in the order of the plan; no arm of a chapter that has not to run."""
    why = {run.name: found for run in plan.runs if (found := reasons(plan, run))}
    return {run.name: why[run.name] for run in plan.runs if run.name in why and run.chapter in why}


def run_one(plan_file: Path, name: str, *, log: Callable[[str], None] = print) -> Path:
    """Make one run of a plan: what a Snakemake rule calls."""
    plan = json.loads(Path(plan_file).read_text())
    run = Run(**next(r for r in plan["runs"] if r["name"] == name))
    root, folder = Path(plan["root"]), Path(plan_file).parent
    out = folder / run.out
    # rows of an earlier version of the chapter would pass for rows of this one
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)

    def remark() -> dict[str, object]:
        data = sorted(set(run.parameters) & set(AREAS.values()))
        return {"depends": run.depends, "data": data, "wrote": sorted(p.name for p in out.iterdir())}

    return run_notebook(
        root / run.source, folder / run.target, run.parameters, cwd=root, name=run.name, until=run.until, log=log, remark=remark
    )

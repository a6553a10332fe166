"""The command line: `medsynth reproduce`, `book`, `run`, `promote`, `check`, `train`, `generate`, `gate` and `verify`."""

from __future__ import annotations

import math
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from medsynth.config import load_profile, project_root
from medsynth.publish.notebook import ChapterError
from medsynth.words import TRACEBACK, plain, unexpected

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)

ProfileOption = Annotated[str, typer.Option("--profile", help="smoke, laptop, full or paper: a file of profiles/.")]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="AREA=PATH: your thorax, ct or mr images instead of phantoms, e.g. ct=x.npz; real=FOLDER: the public sets that the "
        "shipped weights are measured on.",
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
        ran = run_plan(plan, jobs=jobs, slurm=slurm, dry_run=dry_run, options=snakemake or [], say=_say)
        page = None if only or dry_run else build_book(plan.root, plan.folder, say=_say)
    if dry_run:
        _say(f"{ran} of {len(plan.chapters)} chapters would run")
        return
    place = plan.folder.relative_to(plan.root)
    _say(f"{ran} of {len(plan.chapters)} chapters ran in profile {profile}; rows and figures are in {place}/results/")
    # what a chapter held on another machine is not known here
    memory = "" if cluster else f", at most {cost.peak_bytes / 2**30:.1f} GiB of memory"
    _say(f"took {_minutes(cost.seconds)}{memory}")
    if page:
        _say(f"the book is at {page}")


@app.command()
def book(profile: ProfileOption = "laptop", data: DataOption = None) -> None:
    """Build the book from what has already run."""
    from medsynth.publish.pages.site import build_book
    from medsynth.publish.plan import build_folder, parse_data

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
    from medsynth.publish.notebook import parse_parameters, run_notebook

    root = project_root()
    target = target or root / "build" / "runs" / notebook.name
    _say(f"executed copy: {run_notebook(notebook, target, parse_parameters(notebook, parameter or []), cwd=root, log=_say)}")


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
    _say(f"results/published/{name}: {', '.join(tables)}; look at them, then commit")


@app.command()
def train(
    images: Annotated[
        Path, typer.Argument(help="An .npz file of your images, of splits its train rows, or a folder of PNG or NIfTI files.")
    ],
    out: Annotated[Path, typer.Option(help="A new folder, where the generator goes: as private as the images.")],
    modality: Annotated[str, typer.Option(help="What the images are: xray, ct, mr or pet.")] = "xray",
    profile: ProfileOption = "laptop",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    patients: PatientsOption = None,
    values: RangeOption = None,
    codes: CodesOption = None,
    window: WindowOption = None,
    unit: UnitOption = "1",
) -> None:
    """Train a generator on your images; a killed training goes on where it was."""
    from medsynth.data.folder import load, stated
    from medsynth.diffusion.generator import Generator, to_train_on
    from medsynth.ledger import Ledger
    from medsynth.runs import free_place

    # before hours of training
    free_place(out)
    _outside(out, images)
    settings = load_profile(profile)
    meaning = stated(values, codes, window, unit, [images])
    everybody = load(images, role="private", modality=modality, patients=patients, values=meaning)
    ours = to_train_on(everybody)
    if len(ours) < len(everybody):
        _say(f"{len(ours)} of {len(everybody)} images: those of split train")
    parts = {"denoiser": replace(settings.denoiser, spatial_dims=len(ours.spatial)), "diffusion": settings.diffusion}
    made = Generator.train(ours, **parts, sampling=settings.sampling, ledger=Ledger(), seed=seed)
    _say(f"trained on {len(ours)} images of {ours.patients} patients: {made.save(out)}, as private as they are")
    _say(made.sentence)


@app.command()
def generate(
    run: Annotated[Path, typer.Argument(help="A generator, as `medsynth train` or a chapter saved it.")],
    out: Annotated[Path, typer.Option(help="A new .npz file of images, for `medsynth gate` and the chapters.")],
    n: Annotated[int, typer.Option("--n", min=1, help="How many images.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of conditions and noise.")] = 0,
) -> None:
    """Draw images from a generator, asked for by public marginals of age, sex, BMI and findings."""
    from medsynth.diffusion.conditions import public_marginals
    from medsynth.diffusion.generator import Generator
    from medsynth.runs import free_place, owner_alone

    if out.suffix != ".npz" or out.exists() or not out.parent.is_dir():
        raise ValueError(f"{out}: expected the name of a new .npz file in a folder that is there")
    free_place(out)
    generator = Generator.load(run)
    reseeded = replace(generator, sampling=replace(generator.sampling, seed=seed))
    try:
        drawn = reseeded.draw(public_marginals(generator.like, generator.names, n, seed=seed))
    except MemoryError as error:
        raise ValueError(
            f"--n {n}: so many images of {run} do not fit into memory; draw fewer at a time, each time with another --seed"
        ) from error
    with owner_alone():
        drawn.save(out)
    if drawn.role != "private":
        out.chmod(0o644)
    _say(f"{n} images: {out}")
    _say(generator.sentence)


@app.command()
def check() -> None:
    """Check what is to be published: clean notebooks, rows with sidecars, no pictures of people."""
    from medsynth.publish.check import problems

    found = problems(project_root())
    for problem in found:
        _say(f"- {problem}")
    if found:
        raise ValueError(f"{len(found)} problem(s) stand in the way of publishing; see above")
    _say("nothing stands in the way of publishing")


@app.command()
def gate(
    candidates: Annotated[Path, typer.Argument(help="An .npz file, or a folder of PNG or NIfTI files.")],
    private: Annotated[Path, typer.Option(help="The private set, in the same form.")],
    out: Annotated[Path, typer.Option(help="A new folder: OUT/release to pass on, OUT/audit to keep.")],
    tau: Annotated[float | None, typer.Option(help="Least distance; better: --others, or the one of --modality.")] = None,
    patients: PatientsOption = None,
    phi: Annotated[str, typer.Option(help="Measures distance: encoder, pixels, autoencoder, untrained_vgg.")] = "encoder",
    modality: Annotated[
        str,
        typer.Option(
            help="What the images are: xray, ct, mr or pet, or phantom-ct and so on. Without --others or --tau it picks the "
            "threshold that ships for them: of people always that of radiographs of children, of volumes only phantom-heart."
        ),
    ] = "",
    others: Annotated[
        Path | None, typer.Option(help="Images of people who are not in --private, a file each: finds the threshold.")
    ] = None,
    miss: Annotated[
        float | None,
        typer.Option(
            help="Share of copies, altered in any one way, that --others may let pass, and three times it of those altered "
            "in two; default 0.01, for 299 people."
        ),
    ] = None,
    sign: Annotated[Path | None, typer.Option(help="Ed25519 private key in PEM.")] = None,
    values: RangeOption = None,
    codes: CodesOption = None,
    window: WindowOption = None,
    unit: UnitOption = "1",
) -> None:
    """Release the candidates that keep their distance from every private image, with a certificate."""
    from medsynth.data.folder import load, load_candidates, stated
    from medsynth.ledger import Ledger
    from medsynth.privacy.release.gate_release import MISS, gate_release
    from medsynth.results import show_value
    from medsynth.runs import free_place

    given = [path for path in (candidates, private, others) if path is not None]
    meaning = stated(values, codes, window, unit, given)
    if tau is not None and others is not None:
        raise ValueError("--others and --tau exclude each other: a threshold is found, or given")
    kind = _modality(modality)
    if miss is not None and others is None:
        raise ValueError("--miss belongs to --others; a threshold that ships, or is given, has its own")
    if miss is not None and not 0 < miss < 0.5:
        raise ValueError(f"--miss {miss:g}; expected a share between 0 and 0.5, such as 0.01")
    if tau is not None and not 0 < tau < math.inf:
        raise ValueError(f"tau is {tau}; expected a positive, finite distance")
    # before anything is read: what can be known to fail takes no time and leaves no line in a ledger
    free_place(out)
    _outside(out, *given)
    ours = load(private, role="private", modality=kind, patients=patients, values=meaning)
    theirs, unusable = load_candidates(candidates, modality=kind, values=meaning)
    strangers = None if others is None else load(others, role="eval", modality=kind, values=meaning)
    done = gate_release(
        theirs, ours, out=out, ledger=Ledger(), phi=phi, others=strangers, miss=MISS if miss is None else miss, tau=tau,
        kind=modality.lower(), sign=sign, unusable=unusable, values=meaning,
    )  # fmt: skip
    total = done.released + sum(done.refused.values())
    reasons = "".join(f", {n} {reason}" for reason, n in sorted(done.refused.items()))
    _say(f"{done.released} of {total} candidates released{reasons}")
    _say(f"compared with {len(ours)} images of {ours.patients} private patients")
    if done.strangers:
        share = show_value(100 * done.strangers.value, 100 * done.strangers.low, 100 * done.strangers.high, done.strangers.n)
        _say(f"of images of other people it would refuse, in percent: {share}; this too is for the audit only")
    _say(f"{out / 'release'} may be passed on as its README.txt says; {out / 'audit'} is as private as the private set")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="What `medsynth gate` made, or its release folder alone.")],
    private: Annotated[Path | None, typer.Option(help="The private set: repeat all distances too.")] = None,
    patients: Annotated[Path | None, typer.Option(help="CSV file,patient that was given for a private folder.")] = None,
    public_key: Annotated[Path | None, typer.Option(help="Ed25519 public key in PEM, of the expected sender.")] = None,
) -> None:
    """Check a release against its certificate; exit 1 at the first thing that is not as it says."""
    from medsynth.privacy.release.verify import VerificationError
    from medsynth.privacy.release.verify import verify as check_release

    if patients and not private:
        raise ValueError("--patients belongs to a private folder; give --private too")
    try:
        _say(check_release(folder, private=private, patients=patients, public_key=public_key))
    except VerificationError as error:
        print(f"failed: {error}", file=sys.stderr, flush=True)
        raise typer.Exit(1) from None


def _outside(out: Path, *given: Path) -> None:
    """ValueError where `out` lies in a folder of images that are read."""
    for folder in (path for path in given if path.is_dir() and out.resolve().is_relative_to(path.resolve())):
        raise ValueError(f"{out}: lies in {folder}, whose images it would mix with; choose a place outside")


def _modality(said: str) -> str:
    """What images of `said` are: "phantom-ct" is CT, and a phantom heart MR. ValueError for what nobody knows."""
    from medsynth.vocabulary import MODALITIES

    named = said.lower().removeprefix("phantom-")
    known = "mr" if said.lower() == "phantom-heart" else named
    if known not in (*MODALITIES, ""):
        raise ValueError(f"--modality {said}; expected {', '.join(MODALITIES)}, or phantom- before one of them, or phantom-heart")
    return known


@app.command(hidden=True)
def chapter(plan: Path, name: str) -> None:
    """Run one chapter of a plan, or an arm of one; called by Snakemake."""
    from medsynth.publish.plan import run_one

    run_one(plan, name, log=_say)


def _say(line: str) -> None:
    print(line, flush=True)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def main() -> None:
    """Entry point: an error is one line and exit code 2 (1 for a failed chapter, 3 for one that nobody expected).

    `--debug`, and MEDSYNTH_TRACEBACK=1 in the environment, show its traceback.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        # unwinds, so that no half-made release and no private features stay behind; nohup has it ignored, and so it stays
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        app()
    except Exception as error:
        if "--debug" in sys.argv or os.environ.get(TRACEBACK) == "1":
            raise
        expected = isinstance(error, ChapterError | ValueError | OSError | FloatingPointError)
        print(f"error: {plain(error) if expected else unexpected(error)}", file=sys.stderr, flush=True)
        sys.exit(1 if isinstance(error, ChapterError) else 2 if expected else 3)

"""The command line: `medsynth reproduce`, `book`, `run`, `check`, `gate` and `verify`."""

from __future__ import annotations

import hashlib
import math
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medsynth.config import project_root
from medsynth.publish.notebook import ChapterError

if TYPE_CHECKING:
    from medsynth.data.folder import Loaded
    from medsynth.imageset import ImageSet
    from medsynth.ledger import Ledger
    from medsynth.privacy.gate.feature_maps import FeatureMap
    from medsynth.privacy.gate.thresholds import Threshold

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)

ProfileOption = Annotated[str, typer.Option("--profile", help="smoke, laptop, full or paper: a file of profiles/.")]
DataOption = Annotated[
    list[str] | None, typer.Option("--data", help="AREA=PATH: your thorax, ct or mr images instead of phantoms, e.g. ct=x.npz.")
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
    from medsynth.publish.plan import make_plan, measured, parse_data, run_plan
    from medsynth.publish.site import build_book

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
    from medsynth.publish.plan import build_folder, parse_data
    from medsynth.publish.site import build_book

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
    patients: Annotated[Path | None, typer.Option(help="CSV file,patient for a private folder; else each file is one.")] = None,
    phi: Annotated[
        str, typer.Option(help="Where distance is measured: encoder, pixels, autoencoder, untrained_vgg.")
    ] = "encoder",
    modality: Annotated[
        str,
        typer.Option(
            help="xray, ct, mr or pet: the threshold that ships for such images, or phantom-ct and so on; for volumes "
            "there is phantom-heart only."
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
    values: Annotated[
        tuple[float, float] | None, typer.Option("--range", help="LOW HIGH of plain files; PNG codes are spread over it.")
    ] = None,
    window: Annotated[tuple[float, float] | None, typer.Option(help="LOW HIGH, to which NIfTI values are clipped.")] = None,
    unit: Annotated[str, typer.Option(help="Unit of plain files, e.g. HU.")] = "1",
) -> None:
    """Release the candidates that keep their distance from every private image, with a certificate."""
    from medsynth.data.folder import Values, load
    from medsynth.ledger import Ledger
    from medsynth.privacy.gate.calibration import one_per_patient
    from medsynth.privacy.gate.feature_maps import feature_map
    from medsynth.privacy.release.certify import certify, free_place
    from medsynth.results import show_value

    if values and window:
        raise ValueError("--range and --window exclude each other: values outside are an error, or they are clipped")
    given = [path for path in (candidates, private, others) if path is not None]
    if (values or unit != "1") and not any(path.is_dir() for path in given if path.exists()):
        raise ValueError("--range and --unit say what plain files hold; an .npz file says it itself")
    if (tau is not None) + bool(modality) + (others is not None) > 1:
        raise ValueError("--others, --modality and --tau exclude each other: a threshold is found, or one that ships, or given")
    if miss is not None and others is None:
        raise ValueError("--miss belongs to --others; a threshold that ships, or is given, has its own")
    if miss is not None and not 0 < miss < 0.5:
        raise ValueError(f"--miss {miss:g}; expected a share between 0 and 0.5, such as 0.01")
    if tau is not None and not 0 < tau < math.inf:
        raise ValueError(f"tau is {tau}; expected a positive, finite distance")
    # before anything is read: what can be known to fail takes no time and leaves no line in a ledger
    free_place(out)
    for folder in (path for path in given if path.is_dir() and out.resolve().is_relative_to(path.resolve())):
        raise ValueError(f"{out}: lies in {folder}, whose images it would mix with; choose a place outside")
    meaning = Values(values or window, unit, clip=window is not None)
    ours = load(private, role="private", patients=patients, values=meaning)
    theirs = load(candidates, values=meaning, whole=False)
    ledger = Ledger(_ledger_of(private))
    key = "encoder_3d" if (phi, len(ours.images.spatial)) == ("encoder", 3) else phi
    features = feature_map(key)
    strangers = None
    if others is not None:
        miss = 0.01 if miss is None else miss
        strangers = one_per_patient(_of_other_people(load(others, role="eval", values=meaning), ours, ledger, miss))
        threshold = _found_on(strangers, features, miss)
    else:
        threshold = _chosen(features, len(ours.images.spatial), modality, tau)
    # before, so that no release is without its line
    price = "" if strangers is None else " and the share of other people it refuses"
    ledger.use_private(ours.images, stage="gate", output=f"verdicts of the gate{price}, for {out.name}")
    chosen = {"tau": threshold.tau, "how": threshold.how, "strangers": strangers}
    done = certify(theirs, ours, features, **chosen, out=out, key=key, sign=sign)
    total = done.released + sum(done.refused.values())
    reasons = "".join(f", {n} {reason}" for reason, n in sorted(done.refused.items()))
    _say(f"{done.released} of {total} candidates released{reasons}")
    _say(f"compared with {len(ours.images)} images of {ours.images.patients} private patients")
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
    from medsynth.ledger import Ledger
    from medsynth.privacy.release.verify import VerificationError
    from medsynth.privacy.release.verify import verify as check_release

    if patients and not private:
        raise ValueError("--patients belongs to a private folder; give --private too")
    # of a set that is not there no ledger is made
    ledger = Ledger(_ledger_of(private)) if private and private.exists() else None
    try:
        _say(check_release(folder, private=private, patients=patients, public_key=public_key, ledger=ledger))
    except VerificationError as error:
        print(f"failed: {error}", file=sys.stderr, flush=True)
        raise typer.Exit(1) from None


def _chosen(phi: FeatureMap, spatial_dims: int, modality: str, tau: float | None) -> Threshold:
    """The threshold that is given, or the one that ships for a modality."""
    from medsynth.privacy.gate.thresholds import Threshold, threshold_for

    if tau is not None:
        return Threshold(tau, "given by the operator, not calibrated")
    try:
        return threshold_for(phi, spatial_dims, modality.lower())
    except ValueError as error:
        raise ValueError(f"{error}; name another with --modality, or give --others or --tau") from error


def _ledger_of(private: Path) -> Path:
    """Where the ledger of a private set lies: a file's by its name, as in the chapters; folders often share theirs."""
    from medsynth.runs import cache_folder

    place = private.resolve()
    whose = "" if private.is_file() else f"-{hashlib.blake2b(str(place).encode(), digest_size=4).hexdigest()}"
    return cache_folder() / "ledger" / f"{place.stem if private.is_file() else place.name}{whose}"


def _of_other_people(others: Loaded, private: Loaded, ledger: Ledger, miss: float) -> ImageSet:
    """Images of people who are not in the private set, enough for a threshold; a line in the ledger."""
    from medsynth.privacy.gate.calibration import may_miss
    from medsynth.privacy.release.certify import comparable

    comparable(others, private, "--others")
    try:
        may_miss(others.images.patients, miss)
    except ValueError as error:
        raise ValueError(f"--others: {error}; give images of more people, or let more copies pass with --miss") from error
    ledger.declare(private.images)
    if known := ledger.private_rows_in(others.images):
        raise ValueError(
            f"--others: {known} of {len(others.images)} images are in the private set, or in another that its ledger "
            f"({ledger.folder}) knows; a threshold found on them would be made from private images; give those of other people"
        )
    # how a threshold was found is published, the name of a hospital's folder is not
    return replace(ledger.measure(others.images, stage="gate", output="threshold"), name="a set of the sender's")


def _found_on(others: ImageSet, phi: FeatureMap, miss: float) -> Threshold:
    """A threshold found on copies of one image each of other people."""
    from medsynth.privacy.gate.calibration import calibrate
    from medsynth.privacy.gate.thresholds import Threshold

    # a pair of alterations is the rarer thing: three times as many may pass, as in the thresholds that ship
    found = calibrate(phi, others, seed=0, miss=miss, pair_miss=min(3 * miss, 0.5))
    return Threshold(found.tau, found.sentence())


@app.command(hidden=True)
def chapter(plan: Path, name: str) -> None:
    """Run one chapter of a plan; called by Snakemake."""
    from medsynth.publish.plan import run_chapter

    run_chapter(plan, name, log=_say)


def _say(line: str) -> None:
    print(line, flush=True)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def _plain(error: Exception) -> str:
    """What an error says; the system's own begin with the file that they are about and end without a number."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}; check the name and who may read or write it"
    return str(error)


def main() -> None:
    """Entry point: an error of ours is one line and exit code 2 (1 for a failed chapter); `--debug` shows its traceback."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # unwinds, so that no half-made release and no private features stay behind; nohup has it ignored, and so it stays
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        app()
    except (ChapterError, ValueError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        print(f"error: {_plain(error)}", file=sys.stderr, flush=True)
        sys.exit(1 if isinstance(error, ChapterError) else 2)

"""Commands around a release: `gate` and `verify`."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from medsynth.cli.app import CodesOption, PatientsOption, RangeOption, UnitOption, WindowOption, app, outside, say


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
    from medsynth.store.runs import free_place

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
    outside(out, *given)
    ours = load(private, role="private", modality=kind, patients=patients, values=meaning)
    theirs, unusable = load_candidates(candidates, modality=kind, values=meaning)
    strangers = None if others is None else load(others, role="eval", modality=kind, values=meaning)
    done = gate_release(
        theirs, ours, out=out, ledger=Ledger(), phi=phi, others=strangers, miss=MISS if miss is None else miss, tau=tau,
        kind=modality.lower(), sign=sign, unusable=unusable, values=meaning,
    )  # fmt: skip
    total = done.released + sum(done.refused.values())
    reasons = "".join(f", {n} {reason}" for reason, n in sorted(done.refused.items()))
    say(f"{done.released} of {total} candidates released{reasons}")
    say(f"compared with {len(ours)} images of {ours.patients} private patients")
    if done.strangers:
        share = show_value(100 * done.strangers.value, 100 * done.strangers.low, 100 * done.strangers.high, done.strangers.n)
        say(f"of images of other people it would refuse, in percent: {share}; this too is for the audit only")
    say(f"{out / 'release'} may be passed on as its README.txt says; {out / 'audit'} is as private as the private set")


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
        say(check_release(folder, private=private, patients=patients, public_key=public_key))
    except VerificationError as error:
        print(f"failed: {error}", file=sys.stderr, flush=True)
        raise typer.Exit(1) from None


def _modality(said: str) -> str:
    """What images of `said` are: "phantom-ct" is CT, and a phantom heart MR. ValueError for what nobody knows."""
    from medsynth.language.vocabulary import MODALITIES

    named = said.lower().removeprefix("phantom-")
    known = "mr" if said.lower() == "phantom-heart" else named
    if known not in (*MODALITIES, ""):
        raise ValueError(f"--modality {said}; expected {', '.join(MODALITIES)}, or phantom- before one of them, or phantom-heart")
    return known

"""Commands around a generator: `train`, `generate` and `ledger`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from medsynth.cli.app import (
    CodesOption,
    PatientsOption,
    ProfileOption,
    RangeOption,
    UnitOption,
    WindowOption,
    app,
    outside,
    say,
)
from medsynth.settings.profile import load_profile

DeltaOption = Annotated[
    float | None, typer.Option(help="Of --epsilon; default the least of 1e-6 and patients to the power of -1.5.")
]
NoiseOption = Annotated[
    Literal["secure", "seeded"],
    typer.Option(help="Of --epsilon: from the operating system's entropy, or from --seed, which takes it off for who knows it."),
]


@app.command()
def train(
    images: Annotated[
        Path, typer.Argument(help="An .npz file of your images, of splits its train rows, or a folder of PNG or NIfTI files.")
    ],
    out: Annotated[Path, typer.Option(help="A new folder, where the generator goes: as private as the images.")],
    modality: Annotated[str, typer.Option(help="xray, ct, mr or pet; default xray, in HU ct, of stacks mr.")] = "",
    epsilon: Annotated[
        float | None, typer.Option(help="Differential privacy that is proved for each patient. Default: none.")
    ] = None,
    delta: DeltaOption = None,
    force_delta: Annotated[bool, typer.Option("--force-delta", help="Take a delta of one over the patients, or more.")] = False,
    noise: NoiseOption = "secure",
    batch: Annotated[int | None, typer.Option(min=1, help="Of --epsilon: patients that a step expects.")] = None,
    sentences: Annotated[
        bool, typer.Option("--sentences", help="Also learn to be asked by sentences, with `medsynth generate --ask`.")
    ] = False,
    profile: ProfileOption = "laptop",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    patients: PatientsOption = None,
    values: RangeOption = None,
    codes: CodesOption = None,
    window: WindowOption = None,
    unit: UnitOption = "1",
) -> None:
    """Train a generator on your images; a killed training goes on where it was.

    Several processes, one for each GPU, share a training with --epsilon: torchrun --nproc-per-node 4 -m medsynth train IMAGES ...
    """
    from medsynth.data.folder import load, stated
    from medsynth.diffusion.conditions import vocabulary_for
    from medsynth.diffusion.generator import Generator, to_train_on
    from medsynth.language.sentences import TEXT
    from medsynth.ledger import Ledger
    from medsynth.privacy.dp.distributed import assists, joined, together
    from medsynth.privacy.dp.fine_tuning import train_privately
    from medsynth.store.runs import free_place

    if epsilon is None and (delta is not None or batch is not None or force_delta or noise != "secure"):
        raise ValueError("--delta, --force-delta, --noise and --batch belong to --epsilon; give it too")
    if epsilon is not None and images.is_dir() and patients is None:
        raise ValueError("--epsilon protects patients; give --patients, a CSV file,patient that says whose each file is")
    if sentences and epsilon is not None:
        raise ValueError("sentences are learned without a promise so far; leave out --sentences, or --epsilon")
    with joined():
        if together() and epsilon is None:
            raise ValueError("several processes share a training with --epsilon alone; give it, or start one process")
        if not assists():
            # before hours of training
            free_place(out)
            outside(out, images)
        settings = load_profile(profile)
        meaning = stated(values, codes, window, unit, [images])
        everybody = load(images, role="private", modality=modality, patients=patients, values=meaning)
        ours = to_train_on(everybody)
        likely = "ct" if ours.unit == "HU" else "mr" if len(ours.spatial) == 3 else "xray"
        ours = replace(ours, modality=ours.modality or likely)
        if len(ours) < len(everybody) and not assists():
            say(f"{len(ours)} of {len(everybody)} images: those of split train")
        of = {
            "denoiser": settings.denoiser_for(len(ours.spatial)), "diffusion": settings.diffusion, "sampling": settings.sampling,
        }  # fmt: skip
        if epsilon is None:
            names = (*vocabulary_for(ours), *TEXT) if sentences else ()
            made = Generator.train(ours, **of, ledger=Ledger(), seed=seed, names=names)
        else:
            rule = "forced" if force_delta else "below 1/n"
            asked = {"epsilon": epsilon, "delta": delta, "delta_rule": rule, "randomness": noise}
            asked |= {} if batch is None else {"batch": batch}
            made = train_privately(ours, privacy=replace(settings.privacy.training, **asked), **of, ledger=Ledger(), seed=seed)
        say(f"trained on {len(ours)} images of {ours.patients} patients: {made.save(out)}, as private as they are")
        say(made.sentence)
        say(f"In this ledger: {Ledger().together(ours)}")


@app.command()
def generate(
    run: Annotated[Path, typer.Argument(help="A generator, as `medsynth train` or a chapter saved it.")],
    out: Annotated[
        Path | None, typer.Option(help="A new .npz file of images, for `medsynth gate` and the chapters; default RUN-SEED.npz.")
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="How many images.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of conditions and noise.")] = 0,
    ask: Annotated[
        list[str] | None, typer.Option(help="A sentence such as 'large left nodule, female, 60s'; several take turns.")
    ] = None,
) -> None:
    """Draw images from a generator, asked for by sentences, or by public marginals of age, sex, BMI, findings, or of hearts."""
    from medsynth.diffusion.conditions import public_marginals
    from medsynth.diffusion.generator import Generator
    from medsynth.store.runs import free_place, owner_alone

    out = out or run.with_name(f"{run.name}-{seed}.npz")
    if out.suffix != ".npz" or out.exists() or not out.parent.is_dir():
        raise ValueError(f"{out}: expected the name of a new .npz file in a folder that is there")
    free_place(out)
    generator = Generator.load(run)
    reseeded = replace(generator, sampling=replace(generator.sampling, seed=seed))
    try:
        if ask:
            asked = generator.ask([ask[k % len(ask)] for k in range(n)])
        else:
            asked = public_marginals(generator.like, generator.names, n, seed=seed)
        drawn = reseeded.draw(asked)
    except MemoryError as error:
        raise ValueError(
            f"--n {n}: so many images of {run} do not fit into memory; draw fewer at a time, each time with another --seed"
        ) from error
    with owner_alone():
        drawn.save(out)
    if drawn.role != "private":
        out.chmod(0o644)
    say(f"{n} images: {out}")
    say(generator.sentence)


@app.command()
def ledger(
    run: Annotated[Path, typer.Argument(help="A generator, as `medsynth train` or a chapter saved it.")],
) -> None:
    """Print which images of people a generator was made from, and what is proved of what it gives away."""
    from medsynth.diffusion.generator import Generator
    from medsynth.ledger import tabulated

    generator = Generator.load(run)
    if generator.entries:
        say(tabulated(generator.entries).to_string(index=False))
    say(generator.sentence)

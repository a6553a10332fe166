"""Frozen, typed configurations: what a profile may say, and errors that name the key when it says something else."""

from __future__ import annotations

import math
import types
import typing
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path

import yaml

from medsynth.words import did_you_mean

_FROM_ZERO = ("seed", "seeds", "warmup", "checkpoint_every")  # whole numbers of a profile that may be 0
_ABOVE_ZERO = ("learning_rate", "epsilon_scale")  # numbers that may not


@dataclass(frozen=True)
class ThoraxConfig:
    """How many phantom patients of the thorax a profile uses, and the side of its images."""

    size: int  # pixels; also the side to which real X-rays are resampled
    private_patients: int  # the set whose privacy is at stake
    test_patients: int  # private population, never trained on: fidelity is measured against them
    scans: int = 1  # scans per patient


@dataclass(frozen=True)
class CardiacConfig:
    """How many phantom hearts a profile shows, and the shape of their stacks."""

    patients: int
    slices: int = 16  # a multiple of 8: the 3D denoiser halves the depth three times
    size: int = 64


@dataclass(frozen=True)
class AutoencoderConfig:
    """KL autoencoder on the 2x pixel-unshuffled image (Rombach et al. 2022; MONAI AutoencoderKL)."""

    channels: tuple[int, ...] = (64, 128)  # one level more = one halving more
    residual_blocks: int = 1
    latent_channels: int = 8  # with 4, texture of ribs and vessels does not come back
    steps: int = 2000
    batch: int = 16
    learning_rate: float = 1e-3
    fourier_weight: float = 0.5  # L1 of the complex 2D FFT: keeps ribs that plain L1 blurs away
    latent_noise: float = 0.15  # of a standardised latent, at most: what the decoder learns to see through
    kl_weight: float = 3e-5  # of the mean KL per latent value; 1e-3 drowns ribs in the noise it asks for
    seed: int = 0


@dataclass(frozen=True)
class RefinerConfig:
    """U-Net that draws the detail a decoded image lacks, on the 2x pixel-unshuffled image (Ho et al. 2022: cascades)."""

    channels: tuple[int, ...] = (48, 96)
    residual_blocks: int = 1
    latent_noise: float = 0.15  # of a standardised latent, at most: what it learns to see through, as the decoder did


@dataclass(frozen=True)
class DenoiserConfig:
    """U-Net that predicts noise or velocity from noisy latents (MONAI DiffusionModelUNet)."""

    channels: tuple[int, ...] = (64, 96, 128)
    residual_blocks: int = 1
    attention: tuple[bool, ...] = (False, True, True)  # per level
    head_channels: int = 32
    spatial_dims: int = 2


@dataclass(frozen=True)
class DiffusionConfig:
    """Noise schedule, objective and optimisation of one latent diffusion model."""

    steps: int  # optimiser steps
    batch: int = 64
    learning_rate: float = 3e-4
    warmup: int = 100  # steps of linear warm-up, then cosine to zero
    prediction: str = "v_prediction"  # or "epsilon"
    schedule: str = "squaredcos_cap_v2"  # a diffusers beta schedule; cosine wastes fewer steps on small latents
    timesteps: int = 1000
    ema: float = 0.999
    label_dropout: float = 0.1  # share of examples trained without condition: what guidance subtracts
    checkpoint_every: int = 500
    seed: int = 0


@dataclass(frozen=True)
class SamplingConfig:
    """How latents are drawn."""

    images: int
    steps: int = 20
    solver: str = "dpm"  # "dpm" (DPM-Solver++ 2M), "ddim" or "ddpm"
    guidance: float = 1.0  # 1 = conditional model as trained
    epsilon_scale: float = 1.02  # noise is taken for this much less; 1 = as predicted. Chosen on public radiographs
    batch: int = 128
    seed: int = 0


@dataclass(frozen=True)
class EvaluationConfig:
    """How finely quality is measured."""

    splits: int = 10  # random patient-disjoint halves behind floor and score
    replicates: int = 200  # bootstrap replicates
    ruler_images: int = 400  # images per side of that study
    guidances: tuple[float, ...] = (1.0, 1.5, 2.0)


@dataclass(frozen=True)
class GateConfig:
    """What the gate is tried on: attacks on private patients, images of unseen ones, and samples of a generator."""

    private_patients: int  # phantoms in the attack tables, and the generator's private set
    unseen_patients: int
    images: int  # synthetic images that are judged
    maps: tuple[str, ...] = ("encoder", "pixels")  # where distance is measured


@dataclass(frozen=True)
class RestorationGridConfig:
    """The grid of restoration networks, each trained with one budget on several sets of one size."""

    experiments: tuple[str, ...]  # "task/network", e.g. "ct-low-dose/redcnn"
    arms: tuple[str, ...]  # training sets: "real", "reconstructed", "synthetic", "gated", or two as in "synthetic + real"
    images: int  # of every training set
    test_patients: int
    steps: int  # of every training; "real" is trained once more with twice as many
    seeds: tuple[int, ...] = (0,)

    @property
    def modalities(self) -> tuple[str, ...]:
        """What the experiments begin with, each once: one generator serves all experiments of a modality."""
        return tuple(dict.fromkeys(name.partition("-")[0] for name in self.experiments))


@dataclass(frozen=True)
class SitesConfig:
    """Hospitals that pool synthetic images: how many patients each has, and the network that is trained on the pool."""

    patients: int  # of each site
    test_patients: int  # of each site
    experiment: str  # "task/network", as in restoration
    steps: int
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class WeightsConfig:
    """On how many phantoms the shipped weights are measured, and how finely their ruler is studied."""

    patients: int  # of each modality; half as many others are scanned twice
    gate_patients: int  # of each modality, behind a gate; two thirds as many others are strangers to it
    public_patients: int  # of each modality: what the ruler's rivals are calibrated on
    rivals: int  # networks with random weights
    populations: int  # that are compared with themselves, to see what the ruler notices
    splits: int  # patient-disjoint halves of a set of 500, of smaller ones more, to see whether the ruler rises with damage
    power_splits: int  # and what it notices


@dataclass(frozen=True)
class Profile:
    """One size at which the whole book can run; profiles differ in numbers only."""

    name: str
    thorax: ThoraxConfig
    cardiac: CardiacConfig
    denoiser: DenoiserConfig
    diffusion: DiffusionConfig
    sampling: SamplingConfig
    evaluation: EvaluationConfig
    gate: GateConfig
    restoration: RestorationGridConfig
    sites: SitesConfig
    weights: WeightsConfig
    seeds: tuple[int, ...] = (0,)
    arms: tuple[str, ...] = ()  # chapters that are begun in arms where several runs go at a time: those that train for long


def parse(cls: type, mapping: object, where: str) -> typing.Any:
    """Build the dataclass `cls` from a mapping; ValueError names the key, what was found and the closest valid key."""
    if not isinstance(mapping, dict):
        raise ValueError(f"{where}: found {type(mapping).__name__} {mapping!r}; expected a mapping with keys {_names(cls)}")
    hints = typing.get_type_hints(cls)
    for key in mapping:
        if key not in hints:
            raise ValueError(f"{where}: unknown key {key!r}; {did_you_mean(str(key), hints)}")
    missing = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING and f.name not in mapping]
    if missing:
        raise ValueError(f"{where}: missing key {missing[0]!r}; expected {_type_name(hints[missing[0]])}")
    return cls(**{key: _convert(value, hints[key], f"{where}.{key}") for key, value in mapping.items()})


def _convert(value: object, kind: typing.Any, where: str) -> object:
    if is_dataclass(kind):
        return parse(kind, value, where)
    if typing.get_origin(kind) is tuple:
        (item, _) = typing.get_args(kind)
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: found {value!r}; expected a list of {_type_name(item)}")
        return tuple(_convert(v, item, f"{where}[{i}]") for i, v in enumerate(value))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        options = [k for k in typing.get_args(kind) if k is not type(None)]
        return None if value is None else _convert(value, options[0], where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # YAML 1.1 reads "1e-4" as text; a number was meant
    if kind is float and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    if type(value) is not kind:
        raise ValueError(f"{where}: found {type(value).__name__} {value!r}; expected {_type_name(kind)}")
    return value


def check_sizes(config: object, where: str) -> None:
    """ValueError naming the first number that no run can have: a size or count below 1, or what is negative or not finite."""
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            check_sizes(value, f"{where}.{f.name}")
        for item in value if isinstance(value, tuple) else (value,):
            if type(item) is int and item < (least := 0 if f.name in _FROM_ZERO else 1):
                raise ValueError(f"{where}.{f.name}: found {item}; expected at least {least}")
            if type(item) is float and not (0 <= item < math.inf and (item or f.name not in _ABOVE_ZERO)):
                expected = "above 0" if f.name in _ABOVE_ZERO else "not below 0"
                raise ValueError(f"{where}.{f.name}: found {item}; expected a finite number, {expected}")


def _names(cls: type) -> str:
    return ", ".join(f.name for f in fields(cls))


def _type_name(kind: typing.Any) -> str:
    return getattr(kind, "__name__", str(kind))


def project_root(start: Path | None = None) -> Path:
    """The nearest folder at or above `start` (default: the working directory) that holds `profiles/`."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "profiles").is_dir() and (folder / "notebooks").is_dir():
            return folder
    raise FileNotFoundError(f"no folder with profiles/ and notebooks/ at or above {start}; run inside the project")


def load_profile(name: str, folder: Path | None = None) -> Profile:
    """Read `profiles/<name>.yaml`, or a file of your own where `name` is its path, such as "sizes/mine.yaml".

    An unknown name, key or type is a ValueError that names the closest valid one. With `folder`, names in it alone count.
    """
    path = Path(name)
    if folder is None and path.suffix == ".yaml":
        if not path.is_file():
            raise ValueError(f"profile {name!r}: no such file; expected a .yaml file, or the name of one in profiles/")
        folder, name = path.resolve().parent, path.stem
    folder = folder or project_root() / "profiles"
    known = sorted(p.stem for p in folder.glob("*.yaml"))
    if name not in known:
        raise ValueError(f"profile {name!r} does not exist in {folder.name}/; {did_you_mean(name, known)}")
    path = folder / f"{name}.yaml"
    where = f"{folder.name}/{path.name}"
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), _OnceEach) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = f"line {mark.line + 1}: " if (mark := getattr(error, "problem_mark", None)) else ""
        raise ValueError(f"{where}: not YAML that can be read: {place}{getattr(error, 'problem', error)}") from error
    if isinstance(found, dict):
        if "name" in found:
            raise ValueError(f"{where}: unknown key 'name'; a profile is named by its file, so remove it")
        found = {"name": name, **found}
    profile = parse(Profile, found, where)
    check_sizes(profile, where)
    return profile


class _OnceEach(yaml.SafeLoader):
    """YAML in which each key of a mapping stands once: of two, another reader takes the last and forgets the other."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        known: list[object] = []
        for key, _ in node.value:
            if (name := self.construct_object(key, deep=True)) in known:
                raise yaml.constructor.ConstructorError(problem=f"{name!r} stands there twice", problem_mark=key.start_mark)
            known.append(name)
        return super().construct_mapping(node, deep)

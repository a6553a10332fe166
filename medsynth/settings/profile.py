"""One size at which the whole book runs, as it is read from a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from medsynth.language.words import did_you_mean
from medsynth.settings.audits import CopiesConfig, DiversityConfig, MemorisationConfig, SinglingOutConfig
from medsynth.settings.config import (
    CardiacConfig,
    DenoiserConfig,
    DiffusionConfig,
    DPConfig,
    DPImagesConfig,
    DPPatientsConfig,
    EvaluationConfig,
    GateConfig,
    RestorationGridConfig,
    SamplingConfig,
    SitesConfig,
    ThoraxConfig,
    WeightsConfig,
)
from medsynth.settings.parse import check_sizes, parse

_OF_STACKS = DenoiserConfig(channels=(32, 64, 96), spatial_dims=3)


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
    privacy: DPConfig
    dp_images: DPImagesConfig
    dp_patients: DPPatientsConfig
    memorisation: MemorisationConfig
    copies: CopiesConfig
    singling_out: SinglingOutConfig
    diversity: DiversityConfig
    weights: WeightsConfig
    denoiser_3d: DenoiserConfig = _OF_STACKS
    seeds: tuple[int, ...] = (0,)
    arms: tuple[str, ...] = ()  # chapters that are begun in arms where several runs go at a time: those that train for long

    def denoiser_for(self, spatial_dims: int) -> DenoiserConfig:
        """The network for images or for stacks."""
        return self.denoiser_3d if spatial_dims == 3 else self.denoiser


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

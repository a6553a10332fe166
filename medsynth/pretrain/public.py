"""The public sets that shipped weights are trained on: phantoms here, real ones in `pretrain.real`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from medsynth.data.sources import cached_thorax
from medsynth.imageset import ImageSet
from medsynth.phantoms.heart.heart import cardiac
from medsynth.resample import resize, slices_of
from medsynth.vocabulary import MODALITIES


@dataclass(frozen=True)
class PublicSet:
    """A public set, and whether its images show chests: the thorax denoiser learns no other."""

    images: ImageSet
    thorax: bool = True


def phantoms(patients: int, size: int, *, seed: int, jobs: int) -> dict[str, PublicSet]:
    """Public phantom thoraces in every modality, and slices of public phantom hearts."""
    made = {
        f"phantom-{m}-{size}": PublicSet(cached_thorax(patients=patients, size=size, modality=m, seed=seed)) for m in MODALITIES
    }
    if size == 64:
        hearts = cardiac(patients=max(2, patients // 16), slices=16, size=size, seed=seed, jobs=jobs)
        made[f"phantom-heart-{size}"] = PublicSet(slices_of(hearts), thorax=False)
    return made


def at_size(sets: dict[str, PublicSet], size: int) -> dict[str, PublicSet]:
    """The sets whose images are at least `size` wide, resampled to it."""
    fitting = {k: s for k, s in sets.items() if s.images.spatial[-1] >= size}
    return {k: replace(s, images=resize(s.images, size)) for k, s in fitting.items()}


def describe(sets: dict[str, PublicSet]) -> list[dict[str, object]]:
    """What a weights card says of its training data."""
    return [
        {
            "name": key, "images": len(s.images), "patients": s.images.patients, "size": s.images.spatial[-1],
            "licence": s.images.data_licence, "content_hash": s.images.content_hash,
        }
        for key, s in sets.items()
    ]  # fmt: skip

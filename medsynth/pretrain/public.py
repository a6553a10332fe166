"""The sets that shipped weights are trained on, and real people whom none of them has seen: phantoms, and files of one folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from medsynth.data.npz import load_npz, without_noncommercial
from medsynth.data.sources import Sources, cached_thorax, private_and_test
from medsynth.imageset import ImageSet
from medsynth.language.vocabulary import MODALITIES
from medsynth.phantoms.heart.heart import cardiac
from medsynth.resample import resize, slices_of
from medsynth.settings.config import ThoraxConfig

_KERMANY, _NIH, _COVID = "cxr_kermany_128", "cxr_nih1000_64", "cxr_covid_256"
_CT, _HEARTS, _HIPPOCAMPUS = "ct_tcia_hu_256", "mri_acdc_3d", "mri_hippocampus_3d"
_PLANES = range(8, 40, 3)  # of the hippocampus, that show some of it
CLASSED = ("cxr_kermany", "ct_tcia")  # of those that no weight has seen


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


def real_sets(folder: Path, split: str) -> dict[str, PublicSet]:
    """Real public images of one split, in their largest size: what weights are trained on."""
    kermany = _load(folder, _KERMANY, "public" if split == "train" else "eval").in_split(split)
    covid = without_noncommercial(_load(folder, _COVID, "public")).in_split(split)
    return {
        "cxr_kermany": PublicSet(kermany),
        "cxr_nih": PublicSet(_load(folder, _NIH, "public").in_split(split)),
        "cxr_covid": PublicSet(resize(covid, 128)),
        "mri_hippocampus": PublicSet(slices_of(_load(folder, _HIPPOCAMPUS, "public").in_split(split), _PLANES), thorax=False),
    }


def unseen_once(folder: Path, size: int) -> dict[str, ImageSet]:
    """Images that no shipped weight was trained on; CT only where its licence lets rows be published freely."""
    found = {
        "cxr_kermany": _load(folder, _KERMANY, "eval").in_split("test"),
        "cxr_nih": _load(folder, _NIH, "public").in_split("test"),
        "ct_tcia": without_noncommercial(_load(folder, _CT)),
        "mri_acdc": slices_of(_load(folder, _HEARTS), range(2, 9)),
        "mri_hippocampus": slices_of(_load(folder, _HIPPOCAMPUS, "public").in_split("test"), _PLANES),
    }
    return {name: resize(images, size) for name, images in found.items()}


def unseen_twice(folder: Path, size: int) -> dict[str, ImageSet]:
    """Sets in which unseen patients have several images, stacks of hearts as they are."""
    kermany = _load(folder, _KERMANY, "eval").in_split("test")
    # of normal images it is not certain that one number is one person
    kermany = kermany.select((kermany.attributes["finding"] != "none").to_numpy(dtype=bool))
    nih = _load(folder, _NIH, "public").in_split("test")
    return {"cxr_kermany": resize(kermany, size), "cxr_nih": resize(nih, size), "mri_acdc": _load(folder, _HEARTS)}


def radiographs(folder: Path, size: int) -> dict[str, Sources]:
    """Private and test patients of the hospital whose public patients a threshold was found on."""
    private, test = _load(folder, _KERMANY), _load(folder, _KERMANY, "eval").in_split("test")
    return {_KERMANY: Sources(resize(private, size), resize(test, size))}


def slices(folder: Path, size: int) -> dict[str, Sources]:
    """CT and MR, on whose like no threshold was found, as the chapter on restoration reads them."""
    config = ThoraxConfig(size=size, private_patients=0, test_patients=0)
    files = {_CT: "ct", _HEARTS: "mr"}
    return {name: private_and_test(config, str(folder / f"{name}.npz"), modality) for name, modality in files.items()}


def _load(folder: Path, name: str, role: str = "private") -> ImageSet:
    return load_npz(folder / f"{name}.npz", role=role)

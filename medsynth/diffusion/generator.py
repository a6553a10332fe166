"""The generator: an artefact that is trained, saved, sent, loaded and drawn from, and that holds no image of anybody."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from medsynth.data.imagefile import as_read
from medsynth.diffusion.cached import cached_latents
from medsynth.diffusion.conditions import Conditions, conditions_of, of_sentences, vocabulary_for
from medsynth.diffusion.detail import train_refiner
from medsynth.diffusion.guidance import Autoguided
from medsynth.diffusion.refine import refine
from medsynth.diffusion.sample import sample_images
from medsynth.diffusion.train import train_denoiser
from medsynth.imageset import ImageSet
from medsynth.language.sentences import SPOKEN_OF, TEXT, TOKENS, numbers_of, spoken
from medsynth.language.vocabulary import MODALITIES
from medsynth.ledger import CoverError, Entry, Ledger, statement
from medsynth.mechanism import NONE
from medsynth.models.autoencoder import Autoencoder
from medsynth.models.denoiser import Denoiser
from medsynth.models.refiner import Refiner
from medsynth.models.weights import (
    denoiser_kind,
    reconstruct,
    shipped_autoencoder,
    shipped_denoiser,
    shipped_refiner,
    shipped_words,
)
from medsynth.settings.config import AutoencoderConfig, DenoiserConfig, DiffusionConfig, RefinerConfig, SamplingConfig
from medsynth.settings.parse import check_sizes, parse
from medsynth.store.hashes import file_hash
from medsynth.store.runs import load_tensors, new_folder, owner_alone, save_tensors, write_json
from medsynth.training import best_device

# The guide's; a generator that is trained for no more is not guided: between two that have hardly left the public weights lies
# the way to the private set, and further on lies no better one
GUIDE_STEPS = 300
REFINER_SHARE = 0.4  # of the denoiser's training steps, for the refiner
_LARGEST_VALUE = 1e6  # of an attribute: infinity, and what stands for it, end a training in numbers that are none
_NEXT_ATTEMPT = 1_000_003  # added to the seed of the noise when a refused image is drawn again
_FORMAT = "medsynth.generator/1"
_CARD, _WEIGHTS, _LIKE = "generator.json", "weights.safetensors", "like.npz"
# what readers of JSON, archives and tensors raise, and networks whose card asks for what there is not
_DAMAGED = (
    LookupError, TypeError, ValueError, AttributeError, RuntimeError, OSError, EOFError, MemoryError, zipfile.BadZipFile,
    zlib.error, SafetensorError,
)  # fmt: skip


@dataclass(frozen=True)
class Generator:
    """What draws images like those it was trained on: networks, settings, and the ledger lines of what they were made from.

    like: an ImageSet without images; its unit, range, shape, spacing, modality, orientation and role are those of every draw.
    refiner: draws the detail that latents have no room for; None for volumes. licence: of the images it was trained on.
    entries: readings of private or held-out images. heard: tokens of the sentences that it was trained by.
    """

    like: ImageSet
    model: Denoiser | Autoguided
    autoencoder: Autoencoder
    refiner: Refiner | None
    diffusion: DiffusionConfig
    sampling: SamplingConfig
    licence: str = "unknown"
    entries: tuple[Entry, ...] = ()
    heard: tuple[str, ...] = ()

    @classmethod
    def train(
        cls, images: ImageSet, *, denoiser: DenoiserConfig, diffusion: DiffusionConfig, sampling: SamplingConfig, ledger: Ledger,
        seed: int = 0, names: Sequence[str] = (),
    ) -> Generator:  # fmt: skip
        """A generator trained on `images`, from the shipped public weights where they have this architecture, and guided.

        Images (n, 1, h, w) or volumes (n, 1, d, h, w), with a denoiser of as many dimensions. Unless the images are public, each
        stage leaves a line in the ledger (mechanism "none"). names: its vocabulary; none is `vocabulary_for` these images, to
        which FEATURES or TEXT may be added. Raises ValueError where denoiser, names and images do not fit.
        """
        autoencoder, names = shipped_autoencoder(), tuple(names) or vocabulary_for(images)
        conditions = checked_conditions(images, denoiser, names)
        diffusion, sampling = replace(diffusion, seed=seed), sampling_for(images, sampling, seed=seed)
        kind = denoiser_kind(images)
        public = shipped_denoiser(kind)
        start = kind if public.config == denoiser and set(public.names) <= set(names) else None

        def trained(steps: int) -> Denoiser:
            model, _ = train_denoiser(
                images, conditions, names, autoencoder=autoencoder, denoiser=denoiser,
                diffusion=replace(diffusion, steps=steps), ledger=ledger, start=start,
            )  # fmt: skip
            return model

        with ledger.making(f"a generator of {images.name}") as readings:
            model: Denoiser | Autoguided = trained(diffusion.steps)
            if diffusion.steps > GUIDE_STEPS:
                # guidance brings back the fine structure that epsilon scaling is for
                model, sampling = Autoguided(model, trained(GUIDE_STEPS)).eval(), replace(sampling, epsilon_scale=1.0)
            refiner = None
            if len(images.spatial) == 2:
                steps = max(1, round(REFINER_SHARE * diffusion.steps))
                refiner = train_refiner(images, steps=steps, ledger=ledger, seed=seed)
        said = set(_said(numbers_of(images.attributes, images.modality))) | set(shipped_words(start)[1] if start else ())
        heard = tuple(t for t in TOKENS if t in said and set(TEXT) <= set(names) and t not in {*MODALITIES} - {images.modality})
        made = model, autoencoder, refiner, diffusion, sampling, images.data_licence, tuple(readings), heard
        return cls(without_images(images), *made)

    @classmethod
    def shipped(cls, like: ImageSet, *, sampling: SamplingConfig, seed: int = 0) -> Generator:
        """The public weights as they ship, for images or stacks such as `like`, of which nothing but its form is read."""
        model = shipped_denoiser(denoiser_kind(like))
        settings = DiffusionConfig(steps=0, seed=seed), sampling_for(like, sampling, seed=seed)
        form = replace(without_images(like), role="public")
        refiner = shipped_refiner() if len(like.spatial) == 2 else None
        return cls(form, model, shipped_autoencoder(), refiner, *settings, like.data_licence)

    @property
    def names(self) -> tuple[str, ...]:
        """The vocabulary: names of the conditions that it can be asked for."""
        return self.model.strong.names if isinstance(self.model, Autoguided) else self.model.names

    @property
    def sentence(self) -> str:
        """What is proved of what it gives away, for those who pass its images on."""
        return statement(self.entries)

    def ask(self, sentences: str | Sequence[str]) -> Conditions:
        """Conditions that sentences such as "ct, large left nodule, female, 60s" state.

        Raises as `of_sentences` does, and ValueError for a word that no image was told by, of the public ones or of its own.
        """
        asked = of_sentences(sentences, self.like, self.names)
        if new := [t for t in _said(asked.values[:, [self.names.index(name) for name in TEXT]]) if t not in self.heard]:
            known = ", ".join(repr(spoken([token])) for token in self.heard)
            raise ValueError(f"{spoken(new[:1])!r}: no image that it was trained on was said to be so; expected {known}")
        return asked

    def draw(
        self, conditions: Conditions, rows: np.ndarray | None = None, *, attempt: int = 0, guidance: float | None = None
    ) -> ImageSet:
        """One image for each condition, or for the given rows of them, as its file would hold it; another attempt is other noise.

        guidance: weight of classifier-free guidance instead of that of `sampling`. Raises ValueError for other conditions.
        """
        if conditions.names != self.names:
            raise ValueError(f"conditions {conditions.names}; expected those of the generator of {self.like.name}, {self.names}")
        if conditions.private and (claimed := next((e.mechanism for e in self.entries if e.mechanism != NONE), None)):
            raise CoverError(
                f"the generator of {self.like.name} claims {claimed}, but its conditions are {conditions.source}, read with no "
                "mechanism; ask for public marginals, or read them through one"
            )
        rows = np.arange(len(conditions)) if rows is None else rows
        sampling = replace(self.sampling, seed=self.sampling.seed + _NEXT_ATTEMPT * attempt)
        sampling = sampling if guidance is None else replace(sampling, guidance=guidance)
        table = conditions.attributes.iloc[rows].assign(licence=self.licence)
        drawn = sample_images(
            self.model, self.autoencoder, self._heard(conditions.values[rows]), like=self.like, diffusion=self.diffusion,
            sampling=sampling, attributes=table, name=f"{self.like.name}-synthetic", draw=cached_latents,
        )  # fmt: skip
        return as_read(self._refined(drawn, sampling.seed))

    def _heard(self, values: np.ndarray) -> np.ndarray:
        """Conditions without the words that no image was told by: nothing was learned of them, and what they do is chance."""
        text = [self.names.index(name) for name in TEXT if name in self.names]
        unknown = [k for k, token in enumerate(TOKENS) if token not in self.heard]
        known = values.copy()
        known[:, text] = np.where(np.isin(values[:, text], unknown), np.nan, values[:, text])
        return known

    def reconstruct(self, images: ImageSet) -> ImageSet:
        """Given images after autoencoder and refiner: the best that any generator of these latents can look."""
        return self._refined(reconstruct(self.autoencoder, images), self.sampling.seed)

    def _refined(self, images: ImageSet, seed: int) -> ImageSet:
        return images if self.refiner is None else refine(self.refiner, images, seed=seed)

    def save(self, folder: str | Path) -> Path:
        """Write the generator to a new folder that its owner alone can open: weights learned from images are as private as they.

        Raises as `free_place` does where something is there.
        """
        folder = Path(folder)
        parts = {"autoencoder": self.autoencoder, "model": self.model} | ({"refiner": self.refiner} if self.refiner else {})
        weights = {f"{part}.{k}": v for part, net in parts.items() for k, v in net.state_dict().items()}
        strong = self.model.strong if isinstance(self.model, Autoguided) else self.model
        with new_folder(folder, mode=0o700) as made, owner_alone():
            self.like.save(made / _LIKE)
            write_json(made / _CARD, {
                "format": _FORMAT, "denoiser": asdict(strong.config), "names": list(self.names), "people": self.model.people,
                "tokens": list(TOKENS) if set(TEXT) & set(self.names) else [], "heard": list(self.heard),
                "guide": self.model.weight if isinstance(self.model, Autoguided) else None,
                "autoencoder": asdict(self.autoencoder.config), "refiner": asdict(self.refiner.config) if self.refiner else None,
                "diffusion": asdict(self.diffusion), "sampling": asdict(self.sampling), "licence": self.licence,
                # whoever guesses a set could hash the guess
                "entries": [asdict(replace(e, content_hash="")) for e in self.entries],
                "weights_sha256": save_tensors(made / _WEIGHTS, weights),
            })  # fmt: skip
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Generator:
        """Read what `save` wrote; FileNotFoundError where there is none, ValueError for a damaged or unknown one."""
        folder = Path(folder)
        if not (folder / _CARD).exists():
            raise FileNotFoundError(f"{folder}: no generator; expected a folder with {_CARD}, as `Generator.save` writes it")
        try:
            card = json.loads((folder / _CARD).read_text())
            if card["format"] != _FORMAT:
                raise ValueError(f"format {card['format']!r}; expected {_FORMAT!r}")
            if (found := file_hash(folder / _WEIGHTS)) != card["weights_sha256"]:
                raise ValueError(f"{_WEIGHTS} has sha256 {found[:12]}…; the card says {card['weights_sha256'][:12]}…")
            like, weights = ImageSet.load(folder / _LIKE), load_tensors(folder / _WEIGHTS)
            autoencoder = Autoencoder(parse(AutoencoderConfig, card["autoencoder"], _CARD))
            refiner = Refiner(parse(RefinerConfig, card["refiner"], _CARD)) if card["refiner"] else None
            model = _model(card, autoencoder.latent_channels)
            for part, net in {"autoencoder": autoencoder, "model": model, "refiner": refiner}.items():
                if net is not None:
                    own = {k.removeprefix(f"{part}."): v for k, v in weights.items() if k.startswith(f"{part}.")}
                    net.load_state_dict(own)
                    net.to(best_device()).eval().requires_grad_(False)
            model.role, model.people = like.role, bool(card["people"])
            settings = parse(DiffusionConfig, card["diffusion"], _CARD), parse(SamplingConfig, card["sampling"], _CARD)
            check_sizes(settings[1], f"{_CARD}.sampling")
            entries = tuple(parse(Entry, e, _CARD) for e in card["entries"])
            if like.role == "private" and not any(e.role == "private" for e in entries):
                raise ValueError(f"it was made from private images, but the entries of {_CARD} do not say how they were read")
        except _DAMAGED as error:
            said = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{folder}: a damaged generator, or one of another version: {said}") from error
        return cls(like, model, autoencoder, refiner, *settings, card["licence"], entries, tuple(card.get("heard", ())))


def sampling_for(images: ImageSet, sampling: SamplingConfig, *, seed: int) -> SamplingConfig:
    """How images such as these are drawn: of stacks no noise is left standing, which made those of phantoms worse, not better."""
    return replace(sampling, seed=seed, epsilon_scale=1.0 if len(images.spatial) == 3 else sampling.epsilon_scale)


def checked_conditions(images: ImageSet, denoiser: DenoiserConfig, names: tuple[str, ...] = ()) -> np.ndarray:
    """Conditions (n, k) of images that such a denoiser can be trained on, by `names` or else by their own vocabulary.

    Raises ValueError for others.
    """
    if denoiser.spatial_dims != len(images.spatial):
        raise ValueError(
            f"{images.name}: images of shape {images.images.shape[1:]}; expected {denoiser.spatial_dims} spatial axes, "
            "as many as the denoiser has"
        )
    if len(images.spatial) == 3 and images.spatial[0] == 1:
        # nor could what it draws be written to files
        raise ValueError(f"{images.name}: volumes of one plane; make them images, (n, h, w)")
    names = names or vocabulary_for(images)
    if set(TEXT) & set(names) and not images.attributes.reindex(columns=list(SPOKEN_OF)).notna().any(axis=None):
        raise ValueError(f"{images.name}: nothing that a sentence speaks of; expected attributes {', '.join(SPOKEN_OF)}, or some")
    conditions = conditions_of(images, names)
    if len(odd := np.argwhere(np.abs(conditions) > _LARGEST_VALUE)):
        row, column = odd[0]
        raise ValueError(
            f"{images.name}: {names[column]} of row {row} is {conditions[row, column]:g}; expected a number that "
            "can be meant, or none where it is not known"
        )
    return conditions


def to_train_on(images: ImageSet) -> ImageSet:
    """The rows of split train, or all where there are no splits: what is measured on the others must not have been learned.

    Raises ValueError where no row is of split train.
    """
    if not any(images.split):
        return images
    ours = images.in_split("train")
    if not len(ours):
        found = ", ".join(sorted(set(images.split.tolist()) - {""}))
        raise ValueError(f"{images.name}: no image of split train, only of {found}; mark those to train on, or leave out split")
    return ours


def without_images(images: ImageSet) -> ImageSet:
    """The form of a set without its rows: unit, range, shape, spacing, modality, origin, orientation and role."""
    return replace(images.select(np.zeros(0, dtype=int)), name=images.dataset)


def _said(numbers: np.ndarray) -> tuple[str, ...]:
    """Tokens among numbers of sentences, in the order of TOKENS."""
    return tuple(TOKENS[int(k)] for k in np.unique(numbers) if not np.isnan(k))


def _model(card: dict, latent_channels: int) -> Denoiser | Autoguided:
    config = parse(DenoiserConfig, card["denoiser"], _CARD)
    if set(TEXT) & set(card["names"]) and card["tokens"] != list(TOKENS):
        raise ValueError("it was trained on other words")
    nets = [Denoiser(config, card["names"], latent_channels) for _ in range(1 if card["guide"] is None else 2)]
    return nets[0] if card["guide"] is None else Autoguided(*nets, card["guide"])

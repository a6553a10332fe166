"""A generator on its way from private images to accepted ones."""

import json
import stat
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from medsynth.data.imagefile import Encoding
from medsynth.diffusion import generator as synthesis
from medsynth.diffusion.conditions import asked_for, of_rows, public_marginals
from medsynth.diffusion.generator import Generator
from medsynth.diffusion.guidance import Autoguided
from medsynth.ledger import CoverError, Ledger
from medsynth.mechanism import NONE, Mechanism
from medsynth.privacy.gate.refill import draw_accepted
from medsynth.privacy.gate.thresholds import Threshold, private_gate
from medsynth.settings.config import SamplingConfig
from medsynth.store.hashes import file_hash


@pytest.fixture
def private(make_set):
    return make_set(8, (1, 16, 16), role="private", name="ward")


@pytest.fixture
def settings(tiny):
    return {"denoiser": tiny.denoiser, "diffusion": tiny.diffusion, "sampling": SamplingConfig(images=1, steps=2)}


@pytest.fixture
def ledger(cache):
    return Ledger()


@pytest.fixture
def generator(private, settings, ledger, shipped):
    return Generator.train(private, **settings, ledger=ledger)


@pytest.fixture
def wishes(generator, private, ledger):
    """Conditions of n rows of the private set."""
    return lambda n, seed=0: of_rows(private, generator.names, n, seed=seed, ledger=ledger)


def test_draws_keep_their_wishes_and_their_role(generator, private, ledger, wishes):
    asked = wishes(5, seed=1)
    drawn = generator.draw(asked)
    assert (drawn.origin, drawn.people, drawn.modality, drawn.data_licence) == ("synthetic", False, "xray", "generated")
    assert drawn.role == "private" and drawn.images.shape == (5, 1, 16, 16) and drawn.range == private.range
    assert drawn.attributes["finding"].tolist() == asked.attributes["finding"].tolist()
    known = {tuple(r) for r in private.attributes[["age", "finding"]].itertuples(index=False)}
    assert {tuple(r) for r in asked.attributes[["age", "finding"]].itertuples(index=False)} <= known
    assert [e.stage for e in ledger.entries()] == ["train denoiser", "train refiner", "draw conditions"]
    some = generator.draw(asked, np.array([0, 3]))
    assert some.attributes["age"].tolist() == asked.attributes["age"].iloc[[0, 3]].tolist()


def test_a_generator_trained_under_a_mechanism_may_not_take_its_conditions_from_private_rows(private, settings, shipped, cache):
    class Private(Ledger):
        """As if every training were private."""

        def read(self, images, *, stage, output=""):
            proved = Mechanism("dp-sgd", unit="patient", epsilon=8.0, delta=1e-6, accountant="prv", q=0.1, steps=6)
            return super().read(images, stage=stage, output=output, mechanism=proved if stage.startswith("train") else NONE)

    covered = Generator.train(private, **settings, ledger=Private())
    assert [e.mechanism.name for e in covered.entries] == [
        "dp-sgd",
        "dp-sgd",
    ] and "(epsilon = 16, delta = 2e-06) per patient covers" in covered.sentence
    with pytest.raises(CoverError, match=r"generator of ward claims dp-sgd.*, but its conditions are rows of ward"):
        covered.draw(of_rows(private, covered.names, 2, seed=0, ledger=Ledger()))
    assert len(covered.draw(public_marginals(covered.like, covered.names, 2, seed=0))) == 2


def test_what_is_drawn_is_what_its_files_hold(generator, wishes, tmp_path):
    drawn = generator.draw(wishes(2))
    encoding = Encoding.for_images(drawn)
    for i, image in enumerate(drawn.images[:, 0]):
        (tmp_path / f"{i}.png").write_bytes(encoding.to_bytes(image))
        np.testing.assert_array_equal(encoding.read(tmp_path / f"{i}.png"), image)


def test_draws_are_refined_and_real_images_can_take_the_same_way(generator, private, wishes, monkeypatch):
    seen = []

    def note(refiner, images, *, seed):
        seen.append((refiner, images, seed))
        return images.with_images(images.images, name="refined")

    monkeypatch.setattr(synthesis, "refine", note)
    assert generator.draw(wishes(3), attempt=2).name == "refined"
    assert seen[0][0] is generator.refiner and seen[0][1].name == "ward-synthetic" and seen[0][2] == 2 * synthesis._NEXT_ATTEMPT
    passed = generator.reconstruct(private)
    assert passed.name == "refined" and seen[1][0] is generator.refiner and seen[1][1].name == "ward-reconstructed"
    assert passed.role == "private"


def test_what_is_refused_is_drawn_again_with_other_noise(generator, wishes):
    asked = wishes(4)
    first = generator.draw(asked)
    turns = []

    def accepts(candidates):
        turns.append(candidates)
        return np.arange(len(candidates)) > 0 if len(turns) == 1 else np.ones(len(candidates), bool)

    filled = draw_accepted(generator, asked, SimpleNamespace(accepts=accepts))
    np.testing.assert_array_equal(turns[0].images, first.images)
    np.testing.assert_array_equal(filled.images.images[1:], first.images[1:])
    assert filled.tries.tolist() == [2, 1, 1, 1]
    assert not np.array_equal(turns[1].images[0], first.images[0])


@pytest.mark.parametrize(("steps", "trained"), [(300, [300]), (400, [400, 300])])
def test_a_long_training_is_guided_by_its_own_beginning(steps, trained, private, settings, ledger, shipped, monkeypatch):
    asked, train = [], synthesis.train_denoiser

    def note(*args, diffusion, **kwargs):
        asked.append((diffusion.steps, diffusion.seed))
        return train(*args, diffusion=replace(diffusion, steps=2), **kwargs)

    monkeypatch.setattr(synthesis, "train_denoiser", note)
    monkeypatch.setattr(synthesis, "train_refiner", lambda *_, steps, **__: steps)
    longer = settings | {"diffusion": replace(settings["diffusion"], steps=steps)}
    made = Generator.train(private, **longer, ledger=ledger, seed=3)
    assert asked == [(s, 3) for s in trained] and made.refiner == 0.4 * steps and made.model.role == "private"
    guided = len(trained) == 2
    assert isinstance(made.model, Autoguided) == guided and made.sampling.seed == 3
    # guidance and epsilon scaling are for the same fault
    assert made.sampling.epsilon_scale == (1.0 if guided else settings["sampling"].epsilon_scale) and not made.model.training


def test_another_architecture_is_trained_from_scratch(private, settings, ledger, shipped, monkeypatch):
    starts = []
    monkeypatch.setattr(
        synthesis, "train_denoiser", lambda *_, start, **__: (starts.append(start), (torch.nn.Identity(), None))[1]
    )
    Generator.train(private, **settings, ledger=ledger)
    larger = settings | {"denoiser": replace(settings["denoiser"], residual_blocks=2)}
    Generator.train(private, **larger, ledger=ledger)
    assert starts == ["phantom", None]


def test_the_gate_takes_the_threshold_of_the_modality(private, ledger, monkeypatch):
    thresholds = {"phantom-ct": 0.25, "ct": 0.5}
    monkeypatch.setattr(
        "medsynth.privacy.gate.thresholds.threshold_for", lambda phi, dims, kind: Threshold(thresholds[kind], "so")
    )
    private = replace(private, modality="ct")
    gate = private_gate(private, ledger=ledger, phi="pixels")
    assert gate.tau == 0.25 and not gate.accepts(private.select(np.arange(2))).any()
    assert [e.stage for e in ledger.entries()] == ["gate"]
    scanned = replace(private, origin="scan", people=None)
    assert private_gate(scanned, ledger=ledger, phi="pixels").tau == 0.5


def test_a_generator_that_was_sent_draws_the_same_and_holds_no_image(generator, private, ledger, tmp_path):
    conditions = public_marginals(generator.like, generator.names, 3, seed=1)
    drawn = generator.draw(conditions)
    sent = Generator.load(generator.save(tmp_path / "generator"))
    again = sent.draw(conditions)
    np.testing.assert_allclose(again.images, drawn.images, atol=1e-5)
    assert (again.role, again.people, again.content_hash != "") == ("private", False, True)
    # whoever guesses the private set must not be able to check the guess by a hash
    assert sent.entries == tuple(replace(e, content_hash="") for e in generator.entries) and [e.stage for e in sent.entries] == [
        "train denoiser",
        "train refiner",
    ]
    assert "read 4 private patients with no mechanism" in sent.sentence
    assert len(sent.like) == len(generator.like) == 0 and (tmp_path / "generator").stat().st_mode & 0o077 == 0
    everything = b"".join(p.read_bytes() for p in (tmp_path / "generator").iterdir())
    assert not any(
        h.encode() in everything or row.tobytes()[:64] in everything
        for h, row in zip(private.row_hashes, private.images, strict=True)
    )


def test_damaged_and_foreign_generators_are_named(generator, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no generator; expected a folder with generator.json"):
        Generator.load(tmp_path)
    folder = generator.save(tmp_path / "g")
    (folder / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"g: a damaged generator, or one of another version: weights.safetensors has sha256"):
        Generator.load(folder)
    card = generator.save(tmp_path / "h") / "generator.json"
    card.write_text(card.read_text().replace("generator/1", "generator/9"))
    with pytest.raises(ValueError, match=r"format 'medsynth\.generator/9'"):
        Generator.load(card.parent)


def test_a_generator_is_saved_to_a_free_place_for_its_owner_alone(generator, tmp_path):
    (tmp_path / "mine").mkdir(mode=0o755)
    folder = generator.save(tmp_path / "mine")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {p.name: stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {
        "generator.json": 0o600, "weights.safetensors": 0o600, "like.npz": 0o600,
    }  # fmt: skip
    with pytest.raises(FileExistsError, match="mine: is there already and not an empty folder"):
        generator.save(folder)
    assert list(tmp_path.glob(".*")) == []


def card(**changes):
    """Change what the card of a generator says; functions are applied to what it said."""

    def change(folder):
        said = json.loads((folder / "generator.json").read_text())
        new = {key: value(said[key]) if callable(value) else value for key, value in changes.items()}
        (folder / "generator.json").write_text(json.dumps(said | new))

    return change


def cut_weights(folder):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    card(weights_sha256=file_hash(path))(folder)


def cut_pixels(folder):
    content = bytearray((folder / "like.npz").read_bytes())
    # the first bytes of what is packed in there
    content[60:120] = bytes(60)
    (folder / "like.npz").write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda g: (g / "like.npz").write_bytes((g / "like.npz").read_bytes()[:-40]),
        lambda g: (g / "like.npz").write_bytes(b""),
        lambda g: (g / "generator.json").write_text("[]"),
        cut_pixels,
        cut_weights,
        card(denoiser=lambda said: said | {"spatial_dims": 4}),
        card(sampling=lambda said: said | {"batch": 0}),
        card(entries=[{"stage": 1}]),
        card(entries=None),
        card(names=["age"]),
    ],
)
def test_whatever_is_damaged_is_a_damaged_generator(generator, tmp_path, damage):
    damage(generator.save(tmp_path / "g"))
    with pytest.raises(ValueError, match=r"g: a damaged generator, or one of another version: .") as error:
        Generator.load(tmp_path / "g")
    assert type(error.value) is ValueError and len(str(error.value).splitlines()) == 1


def test_a_private_generator_says_what_read_its_images(generator, tmp_path):
    card(entries=[])(generator.save(tmp_path / "g"))
    with pytest.raises(ValueError, match=r"it was made from private images, but the entries of generator\.json do not say how"):
        Generator.load(tmp_path / "g")


def test_what_cannot_be_trained_on_is_said_before(private, settings, ledger, shipped, make_set, tiny):
    for value in (np.inf, -np.inf, 1e38):
        odd = private.attributes.assign(age=[50.0] * 7 + [value])
        with pytest.raises(ValueError, match=r"ward: age of row 7 is -?(inf|1e\+38); expected a number that can be meant"):
            Generator.train(replace(private, attributes=odd), **settings, ledger=ledger)
    flat = make_set(4, (1, 1, 16, 16), role="private", name="flat", modality="mr")
    volumes = settings | {"denoiser": replace(tiny.denoiser, spatial_dims=3)}
    with pytest.raises(ValueError, match=r"flat: volumes of one plane; make them images, \(n, h, w\)"):
        Generator.train(flat, **volumes, ledger=ledger)
    assert not ledger.entries()


def test_public_weights_draw_without_a_reading(private, shipped, ledger):
    public = Generator.shipped(private, sampling=SamplingConfig(images=1, steps=2))
    drawn = public.draw(public_marginals(private, public.names, 4, seed=0))
    assert (drawn.role, drawn.people) == ("public", False) and not ledger.entries() and public.entries == ()
    assert public.sentence == "It was made from public images alone."
    # samples of weights that saw radiographs of people are of people
    scans = replace(private, origin="scan", people=None)
    assert (
        Generator.shipped(scans, sampling=SamplingConfig(images=1, steps=2))
        .draw(public_marginals(scans, public.names, 1, seed=0))
        .people
    )


def test_conditions_say_where_they_come_from(private, ledger):
    names = ("xray", "phantom", "effusion", "age", "sex", "bmi")
    rows = of_rows(private, names, 5, seed=0, ledger=ledger)
    assert (rows.source, rows.private) == ("rows of ward", True)
    assert [(e.stage, e.output) for e in ledger.entries()] == [("draw conditions", "finding, age, sex of sampled rows")]
    free = public_marginals(private, names, 500, seed=0)
    assert (free.source, free.private) == ("public marginals", False) and len(ledger.entries()) == 1
    assert free.attributes["age"].between(18, 95).all() and set(free.attributes["sex"]) == {0, 1}
    asked = asked_for(private, names, pd.DataFrame([{"finding": "effusion", "age": 70, "sex": 1}]))
    np.testing.assert_array_equal(asked.values, np.float32([[1, 1, 1, 70, 1, np.nan]]))


def test_a_generator_of_hearts(tiny, make_set, ledger, shipped):
    hearts = make_set(4, (1, 8, 16, 16), role="private", name="hearts", modality="mr")
    volumes = {"denoiser": replace(tiny.denoiser, spatial_dims=3), "diffusion": replace(tiny.diffusion, steps=2, batch=2)}
    made = Generator.train(hearts, **volumes, sampling=SamplingConfig(images=1, steps=2), ledger=ledger)
    assert made.refiner is None and "lvedv" in made.names
    drawn = made.draw(of_rows(hearts, made.names, 2, seed=0, ledger=ledger))
    assert drawn.images.shape == (2, 1, 8, 16, 16) and (drawn.modality, drawn.origin) == ("mr", "synthetic")
    with pytest.raises(ValueError, match=r"hearts: images of shape .*; expected 2 spatial axes"):
        Generator.train(hearts, **volumes | {"denoiser": tiny.denoiser}, sampling=SamplingConfig(images=1), ledger=ledger)

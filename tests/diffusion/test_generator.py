"""A generator on its way from private images to accepted ones."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medsynth.config import SamplingConfig
from medsynth.data.imagefile import Encoding
from medsynth.diffusion import generator as synthesis
from medsynth.diffusion.generator import private_gate, train_generator
from medsynth.diffusion.guidance import Autoguided
from medsynth.ledger import Ledger
from medsynth.privacy.gate.thresholds import Threshold


@pytest.fixture
def private(make_set):
    return make_set(8, (1, 16, 16), role="private", name="ward")


@pytest.fixture
def settings(tiny):
    return {"denoiser": tiny.denoiser, "diffusion": tiny.diffusion, "sampling": SamplingConfig(images=1, steps=2)}


@pytest.fixture
def ledger(cache):
    return Ledger(cache / "ledger")


@pytest.fixture
def generator(private, settings, ledger, shipped):
    return train_generator(private, "xray", **settings, ledger=ledger)


def test_draws_keep_their_wishes_and_their_role(generator, private, ledger):
    wishes = generator.wishes(5, seed=1)
    drawn = generator.draw(wishes)
    assert drawn.role == "private" and drawn.images.shape == (5, 1, 16, 16) and drawn.range == private.range
    assert drawn.attributes["finding"].tolist() == wishes.attributes["finding"].tolist()
    known = {tuple(r) for r in private.attributes[["age", "finding"]].itertuples(index=False)}
    assert {tuple(r) for r in wishes.attributes[["age", "finding"]].itertuples(index=False)} <= known
    assert [e.stage for e in ledger.entries()] == ["train denoiser", "train refiner", "draw conditions"]
    some = generator.draw(wishes, np.array([0, 3]))
    assert some.attributes["age"].tolist() == wishes.attributes["age"].iloc[[0, 3]].tolist()


def test_what_is_drawn_is_what_its_files_hold(generator, tmp_path):
    drawn = generator.draw(generator.wishes(2, seed=0))
    encoding = Encoding.for_images(drawn)
    for i, image in enumerate(drawn.images[:, 0]):
        (tmp_path / f"{i}.png").write_bytes(encoding.to_bytes(image))
        np.testing.assert_array_equal(encoding.read(tmp_path / f"{i}.png"), image)


def test_draws_are_refined_and_real_images_can_take_the_same_way(generator, private, monkeypatch):
    seen = []

    def note(refiner, images, *, seed):
        seen.append((refiner, images, seed))
        return images.with_images(images.images, name="refined")

    monkeypatch.setattr(synthesis, "refine", note)
    assert generator.draw(generator.wishes(3, seed=0), attempt=2).name == "refined"
    assert seen[0][0] is generator.refiner and seen[0][1].name == "ward-synthetic" and seen[0][2] == 2 * synthesis._NEXT_ATTEMPT
    passed = generator.reconstructed()
    assert passed.name == "refined" and seen[1][0] is generator.refiner and seen[1][1].name == "ward-reconstructed"
    assert passed.role == "private"


def test_what_is_refused_is_drawn_again_with_other_noise(generator):
    wishes = generator.wishes(4, seed=0)
    first = generator.draw(wishes)
    turns = []

    def accepts(candidates):
        turns.append(candidates)
        return np.arange(len(candidates)) > 0 if len(turns) == 1 else np.ones(len(candidates), bool)

    filled = generator.draw_accepted(wishes, SimpleNamespace(accepts=accepts))
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
    made = train_generator(private, "xray", **longer, ledger=ledger, seed=3)
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
    train_generator(private, "xray", **settings, ledger=ledger)
    larger = settings | {"denoiser": replace(settings["denoiser"], residual_blocks=2)}
    train_generator(private, "xray", **larger, ledger=ledger)
    assert starts == ["phantom", None]


def test_the_gate_takes_the_threshold_of_the_modality(private, ledger, monkeypatch):
    thresholds = {"phantom-ct": 0.25, "ct": 0.5}
    monkeypatch.setattr(synthesis, "threshold_for", lambda phi, dims, kind: Threshold(thresholds[kind], "so"))
    gate = private_gate(private, "ct", ledger=ledger, phi="pixels")
    assert gate.tau == 0.25 and not gate.accepts(private.select(np.arange(2))).any()
    assert [e.stage for e in ledger.entries()] == ["gate"]
    scanned = private.with_images(private.images, attributes=private.attributes.assign(licence="CC BY 4.0"))
    assert private_gate(scanned, "ct", ledger=ledger, phi="pixels").tau == 0.5

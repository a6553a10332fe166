"""The explorer asks for what its controls say, and shows only what may be shown."""

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pytest

from medsynth import explore
from medsynth.diffusion.conditions import asked_for
from medsynth.imageset import ImageSet
from medsynth.language.vocabulary import HEART, PHANTOM_FINDINGS
from medsynth.models.conditioning import THORAX
from medsynth.privacy.gate.gate import Gate
from medsynth.settings.config import SamplingConfig


@pytest.fixture
def like():
    table = pd.DataFrame({"finding": ["none"], "licence": ["generated"]})
    return ImageSet(
        images=np.zeros((1, 1, 8, 8)),
        patient=[0],
        unit="1",
        range=(0, 1),
        name="p",
        modality="xray",
        origin="phantom",
        attributes=table,
    )


@dataclass(frozen=True)
class Recorder:
    """A generator that notes what it is asked for."""

    like: ImageSet
    asked: list
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(images=1))
    names = THORAX

    def draw(self, conditions, *, guidance=None):
        self.asked.append((conditions.values, guidance, self.sampling.seed))
        images = np.full((len(conditions), 1, 8, 8), 0.5, np.float32)
        return self.like.with_images(images, patient=np.arange(len(conditions)), split=None, attributes=conditions.attributes)


@pytest.fixture
def asked():
    return []


@pytest.fixture
def generator(like, asked):
    return Recorder(like, asked)


def test_moving_a_control_draws_again(asked, generator):
    box = explore.explorer(generator)
    controls = {c.description.split(" ")[0]: c for c in box.children[0].children}
    assert len(asked) == 1
    controls["guidance"].value = 2.5
    assert len(asked) == 2 and asked[-1][1] == 2.5
    controls["seed"].value = 7
    assert asked[-1][2] == 7
    controls["finding"].value = "nodule"
    assert asked[-1][0][0][THORAX.index("nodule")] == 1


def test_the_static_twin_shows_every_finding(asked, generator):
    figure = explore.static_sheet(generator)
    assert len(asked[0][0]) == len(PHANTOM_FINDINGS) * 6
    assert [a.get_ylabel() for a in figure.axes if a.get_ylabel()] == list(PHANTOM_FINDINGS)


def test_real_images_are_not_explored(asked, like):
    real = replace(like, origin="scan", people=None)
    with pytest.raises(ValueError, match="not shown before a gate"):
        explore.explorer(Recorder(real, asked))


# hearts


@pytest.fixture
def hearts(like):
    """Two generators of stacks by epsilon, and what each was asked for."""
    stack = like.with_images(np.zeros((1, 1, 8, 8, 8), np.float32), modality="mr", attributes=pd.DataFrame(index=range(1)))

    @dataclass(frozen=True)
    class Hearts(Recorder):
        names = HEART

        def draw(self, conditions, *, guidance=None):
            self.asked.append((dict(zip(HEART, conditions.values[0], strict=True)), self.sampling.seed))
            return self.like.with_images(np.full((1, 1, 8, 8, 8), 0.5, np.float32))

    return {name: Hearts(stack, []) for name in ("1", "not private")}


def test_a_heart_is_asked_for_by_volume_wall_and_phase_at_an_epsilon(hearts):
    box = explore.heart_explorer(hearts)
    controls = {c.description.split(" ")[0]: c for c in box.children[0].children}
    controls["LV"].value = 200
    asked, _ = hearts["1"].asked[-1]
    assert (asked["lvedv"], asked["wall_ed"], asked["phase"]) == (200, 9, 0) and np.isnan(asked["lvesv"])
    controls["phase"].value = 1
    controls["epsilon"].value = "not private"
    asked, seed = hearts["not private"].asked[-1]
    assert (asked["lvesv"], asked["wall_es"], asked["phase"], seed) == (200, 9, 1, 0) and np.isnan(asked["lvedv"])
    assert len(hearts["1"].asked) == 3


def test_the_sheet_draws_one_noise_at_rising_volumes(hearts):
    explore.heart_sheet(hearts, volumes=(100, 200))
    for generator in hearts.values():
        assert [(asked["lvedv"], seed) for asked, seed in generator.asked] == [(100, 0), (200, 0)]


def test_hearts_of_people_are_not_explored(hearts):
    people = {name: replace(g, like=g.like.with_images(g.like.images, origin="scan", people=True)) for name, g in hearts.items()}
    with pytest.raises(ValueError, match="images of people are not shown"):
        explore.heart_explorer(people)


# sentences


class Pixels:
    name, hash, error = "pixels", "0" * 32, 0.0

    def __call__(self, images):
        return images.images.reshape(len(images), -1).astype(np.float32)


@dataclass(frozen=True)
class Listener(Recorder):
    """It draws the left half as bright as the seed asked for, and a tenth, and is asked by one word."""

    def ask(self, sentence):
        if sentence != "nodule":
            raise ValueError(f"{sentence!r} is no word")
        return asked_for(self.like, self.names, pd.DataFrame({"finding": [sentence]}))

    def draw(self, conditions, *, guidance=None):
        self.asked.append(self.sampling.seed)
        images = np.zeros((1, 1, 8, 8), np.float32)
        images[..., :4] = 0.1 * self.sampling.seed
        return self.like.with_images(images, patient=[0], split=None)


@pytest.fixture
def answers(like, asked):
    """A patient at 0.1, and three released images at 0.3, 0.6 and 0.9: whatever lies within 0.15 of the patient is refused."""
    images = np.zeros((4, 1, 8, 8), np.float32)
    images[..., :4] = np.array([0.1, 0.3, 0.6, 0.9])[:, None, None, None]
    many = like.with_images(images, patient=np.arange(4), split=None, attributes=pd.DataFrame(index=range(4)))
    tau = 0.15 * np.sqrt(32)
    return explore.Asked(Listener(like, asked), many.select([1, 2, 3]), Gate(many.select([0]), Pixels(), tau))


def test_a_sentence_is_answered_with_image_verdict_and_nearest_released_image(answers):
    near, far = answers.answer("nodule", 1), answers.answer("nodule", 6)
    assert near.verdict == "refused, too close: 0.57 from a patient, limit 0.85"
    assert far.verdict.startswith("passes: ") and far.verdict.endswith(" from a patient, limit 0.85")
    assert [a.neighbour.images.max() for a in (near, far)] == pytest.approx([0.3, 0.6])
    assert [a.apart for a in (near, far)] == pytest.approx([0.1 * np.sqrt(32)] * 2, rel=1e-5)


def test_a_sentence_is_typed_and_what_is_refused_is_said(asked, answers, capsys):
    box = explore.sentence_explorer(answers, "nodule")
    sentence, seed = box.children[0].children
    seed.value = 3
    assert asked == [1, 4]
    sentence.value = "nodle"
    assert asked == [1, 4] and "'nodle' is no word" in capsys.readouterr().out


def test_the_sheet_of_sentences_shows_each_draw_beside_its_neighbour(asked, answers):
    figure = explore.sentence_sheet(answers, ["nodule", "nodule"], draws=2)
    assert asked == [1, 2] * 2 and [a.get_ylabel() for a in figure.axes if a.get_ylabel()] == ["nodule"] * 2
    assert "limit" in figure.axes[0].get_title() and figure.axes[1].get_title().startswith("nearest released")


def test_verdicts_on_people_are_not_shown(answers, like):
    people = replace(like, origin="scan", people=None)
    with pytest.raises(ValueError, match="not shown before a gate"):
        explore.Asked(answers.generator, people, answers.gate)

"""The explorer asks for what its controls say, and shows only what may be shown."""

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pytest

from medsynth import explore
from medsynth.imageset import ImageSet
from medsynth.language.vocabulary import HEART, PHANTOM_FINDINGS
from medsynth.models.conditioning import THORAX
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

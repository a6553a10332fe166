"""The explorer asks for what its controls say, and shows only what may be shown."""

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pytest

from medsynth import explore
from medsynth.config import SamplingConfig
from medsynth.imageset import ImageSet
from medsynth.models.conditioning import THORAX
from medsynth.vocabulary import PHANTOM_FINDINGS


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

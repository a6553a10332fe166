"""The explorer asks for what its controls say, and shows only what may be shown."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from medsynth import explore
from medsynth.config import DiffusionConfig, SamplingConfig
from medsynth.imageset import ImageSet
from medsynth.models.conditioning import THORAX


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


@pytest.fixture
def asked(monkeypatch, like):
    """Replaces sampling by a record of what was asked for."""
    calls = []

    def sample(denoiser, autoencoder, condition, *, like, diffusion, sampling, attributes):
        calls.append((condition, sampling))
        images = np.full((len(condition), 1, 8, 8), 0.5, np.float32)
        return like.with_images(images, patient=np.arange(len(condition)), split=None, attributes=attributes)

    monkeypatch.setattr(explore, "sample_images", sample)
    return calls


def test_a_wish_becomes_a_condition(asked, like):
    wishes = pd.DataFrame([{"finding": "effusion", "age": 70, "sex": 1, "bmi": 30.0}])
    image = explore.drawn(None, None, wishes, like=like, diffusion=DiffusionConfig(steps=0), sampling=SamplingConfig(images=1))
    condition = dict(zip(THORAX, asked[0][0][0], strict=True))
    assert (condition["effusion"], condition["none"], condition["xray"], condition["phantom"]) == (1, 0, 1, 1)
    assert (condition["age"], condition["sex"], condition["bmi"]) == (70, 1, 30)
    assert image.data_licence == "generated"


def test_moving_a_control_draws_again(asked, like):
    box = explore.explorer(None, None, like=like, diffusion=DiffusionConfig(steps=0))
    controls = {c.description.split(" ")[0]: c for c in box.children[0].children}
    assert len(asked) == 1
    controls["guidance"].value = 2.5
    assert len(asked) == 2 and asked[-1][1].guidance == 2.5
    controls["finding"].value = "nodule"
    assert asked[-1][0][0][THORAX.index("nodule")] == 1


def test_the_static_twin_shows_every_finding(asked, like):
    figure = explore.static_sheet(None, None, like=like, diffusion=DiffusionConfig(steps=0), sampling=SamplingConfig(images=1))
    assert len(asked[0][0]) == len(explore.PHANTOM_FINDINGS) * 6
    assert [a.get_ylabel() for a in figure.axes if a.get_ylabel()] == list(explore.PHANTOM_FINDINGS)


def test_real_images_are_not_explored(asked, like):
    real = replace(like, origin="scan", people=None)
    with pytest.raises(ValueError, match="not shown before a gate"):
        explore.explorer(None, None, like=real, diffusion=DiffusionConfig(steps=0))

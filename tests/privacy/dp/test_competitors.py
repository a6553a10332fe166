"""Private Evolutions beside private training: found again, each with its line."""

from dataclasses import replace

import numpy as np
import pytest

from medsynth.diffusion.generator import Generator
from medsynth.ledger import Ledger
from medsynth.phantoms.heart.heart import cardiac
from medsynth.privacy.dp import competitors
from medsynth.privacy.dp.competitors import METHODS, evolutions
from medsynth.settings.config import DPConfig, PrivacyConfig, SamplingConfig

CONFIG = DPConfig(
    8, 4, 2, (5.0,), PrivacyConfig(steps=1, batch=2), PrivacyConfig(steps=1, batch=2), candidates=6, slices=8, size=32
)


class MeanOfPlanes:
    """A feature map that costs nothing, and counts how often it is shown private images."""

    name, dim = "mean", 2

    def __init__(self):
        self.members = 0

    def __call__(self, images, *, batch=256):
        self.members += images.role == "private"
        return np.stack([images.images.mean((1, 2, 3)), images.images.std((1, 2, 3))], 1)


@pytest.fixture
def members():
    return replace(cardiac(patients=6, slices=8, size=32, population="private", seed=1), name="ward")


def test_every_method_is_made_once_found_again_and_paid_for_by_a_line_of_its_own(members, shipped, cache, monkeypatch):
    public = Generator.shipped(members, sampling=SamplingConfig(images=1, steps=2))
    extractor, ledger = MeanOfPlanes(), Ledger()
    how = {"config": CONFIG, "samples": 3, "seeds": (0, 1), "ledger": ledger}
    made = evolutions(members, public, extractor, **how)
    assert set(made) == {(method, 5.0, seed) for method in METHODS for seed in (0, 1)}
    # of the members, twelve stacks of three planes, once a seed; of what all evolutions share, likewise
    assert extractor.members == 2
    assert {images.role for images in made.values()} == {"private"} and {i.origin for i in made.values()} == {"synthetic"}
    assert {len(images) for images in made.values()} == {6}
    lines = ledger.entries()
    assert len(lines) == 6 and ledger.total(members).epsilon == pytest.approx(30.0)
    monkeypatch.setattr(competitors.pe, "evolve", lambda *a, **k: pytest.fail("made again"))
    again = evolutions(members, public, extractor, **how)
    assert all(np.array_equal(made[key].images, again[key].images) for key in made) and ledger.entries() == lines

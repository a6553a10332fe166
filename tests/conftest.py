"""What all tests share: one thread (.ci/run asks for two too), a cache of their own, tiny sets, networks and weight files."""

from __future__ import annotations

import os

# before numerical libraries are imported, and for processes that tests start: workers have a core each
os.environ["OMP_NUM_THREADS"] = os.environ.get("MEDSYNTH_TEST_THREADS", "1")

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import settings

import medsynth
from medsynth.imageset import ImageSet
from medsynth.settings.config import AutoencoderConfig, DenoiserConfig, DiffusionConfig

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# the same examples each time, so that a failure is one of this code; `pytest --hypothesis-profile=explore` looks for new ones
settings.register_profile("medsynth", deadline=None, max_examples=20, database=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=200, database=None)
settings.load_profile("medsynth")

ROOT = Path(medsynth.__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test may find, or leave, anything in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSYNTH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_further_processes() -> Iterator[None]:
    """Each would import everything to draw a few small phantoms; that images do not depend on them has a test of its own."""
    with joblib.parallel_config("sequential"):
        yield


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that this test alone sees."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MEDSYNTH_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def project() -> Path:
    """The folder that holds `medsynth/`, `profiles/` and `tests/`."""
    return ROOT


@pytest.fixture(scope="session")
def make_set() -> Callable[..., ImageSet]:
    """A function that makes a small set: `n` images of `shape`, two per patient, with a column of every type."""

    def make(n: int = 12, shape: tuple[int, ...] = (1, 16, 16), seed: int = 0, **changes: object) -> ImageSet:
        rng = np.random.default_rng(seed)
        patient = np.arange(n) // 2
        table = pd.DataFrame(
            {
                "age": rng.uniform(20, 90, n),
                "sex": pd.array(rng.integers(0, 2, n), dtype="Int64"),
                "smoker": pd.array(rng.random(n) < 0.5, dtype="boolean"),
                "finding": pd.array(rng.choice(["none", "nodule", "effusion"], n), dtype="string"),
                "licence": pd.array(["generated"] * n, dtype="string"),
            }
        )
        fields: dict[str, object] = {
            "images": rng.random((n, *shape), dtype=np.float32), "patient": patient, "unit": "1", "range": (0.0, 1.0),
            "name": "tiny", "modality": "xray", "origin": "phantom",
            "split": np.array(["train", "train", "val", "test"])[patient % 4], "attributes": table,
        }  # fmt: skip
        return ImageSet(**(fields | changes))

    return make


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """Configurations of the smallest networks that MONAI builds."""
    return SimpleNamespace(
        autoencoder=AutoencoderConfig(channels=(32, 32), residual_blocks=1, latent_channels=4, steps=4, batch=2),
        denoiser=DenoiserConfig(channels=(64, 64), attention=(False, True), residual_blocks=1),
        denoiser_3d=DenoiserConfig(channels=(16, 32), attention=(False, True), head_channels=16, spatial_dims=3),
        diffusion=DiffusionConfig(steps=6, batch=4, warmup=2, timesteps=50, checkpoint_every=2),
    )


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory, tiny: SimpleNamespace) -> Path:
    """A folder of shipped weights: random tiny networks under the names of the real ones."""
    from medsynth.language.vocabulary import HEART
    from medsynth.models.autoencoder import Autoencoder
    from medsynth.models.conditioning import THORAX
    from medsynth.models.denoiser import Denoiser
    from medsynth.models.refiner import Refiner
    from medsynth.models.weights import DENOISERS, save_card
    from medsynth.settings.config import RefinerConfig

    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        autoencoder = Autoencoder(tiny.autoencoder)
        save_card(folder, "autoencoder", autoencoder.state_dict(), {"config": asdict(tiny.autoencoder)})
        refiner = Refiner(tiny_refiner := RefinerConfig(channels=(16, 16)))
        save_card(folder, "refiner", refiner.state_dict(), {"config": asdict(tiny_refiner)})
        for kind in DENOISERS:
            config, names = (tiny.denoiser_3d, HEART) if kind == "heart" else (tiny.denoiser, THORAX)
            model = Denoiser(config, names, autoencoder.latent_channels)
            card = {"config": asdict(config), "names": list(names), "latent_channels": autoencoder.latent_channels}
            save_card(folder, f"denoiser_{kind}", model.state_dict(), card)
    return folder


@pytest.fixture
def shipped(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package ships the tiny weights during this test."""
    monkeypatch.setattr("medsynth.models.weights.weights_folder", lambda: tiny_weights)
    return tiny_weights


@pytest.fixture
def public_sets_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """A function that sets how many images of how many patients the files hold that are called like public sets."""
    from medsynth.data import npz

    def hold(images: int, patients: int) -> None:
        monkeypatch.setattr(npz, "KNOWN", {k: replace(v, images=images, patients=patients) for k, v in npz.KNOWN.items()})

    return hold


@pytest.fixture
def start_python() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A function that starts Python on a program text, with arguments, in a process that does not outlive the test."""
    started = []

    def start(program: str, *arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def finish() -> Callable[[subprocess.Popen[str]], tuple[int, str, str]]:
    """A function that waits for a process; (exit status, its output, its errors). The limit only ends a process that hangs."""

    def wait(process: subprocess.Popen[str]) -> tuple[int, str, str]:
        out, err = process.communicate(timeout=900)
        return process.returncode, out, err

    return wait

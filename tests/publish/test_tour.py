import re
from dataclasses import replace

import numpy as np
import pytest
from stub_project import ROOT

from medsynth.phantoms.thorax.thorax import thorax
from medsynth.settings.config import DenoiserConfig
from medsynth.settings.profile import load_profile


@pytest.mark.slow
def test_the_lines_of_the_tour_run_from_a_file_to_a_certificate(tmp_path, cache, monkeypatch, capsys):
    (block,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "book" / "tour.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for line in block.splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith(("from ", "import "))]) <= 20
    smoke = load_profile("smoke", ROOT / "profiles")
    tiny = replace(
        smoke,
        denoiser=DenoiserConfig(),
        diffusion=replace(smoke.diffusion, steps=2, batch=4),
        sampling=replace(smoke.sampling, images=6, steps=2),
        gate=replace(smoke.gate, images=6),
    )
    monkeypatch.setattr("medsynth.settings.profile.load_profile", lambda name: tiny)
    monkeypatch.chdir(tmp_path)
    people = thorax(patients=14, size=32, modality="xray", population="private")
    np.savez_compressed("mine.npz", image=np.round(people.images[:, 0] * 255).astype(np.uint8), patient=people.patient)
    exec(compile(block, "book/tour.md", "exec"), {})
    assert (tmp_path / "out" / "release" / "certificate.json").is_file()
    said = capsys.readouterr().out
    assert "n=4" in said and "denoiser" in said


def test_the_readme_shows_the_lines_of_the_tour():
    blocks = [
        re.search(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)[1]
        for page in (ROOT / "README.md", ROOT / "book" / "tour.md")
    ]
    readme, tour = ([line for line in b.splitlines() if line.strip() and not line.startswith("from ")] for b in blocks)
    assert readme == tour

"""Restoration tasks: pairs row by row, classical methods that help, and consistency that belongs to the measurement."""

import numpy as np
import pytest
import torch

from medsynth.downstream.tasks import TASKS, LowCountPET, LowDoseCT, SuperResolutionMR, experiment, task
from medsynth.evaluation.image_quality import image_psnr
from medsynth.phantoms.thorax.thorax import thorax
from medsynth.settings.profile import load_profile


@pytest.fixture(scope="module")
def clean():
    return {m: thorax(patients=4, size=32, modality=m, population="private") for m in ("ct", "mr", "pet")}


@pytest.fixture(scope="module")
def tuning():
    return {m: thorax(patients=3, size=32, modality=m) for m in ("ct", "mr", "pet")}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_degrades_row_by_row_and_repeats_itself(name, clean):
    job, images = task(name), clean[task(name).modality]
    low = job.degrade(images, seed=3)
    assert np.array_equal(low.patient, images.patient) and (low.unit, low.range) == (images.unit, images.range)
    assert np.array_equal(low.images, job.degrade(images, seed=3).images)
    psnr = image_psnr(images, low)
    assert (psnr > 8).all() and (psnr < 45).all()
    noisy = not name.startswith("mr")
    assert noisy != np.array_equal(low.images, job.degrade(images, seed=4).images)


@pytest.mark.parametrize("better, worse", [
    (LowDoseCT(1e5), LowDoseCT(1e3)), (SuperResolutionMR(2), SuperResolutionMR(4)), (LowCountPET(200), LowCountPET(5)),
])  # fmt: skip
def test_a_better_scan_loses_less(better, worse, clean):
    images = clean[better.modality]
    first, second = (image_psnr(images, job.degrade(images, seed=0)).mean() for job in (better, worse))
    assert first > second + 3


@pytest.mark.parametrize("job", [LowDoseCT(2e3), LowCountPET(5)])
def test_denoisers_tuned_on_others_help(job, clean, tuning):
    images, other = clean[job.modality], tuning[job.modality]
    low = job.degrade(images, seed=0)
    done = job.classical(low, tuned_on=(job.degrade(other, seed=1), other))
    assert set(done) == {"TV", "NLM"}
    assert max(image_psnr(images, d).mean() for d in done.values()) > image_psnr(images, low).mean() + 1


def test_interpolations_are_the_baselines_of_super_resolution(clean, tuning):
    job = SuperResolutionMR(2)
    low = job.degrade(clean["mr"], seed=0)
    done = job.classical(low, tuned_on=(low, clean["mr"]))
    assert set(done) == {"zero-filled", "bicubic"} and np.array_equal(done["zero-filled"].images, low.images)


def test_consistency_is_that_of_the_measurement(clean):
    x = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    frequencies = SuperResolutionMR(2).consistency(clean["mr"])
    # a projection: what it keeps it keeps
    torch.testing.assert_close(frequencies(frequencies(x)), frequencies(x), atol=1e-5, rtol=0)
    beam = LowDoseCT(1e4).consistency(clean["ct"])
    assert beam.description["views"] == 48 and float((x * beam(x)).sum()) > 0
    with pytest.raises(ValueError, match=r"low-count PET: .* choose a network other than 'unrolled'"):
        LowCountPET(5).consistency(clean["pet"])


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="restoration task 'ct'; expected one of ct-low-dose, mr-x2"):
        task("ct")


def test_an_experiment_is_a_task_and_a_network():
    job, net = experiment("ct-low-dose/redcnn")
    assert job is TASKS["ct-low-dose"] and (net.net, net.width) == ("redcnn", 16)
    with pytest.raises(ValueError, match="experiment 'mr-x2/edrs' does not exist; did you mean 'mr-x2/edsr'"):
        experiment("mr-x2/edrs")
    # nothing to unroll
    with pytest.raises(ValueError, match="did you mean"):
        experiment("pet-low-count/unrolled")
    with pytest.raises(ValueError, match="'zzz' does not exist; expected one of ct-low-dose/redcnn"):
        experiment("zzz")


def test_profiles_name_experiments_that_exist(project):
    for path in (project / "profiles").glob("*.yaml"):
        profile = load_profile(path.stem, project / "profiles")
        for name in (*profile.restoration.experiments, profile.sites.experiment):
            experiment(name)
        assert "real" in profile.restoration.arms

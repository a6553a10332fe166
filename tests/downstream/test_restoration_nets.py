"""Restoration networks: shapes, gradients, data consistency against dense matrices, and training that resumes and is recorded."""

import json
import os
import signal
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional

import medsynth.downstream.restoration as restore_module
from medsynth.downstream.degrade import LowDose, low_dose_ct, scanner_of, truncate_kspace
from medsynth.downstream.fanbeam import FanBeam, projector
from medsynth.downstream.restoration import RestorationTraining, restore, train_restoration
from medsynth.downstream.restoration_nets import (
    NETS,
    FanBeamConsistency,
    KSpaceConsistency,
    RestorationConfig,
    restoration_net,
)
from medsynth.imageset import ImageSet
from medsynth.ledger import Ledger, RoleError
from medsynth.mechanism import NONE
from medsynth.phantoms.thorax.thorax import thorax
from medsynth.store.dependencies import code_hash
from medsynth.store.runs import Workspace

SIZE = 24
TINY = RestorationConfig(width=4, blocks=2)
BRIEF = RestorationTraining(steps=6, batch=2, patch=22, warmup=2, checkpoint_every=2)


@pytest.fixture(scope="module")
def ct():
    return thorax(patients=4, size=SIZE, modality="ct", population="private")


@pytest.fixture(scope="module")
def low(ct):
    return low_dose_ct(ct, seed=0, dose=LowDose(photons=1e3, reconstruction="fbp"))


@pytest.fixture(scope="module")
def beam(ct):
    return FanBeamConsistency(scanner_of(ct, views=24), SIZE)


@pytest.fixture
def job(ct, low, cache, tmp_path):
    return {"degraded": low, "clean": ct, "net": TINY, "training": BRIEF, "ledger": Ledger(tmp_path / "ledger")}


def built(net, size=SIZE):
    torch.manual_seed(0)
    consistency = KSpaceConsistency(size, 2) if net == "unrolled" else None
    return restoration_net(replace(TINY, net=net), consistency)


def disturbed(model):
    """The same network with a last layer that is no longer zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


# ------------------------------------------------------------------------------------------------ networks


@pytest.mark.parametrize("net", sorted(NETS))
def test_networks_start_as_the_identity_and_every_parameter_learns(net):
    model, x = built(net), torch.rand(2, 1, SIZE, SIZE)
    assert torch.allclose(model(x), x, atol=1e-6)
    out = disturbed(model)(x)
    assert out.shape == x.shape and not torch.allclose(out, x, atol=1e-4)
    out.square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


@pytest.mark.parametrize("net", sorted(NETS))
def test_an_image_is_restored_on_its_own(net):
    model, x = disturbed(built(net)), torch.rand(3, 1, SIZE, SIZE)
    with torch.no_grad():
        assert torch.allclose(model(x)[1:2], model(x[1:2]), atol=1e-5)


@pytest.mark.parametrize("net", ["redcnn", "edsr", "restormer"])
@pytest.mark.parametrize("shape", [(21, 27), (30, 24)])
def test_sides_need_not_be_even(net, shape):
    assert disturbed(built(net))(torch.rand(1, 1, *shape)).shape == (1, 1, *shape)


def test_redcnn_has_the_layers_of_the_paper():
    model = restoration_net(RestorationConfig(net="redcnn", width=96))
    # five convolutions and five transposed ones of 5 x 5, 96 filters, the last with one
    assert sum(p.numel() for p in model.parameters()) == 2 * (25 * 96 + 4 * 25 * 96 * 96) + 9 * 96 + 1


def test_redcnn_equals_its_layers_written_out():
    model, x = disturbed(built("redcnn")), torch.rand(1, 1, 24, 24)
    e, d = model.encoder, model.decoder
    relu = partial(functional.leaky_relu, negative_slope=0.2)
    two = relu(e[1](relu(e[0](x))))
    four = relu(e[3](relu(e[2](two))))
    y = relu(d[0](relu(e[4](four))) + four)
    y = relu(d[2](relu(d[1](y))) + two)
    assert torch.allclose(model(x), d[4](relu(d[3](y))) + x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net": "unet"}, r"net 'unet'; expected one of \['edsr', 'redcnn', 'restormer', 'unrolled'\]"),
        ({"width": 0}, "width 0, blocks 2; expected 1 or more"),
        ({"net": "restormer", "width": 5}, "width 5; expected an even number"),
        ({"net": "unrolled"}, "net 'unrolled' with data consistency 'none'"),
    ],
)
def test_networks_that_do_not_exist_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        restoration_net(replace(TINY, **change))
    with pytest.raises(ValueError, match="net 'redcnn' with data consistency 'k-space'"):
        restoration_net(TINY, KSpaceConsistency(16, 2))


# ------------------------------------------------------------------------------------------------ data consistency


def matrix_of(consistency, size):
    basis = torch.eye(size * size).reshape(-1, 1, size, size)
    return consistency(basis).reshape(size * size, -1).numpy()


def test_kspace_consistency_is_a_projection_on_what_was_measured():
    x = thorax(patients=2, size=16, modality="mr")
    consistency = KSpaceConsistency(16, 2)
    N = matrix_of(consistency, 16)
    assert np.allclose(N, N.T, atol=1e-6) and np.allclose(N @ N, N, atol=1e-5)
    assert np.linalg.matrix_rank(N, tol=1e-3) == 49
    shown = truncate_kspace(x, factor=2).images
    assert np.abs(consistency(torch.tensor(x.images)).numpy()).clip(0, 1) == pytest.approx(shown, abs=1e-5)


def test_fan_beam_consistency_is_the_normal_matrix_of_the_projection():
    g = FanBeam(views=12, detectors=20)
    consistency = FanBeamConsistency(g, 12)
    A = projector(g, 12).matrix.toarray().astype(np.float64)
    expected = A.T @ A / (A.T @ A).sum(0).max()
    found = matrix_of(consistency, 12)
    assert np.allclose(found, expected, atol=1e-5)
    assert 0.5 < np.linalg.eigvalsh(found)[-1] <= 1 + 1e-5
    assert json.loads(json.dumps(consistency.description))["views"] == 12


def test_gradients_pass_through_the_projection(beam):
    x = torch.rand(2, 1, SIZE, SIZE, requires_grad=True)
    weights, step = torch.rand(2, 1, SIZE, SIZE), torch.randn(2, 1, SIZE, SIZE)
    (weights * beam(x)).sum().backward()
    # linear: the gradient is exact for any step
    expected = (weights * (beam(x.detach() + step) - beam(x.detach()))).sum()
    assert float((x.grad * step).sum()) == pytest.approx(float(expected), rel=1e-3, abs=1e-3)


def test_data_consistency_descends_towards_the_measurement_and_is_no_weight(beam, ct):
    model = restoration_net(replace(TINY, net="unrolled"), beam)
    assert [k for k in model.state_dict() if "consistency" in k] == []
    clean = torch.tensor((ct.scaled() + 1) / 2)
    x = torch.zeros_like(clean)
    before = (beam(x - clean) * (x - clean)).sum()
    for _ in range(3):
        x = x - beam(x - clean)
    assert (beam(x - clean) * (x - clean)).sum() < 0.1 * before


# ------------------------------------------------------------------------------------------------ training


def error(a, b):
    return float(np.sqrt(((a.images.astype(float) - b.images) ** 2).mean()))


@pytest.mark.parametrize("net", sorted(NETS))
def test_a_few_steps_bring_training_images_closer(net, job, beam):
    consistency = beam if net == "unrolled" else None
    training = replace(BRIEF, steps=30, batch=4, patch=None, learning_rate=3e-3, ema=0.8, checkpoint_every=0)
    model, trained = train_restoration(
        **job | {"net": replace(TINY, net=net, width=8), "training": training}, consistency=consistency
    )
    restored = restore(model, job["degraded"])
    assert error(restored, job["clean"]) < 0.97 * error(job["degraded"], job["clean"])
    assert (restored.role, restored.range, restored.name) == ("private", (-1000, 400), f"{job['degraded'].name}-restored")
    assert np.array_equal(restored.patient, job["clean"].patient)
    assert trained.manifest["metrics"]["steps"] == 30


def test_gradients_are_cut_to_the_norm_of_the_schedule(job):
    torch.manual_seed(BRIEF.seed)
    start = restoration_net(TINY).state_dict()
    # of a gradient that is cut to nothing nothing is learned
    still, _ = train_restoration(**job | {"training": replace(BRIEF, clip=0.0)})
    assert all(torch.equal(v, start[k]) for k, v in still.state_dict().items())
    moved, _ = train_restoration(**job)
    assert not all(torch.equal(v, start[k]) for k, v in moved.state_dict().items())


def test_training_is_deterministic_found_again_and_recorded(job, ct, low, beam, monkeypatch):
    model, trained = train_restoration(**job)
    entries = job["ledger"].entries()
    assert [(e.stage, e.reads, e.mechanism) for e in entries] == [("train restoration net", ct.name, NONE)]
    inputs = trained.manifest["inputs"]
    assert inputs == {
        "degraded": low.content_hash,
        "clean": ct.content_hash,
        "code": code_hash("medsynth.downstream.restoration"),
    }

    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(restore_module, "fit", never)
    again, _ = train_restoration(**job)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    assert job["ledger"].entries() == entries
    whole = {"net": replace(TINY, net="unrolled"), "training": replace(BRIEF, patch=None)}
    for change in (
        {"training": replace(BRIEF, seed=1)}, {"net": replace(TINY, width=6)},
        {"degraded": low_dose_ct(ct, seed=1, dose=LowDose(photons=1e3, reconstruction="fbp"))},
        whole | {"consistency": beam}, whole | {"consistency": KSpaceConsistency(SIZE, 2)},
    ):  # fmt: skip
        with pytest.raises(AssertionError, match="trained again"):
            train_restoration(**job | change)


def test_seeds_differ_from_the_first_step(job, monkeypatch):
    seen = []

    def untrained(model, loss, **_):
        seen.append(model.state_dict())
        return model.state_dict(), {}

    monkeypatch.setattr(restore_module, "fit", untrained)
    for seed in (0, 1):
        train_restoration(**job | {"training": replace(BRIEF, seed=seed)})
    assert not torch.equal(seen[0]["encoder.0.weight"], seen[1]["encoder.0.weight"])


def test_patches_are_the_same_place_of_both_images():
    place = torch.arange(4 * 30 * 26, dtype=torch.float32).reshape(4, 1, 30, 26)
    caught = []

    class Spy(torch.nn.Module):
        def forward(self, x):
            caught.append(x)
            return x

    def random():
        return torch.Generator().manual_seed(3)

    assert restore_module.patch_loss(Spy(), place, place, 8, 22, random()) == 0
    (patches,) = caught
    assert patches.shape == (8, 1, 22, 22)
    # neighbours stay neighbours
    assert torch.equal(patches[..., 1:] - patches[..., :-1], torch.ones(8, 1, 22, 21))
    assert torch.equal(patches[..., 1:, :] - patches[..., :-1, :], torch.full((8, 1, 21, 22), 26.0))
    assert len({int(p[0, 0, 0]) for p in patches}) > 4
    assert restore_module.patch_loss(Spy(), place, place + 2, 8, 22, random()) == pytest.approx(4)


def test_public_sets_leave_no_line_and_private_rows_may_not_pose_as_public(job, ct, low):
    public, degraded = (replace(s, role="public") for s in (ct, low))
    train_restoration(**job | {"clean": public, "degraded": degraded})
    assert job["ledger"].entries() == []
    job["ledger"].declare(ct)
    with pytest.raises(RoleError, match="train restoration net: 4 of 4 rows"):
        train_restoration(**job | {"clean": public, "degraded": degraded})


def test_sets_that_are_no_pairs_are_refused_before_anything_is_recorded(job, ct, low, beam):
    other = ImageSet(images=ct.images, patient=ct.patient + 1, unit="HU", range=ct.range, name="others", role="private")
    for change, message in (
        ({"degraded": low.select([0, 1])}, "is not, row by row and patient by patient"),
        ({"clean": other}, "row by row"),
        ({"clean": replace(ct, role="public")}, "role 'private'; expected .* 'public'"),
        ({"clean": replace(ct, range=(-1000, 500))}, "range"),
        ({"clean": ct.select([]), "degraded": low.select([])}, "at least one row"),
        ({"net": replace(TINY, net="unrolled"), "consistency": beam}, "patches of 22 px with data consistency; train on whole"),
    ):
        with pytest.raises(ValueError, match=message):
            train_restoration(**job | change)
    assert job["ledger"].entries() == []


def test_restoring_does_not_depend_on_batches_and_allows_no_images(low):
    model = disturbed(built("edsr"))
    assert restore(model, low, batch=1).images == pytest.approx(restore(model, low, batch=3).images, abs=1e-2)
    assert restore(model, low.select([])).images.shape == (0, 1, SIZE, SIZE)


KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from medsynth.settings.parse import parse
from medsynth.imageset import ImageSet
from medsynth.downstream.restoration_nets import RestorationConfig
from medsynth.ledger import Ledger
from medsynth.downstream.restoration import RestorationTraining, train_restoration
from medsynth.store.runs import Workspace
real = Workspace.save_checkpoint
def save_checkpoint(self, step, tensors):
    real(self, step, tensors)
    if step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
Workspace.save_checkpoint = save_checkpoint
train_restoration(
    ImageSet.load(sys.argv[1]), ImageSet.load(sys.argv[2]), net=parse(RestorationConfig, json.loads(sys.argv[4]), "net"),
    training=parse(RestorationTraining, json.loads(sys.argv[5]), "training"), ledger=Ledger(Path(sys.argv[3])),
)
"""


def test_training_killed_in_its_process_ends_with_the_weights_of_an_uninterrupted_one(
    job, tmp_path, start_python, finish, monkeypatch
):
    paths = [job[k].save(tmp_path / f"{k}.npz") for k in ("degraded", "clean")]
    configs = [json.dumps(asdict(job[k])) for k in ("net", "training")]
    status, _, errors = finish(start_python(KILLED, *paths, tmp_path / "ledger", *configs))
    assert status == -signal.SIGKILL, errors
    resumed, trained = train_restoration(**job)
    assert Workspace(trained.path).load_checkpoint() is None
    monkeypatch.setenv("MEDSYNTH_CACHE", str(tmp_path / "other cache"))
    whole, elsewhere = train_restoration(**job)
    assert elsewhere.path != trained.path and os.environ["MEDSYNTH_CACHE"] in str(elsewhere.path)
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in resumed.state_dict().items())
    assert len(job["ledger"].entries()) == 1

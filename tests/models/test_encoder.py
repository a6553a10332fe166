"""The identity encoder and its training: geometry, invariance, augmentation against references, roles, resuming."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch.nn import functional

from medsynth.imageset import ImageSet
from medsynth.ledger import Ledger
from medsynth.mechanism import NONE
from medsynth.models.encoder import DIM, FRAME, PLANES, SMOOTHING, EncoderNet, normalise, planes_of, similarity
from medsynth.models.pixels import SIDE, blurred
from medsynth.pretrain import encoder as training
from medsynth.pretrain.encoder import encoder_loss, followed, nt_xent, train_encoder, two_views
from medsynth.pretrain.public import PublicSet
from medsynth.privacy.gate.alterations import Variant, varied
from medsynth.privacy.gate.feature_maps import encoder_map
from medsynth.store.runs import Workspace
from medsynth.training import step_generator


@pytest.fixture(scope="module")
def people(make_set) -> PublicSet:
    """Eight patients scanned twice: smooth random images, the second a little changed."""
    rng = np.random.default_rng(0)
    first = ndimage.gaussian_filter(rng.random((8, 1, 64, 64)), (0, 0, 4, 4)) + 0.01 * rng.random((8, 1, 64, 64))
    both = np.stack([first, 0.9 * first], 1).reshape(16, 1, 64, 64)
    images = (both - both.min()) / np.ptp(both)
    return PublicSet(make_set(16, images=images.astype(np.float32), split=None))


@pytest.fixture(scope="module")
def net() -> EncoderNet:
    torch.manual_seed(0)
    return EncoderNet().eval()


# the network


def test_embeddings_are_unit_vectors_of_each_image_alone(net):
    images = torch.rand(5, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        z = net(images)
        assert z.shape == (5, DIM)
        torch.testing.assert_close(z.norm(dim=1), torch.ones(5))
        torch.testing.assert_close(net(images[[3]]), z[[3]], atol=1e-5, rtol=1e-4)
        # other sizes are resampled first
        large = functional.interpolate(images, scale_factor=2, mode="nearest")
        torch.testing.assert_close(net(large), z, atol=0.2, rtol=0)


def test_gain_and_offset_leave_no_trace(net):
    images = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(1)) * 0.8 - 0.4
    with torch.no_grad():
        torch.testing.assert_close(net(images * 1.3 + 0.2), net(images), atol=5e-3, rtol=0)
        assert net.prepare(torch.full((2, 1, 64, 64), 0.7)).abs().max() < 1e-3
        assert torch.isfinite(net(torch.zeros(2, 1, 64, 64))).all()


def test_images_are_smoothed_by_a_gaussian_before_they_are_normalised(net):
    images = torch.rand(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    smooth = ndimage.gaussian_filter(images.numpy(), SMOOTHING, mode="nearest", radius=4, axes=(-2, -1))
    expected = normalise(torch.from_numpy(smooth)).float()
    torch.testing.assert_close(net.prepare(images.float()), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("sd", "radius"), [(1.5, 4), (0.5, 3), (torch.tensor([[0.01], [0.8], [2.5]]), 6)])
def test_blur_against_scipy(sd, radius, dtype):
    images = torch.rand(3, 2, 20, 24, generator=torch.Generator().manual_seed(0), dtype=dtype)
    made = blurred(images, sd, radius=radius)
    assert made.dtype == dtype
    each = torch.as_tensor(sd).expand(3, 1).flatten().tolist()
    for image, soft, s in zip(images.numpy(), made.numpy(), each, strict=True):
        expected = ndimage.gaussian_filter(image, s, mode="nearest", radius=radius, axes=(-2, -1))
        np.testing.assert_allclose(soft, expected, atol=1e-6 if dtype == torch.float32 else 1e-7)


def test_a_blur_has_the_gradient_of_a_symmetric_map():
    """d/dx of <y, G x> is G y in the interior, where G is symmetric."""
    x, y = torch.rand(2, 1, 1, 24, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()
    y[..., :6, :] = y[..., -6:, :] = y[..., :6] = y[..., -6:] = 0
    x.requires_grad_(True)
    (blurred(x, 1.2, radius=3) * y).sum().backward()
    torch.testing.assert_close(x.grad, blurred(y, 1.2, radius=3))


def test_volumes_enter_as_planes():
    volume = torch.arange(16.0)[None, None, :, None, None].expand(2, 1, 16, 32, 32)
    planes = planes_of(volume)
    assert planes.shape == (2, PLANES, SIDE, SIDE)
    torch.testing.assert_close(planes[0, :, 0, 0], torch.arange(0.5, 16, 2))
    same = torch.rand(1, 1, PLANES, SIDE, SIDE)
    torch.testing.assert_close(planes_of(same)[:, None], same)
    with torch.no_grad():
        assert EncoderNet(3)(volume / 8 - 1).shape == (2, DIM)


@pytest.mark.parametrize(("dims", "shape"), [(2, (1, 1, 4, 64, 64)), (2, (1, 3, 64, 64)), (3, (1, 1, 64, 64))])
def test_other_shapes_are_refused(dims, shape):
    with pytest.raises(ValueError, match=r"encoder: images .*; expected \(n, 1,"):
        EncoderNet(dims)(torch.zeros(shape))
    with pytest.raises(ValueError, match="spatial_dims 4; expected 2 or 3"):
        EncoderNet(4)


def test_a_body_described_in_its_own_pose_is_the_upright_body(net, people):
    """Against the gallery's resampling in NumPy: describing a moved image in the pose of its movement undoes the movement."""
    images = people.images
    turned = Variant(angle=9, zoom=1.07, down=0.05, right=-0.04)
    moved = torch.from_numpy(images.with_images(varied(images, turned)).scaled())
    upright = torch.from_numpy(images.scaled())
    # shifts are in half-widths here
    pose = torch.tensor([[math.radians(9), math.log(1.07), -0.08, 0.10]]).expand(16, 4)
    still = torch.zeros(16, 4)
    with torch.no_grad():
        a, b, c = net.describe(moved, pose), net.describe(upright, still), net.describe(moved, still)
    assert (a - b).norm(dim=1).max() < 0.5 * (c - b).norm(dim=1).min()


def test_similarities_compose():
    g = torch.Generator().manual_seed(0)
    outer, inner = torch.rand(2, 6, 4, generator=g) - 0.5
    lifted = training._square(similarity(outer)) @ training._square(similarity(inner))
    torch.testing.assert_close(training._square(similarity(followed(outer, inner))), lifted)


# views


def test_views_are_of_the_same_patients_and_differ(people):
    store = training._store(people, 2, "cpu")
    views, placed, same = two_views(store, 6, step_generator(0, 0))
    assert views.shape == (2, 6, 1, 64, 64) and placed.shape == (2, 6, 4) and same.dtype == torch.bool
    assert views.min() >= 0 and views.max() <= 1 and not torch.equal(views[0], views[1])
    again = two_views(store, 6, step_generator(0, 0))
    assert all(torch.equal(a, b) for a, b in zip((views, placed, same), again, strict=True))
    # more than there are is all of them; slices of a volume are no other scans
    assert two_views(store, 99, step_generator(0, 1))[0].shape[1] == 8
    slices = training._store(PublicSet(people.images, thorax=False), 2, "cpu")
    assert all(two_views(slices, 8, step_generator(0, i))[2].all() for i in range(5))
    assert not all(two_views(store, 8, step_generator(0, i))[2].all() for i in range(5))


def test_stated_movements_are_those_made(people, monkeypatch):
    """Undone by its own similarity, a view is the unmoved image again, away from the rim."""
    monkeypatch.setattr(training, "_PHOTOMETRY", (0.0, 0.0))
    monkeypatch.setattr(training, "_OTHER_SCAN", 0.0)
    views, placed, _ = two_views(training._store(people, 2, "cpu"), 8, step_generator(0, 2))
    inverse = torch.linalg.inv(training._square(similarity(placed.flatten(0, 1))))[:, :2]
    grid = functional.affine_grid(inverse, [16, 1, 64, 64], align_corners=False)
    back = functional.grid_sample(views.flatten(0, 1), grid, align_corners=False).view(2, 8, 64, 64)[..., 16:48, 16:48]
    assert (back[0] - back[1]).abs().mean() < 0.01 < (views[0] - views[1])[:, 0, 16:48, 16:48].abs().mean()


def test_compression_is_that_of_the_codec(people):
    images = torch.from_numpy((people.images.scaled() + 1) / 2)[:4] + 0
    images = (images * 255).round() / 255
    made = training._compressed(images)
    for image, ours in zip(images[:, 0].numpy(), made[:, 0].numpy(), strict=True):
        buffer = io.BytesIO()
        Image.fromarray((image * 255).round().astype(np.uint8)).save(buffer, "JPEG", quality=50)
        theirs = np.asarray(Image.open(buffer)) / 255
        # the codec rounds to whole grey values, and its integer transform now and then to the next step of the table
        assert np.abs(ours - theirs).mean() < 0.004 and np.abs(ours - image).mean() > 0.004


# loss and training


def test_contrastive_loss_against_a_loop():
    z = functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    total = 0.0
    for i in range(6):
        others = [j for j in range(6) if j != i]
        logits = torch.stack([z[i] @ z[j] / training._TEMPERATURE for j in others])
        total -= float(torch.log_softmax(logits, 0)[others.index((i + 3) % 6)])
    assert float(nt_xent(z)) == pytest.approx(total / 6, rel=1e-5)


def test_only_the_transforms_teach_the_pose(people):
    """Where no two views show one image, the embedding's loss moves nothing in the pose network but towards upright."""
    torch.manual_seed(0)
    model = EncoderNet()
    views, placed, same = two_views(training._store(people, 2, "cpu"), 8, step_generator(0, 0))
    encoder_loss(model, views, placed, torch.zeros_like(same)).backward()
    assert model.pose_net[-1].weight.grad.abs().max() == 0
    assert model.body[0].weight.grad.abs().max() > 0
    encoder_loss(model, views, placed, torch.ones_like(same)).backward()
    assert model.pose_net[-1].weight.grad.abs().max() > 0


def test_training_learns_and_resumes(people, tmp_path: Path, monkeypatch):
    torch.manual_seed(0)
    arguments = {"steps": 16, "patients_per_step": 6, "seed": 0, "learning_rate": 3e-3}
    state, card = train_encoder({"a": people}, **arguments)
    untrained, trained = EncoderNet(), EncoderNet()
    trained.load_state_dict(state)
    store = training._store(people, 2, "cpu")
    views, placed, same = two_views(store, 8, step_generator(5, 0))
    with torch.no_grad():
        before, after = (float(encoder_loss(n.eval(), views, placed, same)) for n in (untrained, trained))
    assert after < before and card["spatial_dims"] == 2 and card["steps"] == 16
    # killed after a checkpoint, it ends with the same weights
    monkeypatch.setattr(training, "fit", lambda *a, **k: real(*a, **(k | {"checkpoint_every": 5})))
    from medsynth.training import fit as real

    calls = 0

    def dies(*a):
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return encoder_loss(*a)

    with monkeypatch.context() as patch:
        patch.setattr(training, "encoder_loss", dies)
        with pytest.raises(KeyboardInterrupt):
            train_encoder({"a": people}, workspace=Workspace(tmp_path), **arguments)
    resumed, _ = train_encoder({"a": people}, workspace=Workspace(tmp_path), **arguments)
    for key, value in state.items():
        torch.testing.assert_close(resumed[key], value, atol=1e-6, rtol=0)


def test_volumes_are_trained_on_by_the_same_code(make_set):
    volumes = make_set(8, shape=(1, 6, 32, 32), split=None)
    state, card = train_encoder({"hearts": PublicSet(volumes, thorax=False)}, spatial_dims=3, steps=2, patients_per_step=4)
    net = EncoderNet(3)
    net.load_state_dict(state)
    assert card["spatial_dims"] == 3 and all(torch.isfinite(v).all() for v in state.values())


def test_private_sets_are_refused(people):
    private = PublicSet(people.images.with_role("private"))
    with pytest.raises(ValueError, match="a: not public"):
        train_encoder({"a": private}, steps=1)


def test_private_patients_may_teach_it_where_a_ledger_says_so(people, tmp_path):
    ledger, images = Ledger(tmp_path / "ledger"), people.images.with_role("private")
    state, _ = train_encoder({"a": PublicSet(images)}, steps=2, patients_per_step=4, ledger=ledger)
    (entry,) = ledger.entries()
    assert (entry.stage, entry.reads, entry.patients, entry.mechanism) == ("train encoder", images.name, images.patients, NONE)
    net = EncoderNet()
    net.load_state_dict(state)
    assert encoder_map(net, "ours", "trained here")(images.select([0])).shape[0] == 1


def test_the_sets_it_learns_from(monkeypatch, people):
    drawn: list[dict] = []

    def thorax(**arguments) -> ImageSet:
        drawn.append(arguments)
        return replace(people.images, modality=arguments["modality"])

    monkeypatch.setattr(training, "cached_thorax", thorax)
    monkeypatch.setattr(
        training,
        "real_sets",
        lambda folder, split: {"cxr": PublicSet(replace(people.images, name=split, origin="scan", people=None))},
    )
    sets = training.encoder_sets(Path("data"), 8)
    assert all(a["scans"] == 2 and a["patients"] == 8 for a in drawn)
    assert sorted(sets) == ["cxr", "phantom-ct", "phantom-heart", "phantom-mr", "phantom-pet", "phantom-xray"]
    assert sets["cxr"].images.name == "train"
    hearts = training.encoder_sets(Path("data"), 2, spatial_dims=3)
    assert [s.images.spatial for s in hearts.values()] == [(8, 64, 64)]
    assert training._odds(sets["phantom-xray"]) > training._odds(sets["phantom-ct"]) and FRAME < 1
    assert float(normalise(torch.rand(2, 1, 8, 8)).mean().abs()) < 1e-6

"""The refitted last layer of the extractor: even and independent features, public sets only."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage

from medsynth.evaluation.statistics import generator
from medsynth.imageset import ImageSet
from medsynth.models.extractor import ExtractorNet
from medsynth.pretrain import last_layer
from medsynth.pretrain.extractor import unevenness
from medsynth.pretrain.last_layer import dependence, fit_last_layer
from medsynth.pretrain.public import PublicSet


def textures(n=90, seed=0, role="public"):
    """Waves of random direction, length and strength on noise."""
    rng = generator(seed)
    y, x, strength = rng.uniform(0.1, 1.5, (3, n, 1, 1))
    grid = np.arange(64)
    waves = strength * np.sin(y * grid[:, None] + x * grid[None]) + 0.2 * rng.standard_normal((n, 64, 64))
    return ImageSet(
        images=waves[:, None], patient=np.arange(n), unit="1", range=(-4, 4), name="waves", role=role,
        attributes=pd.DataFrame({"steep": y[:, 0, 0] > 0.8}),
    )  # fmt: skip


def public(images, real=False):
    return PublicSet(replace(images, origin="scan" if real else "phantom", people=None), thorax=False)


@pytest.fixture
def pooled_once(monkeypatch, pools, few):
    """What untrained convolutions see of a set is computed once: most of a short fit would go there."""
    pool = last_layer._pool

    def kept(net, source, generator):
        key = (source.images.content_hash, source.images.people, last_layer._other_scanner)
        if key not in pools:
            pools[key] = pool(net, source, generator)
        return pools[key]

    monkeypatch.setattr(last_layer, "_pool", kept)


@pytest.fixture(scope="module")
def pools():
    return {}


@pytest.fixture
def few(monkeypatch):
    """Fewer images are told apart than in a real fit, so that fewer suffice."""
    monkeypatch.setattr(last_layer, "_INSTANCES", 64)


def untrained():
    torch.manual_seed(3)
    return ExtractorNet().eval().requires_grad_(False)


@torch.no_grad()
def embedded(net, images):
    return net.embed(torch.from_numpy(images.scaled()))


def test_dependence_is_that_of_the_products_themselves():
    h = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (h - h.mean(0)).numpy()
    products = np.array([[a * b for a in row for b in row] for row in x])
    products -= products.mean(0)
    similar = products @ products.T
    others = [similar[i, j] ** 2 for i in range(40) for j in range(40) if i != j]
    effective = np.mean(np.diag(similar)) ** 2 / np.mean(others)
    assert dependence(h).item() == pytest.approx(np.log(6 / effective))


def test_dependence_is_small_for_independent_features_and_large_for_functions_of_few():
    draw = torch.randn(4000, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert abs(dependence(draw).item()) < 0.1
    angle = 6.28 * torch.rand(4000, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    waves = torch.cat([f(k * angle) for k in range(1, 5) for f in (torch.sin, torch.cos)], 1)
    # uncorrelated and of one variance, yet one number says them all
    assert dependence(waves).item() > 0.5


def test_a_fit_makes_features_of_clean_images_more_even_and_moves_nothing_else(few):
    images, net = textures(), untrained()
    before, uneven = {k: v.clone() for k, v in net.state_dict().items()}, unevenness(embedded(net, images)).item()
    card = fit_last_layer(net, {"waves": public(images)}, steps=30, seed=0)
    weights = net.state_dict()
    assert card["steps"] == 30 and card["images"] == {"waves": 90} and np.isfinite(card["metrics"]["loss"])
    assert unevenness(embedded(net, images)).item() < 0.5 * uneven
    moved = {k for k in before if not torch.equal(before[k], weights[k])}
    assert moved == {"embedding.weight", "embedding.bias"}
    again = untrained()
    fit_last_layer(again, {"waves": public(images)}, steps=30, seed=0)
    assert all(torch.equal(weights[k], v) for k, v in again.state_dict().items())


def test_unseen_images_of_the_same_kind_are_even_too(pooled_once):
    net, unseen = untrained(), textures(seed=9)
    uneven = unevenness(embedded(net, unseen)).item()
    fit_last_layer(net, {"waves": public(textures())}, steps=30, seed=0)
    assert unevenness(embedded(net, unseen)).item() < 0.5 * uneven


def test_as_another_scanner_would_show_them_they_are_more_even_for_it(pooled_once, monkeypatch):
    unseen = textures(seed=9)
    soft = unseen.with_images(ndimage.gaussian_filter(unseen.images, (0, 0, 0.8, 0.8)).astype(np.float32))
    uneven = []
    for _ in range(2):
        net = untrained()
        fit_last_layer(net, {"waves": public(textures())}, steps=150, seed=0)
        uneven.append(unevenness(embedded(net, soft)).item())
        # and once as if all scanners were alike
        monkeypatch.setattr(last_layer, "_other_scanner", lambda images, generator: images)
    assert uneven[0] < 0.9 * uneven[1]


def steepness(net, images):
    """Share of the variance of the embedding that the class explains, summed over its directions."""
    h, steep = embedded(net, images), torch.from_numpy(images.attributes["steep"].to_numpy())
    apart = h[steep].mean(0) - h[~steep].mean(0)
    return float(steep.float().var() * apart.square().sum() / h.var(0).sum())


def test_classes_of_real_images_weigh_more(pooled_once):
    shares = []
    for real in (False, True):
        net = untrained()
        fit_last_layer(net, {"waves": public(textures(150), real)}, steps=60, seed=0)
        shares.append(steepness(net, textures(150, seed=9)))
    assert shares[1] > 1.5 * shares[0]


def test_what_is_labelled_alike_shares_a_direction_wherever_the_set_lies(pooled_once):
    here, there = textures(), textures(seed=1)
    # the same finding in another modality: other grey values, so other features
    there = there.with_images(-0.5 * there.images + 1)
    net = untrained()
    fit_last_layer(net, {"here": public(here, real=True), "there": public(there, real=True)}, steps=60, seed=0)
    direction = []
    for images in (here, there):
        h, steep = embedded(net, images), torch.from_numpy(images.attributes["steep"].to_numpy())
        direction.append(h[steep].mean(0) - h[~steep].mean(0))
    assert torch.cosine_similarity(*direction, dim=0) > 0.7


def test_private_sets_and_sets_that_are_too_small_are_refused():
    with pytest.raises(ValueError, match="waves: not public"):
        fit_last_layer(untrained(), {"waves": public(textures(role="private"))})
    with pytest.raises(ValueError, match="fewer than 128 images"):
        fit_last_layer(untrained(), {"few": public(textures(20))})

"""Feature maps: a row depends on its image alone, hashes follow the definition, wrong shapes are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medsynth.data.sources import cached_thorax
from medsynth.models.encoder import EncoderNet
from medsynth.models.extractor import resize
from medsynth.models.weights import save_card
from medsynth.privacy.gate import feature_maps as distances
from medsynth.privacy.gate.alterations import GALLERY_HASH
from medsynth.privacy.gate.feature_maps import BATCH, MAPS, UntrainedVGG, calibrated, encoder_map, feature_map
from medsynth.privacy.gate.gate import Gate
from medsynth.vocabulary import MODALITIES


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_weights: Path) -> Path:
    """A folder that also holds random encoders."""
    folder = tmp_path_factory.mktemp("encoders")
    for file in tiny_weights.glob("autoencoder.*"):
        (folder / file.name).write_bytes(file.read_bytes())
    for name, dims in (("encoder", 2), ("encoder_3d", 3)):
        torch.manual_seed(dims)
        save_card(folder, name, EncoderNet(dims).state_dict(), {"spatial_dims": dims})
    return folder


@pytest.fixture(scope="module")
def maps(weights):
    return {name: feature_map(name, folder=weights) for name in MAPS}


@pytest.fixture(scope="module")
def images(make_set):
    return make_set(6, shape=(1, 64, 64))


@pytest.fixture(scope="module")
def volumes(make_set):
    return make_set(4, shape=(1, 6, 64, 64))


@pytest.mark.parametrize(("name", "dim"), [("encoder", 128), ("pixels", 4096), ("autoencoder", None), ("untrained_vgg", 1000)])
def test_maps_give_float32_rows(maps, images, name, dim):
    features = maps[name](images)
    assert features.dtype == np.float32 and features.shape[0] == 6 and np.isfinite(features).all()
    assert dim is None or features.shape[1] == dim
    assert np.linalg.norm(features[0] - features[1]) > 1e-6


@pytest.mark.parametrize(("name", "dim"), [("encoder_3d", 128), ("pixels", 6 * 4096), ("autoencoder", None)])
def test_maps_of_volumes(maps, volumes, name, dim):
    features = maps[name](volumes)
    assert features.dtype == np.float32 and features.shape[0] == 4 and dim in (None, features.shape[1])


@settings(max_examples=6)
@given(rows=st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_a_row_is_bit_for_bit_that_of_any_other_company(maps, images, rows):
    for name in ("encoder", "pixels", "autoencoder"):
        np.testing.assert_array_equal(maps[name](images.select(rows)), maps[name](images)[rows])


def test_sets_larger_than_a_batch(maps, make_set):
    many = make_set(BATCH + 3, shape=(1, 16, 16))
    whole = maps["encoder"](many)
    assert len(whole) == BATCH + 3
    np.testing.assert_array_equal(maps["encoder"](many.select([BATCH + 1, 0])), whole[[BATCH + 1, 0]])


def test_threads_change_nothing(maps, images):
    """Verdicts must not depend on how many threads there are."""
    alone = maps["encoder"](images)
    torch.set_num_threads(2)
    try:
        np.testing.assert_array_equal(maps["encoder"](images), alone)
    finally:
        torch.set_num_threads(1)


def test_pixel_distance_is_the_root_mean_square_difference(maps, make_set):
    large = make_set(3, shape=(1, 96, 96))
    features = maps["pixels"](large)
    small = resize(torch.tensor(large.scaled())).numpy()
    expected = np.sqrt(((small[0] - small[1]) ** 2).mean())
    assert np.linalg.norm(features[0] - features[1]) == pytest.approx(expected, rel=1e-5)


def test_hashes_follow_the_definition(maps, weights, images):
    hashes = {name: m.hash for name, m in maps.items()}
    assert len(set(hashes.values())) == len(MAPS)
    assert all(len(h) == 32 and set(h) <= set("0123456789abcdef") for h in hashes.values())
    assert {name: feature_map(name, folder=weights).hash for name in MAPS} == hashes
    assert len({m.name for m in maps.values()}) == len(MAPS)
    net = EncoderNet()
    assert encoder_map(net, "mine", "a").hash != encoder_map(net, "mine", "b").hash
    assert distances._digest(UntrainedVGG(seed=0)) == distances._digest(UntrainedVGG(seed=0))
    assert distances._digest(UntrainedVGG(seed=0)) != distances._digest(UntrainedVGG(seed=1))


def test_what_a_map_cannot_take_is_refused(maps, images, volumes, make_set, weights):
    with pytest.raises(ValueError, match=r"identity encoder 2d expects \(n, 1, h, w\)"):
        maps["encoder"](volumes)
    with pytest.raises(ValueError, match=r"expects \(n, 1, d, h, w\)"):
        maps["encoder_3d"](images)
    with pytest.raises(ValueError, match=r"pixels expects \(n, 1, h, w\) or \(n, 1, d, h, w\)"):
        maps["pixels"](make_set(2, shape=(3, 16, 16)))
    with pytest.raises(ValueError, match="no images"):
        maps["pixels"](images.select([]))
    with pytest.raises(ValueError, match="feature map 'inception'; expected one of"):
        feature_map("inception", folder=weights)


def test_a_threshold_belongs_to_its_weights(weights, tmp_path):
    assert calibrated("encoder", 2, folder=tmp_path) is None
    for file in weights.glob("encoder*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    sets = {
        "ward": {"tau": 0.3, "how": "on radiographs", "modality": "xray"},
        "clinic": {"tau": 0.4, "how": "on other radiographs", "modality": "xray"},
        "hearts": {"tau": 0.1, "how": "on hearts", "modality": "mr"},
        "phantom-ct": {"tau": 0.9, "how": "on phantoms", "modality": "ct"},
    }
    entry = {"phi_hash": feature_map("encoder", folder=weights).hash, "sets": sets, "gallery": GALLERY_HASH}
    phantoms = entry | {"sets": {"phantom-ct": sets["phantom-ct"]}}
    phantoms["phi_hash"] = feature_map("pixels").hash
    (tmp_path / "thresholds.json").write_text(json.dumps({"encoder 2d": entry, "encoder_3d 3d": entry, "pixels 2d": phantoms}))
    with pytest.raises(ValueError, match="each belongs to one kind of images; expected xray or ct or mr or pet or phantom-ct"):
        calibrated("encoder", 2, folder=tmp_path)
    with pytest.raises(ValueError, match="none for 'us'; expected"):
        calibrated("encoder", 2, modality="us", folder=tmp_path)
    assert calibrated("encoder", 2, modality="xray", folder=tmp_path) == distances.Threshold(0.4, "on other radiographs")
    assert calibrated("encoder", 2, modality="mr", folder=tmp_path) == distances.Threshold(0.1, "on hearts")
    assert calibrated("encoder", 2, modality="phantom-ct", folder=tmp_path) == distances.Threshold(0.9, "on phantoms")
    # phantoms say nothing of people: the largest threshold that was found on people stands in
    ct = calibrated("encoder", 2, modality="ct", folder=tmp_path)
    assert ct.tau == 0.4 and ct.how.startswith(
        "on other radiographs; taken for ct, of which no real images were free to find one on"
    )
    with pytest.raises(ValueError, match="none for 'ct'; expected phantom-ct"):
        calibrated("pixels", 2, modality="ct", folder=tmp_path)
    assert calibrated("untrained_vgg", 2, folder=tmp_path) is None and calibrated("encoder", 3, folder=tmp_path) is None
    with pytest.raises(ValueError, match="tau of 'encoder_3d' belongs to weights"):
        calibrated("encoder_3d", 3, folder=tmp_path)
    (tmp_path / "thresholds.json").write_text(json.dumps({"encoder 2d": entry | {"gallery": "few"}}))
    with pytest.raises(ValueError, match="found for other transformed copies"):
        calibrated("encoder", 2, folder=tmp_path)


@pytest.mark.parametrize("modality", MODALITIES)
def test_thresholds_that_ship_let_strangers_pass(modality):
    people = cached_thorax(patients=12, scans=1, size=64, modality=modality, population="private", seed=77)
    private, strangers = (people.select(np.arange(6) + k) for k in (0, 6))
    gate = Gate(private, feature_map("encoder"), calibrated("encoder", 2, modality=f"phantom-{modality}").tau)
    assert gate.accepts(strangers).mean() > 0.8 and not gate.accepts(private).any()


def test_weights_that_are_not_the_cards_are_refused(weights, tmp_path):
    for suffix in ("json", "safetensors"):
        (tmp_path / f"encoder.{suffix}").write_bytes((weights / f"encoder.{suffix}").read_bytes())
    with open(tmp_path / "encoder.safetensors", "r+b") as f:
        f.seek(-1, 2)
        f.write(b"\x7f")
    with pytest.raises(ValueError, match="differs from its card"):
        feature_map("encoder", folder=tmp_path)

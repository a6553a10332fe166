"""Extractors: shapes, calibration, fairness of the baselines, checksums, and the training target."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import pdist

from medsynth.evaluation import features
from medsynth.evaluation.statistics import generator
from medsynth.imageset import ImageSet
from medsynth.models.extractor import EMPHASIS, MAPS, ExtractorNet, calibration, class_columns
from medsynth.models.pixels import resize
from medsynth.models.weights import save_card
from medsynth.pretrain.extractor import train_extractor


def blobs(n=96, side=32, seed=0, role="public", name="blobs", **attributes):
    """Images of one bright blob whose place is random; "left" says on which side it is."""
    rng = generator(seed)
    y, x = rng.uniform(0.2, 0.8, (2, n, 1, 1)) * side
    grid = np.arange(side)
    images = np.exp(-((grid[:, None] - y) ** 2 + (grid[None] - x) ** 2) / side) + 0.1 * rng.random((n, side, side))
    table = {"left": x[:, 0, 0] < side / 2, "size": rng.random(n)} | attributes
    return ImageSet(
        images=images[:, None],
        patient=np.arange(n) // 2,
        unit="1",
        range=(0, 2),
        name=name,
        role=role,
        attributes=pd.DataFrame(table),
    )


@pytest.fixture(scope="module")
def public():
    return {"a": blobs(), "b": blobs(70, 64, 1, name="other")}


@pytest.mark.numeric
def test_company_moves_an_image_by_far_less_than_lies_between_two(public):
    """In single precision processors add in an order that depends on the size of a batch; company itself would show in tenths."""
    twin = features.random_twin(public, seed=0)
    both = twin(public["b"])
    assert both.shape == (70, 64) and both.dtype == np.float64 and twin.dim == 64
    between = np.median(pdist(both))
    moved = [twin(public["b"], batch=7) - both, twin(public["b"].select([3])) - both[3:4]]
    assert max(np.linalg.norm(m, axis=1).max() for m in moved) < 1e-3 * between


def test_twins_depend_on_their_seed_alone_and_leave_the_global_generator_alone(public):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (features.random_twin(public, seed=s)(public["a"]) for s in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_unknown_dimensions_and_empty_sets_are_refused(public):
    twin = features.random_twin(public, seed=0)
    volumes = ImageSet(images=np.zeros((2, 1, 4, 8, 8)), patient=np.arange(2), unit="1", range=(0, 1), name="v")
    for extractor in (twin, features.PCAExtractor.fit(public, dim=8)):
        with pytest.raises(ValueError, match="take slices of volumes first"):
            extractor(volumes)
        with pytest.raises(ValueError, match="no images"):
            extractor(public["a"].select([]))


def test_baselines_are_fitted_on_public_sets_only():
    private = {"p": blobs(role="private")}
    for fit in (features.PCAExtractor.fit, lambda s: features.random_twin(s, seed=0)):
        with pytest.raises(ValueError, match="not public; expected sets in their public role"):
            fit(private)
    with pytest.raises(ValueError, match="not public; expected sets in their public role"):
        train_extractor(private, steps=1, seed=0)


def test_calibration_whitens_within_sets_and_stretches_what_labels_explain():
    rng = generator(0)
    scale = np.array([10.0, 1.0, 0.1, 3.0])
    label = rng.integers(0, 2, 4000)
    sets = [rng.normal(size=(4000, 4)) * scale + offset for offset in (0, 50)]
    sets[0][:, 1] += 6 * label
    matrix, shift = calibration(sets, [{"class": label}, {}])
    mapped = [s @ matrix.T + shift for s in sets]
    np.testing.assert_allclose(sum(m.mean(0) for m in mapped), 0, atol=1e-9)
    variance = np.linalg.eigvalsh(sum(np.cov(m.T) for m in mapped) / 2)
    # shrinkage keeps the faint direction from being blown up to 1
    assert variance[0] < 0.1
    assert variance[2] == pytest.approx(1, rel=0.2)
    # variances within sets are 100, mean(10, 1), 0.01 and 9; class means of the labelled set have variance 9 of its 10
    shrunk = 5.5 + 0.02 * (100 + 5.5 + 0.01 + 9) / 4
    share = 9 / shrunk
    assert variance[-1] == pytest.approx(5.5 / shrunk * (1 + EMPHASIS * (share / (1 + share)) ** 2), rel=0.05)


def test_chance_differences_of_a_few_images_are_not_stretched():
    rng = generator(0)
    many, few = rng.normal(size=(500, 8)), rng.normal(size=(15, 8))
    label = rng.integers(0, 2, 15)
    by_chance, without = (calibration([many, few], [{}, columns])[0] for columns in ({"class": label}, {}))
    np.testing.assert_array_equal(by_chance, without)
    # as many as twice the dimensions count
    enough, label = rng.normal(size=(16, 8)), np.arange(16) % 2
    enough[:, 0] += 4 * label
    by_class, without = (calibration([many, enough], [{}, c])[0] for c in ({"class": label}, {}))
    assert np.linalg.norm(by_class[:, 0]) > 1.3 * np.linalg.norm(without[:, 0])


def test_calibration_without_labels_is_plain_whitening():
    x = generator(1).normal(size=(5000, 3)) @ generator(2).normal(size=(3, 3))
    matrix, _ = calibration([x], [{}])
    assert np.linalg.eigvalsh(np.cov((x @ matrix.T).T))[-1] == pytest.approx(1, abs=0.05)


def test_class_columns_take_common_classes_and_mark_the_rest_missing():
    text = ["a"] * 50 + ["b"] * 48 + ["rare"] + [None]
    table = {
        "finding": text,
        "age": np.arange(100.0),
        "licence": ["x", "y"] * 50,
        "number": np.arange(100),
        "sex": pd.array([True, False] * 50),
    }
    images = ImageSet(
        images=np.zeros((100, 1, 4, 4)), patient=np.arange(100), unit="1", range=(0, 1), name="t", attributes=pd.DataFrame(table)
    )
    found = class_columns(images)
    assert set(found) == {"finding", "sex"}
    np.testing.assert_array_equal(found["finding"], [0] * 50 + [1] * 48 + [-1, -1])
    np.testing.assert_array_equal(found["sex"], [0, 1] * 50)


def test_pca_keeps_what_varies_and_needs_enough_images(public):
    pca = features.PCAExtractor.fit(public, dim=8)
    x = pca(public["a"], batch=10)
    assert x.shape == (96, 8) and pca.dim == 8
    distance = np.linalg.norm(x[:, None] - x[None], axis=2)
    assert np.isfinite(distance).all() and distance[~np.eye(96, dtype=bool)].min() > 0
    with pytest.raises(ValueError, match="for 500 components"):
        features.PCAExtractor.fit(public, dim=500)


def test_resizing_keeps_means_and_leaves_64_px_alone():
    x = torch.rand(2, 1, 128, 96)
    torch.testing.assert_close(resize(x).mean(), x.mean(), atol=2e-3, rtol=0)
    y = torch.rand(2, 1, 64, 64)
    assert resize(y) is y


def test_random_maps_are_the_same_everywhere_and_not_stored():
    first, again = ExtractorNet(), ExtractorNet()
    assert not torch.equal(first.learnt.stem.weight, again.learnt.stem.weight)
    stem = first.random.stem.weight
    assert torch.equal(stem, again.random.stem.weight) and not stem.requires_grad
    # PCG64(0) by hand: (raw >> 11) / 2^53 in [-1/5, 1/5), a filter of 25 pixels
    raw = np.random.PCG64(0).random_raw(600)
    np.testing.assert_allclose(stem.flatten(), ((raw >> 11) / 2.0**53 - 0.5) * 0.4, atol=1e-7)
    assert not [name for name in first.state_dict() if name.startswith("random.")]
    assert not [name for name, _ in first.named_parameters() if name.startswith("random.")]


def test_the_first_training_explains_images_by_learnt_maps_alone(public):
    weights, _ = train_extractor(public, steps=1, seed=0, sources_per_step=2, images_per_source=6)
    used = weights["embedding.weight"].abs().sum(0) > 0
    assert used[:MAPS].all() and not used[MAPS:].any()


def test_training_lowers_the_loss_and_its_weights_ship_and_load(public, tmp_path):
    weights, card = train_extractor(public, steps=3, seed=0, sources_per_step=2, images_per_source=6)
    assert set(card["trained_on"]) == {"a", "b"} and card["steps"] == 3
    save_card(tmp_path, "extractor", weights, card)
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) <= 2e6
    shipped = features.shipped_extractor(tmp_path)
    net = ExtractorNet()
    net.load_state_dict(weights)
    # half precision may move all images together, which no distance between sets sees
    kept, made = (e(public["a"]) for e in (shipped, features.NetworkExtractor(net, "x")))
    np.testing.assert_allclose(kept - kept.mean(0), made - made.mean(0), atol=0.1, rtol=0.05)
    (tmp_path / "extractor.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match="sha256"):
        features.shipped_extractor(tmp_path)


def test_training_is_deterministic_and_bounded_in_time(public):
    options = {"seed": 1, "sources_per_step": 1, "images_per_source": 2}
    first, again = (train_extractor(public, steps=1, **options)[0] for _ in range(2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    _, card = train_extractor(public, steps=10**6, max_seconds=0.0, **options)
    assert card["steps"] == 0


def test_a_set_without_labels_or_with_missing_numbers_trains(public):
    plain = ImageSet(images=public["a"].images, patient=public["a"].patient, unit="1", range=(0, 2), name="plain")
    gaps = blobs(40, size=np.where(np.arange(40) % 2, np.nan, 1.0), empty=np.full(40, np.nan))
    weights, _ = train_extractor({"plain": plain, "gaps": gaps}, steps=1, seed=0, sources_per_step=2, images_per_source=6)
    assert all(torch.isfinite(v).all() for v in weights.values())


class _FakeInception(torch.nn.Module):
    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert x.dtype == torch.uint8 and x.shape[1:] == (3, 299, 299) and return_features
        return x.float().mean((2, 3)).repeat(1, 683)[:, :2048]


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_inception_refuses_any_other_file_and_feeds_uint8_of_299_px(tmp_path, monkeypatch, public):
    path = tmp_path / "inception.pt"
    torch.jit.script(_FakeInception()).save(str(path))
    with pytest.raises(ValueError, match=f"expected {features.INCEPTION_SHA256}"):
        features.inception_extractor(path)
    monkeypatch.setattr(features, "INCEPTION_SHA256", features.file_hash(path))
    extractor = features.inception_extractor(path)
    images = public["a"].select([0, 1, 2])
    x = extractor(images, batch=2)
    assert x.shape == (3, 2048) and "299 px" in extractor.name
    np.testing.assert_allclose(x[:, 0], (images.images.mean((1, 2, 3)) / 2) * 255, atol=1)


def test_inception_is_downloaded_with_its_checksum(monkeypatch, tmp_path):
    asked = {}

    def retrieve(url, known_hash, **_):
        asked.update(url=url, known_hash=known_hash)
        fake = tmp_path / "file.pt"
        fake.write_bytes(b"not it")
        return str(fake)

    monkeypatch.setattr("pooch.retrieve", retrieve)
    with pytest.raises(ValueError, match="fetch inception"):
        features.inception_extractor()
    assert asked["known_hash"] == f"sha256:{features.INCEPTION_SHA256}"

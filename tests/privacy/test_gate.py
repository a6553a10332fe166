"""The gate against a loop over all pairs; refusals with their reasons; feature maps that misbehave; bugs that the loop finds."""

from __future__ import annotations

import gc
import math
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import approximately_nearest, two_copies

from medsynth.imageset import ImageSet
from medsynth.privacy.gate import feature_table, search
from medsynth.privacy.gate import gate as gate_module
from medsynth.privacy.gate.alterations import GALLERY, attacked, orientations, presentations
from medsynth.privacy.gate.gate import Gate, Verdicts


class Pixels:
    """phi: all pixels, times `gain`; bright images lie `apart` away from dark ones in every direction."""

    name, hash = "pixels", "0" * 32

    def __init__(self, gain: float = 1.0, apart: float = 0.0, error: float = 0.0) -> None:
        self.gain, self.apart, self.error = gain, apart, error

    def __call__(self, images: ImageSet) -> np.ndarray:
        flat = images.images.reshape(len(images), -1)
        return (flat * self.gain + self.apart * (flat[:, :1] > 0.5)).astype(np.float32)


def expected(private: ImageSet, candidates: ImageSet, phi: Pixels, tau: float) -> Verdicts:
    """One candidate in one presentation after the other, against all rows."""
    n = len(candidates)
    reason, distance, patient = np.full(n, "", dtype="<U10"), np.full(n, np.nan), np.full(n, -1)
    shown = [some for _, some in presentations(candidates)]
    laid, owners = [phi(some) for some in shown], np.tile(private.patient, 2)
    assert len(laid) == 8
    rows = np.concatenate([phi(copied) for _, copied in two_copies(private)])
    for i, image in enumerate(candidates.images):
        if image.max() == image.min():
            reason[i] = "constant"
            continue
        codes = [np.rint(65535.0 * x.astype(float)) for some in shown for x in (some.images[i], some.images[i, ..., ::-1])]
        same = [
            p
            for x, p in zip(private.images, private.patient, strict=True)
            for c in codes
            if (np.rint(65535.0 * x.astype(float)) == c).all()
        ]
        if same:
            reason[i], distance[i], patient[i] = "copy", 0, same[0]
            continue
        distance[i] = np.inf
        for found in laid:
            of_rows = search.distances(rows, np.repeat(found[[i]], len(rows), axis=0))
            if of_rows.min() < distance[i]:
                distance[i], patient[i] = of_rows.min(), owners[of_rows.argmin()]
        near = distance[i] <= tau + 4 * phi.error
        reason[i] = "" if not near else "copy" if distance[i] <= 2 * phi.error else "too close"
    return Verdicts(reason == "", reason, distance, patient)


@pytest.fixture
def sets(make_set: Callable[..., ImageSet]) -> tuple[ImageSet, ImageSet]:
    return scene(make_set, 0)


def scene(make_set: Callable[..., ImageSet], seed: int) -> tuple[ImageSet, ImageSet]:
    """Private images, and candidates: new ones, each private one (last patient first), flipped, turned, inverted, noisy, the
    same on its side and inverted, and two constant ones.
    """
    private = make_set(11, (1, 5, 5), seed=seed, role="private", name="scans")
    rng, own = np.random.default_rng([seed, 1]), private.images[::-1]
    noisy = np.clip(own + rng.normal(0, 10.0 ** rng.uniform(-7, 0, (11, 1, 1, 1)), own.shape), 0, 1)
    images = np.concatenate(
        [
            rng.random((6, 1, 5, 5)),
            own,
            own[..., ::-1],
            np.rot90(own, axes=(2, 3)),
            1 - own,
            noisy,
            np.rot90(1 - noisy, axes=(2, 3)),
            np.zeros((1, 1, 5, 5)),
            np.ones((1, 1, 5, 5)),
        ]
    )
    return private, make_set(len(images), (1, 5, 5), images=images, name="drawn")


def same(found: Verdicts, reference: Verdicts) -> None:
    assert found.accepted.dtype == bool and found.patient.dtype == np.int64
    assert found.reason.tolist() == reference.reason.tolist()
    np.testing.assert_array_equal(found.distance, reference.distance)
    assert found.patient.tolist() == reference.patient.tolist()
    assert found.accepted.tolist() == reference.accepted.tolist() == (found.reason == "").tolist()


def rows_of(verdicts: Verdicts, rows: np.ndarray) -> Verdicts:
    return Verdicts(*(getattr(verdicts, k)[rows] for k in ("accepted", "reason", "distance", "patient")))


def check(make_set: Callable[..., ImageSet], seed: int = 0) -> None:
    """The gate says what the loop says, on ordinary features and on features whose lengths dwarf their distances."""
    private, candidates = scene(make_set, seed)
    for phi in (Pixels(), Pixels(1e-3, 100.0), Pixels(error=1e-3)):
        # at a distance that occurs, or within its margin, so that "<=" is not "<" and a margin is not none
        distance = expected(private, candidates, phi, 1.0).distance
        tau = float(np.quantile(distance[distance > 0], 0.7, method="nearest")) - 3 * phi.error
        reference = expected(private, candidates, phi, tau)
        assert set(reference.reason) == {"", "copy", "too close", "constant"}
        guard = Gate(private, phi, tau, copies=two_copies, chunk_rows=6)
        same(guard.judge(candidates), reference)
        assert guard.accepts(candidates).tolist() == reference.accepted.tolist()


@settings(max_examples=4)
@given(seed=st.integers(0, 10**6))
def test_verdicts_are_those_of_the_loop_over_all_pairs(make_set: Callable[..., ImageSet], seed: int) -> None:
    check(make_set, seed)


class Uneven(Pixels):
    """Rows err by up to `error`, by the size of the batch, their place in it, or the other images; or by more than they state."""

    def __init__(self, kind: str, error: float = 0.0, stated: float | None = None) -> None:
        super().__init__(error=error if stated is None else stated)
        self.kind, self.by, self.sizes = kind, error, set()

    def __call__(self, images: ImageSet) -> np.ndarray:
        self.sizes.add(len(images))
        features, n = super().__call__(images), len(images)
        share = {
            "size": np.full(n, n / feature_table.BATCH),
            "place": np.arange(n) / max(1, n - 1),
            "company": np.full(n, np.modf(1000 * images.images.mean(dtype=np.float64))[0]),
            "none": np.zeros(n),
        }
        direction = np.sign(np.sin(np.arange(1, features.shape[1] + 1))) / features.shape[1] ** 0.5
        return (features + (self.by * share[self.kind])[:, None] * direction).astype(np.float32)


@pytest.mark.parametrize("kind", ["none", "size", "place", "company"])
def test_no_batch_order_or_chunk_lets_pass_what_is_too_close(
    make_set: Callable[..., ImageSet], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_table, "BATCH", 8)
    # several batches of either, and a last one that is not full
    private, some = make_set(19, (1, 3, 3), role="private"), make_set(40, (1, 3, 3), seed=1)
    candidates = some.with_images(np.concatenate([some.images[:34], private.images[-6:]]))
    error = 0.005
    exact = Gate(private, Pixels(), 1.0, copies=two_copies).judge(candidates).distance
    # at a distance that occurs
    tau = float(np.sort(exact)[20])
    phi = Uneven(kind, 0.0 if kind == "none" else error, stated=error)
    guard = Gate(private, phi, tau, copies=two_copies)
    order = np.random.default_rng(0).permutation(40)
    for gate in (guard, Gate(private, phi, tau, copies=two_copies, chunk_rows=17)):
        for rows in (order, order[:5], order[:1], np.repeat(order[:3], 5)):
            found = gate.judge(candidates.select(rows))
            assert gate.accepts(candidates.select(rows)).tolist() == found.accepted.tolist()
            assert not found.accepted[exact[rows] <= tau].any()
            # what is refused without need lies within the margin and the error of this measurement
            assert found.accepted[exact[rows] > tau + 6 * error].all()
            assert (np.abs(found.distance - exact[rows]) <= 2 * error * (1 + 1e-6)).all()
            assert (found.reason[rows >= 34] == "copy").all()
    assert max(phi.sizes) == 8 and len(phi.sizes) > 2
    assert ((exact > tau) & (exact <= tau + 4 * error)).any() and (exact > tau + 6 * error).any()


@pytest.mark.parametrize("kind", ["size", "place", "company"])
@pytest.mark.parametrize("people", [1, 19])
def test_a_map_that_errs_by_more_than_it_states_is_noticed(make_set: Callable[..., ImageSet], kind: str, people: int) -> None:
    private = make_set(people, (1, 4, 4), role="private")
    Gate(private, Uneven(kind, 0.1), 0.5, copies=two_copies)
    with pytest.raises(
        ValueError, match=r"pixels: features of one image lie [\d.]+ apart in other company; its error is stated as"
    ):
        Gate(private, Uneven(kind, 0.1, stated=1e-3), 0.5, copies=two_copies)


def test_a_map_that_is_far_from_its_own_double_precision_is_noticed(make_set: Callable[..., ImageSet]) -> None:
    class Half(Pixels):
        def exact(self, images: ImageSet) -> np.ndarray:
            return images.images.reshape(len(images), -1).astype(np.float64)

        def __call__(self, images: ImageSet) -> np.ndarray:
            return self.exact(images).astype(np.float16).astype(np.float32)

    private = make_set(5, (1, 4, 4), role="private")
    Gate(private, Half(error=1e-2), 0.5)
    with pytest.raises(ValueError, match="apart in double precision; its error is stated as 1e-07"):
        Gate(private, Half(error=1e-7), 0.5)


def test_the_standard_copies_stop_what_they_are_made_for(make_set: Callable[..., ImageSet]) -> None:
    private = make_set(6, (1, 16, 16), role="private", name="scans")
    guard = Gate(private, Pixels(), 1e-3)
    assert len(guard.copies) == len(GALLERY) and guard.gallery.rows == 6 * len(GALLERY)
    for attack in ("copy", "flip"):
        found = guard.judge(attacked(private, attack, seed=0))
        assert set(found.reason) == {"copy"} and not found.distance.any()
        assert found.patient.tolist() == private.patient.tolist()
    assert guard.judge(make_set(6, (1, 16, 16), seed=1)).accepted.all()


def test_features_that_are_not_finite_and_constant_images_are_refused(
    make_set: Callable[..., ImageSet], sets: tuple[ImageSet, ImageSet]
) -> None:
    class Fragile(Pixels):
        broken = np.nan

        def __call__(self, images: ImageSet) -> np.ndarray:
            features = super().__call__(images)
            features[np.isclose(images.images[:, 0, 0, 0], 0.125)] = self.broken
            return features

    private, candidates = sets
    images = candidates.images.copy()
    images[3, 0, 0, 0] = 0.125
    candidates, phi = candidates.with_images(images), Fragile()
    guard = Gate(private, phi, 0.5, copies=two_copies)
    for phi.broken in (np.nan, np.inf, 1e31):
        found = guard.judge(candidates)
        assert found.reason[3] == "not finite" and found.reason[-2:].tolist() == ["constant"] * 2
        assert np.isnan(found.distance[[3, -2, -1]]).all() and found.patient[[3, -2, -1]].tolist() == [-1] * 3
        assert np.isfinite(found.distance[[0, 1, 2, 4]]).all()
        assert guard.accepts(candidates).tolist() == found.accepted.tolist()
        # the others do not suffer from its company
        same(guard.judge(candidates.select([0, 4])), rows_of(found, np.array([0, 4])))
    assert guard.judge(candidates.select([3, -1])).reason.tolist() == ["not finite", "constant"]
    assert guard.judge(candidates.select([])).reason.shape == guard.accepts(candidates.select([])).shape == (0,)
    spoiled = private.images.copy()
    spoiled[7, 0, 0, 0] = 0.125
    with pytest.raises(
        ValueError, match="scans: pixels has no finite features for 1 of the copies called copy of images 0 to 10"
    ):
        Gate(private.with_images(spoiled), phi, 0.5, copies=two_copies)


def test_every_channel_constant_is_constant(make_set: Callable[..., ImageSet]) -> None:
    flags = np.zeros((2, 3, 4, 4), np.float32) + np.array([0.2, 0.5, 0.9], np.float32)[:, None, None]
    flags[1, 2, 1, 1] = 0.8
    guard = Gate(make_set(4, (3, 4, 4)), Pixels(), 1e-6)
    assert guard.judge(make_set(2, (3, 4, 4), images=flags)).reason.tolist() == ["constant", ""]


def test_a_copy_is_known_by_its_pixels_when_its_features_changed(sets: tuple[ImageSet, ImageSet]) -> None:
    class Drifting(Pixels):
        calls = 0

        def __call__(self, images: ImageSet) -> np.ndarray:
            self.calls += 1
            return super().__call__(images) + np.float32(self.calls > 10)

    private, candidates = sets
    phi = Drifting()
    guard = Gate(private, phi, 1e-3, copies=two_copies)
    phi.calls = 11
    found = guard.judge(candidates)
    assert found.reason[6:17].tolist() == ["copy"] * 11 and not found.distance[6:17].any()
    assert found.patient[6:17].tolist() == private.patient[::-1].tolist()
    assert not guard.accepts(candidates)[6:17].any()
    # one that lies on its side is known too
    laid = candidates.with_images(np.ascontiguousarray(candidates.images.transpose(0, 1, 3, 2)), name="laid")
    assert guard.judge(laid).reason[6:17].tolist() == ["copy"] * 11 and not guard.accepts(laid)[6:17].any()


def test_features_lie_in_a_closed_folder_that_goes_with_the_gate(
    tmp_path: Path, sets: tuple[ImageSet, ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    guard = Gate(sets[0], Pixels(), 0.5, copies=two_copies)
    guard.accepts(sets[1])
    (home,) = tmp_path.iterdir()
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    (table,) = home.glob("gallery-*.npy")
    assert np.load(table).shape == (22, 25)
    del guard
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_sets_that_cannot_be_compared_are_refused(make_set: Callable[..., ImageSet]) -> None:
    private = make_set(4, (1, 4, 4), role="private", name="scans", spacing=(1.0, 2.0))
    guard = Gate(private, Pixels(), 0.5, copies=two_copies)
    for message, changes in (
        (r"drawn: image shape \(1, 4, 5\) differs from scans's \(1, 4, 4\)", {"shape": (1, 4, 5)}),
        ("drawn: unit HU differs from scans's 1", {"unit": "HU"}),
        (r"drawn: range \(0.0, 2.0\) differs from scans's \(0.0, 1.0\)", {"range": (0.0, 2.0)}),
        (r"drawn: spacing \(1.0, 2.1\) mm differs from scans's \(1.0, 2.0\) mm", {"spacing": (1.0, 2.1)}),
    ):
        other = make_set(3, **({"shape": (1, 4, 4), "name": "drawn", "seed": 1} | changes))
        for call in (guard.judge, guard.accepts):
            with pytest.raises(ValueError, match=message):
                call(other)
    for spacing in (None, (1.0, 2.00001)):
        guard.judge(make_set(3, (1, 4, 4), seed=1, spacing=spacing))


def test_gates_that_would_guarantee_nothing_are_refused(
    make_set: Callable[..., ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    private = make_set(4, (1, 4, 4), role="private", name="scans")
    for tau in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="expected a finite distance above 0"):
            Gate(private, Pixels(), tau)
    with pytest.raises(ValueError, match="scans: an empty private set"):
        Gate(private.select([]), Pixels(), 1.0)
    with pytest.raises(ValueError, match="scans: no copies to compare with"):
        Gate(private, Pixels(), 1.0, copies=lambda images: iter(()))
    with pytest.raises(ValueError, match="half: 2 images from 4"):
        Gate(private, Pixels(), 1.0, copies=lambda images: iter([("half", images.select(np.arange(min(2, len(images)))))]))

    class Wide(Pixels):
        def __call__(self, images: ImageSet) -> np.ndarray:
            return super().__call__(images).astype(np.float64)

    with pytest.raises(ValueError, match=r"pixels: features of shape \(4, 16\) and type float64 for 4 images; expected float32"):
        Gate(private, Wide(), 1.0)
    gc.collect()
    assert not list(tmp_path.iterdir())


# What could go wrong in a rewrite, planted: each must fail the check that the real thing passes.


def _zero_is_no_match(self: search.Gallery, queries: np.ndarray, nearest: Callable = search.Gallery.nearest) -> search.Nearest:
    found = nearest(self, queries)
    return search.Nearest(np.where(found.distance == 0, np.inf, found.distance), found.row)


def _without_last_patient(
    self: Gate, private: ImageSet, *rest: object, init: Callable = Gate.__init__, **options: object
) -> None:
    init(self, private.of_patients(np.unique(private.patient)[:-1]), *rest, **options)


def _without_copies(self: Gate, *rest: object, init: Callable = Gate.__init__, **options: object) -> None:
    init(self, *rest, **(options | {"copies": lambda images: [("copy", images)]}))


def _one_way_up(images: ImageSet, every: Callable = presentations) -> Iterator[tuple[str, ImageSet]]:
    # the number of presentations is right, what is measured is not
    return ((name, images) for name, _ in every(images))


def _one_polarity(images: ImageSet, every: Callable = orientations) -> Iterator[tuple[str, ImageSet]]:
    return ((name + k, laid) for name, laid in every(images) for k in ("", ", inverted"))


def _below_tau(self: Gate, private: ImageSet, phi: Pixels, tau: float, init: Callable = Gate.__init__, **options: object) -> None:
    init(self, private, phi, np.nextafter(tau, 0), **options)


BUGS: dict[str, tuple[object, str, object]] = {
    "allowance dropped": (search, "_allowance", lambda k, eta: 0.0),
    "margin dropped": (gate_module, "refused", lambda distance, tau, error: distance <= tau),
    "margin dropped where it is quick": (gate_module, "reach", lambda tau, error: tau),
    "polarity forgotten": (gate_module, "presentations", _one_polarity),
    "approximate index": (search.Gallery, "nearest", approximately_nearest),
    "transformed copies forgotten": (Gate, "__init__", _without_copies),
    "one patient skipped": (Gate, "__init__", _without_last_patient),
    "zero distance is no match": (search.Gallery, "nearest", _zero_is_no_match),
    "orientations forgotten": (gate_module, "presentations", _one_way_up),
    "a distance of tau passes": (Gate, "__init__", _below_tau),
    "constant images pass": (gate_module, "_constant", lambda images: np.zeros(len(images), bool)),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_found(bug: str, make_set: Callable[..., ImageSet], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*BUGS[bug])
    with pytest.raises(AssertionError):
        check(make_set)


def test_and_without_them_the_same_check_passes(make_set: Callable[..., ImageSet]) -> None:
    check(make_set)

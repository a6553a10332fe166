"""Feature tables: found again by content and by nothing else, for their owner alone, whole or not there."""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medsynth.imageset import ImageSet
from medsynth.privacy.gate import feature_table as tables
from medsynth.privacy.gate.alterations import GALLERY, transformed_copies
from medsynth.privacy.gate.calibration import attack_trial
from medsynth.privacy.gate.feature_table import feature_store, gallery_features, gallery_table
from medsynth.privacy.gate.gate import Gate, stored_gate


class Counted:
    """Pixels, and how many images were shown."""

    name, error = "pixels", 0.0

    def __init__(self, code: str = "0") -> None:
        self.hash, self.shown = code * 32, 0

    def __call__(self, images: ImageSet) -> np.ndarray:
        self.shown += len(images)
        return images.images.reshape(len(images), -1).astype(np.float32)


@pytest.fixture
def private(make_set: Callable[..., ImageSet], monkeypatch: pytest.MonkeyPatch) -> ImageSet:
    """Images of more than one batch."""
    monkeypatch.setattr(tables, "BATCH", 8)
    return make_set(11, (1, 4, 4), role="private", split=None)


def test_a_table_holds_every_copy_of_every_image_in_order(private: ImageSet, tmp_path: Path) -> None:
    table = gallery_table(private, Counted(), tmp_path)
    assert table.features.shape == (len(GALLERY), 11, 16) and table.images == 11
    for name, features, (expected, copies) in zip(table.copies, table.features, transformed_copies(private), strict=True):
        assert name == expected
        np.testing.assert_array_equal(features, Counted()(copies))


def test_a_table_is_found_by_what_it_is_of(private: ImageSet, tmp_path: Path, make_set: Callable[..., ImageSet]) -> None:
    phi = Counted()
    file = gallery_table(private, phi, tmp_path).file
    first = phi.shown
    # names, patients and attributes are no pixels
    same = make_set(11, (1, 4, 4), images=private.images, patient=np.arange(11), split=None, name="other")
    for again in (private, same):
        assert gallery_table(again, phi, tmp_path).file == file
    # finding it costs one batch each time, in which the map is checked
    assert phi.shown == first + 2 * 8
    moved = private.images.copy()
    moved[7, 0, 1, 1] = 1 - moved[7, 0, 1, 1]
    others = [
        (private.with_images(moved), phi), (private.select(np.arange(10)), phi), (private.select(np.arange(11)[::-1]), phi),
        (private.with_images(private.images, range=(0.0, 2.0)), phi), (private, Counted("1")),
    ]  # fmt: skip
    assert len({gallery_table(images, other, tmp_path).file for images, other in others} | {file}) == 6


def test_another_program_makes_another_table(private: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = gallery_table(private, Counted(), tmp_path).file
    monkeypatch.setattr(tables, "code_hash", lambda module: f"another {module}")
    assert gallery_table(private, Counted(), tmp_path).file != file


def test_a_table_of_features_that_the_map_no_longer_gives_is_noticed(private: ImageSet, tmp_path: Path) -> None:
    class Changed(Counted):
        def __call__(self, images: ImageSet) -> np.ndarray:
            return super().__call__(images) * np.float32(1.01)

    gallery_table(private, Counted(), tmp_path)
    with pytest.raises(ValueError, match=r"features of one image lie .* apart"):
        gallery_table(private, Changed(), tmp_path)


def test_tables_are_for_their_owner_alone(private: ImageSet, cache: Path) -> None:
    stored_gate(private, Counted(), 0.5)
    assert feature_store() == cache / "features" and stat.S_IMODE(feature_store().stat().st_mode) == 0o700
    assert len(list(feature_store().glob("*.npy"))) == 1


def test_gates_and_attacks_share_a_table_and_others_leave_none(
    private: ImageSet, make_set: Callable[..., ImageSet], cache: Path
) -> None:
    phi, unseen = Counted(), make_set(3, (1, 4, 4), seed=1, patient=np.arange(100, 103), split=None)
    kept = stored_gate(private, phi, 0.5)
    made = phi.shown
    again = stored_gate(private, phi, 0.4)
    trial = attack_trial(phi, private, unseen, seed=0, store=feature_store())
    assert len(list(feature_store().glob("*.npy"))) == 1 and phi.shown < 2 * made
    np.testing.assert_array_equal(kept.judge(unseen).distance, trial.unseen)
    for folder in (kept._home, again._home):
        assert not list(folder.glob("*.npy"))
    plain = Gate(private, phi, 0.5)
    np.testing.assert_array_equal(plain.judge(unseen).distance, trial.unseen)
    attack_trial(phi, private, unseen, seed=0)
    with gallery_features(private, phi) as features:
        place = Path(features.base.filename if hasattr(features.base, "filename") else features.filename)
        assert place.exists()
    assert not place.exists() and len(list(feature_store().glob("*.npy"))) == 1


def test_two_who_ask_at_once_get_one_table(private: ImageSet, tmp_path: Path) -> None:
    phi, found = Counted(), []
    threads = [threading.Thread(target=lambda: found.append(gallery_table(private, phi, tmp_path).file)) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    alone = Counted()
    gallery_table(private, alone, tmp_path / "alone")
    assert len(set(found)) == 1 and phi.shown == alone.shown + 8


@pytest.mark.parametrize("after", [0, 8, 8 * 120])
def test_what_was_broken_off_is_made_again(private: ImageSet, tmp_path: Path, after: int) -> None:
    class Dies(Counted):
        def __call__(self, images: ImageSet) -> np.ndarray:
            if self.shown >= after:
                raise KeyboardInterrupt
            return super().__call__(images)

    with pytest.raises(KeyboardInterrupt):
        gallery_table(private, Dies(), tmp_path)
    assert not list(tmp_path.glob("*.npy")) and not list(tmp_path.glob("*.json"))
    np.testing.assert_array_equal(gallery_table(private, Counted(), tmp_path).features[0], Counted()(private))


def test_copies_of_ones_own_are_not_taken_for_the_standard_ones(private: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only tables of the standard copies are kept"):
        Gate(private, Counted(), 0.5, copies=lambda images: [("copy", images)], store=tmp_path)

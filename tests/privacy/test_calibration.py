"""Thresholds and what they cost: known answers on maps with known distances, loops, refusals."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from medsynth.evaluation.statistics import bootstrap_mean
from medsynth.imageset import ImageSet
from medsynth.language.vocabulary import MODALITIES
from medsynth.ledger import Ledger
from medsynth.pretrain import thresholds
from medsynth.pretrain.public import PublicSet
from medsynth.privacy.gate import calibration
from medsynth.privacy.gate.alterations import GALLERY, PLANES, attacked, attacks_on, transformed_copies
from medsynth.privacy.gate.calibration import (
    FAMILIES,
    attack_trial,
    calibrate,
    distance_to_own,
    may_miss,
    nearest_distance,
    scan_distances,
    threshold_at,
)
from medsynth.results import table_of


class Means:
    """A map with few dimensions: mean grey of the four quarters of an image, and of the image mirrored."""

    name, hash, error = "quarters", "0" * 32, 1e-6

    def __call__(self, images: ImageSet) -> np.ndarray:
        x = images.images[:, 0]
        h, w = x.shape[1] // 2, x.shape[2] // 2
        return np.stack([q.mean((1, 2)) for q in (x[:, :h, :w], x[:, :h, w:], x[:, h:, :w], x[:, h:, w:])], 1).astype(np.float32)


@pytest.fixture(scope="module")
def people(make_set) -> ImageSet:
    levels = np.random.default_rng(0).uniform(0.2, 0.8, (24, 1, 2, 2))
    return make_set(24, images=np.kron(levels, np.ones((8, 8))).astype(np.float32), split=None)


def of_copies(phi, images) -> np.ndarray:
    """Features (copies, n, d), one list of copies after the other."""
    return np.stack([phi(copies) for _, copies in transformed_copies(images)])


FEW = (("copy",), ("flip",), ("shift",), ("noise",), ("flip", "gamma"), ("zoom", "noise"))


def test_families_are_every_attack_and_every_pair():
    assert len(FAMILIES) == 10 + 36 and FAMILIES[0] == ("copy",) and {len(f) for f in FAMILIES} == {1, 2}


def test_distances_against_loops(people):
    phi = Means()
    gallery = of_copies(phi, people)
    assert gallery.shape == (len(GALLERY), 24, 4)
    x = phi(attacked(people, ("zoom", "noise"), seed=0))
    to_copies = np.linalg.norm(x[:, None, None].astype(float) - gallery[None], axis=-1)  # (rows, copies, n)
    np.testing.assert_allclose(distance_to_own(x, gallery), [to_copies[i, :, i].min() for i in range(24)], atol=1e-7)
    np.testing.assert_allclose(nearest_distance(x, gallery), to_copies.min((1, 2)), atol=1e-7)
    of_patient = [to_copies[i][:, people.patient == people.patient[i]].min() for i in range(24)]
    np.testing.assert_allclose(scan_distances(x, people.patient, gallery, people.patient), of_patient, atol=1e-7)
    with pytest.raises(ValueError, match=r"patients \[77\] have no image in the private set"):
        scan_distances(x, np.full(24, 77), gallery, people.patient)


def test_copies_and_mirrored_copies_have_distance_zero(people):
    phi = Means()
    gallery = of_copies(phi, people)
    for name in ("copy", "flip"):
        assert distance_to_own(phi(attacked(people, name, seed=0)), gallery).max() == 0


def test_stacks_are_attacked_along_their_depth_too(make_set):
    class Planes:
        name, hash, error = "planes", "1" * 32, 0.0

        def __call__(self, images: ImageSet) -> np.ndarray:
            return images.images.reshape(len(images), -1)

    stacks, phi = make_set(3, (1, 8, 4, 4)), Planes()
    gallery = of_copies(phi, stacks)
    found = calibration.attack_distances(phi, stacks, gallery, seed=0)
    assert set(found) == set(FAMILIES) | set(calibration.STACK_FAMILIES)
    assert len(calibration.STACK_FAMILIES) == len(attacks_on(3)) - 1
    # a stack that was moved is one of its own copies, whatever came into view
    assert not found[(PLANES,)].any() and found[("shift", PLANES)].all()


@pytest.fixture
def strangers(people) -> ImageSet:
    return people.with_images(people.images, patient=np.arange(24), name="strangers")


def naive_may_miss(n: int, share: float, confidence: float) -> int:
    likely = np.cumsum([math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n)])
    return int((likely <= 1 - confidence).sum()) - 1


@pytest.mark.parametrize("n", [12, 59, 100, 299, 348])
@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_how_many_may_be_missed_against_a_loop(n, share, confidence):
    expected = naive_may_miss(n, share, confidence)
    if expected >= 0:
        assert may_miss(n, share, confidence) == expected
    else:
        with pytest.raises(ValueError, match=rf"{n} patients; expected at least \d+ to say"):
            may_miss(n, share, confidence)


def test_known_tolerance_limits():
    # Wilks 1941: 299 observations, so that the largest bounds 99 % with 95 % confidence; 59 for 95 %
    assert may_miss(299, 0.01, 0.95) == may_miss(59, 0.05, 0.95) == 0 and may_miss(1000, 0.01, 0.95) == 4
    with pytest.raises(
        ValueError, match=r"298 patients; expected at least 299 to say with 95% confidence that at most 1\.00% slip"
    ):
        may_miss(298, 0.01, 0.95)


def test_the_share_holds_for_everyone_and_not_for_these_people_alone():
    """Thresholds from many samples of people: too low a one in at most 5 % of them, against half with the plain quantile."""
    n, share = 300, 0.03
    people = np.sort(np.random.default_rng(0).random((4000, n)), axis=1)  # distances with known quantiles
    limits, plain = people[:, -1 - may_miss(n, share, 0.95)], people[:, -1 - int(share * n)]
    assert (1 - limits > share).mean() <= 0.055 and (1 - plain > share).mean() > 0.4


@pytest.mark.parametrize(("miss", "pair_miss"), [(0.12, 0.2), (0.3, 0.3), (0.3, 0.5)])
def test_no_family_misses_more_than_stated(strangers, miss, pair_miss, monkeypatch):
    monkeypatch.setattr(calibration, "FAMILIES", FEW)
    phi = Means()
    found = calibrate(phi, strangers, seed=0, miss=miss, pair_miss=pair_miss)
    gallery = of_copies(phi, strangers)
    reached = False
    for family in FEW:
        distance = distance_to_own(phi(attacked(strangers, family, seed=0)), gallery)
        allowed = naive_may_miss(24, miss if len(family) == 1 else pair_miss, 0.95)
        assert (distance > found.tau).sum() <= allowed
        reached |= (distance >= found.tau).sum() > allowed
    assert reached, "tau is the least such threshold"
    assert (found.patients, found.phi, found.phi_hash) == (24, "quarters", "0" * 32)
    assert len(found.needed) == len(FEW) and found.needed["tau"].max() == found.tau
    assert "95% confidence) from one image each of 24 other phantoms (strangers)" in found.sentence()
    assert f"{miss:.2%} of any one alteration" in found.sentence()


def test_attacks_that_are_left_out_ask_for_nothing(strangers):
    few = {"miss": 0.2, "pair_miss": 0.2, "confidence": 0.5}
    every, some = (calibrate(Means(), strangers, seed=0, **few, left_out=out) for out in ((), ("noise", "gain and offset")))
    kept = ~every.needed.family.str.contains("noise|gain and offset")
    pd.testing.assert_frame_equal(some.needed, every.needed[kept].reset_index(drop=True))
    assert len(some.needed) == 8 + 21 and some.tau == every.needed[kept].tau.max() < every.tau
    assert some.sentence().endswith("; not covered: noise, gain and offset") and "not covered" not in every.sentence()


def test_sets_that_no_threshold_can_come_from_are_refused(people, strangers):
    with pytest.raises(ValueError, match="private; calibrate on public or held-out patients"):
        calibrate(Means(), people.with_role("private"), seed=0)
    with pytest.raises(ValueError, match="miss 0, pair_miss"):
        calibrate(Means(), strangers, seed=0, miss=0)
    with pytest.raises(ValueError, match="24 images of 12 patients; expected one image of each"):
        calibrate(Means(), people, seed=0)
    with pytest.raises(ValueError, match="24 patients; expected at least 299"):
        calibrate(Means(), strangers, seed=0)


@pytest.mark.parametrize("error", [0.0, 1e-3])
def test_the_threshold_at_a_share_is_the_largest(error):
    nearest = np.random.default_rng(0).random(41)
    for share in (0.01, 0.05, 0.5):
        tau = threshold_at(nearest, share, error)
        assert (nearest <= tau + 4 * error).mean() <= share < (nearest <= tau + 4 * error + 1e-15).mean()
    with pytest.raises(ValueError, match="share 1; expected"):
        threshold_at(nearest, 1, error)


def least(phi, images, measured):
    """In the best of the four ways to lay a square image, up to a mirror, and of the two polarities."""
    upright, turned = images.images, images.images.swapaxes(2, 3)
    laid = (upright, upright[..., ::-1, :], turned, turned[..., ::-1, :])
    laid = (*laid, *(1 - x for x in laid))
    return np.min([measured(phi(images.with_images(np.ascontiguousarray(x)))) for x in laid], axis=0)


NAMED = {"chapter": "gate", "dataset": "quarters of grey", "arm": "means"}


def refused(rows):
    """Rows of shares, as a table."""
    return table_of(r for r in rows if r.metric == "share refused")


def test_rows_say_what_is_refused(people, monkeypatch):
    monkeypatch.setattr(calibration, "FAMILIES", FEW)
    phi = Means()
    unseen = people.with_images(1 - people.images, patient=people.patient + 100, name="unseen")
    scans = attacked(people, "noise", seed=9)
    tau, asked = 0.05, NAMED | {"rule": "as told", "seed": 1}
    rows = attack_trial(phi, people, unseen, seed=1, other_scans=scans).rows(tau, **asked)
    assert {(r.chapter, r.dataset, r.arm, r.seed, r.extra["rule"], r.extra["phi"]) for r in rows} == {
        ("gate", "quarters of grey", "means", 1, "as told", "quarters")
    }
    assert [r.value for r in rows if r.metric == "tau"] == [tau]
    table = refused(rows)
    assert table["kind"].value_counts().to_dict() == {"attack": 4, "pair": 2, "unseen patients": 1, "other scans": 1}
    gallery = of_copies(phi, people)
    row = table.set_index("family")
    assert row.loc["copy", "value"] == 1
    # the same interval that the mean of a column has
    flags = distance_to_own(phi(attacked(people, ("zoom", "noise"), seed=1)), gallery) <= tau + 4 * phi.error
    expected = bootstrap_mean(flags, people.patient, seed=1)
    assert tuple(row.loc["zoom + noise", ["value", "low", "high", "n"]]) == pytest.approx(tuple(expected[:4]))
    shift = distance_to_own(phi(attacked(people, "shift", seed=1)), gallery) <= tau + 4 * phi.error
    assert row.loc["shift", "value"] == shift.mean() and row.loc["shift", "images"] == 24
    near = least(phi, scans, lambda x: scan_distances(x, people.patient, gallery, people.patient))
    assert table.iloc[6]["value"] == (least(phi, unseen, lambda x: nearest_distance(x, gallery)) <= tau + 4 * phi.error).mean()
    assert table.iloc[7]["value"] == (near <= tau + 4 * phi.error).mean()
    assert (table["low"] <= table["value"]).all() and (table["private_patients"] == 12).all() and (table["tau"] == tau).all()
    assert set(table["n"]) == {12} and set(table["n_of"]) == {"patients"}
    hardest = attack_trial(phi, people, unseen, seed=1, other_scans=scans, strength="bound").rows(tau, **asked)
    assert refused(hardest).set_index("family").loc["shift", "value"] <= row.loc["shift", "value"]


def test_without_other_scans_the_set_has_its_own(people, monkeypatch):
    monkeypatch.setattr(calibration, "FAMILIES", FEW[:2])
    phi = Means()
    unseen = people.with_images(1 - people.images, patient=people.patient + 100)
    trial = attack_trial(phi, people, unseen, seed=1)
    # two images each: the second is measured against the copies of the first
    first, second = people.select(np.arange(0, 24, 2)), people.select(np.arange(1, 24, 2))
    expected = least(phi, second, lambda x: distance_to_own(x, of_copies(phi, first)))
    np.testing.assert_allclose(trial.scans, expected, atol=1e-7)
    assert trial.scan_patient.tolist() == second.patient.tolist()
    both = trial.at_its_own_and_at_equal_price(0.1, seed=1, price=0.2, **NAMED)
    rules = ["calibrated on copies", "20 % of unseen patients refused"]
    assert {r.extra["rule"]: r.value for r in both if r.metric == "tau"} == dict(
        zip(rules, [0.1, threshold_at(trial.unseen, 0.2, phi.error)], strict=True)
    )
    table = refused(both)
    assert table.groupby("rule", sort=False)["tau"].first().tolist() == [0.1, threshold_at(trial.unseen, 0.2, phi.error)]
    assert table[(table.kind == "unseen patients") & (table.tau != 0.1)]["value"].item() <= 0.2
    alone = attack_trial(phi, first, unseen, seed=1).rows(0.1, rule="as told", seed=1, **NAMED)
    assert set(refused(alone)["kind"]) == {"attack", "unseen patients"}


# thresholds that ship


def test_a_threshold_for_each_set_ships(people, strangers, monkeypatch, tmp_path, cache):
    monkeypatch.setattr(calibration, "FAMILIES", FEW)
    other = people.with_images(people.images * 0.5, name="other", role="eval")
    drawn: list[dict] = []
    monkeypatch.setattr(thresholds, "cached_thorax", lambda **k: drawn.append(k) or replace(strangers, modality=k["modality"]))
    # of other people than the phantoms, who are held out
    hearts = strangers.with_images(1 - strangers.images)
    monkeypatch.setattr(thresholds, "cardiac", lambda **k: hearts)
    real = {"cxr_kermany": PublicSet(other), "cxr_nih": PublicSet(other.select([0, 1]))}
    monkeypatch.setattr(thresholds, "FEWEST", 12)
    generous = functools.partial(calibrate, miss=0.3, pair_miss=0.3)
    monkeypatch.setattr(thresholds, "calibrate", generous)
    monkeypatch.setattr(thresholds, "real_sets", lambda folder, split: real if split == "val" else {})
    monkeypatch.setattr(thresholds, "SIZE", 16)
    monkeypatch.setattr(thresholds, "feature_map", lambda name, folder: Means())
    arguments = ["thresholds", "--out", str(tmp_path), "--patients", "12", "--maps", "pixels 2d", "encoder_3d 3d"]
    monkeypatch.setattr("sys.argv", arguments)
    thresholds.main()
    entries = json.loads((tmp_path / "thresholds.json").read_text())
    assert set(entries) == {"pixels 2d", "encoder_3d 3d"} and all(
        (k["seed"], k["population"]) == (thresholds.SEED, "private") for k in drawn
    )
    found = entries["pixels 2d"]["sets"]
    one = calibration.one_per_patient(other)
    assert len(one) == 12 and found["cxr_kermany"]["tau"] == generous(Means(), one, seed=0).tau
    # too few people to say anything of one in a hundred
    assert found.keys() == {"cxr_kermany", *(f"phantom-{m}" for m in MODALITIES)}
    assert all("decided by" in t["how"] for t in found.values())
    assert {k: t["modality"] for k, t in found.items()} == {"cxr_kermany": "xray"} | {f"phantom-{m}": m for m in MODALITIES}
    assert entries["encoder_3d 3d"]["sets"].keys() == {"phantom-heart"}
    # what is not asked for stays
    monkeypatch.setattr("sys.argv", [*arguments[:-1]])
    thresholds.main()
    assert json.loads((tmp_path / "thresholds.json").read_text()) == entries
    assert [e.reads for e in Ledger().entries()] == ["strangers/other", "radiographs of children of one hospital, other"]

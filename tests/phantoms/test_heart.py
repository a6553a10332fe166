"""The cardiac phantom: known geometry, exact attributes, plausible physiology, and independence of how it is asked for."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medsynth.phantoms.heart.heart import cardiac, cardiac_labels, measure_volumes
from medsynth.phantoms.heart.people import CONDITIONS, POPULATIONS, draw_person
from medsynth.phantoms.heart.shape import FIELD_OF_VIEW

PATIENTS = 24


@pytest.fixture(scope="module")
def public():
    return cardiac(patients=PATIENTS, seed=1), cardiac_labels(patients=PATIENTS, seed=1)


@pytest.fixture(scope="module")
def private():
    return cardiac(patients=PATIENTS, population="private", seed=1)


def ring(inner, outer, *, spacing, shape=(6, 96, 96), centre=(48.0, 50.0)):
    """A cylinder of left ventricle, `inner` mm in radius, in a wall up to `outer` mm."""
    row, column = np.ogrid[: shape[1], : shape[2]]
    distance = np.hypot((row - centre[0]) * spacing[1], (column - centre[1]) * spacing[2])
    plane = np.where(distance < inner, 3, np.where(distance < outer, 2, 0)).astype(np.uint8)
    return np.broadcast_to(plane, shape).copy()


def test_a_set_has_the_promised_shape_range_and_types(public):
    images, labels = public
    assert images.images.shape == (2 * PATIENTS, 1, 16, 64, 64)
    assert labels.shape == (2 * PATIENTS, 16, 64, 64) and labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    assert images.unit == "1" and images.range == (0, 1) and images.role == "public"
    assert images.spacing == (8.0, 2.5, 2.5) and images.data_licence == "generated"
    assert images.patient.tolist() == np.repeat(np.arange(PATIENTS), 2).tolist()
    table = images.attributes
    assert table["phase"].tolist() == [0, 1] * PATIENTS
    integers = {"sex", "phase", "n_slices"}
    assert {c for c in table if str(table[c].dtype) == "Int64"} == integers
    assert {c for c in table if str(table[c].dtype) == "string"} == {"condition", "licence"}
    assert set(table["condition"]) <= set(CONDITIONS) and set(table["sex"]) == {0, 1}
    assert not table.isna().any().any()
    constant = table.drop(columns="phase").groupby(images.patient).nunique()
    assert (constant == 1).all().all(), "patient-level attributes stand on both rows"


def test_padding_is_zero_and_the_stack_holds_the_heart(public):
    images, labels = public
    for x, y, n in zip(images.images[:, 0], labels, images.attributes["n_slices"], strict=True):
        assert 9 <= n <= 16 and not x[n:].any() and not y[n:].any()
        assert all(plane.max() > 0 for plane in x[:n])
        assert (x.max((1, 2))[:n] > 0.3).all()
    edge = np.concatenate([labels[:, :, 0], labels[:, :, -1], labels[..., 0], labels[..., -1]], axis=-1)
    assert (edge > 0).any((1, 2)).mean() < 0.1


def test_attributes_equal_a_naive_count_of_the_labels(public):
    images, labels = public
    voxel = 8.0 * 2.5 * 2.5 / 1000
    for i in range(0, 2 * PATIENTS, 2):
        row = images.attributes.iloc[i]
        counts = [[np.count_nonzero(labels[j] == k) for k in (1, 3)] for j in (i, i + 1)]
        (rvedv, lvedv), (rvesv, lvesv) = np.array(counts) * voxel
        assert row["lvedv"] == pytest.approx(lvedv, rel=1e-12) and row["lvesv"] == pytest.approx(lvesv, rel=1e-12)
        assert row["rvedv"] == pytest.approx(rvedv, rel=1e-12) and row["rvesv"] == pytest.approx(rvesv, rel=1e-12)
        assert row["lvef"] == pytest.approx(100 * (lvedv - lvesv) / lvedv)
        assert row["rvef"] == pytest.approx(100 * (rvedv - rvesv) / rvedv)
        for name, j in (("wall_ed", i), ("wall_es", i + 1)):
            thickness = []
            largest = max(np.count_nonzero(plane == 3) for plane in labels[j])
            for plane in labels[j]:
                lv, myo = (np.count_nonzero(plane == k) * 6.25 for k in (3, 2))
                if myo and lv >= largest * 6.25 / 2:
                    thickness.append(((lv + myo) / np.pi) ** 0.5 - (lv / np.pi) ** 0.5)
            assert row[name] == pytest.approx(np.mean(thickness))
        (r0, c0), (r1, c1) = (np.argwhere(labels[i] == k)[:, 1:].mean(0) for k in (3, 1))
        assert row["angle"] == pytest.approx(np.degrees(np.arctan2(r0 - r1, c0 - c1)))


def test_hearts_are_plausible_and_contract(public, private):
    for images in (public[0], private):
        table = images.attributes.iloc[::2]
        for name, low, high in (
            ("lvedv", 80, 300), ("lvef", 15, 75), ("rvedv", 90, 300), ("rvef", 15, 75), ("wall_ed", 4.5, 18),
            ("age", 18, 90), ("bmi", 17, 42), ("angle", -65, 95),
        ):  # fmt: skip
            assert table[name].between(low, high).all(), name
        assert (table["lvedv"] > 1.1 * table["lvesv"]).all() and (table["rvedv"] > 1.1 * table["rvesv"]).all()
        assert (table["wall_es"] > 1.05 * table["wall_ed"]).all()


def test_myocardium_is_conserved(public):
    images, labels = public
    myo = measure_volumes(labels, images.spacing)["myo"].to_numpy().reshape(-1, 2)
    assert np.abs(myo[:, 1] / myo[:, 0] - 1).max() < 0.15


def test_the_left_ventricle_is_wrapped_in_myocardium_in_mid_planes(public):
    images, labels = public
    cross = ndimage.generate_binary_structure(2, 1)
    for i, y in enumerate(labels):
        area = (y == 3).sum((1, 2))
        base = int(np.flatnonzero(area)[0]) + 2  # below the planes that the valve cuts
        last = int(np.flatnonzero(area)[-1])
        for plane in y[base : base + (last - base) // 2 + 1]:
            around = ndimage.binary_dilation(plane == 3, cross) & (plane != 3)
            assert set(plane[around]) == {2}, images.attributes.iloc[i]
            assert ndimage.label(plane == 3)[1] == 1 and ndimage.label(plane == 2)[1] == 1


def test_blood_is_bright_myocardium_dark_and_papillary_muscles_lie_in_the_blood_pool(public):
    images, labels = public
    x = images.images[:, 0]
    for image, y in zip(x, labels, strict=True):
        lv, myo, rv = (image[y == k] for k in (3, 2, 1))
        assert np.median(lv) > 1.4 * np.median(myo) and np.median(rv) > 1.2 * np.median(myo)
        dark = np.mean(lv < (np.median(lv) + np.median(myo)) / 2)
        assert 0.01 < dark < 0.5


def test_both_phases_show_the_same_person(public):
    x = public[0].images[:, 0].reshape(PATIENTS, 2, -1)
    x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    similarity = np.einsum("im,jm->ij", x[:, 0], x[:, 1]) / x.shape[-1]
    assert (similarity.argmax(1) == np.arange(PATIENTS)).mean() > 0.9
    assert np.diag(similarity).max() < 0.999, "phases differ"


def test_rows_do_not_depend_on_how_they_are_asked_for():
    few, more = cardiac(patients=2, size=32, slices=8, seed=4), cardiac(patients=3, size=32, slices=8, seed=4, jobs=2)
    assert few.content_hash == more.select(more.patient < 2).content_hash
    assert few.content_hash == cardiac(patients=2, size=32, slices=8, seed=4).content_hash
    es = cardiac(patients=2, size=32, slices=8, seed=4, phases=("ES",))
    assert es.content_hash == few.select(few.attributes["phase"].to_numpy() == 1).content_hash
    swapped = cardiac_labels(patients=2, size=32, slices=8, seed=4, phases=("ES", "ED"), jobs=2)
    labels = cardiac_labels(patients=2, size=32, slices=8, seed=4)
    assert np.array_equal(swapped, labels[[1, 0, 3, 2]])
    other = cardiac(patients=2, size=32, slices=8, seed=5)
    assert not set(few.row_hashes) & set(other.row_hashes)


def test_the_same_person_has_the_same_volumes_on_every_grid():
    coarse, fine = (cardiac(patients=3, seed=2, slices=s, size=w).attributes for s, w in ((16, 64), (20, 96)))
    for name in ("lvedv", "rvedv", "lvesv"):
        assert np.allclose(coarse[name], fine[name], rtol=0.12), name
    assert coarse["age"].equals(fine["age"])
    images = cardiac(patients=1, slices=20, size=40)
    assert np.allclose(np.array(images.spacing) * images.spatial, FIELD_OF_VIEW)


def test_populations_differ_in_people_and_scanner(public, private):
    a, b = ([draw_person(name, 0, i) for i in range(400)] for name in ("public", "private"))
    assert np.mean([p.age for p in b]) > np.mean([p.age for p in a]) + 10
    assert np.mean([p.condition in ("dilated", "hypertrophic") for p in b]) > 0.5
    assert np.mean([p.condition == "normal" for p in a]) > 0.4
    assert private.role == "private" and private.patient.min() == 1_000_000
    assert not set(public[0].row_hashes) & set(private.row_hashes)
    lung = [np.percentile(s.images[:, 0, 4], 2) for s in (public[0], private)]
    assert lung[1] > 1.3 * lung[0], "the private scanner is noisier"
    rehearsal = POPULATIONS["rehearsal"]
    assert set(POPULATIONS) == {"public", "private", "rehearsal"} and rehearsal.role == "public"
    # nobody is in two of them, and no two share a scanner
    assert len({p.first_patient for p in POPULATIONS.values()}) == len({p.scanner for p in POPULATIONS.values()}) == 3


def test_targets_are_met_by_the_voxels():
    table = cardiac(patients=12, seed=3).attributes.iloc[::2].reset_index(drop=True)
    people = pd.DataFrame([draw_person("public", 3, i)._asdict() for i in range(12)])
    for name, tolerance in (("lvedv", 0.1), ("rvedv", 0.15)):
        assert (table[name] / people[name] - 1).abs().max() < tolerance, name
    assert (table["lvef"] - people["lvef"]).abs().max() < 8
    assert table["condition"].tolist() == people["condition"].tolist()


@settings(max_examples=15, deadline=None)
@given(inner=st.floats(12, 28), wall=st.floats(4, 14), dz=st.floats(4, 12), pixel=st.floats(0.45, 0.65), copies=st.integers(1, 3))
def test_a_ring_has_its_volume_and_thickness(inner, wall, dz, pixel, copies):
    # fine pixels and a centre off the grid: how many points a small circle around a grid point holds is a jumpy thing
    spacing = (dz, pixel, pixel)
    plane = ring(inner, inner + wall, spacing=spacing, shape=(6, 200, 200), centre=(99.3, 100.8))
    labels = np.repeat(plane[None], copies, 0)
    measured = measure_volumes(labels, spacing)
    assert len(measured) == copies
    assert np.allclose(measured["lv"], np.pi * inner**2 * 6 * dz / 1000, rtol=0.03)
    assert np.allclose(measured["myo"], np.pi * ((inner + wall) ** 2 - inner**2) * 6 * dz / 1000, rtol=0.06)
    assert np.allclose(measured["wall"], wall, atol=0.35)
    assert (measured["rv"] == 0).all() and measured["angle"].isna().all()


def test_an_ellipsoid_has_its_volume_and_a_ventricle_its_direction():
    z, y, x = np.ogrid[:40, :80, :80]
    lv = ((z - 20) * 2 / 36) ** 2 + ((y - 40) * 1.0 / 22) ** 2 + ((x - 50) * 1.5 / 26) ** 2 < 1
    labels = np.where(lv, 3, 0).astype(np.uint8)
    labels[10:30, 20:31, 20:31] = 1
    row = measure_volumes(labels[None], (2.0, 1.0, 1.5)).iloc[0]
    assert row["lv"] == pytest.approx(4 / 3 * np.pi * 36 * 22 * 26 / 1000, rel=0.01)
    assert row["rv"] == pytest.approx(20 * 11 * 11 * 3 / 1000)
    assert row["angle"] == pytest.approx(np.degrees(np.arctan2(15.0, 37.5)), abs=0.5)
    assert row["myo"] == 0 and np.isnan(row["wall"])
    assert measure_volumes(np.zeros((2, 3, 4, 5), np.uint8), (1, 1, 1))[["lv", "rv", "myo"]].to_numpy().sum() == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patients", 0), ("patients", 2.0), ("slices", 7), ("size", 31), ("seed", -1), ("jobs", 0), ("jobs", True),
        ("phases", ()), ("phases", "ED"), ("phases", ("ED", "ED")), ("phases", ("mid",)), ("population", "secret"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_named(name, value):
    for make in (cardiac, cardiac_labels):
        with pytest.raises(ValueError, match=f"^{name} is "):
            make(**({"patients": 1} | {name: value}))


def test_bad_labels_and_spacing_are_named():
    with pytest.raises(ValueError, match=r"shape \(3, 4, 5\)"):
        measure_volumes(np.zeros((3, 4, 5)), (1, 1, 1))
    for spacing in ((1, 1), (1, 0, 1)):
        with pytest.raises(ValueError, match="spacing"):
            measure_volumes(np.zeros((1, 3, 4, 5)), spacing)

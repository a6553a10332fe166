from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medsynth.imageset import ROLES, ImageSet, concatenate

# any text but lone surrogates (no encoding has them) and NUL, which fixed-width text cannot end with
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
COLUMNS = {
    "real": ("float64", st.floats(allow_nan=False, width=64) | st.just(np.nan)),
    "whole": ("Int64", st.integers(-(2**63), 2**63 - 1) | st.none()),
    "yes": ("boolean", st.booleans() | st.none()),
    "word": ("string", TEXT | st.none()),
}


@st.composite
def image_sets(draw: st.DrawFn, volumes: bool | None = None) -> ImageSet:
    n = draw(st.integers(0, 5))
    three = draw(st.booleans()) if volumes is None else volumes
    spatial = draw(st.tuples(*[st.integers(1, 3)] * (3 if three else 2)))
    low = draw(st.sampled_from([0.0, -1000.0, -0.1]))
    high = low + draw(st.sampled_from([1.0, 1400.0, 0.4]))
    pixels = hnp.arrays(np.float32, (n, draw(st.integers(1, 2)), *spatial), elements=st.floats(0, 1, width=32))
    images = np.clip(draw(pixels).astype(np.float64) * (high - low) + low, low, high).astype(np.float32)
    patient = np.array(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), dtype=int)
    parts = draw(st.lists(st.sampled_from(["train", "val", "test", ""]), min_size=4, max_size=4))
    table = pd.DataFrame(
        {k: pd.array(draw(st.lists(v, min_size=n, max_size=n)), dtype=t) for k, (t, v) in COLUMNS.items() if draw(st.booleans())}
    )
    assume(not n or (images.min() >= np.float32(low) and images.max() <= high and images.min() >= low))
    return ImageSet(
        images=images, patient=patient, unit=draw(st.sampled_from(["1", "HU"])), range=(low, high), name=draw(TEXT) or "s",
        role=draw(st.sampled_from(ROLES)), split=np.array([parts[p] for p in patient], dtype="<U5"),
        spacing=draw(st.none() | st.just((0.5,) * len(spatial))), attributes=table,
    )  # fmt: skip


def assert_same(a: ImageSet, b: ImageSet) -> None:
    for key in ("unit", "range", "name", "role", "spacing"):
        assert getattr(a, key) == getattr(b, key)
    for key in ("images", "patient", "split"):
        np.testing.assert_array_equal(getattr(a, key), getattr(b, key))
        assert getattr(a, key).dtype == getattr(b, key).dtype
    pd.testing.assert_frame_equal(a.attributes, b.attributes)


def people_in_parts(s: ImageSet) -> dict[int, set[str]]:
    return {int(p): set(s.split[s.patient == p].tolist()) for p in np.unique(s.patient)}


@given(image_sets())
def test_saving_and_loading_keeps_everything(tmp_path_factory, s):
    path = s.save(tmp_path_factory.mktemp("sets") / "deep" / "s.npz")
    loaded = ImageSet.load(path)
    assert_same(s, loaded)
    assert loaded.content_hash == s.content_hash
    assert [f.name for f in path.parent.iterdir()] == ["s.npz"]


def test_missing_values_of_every_type_survive_and_differ_from_values(tmp_path, make_set):
    present = {"real": [0.0, 1.5], "whole": [0, 2**60 + 1], "yes": [False, True], "word": ["", "é\nß"]}
    missing = {"real": [np.nan, 1.5], "whole": [None, 2**60 + 1], "yes": [None, True], "word": [None, "é\nß"]}
    sets = []
    for values in (present, missing):
        table = pd.DataFrame({k: pd.array(values[k], dtype=t) for k, (t, _) in COLUMNS.items()})
        sets.append(ImageSet.load(make_set(2, attributes=table).save(tmp_path / "s.npz")))
    for column in present:
        assert sets[0].attributes[column].notna().all()
        assert sets[1].attributes[column].isna().tolist() == [True, False]
        assert sets[1].attributes[column][1] == present[column][1]
        alone = [s.with_images(s.images, attributes=s.attributes[[column]]).content_hash for s in sets]
        assert alone[0] != alone[1]


@pytest.mark.parametrize(
    ("given_values", "dtype"),
    [
        (np.array([True, False]), "boolean"),
        (np.array([1, 2], dtype=np.int8), "Int64"),
        (np.array([1.5, 2], dtype=np.float32), "float64"),
        (np.array(["a", "b"]), "string"),
        (np.array(["a", None], dtype=object), "string"),
    ],
)
def test_columns_become_one_of_four_types(make_set, given_values, dtype):
    assert str(make_set(2, attributes=pd.DataFrame({"x": given_values})).attributes["x"].dtype) == dtype


def test_numbers_that_fit_no_column_are_named(make_set):
    with pytest.raises(ValueError, match=r"tiny: column 'uid' does not fit into Int64 \(.*\); save it as text"):
        make_set(2, attributes=pd.DataFrame({"uid": np.full(2, 2**64 - 1, dtype=np.uint64)}))


def test_booleans_with_holes_stay_booleans(make_set):
    s = make_set(3, attributes=pd.DataFrame({"x": np.array([True, None, False], dtype=object)}))
    assert s.attributes["x"].tolist() == [True, pd.NA, False]
    assert str(s.attributes["x"].dtype) == "boolean"


def test_interrupted_save_leaves_the_old_file(tmp_path, make_set, monkeypatch):
    path = make_set(4).save(tmp_path / "s.npz")

    def fails(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        make_set(6).save(path)
    assert len(ImageSet.load(path)) == 4
    assert [f.name for f in tmp_path.iterdir()] == ["s.npz"]


def test_foreign_files_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", image=np.zeros(3))
    np.savez(tmp_path / "meta.npz", meta=np.array('{"format": "else"}'))
    np.savez(tmp_path / "pickled.npz", meta=np.array([{"a": 1}], dtype=object))
    for name in ("other", "meta"):
        with pytest.raises(ValueError, match=rf"{name}\.npz: not an ImageSet file"):
            ImageSet.load(tmp_path / f"{name}.npz")
    with pytest.raises(ValueError, match="allow_pickle"):
        ImageSet.load(tmp_path / "pickled.npz")


@given(image_sets(), st.data())
def test_content_hash_sees_every_change_that_has_meaning(s, data):
    assume(len(s))
    row = data.draw(st.integers(0, len(s) - 1))
    pixel = np.unravel_index(data.draw(st.integers(0, s.images[0].size - 1)), s.images[0].shape)
    images = s.images.copy()
    old = images[(row, *pixel)]
    images[(row, *pixel)] = np.nextafter(old, np.float32(s.range[0] if old > s.range[0] else s.range[1]))
    moved = np.where(s.patient == s.patient[row], s.patient.max() + 1, s.patient)
    other = next(p for p in ("train", "val") if p != s.split[row])
    changed = [
        s.with_images(images),
        replace(s, patient=moved),
        replace(s, split=np.where(s.patient == s.patient[row], other, s.split)),
        replace(s, unit=s.unit + "'"),
        replace(s, range=(s.range[0], s.range[1] + 1)),
        replace(s, spacing=(0.25,) * len(s.spatial)),
        replace(s, attributes=s.attributes.assign(extra=1)),
    ]
    for column in s.attributes:
        table = s.attributes.copy()
        table.loc[row, column] = {"real": 0.125, "whole": 7, "yes": True, "word": "other!!"}[column]
        if not table[column].equals(s.attributes[column]):
            changed.append(replace(s, attributes=table))
    hashes = [c.content_hash for c in changed]
    assert len({s.content_hash, *hashes}) == len(hashes) + 1
    same = replace(s, name="another", role="private")
    assert same.content_hash == s.content_hash
    assert sum(same.row_hashes != changed[0].row_hashes) == 1


def test_content_hash_does_not_confuse_texts_that_join_alike(make_set):
    tables = [pd.DataFrame({"x": pd.array(v, dtype="string")}) for v in (["a\0b", "c"], ["a", "b\0c"])]
    assert len({make_set(2, attributes=t).content_hash for t in tables}) == 2


def test_negative_zero_is_zero(make_set):
    zero = np.zeros((2, 1, 2, 2), np.float32)
    a, b = make_set(2, images=zero), make_set(2, images=-zero)
    assert a.content_hash == b.content_hash
    assert (a.row_hashes == b.row_hashes).all()


def test_row_hashes_recognise_a_row_in_any_set(make_set):
    s = make_set(6)
    part = s.select([4, 1], name="part").with_role("private")
    assert part.row_hashes.tolist() == [s.row_hashes[4], s.row_hashes[1]]


@given(image_sets(), st.data())
def test_no_derivation_splits_a_patient_or_forgets_that_it_is_private(s, data):
    s = replace(s, role="private")
    rows = data.draw(st.lists(st.integers(0, len(s) - 1), max_size=6)) if len(s) else []
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(s), max_size=len(s))), dtype=bool)
    people = data.draw(st.sets(st.integers(0, 3)))
    derived = [
        s.select(np.array(rows, dtype=int)), s.select(mask), s.in_split("train"), s.of_patients(people),
        s.with_images(s.images), s.split_by_patient({"train": 0.5, "val": 0.2, "test": 0.3}, data.draw(st.integers(0, 9))),
        s.with_role("private"), concatenate([replace(s, role="public"), s, replace(s, role="eval")], "all"),
    ]  # fmt: skip
    for d in derived:
        assert d.role == "private"
        assert all(len(parts) == 1 for parts in people_in_parts(d).values())
    by_rows, by_mask, train, of, *_ = derived
    np.testing.assert_array_equal(by_rows.images, s.images[np.array(rows, dtype=int)])
    np.testing.assert_array_equal(by_mask.patient, s.patient[mask])
    assert set(train.split.tolist()) <= {"train"} and train.name == f"{s.name}/train"
    assert set(of.patient.tolist()) == people & set(s.patient.tolist())
    # whole patients go into a part
    assert not set(train.patient.tolist()) & set(s.patient[s.split != "train"].tolist())
    pd.testing.assert_frame_equal(by_mask.attributes, s.attributes[mask].reset_index(drop=True))


@given(st.integers(0, 30), st.sampled_from([(1.0,), (0.7, 0.3), (0.5, 0.2, 0.3), (0.25, 0.0, 0.75)]), st.integers(0, 5))
def test_split_by_patient_has_the_asked_sizes_and_a_seed(people, shares, seed):
    n = 2 * people
    s = ImageSet(images=np.zeros((n, 1, 1, 1)), patient=np.arange(n) // 2 * 7, unit="1", range=(0, 1), name="s")
    fractions = dict(zip(("train", "val", "test"), shares, strict=False))
    done = s.split_by_patient(fractions, seed)
    assert all(len(parts) == 1 for parts in people_in_parts(done).values())
    for part, share in fractions.items():
        assert abs(done.in_split(part).patients - share * people) <= 1
    np.testing.assert_array_equal(done.split, s.split_by_patient(fractions, seed).split)
    if people >= 20 and len(fractions) > 1:
        assert (done.split != s.split_by_patient(fractions, seed + 1).split).any()


@given(image_sets())
def test_unscaled_inverts_scaled(s):
    scaled = s.scaled()
    assert scaled.dtype == np.float32
    assert np.abs(scaled).max(initial=0) <= 1
    back = s.unscaled(scaled)
    np.testing.assert_allclose(back, s.images, atol=2e-6 * (s.range[1] - s.range[0]) + 1e-6 * abs(s.range[0]))
    # what networks return beyond the interval is clipped, and the result is a valid set
    assert s.with_images(s.unscaled(scaled * 3)).range == s.range


def test_scaled_known_answers(make_set):
    s = make_set(3, images=np.array([-1000, -300, 400], np.float32).reshape(3, 1, 1, 1), range=(-1000, 400), unit="HU")
    np.testing.assert_array_equal(s.scaled().ravel(), np.float32([-1, 0, 1]))
    # here float32 arithmetic alone would end at 1.0001
    edge = make_set(2, images=np.array([-1999.3, -1998.7], np.float32).reshape(2, 1, 1, 1), range=(-1999.4, -1998.6))
    assert np.abs(edge.scaled()).max() <= 1


@given(image_sets(volumes=False), st.integers(1, 3))
def test_concatenate_renumbers_patients(s, copies):
    whole = concatenate([s] * copies, "whole")
    assert whole.patients == copies * s.patients
    assert len(whole) == copies * len(s)
    for i in range(copies):
        part = whole.patient[i * len(s) : (i + 1) * len(s)]
        # the same people are together as before
        np.testing.assert_array_equal(part[:, None] == part, s.patient[:, None] == s.patient)
    assert whole.attributes.dtypes.tolist() == s.attributes.dtypes.tolist()
    assert whole.role == s.role and whole.spacing == s.spacing


def test_concatenate_fills_absent_attributes_with_missing_values(make_set):
    a = make_set(4)
    b = make_set(2, attributes=pd.DataFrame({"bmi": [20.0, 30.0]}), spacing=(1.0, 1.0), role="eval")
    both = concatenate([a, b], "both")
    assert both.attributes.dtypes.astype(str).to_dict() == {
        "age": "float64", "sex": "Int64", "smoker": "boolean", "finding": "string", "licence": "string", "bmi": "float64",
    }  # fmt: skip
    assert both.attributes.iloc[4:][list(a.attributes)].isna().all(axis=None)
    assert both.attributes["bmi"].tolist()[4:] == [20, 30]
    assert both.spacing is None and both.role == "eval"
    assert both.attributes["smoker"][:4].tolist() == a.attributes["smoker"].tolist()


def test_concatenate_names_what_differs(make_set):
    a = make_set(2, name="a")
    with pytest.raises(ValueError, match="b: unit HU differs from a's 1"):
        concatenate([a, make_set(2, name="b", unit="HU")], "x")
    with pytest.raises(ValueError, match=r"b: range .* differs from a's"):
        concatenate([a, make_set(2, name="b", range=(0, 2))], "x")
    with pytest.raises(ValueError, match=r"b: shape \(1, 8, 8\) differs from a's"):
        concatenate([a, make_set(2, (1, 8, 8), name="b")], "x")


def _images(value: float) -> np.ndarray:
    return np.full((12, 1, 2, 2), value, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((12, 4, 4))}, r"tiny: images have shape \(12, 4, 4\); expected \(n, c, h, w\)"),
        ({"images": _images(np.nan)}, "12 of 12 images hold NaN"),
        ({"images": _images(np.inf)}, "12 of 12 images hold NaN or infinity"),
        ({"images": _images(2.0)}, r"span \[2, 2\] 1 but the declared range is \[0, 1\]"),
        ({"images": _images(-0.5)}, r"span \[-0.5, -0.5\]"),
        ({"range": (1.0, 1.0)}, r"range \(1.0, 1.0\) is empty"),
        ({"patient": np.arange(3)}, r"patient has shape \(3,\); expected \(12,\)"),
        ({"patient": np.arange(12.0)}, "patient has dtype float64; expected integers"),
        ({"split": np.array(["train"] * 5)}, r"split has shape \(5,\)"),
        ({"split": np.array(["dev"] * 12)}, r"split holds \['dev'\]"),
        ({"split": np.array(["training"] * 12)}, r"split holds \['training'\]"),
        ({"split": np.array(["train", "test"] * 6)}, r"patients \[0, 1, 2, 3, 4\] lie in several splits"),
        ({"role": "secret"}, "role 'secret'; expected one of"),
        ({"spacing": (1.0,)}, r"spacing \(1.0,\); expected 2 positive lengths"),
        ({"spacing": (1.0, 0.0)}, "expected 2 positive lengths"),
        ({"attributes": pd.DataFrame({"age": [1.0]})}, "attributes have 1 rows; expected 12"),
    ],
)
def test_errors_name_the_field(make_set, change, message):
    with pytest.raises(ValueError, match=message):
        make_set(**change)


def test_errors_of_derivations(make_set):
    s = make_set()
    with pytest.raises(ValueError, match=r"tiny: mask has shape \(3,\); expected \(12,\)"):
        s.select(np.array([True, False, True]))
    with pytest.raises(ValueError, match="tiny: no split 'dev'"):
        s.in_split("dev")
    for fractions in ({"train": 0.5}, {"train": 0.5, "dev": 0.5}):
        with pytest.raises(ValueError, match="summing to 1"):
            s.split_by_patient(fractions, 0)
    for role in ("public", "eval"):
        with pytest.raises(ValueError, match="a private set cannot be declared"):
            s.with_role("private").with_role(role)
    assert s.with_role("eval").role == "eval"


def test_a_set_does_not_change_under_its_owner(make_set):
    images = np.zeros((2, 1, 2, 2), np.float32)
    table = pd.DataFrame({"age": [1.0, 2.0]})
    s = make_set(2, images=images, attributes=table)
    before = s.content_hash
    images[:] = 1
    table.loc[0, "age"] = 99.0
    assert s.images.max() == 0
    assert replace(s).content_hash == before
    for key in ("images", "patient", "split"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(s, key)[:] = getattr(s, key)
    with pytest.raises(AttributeError):
        s.name = "other"


def test_short_facts(make_set):
    s = make_set(7)
    assert (len(s), s.patients, s.spatial) == (7, 4, (16, 16))
    assert repr(s) == "ImageSet('tiny', public phantom, xray, n=7, patients=4, shape=(1, 16, 16), 0..1 1)"
    assert s.data_licence == "generated"
    assert make_set(2, attributes=pd.DataFrame()).data_licence == "unknown"
    mixed = pd.DataFrame({"licence": pd.array(["CC BY 4.0", None], dtype="string")})
    assert make_set(2, attributes=mixed).data_licence == "CC BY 4.0; unknown"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modality": "mri"}, "modality 'mri'; expected one of"),
        ({"origin": "real"}, "origin 'real'; expected one of"),
        ({"origin": "phantom", "people": True}, "people=True of a phantom, for which nobody was scanned"),
        ({"origin": "scan", "people": False}, "people=False of a scan, for which somebody was"),
        ({"orientation": "RAS"}, "orientation 'RAS'; expected 2 letters, one per axis"),
    ],
)
def test_what_is_said_of_images_must_hold_together(make_set, changes, message):
    with pytest.raises(ValueError, match=f"tiny: {message}"):
        make_set(**changes)


def test_whether_people_were_scanned_follows_from_the_origin_and_is_kept(make_set, tmp_path):
    assert [make_set(origin=o).people for o in ("phantom", "scan", "synthetic", "mixed")] == [False, True, True, True]
    drawn = make_set(origin="synthetic", people=False, modality="ct", orientation="LP")
    assert not drawn.select([0]).people and not drawn.with_role("eval").people
    # nobody described it: a scan
    bare = ImageSet(images=drawn.images, patient=drawn.patient, unit="1", range=(0, 1), name="bare")
    assert (bare.origin, bare.people, bare.modality) == ("scan", True, "")
    again = ImageSet.load(drawn.save(tmp_path / "s.npz"))
    assert [getattr(again, k) for k in ("modality", "origin", "people", "orientation")] == ["ct", "synthetic", False, "LP"]
    # what is said about images is not their content
    assert replace(drawn, modality="mr", origin="phantom", orientation=None).content_hash == drawn.content_hash


def test_a_file_of_the_older_format_is_of_people(make_set, tmp_path):
    path = make_set(4).save(tmp_path / "s.npz")
    with np.load(path) as f:
        arrays = dict(f)
    meta = json.loads(str(arrays["meta"]))
    old = {k: v for k, v in meta.items() if k not in ("modality", "origin", "people", "orientation")}
    arrays["meta"] = np.array(json.dumps(old | {"format": "medsynth.ImageSet/1"}))
    np.savez(path, **arrays)
    loaded = ImageSet.load(path)
    assert (loaded.origin, loaded.people, loaded.modality) == ("scan", True, "")


def test_sets_of_several_origins_are_mixed_and_of_people_if_any_is(make_set):
    phantom, scan = make_set(2), make_set(2, seed=1, origin="scan", modality="")
    both = concatenate([phantom, scan], "both")
    assert (both.origin, both.people, both.modality) == ("mixed", True, "xray")
    drawn = make_set(2, seed=2, origin="synthetic", people=False)
    assert not concatenate([phantom, drawn], "made").people
    with pytest.raises(ValueError, match="both: sets of modality ct and xray; expected one"):
        concatenate([phantom, make_set(2, modality="ct")], "both")

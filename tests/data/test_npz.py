from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medsynth.data.npz import KNOWN, known_folder, load_all, load_npz, load_unowned, without_noncommercial
from medsynth.language.vocabulary import CT_WINDOW
from medsynth.resample import resize


def write(folder: Path, name: str, n: int = 6, **arrays: object) -> Path:
    """A file in the convention of the public sets; two images per patient; None leaves an array out."""
    rng = np.random.default_rng(0)
    base: dict[str, object] = {
        "image": rng.integers(0, 256, (n, 8, 8), dtype=np.uint8), "patient": np.arange(n, dtype=np.int32) // 2 + 100,
    }  # fmt: skip
    np.savez_compressed(folder / f"{name}.npz", **{k: v for k, v in (base | arrays).items() if v is not None})
    return folder / f"{name}.npz"


@pytest.fixture(autouse=True)
def _public_sets_are_as_written(public_sets_of):
    public_sets_of(6, 3)


def test_uint8_becomes_0_to_1(tmp_path):
    raw = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    s = load_npz(write(tmp_path, "mine", n=4, image=raw))
    np.testing.assert_allclose(s.images[:, 0], raw / 255, atol=1e-7)
    assert (s.unit, s.range, s.name, s.role) == ("1", (0.0, 1.0), "mine", "private")
    assert s.images.shape == (4, 1, 8, 8) and s.images.max() == 1
    assert s.patient.tolist() == [100, 100, 101, 101]
    assert s.split.tolist() == [""] * 4 and s.data_licence == "unknown"


def test_int16_is_hounsfield_units_in_a_window(tmp_path):
    raw = np.array([-1024, -1000, 0, 400, 350, 12], dtype=np.int16).reshape(6, 1, 1)
    path = write(tmp_path, "mine", image=raw)
    s = load_npz(path, modality="ct")
    assert (s.unit, s.range) == ("HU", CT_WINDOW)
    assert s.images.ravel().tolist() == [-1000, -1000, 0, 400, 350, 12]
    assert load_npz(path, window=(-160.0, 240.0)).images.ravel().tolist() == [-160, -160, 0, 240, 240, 12]


def test_floats_must_lie_in_0_to_1(tmp_path):
    image = np.linspace(0, 1, 6 * 64).reshape(6, 8, 8)
    s = load_npz(write(tmp_path, "mine", image=image))
    np.testing.assert_array_equal(s.images[:, 0], image.astype(np.float32))
    for bad, shown in ((image * 255, r"\[0, 255\]"), (image - 0.5, r"\[-0.5, 0.5\]")):
        with pytest.raises(ValueError, match=f"bad.npz: float images span {shown}; expected uint8"):
            load_npz(write(tmp_path, "bad", image=bad))
    image[2, 3, 4:6] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"bad.npz: 2 values of images are not finite, the first in row 2; expected uint8"):
        load_npz(write(tmp_path, "bad", image=image))
    with pytest.raises(ValueError, match=r"bad.npz: images have dtype int64; expected uint8 \(0..255\) or float"):
        load_npz(write(tmp_path, "bad", image=np.zeros((6, 8, 8), np.int64)))


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        ({"patient": np.arange(5)}, r"'patient' has shape \(5,\); expected \(6,\), one entry for each image"),
        ({"patient": np.arange(7)}, r"'patient' has shape \(7,\)"),
        ({"patient": np.zeros((6, 1))}, r"'patient' has shape \(6, 1\)"),
        ({"role": np.array(["private"] * 5)}, r"'role' has shape \(5,\)"),
        ({"split": np.array(["train"] * 7)}, r"'split' has shape \(7,\)"),
        ({"image": np.zeros((0, 8, 8), np.float32)}, "image holds no images; expected at least one"),
        ({"image": np.zeros((6, 0, 8), np.uint8)}, "image holds images of no pixels; expected at least one"),
        ({"age": np.zeros((6, 1))}, r"'age' has shape \(6, 1\); expected \(6,\), one entry for each image"),
        ({"age": np.zeros(5)}, r"'age' has shape \(5,\)"),
        ({"split": np.array("train")}, r"'split' has shape \(\)"),
    ],
)
def test_no_image_is_left_out_because_a_column_is_short(tmp_path, column, problem):
    with pytest.raises(ValueError, match=f"mine.npz: {problem}"):
        load_npz(write(tmp_path, "mine", **column))


def test_damaged_files_are_named(tmp_path):
    path = write(tmp_path, "mine")
    content = path.read_bytes()
    at = content.index(b"image.npy") + 40
    flipped = content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]
    for damaged in (content[: len(content) // 2], b"", b"text that is no archive", flipped):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"mine.npz: not a readable .npz of plain"):
            load_npz(path)


def test_volumes(tmp_path):
    volume = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 5), dtype=np.uint8)
    s = load_npz(write(tmp_path, "mine", image=None, volume=volume, label=volume))
    assert s.images.shape == (6, 1, 3, 4, 5)
    # masks are no column of the table
    assert s.attributes.columns.tolist() == ["licence"]


def test_colour_images_are_not_taken_for_volumes(tmp_path):
    for key, shape in (("image", (6, 8, 8, 3)), ("volume", (6, 8, 8)), ("image", (6, 64))):
        path = write(tmp_path, "rgb", **({"image": None} | {key: np.zeros(shape, np.uint8)}))
        with pytest.raises(ValueError, match=rf"rgb.npz: {key} has shape .*; expected \(n, "):
            load_npz(path)


def test_roles_by_row(tmp_path):
    role = np.array(["public", "public", "private", "private", "eval", "eval"])
    split = np.array(["train", "train", "train", "train", "val", "val"])
    subtype = np.array([0, 1, 2, 1, 0, -1])
    path = write(tmp_path, "cxr_kermany_128", role=role, split=split, subtype=subtype, label=np.arange(6))
    rows = {r: load_npz(path, role=r) for r in ("public", "private", "eval")}
    assert {r: s.patient.tolist() for r, s in rows.items()} == {"public": [100] * 2, "private": [101] * 2, "eval": [102] * 2}
    assert all(s.role == r for r, s in rows.items())
    assert rows["private"].attributes["finding"].tolist() == ["pneumonia_viral", "pneumonia_bacterial"]
    assert rows["eval"].attributes["finding"].isna().tolist() == [False, True]
    assert rows["eval"].split.tolist() == ["val", "val"]
    assert rows["private"].data_licence == "CC BY 4.0"
    assert "role" not in rows["public"].attributes and "split" not in rows["public"].attributes
    with pytest.raises(ValueError, match=r"all.npz: no row plays the role 'public'; found \['private'\]"):
        load_npz(write(tmp_path, "all", role=np.array(["private"] * 6)), role="public")


def test_a_private_file_is_no_public_file(tmp_path):
    for name in ("ct_tcia_hu_256", "mri_acdc_3d", "a_file_nobody_described"):
        path = write(tmp_path, name, split=np.array(["train", "train", "val", "val", "test", "test"]))
        with pytest.raises(ValueError, match=f"{name}.npz: these patients are private"):
            load_npz(path, role="public")
        assert len(load_npz(path, role="private")) == 6
        # patients that a private model may not have seen
        assert load_npz(path, role="eval").split.tolist() == ["val", "val", "test", "test"]
    path = write(tmp_path, "cxr_nih1000_64", label=np.array([0, 1] * 3))
    s = load_npz(path, role="public")
    assert s.role == "public" and s.attributes["finding"].tolist() == ["none", "abnormal"] * 3
    assert len(load_npz(path, role="eval")) == 6


def test_rows_without_noncommercial_licences(tmp_path):
    licence = np.array(["CC BY 3.0", "CC BY-NC-SA", "CC BY-NC-SA 4.0", "CC BY-SA", "CC BY 4.0", "CC BY-NC 4.0"])
    s = load_npz(write(tmp_path, "cxr_covid_256", license=licence, label=np.zeros(6)), role="public")
    assert s.attributes["licence"].tolist() == licence.tolist()
    kept = without_noncommercial(s)
    assert kept.attributes["licence"].tolist() == ["CC BY 3.0", "CC BY-SA", "CC BY 4.0"]
    np.testing.assert_array_equal(kept.images, s.images[[0, 3, 4]])
    # what is not known is not taken for free
    missing = s.with_images(s.images, attributes=s.attributes.assign(licence=s.attributes["licence"].mask(licence == "CC BY-SA")))
    assert without_noncommercial(missing).attributes["licence"].tolist() == ["CC BY 3.0", "CC BY 4.0"]


def test_columns_and_missing_values(tmp_path):
    s = load_npz(
        write(
            tmp_path, "mine", sex=np.array(["M", "F", "", "M", "?", "F"]), age=np.array([50, np.nan, 3, 4, 5, 6]),
            kvp=np.arange(6), original_hw=np.zeros((6, 2)), year=np.array(2020), split=np.array(["train"] * 4 + ["test"] * 2),
        )
    )  # fmt: skip
    # a size per image and a word on all are no column of the table
    assert s.attributes.dtypes.astype(str).to_dict() == {"sex": "Int64", "age": "float64", "kvp": "Int64", "licence": "string"}
    assert s.attributes["sex"].isna().tolist() == [False, False, True, False, True, False]
    assert s.attributes["sex"].dropna().tolist() == [1, 0, 1, 0]
    assert s.split.tolist() == ["train"] * 4 + ["test"] * 2


def test_sex_given_as_numbers_is_kept(tmp_path):
    s = load_npz(write(tmp_path, "mine", sex=np.array([1, 0, 0, 1, 1, 0])))
    assert s.attributes["sex"].tolist() == [1, 0, 0, 1, 1, 0]


def test_a_known_name_without_its_label_column_has_no_finding(tmp_path):
    assert "finding" not in load_npz(write(tmp_path, "cxr_kermany_128")).attributes


def test_files_written_by_save(tmp_path, make_set):
    private = make_set(role="private").save(tmp_path / "private.npz")
    public = make_set(role="public").save(tmp_path / "public.npz")
    with pytest.raises(ValueError, match="tiny: declared private; a public stage must use another set"):
        load_npz(private, role="public")
    assert load_npz(private).content_hash == make_set().content_hash
    assert load_npz(private, role="eval").role == "private"
    assert [load_npz(public, role=r).role for r in ("public", "private", "eval")] == ["public", "private", "eval"]


def test_errors_say_what_to_do(tmp_path):
    path = write(tmp_path, "cxr_kermany_128")
    with pytest.raises(FileNotFoundError, match=r"cxr_kermani_128.npz: no such file; did you mean 'cxr_kermany_128.npz'\?"):
        load_npz(tmp_path / "cxr_kermani_128.npz")
    with pytest.raises(FileNotFoundError, match=r"x.npz: no such file; there are none$"):
        load_npz(tmp_path / "nowhere" / "x.npz")
    with pytest.raises(ValueError, match=r"cxr_kermany_128.npz: role 'open'; expected one of"):
        load_npz(path, role="open")
    for left_out in ("image", "patient"):
        with pytest.raises(ValueError, match=r"odd.npz: arrays \[.*\]; expected 'image' or 'volume', and 'patient'"):
            load_npz(write(tmp_path, "odd", **{left_out: None}))


@pytest.mark.parametrize(("images", "patients"), [(7, 3), (6, 2)])
def test_another_set_under_the_name_of_a_public_one_is_named(tmp_path, public_sets_of, images, patients):
    public_sets_of(images, patients)
    path = write(tmp_path, "cxr_nih1000_64")
    told = rf"nih1000_64\.npz: is called like the public set of {images} images of {patients} patients, but holds 6 of 3; rename"
    for loader in (load_npz, load_all):
        with pytest.raises(ValueError, match=told):
            loader(path, role="public")
    with pytest.raises(ValueError, match=told):
        load_unowned(path)


def test_the_registry_is_of_one_piece():
    assert all(k.role in ("public", "private", "by row") for k in KNOWN.values())
    # the roles table: these two files hold the patients at stake
    assert {name for name, k in KNOWN.items() if k.role == "private"} == {"ct_tcia_hu_256", "mri_acdc_3d"}


def test_role_survives_resizing(tmp_path):
    assert resize(load_npz(write(tmp_path, "mine")), 4).role == "private"


RADIOGRAPHS = np.random.default_rng(0).integers(0, 4081, (6, 8, 8)).astype(np.int16)


@pytest.mark.parametrize("modality", ["xray", "mr", "pet"])
def test_int16_is_hounsfield_of_ct_alone(tmp_path, modality):
    quiet = np.full((6, 8, 8), 40, np.int16)
    quiet[:, :4] = -1000
    with pytest.raises(ValueError, match=rf"mine\.npz: images of {modality} in int16, .*; scale them to uint8"):
        load_npz(write(tmp_path, "mine", image=quiet), modality=modality)
    assert load_npz(write(tmp_path, "mine", image=quiet), modality="ct").unit == "HU"


def test_int16_of_which_much_would_be_clipped_is_asked_about(tmp_path):
    with pytest.raises(ValueError, match=r"mine\.npz: int16 is read as HU, but .* % would be clipped to \[-1000, 400\] HU"):
        load_npz(write(tmp_path, "mine", image=RADIOGRAPHS))
    # codes of CT with an offset: no air, and everything white
    with pytest.raises(ValueError, match="subtract the offset if these are codes"):
        load_npz(write(tmp_path, "mine", image=RADIOGRAPHS), modality="ct")
    # a window that somebody gave is meant
    assert load_npz(write(tmp_path, "mine", image=RADIOGRAPHS), window=(0.0, 2000.0)).range == (0.0, 2000.0)
    # real CT: a quarter outside the field of view, and some bone
    ct = np.full((6, 8, 8), -50, np.int16)
    ct[:, :2], ct[:, 7, 7] = -1024, 900
    assert load_npz(write(tmp_path, "mine", image=ct), modality="ct").images.min() == -1000
    with pytest.raises(ValueError, match=r"say that it is CT \(--modality ct\), or give the window"):
        load_npz(write(tmp_path, "mine", image=ct))


HOUNSFIELD = np.linspace(-1024, 300, 384).astype(np.int16).reshape(6, 8, 8)


@pytest.mark.parametrize(
    ("image", "modality", "found"),
    [
        (RADIOGRAPHS // 16, "", "no pixel is below 0 HU, where CT shows air and fat; subtract the offset if these are codes"),
        (RADIOGRAPHS // 16, "ct", "no pixel is below 0 HU, .*"),
        # eight bits around zero, which nobody called CT
        (
            RADIOGRAPHS // 16 - 128,
            "",
            r"hardly a pixel is below -500 HU, where CT shows air; say that it is CT \(--modality ct\)",
        ),
        (HOUNSFIELD - 1024, "ct", "0 % of the pixels are above 0 HU, where .*; add the offset if it was subtracted twice"),
    ],
)
def test_int16_that_is_not_as_ct_is_asked_about(tmp_path, image, modality, found):
    with pytest.raises(ValueError, match=rf"mine\.npz: int16 is read as HU, but {found}; other images belong in uint8 or float"):
        load_npz(write(tmp_path, "mine", image=image), modality=modality)


def test_the_whole_set_says_whether_it_is_ct(tmp_path):
    # padding outside a scanner's circle, a slice of air and a slice of bone
    image = HOUNSFIELD.copy()
    image[:, :2], image[0], image[1, 0] = -3024, -1000, 700
    assert load_npz(write(tmp_path, "mine", image=image), modality="ct").range == CT_WINDOW
    assert load_npz(write(tmp_path, "mine", image=HOUNSFIELD // 2), modality="ct").unit == "HU"
    # soft tissue between 0 and 80, by whoever gave that window
    assert load_npz(write(tmp_path, "mine", image=RADIOGRAPHS // 51), modality="ct", window=(0.0, 80.0)).range == (0.0, 80.0)


@pytest.mark.parametrize("image", [np.zeros((6, 8, 8), np.uint8), np.zeros((6, 8, 8), np.float32)])
def test_a_window_is_of_hounsfield_units(tmp_path, image):
    with pytest.raises(
        ValueError, match=rf"mine\.npz: a window clips Hounsfield units, .* dtype {image.dtype}; leave out --window"
    ):
        load_npz(write(tmp_path, "mine", image=image), window=(-160.0, 240.0))


@pytest.mark.parametrize("word", ["Private", "privat", ""])
def test_a_role_that_is_none_is_named(tmp_path, word):
    path = write(tmp_path, "mine", role=np.array(["private"] * 5 + [word]))
    for loader in (load_npz, load_all):
        with pytest.raises(ValueError, match=rf"mine\.npz: role holds \['{word}'\]; expected \('public', 'private', 'eval'\)"):
            loader(path, role="private")


def test_a_file_of_another_modality_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"cxr_kermany_128\.npz: holds xray, not ct"):
        load_npz(write(tmp_path, "cxr_kermany_128", subtype=np.zeros(6, int)), modality="ct")
    assert load_npz(write(tmp_path, "mine"), modality="pet").modality == "pet"
    assert load_npz(write(tmp_path, "mine")).modality == ""


def test_a_folder_of_all_known_files_is_one_or_says_what_it_lacks(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone: no such folder; expected one with cxr_kermany_128\.npz, .*README"):
        known_folder(tmp_path / "gone")
    for name in KNOWN:
        write(tmp_path, name)
    assert known_folder(str(tmp_path)) == tmp_path
    for name in ("ct_tcia_hu_256", "cxr_covid_256"):
        (tmp_path / f"{name}.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks cxr_covid_256\.npz, ct_tcia_hu_256\.npz; put them there"):
        known_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        known_folder(tmp_path / "mri_acdc_3d.npz")

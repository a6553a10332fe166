from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medsynth.data.folder import Values, load, load_candidates
from medsynth.data.imagefile import Encoding, UnreadableError, as_read, read
from medsynth.data.patients import natural, read_patients
from medsynth.data.release_folder import IMAGES, MANIFEST, read_manifest, write_manifest


def png(path: Path, codes: np.ndarray) -> Path:
    Image.fromarray(codes).save(path)
    return path


def nifti(path: Path, array: np.ndarray, spacing: tuple[float, ...] = (0.7, 0.8, 2.5), affine: np.ndarray | None = None) -> Path:
    """A file as another program writes it: axes x, y(, z)."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_zooms(spacing[: array.ndim])
    image.to_filename(path)
    return path


def grey(folder: Path, n: int = 3, depth: type = np.uint8, side: int = 6) -> np.ndarray:
    codes = np.random.default_rng(0).integers(0, np.iinfo(depth).max, (n, side, side + 1), dtype=depth, endpoint=True)
    for i, image in enumerate(codes):
        png(folder / f"scan{i + 8}.png", image)
    return codes


@pytest.mark.parametrize(("depth", "files"), [(np.uint8, "png8"), (np.uint16, "png16")])
def test_png_folders(tmp_path, depth, files):
    codes = grey(tmp_path, depth=depth)
    for clutter in (".DS_Store", "._scan8.png"):
        (tmp_path / clutter).write_bytes(b"\x00\x05\x16\x07 notes of an operating system")
    s = load(tmp_path)
    np.testing.assert_array_equal(s.images[:, 0], codes)
    assert (s.unit, s.range, s.spacing, s.role, s.name) == (
        "1",
        (0.0, float(np.iinfo(depth).max)),
        None,
        "private",
        tmp_path.name,
    )
    # 10 comes after 9
    assert s.attributes["file"].tolist() == ["scan8.png", "scan9.png", "scan10.png"]
    assert s.patient.tolist() == [0, 1, 2]
    assert s.orientation is None and Encoding.for_images(s).files == files


def test_a_hidden_image_is_an_image(tmp_path):
    grey(tmp_path)
    (tmp_path / "scan9.png").rename(tmp_path / ".scan9.png")
    assert load(tmp_path).attributes["file"].tolist() == [".scan9.png", "scan8.png", "scan10.png"]


def test_a_range_says_what_the_codes_of_a_png_stand_for(tmp_path):
    codes = grey(tmp_path, depth=np.uint16)
    s = load(tmp_path, values=Values((-1000.0, 400.0), "HU"), role="eval")
    np.testing.assert_allclose(s.images[:, 0], codes / 65535 * 1400 - 1000, atol=1e-3)
    assert (s.unit, s.range, s.role) == ("HU", (-1000.0, 400.0), "eval")


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("RGB", "a PNG in RGB; expected grey: convert it to grey"),
        ("RGBA", "a PNG in RGB with alpha"),
        ("LA", "a PNG in grey with alpha"),
        ("P", "a PNG in palette"),
        ("1", "a PNG of 1 bit; expected 8 or 16 bit grey"),
    ],
)
def test_colour_and_transparency_are_refused(tmp_path, mode, message):
    grey(tmp_path, 1)
    Image.new("L", (7, 6)).convert(mode).save(tmp_path / "z.png")
    with pytest.raises(ValueError, match=rf"z\.png: {message}"):
        load_candidates(tmp_path)


def test_hidden_transparency_and_films_are_refused(tmp_path):
    Image.new("L", (7, 6)).save(tmp_path / "a.png", transparency=3)
    with pytest.raises(ValueError, match="a PNG with a transparent grey value; expected one opaque grey image"):
        read(tmp_path / "a.png")
    Image.new("L", (7, 6)).save(tmp_path / "a.png", save_all=True, append_images=[Image.new("L", (7, 6), 9)])
    with pytest.raises(ValueError, match="an animated PNG"):
        read(tmp_path / "a.png")


def test_nifti_axes_spacing_and_orientation(tmp_path):
    volume = np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    nifti(tmp_path / "a.nii.gz", volume, affine=np.diag([-1.0, -1, 1, 1]))
    nifti(tmp_path / "b.nii", volume[:, ::-1], affine=np.diag([-1.0, -1, 1, 1]))
    s = load(tmp_path)
    assert s.images.shape == (2, 1, 3, 5, 4)
    np.testing.assert_array_equal(s.images[0, 0], volume.transpose(2, 1, 0))
    # the header's float32 0.7 is 0.7
    assert (s.range, s.spacing) == ((0.0, 255.0), (2.5, 0.8, 0.7))
    assert s.orientation == "LPS"


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 1, 1)])
def test_a_nifti_of_one_slice_is_an_image(tmp_path, shape):
    image = np.arange(20, dtype=np.uint16).reshape(shape) * 3000
    nifti(tmp_path / "a.nii", image, (0.5, 0.6, 9.0, 1.0))
    found = load(tmp_path)
    np.testing.assert_array_equal(found.images[0, 0], image.reshape(4, 5).T)
    assert (found.range, found.spacing, found.orientation) == ((0.0, 65535.0), (0.6, 0.5), None)


def test_metres_and_missing_spacing(tmp_path):
    image = nib.Nifti1Image(np.zeros((4, 5), np.uint8), None)
    image.header.set_zooms((0.001, 0.002))
    image.header.set_xyzt_units("meter")
    image.to_filename(tmp_path / "a.nii")
    assert load(tmp_path).spacing == (2.0, 1.0)
    image.header["pixdim"][1:3] = np.inf
    image.to_filename(tmp_path / "a.nii")
    assert load(tmp_path).spacing is None


def test_byte_order_does_not_matter(tmp_path):
    image = np.arange(20, dtype=">u2").reshape(4, 5) * np.array(3000, ">u2")
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.uint16)
    nib.Nifti1Image(image, None, header).to_filename(tmp_path / "a.nii")
    assert (tmp_path / "a.nii").read_bytes()[:4] == (348).to_bytes(4)
    nib.Nifti2Image(image.astype("<u2"), None).to_filename(tmp_path / "b.nii")
    s = load(tmp_path)
    np.testing.assert_array_equal(s.images[:, 0], [image.T, image.T])
    assert s.range == (0.0, 65535.0)


def test_values_of_nifti_need_a_range(tmp_path):
    hu = np.linspace(-1024, 3071, 20).astype(np.int16).reshape(4, 5)
    nifti(tmp_path / "a.nii", hu)
    with pytest.raises(
        ValueError, match=r"a\.nii: pixels of type int16 .* give --range LOW HIGH, for instance --range -1024 3071"
    ):
        load(tmp_path)
    s = load(tmp_path, values=Values((-1024, 3071), "HU"))
    np.testing.assert_array_equal(s.images[0, 0], hu.T)
    with pytest.raises(
        ValueError, match=r"a\.nii: values span \[-1024, 3071\], outside the range \[-1000, 400\]; .*--window LOW HIGH"
    ):
        load(tmp_path, values=Values((-1000, 400), "HU"))
    s = load(tmp_path, values=Values((-1000, 400), "HU", clip=True))
    np.testing.assert_array_equal(s.images[0, 0], np.clip(hu.T, -1000, 400))


def test_a_nifti_slope_is_applied(tmp_path):
    image = nib.Nifti1Image(np.arange(20, dtype=np.uint8).reshape(4, 5), None)
    raw = bytearray(image.to_bytes())
    raw[112:120] = struct.pack("<ff", 2.0, -7.0)
    (tmp_path / "a.nii").write_bytes(raw)
    # scaled values are no longer bounded by the type
    with pytest.raises(ValueError, match="give --range"):
        load(tmp_path)
    s = load(tmp_path, values=Values((-7, 31)))
    np.testing.assert_array_equal(s.images[0, 0], np.arange(20).reshape(4, 5).T * 2.0 - 7)


@pytest.mark.parametrize("array", [np.zeros((4, 5, 3, 2), np.uint8), np.zeros((4, 5), np.complex64)])
def test_other_niftis_are_refused(tmp_path, array):
    nifti(tmp_path / "a.nii", array, (1.0, 1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"a\.nii: (shape \(4, 5, 3, 2\); expected one image|pixels of type complex64)"):
        load_candidates(tmp_path)


def test_damaged_files_are_errors_or_listed(tmp_path):
    grey(tmp_path, 3)
    whole = (tmp_path / "scan9.png").read_bytes()
    (tmp_path / "scan9.png").write_bytes(whole[:-1])
    with pytest.raises(UnreadableError, match=r"scan9\.png: cannot be read"):
        load(tmp_path)
    found, refused = load_candidates(tmp_path)
    assert refused == {"scan9.png": "cannot be read"}
    assert found.patient.tolist() == [0, 2] and found.attributes["file"].tolist() == ["scan8.png", "scan10.png"]
    (tmp_path / "scan8.png").write_bytes(b"")
    (tmp_path / "scan10.png").write_bytes(b"not an image, but long enough to look at")
    with pytest.raises(ValueError, match=r"none of its 3 files can be read; the first is scan8\.png"):
        load_candidates(tmp_path)


def test_nan_in_a_nifti(tmp_path):
    good = np.random.default_rng(0).random((4, 5), dtype=np.float32)
    bad = good.copy()
    bad[1, 1] = np.nan
    nifti(tmp_path / "a.nii", bad)
    nifti(tmp_path / "b.nii", good)
    values = Values((0, 1))
    with pytest.raises(ValueError, match=r"a\.nii: holds NaN or infinity; remove or repair it first"):
        load(tmp_path, values=values)
    found, refused = load_candidates(tmp_path, values=values)
    assert refused == {"a.nii": "not finite"} and found.attributes["file"].tolist() == ["b.nii"]


@given(position=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), suffix=st.sampled_from([".png", ".nii", ".nii.gz"]))
def test_any_changed_byte_gives_an_image_or_an_error_of_ours(tmp_path_factory, position, flip, suffix):
    folder = tmp_path_factory.mktemp("bytes")
    codes = np.random.default_rng(0).integers(0, 255, (6, 7), dtype=np.uint8)
    path = png(folder / "a.png", codes) if suffix == ".png" else nifti(folder / f"a{suffix}", codes)
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= flip
    path.write_bytes(content)
    try:
        read(path)
    except ValueError as error:
        assert str(error).startswith(path.name)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (lambda f: png(f / "b.png", np.zeros((6, 7), np.uint16)), r"b\.png: files png16, but a\.png has png8; convert them"),
        (lambda f: nifti(f / "b.nii", np.zeros((7, 6), np.uint8)), r"b\.nii: files nifti16, but a\.png has png8"),
        (lambda f: png(f / "b.png", np.zeros((6, 8), np.uint8)), r"b\.png: shape \(6, 8\), but a\.png has \(6, 7\); resample"),
        (
            lambda f: (f / "b.txt").write_text("x"),
            r"b\.txt: no image file; expected nothing but .* what is not read is not compared",
        ),
        (lambda f: (f / "b.jpg").write_text("x"), r"b\.jpg: no image file"),
        (lambda f: (f / "b.dcm").write_text("x"), r"b\.dcm: DICOM, which is not read yet"),
        (lambda f: (f / "b").mkdir(), r"b: a folder"),
        (lambda f: (f / "b.png").mkdir(), r"b\.png: a folder"),
    ],
)
def test_the_first_odd_file_is_named(tmp_path, odd, message):
    png(tmp_path / "a.png", np.zeros((6, 7), np.uint8))
    png(tmp_path / "c.png", np.zeros((6, 7), np.uint8))
    odd(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_candidates(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacing": (0.7, 0.9, 2.5)}, r"b\.nii: spacing \(2.5, 0.9, 0.7\), but a\.nii has \(2.5, 0.8, 0.7\); resample"),
        ({"affine": np.diag([-1.0, 1, 1, 1])}, r"b\.nii: orientation LAS, but a\.nii has RAS; turn"),
        (
            {"array": np.zeros((4, 5, 3), np.uint16)},
            r"b\.nii: range \(0.0, 65535.0\), but a\.nii has \(0.0, 255.0\); give --range",
        ),
    ],
)
def test_volumes_agree_in_what_their_headers_say(tmp_path, changes, message):
    plain = {"array": np.zeros((4, 5, 3), np.uint8), "affine": np.eye(4)}
    nifti(tmp_path / "a.nii", **plain)
    nifti(tmp_path / "b.nii", **(plain | changes))
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_patients_by_csv(tmp_path):
    grey(tmp_path)
    table = tmp_path / "patients.csv"
    # as a spreadsheet writes it, and in the folder itself
    table.write_text("\ufefffile,patient\r\nscan8.png,Z9\r\n\r\nscan10.png,Z10\r\nscan9.png,Z9\r\n", encoding="utf-8")
    s = load(tmp_path, patients=table)
    assert s.patient.tolist() == [0, 0, 1]
    assert s.attributes["patient_id"].tolist() == ["Z9", "Z9", "Z10"]
    assert s.patients == 2


def test_patient_tables_spell_umlauts_as_they_like(tmp_path):
    one, two = "M\u00fcller.png", "Mu\u0308ller.png"
    table = tmp_path / "p.csv"
    table.write_text(f"file,patient\n{one},7\n", encoding="utf-8")
    assert read_patients(table, [two])[0] == {two: "7"}
    # where a folder holds both, each is itself
    table.write_text(f"file,patient\n{one},7\n{two},8\n", encoding="utf-8")
    assert read_patients(table, [one, two])[0] == {one: "7", two: "8"}


@pytest.mark.parametrize(
    ("one", "other"), [("p00", "P00"), ("p00", "p0"), ("7", "007"), ("7", "7.0"), ("p 1", "p1"), ("a-1", "a_1")]
)
def test_two_spellings_of_one_patient_are_refused(tmp_path, one, other):
    (tmp_path / "p.csv").write_text(f"file,patient\na.png,{one}\nb.png,{other}\n")
    with pytest.raises(ValueError, match="differ in blanks, case, signs or leading zeros alone; if they are one person"):
        read_patients(tmp_path / "p.csv", ["a.png", "b.png"])


def test_patients_that_differ_by_more_than_spelling_are_two(tmp_path):
    (tmp_path / "p.csv").write_text("file,patient\na.png,p10\nb.png,p1\nc.png,p100\nd.png,q1\n")
    assert len(set(read_patients(tmp_path / "p.csv", ["a.png", "b.png", "c.png", "d.png"])[0].values())) == 4


def test_a_patient_table_says_what_else_is_known_of_each_file(tmp_path):
    (tmp_path / "p.csv").write_text("file,patient,phase,lvedv,sex\nb.png,2,ES,,F\na.png,1,ED,140.5,m\n")
    people, further = read_patients(tmp_path / "p.csv", ["a.png", "b.png"])
    assert people == {"a.png": "1", "b.png": "2"} and further["phase"].tolist() == [0, 1] and further["sex"].tolist() == [1, 0]
    assert further["lvedv"].iloc[0] == 140.5 and further["lvedv"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"p\.csv: first line is ''; expected file,patient"),
        ("a.png,1\nb.png,2\n", r"p\.csv: first line is 'a.png,1'; expected file,patient"),
        ("file;patient\na.png;1\n", r"first line is 'file;patient'"),
        ("file,patient\na.png,1\n", r"no line for b\.png \(1 of 2 files have none\); add its patient"),
        ("file,patient\na.png,1\nb.png,2\nc.png,2\n", r"p\.csv, line 4: no file 'c\.png' in the folder"),
        ("file,patient\na.png,1\nb.png,2\na.png,1\n", r"line 4: a\.png has two lines"),
        ("file,patient\na.png,1\nb.png,\n", r"line 3: b\.png has no patient"),
        ("file,patient\na.png,1\nb.png\n", r"line 3: b\.png has no patient"),
        ("file,patient\na.png,1,2\nb.png,2\n", r"line 2: a\.png has too many columns"),
        ("file,patient,lved\na.png,1,2\nb.png,2,\n", r"p\.csv: unknown column 'lved'; did you mean 'lvedv'\?"),
        ("file,patient,lvedv\na.png,1,2000\nb.png,2,\n", r"column 'lvedv' holds 2000\.0; expected 0 to 1000 ml"),
        ("file,patient,phase\na.png,1,ED\nb.png,2,XY\n", r"column 'phase' holds xy; expected ED or ES, or 0"),
        ("file,patient\na.png,\xff\n", r"p\.csv: not a CSV file in UTF-8"),
    ],
)
def test_bad_patient_tables(tmp_path, text, message):
    (tmp_path / "p.csv").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        read_patients(tmp_path / "p.csv", ["a.png", "b.png"])


def test_where_there_is_nothing_to_load(tmp_path, make_set):
    with pytest.raises(FileNotFoundError, match="gone: no such file or folder"):
        load(tmp_path / "gone")
    with pytest.raises(ValueError, match="holds no images"):
        load(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"a\.txt: expected an \.npz file, or a folder"):
        load(tmp_path / "a.txt")
    path = make_set().save(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"a\.npz: an \.npz file has patient numbers of its own; leave out p\.csv"):
        load(path, patients=tmp_path / "p.csv")
    assert load(path).content_hash == make_set().content_hash


def test_the_window_reaches_npz_files(tmp_path):
    image = np.array([-1024, 0, 300], np.int16).reshape(3, 1, 1)
    np.savez(tmp_path / "ct.npz", image=image, patient=np.arange(3))
    assert load(tmp_path / "ct.npz", modality="ct").range == (-1000.0, 400.0)
    found = load(tmp_path / "ct.npz", values=Values((-160, 240), "HU", clip=True))
    assert found.images.ravel().tolist() == [-160, 0, 240] and found.range == (-160.0, 240.0)


@pytest.mark.parametrize("bad", [((1, 0), False), ((0, float("nan")), False), ((float("-inf"), 1), False), (None, True)])
def test_bad_values(bad):
    with pytest.raises(ValueError, match=r"expected two finite numbers|--window LOW HIGH"):
        Values(bad[0], clip=bad[1])


@given(st.lists(st.text("0159aA.²", max_size=5), max_size=6))
def test_natural_order_is_total_and_by_number(names):
    assert natural(natural(names)[::-1]) == natural(names) and sorted(natural(names)) == sorted(names)
    assert natural(["b2", "b10", "B1", "10", "9"]) == ["9", "10", "B1", "b2", "b10"]


@given(
    files=st.sampled_from(["png8", "png16", "nifti16"]),
    low=st.sampled_from([0.0, -1000.0, -0.37]),
    width=st.sampled_from([1.0, 255.0, 1400.0, 65535.0, 0.003]),
    seed=st.integers(0, 10),
)
def test_codes_come_back_and_values_move_by_half_a_step(tmp_path_factory, files, low, width, seed):
    folder = tmp_path_factory.mktemp("codes")
    step = width / (255 if files == "png8" else 65535)
    encoding = Encoding(files, "1", (low, low + width), step, (5, 6))
    rng = np.random.default_rng(seed)
    values = (low + width * rng.random((5, 6))).astype(np.float32)
    values[0, :2] = low, low + width
    path = folder / f"x{encoding.suffix}"
    path.write_bytes(encoding.to_bytes(values))
    back = encoding.read(path)
    assert back.dtype == np.float32 and back.min() >= np.float32(low) and back.max() <= np.float32(low + width)
    assert np.abs(back.astype(np.float64) - values).max() <= step / 2 + 1e-4 * step + 2 * np.spacing(np.float32(abs(low) + width))
    # what has been a file once is the same file again
    assert encoding.to_bytes(back) == path.read_bytes()


def test_a_set_as_its_files_hold_it(make_set):
    images = make_set(3, (1, 5, 6))
    read = as_read(images)
    moved = np.abs(read.images.astype(np.float64) - images.images)
    assert read.images.dtype == np.float32 and 0 < moved.max() <= (images.range[1] - images.range[0]) / 65535 / 2 * 1.01
    np.testing.assert_array_equal(as_read(read).images, read.images)


def test_codes_outside_the_range_are_its_ends():
    encoding = Encoding("png8", "1", (0.0, 1.0), 1 / 255, (1, 3))
    assert encoding.codes(np.array([[-1.0, 0.5, 7.0]])).tolist() == [[0, 128, 255]]


def test_files_hold_pixels_and_nothing_else(tmp_path):
    values = np.random.default_rng(0).random((5, 6), dtype=np.float32)
    for files in ("png8", "png16"):
        content = Encoding(files, "1", (0.0, 1.0), 1 / 255, (5, 6)).to_bytes(values)
        kinds, at = [], 8
        while at < len(content):
            (length,) = struct.unpack(">I", content[at : at + 4])
            kinds.append(content[at + 4 : at + 8])
            at += 12 + length
        assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}
    content = Encoding("nifti16", "1", (0.0, 1.0), 1 / 65535, (5, 6), (0.5, 0.7), "LP").to_bytes(values)
    # flags (no name, no comment), time, operating system
    assert content[3] == 0 and content[4:8] == bytes(4) and content[9] == 255
    header = nib.Nifti1Header.from_fileobj(__import__("io").BytesIO(gzip.decompress(content)))
    texts = ("descrip", "aux_file", "intent_name", "db_name", "data_type")
    assert all(not header[t].item() for t in texts)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR", None])
def test_other_programs_read_the_same_volume(tmp_path, orientation):
    values = np.random.default_rng(0).uniform(-1000, 400, (3, 5, 4)).astype(np.float32)
    encoding = Encoding("nifti16", "HU", (-1000.0, 400.0), 1400 / 65535, (3, 5, 4), (2.5, 0.8, 0.7), orientation)
    (tmp_path / "a.nii.gz").write_bytes(encoding.to_bytes(values))
    image = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(image.get_fdata().T, values, atol=0.02)
    np.testing.assert_allclose(image.header.get_zooms(), (0.7, 0.8, 2.5), rtol=1e-6)
    found = load(tmp_path, values=Values((-1001, 401), "HU"))
    assert (found.orientation, found.spacing) == (orientation, (2.5, 0.8, 0.7))


def test_whole_numbers_stay_whole_in_nifti(make_set):
    hu = np.random.default_rng(0).integers(-1000, 400, (2, 1, 4, 4)).astype(np.float32)
    ct = make_set(2, images=hu, unit="HU", range=(-1000.0, 400.0))
    from_nifti = replace(ct, attributes=ct.attributes.assign(file=["a.nii", "b.nii"]))
    encoding = Encoding.for_images(from_nifti)
    assert encoding.step == 1
    np.testing.assert_array_equal(encoding.values(encoding.codes(hu)), hu)
    assert Encoding.for_images(from_nifti.with_images(hu * 0.5)).step == 1400 / 65535
    assert Encoding.for_images(ct).files == "png16"
    eight = make_set(2, images=np.arange(128).reshape(2, 1, 8, 8) / 255)
    assert Encoding.for_images(eight).files == "png8" and Encoding.for_images(make_set(2)).files == "png16"
    assert Encoding.for_images(make_set(2, shape=(1, 2, 4, 4))).files == "nifti16"
    with pytest.raises(ValueError, match="tiny: 3 channels; only images of one channel"):
        Encoding.for_images(make_set(2, shape=(3, 4, 4)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": "jpeg"}, "files 'jpeg'; expected"),
        ({"range": (1.0, 0.0)}, "expected low < high"),
        ({"range": (0.0, float("nan"))}, "expected low < high"),
        ({"step": 0.0}, "a positive step"),
        ({"shape": (4,)}, r"expected \(h, w\)"),
        ({"shape": (3, 4, 4)}, r"expected \(h, w\)$"),
        ({"orientation": "RAS"}, "orientation 'RAS'; expected one of R or L"),
        ({"orientation": "RL"}, "orientation 'RL'"),
        ({"orientation": "RX"}, "orientation 'RX'"),
        ({"files": "nifti16", "shape": (1, 4, 4)}, "a volume of one slice; make it an image"),
    ],
)
def test_encodings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        Encoding(**({"files": "png8", "unit": "1", "range": (0.0, 1.0), "step": 0.1, "shape": (4, 4)} | changes))


@pytest.fixture
def release(tmp_path) -> Path:
    encoding = Encoding("png16", "SUV", (0.0, 20.0), 20 / 65535, (5, 6), (1.5, 1.5), None)
    (tmp_path / IMAGES).mkdir()
    for i in range(3):
        values = np.random.default_rng(i).uniform(0, 20, (5, 6)).astype(np.float32)
        (tmp_path / IMAGES / f"{i}.png").write_bytes(encoding.to_bytes(values))
    write_manifest(tmp_path, encoding)
    return tmp_path


def test_a_release_is_loaded_by_its_manifest(release):
    found = load(release, role="public")
    assert (found.unit, found.range, found.spacing) == ("SUV", (0.0, 20.0), (1.5, 1.5))
    np.testing.assert_allclose(found.images[1, 0], np.random.default_rng(1).uniform(0, 20, (5, 6)), atol=2e-4)
    assert Encoding.for_images(found).files == "png16"
    assert (found.role, found.origin, found.people) == ("public", "synthetic", True)
    encoding = read_manifest(release)
    assert encoding.shape == (5, 6) and encoding.step == 20 / 65535
    (release / IMAGES / "1.png").write_bytes(b"")
    assert load_candidates(release)[1] == {"1.png": "cannot be read"}
    with pytest.raises(UnreadableError, match=r"1\.png"):
        load(release)
    for name in ("0.png", "2.png"):
        (release / IMAGES / name).write_bytes(b"")
    assert load_candidates(release)[0].images.shape == (0, 1, 5, 6)
    with pytest.raises(ValueError, match=r"a released folder names no patients; leave out p\.csv"):
        load(release, patients="p.csv")


def test_releases_that_do_not_fit_their_manifest(release):
    png(release / IMAGES / "1.png", np.zeros((5, 6), np.uint8))
    with pytest.raises(ValueError, match=r"1\.png: uint8 of shape \(5, 6\); the manifest says uint16 of \(5, 6\)"):
        load(release)
    (release / IMAGES / "1.png").unlink()
    nifti(release / IMAGES / "1.nii", np.zeros((5, 6), np.uint16))
    with pytest.raises(ValueError, match=r"1\.nii: expected a file named \*\.png"):
        load(release)
    (release / IMAGES).rename(release / "gone")
    with pytest.raises(FileNotFoundError, match="but no folder 'images'"):
        load(release)
    inner = release / "gate"
    inner.mkdir()
    for name in ("gone", MANIFEST):
        (inner / "release").mkdir(exist_ok=True)
        (release / name).rename(inner / "release" / name)
    with pytest.raises(ValueError, match=r"holds a release and its audit; give .*release"):
        load(inner)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:40], "not a JSON file"),
        (lambda t: "[1]", "not the manifest of a release"),
        (lambda t: t.replace("release/1", "release/2"), "not the manifest of a release; expected format"),
        (lambda t: t.replace('"unit"', '"unti"'), "unknown key 'unti'; did you mean 'unit'"),
        (lambda t: t.replace("png16", "tiff"), "files 'tiff'; expected"),
        (lambda t: t.replace("20.0\n", "NaN\n"), "expected low < high"),
    ],
)
def test_bad_manifests(release, change, message):
    path = release / MANIFEST
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=f"{MANIFEST}: .*{message}"):
        load(release)


def test_a_header_that_is_not_its_own_is_damage(tmp_path):
    png(tmp_path / "a.png", np.zeros((4, 4), np.uint8))
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[25] = 2  # now it says RGB, and its checksum does not
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UnreadableError, match="a damaged one"):
        read(tmp_path / "a.png")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match="a PNG in RGB"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".nii", ".nii.gz"])
def test_every_truncation_is_seen(tmp_path, suffix):
    codes = np.random.default_rng(0).integers(0, 255, (3, 4), dtype=np.uint8)
    path = png(tmp_path / "a.png", codes) if suffix == ".png" else nifti(tmp_path / f"a{suffix}", codes)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(UnreadableError, match=r"^a\.(png|nii|nii\.gz): cannot be read"):
            read(path)


def test_every_changed_byte_of_compressed_pixels_is_seen(tmp_path):
    codes = np.random.default_rng(0).integers(0, 65535, (3, 4), dtype=np.uint16)
    path = png(tmp_path / "a.png", codes)
    content = path.read_bytes()
    for i in range(len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ 4]) + content[i + 1 :])
        with pytest.raises(UnreadableError):
            read(path)
    path = tmp_path / "a.nii.gz"
    content = gzip.compress(nifti(tmp_path / "a.nii", codes).read_bytes(), mtime=0)
    for i in range(10, len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ 4]) + content[i + 1 :])
        # the compressed stream ends with bits that mean nothing
        with contextlib.suppress(UnreadableError):
            np.testing.assert_array_equal(read(path).stored, codes.T)


def test_pixels_that_do_not_unpack_are_damage(tmp_path):
    content = png(tmp_path / "a.png", np.zeros((4, 4), np.uint8)).read_bytes()
    at = content.index(b"IDAT")
    (length,) = struct.unpack(">I", content[at - 4 : at])
    # not packed at all, under a checksum that holds
    chunk = b"IDAT" + bytes(length)
    (tmp_path / "a.png").write_bytes(content[:at] + chunk + zlib.crc32(chunk).to_bytes(4) + content[at + length + 8 :])
    with pytest.raises(UnreadableError, match=r"a\.png: cannot be read \("):
        read(tmp_path / "a.png")


def test_no_image_hides(tmp_path):
    grey(tmp_path)
    image = next(p for p in sorted(tmp_path.iterdir()))
    number = len(load(tmp_path))
    for clutter in ("Thumbs.db", "desktop.ini", ".localized"):
        (tmp_path / clutter).write_bytes(b"left behind")
    (tmp_path / "._other.png").write_bytes(image.read_bytes())
    (tmp_path / ".third.png").write_bytes(image.read_bytes())
    assert len(load(tmp_path)) == number + 2
    # half an upload is perhaps a patient, whatever it is called
    for name in (".a000.png.part", ".~lock.scan.png#", "._a000"):
        (tmp_path / name).write_bytes(image.read_bytes())
        with pytest.raises(ValueError, match="because what is not read is not compared"):
            load(tmp_path)
        with pytest.raises(ValueError, match="expected nothing but"):
            load_candidates(tmp_path)
        (tmp_path / name).unlink()
    (tmp_path / ".old").mkdir()
    with pytest.raises(ValueError, match=r"\.old: a folder; expected nothing but .* because what is not read is not compared"):
        load(tmp_path)


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)


@pytest.mark.parametrize(
    ("hide", "found"),
    [
        (lambda image: image + image, r"holds \d+ bytes after its image, which would not be compared"),
        (lambda image: image + b"x", "holds 1 bytes after its image"),
        (lambda image: image[:33] + chunk(b"acTL", bytes(8)) + image[33:], "an animated PNG, or a part of one"),
        (lambda image: image[:-12] + chunk(b"fcTL", bytes(26)) + image[-12:], "an animated PNG, or a part of one"),
        (
            lambda image: image[:-12] + chunk(b"fcTL", bytes(26)) + chunk(b"fdAT", bytes(9)) + image[-12:],
            "an animated PNG, or a part of one",
        ),
    ],
)
def test_no_second_image_hides_in_a_png(tmp_path, hide, found):
    path = png(tmp_path / "a.png", np.arange(42, dtype=np.uint8).reshape(6, 7))
    path.write_bytes(hide(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"a\.png: {found}"):
        load(tmp_path)


def test_no_second_image_hides_in_a_nifti(tmp_path):
    image = nib.Nifti1Image(np.arange(20, dtype=np.uint8).reshape(4, 5), None)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"where it was scanned"))
    content = image.to_bytes()
    for name, one in (("a.nii", content), ("a.nii.gz", gzip.compress(content))):
        path = tmp_path / name
        path.write_bytes(one + one)
        with pytest.raises(ValueError, match=rf"{name}: holds {len(content)} bytes after its image, which would not be compared"):
            load(tmp_path)
        # what stands between header and pixels, and zeros up to a round size, are no image
        path.write_bytes(one + bytes(100))
        assert len(load(tmp_path)) == 1
        path.unlink()


@pytest.mark.parametrize("name", ["Thumbs.db", "desktop.ini", ".gitkeep", ".localized", ".directory"])
def test_no_image_hides_under_a_name_of_clutter(tmp_path, name):
    grey(tmp_path, 1)
    volume = nib.Nifti1Image(np.zeros((4, 5), np.uint8), None).to_bytes()
    image = (tmp_path / "scan8.png").read_bytes()
    for content in (image, b"\xff\xd8\xff\xe0", b"II*\0", b"PK\3\4", gzip.compress(volume), volume, bytes(128) + b"DICM"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: an image under a name that operating systems use; expected nothing but"):
            load(tmp_path)


def test_links_to_themselves_and_names_that_are_no_text(tmp_path):
    grey(tmp_path, 1)
    (tmp_path / "loop.png").symlink_to("loop.png")
    with pytest.raises(ValueError, match=r"loop\.png: no image file; expected nothing but"):
        load(tmp_path, patients=tmp_path / "patients.csv")
    (tmp_path / "loop.png").unlink()
    shutil.copy(tmp_path / "scan8.png", os.fsencode(tmp_path) + b"/\xff.png")
    with pytest.raises(ValueError, match=r"the name '\\udcff\.png' is not in UTF-8; .* rename the file"):
        load(tmp_path)


def test_every_row_of_a_private_file_counts(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
    path = tmp_path / "ward.npz"
    role = np.array(["public", "private", "private", "eval"])
    np.savez(path, image=images, patient=np.arange(4), role=role)
    with pytest.raises(ValueError, match=r"ward\.npz: holds rows of role 'eval', 'public', which would not be compared with"):
        load(path)
    np.savez(path, image=images, patient=np.arange(4), role=np.full(4, "private"))
    assert len(load(path)) == 4
    # drawn images are nobody's, whatever their file says of them
    drawn = images / np.float32(255)
    drawn[2, 0, 0] = np.nan
    np.savez(path, image=drawn, role=role)
    found, refused = load_candidates(path)
    assert (len(found), refused) == (3, {"row 2": "not finite"})
    np.testing.assert_array_equal(found.images[:, 0], drawn[[0, 1, 3]])
    assert found.attributes["file"].tolist() == ["row 0", "row 1", "row 3"]


@pytest.mark.parametrize("role", ["private", "eval"])
def test_no_array_of_images_in_a_file_goes_unread(tmp_path, role):
    images = np.zeros((4, 8, 8), np.uint8)
    path = tmp_path / "ward.npz"
    others = {"volume": np.zeros((4, 3, 8, 8), np.uint8), "follow_up": images, "image_2": np.zeros((9, 8, 8))}
    # as rows of pixels, and as records
    others |= {"flat": images.reshape(4, -1), "records": np.zeros(4, [("pixels", np.uint8, (8, 8))])}
    for name, array in others.items():
        np.savez(path, image=images, patient=np.arange(4), **{name: array})
        with pytest.raises(
            ValueError, match=rf"ward\.npz: '{name}' of shape \(.*\) stands beside 'image' and would not be compared"
        ):
            load(path, role=role)
        with pytest.raises(ValueError, match=f"'{name}' of shape"):
            load_candidates(path)
    np.savez(path, volume=np.zeros((4, 3, 8, 8), np.uint8), label=np.zeros((4, 3, 8, 8), np.uint8), patient=np.arange(4))
    assert len(load(path, role=role)) == 4


def test_every_row_of_other_people_counts(tmp_path):
    path = tmp_path / "others.npz"
    images = np.zeros((4, 8, 8), np.uint8)
    np.savez(path, image=images, patient=np.arange(4), split=np.array(["train", "train", "val", "test"]))
    assert len(load(path, role="eval")) == 4
    np.savez(path, image=images, patient=np.arange(4), role=np.array(["eval", "eval", "private", "eval"]))
    with pytest.raises(ValueError, match="holds rows of role 'private', which would not be compared with"):
        load(path, role="eval")


@pytest.mark.parametrize("loose", ["extra.png", "patient.npz", "more", ".a000.png.part"])
def test_loose_files_in_a_release_are_named(release, loose):
    (release / "README.txt").write_text("what is guaranteed")
    (release / ".DS_Store").write_bytes(b"notes")
    assert len(load(release)) == 3
    (release / loose).mkdir() if loose == "more" else (release / loose).write_bytes(b"an image")
    for loader in (load, load_candidates):
        with pytest.raises(ValueError, match=rf"{loose}: is no part of a release, and would not be compared with"):
            loader(release)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 15])
def test_what_twelve_bits_in_sixteen_stand_for_must_be_said(tmp_path, bits):
    codes = np.random.default_rng(0).integers(0, 2**bits, (3, 6, 7)).astype(np.uint16)
    for i, image in enumerate(codes):
        png(tmp_path / f"{i}.png", image)
    ct = {"range": (-1024.0, 3071.0), "unit": "HU"}
    told = rf"no code of its 16 bit files is above {codes.max()}, so 65535 may not be their upper end; give"
    with pytest.raises(ValueError, match=rf"{told} --codes LOW HIGH, for instance --codes 0 4095"):
        load(tmp_path, values=Values(**ct))
    for loader in (load, load_candidates):
        with pytest.raises(ValueError, match=rf"{told} --range LOW HIGH and --codes LOW HIGH"):
            loader(tmp_path)
    found = load(tmp_path, values=Values((-1024, 2.0**bits - 1025), "HU", codes=(0, 2**bits - 1)))
    np.testing.assert_array_equal(found.images[:, 0], codes - 1024.0)
    spread = load(tmp_path, values=Values(**ct, codes=(0, 65535)))
    np.testing.assert_allclose(spread.images[:, 0], -1024 + codes / 65535 * 4095, atol=1e-3)
    # one bright pixel in the folder, and they are spread over all
    png(tmp_path / "9.png", np.full((6, 7), 40000, np.uint16))
    np.testing.assert_array_equal(load(tmp_path).images[:3, 0], codes)


def test_what_half_empty_nifti_files_hold_must_be_said(tmp_path):
    image = np.arange(20, dtype=np.uint16).reshape(4, 5) * 50
    nifti(tmp_path / "a.nii", image)
    with pytest.raises(ValueError, match=r"16 bit files is above 950, .*; give --range LOW HIGH, for instance --range 0 4095"):
        load(tmp_path)
    assert load(tmp_path, values=Values((0, 1000))).range == (0, 1000)
    nifti(tmp_path / "a.nii", image.astype(np.uint8))
    assert load(tmp_path).range == (0, 255)


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_a_window_is_no_range(tmp_path, depth):
    grey(tmp_path, depth=depth)
    for loader in (load, load_candidates):
        with pytest.raises(
            ValueError, match=r"scan8\.png: a window clips values, and PNG files hold codes; give --range LOW HIGH"
        ):
            loader(tmp_path, values=Values((-160, 240), "HU", clip=True))


def test_codes_that_do_not_fit(tmp_path):
    png(tmp_path / "a.png", np.array([[7, 5000]], np.uint16))
    with pytest.raises(ValueError, match=r"a\.png: codes span \[7, 5000\], outside \[0, 4095\]; give the --codes"):
        load(tmp_path, values=Values((0, 1), codes=(0, 4095)))
    for bad in ({"codes": (0, 9)}, {"codes": (0, 9), "range": (0, 1), "clip": True}):
        with pytest.raises(ValueError, match="codes stand for the ends of a range"):
            Values(**bad)
    with pytest.raises(ValueError, match="codes 9 0; expected two finite numbers, the lower one first"):
        Values((0, 1), codes=(9, 0))

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from medsynth.data.archive import read_arrays
from medsynth.data.npz import load_npz

IMAGES, PATIENT = np.arange(384, dtype=np.uint8).reshape(6, 8, 8), np.arange(6)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def packed(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED, comment: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.comment = comment
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


PLAIN = [("image.npy", npy(IMAGES)), ("patient.npy", npy(PATIENT))]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_what_archivers_write_is_read(tmp_path, method):
    path = tmp_path / "mine.npz"
    path.write_bytes(packed(PLAIN, method))
    np.testing.assert_array_equal(read_arrays(path)["image"], IMAGES)
    for save in (np.savez, np.savez_compressed):
        save(path, **{f"a column with a long name {i}": PATIENT for i in range(40)})
        assert len(read_arrays(path)) == 40


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("content", "found"),
    [
        (lambda: packed([*PLAIN, ("image.npy", npy(IMAGES[::-1]))]), "two arrays called 'image'"),
        (lambda: packed([*PLAIN, ("image", npy(IMAGES[::-1]))]), "two arrays called 'image'"),
        (lambda: packed([("image.npy", npy(IMAGES) * 2), PLAIN[1]]), r"\d+ bytes after the array 'image'"),
        (lambda: packed(PLAIN, 0) * 2, r"\d+ bytes between or around its arrays"),
        (lambda: npy(IMAGES.repeat(3)) + packed(PLAIN), r"\d+ bytes between or around"),
        (lambda: packed(PLAIN) + npy(IMAGES.repeat(3)), r"\d+ bytes between or around"),
        (lambda: packed(PLAIN, comment=npy(IMAGES.repeat(3))), r"\d+ bytes between or around"),
    ],
)
def test_no_second_set_hides_in_an_archive(tmp_path, content, found):
    path = tmp_path / "mine.npz"
    path.write_bytes(content())
    with pytest.raises(ValueError, match=f"mine.npz: holds {found}.*, which would not be compared with; expected"):
        load_npz(path)


def flagged(at_local: int, at_central: int, value: bytes) -> bytes:
    """An archive of which one field of the first member says something else."""
    content = bytearray(packed(PLAIN))
    for mark, at in ((b"PK\3\4", at_local), (b"PK\1\2", at_central)):
        start = content.index(mark) + at
        content[start : start + len(value)] = value
    return bytes(content)


def vast() -> bytes:
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (12, 100000000, 100000), }".ljust(117) + "\n"
    return packed([("image.npy", b"\x93NUMPY\1\0" + struct.pack("<H", 118) + header.encode() + b"abc"), PLAIN[1]])


@pytest.mark.parametrize(
    "content",
    [
        lambda: flagged(6, 8, b"\1\0"),  # locked with a password
        lambda: flagged(8, 10, b"\x09\0"),  # Deflate64
        lambda: flagged(8, 10, b"\x0c\0"),  # bzip2 that is none
        lambda: flagged(8, 10, b"\x0e\0"),  # LZMA that is none
        vast,
        lambda: packed([("image.npy", b"no array"), PLAIN[1]]),
        lambda: packed([*PLAIN, ("README.txt", b"no array")]),
    ],
)
def test_archives_that_cannot_be_read_are_named(tmp_path, content):
    path: Path = tmp_path / "mine.npz"
    path.write_bytes(content())
    with pytest.raises(ValueError, match=r"^mine.npz: not a readable .npz of plain"):
        load_npz(path)


@pytest.mark.parametrize("meta", ["{'a': 1}", "[1]", '{"format": "of another program"}', "text", PATIENT])
def test_an_array_called_meta_may_be_of_another_program(tmp_path, meta):
    np.savez(tmp_path / "mine.npz", image=IMAGES, patient=PATIENT, meta=np.asarray(meta))
    assert len(load_npz(tmp_path / "mine.npz")) == 6


def test_saved_sets_hold_what_save_wrote_and_nothing_else(tmp_path, make_set):
    path = make_set(role="private").save(tmp_path / "mine.npz")
    arrays = read_arrays(path)
    np.savez(path, **arrays, image=IMAGES)
    with pytest.raises(ValueError, match=r"mine.npz: the array 'image' is no part of a saved set, and would not be compared"):
        load_npz(path)
    np.savez(path, **{k: v for k, v in arrays.items() if k != "split"})
    with pytest.raises(ValueError, match=r"mine.npz: the array 'split' is missing; expected a file as ImageSet.save"):
        load_npz(path)
    images = arrays["images"].copy()
    images[0, 0, 0, 0] = np.nan
    np.savez(path, **arrays | {"images": images})
    with pytest.raises(ValueError, match=r"^mine.npz: tiny: 1 of 12 images hold NaN or infinity; remove or repair them first$"):
        load_npz(path)
    np.savez(path, **arrays | {"meta": np.array('{"format": "medsynth.ImageSet/9"}')})
    with pytest.raises(ValueError, match=r"mine.npz: not an ImageSet file"):
        load_npz(path)
    np.savez(path, **arrays | {"meta": np.array('{"format": "medsynth.ImageSet/2"}')})
    with pytest.raises(ValueError, match=r"mine.npz: not as ImageSet.save writes it \(KeyError"):
        load_npz(path)

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medsynth.store.hashes import bytes_hash, file_hash, json_hash, sha256, tensors_hash


@dataclass(frozen=True)
class Inner:
    a: int
    b: float


@dataclass(frozen=True)
class Outer:
    count: int
    inner: Inner
    flags: tuple[bool, ...] = ()


FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@given(st.builds(Outer, st.integers(), st.builds(Inner, st.integers(), FLOATS)), st.randoms())
def test_the_hash_of_settings_depends_on_values_alone(c, random):
    def shuffled(value: object) -> object:
        if not isinstance(value, dict):
            return value
        keys = list(value)
        random.shuffle(keys)
        return {k: shuffled(value[k]) for k in keys}

    assert json_hash(shuffled(asdict(c))) == json_hash(c)
    assert json_hash(replace(c, count=c.count + 1)) != json_hash(c)
    assert json_hash(replace(c, inner=replace(c.inner, a=c.inner.a + 1))) != json_hash(c)


def test_hashes_are_what_they_were(tmp_path):
    """Runs, sets, maps and certificates are found by them, and so they must not drift; the values are of other programs."""
    assert json_hash({"b": [1, 2.5], "a": None}) == json_hash({"a": None, "b": (1, 2.5)}) == "75c94921d05213f0"
    assert bytes_hash(b"abc") == "cf4ab791c62b8d2b2109c90275287816"  # b2sum -l 128
    assert bytes_hash(b"abc", bits=64) == "d8bb14d833d59559"  # b2sum -l 64
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4, B.1
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_hash(tmp_path / "abc") == sha256(b"abc")


@given(st.lists(st.binary(max_size=4)), st.sampled_from([64, 128]))
def test_parts_are_hashed_as_the_whole(parts, bits):
    assert bytes_hash(*parts, bits=bits) == bytes_hash(b"".join(parts), bits=bits)


@pytest.mark.parametrize("change", [{"w": 7.0}, {"name": "v"}])
def test_tensors_are_known_by_names_and_values(change):
    def of(w: float = 1.0, name: str = "w") -> str:
        return tensors_hash({name: torch.tensor([w, 2.0]), "k": torch.arange(6).reshape(2, 3).T})

    naive = hashlib.blake2b(digest_size=16)
    for part in (b"w", torch.tensor([1.0, 2.0]).numpy().tobytes(), b"k", torch.tensor([0, 3, 1, 4, 2, 5]).numpy().tobytes()):
        naive.update(part)
    assert of() == naive.hexdigest() != of(**change)

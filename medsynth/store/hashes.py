"""Hashes of content: how images, sets, tensors, settings and files are known again, and seen to have changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def bytes_hash(*parts: bytes, bits: int = 128) -> str:
    """blake2b of the parts one after the other, bits / 4 hex digits."""
    digest = hashlib.blake2b(digest_size=bits // 8)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def json_hash(value: object) -> str:
    """blake2b-64 of a dataclass or JSON value, whatever the order of its keys: 16 hex digits."""
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return bytes_hash(json.dumps(plain, sort_keys=True, default=list).encode(), bits=64)


def tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """blake2b-128 of names and values, in their order."""
    return bytes_hash(*(name.encode() + t.detach().cpu().numpy().tobytes() for name, t in tensors.items()))


def sha256(content: bytes) -> str:
    """What `sha256sum` says of such a file: for what people other than us check."""
    return hashlib.sha256(content).hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file, which need not fit in memory."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()

"""Ed25519 signatures of certificates (RFC 8032), through the optional package `cryptography`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """An unencrypted Ed25519 key in PEM, for instance from `openssl genpkey -algorithm ed25519`; ValueError for any other."""
    keys, serialization = _package()
    try:
        key = serialization.load_pem_private_key(Path(path).read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not an unencrypted private key in PEM; expected an Ed25519 key") from error
    if not isinstance(key, keys.Ed25519PrivateKey):
        raise ValueError(f"{path}: {type(key).__name__}; expected an Ed25519 key")
    return key


def load_public_key(path: Path) -> str:
    """An Ed25519 public key in PEM as 64 hex digits; ValueError for any other."""
    keys, serialization = _package()
    try:
        key = serialization.load_pem_public_key(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not a public key in PEM; expected an Ed25519 key") from error
    if not isinstance(key, keys.Ed25519PublicKey):
        raise ValueError(f"{path}: {type(key).__name__}; expected an Ed25519 key")
    return key.public_bytes_raw().hex()


def public_half(key: Ed25519PrivateKey) -> str:
    """The public key that belongs to a private one, 64 hex digits."""
    return key.public_key().public_bytes_raw().hex()


def signed(message: bytes, key: Ed25519PrivateKey) -> bytes:
    """The content of a signature file: 128 hex digits and a newline."""
    return key.sign(message).hex().encode() + b"\n"


def is_signature(content: bytes, message: bytes, public: str) -> bool:
    """Whether a signature file is, byte for byte, one that `public` (64 hex digits) made of `message`."""
    keys, _ = _package()
    from cryptography.exceptions import InvalidSignature

    try:
        raw = bytes.fromhex(content.decode("ascii"))
        # other spellings of the same digits are changes to the file too
        if content != raw.hex().encode() + b"\n":
            return False
        keys.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(raw, message)
    except (ValueError, InvalidSignature):
        return False
    return True


def _package() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ValueError("signatures need the package cryptography; install it with: pip install 'medsynth[sign]'") from error
    return ed25519, serialization

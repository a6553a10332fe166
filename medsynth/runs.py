"""Trained things are directories: found again by content, resumed when killed, written so that half a run never looks whole."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import platformdirs

from medsynth.hashes import file_hash, json_hash

if TYPE_CHECKING:
    import torch

Tensors = dict[str, "torch.Tensor"]
VERSIONED = ("medsynth", "torch", "monai", "diffusers", "opacus", "faiss-cpu", "numpy", "scipy", "pandas", "safetensors")


def cache_folder() -> Path:
    """Where runs and generated sets live: $MEDSYNTH_CACHE, or the user's cache directory."""
    return Path(os.environ.get("MEDSYNTH_CACHE") or platformdirs.user_cache_dir("medsynth"))


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` that replaces it, after fsync, only if the block succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    # not mkstemp, whose files only the owner may read: results are for others, and run folders close themselves
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield temporary
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically, keys sorted."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value.tolist() if hasattr(value, "tolist") else str(value)


def save_tensors(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> str:
    """Write tensors as safetensors, atomically; the sha256 of the file."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, metadata=metadata)
        return file_hash(temporary)


def load_tensors(path: Path) -> Tensors:
    """Read a safetensors file."""
    from safetensors.torch import load_file

    return load_file(path)


@dataclass(frozen=True)
class Trained:
    """What a finished run holds."""

    path: Path
    weights: Tensors
    manifest: dict[str, Any]


@dataclass(frozen=True)
class Workspace:
    """What a training function sees of its run: the last checkpoint, and where to put the next."""

    path: Path

    def load_checkpoint(self) -> tuple[int, Tensors] | None:
        """(step, tensors) of the last intact checkpoint, or None."""
        from safetensors import SafetensorError, safe_open

        file = self.path / "checkpoint.safetensors"
        if not file.exists():
            return None
        try:
            with safe_open(file, framework="pt") as f:
                return int(f.metadata()["step"]), {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
        except SafetensorError:
            # damaged on disk: training from the start is slow, not wrong
            return None

    def save_checkpoint(self, step: int, tensors: Tensors) -> None:
        """Replace the checkpoint; a kill at any moment leaves the old one or the new one."""
        save_tensors(self.path / "checkpoint.safetensors", tensors, {"step": str(step)})


def run_folder(kind: str, config: object, inputs: dict[str, str]) -> Path:
    """The directory of the run that `config` trained on inputs of these content hashes defines."""
    return cache_folder() / "runs" / f"{kind}-{json_hash({'config': _jsonable(config), 'inputs': inputs})}"


def _jsonable(config: object) -> object:
    return json.loads(json.dumps(config, default=_plain))


def find_run(folder: Path) -> Trained | None:
    """The finished run in `folder`, or None if there is none or its weights do not match the manifest."""
    manifest_file, weights_file = folder / "manifest.json", folder / "weights.safetensors"
    if not (manifest_file.exists() and weights_file.exists()):
        return None
    manifest = json.loads(manifest_file.read_text())
    if file_hash(weights_file) != manifest["weights_sha256"]:
        return None
    return Trained(folder, load_tensors(weights_file), manifest)


def load_or_train(
    kind: str,
    config: object,
    inputs: dict[str, str],
    train: Callable[[Workspace], tuple[Tensors, dict[str, Any]]],
    *,
    device: str = "cpu",
) -> Trained:
    """The finished run if it is there and intact, else `train` it, resuming from its last checkpoint.

    Two processes that ask for one run train it once: the second waits. `train` returns (weights, metrics).
    """
    folder = run_folder(kind, config, inputs)
    if done := find_run(folder):
        return done
    # what was trained on private images is as private as they are
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with filelock.FileLock(folder.with_suffix(".lock")):
        if done := find_run(folder):
            return done
        # the manifest is what makes a run whole, so a stale one goes first and the new one comes last
        (folder / "manifest.json").unlink(missing_ok=True)
        write_json(folder / "config.json", config)
        start = time.time()
        weights, metrics = train(Workspace(folder))
        manifest = {
            "kind": kind, "config_hash": json_hash(_jsonable(config)), "inputs": inputs, "metrics": metrics,
            "versions": package_versions(), "device": device, "seconds_of_last_session": round(time.time() - start, 1),
            "weights_sha256": save_tensors(folder / "weights.safetensors", weights),
        }  # fmt: skip
        write_json(folder / "manifest.json", manifest)
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)
        return Trained(folder, load_tensors(folder / "weights.safetensors"), _jsonable(manifest))

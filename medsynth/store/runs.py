"""Trained things are directories: found again by content, resumed when killed, written so that half a run never looks whole."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import platformdirs

from medsynth.store.hashes import file_hash, json_hash

if TYPE_CHECKING:
    import torch

Tensors = dict[str, "torch.Tensor"]
VERSIONED = ("medsynth", "torch", "monai", "diffusers", "opacus", "faiss-cpu", "numpy", "scipy", "pandas", "safetensors")

_LONGEST_NAME = 255 - 18  # bytes; while it is written, a temporary name has a dot before it, and a dot and 16 digits behind


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


def free_place(out: Path) -> None:
    """FileNotFoundError where a folder for `out` is missing, FileExistsError if something is there, ValueError for a bad name."""
    if out.resolve() == Path.cwd():
        # the finished folder takes the place of an empty one, and that of the folder one stands in cannot be taken
        raise ValueError(f"{out}: is the current folder; name a new one in it, or beside it")
    if (size := len(os.fsencode(out.name))) > _LONGEST_NAME:
        raise ValueError(f"{out.name[:20]}…: a name of {size} bytes; expected at most {_LONGEST_NAME}; choose a shorter one")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out}: its folder {out.parent} does not exist; make it first")
    if out.is_symlink() or (out.exists() and not out.is_dir()) or (out.is_dir() and any(out.iterdir())):
        raise FileExistsError(f"{out}: is there already and not an empty folder; choose another name or remove it")


@contextlib.contextmanager
def new_folder(out: Path, *, mode: int = 0o777) -> Iterator[Path]:
    """A temporary folder beside a free place `out` that becomes `out` only if the block succeeds. Raises as `free_place` does."""
    free_place(out)
    temporary = out.absolute().with_name(f".{out.absolute().name}.{secrets.token_hex(8)}")
    temporary.mkdir(mode=mode)
    try:
        yield temporary
        os.sync()
        # onto an empty folder this succeeds, onto any other it fails and changes nothing
        os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def owner_alone() -> Iterator[None]:
    """Files that are made in this block can be opened by their owner alone, from the beginning."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


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


def run_token(folder: Path) -> str:
    """A random name of the run in `folder`, made on first sight, gone with the folder.

    It tells nothing of what the run was made from. A hash of inputs would: whoever guesses them can hash the guess.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = folder / "token"
    with contextlib.suppress(FileExistsError), open(file, "x", encoding="utf-8") as f:
        f.write(secrets.token_hex(4))
    return file.read_text(encoding="utf-8")


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


def found_or_made(kind: str, key: object, make: Callable[[], Any]) -> Any:
    """What `make` gives, as JSON has it, found again if it was made before; `key` says all that it follows from.

    As private as what it was made from: it lies where the owner of the cache alone can read. What is damaged is made again.
    """
    file = cache_folder() / "found" / f"{kind}-{json_hash(_jsonable(key))}.json"
    with contextlib.suppress(FileNotFoundError, ValueError):
        return json.loads(file.read_text(encoding="utf-8"))
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(file, made := _jsonable(make()))
    return made

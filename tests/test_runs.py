from __future__ import annotations

import json
import math
import signal
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from medsynth.store import runs
from medsynth.store.runs import (
    Workspace,
    atomic_path,
    cache_folder,
    file_hash,
    find_run,
    found_or_made,
    free_place,
    load_or_train,
    load_tensors,
    new_folder,
    owner_alone,
    package_versions,
    run_folder,
    save_tensors,
    write_json,
)

WEIGHTS = {"w": torch.arange(6.0).reshape(2, 3), "k": torch.tensor([1, 2])}


class Count:
    """A training function that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, workspace: Workspace) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        self.calls += 1
        return WEIGHTS, {"loss": 0.25}


def files(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir())


def test_a_finished_run_is_returned_at_once(cache):
    train = Count()
    first = load_or_train("kind", {"a": 1}, {"images": "ff"}, train)
    again = load_or_train("kind", {"a": 1}, {"images": "ff"}, train)
    assert train.calls == 1
    assert first.path == again.path == run_folder("kind", {"a": 1}, {"images": "ff"})
    assert first.path.parent == cache / "runs"
    assert files(first.path) == ["config.json", "manifest.json", "weights.safetensors"]
    for run in (first, again):
        assert all(torch.equal(run.weights[k], v) for k, v in WEIGHTS.items())
    assert first.manifest == again.manifest
    assert first.manifest["metrics"] == {"loss": 0.25} and first.manifest["inputs"] == {"images": "ff"}
    assert first.manifest["versions"] == package_versions()
    assert json.loads((first.path / "config.json").read_text()) == {"a": 1}


def test_kind_config_and_inputs_tell_runs_apart(cache):
    @dataclass
    class Config:
        a: int = 1

    train = Count()
    for kind, config, inputs in [
        ("kind", {"a": 1}, {"images": "ff"}), ("other", {"a": 1}, {"images": "ff"}), ("kind", {"a": 2}, {"images": "ff"}),
        ("kind", {"a": 1}, {"images": "fe"}), ("kind", {"c": Config()}, {}), ("kind", {"c": Config(2)}, {}),
    ]:  # fmt: skip
        load_or_train(kind, config, inputs, train)
    assert train.calls == len(list((cache / "runs").glob("*/manifest.json"))) == 6
    assert run_folder("k", {"c": Config()}, {}) == run_folder("k", {"c": {"a": 1}}, {})


@pytest.mark.parametrize("how", ["flipped", "truncated", "no weights", "no manifest"])
def test_a_damaged_run_is_trained_again(cache, how):
    train = Count()
    path = load_or_train("kind", {}, {}, train).path
    weights = path / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    if how == "flipped":
        data[-1] ^= 1
        weights.write_bytes(data)
    elif how == "truncated":
        weights.write_bytes(data[:-8])
    elif how == "no weights":
        weights.unlink()
    else:
        (path / "manifest.json").unlink()
    assert find_run(path) is None
    again = load_or_train("kind", {}, {}, train)
    assert train.calls == 2
    assert torch.equal(again.weights["w"], WEIGHTS["w"])
    assert find_run(path) is not None


def test_a_failed_training_leaves_no_run_and_the_next_goes_on_from_its_checkpoint(cache):
    seen = []

    def train(workspace: Workspace) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        seen.append(workspace.load_checkpoint())
        if len(seen) < 3:
            workspace.save_checkpoint(10 * len(seen), {"w": torch.full((2,), float(len(seen)))})
            raise RuntimeError("killed")
        return WEIGHTS, {}

    for _ in range(2):
        with pytest.raises(RuntimeError, match="killed"):
            load_or_train("kind", {}, {}, train)
        assert find_run(run_folder("kind", {}, {})) is None
    done = load_or_train("kind", {}, {}, train)
    assert seen[0] is None
    assert [(step, t["w"].tolist()) for step, t in seen[1:]] == [(10, [1.0, 1.0]), (20, [2.0, 2.0])]
    assert not (done.path / "checkpoint.safetensors").exists()


def test_a_damaged_checkpoint_is_no_checkpoint(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.save_checkpoint(3, WEIGHTS)
    file = tmp_path / "checkpoint.safetensors"
    assert workspace.load_checkpoint()[0] == 3
    file.write_bytes(file.read_bytes()[:20])
    assert workspace.load_checkpoint() is None


def test_tensors_round_trip_with_their_hash(tmp_path):
    tensors = WEIGHTS | {"half": torch.ones(3).half(), "view": torch.arange(6).reshape(2, 3).T, "scalar": torch.tensor(2.0)}
    digest = save_tensors(tmp_path / "deep" / "t.safetensors", tensors, {"a": "b"})
    assert digest == file_hash(tmp_path / "deep" / "t.safetensors")
    loaded = load_tensors(tmp_path / "deep" / "t.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[k], v) and loaded[k].dtype == v.dtype for k, v in tensors.items())


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_atomic_path_leaves_old_or_nothing_when_the_block_fails(tmp_path, old, error):
    target = tmp_path / "f.txt"
    if old:
        target.write_text(old)
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert files(tmp_path) == (["f.txt"] if old else [])
    assert not old or target.read_text() == old


def test_atomic_path_shows_nothing_before_the_end(tmp_path):
    target = tmp_path / "f.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert not target.exists() and temporary.parent == tmp_path
    assert target.read_text() == "new" and files(tmp_path) == ["f.txt"]


def test_json_takes_configs_arrays_and_paths(tmp_path):
    @dataclass
    class Config:
        b: tuple[int, ...] = (1, 2)

    write_json(tmp_path / "x.json", {"z": np.arange(2), "c": Config(), "n": np.float32(0.5), "p": Path("a")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"z": [0, 1], "c": {"b": [1, 2]}, "n": 0.5, "p": "a"}
    assert (tmp_path / "x.json").read_text().index('"c"') < (tmp_path / "x.json").read_text().index('"z"')


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from medsynth.store import runs
when, big = sys.argv[1], torch.full((200_000,), 7.0)
if when == "while writing the file":
    # half of the bytes are on disk when the kill comes
    import safetensors.torch as st
    real = st.save_file
    def save_file(tensors, path, metadata=None):
        real(tensors, path, metadata=metadata)
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    st.save_file = save_file
else:
    count = [int(when)]
    real = os.replace
    def replace(source, target):
        count[0] -= 1
        if count[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)
    os.replace = replace
runs.load_or_train("kind", {}, {}, lambda workspace: ({"w": big}, {}))
"""


@pytest.mark.parametrize("when", ["while writing the file", "1", "2"])
def test_sigkill_during_saving_never_leaves_half_a_run(cache, start_python, finish, when):
    # "1": config.json is there and the weights are about to be; "2": the weights are there, the manifest is not
    status, _, errors = finish(start_python(KILLED, when))
    assert status == -signal.SIGKILL, errors
    folder = run_folder("kind", {}, {})
    assert (folder / "weights.safetensors").exists() == (when == "2")
    assert not (folder / "manifest.json").exists()
    assert find_run(folder) is None
    train = Count()
    # the lock of a dead process holds nobody up
    assert torch.equal(load_or_train("kind", {}, {}, train).weights["w"], WEIGHTS["w"])
    assert train.calls == 1


def test_sigkill_while_replacing_a_checkpoint_leaves_the_old_one(tmp_path, start_python, finish):
    program = """
import os, signal, sys
from pathlib import Path
import torch
from medsynth.store.runs import Workspace
workspace = Workspace(Path(sys.argv[1]))
workspace.save_checkpoint(1, {"w": torch.ones(3)})
real = os.fsync
def fsync(handle):
    os.kill(os.getpid(), signal.SIGKILL)
os.fsync = fsync
workspace.save_checkpoint(2, {"w": torch.zeros(3)})
"""
    status, _, errors = finish(start_python(program, tmp_path))
    assert status == -signal.SIGKILL, errors
    step, tensors = Workspace(tmp_path).load_checkpoint()
    assert (step, tensors["w"].tolist()) == (1, [1, 1, 1])


TWO = """
import os, sys, time
from pathlib import Path
import torch
from medsynth.store.runs import load_or_train
log, ready = Path(sys.argv[1]), Path(sys.argv[2])
def train(workspace):
    with open(log, "a") as f:
        f.write("trained\\n")
    time.sleep(0.5)
    return {"w": torch.ones(2)}, {}
(ready / sys.argv[3]).touch()
while len(list(ready.iterdir())) < 2:
    time.sleep(0.01)
print(load_or_train("kind", {}, {}, train).weights["w"].tolist())
"""


def test_two_processes_that_ask_for_one_run_train_it_once(cache, tmp_path, start_python, finish):
    ready = tmp_path / "ready"
    ready.mkdir()
    both = [start_python(TWO, tmp_path / "log", ready, i) for i in range(2)]
    said = [finish(p) for p in both]
    assert [(status, out.strip()) for status, out, _ in said] == [(0, "[1.0, 1.0]")] * 2, said
    assert (tmp_path / "log").read_text() == "trained\n"


def test_who_waited_for_the_lock_finds_the_run_made(cache, monkeypatch):
    made = load_or_train("kind", {}, {}, Count())
    answers = iter([None, made])
    monkeypatch.setattr(runs, "find_run", lambda _: next(answers))
    train = Count()
    assert load_or_train("kind", {}, {}, train) is made and train.calls == 0


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDSYNTH_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.setenv("MEDSYNTH_CACHE", "")
    assert cache_folder().name == "medsynth"


def test_versions_of_what_is_installed(monkeypatch):
    assert {"python", "torch", "numpy"} <= package_versions().keys()
    monkeypatch.setattr(runs, "VERSIONED", ("no-such-package",))
    assert package_versions().keys() == {"python"}


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("", ValueError, "is the current folder"),
        ("gone/out", FileNotFoundError, "its folder gone does not exist"),
        ("full", FileExistsError, "full: is there already and not an empty folder"),
        ("full/file", FileExistsError, "file: is there already"),
        ("link", FileExistsError, "link: is there already"),
        ("x" * 238, ValueError, "xxx…: a name of 238 bytes; expected at most 237"),
        ("ä" * 119, ValueError, "ä…: a name of 238 bytes"),
        ("x" * 300, ValueError, "a name of 300 bytes"),
    ],
)
def test_a_place_that_is_not_free(tmp_path, monkeypatch, name, error, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(error, match=said):
        free_place(Path(name))
    with pytest.raises(error, match=said), new_folder(Path(name)):
        pytest.fail("it was begun")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "link"]


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out") as made:
        (made / "file").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    # the longest name that is free can be written, also where an empty folder is
    longest = tmp_path / ("x" * 237)
    longest.mkdir()
    with new_folder(longest, mode=0o700) as made:
        (made / "file").write_text("whole")
        assert list(longest.iterdir()) == []
    assert (longest / "file").read_text() == "whole" and stat.S_IMODE(longest.stat().st_mode) == 0o700
    assert list(tmp_path.iterdir()) == [longest]


def test_files_of_the_owner_alone_are_so_from_the_beginning(tmp_path):
    with owner_alone(), atomic_path(tmp_path / "mine") as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
    with atomic_path(tmp_path / "anybodys") as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o644


def test_what_was_made_is_found_again_by_its_key_for_the_owner_alone_and_made_anew_where_damaged(cache):
    made = []

    def make():
        made.append(1)
        return [["FID", [1.5, math.nan]], ["n", len(made)]]

    first = found_or_made("scores", {"a": 1, "of": Path("x")}, make)
    again = found_or_made("scores", {"of": Path("x"), "a": 1}, make)
    assert again[1] == first[1] == ["n", 1] and math.isnan(again[0][1][1])
    assert found_or_made("scores", {"a": 2}, make)[1] == ["n", 2]
    (file,) = (f for f in (cache / "found").iterdir() if json.loads(f.read_text())[1] == ["n", 1])
    assert stat.S_IMODE((cache / "found").stat().st_mode) == 0o700
    for n, damaged in enumerate((b"[[", b"\xff\xfe"), start=3):
        file.write_bytes(damaged)
        assert found_or_made("scores", {"a": 1, "of": Path("x")}, make)[1] == ["n", n]

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medsynth.ledger import Entry, Ledger, RoleError
from medsynth.resample import resize


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


def test_declared_rows_are_recognised_under_another_role(ledger, make_set):
    private = make_set(8, role="private", name="scans")
    other = make_set(6, seed=1, name="open")
    ledger.declare(private)
    # rows of the private set, smuggled into a public one under other names and patients
    mixed = replace(
        other, images=np.concatenate([other.images[:4], private.images[[5, 2]]]), name="mixed", patient=np.arange(6), split=None
    )
    assert ledger.private_rows_in(mixed) == 2
    assert ledger.private_rows_in(other) == 0
    assert ledger.use_public(other, stage="pretrain") is other
    with pytest.raises(RoleError, match=r"pretrain: 2 of 6 rows of mixed \(declared 'public'\) are rows of a private set"):
        ledger.use_public(mixed, stage="pretrain")
    with pytest.raises(RoleError, match="2 of 6"):
        ledger.use(mixed, stage="pretrain")
    with pytest.raises(RoleError, match="pretrain: mixed is held out to be measured against"):
        ledger.use(replace(mixed, role="eval"), stage="pretrain")


def test_one_changed_value_makes_another_row_and_any_declared_set_counts(ledger, make_set):
    first, second = make_set(4, role="private"), make_set(4, seed=5, role="private")
    ledger.declare(first)
    ledger.declare(second)
    both = replace(first, role="public", images=np.concatenate([first.images[:2], second.images[:2]]))
    assert ledger.private_rows_in(both) == 4
    touched = both.images.copy()
    touched[:, 0, 0, 0] = np.where(touched[:, 0, 0, 0] < 0.5, 0.75, 0.25)
    assert ledger.private_rows_in(both.with_images(touched)) == 0


def test_a_private_row_is_recognised_at_another_size(ledger, make_set):
    private = make_set(shape=(1, 96, 96), role="private")
    ledger.declare(private)
    for size in (32, 64):
        small = resize(replace(private, role="public"), size)
        assert ledger.private_rows_in(small) == len(private)
        with pytest.raises(RoleError, match="rows of a private set"):
            ledger.use_public(small, stage="train")
    assert ledger.private_rows_in(resize(make_set(shape=(1, 96, 96), seed=1), 64)) == 0
    ledger.declare(make_set(shape=(1, 4, 48, 48), role="private"))
    ledger.declare(make_set(shape=(1, 48, 64), role="private"))


def test_private_sets_are_no_public_sets(ledger, make_set):
    private = make_set(role="private", name="scans")
    with pytest.raises(RoleError, match="tune: scans is declared private; use a public set"):
        ledger.use_public(private, stage="tune")
    for role in ("public", "eval"):
        with pytest.raises(RoleError, match=f"open: role is '{role}'; only private sets are declared"):
            ledger.declare(make_set(name="open", role=role))
        with pytest.raises(RoleError, match="only private sets"):
            ledger.use_private(make_set(name="open", role=role), stage="train")
    assert ledger.entries() == [] and ledger.private_rows_in(private) == 0


def test_readings_are_written_once_in_order(ledger, make_set):
    private = make_set(6, role="private", name="scans")
    part = private.in_split("train")
    assert ledger.use_private(private, stage="train", output="weights") is private
    assert ledger.use(part, stage="measure") is part
    ledger.use_private(private, stage="train", output="weights")
    expected = [
        Entry("train", "scans", private.content_hash, 3, "none", "weights"),
        Entry("measure", "scans/train", part.content_hash, part.patients, "none", ""),
    ]
    assert ledger.entries() == expected
    assert Ledger(ledger.folder).entries() == expected
    ledger.use_private(private, stage="train", output="other weights")
    assert len(ledger.entries()) == 3
    # using is declaring
    assert ledger.private_rows_in(replace(private, role="public")) == 6


def test_public_readings_leave_no_line(ledger, make_set):
    ledger.use(make_set(), stage="train")
    assert ledger.entries() == []


def test_unknown_mechanism(ledger, make_set):
    with pytest.raises(ValueError, match=r"train: unknown mechanism 'dp'; expected one of \('none',\)"):
        ledger.use_private(make_set(role="private"), stage="train", mechanism="dp")
    assert ledger.entries() == []


def test_only_the_owner_can_read_the_row_hashes(ledger, make_set):
    ledger.declare(make_set(role="private"))
    rows = ledger.folder / "private_rows"
    assert stat.S_IMODE(rows.stat().st_mode) == 0o700
    files = list(rows.iterdir())
    assert [stat.S_IMODE(f.stat().st_mode) for f in files] == [0o600]
    # nothing of a row in the part that may be shown
    ledger.use_private(make_set(role="private"), stage="train")
    shown = (ledger.folder / "ledger.jsonl").read_text()
    assert not any(h in shown for h in make_set(role="private").row_hashes)


def test_a_kill_while_declaring_leaves_nothing_that_misleads(ledger, make_set, monkeypatch):
    private = make_set(role="private")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("medsynth.ledger.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            ledger.declare(private)
    assert ledger.private_rows_in(replace(private, role="public")) == 0
    ledger.declare(private)
    assert ledger.private_rows_in(replace(private, role="public")) == len(private)


WRITER = """
import sys
from pathlib import Path
import numpy as np
from medsynth.resample import resize
from medsynth.imageset import ImageSet
from medsynth.ledger import Ledger
ledger, who = Ledger(Path(sys.argv[1])), sys.argv[2]
images = ImageSet(images=np.zeros((2, 1, 2, 2)), patient=np.arange(2), unit="1", range=(0, 1), name="s", role="private")
for i in range(40):
    ledger.use_private(images, stage=f"{who}-{i}")
    ledger.use_private(images, stage=f"both-{i}")
"""


def test_processes_that_write_at_once_lose_and_repeat_nothing(tmp_path, start_python, finish):
    writers = [start_python(WRITER, tmp_path, who) for who in ("a", "b")]
    for w in writers:
        status, _, errors = finish(w)
        assert status == 0, errors
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines()
    stages = [json.loads(line)["stage"] for line in lines]
    assert sorted(stages) == sorted(f"{who}-{i}" for who in ("a", "b", "both") for i in range(40))
    own = [s for s in stages if s.startswith("a-")]
    assert own == [f"a-{i}" for i in range(40)]


def test_measuring_held_out_patients_leaves_a_line(ledger, make_set):
    held_out = make_set(role="eval", name="test patients")
    assert ledger.measure(held_out, stage="FID", output="rows") is held_out
    ledger.measure(held_out, stage="FID", output="rows")
    ledger.measure(make_set(name="open", seed=3), stage="FID")
    (entry,) = ledger.entries()
    assert (entry.stage, entry.reads, entry.mechanism, entry.output) == ("FID", "test patients", "none", "rows")
    assert entry.content_hash == held_out.content_hash

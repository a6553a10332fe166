from __future__ import annotations

import json
import stat
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsynth import ledger as ledger_module
from medsynth.imageset import ImageSet, concatenate
from medsynth.ledger import CoverError, Entry, Ledger, RoleError
from medsynth.mechanism import MECHANISMS, NONE, Mechanism
from medsynth.resample import resize, slices_of

DP_SGD = Mechanism("dp-sgd", unit="patient", epsilon=8.0, delta=1e-6, accountant="prv", q=0.01, steps=1000)


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
    assert ledger.require_public(other, stage="pretrain") is other
    with pytest.raises(RoleError, match=r"pretrain: 2 of 6 rows of mixed \(declared 'public'\) are rows of a private set;"):
        ledger.require_public(mixed, stage="pretrain")
    ledger.read(private, stage="train")
    with pytest.raises(RoleError, match=r"2 of 6 rows of mixed .* are rows of a private set \(scans\)"):
        ledger.read(mixed, stage="pretrain")


def test_a_public_stage_is_refused_held_out_images_by_their_role_and_by_their_rows(ledger, make_set):
    held_out = make_set(6, role="eval", name="test patients")
    ledger.read(held_out, stage="FID")
    with pytest.raises(RoleError, match="tune: test patients is held out to be measured against; use a public set"):
        ledger.require_public(held_out, stage="tune")
    for verb in (ledger.require_public, ledger.read):
        with pytest.raises(RoleError, match=r"tune: 2 of 2 rows of open .* rows of a held-out set \(test patients\)"):
            verb(replace(held_out, role="public", name="open").select([4, 1]), stage="tune")
    # a held-out image is nobody's whose privacy is at stake
    assert ledger.private_rows_in(replace(held_out, role="public")) == 0


def test_nothing_is_trained_on_held_out_images(ledger, make_set):
    with pytest.raises(RoleError, match="train denoiser: test patients is held out to be measured against; train on another set"):
        ledger.read(make_set(role="eval", name="test patients"), stage="train denoiser")
    assert ledger.entries() == []


def test_one_changed_value_makes_another_row_and_any_declared_set_counts(ledger, make_set):
    first, second = make_set(4, role="private"), make_set(4, seed=5, role="private")
    ledger.declare(first)
    ledger.declare(second)
    both = replace(first, role="public", images=np.concatenate([first.images[:2], second.images[:2]]))
    assert ledger.private_rows_in(both) == 4
    touched = both.images.copy()
    touched[:, 0, 0, 0] = np.where(touched[:, 0, 0, 0] < 0.5, 0.75, 0.25)
    assert ledger.private_rows_in(both.with_images(touched)) == 0


def test_private_sets_are_no_public_sets(ledger, make_set):
    private = make_set(role="private", name="scans")
    with pytest.raises(RoleError, match="tune: scans is declared private; use a public set"):
        ledger.require_public(private, stage="tune")
    for role in ("public", "eval"):
        with pytest.raises(RoleError, match=f"open: role is '{role}'; only private sets are declared"):
            ledger.declare(make_set(name="open", role=role))
    assert ledger.entries() == [] and ledger.private_rows_in(private) == 0


def test_readings_are_written_once_in_order(ledger, make_set):
    private = make_set(6, role="private", name="scans")
    part = private.in_split("train")
    assert ledger.read(private, stage="train", output="weights") is private
    assert ledger.read(part, stage="measure") is part
    ledger.read(private, stage="train", output="weights")
    expected = [
        Entry("train", "scans", private.content_hash, 3, "private", NONE, "weights"),
        Entry("measure", "scans/train", part.content_hash, part.patients, "private"),
    ]
    assert ledger.entries() == expected
    assert Ledger(ledger.folder).entries() == expected
    ledger.read(private, stage="train", output="other weights")
    assert len(ledger.entries()) == 3


@pytest.mark.parametrize("stage", ["train denoiser", "measure quality", "gate"])
def test_whatever_the_stage_a_private_reading_remembers_its_rows(ledger, make_set, stage):
    private = make_set(6, role="private")
    ledger.read(private, stage=stage)
    assert Ledger(ledger.folder).private_rows_in(replace(private, role="public")) == 6


def test_public_readings_leave_no_line(ledger, make_set):
    ledger.read(make_set(), stage="train")
    assert ledger.entries() == [] and not ledger.folder.exists()


def test_the_ledger_of_the_cache_is_one_for_all(cache, make_set):
    Ledger().read(make_set(role="private"), stage="train")
    assert len(Ledger().entries()) == 1 and (cache / "ledger" / "ledger.jsonl").exists()


def test_a_table_shows_equal_lines_once_and_only_of_the_sets_asked_for(ledger, make_set):
    private, other = make_set(8, role="private", name="scans"), make_set(8, seed=1, role="private", name="other")
    ledger.read(private, stage="train", mechanism=DP_SGD, output="weights")
    ledger.read(other, stage="train")
    for half in (private.select(np.arange(4)), private.select(np.arange(4, 8))):
        ledger.read(half, stage="gate", output="verdicts")
    assert ledger.table(private).to_dict("list") == {
        "stage": ["train", "gate"],
        "reads": ["scans", "scans"],
        "patients": [4, 2],
        "mechanism": ["dp-sgd, (8, 1e-06)-DP per patient", "none"],
        "output": ["weights", "verdicts"],
    }
    assert ledger.table()["reads"].tolist() == ["scans", "other", "scans"]
    assert ledger.table(make_set(seed=2)).empty
    assert ledger.table(other, private)["stage"].tolist() == ["train", "train", "gate"]


# rows are what a set is known by


def scans(n: int, shape: tuple[int, ...], seed: int, name: str = "scans", role: str = "private") -> ImageSet:
    # codes of 8 bits, as files hold them
    codes = np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)
    return ImageSet(images=codes / np.float32(255), patient=np.arange(n) // 2, unit="1", range=(0, 1), name=name, role=role)


@given(
    seed=st.integers(0, 2**32 - 1),
    side=st.sampled_from([48, 64, 96, 160]),
    size=st.sampled_from([32, 64, 96, 0]),
    rows=st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True),
    derived_first=st.booleans(),
    role=st.sampled_from(["private", "eval"]),
)
def test_a_set_is_recognised_renamed_reordered_in_part_or_resized_and_no_other_is(seed, side, size, rows, derived_first, role):
    whole = scans(5, (1, side, side), seed, role=role)
    part = replace(whole.select(rows), name="renamed", split=None, spacing=None)
    part = resize(part, size) if 0 < size < side else part
    stranger = scans(5, (1, side, side), seed + 1, role=role)
    told, asked = (part, whole) if derived_first else (whole, part)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder))
        ledger.read(told, stage="measure")
        ledger.read(stranger, stage="measure strangers")
        assert [e.stage for e in ledger.entries(asked)] == ["measure"]
        assert [e.stage for e in ledger.entries(stranger)] == ["measure strangers"]
        open_ = replace(asked, role="public")
        assert ledger.private_rows_in(open_) == (len(rows) if role == "private" else 0)
        with pytest.raises(RoleError, match=f"{len(rows)} of {len(asked)} rows"):
            ledger.require_public(open_, stage="pretrain")
        ledger.require_public(scans(5, (1, side, side), seed + 2, role="public"), stage="pretrain")


@given(
    seed=st.integers(0, 2**32 - 1),
    sides=st.sampled_from([(40, 40), (36, 44), (64, 64)]),
    middle=st.sampled_from([0.3, 1.0]),
    size=st.sampled_from([0, 32]),
    derived_first=st.booleans(),
)
def test_planes_of_a_private_stack_are_private_and_a_stack_with_a_private_plane_is(seed, sides, middle, size, derived_first):
    stacks, strangers = scans(3, (1, 5, *sides), seed), scans(3, (1, 5, *sides), seed + 1)
    # stacks end in planes that show nothing, and these are nobody's
    padded = [s.with_images(np.concatenate([s.images, np.zeros((3, 1, 2, *sides))], axis=2)) for s in (stacks, strangers)]
    stacks, strangers = padded
    planes = slices_of(stacks, middle=middle)
    planes = resize(planes, size) if size else planes
    told, asked = (planes, stacks) if derived_first else (stacks, planes)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder))
        ledger.read(told, stage="gate")
        assert ledger.private_rows_in(replace(asked, role="public")) == len(asked)
        assert len(ledger.entries(asked)) == 1
        assert ledger.private_rows_in(replace(strangers, role="public")) == 0 and ledger.entries(strangers) == []


def test_a_set_of_images_of_one_value_is_no_ones_but_has_its_lines(ledger, make_set):
    blank = make_set(4, role="private", images=np.full((4, 1, 64, 64), 0.5))
    ledger.read(blank, stage="gate")
    other = make_set(4, (1, 64, 64), role="public")
    other = other.with_images(np.concatenate([other.images[:3], blank.images[:1]]))
    assert ledger.private_rows_in(other) == 0
    assert len(ledger.entries(blank)) == 1


def test_two_hospitals_pooled_do_not_become_relatives(ledger, make_set):
    north, south = (make_set(4, seed=i, role="private", name=name) for i, name in enumerate(("north", "south")))
    for images in (north, south, concatenate([north, south], "pool")):
        ledger.read(images, stage="train")
    assert [e.reads for e in ledger.entries(north)] == ["north", "pool"]
    assert [e.reads for e in ledger.entries(south)] == ["south", "pool"]
    assert [e.reads for e in ledger.entries(north, south)] == ["north", "south", "pool"]


def test_a_set_is_looked_at_in_all_sizes_once(ledger, make_set, monkeypatch):
    looked = []
    monkeypatch.setattr(ledger_module, "resize", lambda images, size: looked.append(size) or resize(images, size))
    private = make_set(4, (1, 64, 64), role="private")
    for stage in ("train", "measure"):
        ledger.read(private, stage=stage)
    ledger.entries(private)
    ledger.table(private)
    assert looked == [32]
    # and where its rows are on record, not even once
    again = Ledger(ledger.folder)
    again.read(private, stage="gate")
    assert looked == [32]


def test_a_large_set_is_looked_at_in_parts_and_all_of_it(ledger, make_set, monkeypatch):
    monkeypatch.setattr(ledger_module, "_CHUNK_BYTES", 3 * 64 * 64 * 4)
    private = make_set(8, (1, 64, 64), role="private")
    ledger.declare(private)
    assert ledger.private_rows_in(resize(replace(private, role="public"), 32)) == 8
    ledger.declare(make_set(0, (1, 64, 64), role="private"))


# mechanisms


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "dp"}, "unknown mechanism 'dp'; expected one of ('none', 'dp-sgd'"),
        ({"name": "none", "epsilon": 3.0}, "mechanism 'none': has no epsilon, found 3.0; leave it out"),
        ({"name": "none", "unit": "patient"}, "has no unit, found 'patient'"),
        ({"name": "dp-sgd"}, "mechanism 'dp-sgd': unit is missing; expected one of ('patient', 'image')"),
        ({"epsilon": None}, "epsilon is missing; expected a finite number above 0"),
        ({"epsilon": 0.0}, "epsilon is 0.0; expected a finite number above 0"),
        ({"epsilon": float("nan")}, "epsilon is nan"),
        ({"epsilon": float("inf")}, "epsilon is inf"),
        ({"delta": 1.0}, "delta is 1.0; expected a number between 0 and 1"),
        ({"unit": "scan"}, "unit is 'scan'; expected one of"),
        ({"accountant": ""}, "accountant is ''; expected the accountant's name"),
        ({"q": 1.5}, "q is 1.5; expected a share above 0, at most 1"),
        ({"steps": 0}, "steps is 0; expected a whole number above 0"),
        ({"steps": 10.5}, "steps is 10.5"),
        ({"name": "exponential mechanism"}, "mechanism 'exponential mechanism': has no delta, found 1e-06"),
    ],
)
def test_what_a_mechanism_cannot_be_is_refused(fields, said):
    described = fields if fields.get("name") in ("none", "dp") or fields == {"name": "dp-sgd"} else asdict(DP_SGD) | fields
    with pytest.raises(ValueError) as error:
        Mechanism(**described)
    assert said in str(error.value)


def test_every_mechanism_comes_back_from_its_line(ledger, make_set):
    private, found = make_set(role="private"), []
    values = asdict(DP_SGD)
    for name, (needed, possible) in MECHANISMS.items():
        for keys in (needed, (*needed, *possible)):
            found.append(Mechanism(name, **{key: values[key] for key in keys}))
            ledger.read(private, stage=f"{name} {len(found)}", mechanism=found[-1])
    assert [e.mechanism for e in Ledger(ledger.folder).entries()] == found
    assert str(found[-1]) == "exponential mechanism, (8, 0)-DP per patient" and str(NONE) == "none"


def test_conditions_from_private_rows_are_refused_to_a_generator_that_claims_a_mechanism(ledger, make_set):
    private, held_out = make_set(role="private", name="ward"), make_set(seed=1, role="eval")
    with ledger.making("generator 7") as readings:
        ledger.read(private, stage="train denoiser", mechanism=DP_SGD)
        ledger.read(private, stage="train denoiser", mechanism=DP_SGD)
        # others measure it, and public images are free
        ledger.read(held_out, stage="measure quality")
        ledger.read(make_set(seed=2), stage="draw conditions")
        with pytest.raises(CoverError) as error:
            ledger.read(private, stage="draw conditions")
    assert str(error.value).startswith(
        "generator 7: 'train denoiser' claims dp-sgd, (8, 1e-06)-DP per patient, but 'draw conditions' reads ward with no "
    )
    assert [e.stage for e in readings] == ["train denoiser", "measure quality"] == [e.stage for e in ledger.entries()]


def test_a_claim_that_comes_after_a_reading_without_cover_is_refused_too(ledger, make_set):
    private = make_set(role="private", name="ward")
    with ledger.making("generator 8"):
        ledger.read(private, stage="draw conditions")
        with pytest.raises(CoverError, match="generator 8: 'train denoiser' claims dp-sgd"):
            ledger.read(private, stage="train denoiser", mechanism=DP_SGD)
    # two things that are made one after the other, or outside, have nothing to do with one another
    ledger.read(private, stage="train denoiser", mechanism=DP_SGD)
    with ledger.making("a table") as readings:
        ledger.read(private, stage="gate")
    assert [e.stage for e in readings] == ["gate"]


# what is on disk


def test_only_the_owner_can_open_the_ledger(ledger, make_set):
    ledger.folder.mkdir(mode=0o755)
    ledger.read(make_set(role="private"), stage="train")
    ledger.read(make_set(seed=1, role="eval"), stage="measure")
    folders = [ledger.folder, ledger.folder / "private_rows", ledger.folder / "eval_rows"]
    assert [stat.S_IMODE(f.stat().st_mode) for f in folders] == [0o700] * 3
    assert [stat.S_IMODE(f.stat().st_mode) for f in ledger.folder.glob("*_rows/*")] == [0o600] * 2
    # nothing of a row in the part that may be shown
    shown = (ledger.folder / "ledger.jsonl").read_text()
    assert not any(h[:16] in shown for h in make_set(role="private").row_hashes)


def test_a_kill_while_declaring_leaves_nothing_that_misleads(ledger, make_set, monkeypatch):
    private = make_set(role="private")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("medsynth.store.runs.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            ledger.read(private, stage="train")
    assert ledger.private_rows_in(replace(private, role="public")) == 0 and ledger.entries() == []
    ledger.read(private, stage="train")
    assert ledger.private_rows_in(replace(private, role="public")) == len(private)


def test_a_line_that_was_cut_short_is_named_and_swallows_no_other(ledger, make_set):
    private = make_set(role="private")
    ledger.read(private, stage="train")
    file = ledger.folder / "ledger.jsonl"
    whole = file.read_text()
    file.write_text(whole + whole[:30])
    ledger.read(private, stage="gate")
    with pytest.raises(ValueError, match=r"ledger.jsonl: line 2 is no entry .*; mend it, or remove it if a crash cut it short"):
        ledger.entries()
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[2]]))
    # an editor may leave out the last line's end
    ledger.read(private, stage="verify")
    assert [e.stage for e in ledger.entries()] == ["train", "gate", "verify"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mechanism": "magic"}, "unknown mechanism 'magic'"),
        ({"mechanism": {"name": "none", "epsilon": 1.0}}, "has no epsilon"),
        ({"patients": "three"}, "entry.patients: found str 'three'"),
        ({"budget": 3}, "unknown key 'budget'"),
        ({"stage": None}, "entry.stage"),
    ],
)
def test_a_line_that_is_no_entry_is_an_error_that_names_it(ledger, make_set, change, said):
    ledger.read(make_set(role="private"), stage="train")
    file = ledger.folder / "ledger.jsonl"
    file.write_text(json.dumps(json.loads(file.read_text()) | change) + "\n")
    with pytest.raises(ValueError, match=r"ledger\.jsonl: line 1 is no entry") as error:
        ledger.entries()
    assert said in str(error.value)


def test_ledgers_of_older_versions_one_for_each_file_are_read_too(ledger, make_set):
    private = make_set(6, role="private", name="scans")
    older = ledger.folder / "mine" / "private_rows"
    older.mkdir(parents=True)
    np.save(older / f"{private.content_hash}.npy", np.unique(private.row_hashes))
    line = {"stage": "gate", "reads": "scans", "content_hash": private.content_hash, "patients": 3, "mechanism": "none"}
    (older.parent / "ledger.jsonl").write_text(json.dumps(line | {"output": "verdicts"}) + "\n")
    assert ledger.private_rows_in(replace(private, role="public").select([1, 3])) == 2
    expected = Entry("gate", "scans", private.content_hash, 3, "private", NONE, "verdicts")
    assert ledger.entries(private.select([4])) == [expected]
    ledger.read(private, stage="gate", output="verdicts")
    assert ledger.entries() == [expected]


WRITER = """
import sys
from pathlib import Path
import numpy as np
from medsynth.imageset import ImageSet
from medsynth.ledger import Ledger
ledger, who = Ledger(Path(sys.argv[1])), sys.argv[2]
images = ImageSet(images=np.eye(2).reshape(1, 1, 2, 2), patient=[0], unit="1", range=(0, 1), name="s", role="private")
for i in range(40):
    ledger.read(images, stage=f"{who}-{i}")
    ledger.read(images, stage=f"both-{i}")
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
    assert len(list((tmp_path / "private_rows").glob("*"))) == 1

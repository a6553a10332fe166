import json
import shutil
import time
from dataclasses import replace

import filelock
import pytest
from stub_project import make_project, write_notebook

from medsynth.publish import plan as reproduce
from medsynth.publish.notebook import ChapterError
from medsynth.publish.plan import (
    build_folder,
    chapter_sources,
    find_chapter,
    make_plan,
    measured,
    parse_data,
    reasons,
    run_chapter,
    run_plan,
)

KNOWN = ["00_quickstart", "01_data", "02_generator"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(make_project(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["02_generator", "generator", "02", "2"])
def test_a_chapter_is_meant_by_number_or_name(name):
    assert find_chapter(name, KNOWN) == "02_generator"


def test_an_unknown_chapter_names_the_closest(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'generator'"):
        find_chapter("generatr", KNOWN)
    with pytest.raises(ValueError, match="expected one of"):
        find_chapter("zzz", KNOWN)
    with pytest.raises(FileNotFoundError, match="no chapters"):
        chapter_sources(tmp_path)


def test_data_is_an_area_and_a_file(tmp_path):
    file = tmp_path / "mine.npz"
    file.touch()
    assert parse_data([f"thorax={file}"]) == {"data": file}
    other = tmp_path / "other.npz"
    other.touch()
    several = parse_data([f"mr={other}", f"ct={file}"])
    assert list(several.items()) == [("ct", file), ("mr", other)]
    assert build_folder(tmp_path, "smoke", several) == tmp_path / "build" / "smoke-mine-other"
    with pytest.raises(ValueError, match=r"ct has a file already, mine\.npz"):
        parse_data([f"ct={file}", f"ct={other}"])
    with pytest.raises(ValueError, match="expected AREA=PATH with an area of thorax, ct, mr"):
        parse_data(["torax=x"])
    with pytest.raises(FileNotFoundError, match="no file at"):
        parse_data([f"thorax={file}.gone"])


def test_a_plan_gives_chapters_what_they_declare(project):
    (project / "mine.npz").write_text("1")
    plan = make_plan(project, "smoke", data={"data": project / "mine.npz"})
    first, second = plan.chapters
    assert plan.folder == project / "build" / "smoke-mine"
    assert first.parameters == {"profile": "smoke"}
    assert second.parameters == {
        "profile": "smoke",
        "out": "build/smoke-mine/results/01_second",
        "data": str(project / "mine.npz"),
    }
    assert "data" in second.depends
    assert "data" not in first.depends
    assert [c.name for c in make_plan(project, "smoke", only="1").chapters] == ["01_second"]
    # a file for another area is no business of these chapters
    (project / "head.npz").write_text("1")
    both = make_plan(project, "smoke", data={"data": project / "mine.npz", "ct": project / "head.npz"})
    assert [set(c.depends) & {"data", "ct"} for c in both.chapters] == [set(), {"data"}]
    assert both.folder == project / "build" / "smoke-mine-head"
    with pytest.raises(ValueError, match="did you mean 'smoke'"):
        make_plan(project, "smok")


@pytest.mark.slow
def test_snakemake_runs_what_changed_and_nothing_else(project):
    said = []
    run = lambda: run_plan(make_plan(project, "smoke"), say=said.append)  # noqa: E731
    assert run() == 2
    assert said == ["00_first: runs (not run yet)", "01_second: runs (not run yet)"]
    copies = [project / "build" / "smoke" / "chapters" / f"{name}.ipynb" for name in ("00_first", "01_second")]
    rows = project / "build" / "smoke" / "results" / "01_second" / "rows.txt"
    assert rows.read_text() == "8 "
    assert json.loads(copies[1].read_text())["metadata"]["medsynth"]["wrote"] == ["rows.txt"]
    before = [c.stat().st_mtime_ns for c in copies]
    said.clear()
    assert run() == 0
    assert said == []
    # a section that only the second chapter reads
    profile = project / "profiles" / "smoke.yaml"
    profile.write_text(profile.read_text().replace("slices: 8", "slices: 16"))
    assert run() == 1
    assert said == ["01_second: runs (profile.cardiac)"]
    assert rows.read_text() == "16 "
    after = [c.stat().st_mtime_ns for c in copies]
    assert after[0] == before[0]
    assert after[1] > before[1]
    rows.unlink()
    assert reasons(make_plan(project, "smoke"), make_plan(project, "smoke").chapters[1]) == ["rows.txt is missing"]


@pytest.mark.slow
@pytest.mark.parametrize(("told", "jobs", "expected"), [(None, 1, "6"), (None, 3, "2"), (None, 9, "1"), ("5,2", 2, "5")])
def test_chapters_share_the_processors(project, monkeypatch, told, jobs, expected):
    monkeypatch.setattr(reproduce.os, "cpu_count", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    write_notebook(
        project / "notebooks" / "01_second.ipynb",
        'import os\nfrom pathlib import Path\nPath(out, "threads.txt").write_text(os.environ["OMP_NUM_THREADS"])',
        parameters='out: str = ""',
    )
    plan = make_plan(project, "smoke", only="second")
    run_plan(plan, jobs=jobs, say=lambda _: None)
    assert (plan.folder / plan.chapters[0].out / "threads.txt").read_text() == expected


@pytest.mark.slow
def test_a_failing_chapter_fails_the_run(project):
    write_notebook(project / "notebooks" / "01_second.ipynb", "1 / 0")
    with pytest.raises(ChapterError, match="chapters that failed: 01_second"):
        run_plan(make_plan(project, "smoke", only="second"), say=lambda _: None)


def test_a_chapter_starts_with_an_empty_folder(project, monkeypatch):
    plan = make_plan(project, "smoke")
    plan.folder.mkdir(parents=True)
    stale = plan.folder / plan.chapters[1].out / "stale.csv"
    stale.parent.mkdir(parents=True)
    stale.touch()
    reproduce.write_json(plan.file, {"root": str(project), "chapters": [vars(c) for c in plan.chapters]})

    def ran(source, target, parameters, *, cwd, log, remark):
        (cwd / parameters["out"] / "new.csv").touch()
        return remark()

    monkeypatch.setattr(reproduce, "run_notebook", ran)
    assert run_chapter(plan.file, "01_second") == {"depends": plan.chapters[1].depends, "data": [], "wrote": ["new.csv"]}
    assert not stale.exists()


def test_two_at_once_in_one_folder_are_refused(project):
    plan = make_plan(project, "smoke")
    plan.folder.mkdir(parents=True)
    with filelock.FileLock(plan.folder / ".lock"), pytest.raises(ValueError, match="in use by another"):
        run_plan(plan, say=lambda _: None)


def test_many_reasons_are_summed_up(project):
    plan = make_plan(project, "smoke", only="first")
    target = plan.folder / plan.chapters[0].target
    target.parent.mkdir(parents=True)
    shutil.copy(project / plan.chapters[0].source, target)
    said = []
    several = replace(plan.chapters[0], depends={f"module{k}": "" for k in range(6)})
    run_plan(replace(plan, chapters=(several,)), dry_run=True, say=said.append)
    assert said == ["00_first: would run (module0, module1, module2, module3 and 2 more)"]


def test_time_and_memory_are_measured():
    with measured() as cost:
        block = bytearray(64 << 20)
        time.sleep(0.05)
    assert len(block) and cost.seconds >= 0.05
    assert cost.peak_bytes > 1 << 20

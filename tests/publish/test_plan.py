import csv
import json
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import filelock
import pytest
from stub_project import make_project, write_notebook

from medsynth.data.npz import KNOWN as KNOWN_FILES
from medsynth.publish import plan as reproduce
from medsynth.publish.notebook import ChapterError
from medsynth.publish.plan import (
    build_folder,
    chapter_sources,
    find_chapter,
    make_plan,
    measured,
    needs,
    parse_data,
    reasons,
    run_chapter,
    run_plan,
)
from medsynth.publish.slurm import Job, SlurmRun

ROOT = Path(__file__).resolve().parents[2]
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
    with pytest.raises(ValueError, match="expected AREA=PATH with an area of thorax, ct, mr, real"):
        parse_data(["torax=x"])
    with pytest.raises(FileNotFoundError, match="no file at"):
        parse_data([f"thorax={file}.gone"])


def test_real_sets_are_a_folder_that_lacks_none(tmp_path):
    folder = tmp_path / "sets"
    with pytest.raises(FileNotFoundError, match="sets: no such folder"):
        parse_data([f"real={folder}"])
    folder.mkdir()
    for name in KNOWN_FILES:
        (folder / f"{name}.npz").touch()
    found = parse_data([f"real={folder}", f"ct={folder / 'ct_tcia_hu_256.npz'}"])
    assert found == {"ct": folder / "ct_tcia_hu_256.npz", "real": folder}
    assert build_folder(tmp_path, "full", {"real": folder}) == tmp_path / "build" / "full-sets"
    (folder / "mri_acdc_3d.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"sets: lacks mri_acdc_3d\.npz"):
        parse_data([f"real={folder}"])
    with pytest.raises(FileNotFoundError, match="no file at"):
        parse_data([f"ct={folder}"])


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


def test_every_chapter_of_every_profile_has_its_needs():
    profiles = [path.stem for path in (ROOT / "profiles").glob("*.yaml")]
    for profile in profiles:
        for chapter in chapter_sources(ROOT):
            found = needs(ROOT, profile, chapter)
            assert found["mem_mb"] > 2000 and found["runtime"] > 10 and found["threads"] in (2, 4, 8)
            assert ("gpu" in found) == (profile == "paper")


def test_no_need_is_of_a_chapter_that_is_not_there_and_all_say_where_they_are_from():
    with (ROOT / "profiles" / "needs.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert {row["profile"] for row in rows} == {*(path.stem for path in (ROOT / "profiles").glob("*.yaml")), "*"}
    assert {row["chapter"] for row in rows} <= {*chapter_sources(ROOT), "*"}
    assert all(row["how"].startswith(("measured", "estimated")) for row in rows)


def test_the_first_row_that_fits_counts(tmp_path):
    table = tmp_path / "profiles" / "needs.csv"
    table.parent.mkdir()
    rows = "full,02_*,9,8,7,1,x\nfull,*,6,5,4,0,x\npaper,01_a,a,1,1,0,x\n"
    table.write_text(f"profile,chapter,mem_mb,runtime,threads,gpu,how\n{rows}")
    assert needs(tmp_path, "full", "02_generator") == {"mem_mb": 9, "runtime": 8, "threads": 7, "gpu": 1}
    assert needs(tmp_path, "full", "03_gate") == {"mem_mb": 6, "runtime": 5, "threads": 4}
    with pytest.raises(ValueError, match="no row for chapter 03_gate in profile mine"):
        needs(tmp_path, "mine", "03_gate")
    with pytest.raises(ValueError, match=r"needs\.csv: line 4 is .*'mem_mb': 'a'.*; expected whole numbers"):
        needs(tmp_path, "paper", "01_a")


def test_what_a_chapter_needs_is_no_part_of_its_fingerprint(project):
    before = make_plan(project, "smoke").chapters
    (project / "profiles" / "needs.csv").write_text("profile,chapter,mem_mb,runtime,threads,gpu,how\n*,*,1,2,3,4,estimated\n")
    after = make_plan(project, "smoke").chapters
    assert [c.fingerprint for c in after] == [c.fingerprint for c in before]
    assert after[0].needs == {"mem_mb": 1, "runtime": 2, "threads": 3, "gpu": 4}


class Here(SlurmRun):
    """A cluster that is this machine: Snakemake runs the chapters itself, or only says what it would ask for."""

    extra = ("--cores", "2")

    def options(self, jobs):
        return list(self.extra)

    def watch(self, snakemake, say):
        snakemake.wait()
        return ""


@pytest.mark.slow
def test_a_rule_asks_for_what_its_chapter_needs(project):
    table = "smoke,00_first,1234,56,2,0,x\nsmoke,*,2345,67,1,1,x\n"
    (project / "profiles" / "needs.csv").write_text("profile,chapter,mem_mb,runtime,threads,gpu,how\n" + table)
    slurm = Here(project / "build" / "smoke" / "slurm", partition="gpu-long")
    slurm.extra = ("--cores", "8", "--dry-run")
    with pytest.raises(ChapterError):  # a dry run leaves no results
        run_plan(make_plan(project, "smoke"), slurm=slurm, say=lambda _: None)
    rules = (slurm.folder / "snakemake.log").read_text().split("rule chapter_")[1:]
    first, second = (next(rule for rule in rules if rule.startswith(name)) for name in ("00_first", "01_second"))
    asked = lambda rule: dict(part.split("=") for part in rule.split("resources: ")[1].splitlines()[0].split(", "))  # noqa: E731
    assert {"mem_mb": "1234", "runtime": "56", "slurm_partition": "gpu-long"}.items() <= asked(first).items()
    assert {"mem_mb": "2345", "runtime": "67", "gpu": "1"}.items() <= asked(second).items()
    assert "threads: 2" in first
    assert "gpu" not in asked(first)


@pytest.mark.slow
def test_a_run_on_a_cluster_counts_by_what_is_there(project):
    slurm, said = Here(project / "build" / "smoke" / "slurm"), []
    assert run_plan(make_plan(project, "smoke", only="first"), slurm=slurm, say=said.append) == 1
    assert said == ["00_first: runs (not run yet); asks for mem_mb 3000, runtime 60, threads 2"]
    assert run_plan(make_plan(project, "smoke", only="first"), slurm=slurm, say=said.append) == 0


def fake_run(monkeypatch, slurm, *, leaves=(), why="", returncode=0, jobs=()):
    """Snakemake ends at once with `returncode`, having left some targets; Slurm knew `jobs`, and the watch says `why`."""
    process = subprocess.Popen(["sh", "-c", f"exit {returncode}"])
    monkeypatch.setattr(reproduce.subprocess, "Popen", lambda *_, **__: process)

    def watch(snakemake, say):
        snakemake.wait()
        slurm.jobs = {job.chapter: job for job in jobs}
        for chapter, target in leaves:
            target.parent.mkdir(parents=True, exist_ok=True)
            remark = {"depends": chapter.depends, "wrote": []}
            target.write_text(json.dumps({"cells": [], "metadata": {"medsynth": remark}, "nbformat": 4, "nbformat_minor": 5}))
        return why

    monkeypatch.setattr(slurm, "watch", watch)
    monkeypatch.setattr(slurm, "options", lambda jobs: [])


@pytest.fixture
def cluster(project):
    plan = make_plan(project, "smoke")
    return plan, SlurmRun(plan.folder / "slurm"), [(c, plan.folder / c.target) for c in plan.chapters]


def test_a_failed_job_is_named_with_its_chapter_its_log_and_its_error(cluster, monkeypatch):
    plan, slurm, results = cluster
    job = Job("12", "FAILED", "01_second", "0:10", "n1")
    slurm.log(job).parent.mkdir(parents=True)
    told = "error: chapter 01_second failed in code cell 2\n  1/0\n"
    slurm.log(job).write_text(f"a line\n{told}what it did not say\nsrun: error: exit 1\n  x\n")
    fake_run(monkeypatch, slurm, leaves=results[:1], returncode=1, jobs=[job])
    said = []
    log = "build/smoke/slurm/rule_chapter_01_second/12.log"
    with pytest.raises(ChapterError) as caught:
        run_plan(plan, slurm=slurm, say=said.append)
    assert str(caught.value) == f"chapters that failed: 01_second (job 12 FAILED after 0:10, see {log})"
    assert said[2:] == ["error: chapter 01_second failed in code cell 2", "  1/0", "srun: error: exit 1"]


def test_a_chapter_that_slurm_did_not_take_is_named(cluster, monkeypatch):
    plan, slurm, results = cluster
    fake_run(monkeypatch, slurm, leaves=results[:1], returncode=1)
    with pytest.raises(ChapterError, match=r"failed: 01_second \(no job, see build/smoke/slurm/snakemake\.log\)$"):
        run_plan(plan, slurm=slurm, say=lambda _: None)


@pytest.mark.parametrize("why", ["", "no job was in the queue"])
def test_a_job_that_is_gone_without_a_result_is_a_failure(cluster, monkeypatch, why):
    plan, slurm, results = cluster
    fake_run(monkeypatch, slurm, leaves=results[:1], why=why, jobs=[Job("12", "GONE", "01_second", "0:10", "")])
    with pytest.raises(ChapterError, match=r"01_second \(job 12 is gone from the queue after 0:10, see .*12\.log\)") as caught:
        run_plan(plan, slurm=slurm, say=lambda _: None)
    assert str(caught.value).endswith(f"; {why}" if why else ")")


def test_a_job_that_is_gone_after_its_result_is_none(cluster, monkeypatch):
    plan, slurm, results = cluster
    fake_run(monkeypatch, slurm, leaves=results, why="no job was in the queue", returncode=1)
    assert run_plan(plan, slurm=slurm, say=lambda _: None) == 2


def test_snakemake_that_stops_for_another_reason_is_told(cluster, monkeypatch):
    plan, slurm, results = cluster
    fake_run(monkeypatch, slurm, leaves=results, returncode=1)
    with pytest.raises(ChapterError, match=r"Snakemake itself stopped, see build/smoke/slurm/snakemake\.log"):
        run_plan(plan, slurm=slurm, say=lambda _: None)


def test_without_slurm_nothing_is_begun(project, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("medsynth.publish.slurm.importlib.util.find_spec", lambda _: object())
    plan, said = make_plan(project, "smoke"), []
    slurm = SlurmRun(plan.folder / "slurm")
    with pytest.raises(ValueError, match="no sbatch on the PATH"):
        run_plan(plan, slurm=slurm, say=said.append)
    assert said == []
    assert not plan.folder.exists()
    # what would run can be asked anywhere
    assert run_plan(plan, slurm=slurm, dry_run=True, say=said.append) == 2
    assert said[1] == "01_second: would run (not run yet); asks for mem_mb 3000, runtime 60, threads 2"


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

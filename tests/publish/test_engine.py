import json
import os
import shutil
import subprocess
import time
from dataclasses import replace
from types import SimpleNamespace

import filelock
import pytest
from stub_project import add_arms, make_project, write_notebook

from medsynth.publish import engine
from medsynth.publish.engine import jobs_for, measured, run_plan
from medsynth.publish.notebook import ChapterError
from medsynth.publish.plan import due, make_plan, reasons
from medsynth.publish.slurm import Job, SlurmRun


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(make_project(tmp_path))
    return tmp_path


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


@pytest.mark.parametrize(("told", "jobs", "expected"), [(None, 1, 6), (None, 3, 2), (None, 9, 1), ("5,2", 2, 5)])
def test_chapters_share_the_processors(project, monkeypatch, told, jobs, expected):
    monkeypatch.setattr(engine.os, "cpu_count", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    asked = {}
    monkeypatch.setattr(
        engine, "_here", lambda plan, runs, cores, _: asked.update(json.loads(plan.file.read_text()), cores=cores)
    )
    run_plan(make_plan(project, "smoke", only="second"), jobs=jobs, say=lambda _: None)
    assert (asked["threads"], asked["cores"]) == (expected, jobs * expected)


@pytest.mark.slow
def test_a_chapter_is_told_its_share(project, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    write_notebook(
        project / "notebooks" / "01_second.ipynb",
        'import os\nfrom pathlib import Path\nPath(out, "threads.txt").write_text(os.environ["OMP_NUM_THREADS"])',
        parameters='out: str = ""',
    )
    plan = make_plan(project, "smoke", only="second")
    run_plan(plan, jobs=2, say=lambda _: None)
    assert (plan.folder / plan.chapters[0].out / "threads.txt").read_text() == "3"


@pytest.mark.slow
def test_a_failing_chapter_fails_the_run(project):
    write_notebook(project / "notebooks" / "01_second.ipynb", "1 / 0")
    with pytest.raises(ChapterError, match="chapters that failed: 01_second"):
        run_plan(make_plan(project, "smoke", only="second"), say=lambda _: None)


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
    monkeypatch.setattr(engine.subprocess, "Popen", lambda *_, **__: process)

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
    run_plan(replace(plan, runs=(several,)), dry_run=True, say=said.append)
    assert said == ["00_first: would run (module0, module1, module2, module3 and 2 more)"]


def test_time_and_memory_are_measured():
    with measured() as cost:
        block = bytearray(64 << 20)
        time.sleep(0.05)
    assert len(block) and cost.seconds >= 0.05
    assert cost.peak_bytes > 1 << 20


# arms

ARMS = ["02_third/left", "02_third/right", "02_third/ct-low-dose-edsr", "02_third/mr-x2-edsr"]


@pytest.mark.slow
def test_arms_run_at_once_before_their_chapter_which_alone_writes_rows(project):
    add_arms(project)
    said = []
    plan = make_plan(project, "smoke", only="third")
    assert run_plan(plan, jobs=2, say=said.append) == 1
    assert said == [f"{name}: runs (not run yet)" for name in [*ARMS, "02_third"]]
    # those of the second kind end only together: each waits for what the other leaves
    ended = {run.name: (plan.folder / run.target).stat().st_mtime_ns for run in plan.runs}
    begun = {path.name: path.stat().st_mtime_ns for path in (project / "seen").iterdir()}
    assert max(ended[name] for name in ARMS[:2]) < min(begun[f"second {k} edsr"] for k in ("ct-low-dose", "mr-x2"))
    assert max(ended[name] for name in ARMS) < begun["first "] < begun["second "]
    assert [p.name for p in plan.folder.rglob("rows.txt")] == ["rows.txt"]
    assert (plan.folder / "results" / "02_third" / "rows.txt").read_text() == "rows"
    assert due(make_plan(project, "smoke", only="third")) == {}
    # the chapter alone, because no arm would do anything else
    (plan.folder / "results" / "02_third" / "rows.txt").unlink()
    said.clear()
    assert run_plan(plan, jobs=2, say=said.append) == 1
    assert said == ["02_third: runs (rows.txt is missing)"]


@pytest.mark.slow
def test_an_arm_that_fails_is_named_and_its_chapter_never_begins(project):
    fails = "assert only != 'mr-x2/edsr'"
    add_arms(project, second=fails)
    plan = make_plan(project, "smoke", only="third")
    stale = plan.folder / "chapters" / "02_third.failed.ipynb"
    stale.parent.mkdir(parents=True)
    stale.touch()
    os.utime(stale, (0, 0))
    with pytest.raises(ChapterError, match=r"chapters that failed: 02_third/mr-x2-edsr$"):
        run_plan(plan, jobs=2, say=lambda _: None)
    assert (plan.folder / "arms" / "02_third" / "mr-x2-edsr.failed.ipynb").exists()
    assert not (plan.folder / plan.runs[-1].target).exists()
    # repaired, it goes on where it was
    said = []
    add_arms(project, second=fails.replace("mr-x2/edsr", "none"))
    assert run_plan(make_plan(project, "smoke", only="third"), jobs=2, say=said.append) == 1
    assert [line.partition(":")[0] for line in said] == [*ARMS[2:], "02_third"]


def test_what_would_run_can_be_asked(project):
    add_arms(project)
    said = []
    assert run_plan(make_plan(project, "smoke", only="third"), jobs=2, dry_run=True, say=said.append) == 1
    assert said == [f"{name}: would run (not run yet)" for name in [*ARMS, "02_third"]]
    # one after the other, they would only load things twice
    said.clear()
    assert run_plan(make_plan(project, "smoke", only="third"), jobs=1, dry_run=True, say=said.append) == 1
    assert said == ["02_third: would run (not run yet)"]
    assert not (project / "build").exists()


@pytest.mark.parametrize(
    ("cores", "gigabytes", "told", "runs", "expected"),
    [
        (2, 16, "", 6, 2),
        (8, 16, "", 6, 3),  # of 5 GB each
        (8, 64, "", 6, 6),  # no more than there are
        (8, 64, "4", 6, 2),
        (8, 64, "16", 6, 1),
        (1, 64, "", 6, 1),
        (8, 2, "", 6, 1),  # tried all the same
    ],
)
def test_as_many_run_at_a_time_as_have_processors_and_memory(monkeypatch, cores, gigabytes, told, runs, expected):
    monkeypatch.setattr(engine.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(engine.psutil, "virtual_memory", lambda: SimpleNamespace(total=gigabytes << 30))
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    small, large = (SimpleNamespace(needs={"mem_mb": mb}) for mb in (1000, 5000))
    assert jobs_for([small, *[large] * (runs - 1)]) == expected


def test_on_a_cluster_a_chapter_whose_arm_failed_is_not_what_failed(project, monkeypatch):
    add_arms(project)
    plan = make_plan(project, "smoke", only="third")
    slurm = SlurmRun(plan.folder / "slurm")
    done = [(run, plan.folder / run.target) for run in plan.runs[:3]]
    job = Job("12", "FAILED", "02_third/mr-x2-edsr", "0:10", "n1")
    fake_run(monkeypatch, slurm, leaves=done, returncode=1, jobs=[job])
    said = []
    with pytest.raises(ChapterError) as caught:
        run_plan(plan, slurm=slurm, say=said.append)
    log = "build/smoke/slurm/rule_chapter_02_third/mr-x2-edsr/12.log"
    assert str(caught.value) == f"chapters that failed: 02_third/mr-x2-edsr (job 12 FAILED after 0:10, see {log})"
    assert said[0] == f"{ARMS[0]}: runs (not run yet); asks for mem_mb 3000, runtime 60, threads 2"


@pytest.mark.slow
def test_a_cluster_is_told_what_waits_for_what(project):
    add_arms(project)
    table = "smoke,02_third/*,1234,56,2,0,x\nsmoke,*,2345,67,1,1,x\n"
    (project / "profiles" / "needs.csv").write_text("profile,chapter,mem_mb,runtime,threads,gpu,how\n" + table)
    slurm = Here(project / "build" / "smoke" / "slurm")
    slurm.extra = ("--cores", "8", "--dry-run")
    with pytest.raises(ChapterError):  # a dry run leaves no results
        run_plan(make_plan(project, "smoke", only="third"), slurm=slurm, say=lambda _: None)
    rules = (slurm.folder / "snakemake.log").read_text().split("rule chapter_")[1:]
    found = {rule.partition(":")[0]: rule for rule in rules}
    assert "mem_mb=1234" in found["02_third/left"] and "input: " not in found["02_third/left"]
    assert "input: arms/02_third/left.ipynb, arms/02_third/right.ipynb\n" in found["02_third/mr-x2-edsr"]
    assert "mem_mb=2345" in found["02_third"]
    assert all(f"arms/{name}.ipynb" in found["02_third"].partition("output")[0] for name in ARMS)

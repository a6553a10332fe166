import os
import subprocess
import sys

import pytest

from medsynth.publish import slurm
from medsynth.publish.slurm import Job, SlurmRun

FIRST = "7|{}_uuid|{}|rule_chapter_00_first|1:02|{}"
SECOND = "8|{}_uuid|{}|rule_chapter_01_second|0:00|{}"


@pytest.fixture
def run(tmp_path):
    return SlurmRun(tmp_path / "slurm")


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """The one folder of the PATH, with the programs of Slurm in it, which do nothing; and the plug-in is installed."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "squeue", "scancel", "scontrol", "srun"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(slurm.importlib.util, "find_spec", lambda _: object())
    return folder


@pytest.fixture
def snakemake():
    """A process that goes on for longer than any test."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def queue(monkeypatch, run):
    """What `squeue` answers, look after look, the last answer again and again; and the other commands that were given."""
    answers, given = [], []

    def ask(program, *arguments):
        if program != "squeue":
            given.append([program, *arguments])
            return ""
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return "\n".join(line.format(run.name, state, where) for line, state, where in answer)

    monkeypatch.setattr(slurm, "ask", ask)
    monkeypatch.setattr(slurm, "POLL", 0.01)
    monkeypatch.setattr(slurm, "PATIENCE", 0.2)
    monkeypatch.setattr(slurm, "UNREACHABLE", 0.2)
    return answers, given


@pytest.mark.parametrize(("accounts", "command"), [("none", "squeue"), ("slurmdbd", "sacct")])
def test_the_plug_in_asks_whoever_knows(run, programs, accounts, command):
    said = f"AccountingStorageHost = slurmdbd\nAccountingStorageType = accounting_storage/{accounts}"
    (programs / "scontrol").write_text(f"#!/bin/sh\necho '{said}'\n")
    options = run.options(6)
    pairs = dict(zip(options[::2], options[1::2], strict=True))
    assert pairs["--executor"] == "slurm"
    assert pairs["--jobs"] == "6"
    assert pairs["--slurm-status-command"] == command
    assert pairs["--slurm-logdir"] == str(run.folder)
    assert pairs["--slurm-jobname-prefix"] == run.name
    # the plug-in falls back on accounts if a cluster remembers a job for less than three of these
    assert 3 * int(pairs["--slurm-init-seconds-before-status-checks"]) < 60


def test_two_runs_never_take_each_others_jobs(tmp_path):
    assert SlurmRun(tmp_path).name != SlurmRun(tmp_path).name


def test_only_what_was_chosen_is_asked_for(tmp_path):
    assert SlurmRun(tmp_path).resources() == {}
    assert SlurmRun(tmp_path, "gpu-long", "42").resources() == {"slurm_partition": "gpu-long", "slurm_account": "42"}


def test_without_the_plug_in_the_error_says_how_to_install_it(run, programs, monkeypatch):
    monkeypatch.setattr(slurm.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"plug-in snakemake-executor-plugin-slurm; install it with: .* '\.\[slurm\]'"):
        run.options(1)


@pytest.mark.parametrize("program", ["sbatch", "squeue", "scancel", "scontrol"])
def test_a_machine_without_slurm_is_told(run, programs, program):
    (programs / program).unlink()
    with pytest.raises(ValueError, match=f"no {program} on the PATH"):
        run.options(1)


def test_a_controller_that_does_not_answer_is_told_before_anything_runs(run, programs):
    (programs / "scontrol").write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n")
    with pytest.raises(ValueError, match=r"the controller does not answer \(scontrol: Unable to contact slurm controller\)"):
        run.options(1)


def test_srun_in_a_job_finds_the_configuration_that_the_plug_in_drops(run, programs):
    (programs / "srun").write_text('#!/bin/sh\necho "$SLURM_CONF" "$@"\n')
    environment = run.environment(os.environ | {"SLURM_CONF": "/etc/our cluster/slurm.conf"})
    del environment["SLURM_CONF"]
    done = subprocess.run(["/bin/sh", "-c", "srun -n1 'a b'"], env=environment, capture_output=True, text=True)
    assert done.stdout == "/etc/our cluster/slurm.conf -n1 a b\n"
    # a cluster with its configuration in the usual place needs nothing
    assert run.environment({"A": "b"}) == {"A": "b"}


def test_every_change_is_said_once(run, queue, snakemake):
    waits = [(FIRST, "PENDING", "(None)"), (SECOND, "PENDING", "(Resources)")]
    runs = [(FIRST, "RUNNING", "n1"), (SECOND, "PENDING", "(Resources)")]
    ends = [(FIRST, "COMPLETED", "n1"), (SECOND, "OUT_OF_MEMORY", "n1")]
    queue[0][:] = [[], waits, waits, runs, runs, ends]
    said = []
    run.watch(snakemake, said.append)
    assert said == [
        "00_first: job 7 waits",
        "01_second: job 8 waits (Resources)",
        "00_first: job 7 runs on n1",
        "00_first: job 7 is done after 1:02",
        "01_second: job 8 OUT_OF_MEMORY after 0:00",
    ]
    assert queue[1] == []


def test_jobs_of_others_are_not_looked_at(run, queue, snakemake):
    queue[0][:] = [[("9|medsynth-other_uuid|RUNNING|rule_chapter_00_first|1:02|n1", "", "")]]
    said = []
    assert "no job was in the queue" in run.watch(snakemake, said.append)
    assert (said, run.jobs, queue[1]) == ([], {}, [])


def test_a_job_that_is_gone_is_not_waited_for(run, queue, snakemake):
    queue[0][:] = [[(FIRST, "RUNNING", "n1")], []]
    said = []
    why = run.watch(snakemake, said.append)
    assert why.endswith("no job was in the queue, and Snakemake went on waiting")
    assert said == ["00_first: job 7 runs on n1", "00_first: job 7 is gone from the queue after 1:02"]
    assert run.jobs["00_first"].over
    assert snakemake.poll() is not None


def test_a_running_job_is_waited_for_and_spoken_of(run, queue, snakemake, monkeypatch):
    monkeypatch.setattr(slurm, "REPEAT", 0.0)
    queue[0][:] = [[(FIRST, "RUNNING", "n1"), (SECOND, "PENDING", "(Priority)")]] * 100 + [[]]
    log = run.log(Job("7", "RUNNING", "00_first", "", ""))
    log.parent.mkdir(parents=True)
    log.write_text("Building DAG of jobs...\n00_first [  10 s]: cell 1 of 3\n00_first [  20 s]: cell 2 of 3\nothers talk\n")
    said = []
    run.watch(snakemake, said.append)
    assert said.count("00_first [  20 s]: cell 2 of 3") > 50
    assert said.count("still waiting: 01_second (Priority)") > 50


def test_snakemake_that_ends_by_itself_is_no_reason(run, queue):
    queue[0][:] = [[(FIRST, "COMPLETED", "n1")]]
    said = []
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        assert run.watch(process, said.append) == ""
    assert said == ["00_first: job 7 is done after 1:02"]


def test_jobs_that_snakemake_leaves_are_cancelled(run, queue):
    queue[0][:] = [[(FIRST, "COMPLETED", "n1"), (SECOND, "RUNNING", "n1")]]
    said = []
    with subprocess.Popen([sys.executable, "-c", "import os; os.abort()"]) as process:
        run.watch(process, said.append)
    assert queue[1] == [["scancel", "8"]]
    assert said[-1] == "cancelled jobs 8"


def test_a_cluster_that_stops_answering_is_given_up(run, queue, snakemake):
    queue[0][:] = [[(FIRST, "RUNNING", "n1")], OSError("squeue: unable to contact the controller")]
    said = []
    assert "Slurm has not answered for" in run.watch(snakemake, said.append)
    assert said[1:] == [
        "Slurm does not answer: squeue: unable to contact the controller",
        "Slurm does not answer: squeue: unable to contact the controller; end what is left with: scancel 7",
    ]
    assert snakemake.poll() is not None


def test_a_short_silence_is_none(run, queue, snakemake):
    runs = [(FIRST, "RUNNING", "n1")]
    queue[0][:] = [runs, OSError("squeue: busy"), OSError("squeue: busy"), runs, []]
    said = []
    assert "no job was in the queue" in run.watch(snakemake, said.append)
    assert said[1:2] == ["Slurm does not answer: squeue: busy"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_run_leaves_nothing_behind(run, queue, snakemake, interruption):
    queue[0][:] = [[(FIRST, "RUNNING", "n1")]]

    def say(line):
        if "runs on" in line:
            raise interruption

    with pytest.raises(interruption):
        run.watch(snakemake, say)
    assert snakemake.poll() is not None
    assert queue[1] == [["scancel", "7"]]


def test_a_process_that_does_not_listen_is_killed(run, queue, monkeypatch):
    monkeypatch.setattr(slurm, "GRACE", 0.1)
    queue[0][:] = [[]]
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        run.watch(process, lambda _: None)
        assert process.returncode == -9


def test_a_command_that_fails_says_what_it_said(tmp_path, monkeypatch):
    assert slurm.ask("echo", "a", "b") == "a b\n"
    with pytest.raises(OSError, match=r"^sh: broken$"):
        slurm.ask("sh", "-c", "echo broken >&2; exit 3")
    with pytest.raises(OSError, match=r"^sh: exit status 3$"):
        slurm.ask("sh", "-c", "exit 3")
    with pytest.raises(OSError, match="no-such-program"):
        slurm.ask("no-such-program")

    def late(*_, **__):
        raise subprocess.TimeoutExpired("squeue", 60)

    monkeypatch.setattr(slurm.subprocess, "run", late)
    with pytest.raises(OSError, match="squeue: no answer in a minute"):
        slurm.ask("squeue")

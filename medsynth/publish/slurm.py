"""Chapters as jobs of a Slurm cluster: what Snakemake's plug-in is told, and a watch that never waits for nothing."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

PLUGIN = "snakemake_executor_plugin_slurm"
POLL = 10.0  # seconds between two looks at the queue
REPEAT = 120.0  # seconds after which a job is spoken of although nothing has changed
# longer than the plug-in's rarest look at the queue (180 s) and the wait for a slow file system (60 s) together
PATIENCE = 300.0  # seconds for which Snakemake may go on with no job in the queue
UNREACHABLE = 600.0  # seconds without an answer from Slurm after which nobody waits
GRACE = 20.0  # seconds for Snakemake to end by itself
LATENCY = 60  # seconds that a file may take from the node that wrote it to the one that waits for it
# all other states are of jobs that wait, run, or will do so again
OVER = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT",
)  # fmt: skip
GONE = "GONE"  # our word: was in the queue, and is not any more


@dataclass(frozen=True)
class Job:
    """A job of the queue, as `squeue` shows it."""

    number: str
    state: str
    chapter: str
    elapsed: str
    where: str  # its nodes; why it waits, in brackets, where it has none

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in (*OVER, GONE)

    def __str__(self) -> str:
        what = {"PENDING": "waits", "RUNNING": "runs on", "COMPLETED": "is done", GONE: "is gone from the queue"}
        place = f"after {self.elapsed}" if self.over else self.where.replace("(None)", "")
        return f"job {self.number} {what.get(self.state, self.state)} {place}".rstrip()


@dataclass
class SlurmRun:
    """One run of chapters as Slurm jobs. `folder` keeps their logs; on a file system that the nodes share, as all else."""

    folder: Path
    partition: str = ""  # "" = the cluster's default
    account: str = ""
    name: str = field(default_factory=lambda: f"medsynth-{uuid4().hex[:8]}")  # what the names of its jobs begin with
    jobs: dict[str, Job] = field(default_factory=dict)  # by chapter, as last seen

    def resources(self) -> dict[str, str]:
        """What every rule asks for besides its own needs."""
        return {f"slurm_{key}": value for key in ("partition", "account") if (value := getattr(self, key))}

    def options(self, jobs: int) -> list[str]:
        """Snakemake's options. Raises ValueError if the plug-in or Slurm is missing, or its controller does not answer."""
        if importlib.util.find_spec(PLUGIN) is None:
            raise ValueError(
                f"--cluster slurm needs Snakemake's plug-in {PLUGIN.replace('_', '-')}; install it with: "
                "python -m pip install -c requirements.lock -e '.[slurm]'"
            )
        for program in ("sbatch", "squeue", "scancel", "scontrol"):
            if shutil.which(program) is None:
                raise ValueError(f"--cluster slurm: no {program} on the PATH; run this on a machine that may submit Slurm jobs")
        try:
            config = ask("scontrol", "show", "config")
        except OSError as error:
            raise ValueError(f"--cluster slurm: the controller does not answer ({error}); ask who runs the cluster") from None
        # squeue forgets a job some minutes after its end; accounts do not, where a cluster keeps them
        accounts = any(line.startswith("AccountingStorageType") and "slurmdbd" in line for line in config.splitlines())
        return [
            "--executor", "slurm", "--jobs", str(jobs), "--latency-wait", str(LATENCY), "--slurm-logdir", str(self.folder),
            "--slurm-jobname-prefix", self.name, "--slurm-status-command", "sacct" if accounts else "squeue",
            "--slurm-init-seconds-before-status-checks", str(round(POLL)),
        ]  # fmt: skip

    def environment(self, inherited: dict[str, str]) -> dict[str, str]:
        """The environment of Snakemake; the plug-in clears $SLURM_CONF in a job, where its `srun` needs it."""
        place, srun = inherited.get("SLURM_CONF"), shutil.which("srun")
        if not (place and srun):
            return inherited
        wrapper = self.folder / "bin" / "srun"
        wrapper.parent.mkdir(parents=True, exist_ok=True)
        wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={shlex.quote(place)} exec {shlex.quote(srun)} "$@"\n')
        wrapper.chmod(0o755)
        return inherited | {"PATH": os.pathsep.join([str(wrapper.parent), inherited.get("PATH", os.defpath)])}

    def log(self, job: Job) -> Path:
        """Where a job's output is; the plug-in removes that of a job that went well."""
        return self.folder / f"rule_chapter_{job.chapter}" / f"{job.number}.log"

    def watch(self, snakemake: subprocess.Popen, say: Callable[[str], None]) -> str:
        """Say what the jobs do until Snakemake ends; why it was ended before, or "" if it ended by itself.

        It is ended if no job is left and it does not notice, if Slurm does not answer, and if this is interrupted.
        """
        try:
            return self._follow(snakemake, say)
        finally:
            self._end(snakemake, say)

    def _follow(self, snakemake: subprocess.Popen, say: Callable[[str], None]) -> str:
        answered = active = told = time.monotonic()
        complaint = ""
        while True:
            try:
                snakemake.wait(POLL)
                return ""
            except subprocess.TimeoutExpired:
                now = time.monotonic()
            try:
                self._look(say)
            except OSError as error:
                if str(error) != complaint:
                    complaint = str(error)
                    say(f"Slurm does not answer: {error}")
                if now - answered > UNREACHABLE:
                    return f"Slurm has not answered for {UNREACHABLE / 60:.0f} minutes"
                continue
            answered, complaint = now, ""
            left = [job for job in self.jobs.values() if not job.over]
            if left:
                active = now
            elif now - active > PATIENCE:
                return f"for {PATIENCE / 60:.0f} minutes no job was in the queue, and Snakemake went on waiting"
            if now - told > REPEAT:
                told = now
                for job in left:
                    if job.state != "PENDING":
                        say(self._news(job))
                if waiting := [f"{job.chapter} {job.where}" for job in left if job.state == "PENDING"]:
                    say(f"still waiting: {', '.join(waiting)}")

    def _look(self, say: Callable[[str], None]) -> None:
        """Bring `jobs` up to date and say what has changed; OSError if Slurm does not answer."""
        lines = ask("squeue", "--me", "--noheader", "--states=all", "--format=%i|%j|%T|%k|%M|%R").splitlines()
        found = [line.split("|", 5) for line in lines if f"|{self.name}_" in line]
        before, listed = dict(self.jobs), {parts[0] for parts in found}
        for chapter, job in before.items():
            if job.number not in listed and not job.over:
                self.jobs[chapter] = replace(job, state=GONE)
        # of a chapter that was tried twice, the later job
        for number, _, state, comment, elapsed, where in sorted(found, key=lambda parts: int(parts[0])):
            chapter = comment.removeprefix("rule_chapter_")
            self.jobs[chapter] = Job(number, state, chapter, elapsed, where)
        for chapter, job in sorted(self.jobs.items()):
            if str(job) != str(before.get(chapter)):
                say(f"{chapter}: {job}")

    def _news(self, job: Job) -> str:
        """The last line of progress that a chapter printed."""
        log = self.log(job)
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        own = [line for line in lines if line.startswith(f"{job.chapter} [")]
        return own[-1] if own else f"{job.chapter}: {job} ({job.elapsed})"

    def _end(self, snakemake: subprocess.Popen, say: Callable[[str], None]) -> None:
        """End Snakemake if it has not ended, and every job that it leaves."""
        if snakemake.poll() is None:
            snakemake.send_signal(signal.SIGINT)
            try:
                snakemake.wait(GRACE)
            except subprocess.TimeoutExpired:
                snakemake.kill()
                snakemake.wait()
        left: list[str] = []
        try:
            self._look(say)
            left = [job.number for job in self.jobs.values() if not job.over]
            if left:
                ask("scancel", *left)
                say(f"cancelled jobs {', '.join(left)}")
        except OSError as error:
            left = left or [job.number for job in self.jobs.values() if not job.over]
            say(f"Slurm does not answer: {error}" + (f"; end what is left with: scancel {' '.join(left)}" if left else ""))


def ask(*command: str) -> str:
    """What a Slurm command prints; OSError with its complaint if it fails or takes longer than a minute."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        raise OSError(f"{command[0]}: no answer in a minute") from None
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout


def errors(log: Path) -> list[str]:
    """What went wrong, from the log of a job or of Snakemake: lines with an error, and those that belong to one of ours."""
    found, ours = [], False
    for line in log.read_text(errors="replace").splitlines() if log.exists() else []:
        ours = line.startswith("error: ") or (ours and line.startswith("  "))
        if ours or "error:" in line:
            found.append(line)
    return found

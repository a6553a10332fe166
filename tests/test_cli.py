import runpy
import sys

import pytest
from stub_project import make_project

from medsynth import cli
from medsynth.publish.notebook import ChapterError


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run the command as a user would; (exit code, stdout, stderr)."""
    monkeypatch.chdir(make_project(tmp_path))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["medsynth", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (end.value.code, *capsys.readouterr())

    return run


def test_reproduce_runs_then_builds_then_says_what_it_took(call, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr("medsynth.publish.engine.run_plan", lambda plan, **options: calls.append((plan, options)) or 2)
    monkeypatch.setattr(
        "medsynth.publish.pages.site.build_book", lambda root, folder, say: calls.append(folder) or "book/_build/html/index.html"
    )
    code, out, _ = call("reproduce", "--profile", "smoke", "-j", "2", "--", "--retries", "1")
    assert code == 0
    plan, options = calls[0]
    assert [c.name for c in plan.chapters] == ["00_first", "01_second"]
    assert (options["jobs"], options["dry_run"], options["options"]) == (2, False, ["--retries", "1"])
    assert options["slurm"] is None
    assert calls[1] == tmp_path / "build" / "smoke"
    first, took, where = out.splitlines()
    assert first.startswith("2 of 2 chapters ran in profile smoke; rows and figures are in build/smoke/results/")
    assert took.startswith("took ") and took.endswith("GiB of memory")
    assert where == "the book is at book/_build/html/index.html"


def test_a_cluster_gets_every_chapter_as_a_job(call, monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr("medsynth.publish.engine.run_plan", lambda plan, **options: seen.update(options) or 2)
    monkeypatch.setattr("medsynth.publish.pages.site.build_book", lambda root, folder, say: "index.html")
    code, out, _ = call("reproduce", "--profile", "smoke", "--cluster", "slurm", "--partition", "long", "--account", "42")
    assert code == 0
    slurm = seen["slurm"]
    assert (slurm.folder, slurm.partition, slurm.account) == (tmp_path / "build" / "smoke" / "slurm", "long", "42")
    assert seen["jobs"] is None
    # the memory of other machines is not known here
    assert "GiB" not in out


@pytest.mark.parametrize("arguments", [["--dry-run"], ["--only", "second"]])
def test_a_part_or_a_dry_run_builds_no_book(call, monkeypatch, arguments):
    monkeypatch.setattr("medsynth.publish.engine.run_plan", lambda *_, **__: 0)
    monkeypatch.setattr("medsynth.publish.pages.site.build_book", lambda *_, **__: pytest.fail("it was built"))
    assert call("reproduce", "--profile", "smoke", *arguments)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "--profile", "smok"], "did you mean 'smoke'"),
        (["reproduce", "--profile", "smoke", "--only", "secnd"], "did you mean 'second'"),
        (["reproduce", "--profile", "smoke", "--data", "thorax=gone.npz"], "no file at gone.npz"),
        (["reproduce", "--profile", "smoke", "--partition", "long"], "belong to --cluster slurm"),
        (["book", "--profile", "smoke"], "no executed chapters"),
        (["run", "gone.ipynb"], "no such notebook"),
        (["run", "notebooks/00_first.ipynb", "-p", "profil=x"], "did you mean 'profile'"),
    ],
)
def test_our_errors_are_one_line_and_code_two(call, arguments, message):
    code, _, err = call(*arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(make_project(tmp_path))
    monkeypatch.setattr(sys, "argv", ["medsynth", "--debug", "reproduce", "--profile", "smok"])
    with pytest.raises(ValueError, match="smok"):
        cli.main()


def test_a_failed_chapter_is_code_one(call, monkeypatch):
    def fails(*_, **__):
        raise ChapterError("chapter 01_second failed in code cell 2")

    monkeypatch.setattr("medsynth.publish.engine.run_plan", fails)
    code, _, err = call("reproduce", "--profile", "smoke")
    assert (code, err) == (1, "error: chapter 01_second failed in code cell 2\n")


def test_book_says_where_it_is(call, monkeypatch):
    monkeypatch.setattr("medsynth.publish.pages.site.build_book", lambda root, folder, say: f"{folder.name}/index.html")
    assert call("book", "--profile", "smoke")[:2] == (0, "the book is at smoke/index.html\n")


def test_run_passes_typed_parameters(call, monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr("medsynth.publish.notebook.run_notebook", lambda *a, **k: seen.update(args=a, **k) or a[1])
    assert call("run", "notebooks/01_second.ipynb", "-p", "seed=3", "-p", "profile=smoke")[0] == 0
    assert seen["args"][2] == {"seed": 3, "profile": "smoke"}
    assert seen["args"][1] == tmp_path / "build" / "runs" / "01_second.ipynb"
    assert seen["cwd"] == tmp_path


def test_check_lists_problems_and_fails(call, monkeypatch):
    assert call("check")[:2] == (0, "nothing stands in the way of publishing\n")
    monkeypatch.setattr("medsynth.publish.check.problems", lambda _: ["one", "two"])
    code, out, err = call("check")
    assert (code, out) == (2, "- one\n- two\n")
    assert "2 problem(s)" in err


def test_a_rule_runs_one_chapter(call, monkeypatch):
    seen = []
    monkeypatch.setattr("medsynth.publish.plan.run_one", lambda plan, name, log: seen.append((str(plan), name)))
    assert call("chapter", "plan.json", "01_second")[0] == 0
    assert seen == [("plan.json", "01_second")]


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "7 s"), (150, "2.5 min")])
def test_times_are_readable(seconds, text):
    assert cli._minutes(seconds) == text


def test_the_package_runs_as_a_command(monkeypatch):
    called = []
    monkeypatch.setattr(cli, "main", lambda: called.append(True))
    runpy.run_module("medsynth", run_name="__main__")
    assert called == [True]

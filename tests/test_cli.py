import lzma
import os
import runpy
import stat
import sys
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from stub_project import make_project

from medsynth import cli
from medsynth.imageset import ImageSet
from medsynth.language.sentences import TEXT
from medsynth.ledger import Entry
from medsynth.models.conditioning import THORAX
from medsynth.privacy.dp import distributed
from medsynth.privacy.dp.distributed import DismissedError
from medsynth.publish.notebook import ChapterError
from medsynth.settings.config import SamplingConfig


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run the command as a user would; (exit code, stdout, stderr)."""
    monkeypatch.chdir(make_project(tmp_path))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["medsynth", *map(str, arguments)])
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


def test_the_environment_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(make_project(tmp_path))
    monkeypatch.setattr(sys, "argv", ["medsynth", "reproduce", "--profile", "smok"])
    monkeypatch.setenv("MEDSYNTH_TRACEBACK", "1")
    with pytest.raises(ValueError, match="smok"):
        cli.main()


@pytest.mark.parametrize("error", [RuntimeError, TypeError, zipfile.BadZipFile, zlib.error, MemoryError, lzma.LZMAError])
def test_what_nobody_expected_is_one_line_too(call, monkeypatch, error):
    def fails(*_, **__):
        raise error("so\nit is")

    monkeypatch.setattr("medsynth.publish.engine.run_plan", fails)
    code, out, err = call("reproduce", "--profile", "smoke")
    assert (code, out) == (3, "")
    assert err == f"error: unexpected {error.__name__}: so it is; set MEDSYNTH_TRACEBACK=1 in the environment to see where\n"


def test_a_training_that_diverges_is_no_surprise(call, monkeypatch):
    def diverges(*_, **__):
        raise FloatingPointError("denoiser: loss is nan")

    monkeypatch.setattr("medsynth.publish.engine.run_plan", diverges)
    assert call("reproduce", "--profile", "smoke") == (2, "", "error: denoiser: loss is nan\n")


@pytest.fixture
def trained(monkeypatch):
    """What was given to trainings, none of which takes place."""
    given = []

    def train(images, **_):
        given.append(images)
        return SimpleNamespace(save=lambda out: out, sentence="so")

    monkeypatch.setattr("medsynth.diffusion.generator.Generator.train", train)
    return given


def test_a_training_sees_the_rows_of_split_train_alone(call, trained, make_set, cache):
    make_set(12).save("ward.npz")
    code, out, _ = call("train", "ward.npz", "--out", "g", "--profile", "smoke")
    assert (code, out.splitlines()[0]) == (0, "8 of 12 images: those of split train")
    assert set(trained[0].split) == {"train"} and "trained on 8 images of 4 patients: g" in out
    make_set(12, split=None).save("plain.npz")
    assert call("train", "plain.npz", "--out", "g", "--profile", "smoke")[1].startswith("trained on 12 images of 6 patients")
    make_set(4, split=["val", "val", "test", "test"]).save("rest.npz")
    code, _, err = call("train", "rest.npz", "--out", "g", "--profile", "smoke")
    assert code == 2 and "no image of split train, only of test, val; mark those to train on" in err


def test_a_training_is_told_what_plain_files_hold(call, trained, tmp_path):
    """Without it images from a detector of twelve bits would be nearly black."""
    (tmp_path / "scans").mkdir()
    for i in range(4):
        Image.fromarray(np.full((16, 16), 1000 + i, dtype=np.uint16)).save(tmp_path / "scans" / f"{i}.png")
    (tmp_path / "people.csv").write_text("file,patient\n0.png,a\n1.png,a\n2.png,b\n3.png,b\n")
    code, _, err = call("train", "scans", "--out", "g", "--profile", "smoke")
    assert code == 2 and "give --range LOW HIGH and --codes" in err
    told = ("--range", "0", "1", "--codes", "0", "4095", "--patients", "people.csv")
    code, out, _ = call("train", "scans", "--out", "g", "--profile", "smoke", *told)
    assert code == 0 and "trained on 4 images of 2 patients" in out
    assert trained[0].range == (0, 1) and trained[0].images.min() == pytest.approx(1000 / 4095)
    np.savez(tmp_path / "mine.npz", image=np.zeros((2, 16, 16), dtype=np.uint8), patient=[1, 2])
    assert "an .npz file says it itself" in call("train", "mine.npz", "--out", "h", "--profile", "smoke", "--range", "0", "1")[2]


def test_a_training_goes_to_a_place_that_is_free_before_it_begins(call, trained, make_set, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "generator.json").write_text("mine")
    make_set(12).save("ward.npz")
    for out, said in (
        ("", "is the current folder"),
        ("ward.npz", "ward.npz: is there already"),
        ("taken", "taken: is there already and not an empty folder"),
        ("x" * 245, "a name of 245 bytes"),
        ("gone/g", "its folder gone does not exist"),
    ):
        code, _, err = call("train", "ward.npz", "--out", out, "--profile", "smoke")
        assert code == 2 and said in err
    (tmp_path / "pngs").mkdir()
    assert "pngs/g: lies in pngs, whose images it would mix with" in call("train", "pngs", "--out", "pngs/g")[2]
    assert not trained and (tmp_path / "taken" / "generator.json").read_text() == "mine"


@pytest.fixture
def privately(monkeypatch):
    """What was given to private trainings, none of which takes place."""
    given = []

    def train(images, **options):
        given.append((images, options))
        return SimpleNamespace(save=lambda out: out, sentence="so")

    monkeypatch.setattr("medsynth.privacy.dp.fine_tuning.train_privately", train)
    return given


def test_epsilon_makes_a_training_private(call, privately, trained, make_set):
    make_set(12, (1, 8, 16, 16), split=None, modality="").save("hearts.npz")
    code, out, _ = call("train", "hearts.npz", "--out", "g", "--profile", "smoke", "--epsilon", 8)
    assert code == 0 and "trained on 12 images of 6 patients: g" in out and not trained
    images, options = privately[0]
    privacy = options["privacy"]
    assert (privacy.epsilon, privacy.delta, privacy.delta_rule, privacy.randomness) == (8, None, "below 1/n", "secure")
    assert options["denoiser"].spatial_dims == 3 and images.modality == "mr"
    told = ("--epsilon", 1, "--delta", 0.3, "--force-delta", "--noise", "seeded", "--batch", 2)
    assert call("train", "hearts.npz", "--out", "g", "--profile", "smoke", *told)[0] == 0
    privacy = privately[1][1]["privacy"]
    assert (privacy.epsilon, privacy.delta, privacy.delta_rule, privacy.randomness) == (1, 0.3, "forced", "seeded")
    assert privacy.batch == 2


def test_a_process_that_assists_looks_for_no_place_and_says_nothing(call, privately, make_set, monkeypatch, tmp_path):
    """What the first process has written by then is no obstacle."""
    make_set(12, (1, 8, 16, 16), modality="").save("hearts.npz")
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "generator.json").write_text("the first one's")
    monkeypatch.setattr(distributed, "joined", lambda: suppress(DismissedError))
    monkeypatch.setattr(distributed, "assists", lambda: True)

    def dismissed(*_, **__):
        privately.append("asked to help")
        raise DismissedError

    monkeypatch.setattr("medsynth.privacy.dp.fine_tuning.train_privately", dismissed)
    assert call("train", "hearts.npz", "--out", "g", "--profile", "smoke", "--epsilon", 8) == (0, "", "")
    assert privately == ["asked to help"] and [f.name for f in (tmp_path / "g").iterdir()] == ["generator.json"]


def test_several_processes_share_a_private_training_alone(call, privately, trained, make_set, monkeypatch):
    make_set(12, (1, 8, 16, 16), split=None).save("hearts.npz")
    monkeypatch.setattr(distributed, "together", lambda: True)
    code, _, err = call("train", "hearts.npz", "--out", "g", "--profile", "smoke")
    assert code == 2 and "several processes share a training with --epsilon alone" in err and not trained
    assert call("train", "hearts.npz", "--out", "g", "--profile", "smoke", "--epsilon", 8)[0] == 0 and privately


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (("--epsilon", 0), "epsilon is 0.0; expected a number above 0"),
        (("--epsilon", -1), "epsilon is -1.0; expected a number above 0"),
        (("--delta", 1e-6), "--delta, --force-delta, --noise and --batch belong to --epsilon"),
        (("--noise", "seeded"), "belong to --epsilon"),
    ],
)
def test_a_promise_that_cannot_be_is_refused(call, privately, make_set, told, said):
    make_set(12, (1, 8, 16, 16), split=None).save("hearts.npz")
    code, _, err = call("train", "hearts.npz", "--out", "g", "--profile", "smoke", *told)
    assert code == 2 and said in err and not privately


def test_a_promise_to_patients_needs_to_know_who_they_are(call, privately, tmp_path):
    """Two files of one patient would otherwise count for two, with half of the protection."""
    (tmp_path / "scans").mkdir()
    for i in range(4):
        Image.fromarray(np.full((16, 16), 50 + i, dtype=np.uint8)).save(tmp_path / "scans" / f"{i}.png")
    told = ("train", "scans", "--out", "g", "--profile", "smoke", "--epsilon", 8)
    code, _, err = call(*told)
    assert code == 2 and "--epsilon protects patients; give --patients" in err and not privately
    (tmp_path / "people.csv").write_text("file,patient,age\n0.png,a,50\n1.png,a,50\n2.png,b,\n3.png,b,\n")
    assert call(*told, "--patients", "people.csv")[0] == 0
    assert privately[0][0].patients == 2 and privately[0][0].attributes["age"].tolist()[:2] == [50, 50]


@pytest.fixture
def generator(monkeypatch, make_set):
    """What `generate` loads: it draws four images of a role that can be changed."""

    @dataclass
    class Stub:
        like: ImageSet
        sampling: SamplingConfig
        names: tuple[str, ...] = ("age",)
        sentence: str = "so"

        def draw(self, _):
            return self.like

    stub = Stub(make_set(4, role="private"), SamplingConfig(images=1))
    monkeypatch.setattr("medsynth.diffusion.generator.Generator.load", lambda _: stub)
    return stub


def test_images_are_asked_for_by_sentences_in_turn(call, generator, monkeypatch):
    said = []
    generator.ask = lambda sentences: said.extend(sentences)
    assert call("generate", "g", "-n", 3, "--ask", "large nodule", "--ask", "normal")[0] == 0
    assert said == ["large nodule", "normal", "large nodule"]


def test_sentences_are_learned_where_asked_and_not_under_a_promise(call, monkeypatch, make_set, cache):
    named = []

    def train(images, *, names, **_):
        named.append(names)
        return SimpleNamespace(save=lambda out: out, sentence="so")

    monkeypatch.setattr("medsynth.diffusion.generator.Generator.train", train)
    make_set(12).save("ward.npz")
    for told in ((), ("--sentences",)):
        assert call("train", "ward.npz", "--out", "g", "--profile", "smoke", *told)[0] == 0
    assert named == [(), (*THORAX, *TEXT)]
    code, _, err = call("train", "ward.npz", "--out", "g", "--sentences", "--epsilon", 8)
    assert code == 2 and "leave out --sentences, or --epsilon" in err


def test_private_draws_are_nobody_elses_while_they_are_written(call, generator, monkeypatch, tmp_path):
    modes, replace_file = [], os.replace

    def note(source, target):
        modes.append(stat.S_IMODE(os.stat(source).st_mode))
        replace_file(source, target)

    monkeypatch.setattr("os.replace", note)
    assert call("generate", "g", "--out", "drawn.npz")[0] == 0
    generator.like = replace(generator.like, role="public")
    assert call("generate", "g", "--out", "public.npz")[0] == 0
    assert modes[0] == 0o600 and [stat.S_IMODE((tmp_path / f).stat().st_mode) for f in ("drawn.npz", "public.npz")] == [
        0o600, 0o644
    ]  # fmt: skip
    assert "a name of 245 bytes; expected at most 237" in call("generate", "g", "--out", "x" * 241 + ".npz")[2]


def test_draws_go_beside_their_generator_unless_told(call, generator, tmp_path):
    assert "4 images: g-3.npz" in call("generate", "g", "-n", 4, "--seed", 3)[1] and (tmp_path / "g-3.npz").exists()
    assert call("generate", "g", "-n", 4, "--seed", 3)[0] == 2


def test_a_generator_says_what_it_was_made_from(call, generator):
    generator.entries = ()
    assert call("ledger", "g") == (0, "so\n", "")
    generator.entries = (Entry("train denoiser", "ward", "abc", 7, output="weights"),)
    code, out, _ = call("ledger", "g")
    assert code == 0 and "train denoiser" in out and "ward" in out and out.endswith("so\n")


def test_more_images_than_memory_holds(call, generator):
    code, _, err = call("generate", "g", "--out", "drawn.npz", "--n", 10**13)
    assert code == 2 and "--n 10000000000000: so many images of g do not fit into memory; draw fewer at a time" in err


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
    assert cli.book._minutes(seconds) == text


def test_the_package_runs_as_a_command(monkeypatch):
    called = []
    monkeypatch.setattr(cli, "main", lambda: called.append(True))
    runpy.run_module("medsynth", run_name="__main__")
    assert called == [True]

"""From build/ to results/published/: what is copied, and everything that stands against it, planted one by one."""

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from stub_project import make_project, write_notebook
from typer.testing import CliRunner

from medsynth import cli
from medsynth.publish.check import problems
from medsynth.publish.promote import NAMED_TERMS, TERMS, promote
from medsynth.results import Estimate, Row, read_results, write_figure_data, write_results
from medsynth.store.hashes import file_hash
from medsynth.store.runs import write_json

ROOT = Path(__file__).resolve().parents[2]
PICTURE = '<svg><image href="data:image/png;base64,AA"/></svg>'
PLOT = "<svg><path/></svg>"
CLEAN = {"commit": "a" * 40, "dirty": False}


def edit(folder, name, **changes):
    """Change what a sidecar says."""
    facts = json.loads((folder / f"{name}.json").read_text())
    write_json(folder / f"{name}.json", facts | changes)


def write_run(folder, *, value=0.5, chapter="second", svg=PLOT, licence="CC BY 4.0", profile="full"):
    """What a run of a chapter leaves: a table, a figure and its data."""
    row = Row.of(Estimate(value, 0.25, 0.75, 9), chapter=chapter, dataset="xray", metric="KID", arm="ours")
    facts = {"parameters": {"profile": profile}, "seeds": [0], "inputs": {}, "data_licence": licence}
    write_results(folder, chapter, [row], **facts)
    (folder / f"{chapter}-curve.svg").write_text(svg)
    (folder / f"{chapter}-curve.png").write_bytes(b"\x89PNG")
    hashes = {"svg_sha256": file_hash(folder / f"{chapter}-curve.svg")}
    points = pd.DataFrame({"x": [0, 1], "value": [0.0, value]})
    write_figure_data(folder, f"{chapter}-curve", points, **facts | {"parameters": facts["parameters"] | hashes})
    for name in (chapter, f"{chapter}-curve"):
        edit(folder, name, **CLEAN)


@pytest.fixture
def project(tmp_path):
    root = make_project(tmp_path)
    (root / "profiles" / "full.yaml").write_text((root / "profiles" / "smoke.yaml").read_text())
    write_notebook(root / "build" / "full" / "chapters" / "01_second.ipynb", "1 + 1")
    write_run(root / "build" / "full" / "results" / "01_second")
    return root


@pytest.fixture
def own(project):
    """Where the chapter's tables lie."""
    return project / "build" / "full" / "results" / "01_second"


def publish(project, chapter="second", name="xray-full", **options):
    return promote(project, chapter, name, project / "build" / "full", **options)


def held(project):
    """Every published file with its content."""
    folder = project / "results"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()} if folder.exists() else {}


def refused(project, *expected, **options):
    """Promotion fails for exactly these reasons, and nothing has changed."""
    before = held(project)
    with pytest.raises(ValueError) as caught:
        publish(project, **options)
    said = str(caught.value).splitlines()
    assert len(said) == 1 + len(expected), said
    for reason, words in zip(said[1:], expected, strict=True):
        assert words in reason
    assert held(project) == before


@pytest.mark.parametrize("chapter", ["second", "01_second", "1"])
def test_tables_sidecars_and_figures_of_a_chapter_are_published(project, own, chapter):
    write_run(project / "results" / "published" / "xray-full", chapter="first")
    (project / "results" / "published" / "xray-full" / "first-curve.png").unlink()
    before = held(project)
    assert publish(project, chapter) == ["second", "second-curve"]
    after = held(project)
    assert set(after) - set(before) == {
        f"published/xray-full/{file}" for file in ("second.csv", "second.json", "second-curve.csv", "second-curve.json",
                                                   "second-curve.svg")
    }  # fmt: skip
    assert before.items() <= after.items()
    for file in own.glob("*.[cjs]*"):
        assert after[f"published/xray-full/{file.name}"] == file.read_bytes()
    assert problems(project) == []
    # the same run once more changes nothing
    again = held(project)
    publish(project, chapter)
    assert held(project) == again


def test_folders_of_a_run_by_hand_hold_several_chapters_and_one_is_taken(project, tmp_path):
    write_notebook(project / "notebooks" / "90_weights.ipynb", "1 + 1")
    for chapter in ("first", "second", "weights"):
        write_run(tmp_path / "by-hand", chapter=chapter)
    assert promote(project, "weights", "weights", tmp_path / "by-hand") == ["weights", "weights-curve"]
    assert not list((project / "results" / "published" / "weights").glob("second*"))


def test_a_run_that_is_not_there_cannot_be_published(project):
    with pytest.raises(ValueError, match=r"build/full: no tables of the chapter 'first'; run it first"):
        publish(project, "first")
    with pytest.raises(ValueError, match="did you mean 'second'"):
        publish(project, "secnd")
    assert held(project) == {}


@pytest.mark.parametrize("name", ["../elsewhere", "Xray", "", "a/b", ".hidden"])
def test_a_run_is_called_by_a_plain_name(project, name):
    with pytest.raises(ValueError, match="small letters, digits and dashes"):
        publish(project, name=name)
    assert held(project) == {}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dirty": True}, "second: made with changes that are not in commit aaaaaaaaaa"),
        ({"dirty": None}, "second: made with changes that are not in commit"),
        ({"commit": None}, "second: made at an unknown commit, None"),
        ({"commit": "deadbeef"}, "second: made at an unknown commit, 'deadbeef'"),
        ({"data_licence": "unknown"}, "second: the licence of its data is 'unknown'"),
        ({"data_licence": "CC BY 4.0; unknown"}, "second: the licence of its data is 'CC BY 4.0; unknown'"),
        ({"data_licence": ""}, "second: the licence of its data is ''"),
        ({"data_licence": None}, "second: the licence of its data is None"),
        ({"data_licence": "Unknown"}, "second: the licence of its data is 'Unknown'; expected 'generated' or terms that allow"),
        ({"data_licence": "by row"}, "second: the licence of its data is 'by row'"),
        ({"data_licence": "nan; generated"}, "second: the licence of its data is 'nan; generated'"),
        ({"data_licence": "all rights reserved, do not publish"}, "second: the licence of its data is 'all rights reserved"),
        ({"parameters": {"profile": "smoke"}}, "second: profile 'smoke', whose numbers are not published; run it in one of full"),
        ({"parameters": {"profile": "/elsewhere/tiny.yaml"}}, "second: profile '/elsewhere/tiny.yaml', whose numbers"),
        ({"parameters": {}}, "second: profile None, whose numbers"),
        ({"kind": ""}, "xray-full/second.csv: its sidecar calls it ''"),
        ({"csv_sha256": "0" * 64}, "xray-full/second.csv: sha256"),
    ],
)
def test_what_a_sidecar_says_against_it_is_a_reason(project, own, changes, reason):
    edit(own, "second", **changes)
    # without rows beside it, a figure's data are of no chapter
    alone = ["no rows of a chapter 'second' stand beside it"] * (changes.keys() & {"kind", "csv_sha256"} != set())
    refused(project, reason, *alone)


@pytest.mark.parametrize("terms", ["NIH Clinical Center, attribution; generated", "CC BY; CC BY-NC-SA 4.0", "CC0 1.0"])
def test_terms_of_known_sets_allow_publication(project, own, terms):
    write_run(own, licence=terms)
    assert publish(project) == ["second", "second-curve"]


def test_terms_of_all_that_is_published_allow_it():
    sidecars = [json.loads(path.read_text()) for path in (ROOT / "results" / "published").glob("*/*.json")]
    terms = {part for sidecar in sidecars for part in sidecar["data_licence"].split("; ")}
    assert sidecars and all(TERMS.fullmatch(part) or part in NAMED_TERMS for part in terms)


def test_a_commit_is_one_of_the_history_where_git_knows_it(project, own):
    def git(*arguments):
        named = ["-c", "user.name=n", "-c", "user.email=e"]
        return subprocess.run(["git", "-C", str(project), *named, *arguments], check=True, capture_output=True, text=True).stdout

    git("init")
    git("add", "notebooks")
    git("commit", "-m", "all")
    elsewhere = "made at commit aaaaaaaaaa, which HEAD does not descend from; merge it, or run it again here"
    refused(project, f"second: {elsewhere}", f"second-curve: {elsewhere}")
    # a copy without history cannot tell
    shallow = project / ".git" / "shallow"
    shallow.write_text(git("rev-parse", "HEAD"))
    assert publish(project, name="another") == ["second", "second-curve"]
    shallow.unlink()
    for name in ("second", "second-curve"):
        edit(own, name, commit=git("rev-parse", "HEAD").strip())
    assert publish(project) == ["second", "second-curve"]


@pytest.mark.parametrize("content", ["[]", "{", '{"parameters": []}'])
def test_a_sidecar_that_is_none_is_a_reason(project, own, content):
    (own / "second.json").write_text(content)
    refused(project, "xray-full/second.json: no", "no rows of a chapter 'second' stand beside it")


def test_rows_without_their_sidecar_are_a_reason(project, own):
    (own / "second.json").unlink()
    refused(project, "second.csv: its sidecar second.json is missing", "no rows of a chapter 'second' stand beside it")


def test_a_sidecar_without_its_rows_is_a_reason(project, own):
    (own / "second-curve.csv").unlink()
    refused(project, "second-curve.svg: no rows stand behind it", "second-curve.json: no table stands beside it")


def test_a_figure_that_is_not_its_sidecars_is_a_reason(project, own):
    (own / "second-curve.svg").write_text(PLOT + " ")
    refused(project, "second-curve.svg: not the figure that its sidecar was written with")


@pytest.mark.parametrize("licence", ["generated", "CC BY 4.0", "CC BY 4.0; generated"])
def test_a_picture_is_published_of_phantoms_alone(project, own, licence):
    write_run(own, svg=PICTURE, licence=licence)
    if licence == "generated":
        assert publish(project) == ["second", "second-curve"] and problems(project) == []
    else:
        refused(project, "second-curve.svg: holds a picture, and its sidecar does not say that all data are generated")


def test_a_profile_of_seconds_is_not_published_whatever_else_holds(project, own):
    write_run(own, profile="smoke")
    refused(project, "second: profile 'smoke'", "second-curve: profile 'smoke'")


def test_another_commits_tables_are_replaced_only_when_asked(project, own):
    publish(project)
    write_run(own, value=0.625)
    for name in ("second", "second-curve"):
        edit(own, name, commit="b" * 40)
    old = "published already, of commit aaaaaaaaaa, with other commit and rows; --replace puts this one in its place"
    refused(project, f"second: {old}", f"second-curve: {old}")
    publish(project, replace=True)
    found = read_results(project / "results" / "published" / "xray-full", "second")
    assert (found.rows.value.item(), found.sidecar["commit"]) == (0.625, "b" * 40)
    assert problems(project) == []


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"data_licence": "CC BY-NC-SA 4.0"}, "data"),
        ({"inputs": {"private mr": "ab"}}, "data"),
        ({"people": False}, "data"),
        ({"parameters": {"profile": "full", "steps": 3}}, "parameters"),
    ],
)
def test_tables_of_other_data_are_replaced_only_when_asked_even_at_one_commit(project, own, changes, differs):
    publish(project)
    edit(own, "second", **changes)
    refused(project, f"second: published already, of commit aaaaaaaaaa, with other {differs}; --replace puts")
    publish(project, replace=True)
    assert changes.items() <= read_results(project / "results" / "published" / "xray-full", "second").sidecar.items()


def test_what_is_published_already_keeps_its_date_and_notes(project, own):
    publish(project)
    edit(project / "results" / "published" / "xray-full", "second", notes="looked at")
    before = held(project)
    edit(own, "second", created="2999-01-01T00:00:00Z")
    publish(project)
    assert held(project) == before


def test_a_replaced_chapter_leaves_nothing_of_the_run_before_it(project, own):
    write_run(project / "results" / "published" / "xray-full", chapter="first")
    (project / "results" / "published" / "xray-full" / "first-curve.png").unlink()
    publish(project)
    for file in own.glob("second-curve.*"):
        file.unlink()
    edit(own, "second", commit="b" * 40)
    assert publish(project, replace=True) == ["second", "second-curve (removed)"]
    left = {path.name for path in (project / "results" / "published" / "xray-full").iterdir()}
    assert left == {"second.csv", "second.json", "first.csv", "first.json"} | {f"first-curve.{k}" for k in ("csv", "json", "svg")}


@pytest.mark.parametrize(("ours", "theirs"), [("generated", "CC BY 4.0"), ("CC BY 4.0", "generated")])
def test_a_run_is_of_phantoms_or_of_people(project, own, ours, theirs):
    published = project / "results" / "published" / "xray-full"
    write_run(published, chapter="first", licence=theirs)
    (published / "first-curve.png").unlink()
    write_run(own, licence=ours)
    kinds = ("people", "phantoms") if ours == "generated" else ("phantoms", "people")
    refused(project, f"xray-full: holds tables of {kinds[0]}, and these are of {kinds[1]}; choose a run of its own (--name)")
    assert publish(project, name="another") == ["second", "second-curve"]


def test_a_chapter_that_failed_half_way_is_a_reason(project, own):
    executed = project / "build" / "full" / "chapters" / "01_second.ipynb"
    executed.with_suffix(".failed.ipynb").touch()
    refused(project, "01_second.ipynb: has not run to its end")
    executed.with_suffix(".failed.ipynb").unlink()
    executed.unlink()
    refused(project, "01_second.ipynb: has not run to its end")


def test_a_table_under_another_chapters_name_is_not_left_out_unseen(project, own):
    (own / "ruler.csv").write_text("value\n1\n")
    refused(project, "ruler.csv: a table of 'second' is called 'second' or 'second-...'")


def test_all_reasons_are_said_at_once(project, own):
    write_run(own, svg=PICTURE, profile="smoke")
    edit(own, "second", dirty=True, data_licence="unknown")
    refused(
        project, "second: made with changes", "second: the licence", "second: profile", "second-curve: profile", "holds a picture"
    )


def test_what_cannot_take_its_place_leaves_the_published_run_as_it_was(project, monkeypatch):
    publish(project)
    before, rename = held(project), type(project).rename

    def stuck(self, target):
        if self.name == "xray-full" and ".promote-" in str(self.parent):
            raise OSError("the disk is full")
        return rename(self, target)

    monkeypatch.setattr(type(project), "rename", stuck)
    with pytest.raises(OSError, match="disk is full"):
        publish(project)
    assert held(project) == before


def test_the_command_finds_the_run_and_says_what_it_did(project, monkeypatch):
    monkeypatch.chdir(project)
    done = CliRunner().invoke(cli.app, ["promote", "second", "--name", "xray-full", "--profile", "full"])
    assert done.exit_code == 0, done.output
    assert "results/published/xray-full: second, second-curve; look at them, then commit" in done.output
    elsewhere = CliRunner().invoke(cli.app, ["promote", "second", "--name", "other", "--from", "build/full/results/01_second"])
    assert elsewhere.exit_code == 0 and (project / "results" / "published" / "other" / "second.csv").exists()
    missing = CliRunner().invoke(cli.app, ["promote", "second", "--name", "other", "--profile", "paper"])
    assert missing.exit_code == 1 and "no tables of the chapter 'second'" in str(missing.exception)

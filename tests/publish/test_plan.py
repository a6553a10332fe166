import csv
import json
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
from stub_project import add_arms, make_project

from medsynth.data.npz import KNOWN as KNOWN_FILES
from medsynth.downstream.tasks import TASKS
from medsynth.phantoms.thorax.thorax import SITES, thorax
from medsynth.publish import plan as reproduce
from medsynth.publish.notebook import declared_arms
from medsynth.publish.plan import (
    Plan,
    build_folder,
    chapter_sources,
    due,
    find_chapter,
    make_plan,
    needs,
    parse_data,
    run_one,
    stages,
)
from medsynth.settings.profile import load_profile

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


def save(path, *names):
    """An .npz file with arrays of these names."""
    np.savez(path, **dict.fromkeys(names or ("image", "patient"), np.zeros(1)))
    return path


def test_data_is_an_area_and_a_file(tmp_path):
    file, other = save(tmp_path / "mine.npz"), save(tmp_path / "other.npz", "patient", "volume", "label")
    assert parse_data([f"thorax={file}"]) == {"data": file}
    assert list(parse_data([f"mr={other}", f"ct={file}"]).items()) == [("ct", file), ("mr", other)]
    with pytest.raises(ValueError, match=r"ct has a file already, mine\.npz"):
        parse_data([f"ct={file}", f"ct={other}"])
    with pytest.raises(ValueError, match="expected AREA=PATH with an area of thorax, ct, mr, hearts, real"):
        parse_data(["torax=x"])
    with pytest.raises(FileNotFoundError, match="no file at"):
        parse_data([f"thorax={file}.gone"])


def test_a_file_without_images_of_patients_is_no_data(tmp_path):
    script = tmp_path / "run.sh"
    script.write_text("#!/bin/sh\n")
    for file in (script, save(tmp_path / "a.npz", "image"), save(tmp_path / "b.npz", "patient", "label")):
        with pytest.raises(ValueError, match=f"{file.name}': not an .npz file of 'image' or 'volume', and 'patient'"):
            parse_data([f"thorax={file}"])
    saved = thorax(patients=1, size=32).save(tmp_path / "saved.npz")
    assert parse_data([f"thorax={saved}"]) == {"data": saved}


def test_each_choice_of_data_has_a_folder_of_its_own(tmp_path):
    choices = {
        "smoke": {},
        "smoke-x-y": {"data": "x-y"},
        "smoke-mr=x-y": {"mr": "x-y"},
        "smoke-mr==x-y": {"data": "mr=x-y"},
        "smoke-thorax=x-ct=y": {"data": "x", "ct": "y"},
        "smoke-ct=x-mr=y": {"ct": "x", "mr": "y"},
        "smoke-real=x": {"real": "x"},
    }
    for folder, data in choices.items():
        files = {parameter: tmp_path / f"{stem}.npz" for parameter, stem in data.items()}
        assert build_folder(tmp_path, "smoke", files) == tmp_path / "build" / folder


def test_real_sets_are_a_folder_that_lacks_none(tmp_path):
    folder = tmp_path / "sets"
    with pytest.raises(FileNotFoundError, match="sets: no such folder"):
        parse_data([f"real={folder}"])
    folder.mkdir()
    for name in KNOWN_FILES:
        (folder / f"{name}.npz").touch()
    save(folder / "ct_tcia_hu_256.npz")
    found = parse_data([f"real={folder}", f"ct={folder / 'ct_tcia_hu_256.npz'}"])
    assert found == {"ct": folder / "ct_tcia_hu_256.npz", "real": folder}
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
    with pytest.raises(ValueError, match="did you mean 'smoke'"):
        make_plan(project, "smok")


def test_data_that_no_chapter_takes_are_an_error(project):
    file = project / "mine.npz"
    file.write_text("1")
    with pytest.raises(ValueError, match=r"--data mr=.*mine\.npz: no chapter that is to run takes it; 01_second takes thorax"):
        make_plan(project, "smoke", data={"data": file, "mr": file})
    with pytest.raises(ValueError, match=r"--data thorax=.*: no chapter that is to run takes it; they take no data"):
        make_plan(project, "smoke", data={"data": file}, only="first")
    # of several chapters, one is enough
    assert make_plan(project, "smoke", data={"data": file}).folder == project / "build" / "smoke-mine"


def test_a_chapter_starts_with_an_empty_folder(project, monkeypatch):
    plan = make_plan(project, "smoke")
    plan.folder.mkdir(parents=True)
    stale = plan.folder / plan.chapters[1].out / "stale.csv"
    stale.parent.mkdir(parents=True)
    stale.touch()
    plan.file.write_text(json.dumps({"root": str(project), "runs": [vars(c) for c in plan.chapters]}))

    def ran(source, target, parameters, *, cwd, name, until, log, remark):
        (cwd / parameters["out"] / "new.csv").touch()
        return remark()

    monkeypatch.setattr(reproduce, "run_notebook", ran)
    assert run_one(plan.file, "01_second") == {"depends": plan.chapters[1].depends, "data": [], "wrote": ["new.csv"]}
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
    assert {row["chapter"].removesuffix("/*") for row in rows} <= {*chapter_sources(ROOT), "*"}
    assert all(row["how"].startswith(("measured", "estimated")) for row in rows)


def test_the_first_row_that_fits_counts(tmp_path):
    table = tmp_path / "profiles" / "needs.csv"
    table.parent.mkdir()
    rows = "full,02_*,9,8,7,1,x\nfull,*,6,5,4,0,x\npaper,01_a,a,1,1,0,x\n"
    table.write_text(f"profile,chapter,mem_mb,runtime,threads,gpu,how\n{rows}")
    assert needs(tmp_path, "full", "02_generator") == {"mem_mb": 9, "runtime": 8, "threads": 7, "gpu": 1}
    assert needs(tmp_path, "full", "03_gate") == {"mem_mb": 6, "runtime": 5, "threads": 4}
    assert needs(tmp_path, "full", "02_generator/1") == {"mem_mb": 9, "runtime": 8, "threads": 7, "gpu": 1}
    with pytest.raises(ValueError, match="no row for chapter 03_gate in profile mine"):
        needs(tmp_path, "mine", "03_gate")
    with pytest.raises(ValueError, match=r"needs\.csv: line 4 is .*'mem_mb': 'a'.*; expected whole numbers"):
        needs(tmp_path, "paper", "01_a")


def test_what_a_chapter_needs_is_no_part_of_its_fingerprint(project):
    before = make_plan(project, "smoke").chapters
    (project / "profiles" / "needs.csv").write_text("profile,chapter,mem_mb,runtime,threads,gpu,how\n*,*,1,2,3,4,estimated\n")
    after = make_plan(project, "smoke").chapters
    assert [c.depends for c in after] == [c.depends for c in before]
    assert after[0].needs == {"mem_mb": 1, "runtime": 2, "threads": 3, "gpu": 4}


# arms

ARMS = ["02_third/left", "02_third/right", "02_third/ct-low-dose-edsr", "02_third/mr-x2-edsr"]


def pretend(plan: Plan, *names: str) -> None:
    """Leave what runs leave that went well; of all runs where none is named."""
    for run in (run for run in plan.runs if run.name in (names or [r.name for r in plan.runs])):
        notebook = nbformat.v4.new_notebook(metadata={"medsynth": {"depends": run.depends, "wrote": []}})
        (plan.folder / run.target).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, plan.folder / run.target)


def test_a_chapter_is_begun_in_arms_that_come_before_it(project):
    add_arms(project)
    plan = make_plan(project, "smoke")
    assert [run.name for run in plan.runs] == ["00_first", "01_second", *ARMS, "02_third"]
    assert [run.name for run in plan.chapters] == ["00_first", "01_second", "02_third"]
    left, _, experiment, _, chapter = plan.runs[2:]
    assert (left.target, left.until, left.after) == ("arms/02_third/left.ipynb", "cell-2", ())
    # what arms of one cell train is there for those of the next
    assert (experiment.until, list(experiment.after)) == ("cell-3", ARMS[:2])
    assert (chapter.until, list(chapter.after), chapter.target) == ("", ARMS, "chapters/02_third.ipynb")
    out = "build/smoke/arms/02_third/ct-low-dose-edsr"
    assert experiment.parameters == {"profile": "smoke", "out": out, "only": "ct-low-dose/edsr"}
    assert chapter.parameters == {"profile": "smoke", "out": "build/smoke/results/02_third"}
    assert [run.name for run in make_plan(project, "smoke", only="third").runs] == [*ARMS, "02_third"]


def test_a_profile_says_which_chapters_have_arms(project):
    add_arms(project)
    profile = project / "profiles" / "smoke.yaml"
    text = profile.read_text()
    profile.write_text(text.replace("arms: [third]", ""))
    assert [run.name for run in make_plan(project, "smoke").runs] == ["00_first", "01_second", "02_third"]
    profile.write_text(text.replace("arms: [third]", "arms: [thrid]"))
    with pytest.raises(ValueError, match="did you mean 'third'"):
        make_plan(project, "smoke")
    profile.write_text(text.replace("arms: [third]", "arms: [first]"))
    with pytest.raises(ValueError, match=r"has no arms, but is among `arms` of profiles/smoke\.yaml; remove it there"):
        make_plan(project, "smoke")


def test_one_arm_alone_would_do_the_work_of_its_chapter(project):
    add_arms(project)
    profile = project / "profiles" / "smoke.yaml"
    profile.write_text(profile.read_text().replace("experiments: [ct-low-dose/edsr, mr-x2/edsr]", "experiments: [mr-x2/edsr]"))
    assert [run.name for run in make_plan(project, "smoke").runs][2:] == [*ARMS[:2], "02_third"]
    # one that others need is another thing
    source = project / "notebooks" / "02_third.ipynb"
    source.write_text(source.read_text().replace('"restoration.experiments"', '["a", "b"]').replace('"left",', ""))
    assert [run.name for run in make_plan(project, "smoke").runs][2:] == [f"02_third/{k}" for k in ("right", "a", "b")] + [
        "02_third"
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ('"restoration.experimens"', "the profile has no list 'restoration.experimens', by which cell cell-3 has its arms"),
        ('"sampling.steps"', "the profile has no list 'sampling.steps'"),
        ('["left", "a"]', "expected names that differ"),
        ('["a b", "a-b"]', "expected names that differ"),
    ],
)
def test_arms_that_cannot_be_are_errors(project, values, message):
    source = add_arms(project)
    source.write_text(source.read_text().replace('"restoration.experiments"', values))
    with pytest.raises(ValueError, match=message):
        make_plan(project, "smoke")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("rows.txt", "lines.txt", ["02_third"]),
        ("Begun in arms", "Begun in two arms", ["02_third"]),
        ("second {only", "two {only", [*ARMS[2:], "02_third"]),
        ("first {only", "one {only", [*ARMS, "02_third"]),
    ],
)
def test_arms_are_run_again_if_what_they_do_has_changed(project, old, new, expected):
    source = add_arms(project)
    pretend(make_plan(project, "smoke"))
    assert due(make_plan(project, "smoke")) == {}
    source.write_text(source.read_text().replace(old, new))
    assert due(make_plan(project, "smoke")) == {name: ["notebook"] for name in expected}


def test_a_chapter_that_is_done_needs_no_arms(project):
    add_arms(project)
    plan = make_plan(project, "smoke")
    pretend(plan, "00_first", "01_second", "02_third")
    assert due(plan) == {}
    (plan.folder / "chapters" / "02_third.ipynb").unlink()
    pretend(plan, *ARMS[:3])
    assert list(due(plan)) == [ARMS[3], "02_third"]


def test_our_chapters_are_divided_by_what_they_train():
    profile = load_profile("full", ROOT / "profiles")
    arms = {name: stages(source, profile) for name, source in chapter_sources(ROOT).items() if declared_arms(source)}
    assert list(arms) == [
        "02_generator", "04_restoration", "05_sites", "06_dp", "06_dp_images", "06_dp_patients", "06_memorisation",
    ]  # fmt: skip
    assert [a.values for a in arms["02_generator"]] == [["0", "1", "2"]]
    # a generator each, then the networks that learn from its images
    assert [a.values for a in arms["04_restoration"]] == [["ct", "mr", "pet"], list(profile.restoration.experiments)]
    assert [tuple(a.values) for a in arms["05_sites"]] == [SITES]
    assert [tuple(a.values) for a in arms["06_dp"]] == [profile.privacy.arms]
    assert [tuple(a.values) for a in arms["06_dp_images"]] == [profile.dp_images.arms]
    assert [tuple(a.values) for a in arms["06_dp_patients"]] == [profile.dp_patients.arms]
    assert [tuple(a.values) for a in arms["06_memorisation"]] == [profile.memorisation.arms]
    # the first kind has one arm for each generator only if experiments are called as their modality
    assert all(name.partition("-")[0] == task.modality for name, task in TASKS.items())
    one = replace(profile, restoration=replace(profile.restoration, experiments=("mr-x2/edsr",)))
    assert stages(chapter_sources(ROOT)["04_restoration"], one) == []

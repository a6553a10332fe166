import os
from pathlib import Path

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stub_project import write_notebook

from medsynth.publish import notebook as runner
from medsynth.publish.notebook import (
    Arms,
    ChapterError,
    check_parameters,
    clean,
    declared_arms,
    declared_parameters,
    parse_parameters,
    read_notebook,
    run_notebook,
)


@pytest.fixture
def notebook(tmp_path):
    return write_notebook(tmp_path / "notebooks" / "00_a.ipynb", "1")


def test_parameters_are_read_with_type_and_default(notebook):
    found = declared_parameters(notebook)
    assert {name: (p.kind, p.default) for name, p in found.items()} == {
        "profile": ("str", "laptop"), "data": ("str", ""), "seed": ("int", 0), "out": ("str", ""),
    }  # fmt: skip


@pytest.mark.parametrize(
    "bad", ["seed = 0", "seed: int", "seed: int = '0'", "seed: int = True", "seeds: list = [1]", "import os", "x: float = f()"]
)
def test_a_parameters_cell_holds_annotated_literals_only(tmp_path, bad):
    path = write_notebook(tmp_path / "00_a.ipynb", parameters=bad)
    with pytest.raises(ValueError, match="expected `name: type = literal`"):
        declared_parameters(path)


def test_there_is_exactly_one_parameters_cell(tmp_path):
    with pytest.raises(ValueError, match="0 cells are tagged"):
        declared_parameters(write_notebook(tmp_path / "00_a.ipynb", parameters=None))


def test_unknown_parameters_name_the_closest(notebook):
    with pytest.raises(ValueError, match="no parameter 'profil'; did you mean 'profile'"):
        check_parameters(notebook, {"profil": "smoke"})
    with pytest.raises(ValueError, match="expected one of profile, data, seed, out"):
        check_parameters(notebook, {"zzz": 1})


@given(value=st.none() | st.booleans() | st.floats() | st.text() | st.lists(st.integers()))
@settings(max_examples=30, deadline=None)
def test_only_an_integer_passes_for_an_integer(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "typed" / "00_a.ipynb"
    path.exists() or write_notebook(path)
    with pytest.raises(ValueError, match="expected int"):
        check_parameters(path, {"seed": value})


def test_texts_are_read_by_declared_type(tmp_path):
    path = write_notebook(tmp_path / "00_a.ipynb", parameters="a: int = 1\nb: float = 1.0\nc: bool = False\nd: str = ''")
    assert parse_parameters(path, ["a=-3", "b=2", "c=true", "d=x=y"]) == {"a": -3, "b": 2.0, "c": True, "d": "x=y"}
    for text, match in [("a=1.5", "expected int"), ("c=yes", "expected bool"), ("e=1", "no parameter 'e'"), ("a", "no '='")]:
        with pytest.raises(ValueError, match=match):
            parse_parameters(path, [text])


def test_what_is_no_notebook_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such notebook"):
        declared_parameters(tmp_path / "00_a.ipynb")
    (tmp_path / "00_a.ipynb").write_text("{")
    with pytest.raises(ValueError, match="not a notebook"):
        declared_parameters(tmp_path / "00_a.ipynb")


def test_a_run_gives_a_clean_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "SAY_EVERY", 0.0)
    source = write_notebook(
        tmp_path / "notebooks" / "00_a.ipynb",
        "import os, sys, logging\nprint(os.getcwd(), profile, data)\nsys.stderr.write('NOISE'.lower())",
        "logging.getLogger('medsynth.training').info('step 5 of 9')",
    )
    data = tmp_path / "mine" / "x.npz"
    said = []
    target = run_notebook(
        source, tmp_path / "build" / "00_a.ipynb", {"profile": "smoke", "data": str(data)},
        cwd=tmp_path, log=said.append, remark=lambda: {"data": ["data"]},
    )  # fmt: skip
    text = target.read_text()
    assert str(tmp_path) not in text
    assert ". smoke <data>/x.npz" in text
    assert "papermill" not in text
    assert "noise" not in text
    assert nbformat.read(target, 4).metadata["medsynth"] == {"data": ["data"]}
    assert any("cell 2 of 3" in line for line in said)
    assert any("step 5 of 9" in line for line in said)
    assert "noise" in target.with_suffix(".log").read_text()
    assert sorted(p.name for p in target.parent.iterdir()) == ["00_a.ipynb", "00_a.log"]


def test_a_failing_cell_is_explained_and_what_ran_is_kept(tmp_path):
    source = write_notebook(tmp_path / "notebooks" / "00_a.ipynb", "print('fine')", "def f():\n    raise KeyError('gone')\nf()")
    target = tmp_path / "build" / "00_a.ipynb"
    with pytest.raises(ChapterError, match=r"(?s)chapter 00_a failed in code cell 3.*KeyError: 'gone'.*00_a\.failed\.ipynb"):
        run_notebook(source, target, {}, cwd=tmp_path, log=lambda _: None)
    assert not target.exists()
    assert "fine" in target.with_name("00_a.failed.ipynb").read_text()
    assert not list(target.parent.glob(".*"))


def test_a_dead_kernel_is_explained(tmp_path):
    source = write_notebook(tmp_path / "notebooks" / "00_a.ipynb", "import os; os._exit(1)")
    with pytest.raises(ChapterError, match="code cell 2; the kernel died, most often for lack of memory"):
        run_notebook(source, tmp_path / "build" / "00_a.ipynb", {}, cwd=tmp_path, log=lambda _: None)


def test_an_interrupted_run_keeps_what_ran(tmp_path, monkeypatch, notebook):
    def interrupted(source, partial, *_):
        partial.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_notebook(notebook, tmp_path / "build" / "00_a.ipynb", {}, cwd=tmp_path)
    assert (tmp_path / "build" / "00_a.failed.ipynb").read_text() == "half"


def test_nothing_runs_on_bad_parameters_or_onto_the_sources(tmp_path, notebook, monkeypatch):
    monkeypatch.setattr(runner, "_execute", lambda *_: pytest.fail("it ran"))
    with pytest.raises(ValueError, match="no parameter"):
        run_notebook(notebook, tmp_path / "build" / "00_a.ipynb", {"x": 1}, cwd=tmp_path)
    with pytest.raises(ValueError, match="may not lie beside their sources"):
        run_notebook(notebook, notebook.with_name("copy.ipynb"), {}, cwd=tmp_path)


def test_cleaning_strips_what_differs_between_machines():
    v4 = nbformat.v4
    cell = v4.new_code_cell("open('/home/someone/p/x')", metadata={"papermill": {"duration": 1}, "execution": {}, "tags": ["a"]})
    cell.outputs = [
        v4.new_output("stream", name="stdout", text="/home/someone/p/x and /home/someone/path"),
        v4.new_output("stream", name="stderr", text="warning"),
        v4.new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}, "text/plain": "slider"}),
        v4.new_output("execute_result", data={"text/plain": "<f at 0x7f12ab34cd>", "image/png": "x/home/someone/p/"}),
    ]
    notebook = v4.new_notebook(cells=[cell], metadata={"widgets": {}, "papermill": {}})
    clean(notebook, {"/home/someone": "~", "/home/someone/p": ".", "/": "never"}, {"data": []})
    assert cell.source == "open('./x')"
    assert cell.metadata == {"tags": ["a"]}
    assert [o.output_type for o in cell.outputs] == ["stream", "execute_result"]
    assert cell.outputs[0].text == "./x and ~/path"
    # pixels are not text, whatever letters they are written in
    assert cell.outputs[1].data == {"text/plain": "<f at 0x…>", "image/png": "x/home/someone/p/"}
    assert set(notebook.metadata) == {"kernelspec", "language_info", "medsynth"}


def test_progress_lines_are_throttled(tmp_path, monkeypatch):
    said = []
    progress = runner._Progress("00_a", said.append, tmp_path / "log")
    for number in range(50):
        progress.write(f"{number} %\r")
    progress.flush()
    assert len(said) == 1
    assert said[0].endswith("0 %")
    assert (tmp_path / "log").read_text().count("%") == 50


def test_private_folders_are_named_by_meaning(tmp_path):
    found = runner._private_paths({"data": str(tmp_path / "x.npz"), "out": "build/x", "seed": 1})
    assert found[str(tmp_path)] == "<data>"
    assert found[str(Path.home())] == "~"
    assert os.sep not in found.values()


@pytest.mark.slow
def test_kernels_that_start_at_once_cannot_choose_one_port(tmp_path):
    where = "from ipykernel.kernelapp import IPKernelApp\nkernel = IPKernelApp.instance()\nprint(kernel.transport, kernel.ip)"
    target = run_notebook(write_notebook(tmp_path / "notebooks" / "00_a.ipynb", where), tmp_path / "a.ipynb", {}, cwd=tmp_path)
    transport, place = target.with_suffix(".log").read_text().split()
    assert transport == "ipc"
    # a folder of this run alone, which is gone with it
    assert Path(place).parent.name.startswith("kernel-") and not Path(place).parent.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ipynb", "a.log", "notebooks"]


# arms


def with_arms(path, *said):
    """The notebook at `path`, whose code cells after the parameters have these arms."""
    notebook = nbformat.read(path, 4)
    for cell, arms in zip(notebook.cells[2:], said, strict=True):
        cell.metadata["arms"] = arms
    nbformat.write(notebook, path)
    return path


def test_a_cell_says_which_arms_end_there(tmp_path):
    path = write_notebook(tmp_path / "00_a.ipynb", "1", "2")
    assert declared_arms(path) == []
    with_arms(path, {"data": ["a", "b"]}, {"data": "restoration.experiments"})
    assert declared_arms(path) == [Arms("cell-2", "data", ["a", "b"]), Arms("cell-3", "data", "restoration.experiments")]
    assert [cell.id for cell in read_notebook(path, "cell-2").cells] == ["cell-0", "cell-1", "cell-2"]
    with pytest.raises(ValueError, match="0 cells have the id 'gone'; expected exactly one"):
        read_notebook(path, "gone")


@pytest.mark.parametrize(
    "said", [[], {}, "data", {"data": 1}, {"data": [1]}, {"seed": ["1"]}, {"dat": ["1"]}, {"data": [], "out": []}]
)
def test_arms_of_another_form_are_errors(tmp_path, said):
    with pytest.raises(ValueError, match="expected a cell with an id and one declared parameter of type str"):
        declared_arms(with_arms(write_notebook(tmp_path / "00_a.ipynb", "1"), said))


@pytest.mark.slow
def test_an_arm_ends_at_its_cell_and_is_called_by_its_name(tmp_path):
    source = write_notebook(tmp_path / "notebooks" / "00_a.ipynb", "print(data)", "print(1 / seed)")
    log, target = [], tmp_path / "arms" / "00_a" / "left.ipynb"
    named = {"cwd": tmp_path, "name": "00_a/left", "log": log.append}
    run_notebook(source, target, {"data": "left"}, until="cell-2", **named)
    ran = [cell.id for cell in nbformat.read(target, 4).cells if not cell.id.startswith("injected")]
    assert ran == ["cell-0", "cell-1", "cell-2"]
    assert log[0].startswith("00_a/left [") and log[0].endswith("cell 1 of 2") and log[-1].startswith("00_a/left: done in ")
    with pytest.raises(ChapterError, match="chapter 00_a/left failed in code cell 3"):
        run_notebook(source, target, {"data": "left"}, **named)
    assert target.with_name("left.failed.ipynb").exists()

import nbformat
import pytest
from stub_project import make_project, write_notebook

from medsynth.publish.check import problems
from medsynth.results import Row, write_results

ROWS = [Row(chapter="02", dataset="xray", metric="KID", arm="ours", value=0.5)]
SIDECAR = {"parameters": {}, "seeds": [0], "inputs": {}, "data_licence": "CC BY 4.0"}
PICTURE = '<svg><image href="data:image/png;base64,AA"/></svg>'
PLOT = "<svg><path/></svg>"


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


def test_a_clean_project_has_no_problems(project):
    published = project / "results" / "published" / "xray"
    write_results(published, "quality", ROWS, **SIDECAR)
    (published / "quality.svg").write_text(PLOT)
    assert problems(project) == []


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("class Net: ...", "defines the class Net"),
        ("plt.imshow(x)", "calls imshow"),
        ("display(Image.fromarray(x))", "calls fromarray"),
        ("x =", "not valid Python"),
    ],
)
def test_sources_are_clean(project, cell, problem):
    write_notebook(project / "notebooks" / "02_third.ipynb", cell)
    (found,) = problems(project)
    assert problem in found
    assert "02_third" in found


def test_sources_hold_no_outputs(project):
    path = project / "notebooks" / "00_first.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="x")]
    notebook.cells[3].execution_count = 1
    nbformat.write(notebook, path)
    assert problems(project) == [
        "notebooks/00_first.ipynb: code cells [2, 3] hold outputs or counts; clear all outputs before committing"
    ]


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ({"image/png": "AA"}, 1),
        ({"image/svg+xml": PICTURE}, 1),
        ({"image/svg+xml": ["<svg>", "<image />", "</svg>"]}, 1),
        ({"text/html": '<img src="data:image/png;base64,AA">'}, 1),
        ({"image/svg+xml": PLOT, "text/plain": "a plot"}, 0),
    ],
)
@pytest.mark.parametrize("real", [True, False])
def test_chapters_on_real_data_show_no_pictures(project, data, found, real):
    path = write_notebook(project / "build" / "full-mine" / "chapters" / "00_first.ipynb", "show()")
    notebook = nbformat.read(path, 4)
    notebook.cells[2].outputs = [nbformat.v4.new_output("display_data", data=data)]
    notebook.metadata["medsynth"] = {"data": ["data"] if real else []}
    nbformat.write(notebook, path)
    assert [("code cell 2 shows a picture" in p) for p in problems(project)] == [True] * (found * real)


@pytest.mark.parametrize("licence", ["generated", "CC BY 4.0"])
def test_published_pictures_are_of_phantoms(project, licence):
    published = project / "results" / "published" / "run"
    write_results(published, "grid", ROWS, **SIDECAR | {"data_licence": licence})
    (published / "grid.svg").write_text(PICTURE)
    assert len(problems(project)) == (licence != "generated")


def test_published_files_are_rows_with_sidecars_and_plots(project):
    published = project / "results" / "published" / "run"
    write_results(published, "quality", ROWS, **SIDECAR)
    (published / "quality.json").unlink()
    (published / "photo.png").touch()
    (published / "alone.svg").write_text(PICTURE)
    alone, photo, quality = problems(project)
    assert "alone.svg: holds a picture" in alone
    assert "photo.png: only" in photo
    assert "sidecar quality.json is missing" in quality

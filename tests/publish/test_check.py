import nbformat
import pytest
from stub_project import make_project, write_notebook

from medsynth.hashes import file_hash
from medsynth.publish.check import problems
from medsynth.results import Row, read_results, write_figure_data, write_results
from medsynth.runs import write_json

ROWS = [Row(chapter="quality", dataset="xray", metric="KID", arm="ours", value=0.5)]
SIDECAR = {"parameters": {}, "seeds": [0], "inputs": {}, "data_licence": "CC BY 4.0"}
PICTURE = '<svg><image href="data:image/png;base64,AA"/></svg>'
PLOT = "<svg><path/></svg>"


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


def figure(folder, name, svg, **changes):
    """A figure with its data and sidecar, as save_figure leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.svg").write_text(svg)
    hashes = {"svg_sha256": file_hash(folder / f"{name}.svg")}
    return write_figure_data(folder, name, ROWS, **SIDECAR | {"parameters": hashes} | changes)


@pytest.fixture
def published(project):
    """A run with rows and a figure, as they should be."""
    folder = project / "results" / "published" / "xray"
    write_results(folder, "quality", ROWS, **SIDECAR)
    figure(folder, "quality-figure", PLOT)
    return folder


def test_a_clean_project_has_no_problems(project, published):
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
def test_published_pictures_are_of_phantoms(project, published, licence):
    figure(published, "quality-grid", PICTURE, data_licence=licence)
    assert [("quality-grid.svg: holds a picture" in p) for p in problems(project)] == [True] * (licence != "generated")


def test_published_files_are_rows_with_sidecars_and_plots(project, published):
    (published / "quality.json").unlink()
    (published / "photo.png").touch()
    (published / "alone.svg").write_text(PLOT)
    write_json(published / "nothing.json", {})
    assert [p.removeprefix("results/published/xray/") for p in problems(project)] == [
        "quality.csv: its sidecar quality.json is missing; run the chapter that wrote it again",
        "quality-figure.csv: the data of a figure, and no rows of a chapter 'quality' stand beside it",
        "alone.svg: no rows stand behind it",
        "nothing.json: no table stands beside it",
        "photo.png: only .csv, .json, .md, .svg files are published; remove it",
    ]


def test_published_tables_are_in_the_schema_or_declared_the_data_of_a_figure(project, published):
    write_json(published / "quality.json", read_results(published, "quality").sidecar | {"kind": ""})
    figure(published, "quality-grid", PLOT)
    (published / "quality-grid.svg").write_text(PLOT + " ")
    (published / "quality-figure.svg").unlink()
    assert [p.removeprefix("results/published/xray/") for p in problems(project)] == [
        "quality.csv: its sidecar calls it ''; expected 'rows' or 'figure': run the chapter that wrote it again",
        "quality-figure.csv: the data of a figure without quality-figure.svg",
        "quality-grid.csv: the data of a figure, and no rows of a chapter 'quality' stand beside it",
        "quality-grid.svg: not the figure that its sidecar was written with; run the chapter again",
    ]


def test_a_published_table_is_called_after_its_chapter(project, published):
    for ending in (".csv", ".json"):
        (published / f"quality{ending}").rename(published / f"other{ending}")
    for file in published.glob("quality-figure.*"):
        file.unlink()
    assert problems(project) == ["results/published/xray/other.csv: holds rows of 'quality'; a table is called after its chapter"]

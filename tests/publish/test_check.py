import subprocess

import nbformat
import pytest
from stub_project import make_project, write_notebook

from medsynth.publish.check import problems
from medsynth.results import Row, read_results, write_figure_data, write_results
from medsynth.store.hashes import file_hash
from medsynth.store.runs import write_json

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
        ("plt.imshow(x)", "uses imshow"),
        ("display(Image.fromarray(x))", "uses Image, fromarray"),
        ("plt.pcolormesh(x)", "uses pcolormesh"),
        ("getattr(plt, 'imshow')(x)", "uses imshow"),
        ("draw = plt.imshow\ndraw(x)", "uses imshow"),
        ("from matplotlib.pyplot import imshow as draw\ndraw(x)", "uses imshow"),
        ("from IPython.display import Image\nImage('mine.png')", "uses Image"),
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


def show(path, *, data=None, parameters='profile: str = "laptop"\ndata: str = ""', given=""):
    """An executed copy that shows a picture; `data` is what its metadata say that it ran on."""
    write_notebook(path, "show()", parameters=parameters)
    notebook = nbformat.read(path, 4)
    if given:
        notebook.cells.insert(2, nbformat.v4.new_code_cell(given, metadata={"tags": ["injected-parameters"]}))
    notebook.cells[-1].outputs = [nbformat.v4.new_output("display_data", data={"image/png": "AA"})]
    if data is not None:
        notebook.metadata["medsynth"] = {"data": data}
    nbformat.write(notebook, path)


@pytest.mark.parametrize(
    "place",
    [
        "build/runs/00_first.ipynb",
        "build/full-mine/arms/00_first/left.ipynb",
        "build/full-mine/chapters/00_first.failed.ipynb",
        "build/full-mine/chapters/.00_first.partial.ipynb",
        "build/full-mine/chapters/first.ipynb",
    ],
)
@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"data": ["data"]}, "in a chapter that ran on real data"),
        ({"given": "# Parameters\ndata = '/home/me/mine.npz'"}, "in a chapter that ran on real data"),
        ({"data": [], "parameters": "mr: str = '/home/me/mine.npz'"}, "in a chapter that ran on real data"),
        ({"parameters": None}, "and does not say that it ran on phantoms"),
        ({"data": []}, ""),
        ({"given": "# Parameters\nprofile = 'smoke'"}, ""),
    ],
)
def test_executed_copies_show_no_pictures_wherever_they_lie(project, place, facts, reason):
    show(project / place, **facts)
    number = 2 + ("given" in facts) - ("parameters" in facts and facts["parameters"] is None)
    assert problems(project) == [f"{place}: code cell {number} shows a picture {reason}"] * bool(reason)


def test_an_executed_copy_that_cannot_be_read_is_named(project):
    path = project / "build" / "full-mine" / "chapters" / "00_first.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    (found,) = problems(project)
    assert found.startswith("build/full-mine/chapters/00_first.ipynb: not a notebook")


def test_chapters_show_no_picture_in_their_text(project):
    path = project / "notebooks" / "00_first.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells[0].attachments = {"a.png": {"image/png": "AA"}}
    nbformat.write(notebook, path)
    assert problems(project) == ["notebooks/00_first.ipynb: Markdown cell 1 shows a picture; remove it"]


@pytest.fixture(params=[True, False], ids=["in git", "without git"])
def tracked(project, request):
    """A project that git knows, or not."""
    if request.param:
        subprocess.run(["git", "-C", str(project), "init"], check=True, capture_output=True)
        (project / ".gitignore").write_text("build/\nignored/\n")
    return project


@pytest.mark.parametrize("place", ["notebooks/scratch.ipynb", "notebooks/sub/02_x.ipynb", "results/x.ipynb"])
def test_no_other_notebook_shows_a_picture(tracked, place):
    show(tracked / place)
    assert problems(tracked) == [f"{place}: code cell 2 shows a picture; remove it"]


def test_notebooks_elsewhere_are_found_by_git(project):
    subprocess.run(["git", "-C", str(project), "init"], check=True, capture_output=True)
    show(project / "scratch.ipynb")
    (project / "notebooks" / "broken.ipynb").write_text("{")
    broken, shown = problems(project)
    assert broken.startswith("notebooks/broken.ipynb: not a notebook")
    assert shown == "scratch.ipynb: code cell 2 shows a picture; remove it"


@pytest.mark.parametrize(
    ("place", "content", "problem"),
    [
        ("notebooks/p.png", b"\x89PNG\r\n", "a picture or something else that is no text; remove it"),
        ("book/_static/p.css", b"\xff\xd8\xff\xe0JFIF", "a picture or something else that is no text; remove it"),
        ("results/trials/p.csv", b"GIF89a\x00", "a picture or something else that is no text; remove it"),
        ("book/page.md", b"![x](data:image/png;base64,AA)", "shows a picture; remove it"),
        ("book/_static/drawing.svg", PICTURE.encode(), "shows a picture; remove it"),
        ("book/_static/plot.svg", PLOT.encode(), ""),
        ("book/_ext/page.py", b"'<img src=x>'", ""),
        ("results/trials/x.csv", b"value\n1\n", ""),
    ],
)
def test_pages_and_what_lies_among_them_are_text_without_pictures(tracked, place, content, problem):
    (tracked / place).parent.mkdir(parents=True, exist_ok=True)
    (tracked / place).write_bytes(content)
    assert problems(tracked) == [f"{place}: {problem}"] * bool(problem)


def test_what_git_ignores_is_not_looked_at(project):
    subprocess.run(["git", "-C", str(project), "init"], check=True, capture_output=True)
    (project / ".gitignore").write_text("*.png\n")
    (project / "notebooks" / "p.png").write_bytes(b"\x89PNG")
    assert problems(project) == []


def test_nothing_is_linked_to(project, published):
    (project / "notebooks" / "more").symlink_to("/tmp")
    (published / "folder").symlink_to("/tmp")
    (published / "alone.svg").symlink_to("/photo.png")
    (published.parent / "run").symlink_to(published)
    link = "a link, of which nobody can say what it will show; put the file itself there"
    places = ["notebooks/more", "results/published/run", "results/published/xray/alone.svg", "results/published/xray/folder"]
    assert problems(project) == [f"{place}: {link}" for place in places]


def test_published_files_that_are_no_text_or_show_a_picture_are_named(project, published):
    (published / "note.md").write_text("![x](data:image/png;base64,AA)")
    (published / "other.md").write_bytes(b"\x89PNG")
    (published / "alone.svg").write_bytes(b"\xff\xfe")
    assert [p.removeprefix("results/published/xray/") for p in problems(project)] == [
        "alone.svg: a picture or something else that is no text; remove it",
        "note.md: shows a picture; remove it",
        "other.md: a picture or something else that is no text; remove it",
    ]


@pytest.mark.parametrize("content", ["[]", "{"])
def test_a_sidecar_that_cannot_be_read_is_named(project, published, content):
    (published / "quality-figure.json").write_text(content)
    first, second = problems(project)
    assert first.startswith("results/published/xray/quality-figure.json: no ")
    assert second == "results/published/xray/quality-figure.svg: no rows stand behind it"


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

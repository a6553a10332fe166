"""A project of two tiny chapters in a folder of its own, for tests of what runs, builds and checks it."""

import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = 'profile: str = "laptop"\ndata: str = ""\nseed: int = 0\nout: str = ""'


def table_lines(text):
    """Cells of the lines of an HTML table, header first."""
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, re.DOTALL) for line in re.findall(r"<tr.*?</tr>", text, re.DOTALL)]


def write_notebook(path, *cells, parameters=PARAMETERS, title="A chapter"):
    """A notebook with one parameters cell, then the given code cells."""
    v4 = nbformat.v4
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = v4.new_notebook(metadata={"language_info": {"name": "python"}, "kernelspec": kernel})
    notebook.cells = [v4.new_markdown_cell(f"# {title}")]
    if parameters is not None:
        notebook.cells.append(v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    notebook.cells += [v4.new_code_cell(cell) for cell in cells]
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def make_project(folder):
    """Two chapters, one profile and the Snakefile; the second chapter writes one file to `out`."""
    (folder / "profiles").mkdir(parents=True)
    for name in ("smoke.yaml", "needs.csv"):
        (folder / "profiles" / name).write_text((ROOT / "profiles" / name).read_text())
    (folder / "Snakefile").write_text((ROOT / "Snakefile").read_text())
    read = "from medsynth.settings.profile import load_profile\np = load_profile(profile)"
    write_notebook(folder / "notebooks" / "00_first.ipynb", read, "print(p.thorax.size)", parameters='profile: str = "laptop"')
    write = "from pathlib import Path\nPath(out, 'rows.txt').write_text(f'{p.cardiac.slices} {data}');"
    write_notebook(folder / "notebooks" / "01_second.ipynb", read, write, "print('written')")
    return folder


TRAIN = """from pathlib import Path
Path("seen").mkdir(exist_ok=True)
Path("seen", f"first {only.replace('/', ' ')}").touch()"""
MEET = """import time
Path("seen", f"second {only.replace('/', ' ')}").touch()
began = time.monotonic()
while only and len(list(Path("seen").glob("second *-*"))) < 2:
    assert time.monotonic() < began + 60, "alone"
    time.sleep(0.05)"""


def add_arms(folder, *, first=TRAIN, second=MEET, last='Path(out, "rows.txt").write_text("rows");'):
    """A third chapter for `make_project`, begun in arms: "left" and "right", then one for each experiment of restoration.

    Arms of the second kind wait for one another: they end only if two run at once.
    """
    path = folder / "notebooks" / "02_third.ipynb"
    parameters = 'profile: str = "laptop"\nonly: str = ""\nout: str = ""'
    write_notebook(path, first, second, last, parameters=parameters, title="Begun in arms")
    notebook = nbformat.read(path, 4)
    notebook.cells[2].metadata["arms"] = {"only": ["left", "right"]}
    notebook.cells[3].metadata["arms"] = {"only": "restoration.experiments"}
    nbformat.write(notebook, path)
    profile = folder / "profiles" / "smoke.yaml"
    profile.write_text(profile.read_text().replace("arms: [third]\n", "") + "arms: [third]\n")
    return path

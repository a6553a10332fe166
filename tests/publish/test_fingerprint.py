import ast

import pytest
from stub_project import write_notebook

from medsynth.publish.fingerprint import changes, code_of, fingerprint, profile_sections


@pytest.fixture
def project(tmp_path):
    """notebook -> a -> (late) sub.b -> weights/net.bin; `lonely` is imported by nobody."""
    files = {
        "medsynth/__init__.py": "", "medsynth/a.py": "def f():\n    from medsynth.sub import b\n    return b\n",
        "medsynth/sub/__init__.py": "", "medsynth/sub/b.py": "from ..c import x\nFOLDER, SCALE = 'weights', x\n",
        "medsynth/c.py": "x = 1\n",
        "medsynth/lonely.py": "x = 1\n", "medsynth/weights/net.bin": "w", "medsynth/other/net.bin": "w",
        "profiles/smoke.yaml": "thorax: {size: 32}\ncardiac: {size: 8}\n", "mine.npz": "1", "other.npz": "1",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    cells = ("%matplotlib inline\nfrom medsynth.a import f\nf()", "p = load_profile(profile)\nprint(p.thorax.size)")
    write_notebook(tmp_path / "notebooks" / "00_a.ipynb", *cells)
    return tmp_path


def depends(project, data=False):
    return fingerprint(
        project / "notebooks" / "00_a.ipynb", package=project / "medsynth", profile=project / "profiles" / "smoke.yaml",
        data={"ct": project / "mine.npz", "mr": project / "other.npz"} if data else None,
    )  # fmt: skip


def test_everything_a_chapter_reaches_is_named(project):
    assert sorted(depends(project, data=True)) == [
        "ct", "medsynth", "medsynth.a", "medsynth.c", "medsynth.sub", "medsynth.sub.b", "medsynth/weights/net.bin", "mr",
        "notebook", "profile.thorax",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "text", "changed"),
    [("a.npz", "2", True), ("b.npz", "1", True), ("a.txt", "2", False), ("deep/a.npz", "2", False), ("a.npz", "1", False)],
)
def test_a_folder_is_known_by_its_files_and_their_names(project, file, text, changed):
    sets = project / "sets"
    (sets / "deep").mkdir(parents=True)
    (sets / "a.npz").write_text("1")
    named = lambda folder: fingerprint(  # noqa: E731
        project / "notebooks" / "00_a.ipynb", package=project / "medsynth", profile=project / "profiles" / "smoke.yaml",
        data={"real": folder},
    )["real"]  # fmt: skip
    before = named(sets)
    (sets / file).write_text(text)
    assert (named(sets) != before) == changed
    # where it lies does not count
    assert named(sets.rename(project / "elsewhere")) == named(project / "elsewhere")
    (project / "elsewhere" / "a.npz").rename(project / "elsewhere" / "c.npz")
    assert named(project / "elsewhere") != before


@pytest.mark.parametrize(
    ("file", "text", "changed"),
    [
        ("medsynth/c.py", "x = 2\n", ["medsynth.c"]),
        ("medsynth/c.py", "# why\nx  =  1\n", []),
        ("medsynth/lonely.py", "x = 2\n", []),
        ("medsynth/weights/net.bin", "v", ["medsynth/weights/net.bin"]),
        ("medsynth/other/net.bin", "v", []),
        ("profiles/smoke.yaml", "thorax: {size: 64}\ncardiac: {size: 8}\n", ["profile.thorax"]),
        ("profiles/smoke.yaml", "# why\ncardiac: {size: 16}\nthorax: {size: 32}\n", []),
        ("mine.npz", "2", ["ct"]),
        ("other.npz", "2", ["mr"]),
    ],
)
def test_what_changed_is_named_and_nothing_else(project, file, text, changed):
    before = depends(project, data=True)
    (project / file).write_text(text)
    now = depends(project, data=True)
    assert changes(before, now) == changed


def test_a_changed_cell_counts_and_its_outputs_do_not(project):
    before = depends(project)
    path = project / "notebooks" / "00_a.ipynb"
    path.write_text(
        path.read_text().replace('"outputs": []', '"outputs": [{"output_type": "stream", "name": "stdout", "text": "x"}]')
    )
    assert changes(before, depends(project)) == []
    write_notebook(path, "from medsynth.a import f\nf()", "p = load_profile(profile)\nprint(p.thorax.size + 1)")
    assert changes(before, depends(project)) == ["notebook"]


@pytest.mark.parametrize(
    ("code", "sections"),
    [
        ("p = load_profile(profile)\nf(p.thorax, p.sampling.steps)", {"thorax", "sampling"}),
        ("p = config.load_profile(profile)\np.thorax", {"thorax"}),
        ("p = load_profile(profile)\nf(p)", None),
        ("f(load_profile(profile))", None),
        ("x = 1", None),
        ("c = Chapter('a', profile)\nc.settings.sampling.steps", {"seeds", "thorax", "sampling"}),
        ("c = Chapter('a', profile)\nsettings = c.settings", None),
    ],
)
def test_sections_are_found_or_all_count(code, sections):
    assert profile_sections(ast.parse(code)) == sections


def test_a_cell_that_does_not_parse_is_named(tmp_path):
    with pytest.raises(ValueError, match="code cell 2 is not valid Python"):
        code_of(write_notebook(tmp_path / "00_a.ipynb", "x ="))

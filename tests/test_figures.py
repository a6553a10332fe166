import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from medsynth import figures
from medsynth.imageset import ImageSet
from medsynth.publish.pictures import has_pictures
from medsynth.results import FIGURE, Estimate, Row, read_results

SIDECAR = {"parameters": {"steps": 3}, "seeds": [0], "inputs": {}, "data_licence": "generated"}
ROWS = [
    Row.of(Estimate(0.5, 0.25, 0.75, 9), chapter="02", dataset="phantom", metric="KID", arm="ours"),
    Row(chapter="02", dataset="phantom", metric="KID", arm="PCA", value=0.9),
]


@pytest.fixture(autouse=True)
def _close():
    mpl.use("agg")
    yield
    plt.close("all")


def image_set(origin, shape=(6, 1, 8, 8), licence="generated", **changes):
    images = np.random.default_rng(0).random(shape)
    table = pd.DataFrame({"licence": [licence] * shape[0]})
    return ImageSet(
        images=images, patient=np.arange(shape[0]), unit="1", range=(0, 1), name="set", origin=origin, attributes=table, **changes
    )


def test_a_figure_is_saved_with_its_rows_and_the_same_bytes_each_time(tmp_path):
    for folder in ("a", "b"):
        fig, ax = figures.new_figure()
        figures.estimates_plot(ax, ROWS, label="KID (1)", floor=ROWS[0])
        path = figures.save_figure(fig, tmp_path / folder, "kid", ROWS, **SIDECAR)
        again = path.read_bytes()
        figures.save_figure(fig, tmp_path / folder, "kid", ROWS, **SIDECAR)
        assert path.read_bytes() == again
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["kid.csv", "kid.json", "kid.png", "kid.svg"]
    for name in ("kid.svg", "kid.png", "kid.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    found = read_results(tmp_path / "a", "kid")
    assert found.rows["arm"].tolist() == ["ours", "PCA"] and found.kind == FIGURE
    assert set(found.sidecar["parameters"]) == {"steps", "svg_sha256", "png_sha256"}
    assert not has_pictures((tmp_path / "a" / "kid.svg").read_text())


def test_pictures_of_phantoms_are_drawn(tmp_path):
    fig = figures.image_grid(image_set("phantom"), rows=2, columns=2, titles=["t"] * 4, row_labels=["x", "y"], title="Phantoms")
    assert [len(ax.images) for ax in fig.axes] == [1, 1, 1, 1]
    assert fig.axes[0].images[0].get_clim() == (0, 1)
    assert (fig.axes[1].get_title(), fig.axes[2].get_ylabel()) == ("t", "y")
    svg = figures.save_figure(fig, tmp_path, "grid", ROWS, **SIDECAR).read_text()
    assert has_pictures(svg)


def test_a_label_of_a_row_is_no_longer_than_its_row_is_high():
    labels = ["consolidation", "cardiomegaly", "reconstruction of images"]
    fig = figures.image_grid(image_set("phantom", (24, 1, 8, 8)), rows=3, columns=8, row_labels=labels)
    fig.draw_without_rendering()
    boxes = [ax.yaxis.label.get_window_extent() for ax in fig.axes[::8]]
    assert all(box.x0 >= 0 and box.height < ax.bbox.height for box, ax in zip(boxes, fig.axes[::8], strict=True))


@pytest.mark.parametrize("licence", ["CC BY 4.0", "unknown", "generated"])
@pytest.mark.parametrize("origin", ["scan", "synthetic", "mixed"])
def test_pictures_of_people_are_withheld_whatever_the_licence(tmp_path, licence, origin):
    fig = figures.image_grid(image_set(origin, licence=licence), titles=["a patient"])
    assert not any(ax.images for ax in fig.axes)
    assert not any(ax.get_title() for ax in fig.axes)
    assert licence in fig.texts[0].get_text()
    assert not has_pictures(figures.save_figure(fig, tmp_path, "grid", ROWS, **SIDECAR).read_text())


def test_what_was_learned_from_phantoms_alone_is_drawn():
    assert figures.image_grid(image_set("synthetic", people=False), rows=1, columns=1).axes[0].images


def test_an_array_says_whose_images_it_was_computed_from():
    images = np.zeros((2, 8, 8))
    with pytest.raises(ValueError, match="pass `of`"):
        figures.image_grid(images)
    with pytest.raises(ValueError, match="says itself whose images"):
        figures.image_grid(image_set("phantom"), of=image_set("phantom"))
    with pytest.raises(ValueError, match="shape"):
        figures.image_grid(np.zeros((8, 8)), of=image_set("phantom"))
    assert len(figures.image_grid(images, of=image_set("phantom"), limits=(0, 2)).axes[0].images) == 1


def test_each_set_has_a_line_and_a_smaller_one_leaves_places_empty():
    many, few = image_set("phantom"), image_set("phantom").select([1])
    axes = figures.image_rows({"many": many, "none": many.select([]), "few": few}, columns=2).axes
    assert len(axes) == 4 and [ax.get_ylabel() for ax in axes] == ["many", "", "few", ""]
    shown = [np.ma.filled(ax.images[0].get_array(), np.nan) for ax in axes]
    np.testing.assert_array_equal(shown[0], many.images[0, 0])
    np.testing.assert_array_equal(shown[2], many.images[1, 0])
    assert np.isnan(shown[3]).all()


def test_one_set_of_people_withholds_all_lines():
    assert not any(ax.images for ax in figures.image_rows({"a": image_set("phantom"), "b": image_set("scan")}, columns=2).axes)


def test_a_volume_shows_its_middle_slice():
    volume = image_set("phantom", (1, 1, 5, 8, 8))
    shown = figures.image_grid(volume, rows=1, columns=1).axes[0].images[0].get_array()
    np.testing.assert_array_equal(shown, volume.images[0, 0, 2])


def test_estimates_are_drawn_top_down_with_interval_and_floor():
    _, ax = figures.new_figure()
    table = pd.DataFrame([{"arm": r.arm, "value": r.value, "low": r.low, "high": r.high} for r in ROWS])
    figures.estimates_plot(ax, table, label="KID (1)", floor={"value": 1.0, "low": 0.9, "high": 1.1}, log=True)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["ours", "PCA"]
    # one interval: the second row has none
    assert [list(line.get_xdata()) for line in ax.lines] == [[0.5], [0.25, 0.75], [0.9], [1.0, 1.0]]
    assert (ax.get_xlabel(), ax.get_xscale()) == ("KID (1)", "log")
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_lines_of_one_kind_look_alike():
    _, ax = figures.new_figure()
    table = pd.DataFrame({"arm": ["a, x", "a, y", "b, x"], "set": ["x", "y", "x"], "value": 1.0, "low": np.nan, "high": np.nan})
    figures.estimates_plot(ax, table, label="PSNR (dB)", by="set")
    looks = [(line.get_color(), line.get_marker()) for line in ax.lines]
    assert looks[0] == looks[2] != looks[1] and [line.get_ydata().tolist() for line in ax.lines] == [[0], [1], [2]]


def test_curves_are_sorted_and_banded():
    _, ax = figures.new_figure()
    table = pd.DataFrame(
        {"arm": list("aab"), "step": [2, 1, 1], "value": [4.0, 3.0, 1.0], "low": [3, 2, None], "high": [5, 4, None]}
    )
    figures.curve(ax, table, x="step", x_label="step", y_label="loss (1)")
    assert ax.lines[0].get_xdata().tolist() == [1, 2]
    assert len(ax.collections) == 1
    assert ax.get_legend() is not None


def test_the_style_is_set_on_request_only():
    before = mpl.rcParams["font.size"]
    figures.new_figure()
    assert mpl.rcParams["font.size"] == before
    with mpl.rc_context():
        figures.use_style()
        assert mpl.rcParams["font.size"] == figures.STYLE["font.size"]


def test_notebooks_display_svg(monkeypatch):
    asked = []
    monkeypatch.setattr(mpl, "get_backend", lambda **_: "module://matplotlib_inline.backend_inline")
    monkeypatch.setattr("matplotlib_inline.backend_inline.set_matplotlib_formats", lambda *a, **k: asked.append((a, k)))
    with mpl.rc_context():
        figures.use_style()
    assert asked == [(("svg",), {"metadata": {"Date": None}})]


@pytest.mark.parametrize(("kinds", "rows", "places"), [("abc", 2, 3), ("abcd", 2, 4), ("a", 1, 1)])
def test_there_is_a_panel_for_each_value_in_their_order_and_none_is_empty(kinds, rows, places):
    table = pd.DataFrame([{"kind": k, "x": x, "value": x + ord(k), "arm": "ours"} for x in (0, 1) for k in reversed(kinds)])
    labels = {"x": "x", "x_label": "step", "y_label": "score"}
    fig, axes = figures.curve_panels(table, "kind", rows=rows, size=(4, 3), **labels)
    assert [ax.get_title() for ax in axes] == list(reversed(kinds)) and len(fig.axes) == len(axes) == places
    for ax in axes:
        assert ax.lines[0].get_ydata().tolist() == [ord(ax.get_title()), 1 + ord(ax.get_title())]
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "score")


def test_what_is_in_several_panels_has_one_colour_and_is_named_in_each():
    lines = [("a", "one"), ("b", "one"), ("b", "two"), ("c", "two")]
    table = pd.DataFrame([{"kind": k, "x": x, "value": x, "arm": arm} for k, arm in lines for x in (0, 1)])
    _, axes = figures.curve_panels(table, "kind", rows=1, size=(6, 2), x="x", x_label="step", y_label="score")
    colours = {(ax.get_title(), line.get_label()): line.get_color() for ax in axes for line in ax.lines}
    assert list(colours) == lines and all(ax.get_legend() for ax in axes)
    assert colours["a", "one"] == colours["b", "one"] != colours["b", "two"] == colours["c", "two"]


def test_points_lie_beside_one_line_on_one_scale_in_all_panels():
    groups = {"near": pd.DataFrame({"a": [1.0, 2], "b": [1.1, np.nan]}), "far": pd.DataFrame({"a": [10.0], "b": [20.0]})}
    figure = figures.scatter_panels(groups, across=2, x="a", y="b", unit="ml")
    assert [ax.get_title() for ax in figure.axes] == ["near", "far"]
    assert {ax.get_xlim() for ax in figure.axes} == {ax.get_ylim() for ax in figure.axes} == {(0, 21.0)}
    assert figure.axes[1].collections[0].get_offsets().tolist() == [[10, 20]]
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("a (ml)", "b (ml)")
    # five groups leave the sixth place empty
    assert len(figures.scatter_panels(dict.fromkeys("abcde", groups["far"]), across=3, x="a", y="b", unit="ml").axes) == 5

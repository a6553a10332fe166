"""What shows a picture, and what does not: markup planted in every way that it can be drawn."""

from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest

from medsynth.publish.pictures import has_pictures, pictures_in

ROOT = Path(__file__).resolve().parents[2]
URI = "data:image/png;base64,AA"
V4 = nbformat.v4


@pytest.mark.parametrize(
    "markup",
    [
        f'<svg><image href="{URI}"/></svg>',
        f'<svg:svg xmlns:svg="http://www.w3.org/2000/svg"><svg:image href="{URI}"/></svg:svg>',
        '<svg><image xlink:href="photo.png"/></svg>',
        '<svg><filter><feImage href="#x"/></filter></svg>',
        "<svg><foreignObject><p/></foreignObject></svg>",
        f"<svg><style>* {{background: url({URI})}}</style></svg>",
        "<svg><style>* {background: url( 'data:;base64,AA')}</style></svg>",
        '<svg><style>*{background:url(&quot;data:image/png;base64,AA")}</style></svg>',
        '<!DOCTYPE svg [<!ENTITY x "y">]><svg>&x;</svg>',
        "<svg><![strange[x]]></svg>",
        f'<p><img alt="x" src="{URI}"></p>',
        '<IMG SRC="photo.png">',
        f"![a scan]({URI})",
        "<iframe srcdoc='x'></iframe>",
    ],
)
def test_a_picture_is_found_however_it_is_embedded(markup):
    assert has_pictures(markup)


@pytest.mark.parametrize(
    "markup",
    [
        "<svg><path style='fill: #123456'/></svg>",
        '<img src="_static/architecture.svg">',
        "p < 0.05 and data: images of 3 < 4 hospitals",
        "<table><tr><td>image</td></tr></table>",
        "![a drawing](architecture.svg)",
    ],
)
def test_plots_tables_and_words_are_no_pictures(markup):
    assert not has_pictures(markup)


@pytest.mark.parametrize("cell", ['<path style="fill: rgb({k}, 0, 0)"/>', '<use opacity="0.{k}"/>', '<td class="c{k}">'])
def test_a_picture_drawn_cell_by_cell_is_one(cell):
    assert has_pictures("".join(cell.format(k=k % 64) for k in range(4096)))
    # few kinds of points, however many, and a few dozen of any kind are a plot
    assert not has_pictures("".join(cell.format(k=k % 7) for k in range(4096)))
    assert not has_pictures("".join(cell.format(k=k) for k in range(255)))


def test_so_many_rectangles_are_a_picture_of_any_paint():
    assert has_pictures('<svg fill="#000">' + '<rect x="1"/>' * 4096 + "</svg>")
    assert not has_pictures('<svg fill="#000">' + '<rect x="1"/>' * 255 + "</svg>")


def test_what_draws_an_image_as_cells_is_found(tmp_path):
    fig, ax = plt.subplots()
    ax.pcolormesh(np.random.default_rng(0).random((64, 64)))
    fig.savefig(tmp_path / "cells.svg")
    plt.close(fig)
    assert has_pictures((tmp_path / "cells.svg").read_text())


def test_our_own_figures_are_plots():
    drawn = [*(ROOT / "results" / "published").glob("*/*.svg"), *(ROOT / "book" / "_static").glob("*.svg")]
    assert len(drawn) > 20 and not [path for path in drawn if has_pictures(path.read_text())]


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        (V4.new_markdown_cell("![x](attachment:a.png)", attachments={"a.png": {"image/png": "AA"}}), ["Markdown cell 1"]),
        (V4.new_markdown_cell(f'<img src="{URI}">'), ["Markdown cell 1"]),
        (V4.new_raw_cell(f'<img src="{URI}">'), ["raw cell 1"]),
        (V4.new_code_cell("1", outputs=[V4.new_output("display_data", data={"application/pdf": "AA"})]), ["code cell 1"]),
        (V4.new_code_cell("1", outputs=[V4.new_output("stream", text="words")]), []),
        (V4.new_code_cell(f"'{URI}'"), []),
    ],
)
def test_cells_that_show_a_picture_are_named(cell, found):
    assert list(pictures_in(V4.new_notebook(cells=[cell]))) == found

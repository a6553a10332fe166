import re
from itertools import pairwise

import nbformat
from stub_project import ROOT

from medsynth.evaluation.equivalence import BEATS_BASELINE, CONVERGED, MARGINS
from medsynth.publish.pages.fill import PLACEHOLDER

PAGES = sorted([*(ROOT / "book").glob("*.md"), *(ROOT / "book" / "decisions").glob("*.md")])
CHAPTERS = [nbformat.read(p, 4) for p in sorted((ROOT / "notebooks").glob("*.ipynb"))]
CELLS = [(c.id, c.source) for chapter in CHAPTERS for c in chapter.cells if c.cell_type == "markdown"]
DRAWS = re.compile(r"figures\.(image_grid|new_figure)|static_sheet\(|chapter\.(save|estimates|curves)\(")
TEXTS = [(p.name, p.read_text()) for p in PAGES] + CELLS


def prose(text):
    """Without what is no sentence: fenced blocks, table lines, headings, placeholders, targets of links."""
    text = re.sub(r"^(```|:::).*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^[|#].*$", ".", PLACEHOLDER.sub("", text), flags=re.MULTILINE)
    return re.sub(r"\]\([^)]*\)", "]", text)


def test_no_sentence_has_more_than_forty_words():
    ends = re.compile(r"[.!?:]\**\s+|\n\s*\n|\n\s*[-*\d]+\.?\s")
    assert [(name, s) for name, text in TEXTS for s in ends.split(prose(text)) if len(s.split()) > 40] == []


def test_no_cell_of_prose_has_more_than_120_words():
    assert [name for name, text in CELLS if len(prose(text).split()) > 120] == []


def test_every_figure_of_a_chapter_has_a_caption_below_it():
    for chapter in CHAPTERS:
        for cell, below in pairwise([*chapter.cells, None]):
            if cell.cell_type == "code" and DRAWS.search(cell.source):
                assert below is not None and below.metadata.get("tags") == ["caption"], cell.id
                assert 5 <= len(below.source.split()) <= 70, below.id


def test_set_up_is_folded():
    """The parameters cell is folded when the page is made."""
    for chapter in CHAPTERS:
        code = [c for c in chapter.cells if c.cell_type == "code"]
        assert code[0].metadata["tags"] == ["parameters"] and "hide-input" in code[1].metadata["tags"]
        assert all("hide-input" in c.metadata["tags"] for c in code if "ledger.table(" in c.source), chapter.cells[0].id


def test_decisions_have_their_five_parts_on_one_screen_and_results_from_rows():
    """Numbers with a unit are the method's own, as the code has them."""
    parameters = {f"{dB:g}" for dB in (MARGINS["psnr"], BEATS_BASELINE, CONVERGED)}
    for page in (p for p in PAGES if re.match(r"\d{4}-", p.name)):
        lines = page.read_text().splitlines()
        parts = [line.strip("# ") for line in lines if line.startswith("## ")]
        assert parts == ["Context", "Decision", "Evidence", "Consequences"] and lines[2].startswith("**Status:** "), page.name
        assert 15 <= len(lines) <= 40, page.name
        typed = re.findall(r"(\d+\.\d+) ?(?:dB|%|\\,)", PLACEHOLDER.sub("", page.read_text()))
        assert set(typed) <= parameters, page.name

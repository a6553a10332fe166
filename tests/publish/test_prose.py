import re

import nbformat
import pytest
from stub_project import ROOT

from medsynth.evaluation.equivalence import BEATS_BASELINE, CONVERGED, MARGINS
from medsynth.publish.fill import PLACEHOLDER

PAGES = sorted([*(ROOT / "book").glob("*.md"), *(ROOT / "book" / "decisions").glob("*.md")])
CELLS = [
    (c.id, c.source)
    for p in sorted((ROOT / "notebooks").glob("*.ipynb"))
    for c in nbformat.read(p, 4).cells
    if c.cell_type == "markdown"
]
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


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent.name == "decisions"], ids=lambda p: p.name)
def test_decisions_take_their_results_from_rows(page):
    """Numbers with a unit are the method's own, as the code has them."""
    parameters = {f"{dB:g}" for dB in (MARGINS["psnr"], BEATS_BASELINE, CONVERGED)}
    typed = re.findall(r"(\d+\.\d+) ?(?:dB|%|\\,)", PLACEHOLDER.sub("", page.read_text()))
    assert set(typed) <= parameters


@pytest.mark.parametrize("page", [p for p in PAGES if re.match(r"\d{4}-", p.name)], ids=lambda p: p.name)
def test_a_decision_has_its_five_parts_on_one_screen(page):
    lines = page.read_text().splitlines()
    assert 15 <= len(lines) <= 40 and lines[2].startswith("**Status:** ")
    assert [line for line in lines if line.startswith("## ")] == ["## Context", "## Decision", "## Evidence", "## Consequences"]

"""Published results by question, the newest first: tables and figures with titles, and what to see in them."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from medsynth.publish.pages.answers import QUESTIONS, images_of, plain
from medsynth.results import (
    FIGURE,
    ROWS,
    YOURS,
    Results,
    newest_first,
    own_tables,
    published_names,
    read_results,
    side_by_side,
    table_names,
    together,
)

MARK = "<!-- published results -->"  # where book/published.md receives the tables and figures
LONG = 12  # rows beyond which a table is folded away
COPY, LEAK, SINGLE, USEFUL = QUESTIONS
RULER, OTHER = "Can the scores be trusted?", "Other"
GROUPS = (*QUESTIONS, RULER, OTHER)


class Entry(NamedTuple):
    """A table or figure on the page: the question that it answers, its title, and what to see in it."""

    question: str
    title: str
    see: str = ""


# a later chapter adds its lines here
ENTRIES = {
    "gate-attacks": Entry(
        COPY,
        "Altered copies of phantoms, refused by the gate",
        "For each alteration the share of copies refused, at the calibrated threshold and where 5 % of "
        "held-out patients are refused. Under *unseen patients* stands what it costs.",
    ),
    "gate-attacks-figure": Entry(
        COPY,
        "Altered copies of phantoms, by feature map",
        "All maps refuse 5 % of held-out patients here. The encoder finds nearly every altered copy; each "
        "other map loses several kinds, shifted copies among them.",
    ),
    "gate-distances": Entry(
        COPY,
        "Distances to the nearest private phantom",
        "Altered copies lie left of the dashed threshold, most held-out patients and samples right of it.",
    ),
    "weights-gate-attacks": Entry(
        COPY,
        "Altered copies of people's radiographs and of phantoms, refused by the gate",
        "As for phantoms, with the thresholds that ship. PET phantoms are weak against noise, gain and "
        "offset, as their certificates say.",
    ),
    "weights-gate-attacks-slices": Entry(
        COPY,
        "Altered copies of people's CT and MR slices, refused by the gate",
        "At the threshold that was found on radiographs. Patients are few, so read the intervals.",
    ),
    "weights-gate-samples": Entry(
        COPY,
        "How near samples come to people's CT and MR slices",
        "Samples lie nearer to private slices than held-out patients do. Of few patients that shows a "
        "likeness, not a stored image.",
    ),
    "weights-identification": Entry(
        COPY,
        "Two images of one patient, recognised by the shipped encoder",
        "True positive rate where 1 % of pairs of different patients are taken for one.",
    ),
    "weights-identification-roc": Entry(
        COPY,
        "Two images of one patient: every operating point",
        "Higher and further left is better. On radiographs the encoder is ahead of pixels; on people's "
        "hearts pixels do as well.",
    ),
    "gate": Entry(
        LEAK,
        "A generator behind the gate: distance, quality, and the hole attack",
        "*Negative-space AUC* is the attack: 0.5 is a guess. *Expected* is how many released images it "
        "had to look for.",
    ),
    "gate-negative-space": Entry(
        LEAK,
        "The hole attack: members found against non-members accused",
        "The diagonal is a guess. A gate that refuses half of all samples leaves holes that this attack "
        "sees.",
    ),
    "generator": Entry(
        USEFUL,
        "How near a generator comes to held-out patients",
        "Compare a score with its floor, and scores at one number of images only.",
    ),
    "generator-fidelity": Entry(
        USEFUL,
        "FID and KID of generators",
        "Dashed is the floor, real against real. *Public* has seen no private image; *trained* should lie"
        " nearer to the floor.",
    ),
    "generator-guidance": Entry(
        USEFUL,
        "What guidance buys, and what it costs",
        "Left, distances to real images; right, precision and recall. A gain in one that is paid in the "
        "other is none.",
    ),
    "gate-distance-cost": Entry(
        USEFUL,
        "What a larger distance costs in quality",
        "To the right more samples are refused. Scores that rise with the distance are its price.",
    ),
    "restoration": Entry(
        USEFUL,
        "Restoration networks, by what they were trained on",
        "The *difference to real* decides; its verdict stands beside it.",
    ),
    "restoration-psnr": Entry(
        USEFUL,
        "PSNR of restoration networks on held-out patients",
        "Networks trained on synthetic or gated images should stand near *real*, and well right of what "
        "needs no training.",
    ),
    "restoration-difference": Entry(
        USEFUL,
        "Difference to networks trained on real images",
        "The band is the margin fixed beforehand. An interval inside it is *equivalent*; left of zero, "
        "real images were better.",
    ),
    "sites": Entry(
        USEFUL,
        "Three sites that pool synthetic images",
        "Compare networks within a site: a sharp and quiet scanner leaves more to be restored.",
    ),
    "sites-psnr": Entry(
        USEFUL,
        "Every network on every site's patients",
        "Compare networks within a panel. Right is better.",
    ),
    "sites-worst": Entry(
        USEFUL,
        "The site that each network serves worst",
        "After the colon stands that site. The further left of zero, the more its patients lose.",
    ),
    "data-populations": Entry(
        RULER,
        "Public against private phantoms",
        "Scores far above their floors: the two populations differ, as they were drawn to.",
    ),
    "data-populations-figure": Entry(
        RULER,
        "Age and body mass index of both phantom populations",
        "Private patients are older and heavier.",
    ),
    "data-ruler-levels": Entry(
        RULER,
        "Scores of damaged phantom images",
        "Within a kind of damage, scores should rise with its strength.",
    ),
    "data-ruler-levels-figure": Entry(
        RULER,
        "KID rises with damage, phantoms",
        "Every curve should rise from left to right.",
    ),
    "data-ruler-power": Entry(
        RULER,
        "Small changes of a set of phantoms, noticed",
        "The rise of a score, in widths of its floor. Above 2 a change is seen in most trials.",
    ),
    "data-ruler-power-figure": Entry(
        RULER,
        "Small changes of a set of phantoms, by feature extractor",
        "Further right is better: a change stands out more from the scatter between real sets.",
    ),
    "weights-reconstruction": Entry(
        RULER,
        "What the shipped autoencoder keeps of an image",
        "What it loses is gone from every latent: a generator that draws through it can only guess it "
        "again.",
    ),
    "weights-ruler-levels": Entry(
        RULER,
        "Scores of damaged images, people and phantoms",
        "Within a kind of damage, scores should rise with its strength.",
    ),
    "weights-ruler-levels-figure": Entry(
        RULER,
        "Scores rise with damage, people and phantoms",
        "Every curve should rise from left to right.",
    ),
    "weights-ruler-power": Entry(
        RULER,
        "Small changes of a set, noticed: people and phantoms",
        "The rise of a score, in widths of its floor, for the shipped extractor and its rivals.",
    ),
    "dp-memorisation": Entry(
        COPY,
        "Private generators of hearts: patients whom samples come too near to, phantoms",
        "Beside each generator stands what people whom no generator saw would give, which is chance.",
    ),
    "dp-audit": Entry(
        LEAK,
        "What an attack finds of private training, phantoms",
        "No lower bound is above the epsilon that is proved. *Over-fitted* promises nothing, and is caught. So few steps without "
        "a promise are not: they hardly learn of anybody.",
    ),
    "dp-audit-figure": Entry(
        LEAK,
        "Lower bounds on epsilon, by what they assume, phantoms",
        "A bound above the epsilon on the axis would contradict the promise.",
    ),
    "dp": Entry(
        USEFUL,
        "Private generators of hearts, by epsilon: all scores, phantoms",
        "*Pre-trained* starts from public phantoms, *scratch* from nothing. Private Evolution has the very program that "
        "drew the phantoms, which no hospital has for its patients.",
    ),
    "dp-fidelity": Entry(
        USEFUL,
        "How good private hearts are, by epsilon, phantoms",
        "From public weights epsilon 1, 3, 10 and no promise differ by less than their intervals: all had the same few steps, "
        "and without a promise more steps would gain more. From scratch nothing is learned in as many.",
    ),
    "dp-control": Entry(
        USEFUL,
        "Whether private hearts are those that were asked for, phantoms",
        "Volumes that are asked for and drawn go together as well as before; from scratch they do not.",
    ),
    "dp-asked": Entry(
        USEFUL,
        "Volume of the left ventricle, asked for and drawn, phantoms",
        "On the line both agree. The panel of real hearts shows the ruler's own error.",
    ),
    "dp-conditions": Entry(
        USEFUL,
        "Private hearts by condition, phantoms",
        "Noise hides what few patients have first: compare the rare conditions with the normal ones.",
    ),
    "dp-cost": Entry(
        OTHER,
        "What a private training step costs",
        "Times and memory over those of a step without privacy, on the machine that ran the chapter.",
    ),
    "dp-cost-figure": Entry(OTHER, "Time of a private training step", "One is a step without privacy. Opacus stands beside."),
}  # fmt: skip


def entry(name: str) -> Entry:
    """What the page says of a table or figure; of one that nobody has described, its name."""
    return ENTRIES.get(name, Entry(OTHER, name))


def published_section(published: Path, own: Path, target: Path) -> str:
    """Markdown of all that is published, by question: values beside the reader's own, figures, and where they come from.

    Within a question, and of a table's runs, the newest stands first. published, own: folders of folders of
    tables; figures and rows that the text shows are copied into `target`/rows. Raises ValueError for a table
    that is not its sidecar's, or where two chapters wrote one name.
    """
    runs = published_names(published)
    if not runs:
        return "Nothing has been published yet."
    places: dict[str, dict[str, Path]] = {}
    for run in runs:
        for name in table_names(published / run):
            places.setdefault(name, {})[run] = published / run
    for name, place in own_tables(own).items():
        if name in places:
            places[name][YOURS] = place
    known = {
        name: newest_first({source: read_results(place, name) for source, place in found.items()})
        for name, found in places.items()
    }
    text = []
    for question in GROUPS:
        # a figure follows its table: of one day, names decide
        names = sorted(n for n in known if entry(n).question == question)
        names.sort(key=lambda n: _day(known[n]), reverse=True)
        if names or question in QUESTIONS:
            text.append(f"## {question}")
            text += [] if names else ["Nothing has been published yet."]
            sections = (_section(name, known[name], places[name], target / "rows") for name in names)
            text += [part for section in sections for part in section]
    return "\n\n".join(text)


def _day(found: dict[str, Results]) -> str:
    """Of the newest published run."""
    return max(one.sidecar["created"][:10] for source, one in found.items() if source != YOURS)


def _section(name: str, known: dict[str, Results], places: dict[str, Path], rows: Path) -> list[str]:
    about = entry(name)
    text = [f"(rows-{name})=\n### {about.title}", f"`{name}`"]
    if tables := {source: found for source, found in known.items() if found.kind == ROWS}:
        text[-1] = f"{text[-1]} {about.see}".strip()
        text.append(_table(side_by_side(together(tables)), tables))
    facts = []
    for source, found in known.items():
        place, copied = places[source], rows / source.replace(" ", "-")
        copied.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place / f"{name}.csv", copied / f"{name}.csv")
        if found.kind == FIGURE:
            shutil.copyfile(place / f"{name}.svg", copied / f"{name}.svg")
            caption = f"{about.title}: {source}, {_data(found)}. {about.see}".strip()
            text.append(f"```{{figure}} rows/{copied.name}/{name}.svg\n{caption}\n```")
        facts.append(f"- {_facts(source, found)} {{download}}`Rows <rows/{copied.name}/{name}.csv>`")
    return [*text, ":::{dropdown} Where it comes from", *facts, ":::"]


def _table(table: pd.DataFrame, sources: Collection[str]) -> str:
    """The table as HTML; what all its lines share stands above it, once."""
    shown = table.loc[:, [c for c in table if table[c].astype(str).str.strip().any()]]
    shared = [c for c in shown if c not in sources and len(shown) > 1 and shown[c].nunique() == 1]
    above = "".join(f", {c.replace('_', ' ')} *{plain(shown[c].iloc[0])}*" for c in shared)
    shown = shown.drop(columns=shared)
    # as HTML: as Markdown the page's four thousand rows took longer to parse than the rest of the book
    with pd.option_context("display.max_colwidth", None):
        text = f"```{{raw}} html\n{shown.to_html(index=False, border=0, justify='left', classes='table')}\n```"
    said = f"In every row{above}.\n\n".replace("row, ", "row: ") if above else ""
    return said + (text if len(table) <= LONG else f":::{{dropdown}} {len(table)} rows\n{text}\n:::")


def _data(results: Results) -> str:
    """Whose images a figure is about, in a few words."""
    if "dataset" in results.rows and results.sidecar["data_licence"] != "generated":
        return ", ".join(dict.fromkeys(plain(images_of(name)) for name in results.rows["dataset"]))
    licence = results.sidecar["data_licence"]
    return "phantoms" if licence == "generated" else f"data {licence}"


def _facts(source: str, results: Results) -> str:
    facts: dict[str, Any] = results.sidecar
    commit = f"commit `{facts['commit'][:10]}`" if facts["commit"] else "no commit"
    commit += " with local changes" if facts["dirty"] else ""
    seeds = ", ".join(map(str, facts["seeds"])) or "none"
    made = f"{facts['created'][:10]}, {commit}, {facts['device']}, seeds {seeds}, data {facts['data_licence']}"
    return f"**{source}**: {made}. {facts['notes']}".strip()

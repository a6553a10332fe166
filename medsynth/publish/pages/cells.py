"""What the page "May I share this?" asks and answers: ways to share, questions, and where the number of each answer lies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

QUESTIONS = ("Is it a copy?", "What leaks?", "Can someone be singled out?", "Is it useful?")
REAL, DRAWN, GATED = "Real images", "Synthetic images, as drawn", "Synthetic images, after a gate"
FILTERED, PRIVATE = "Synthetic images, after gate and filter", "Synthetic images, differentially private"
METHODS = (REAL, DRAWN, GATED, FILTERED, PRIVATE)
KINDS = ("measured", "proved", "by definition")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One answer of a method to a question: a sentence, and the rows of result tables that hold its number.

    Several answers to one question stand below one another. Raises ValueError for a method, question, kind or pick that does
    not exist, for a definition with a table, and for any other kind without one.
    """

    method: str
    question: str
    kind: str
    says: str  # what the number is; by definition: the answer
    brief: str = ""  # the same in a few words, for the table
    tables: tuple[str, ...] = ()
    where: Mapping[str, str | float] = field(default_factory=dict)  # column -> value of the rows that count
    pick: str = ""  # of several rows on a data set show all (""), or the "lowest" or "highest"
    beside: str = ""  # a column whose text, or number with its name, stands beside the value
    verdict: str = ""  # a few words for the table, with columns of the row in braces; without it the cell is a detail
    below: tuple[float, str] | None = None  # a value, and the verdict of rows that are less
    worst: str = ""  # which row of several the table shows, "lowest" or "highest"

    def __post_init__(self) -> None:
        known = {"method": METHODS, "question": QUESTIONS, "kind": KINDS, "pick": ("", "lowest", "highest")}
        known["worst"] = ("lowest", "highest") if self.verdict and self.tables else ("",)
        for name, allowed in known.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"cell {self.says!r}: {name} {getattr(self, name)!r}; expected one of {allowed}")
        if (self.kind == "by definition") == bool(self.tables):
            raise ValueError(f"cell {self.says!r}: {self.kind}, with tables {self.tables}; a number needs one, a definition none")


_ATTACKS = ("gate-attacks", "weights-gate-attacks")
_GATE = {"arm": "encoder", "rule": "calibrated on copies"}
_REFUSES = {"metric": "share refused"} | _GATE
_SLICES = "of CT and MR of real patients, on whose like no threshold could be found, at the one found on radiographs"

_REFUSED = {
    "verdict": "Mostly refused", "below": (0.95, "Many pass"), "worst": "lowest",
    "brief": "share of altered copies refused, for the worst of the alterations that the encoder was trained on",
}  # fmt: skip
_NEAR = {
    "verdict": "Not ruled out", "worst": "highest",
    "brief": "share of samples within the gate's distance of a private image; other private images may lie as near",
}  # fmt: skip
_LESS = "PSNR of restored scans, less that after training on real ones, dB"
_TO_REAL = {"verdict": "{verdict}", "worst": "lowest", "brief": _LESS}

_DP = ("dp", "dp_images")
_AT = {"arm": "pre-trained", "epsilon": 10.0}  # the largest that chapters promise
_BARE = _AT | {"epsilon": math.inf}  # the same training, nothing promised
_ATTACK = {"metric": "lower bound, Gaussian", "attack": "white box"}

_SINGLED = {"metric": "residual", "says": "near", "seen_by": "extractor"}
_ISOLATED = {
    "verdict": "Some are", "below": (0.05, "Not by one attack"), "worst": "highest",
    "brief": "share of descriptions, made of the release, that fit one patient alone, less what they do to strangers; other "
    "attacks may do better",
}  # fmt: skip
_LAW = {"metric": "residual", "seen_by": "extractor"}
_RELEASES = ((DRAWN, "no gate"), (GATED, "gate"), (FILTERED, "gate and filter"), (PRIVATE, "epsilon 10"))

_PASSES = {
    "verdict": "Many pass", "below": (0.05, "Few pass"), "worst": "highest",
    "brief": "share that passes of near-duplicates, drawn by a generator that learned some patients by heart",
}  # fmt: skip
_TEACHES = {
    "verdict": "Like real ones", "below": (-0.01, "Less than real ones"), "worst": "lowest",
    "brief": "AUROC of a classifier trained on them, less that of one trained on the private images",
}  # fmt: skip

# a later chapter adds its lines here
CELLS = (
    Cell(method=REAL, question=QUESTIONS[0], kind="by definition", says="Yes: every image is a patient's.", verdict="Yes"),
    Cell(
        method=REAL, question=QUESTIONS[1], kind="by definition", verdict="Everything",
        says="Everything: whoever receives an image has it.",
    ),
    Cell(
        method=REAL, question=QUESTIONS[2], kind="by definition", verdict="Yes",
        says="Yes: an image is one patient and nobody else.",
    ),
    Cell(
        method=REAL, question=QUESTIONS[3], kind="measured", tables=("restoration",), where={"metric": "PSNR", "arm": "real"},
        says="PSNR (dB) of restoration networks trained on them, on held-out patients", verdict="Yes", worst="lowest",
        brief="PSNR of scans restored after training on them, dB",
    ),
    Cell(
        method=DRAWN, question=QUESTIONS[0], kind="measured", tables=("gate",),
        where={"metric": "share too close", "arm": "no gate"}, **_NEAR,
        says="share of samples within the gate's distance of a private image",
    ),
    Cell(
        method=DRAWN, question=QUESTIONS[0], kind="measured", tables=("weights-gate-samples",), beside="private_patients",
        where={"metric": "share too close", "arm": "no gate"}, **_NEAR,
        says="the same of generators of CT and MR of real patients, of whom there are few. It shows a likeness to the training "
        "patients, not that images were stored: how near private slices lie to one another is not beside it; n counts samples",
    ),
    Cell(
        method=DRAWN, question=QUESTIONS[1], kind="by definition",
        says="Not measured: the one attack that was run looks for the holes that a gate leaves, and cannot see whether samples "
        "repeat their training images.",
    ),
    *(
        Cell(
            method=DRAWN, question=QUESTIONS[3], kind="measured", tables=("generator",), pick="highest",
            where={"metric": metric, "arm": "trained", "guidance": 1.0},
            says=f"{metric} to held-out patients (0: real), the highest of several seeds",
        ) for metric in ("FID minus floor", "KID")
    ),
    *(
        Cell(
            method=method, question=QUESTIONS[3], kind="measured", tables=("gate",), where={"metric": metric, "arm": arm},
            says=f"{metric} to held-out patients of a generator's samples (0: real)",
        ) for method, arm in ((DRAWN, "no gate"), (GATED, "distance gate")) for metric in ("FID minus floor", "KID")
    ),
    Cell(
        method=DRAWN, question=QUESTIONS[3], kind="measured", tables=("restoration",), beside="verdict",
        where={"metric": "PSNR difference to real", "arm": "synthetic"}, **_TO_REAL,
        says="PSNR (dB) of restoration networks trained on them, minus that of real-trained ones",
    ),
    Cell(
        method=GATED, question=QUESTIONS[0], kind="proved", tables=_ATTACKS, where={"metric": "tau"} | _GATE, beside="phi",
        says="no released image lies within the gate's distance, in the features of one network at 64 x 64 pixels, of a private "
        "image or of a copy of it that the certificate lists",
    ),
    Cell(
        method=GATED, question=QUESTIONS[0], kind="measured", tables=_ATTACKS, where={"kind": "attack"} | _REFUSES,
        pick="lowest", beside="family", **_REFUSED,
        says="share of altered copies that are refused, for the worst of the alterations that the encoder was trained on; others "
        "were not tried. Of PET, noise, gain and offset are not covered: certificates of phantoms say so, those of people "
        "that nobody has measured it",
    ),
    Cell(
        method=GATED, question=QUESTIONS[0], kind="measured", tables=_ATTACKS, where={"kind": "pair"} | _REFUSES,
        pick="lowest", beside="family", **_REFUSED,
        says="share of copies altered twice that are refused, for the worst pair of these (of PET one with what is not covered)",
    ),
    *(
        Cell(
            method=GATED, question=QUESTIONS[0], kind="measured", tables=("weights-gate-attacks-slices",),
            where={"kind": kind} | _REFUSES, pick="lowest", beside="family", **_REFUSED,
            says=f"the same, for the worst {worst}, {_SLICES}",
        ) for kind, worst in (("attack", "alteration"), ("pair", "pair"))
    ),
    Cell(
        method=GATED, question=QUESTIONS[1], kind="measured", tables=("gate",),
        where={"metric": "negative-space AUC", "arm": "distance gate"},
        beside="expected", verdict="No guarantee", worst="highest",
        brief="AUC of the one attack tried, where 0.5 is a guess and *expected* is how many released images it could look for",
        says="AUC at telling members from non-members by empty space around them (0.5: a guess). Beside it, how many released "
        "images the attacker expected around a member: far below 1 there is nothing to see, and a larger release shows more",
    ),
    Cell(
        method=GATED, question=QUESTIONS[3], kind="measured", tables=("restoration",), beside="verdict",
        where={"metric": "PSNR difference to real", "arm": "gated"}, **_TO_REAL,
        says="PSNR (dB) of restoration networks trained on them, minus that of real-trained ones",
    ),
    Cell(
        method=GATED, question=QUESTIONS[3], kind="measured", tables=("sites",),
        where={"metric": "PSNR difference to pooled real, all", "arm": "pooled synthetic, all"},
        says="PSNR (dB) of a network trained on what three sites pool, minus that of one trained on all their real images",
    ),
    Cell(
        method=PRIVATE, question=QUESTIONS[0], kind="measured", tables=("dp-memorisation",),
        where={"metric": "patients remembered", "arm": "pre-trained, epsilon 10"}, verdict="Not ruled out", worst="highest",
        brief="share of training patients to whom a sample comes nearer than 95 % of other people; below is what chance gives",
        says="share of training patients to whom a sample, at epsilon 10, comes nearer than 95 % of other people do",
    ),
    *(
        Cell(
            method=PRIVATE, question=QUESTIONS[0], kind="measured", tables=("dp-memorisation",),
            where={"metric": "patients remembered", "arm": arm}, says=f"the same of {what}",
        ) for arm, what in (
            ("pre-trained, epsilon inf", "a generator trained without privacy"),
            ("other patients, fresh", "images of people whom no generator has seen, which is what chance gives"),
        )
    ),
    Cell(
        method=PRIVATE, question=QUESTIONS[1], kind="proved", tables=("dp-audit", "dp_images"), pick="highest",
        where={"metric": "accountant"} | _AT, verdict="Bounded", worst="highest",
        brief="epsilon of each patient, as it is proved: 1 is a strong promise, 10 a weak one",
        says="epsilon of each patient. Whoever sees the weights or all samples, and knows everybody else, learns by them whether "
        "one person was in the set only so far that the odds change by a factor of e to the epsilon, but for a probability of "
        "delta. At epsilon 1 the factor is 2.7, at 10 it is 22 000",
    ),
    *(
        Cell(method=PRIVATE, question=QUESTIONS[1], kind="measured", tables=("dp-audit",), where=_ATTACK | of, says=says)
        for of, says in (
            (_AT, "epsilon that an attack with the weights in hand shows to be spent at least (0: it found nothing)"),
            (_BARE, "the same where nothing was promised: whether this attack would see a leak at all"),
        )
    ),
    *(
        Cell(
            method=method, question=QUESTIONS[2], kind="measured", tables=("singling_out",), where=_SINGLED | {"arm": arm},
            **_ISOLATED, says="share of descriptions, such as *nearer to this sample than so much*, that fit one patient alone, "
            "less what the same do to strangers. Each fits a tenth of one patient or less by chance",
        ) for method, arm in _RELEASES
    ),
    *(
        Cell(
            method=method, question=QUESTIONS[2], kind="measured", tables=("singling_out-legal",), where=_LAW | {"arm": arm},
            pick="highest", beside="test",
            says="how much better two images of one person are linked, or something is inferred of a person, than of strangers: "
            "the highest of these tests",
        ) for method, arm in _RELEASES
    ),
    Cell(
        method=PRIVATE, question=QUESTIONS[2], kind="by definition",
        says="Bounded: a description that fits a share *w* of all people fits exactly one of *n* patients with a probability "
        "of at most *n* (e^epsilon *w* + delta). That says something at epsilon 1, and nothing at 10.",
    ),
    *(
        Cell(
            method=method, question=QUESTIONS[0], kind="measured", tables=("copies-duplicates",), pick="highest", beside="seed",
            where={"metric": "share of near-duplicates passing", "arm": arm}, **more,
            says="share of near-duplicates that pass, drawn by generators that learned some patients by heart: the worst of "
            "several",
        ) for method, arm, more in ((GATED, "gate", {}), (FILTERED, "gate and filter", _PASSES))
    ),
    Cell(
        method=FILTERED, question=QUESTIONS[1], kind="by definition", verdict="No guarantee",
        says="Not measured: the attack on what refusals leave empty was run against the gate alone. A filter proves nothing.",
    ),
    *(
        Cell(
            method=method, question=QUESTIONS[3], kind="measured", tables=("diversity-classification",), **more,
            where={"metric": "difference to real", "arm": arm}, says=f"AUROC of a classifier trained on {what}, less that of one "
            "trained on the private images",
        ) for method, arm, what, more in (
            (DRAWN, "class", "images that were asked for by their finding", {}),
            (FILTERED, "selected", "images of which the best was chosen for each private one", _TEACHES),
        )
    ),
    Cell(
        method=PRIVATE, question=QUESTIONS[3], kind="measured", tables=_DP, where={"metric": "FID gap closed"} | _AT,
        verdict="Mostly kept", below=(0.5, "More than half is lost"), worst="lowest",
        brief="share of what training without privacy gains in FID that is left at epsilon 10",
        says="of what training on the private set without privacy takes off the FID of public weights, the share that is left at "
        "epsilon 10 (1: all)",
    ),
    *(
        Cell(
            method=PRIVATE, question=QUESTIONS[3], kind="measured", tables=_DP, where={"metric": "FID minus floor"} | of,
            pick="highest", says=f"FID minus floor to held-out patients (0: real) {what}, the highest of several seeds",
        ) for of, what in ((_AT, "at epsilon 10"), (_BARE, "without privacy"))
    ),
)  # fmt: skip

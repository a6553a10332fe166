"""What the page of published results says of each table and figure: the question that it answers, a title, what to see."""

from __future__ import annotations

from typing import NamedTuple

from medsynth.publish.pages.answers import QUESTIONS

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
    "copies": Entry(
        COPY,
        "Altered copies that pass gate and filters, by kind and strength, phantoms",
        "At strength 1 most pass, and hardly any filter that learned a kind is better than one that did not.",
    ),
    "copies-passing": Entry(
        COPY,
        "Altered copies that pass at half strength, by kind, phantoms",
        "Boxes, borders and mixtures with a stranger mostly pass. Gate and filter refuse what either does, and cost what both "
        "do.",
    ),
    "copies-cost": Entry(
        COPY,
        "Unseen patients whom gate and filters let pass, phantoms",
        "What a filter costs: each threshold was set on other patients than these.",
    ),
    "copies-attackers": Entry(
        COPY,
        "How well attackers know a person, or a copy, phantoms",
        "Three attackers reach an AUC above 0.9 on both questions: another head on the filter's own encoder, another network, "
        "and pixels. Plain distance does not.",
    ),
    "copies-duplicates": Entry(
        COPY,
        "Near-duplicates that over-fitted generators drew, and what passes, phantoms",
        "Twenty of two thousand private patients, learned by heart by three generators. More than half of the near-duplicates "
        "pass. We think that among so many, unseen people come as near to somebody by chance; that was not measured.",
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
        "drew the phantoms, which no hospital has for its patients. *Steps 60* is a longer training without a promise.",
    ),
    "dp-fidelity": Entry(
        USEFUL,
        "How good private hearts are, by epsilon, phantoms",
        "From public weights epsilon 1, 3, 10 and no promise differ by less than their intervals: all had the same few steps. "
        "The gap that is closed is reckoned against a longer training without a promise, which was better.",
    ),
    "dp-scratch": Entry(
        USEFUL,
        "Private hearts from public weights and from nothing, phantoms",
        "From nothing no epsilon gives a heart in so few steps, and without a clip they overshoot.",
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
    "dp_images": Entry(
        USEFUL,
        "Private generators of children's radiographs, by epsilon: all scores",
        "From public weights, which know other children of the same hospital; three seeds. The closed gap is reckoned against as "
        "many steps without a promise; a longer training without one was not run here.",
    ),
    "dp_images-fidelity": Entry(
        USEFUL,
        "How good private radiographs are, by epsilon, people",
        "The distance falls as epsilon grows, with each of three seeds, though intervals overlap. Epsilon 10 is better here than "
        "the same steps without clip and noise, so *not private* is not the best that could be had.",
    ),
    "dp_images-findings": Entry(
        USEFUL,
        "Private radiographs by finding, people",
        "Healthy children are drawn worst. They gain most from training, and most from a larger epsilon.",
    ),
    "dp_patients": Entry(
        USEFUL,
        "Private hearts of sixty patients, people: all scores",
        "Eight patients are asked for and nine are compared with, so read the intervals. At epsilon 10 sixty patients give no "
        "more than the public weights had.",
    ),
    "dp_patients-fidelity": Entry(
        USEFUL,
        "What sixty patients' hearts give, with a promise and without, people",
        "Without a promise hearts look more like people's, and no longer follow the volume that was asked for. With one, little "
        "changes.",
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

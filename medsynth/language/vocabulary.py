"""Closed vocabularies: one word for one thing, wherever it is said."""

from __future__ import annotations

MODALITIES = ("xray", "ct", "mr", "pet")
# what phantoms have, and what public radiographs are labelled with besides
PHANTOM_FINDINGS = ("none", "nodule", "effusion", "consolidation", "cardiomegaly")
FINDINGS = (*PHANTOM_FINDINGS, "pneumonia_bacterial", "pneumonia_viral", "abnormal")
# of a heart and whose it is, as Daum et al. ask for them (arXiv:2407.16405): volumes in ml, walls in mm
HEART = (
    "lvedv", "lvesv", "lvef", "rvedv", "rvesv", "rvef", "wall_ed", "wall_es", "age", "sex", "bmi", "phase", "angle", "n_slices",
)  # fmt: skip
CT_WINDOW = (-1000.0, 400.0)  # HU: air to bone, the window in which chest CT is read and generated

ROLES = ("public", "private", "eval")
SPLITS = ("train", "val", "test", "")  # "" = not assigned
ORIGINS = ("phantom", "scan", "synthetic", "mixed")

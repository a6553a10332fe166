"""Whom no shipped weight has seen: who is taken of which file, and which phantoms stand beside them."""

from pathlib import Path

import numpy as np
import pytest

from medsynth.data.sources import Sources
from medsynth.language.vocabulary import MODALITIES
from medsynth.pretrain import public, unseen
from medsynth.settings.config import WeightsConfig

ASKED = WeightsConfig(patients=4, gate_patients=6, public_patients=3, rivals=1, populations=2, splits=2, power_splits=2)


@pytest.fixture
def drawn(monkeypatch, make_set):
    """Arguments of all phantoms that were drawn, in place of the phantoms that take long."""
    asked = []

    def cached_thorax(**arguments):
        asked.append(arguments)
        patients, scans = arguments["patients"], arguments.get("scans", 1)
        return make_set(
            patients * scans, (1, 8, 8), seed=arguments["seed"], patient=np.arange(patients).repeat(scans),
            role=arguments.get("population", "public"), modality=arguments["modality"], split=None,
        )  # fmt: skip

    for module in (unseen, public):
        monkeypatch.setattr(module, "cached_thorax", cached_thorax)
    monkeypatch.setattr(public, "cardiac", lambda **_: make_set(2, (1, 16, 64, 64), modality="mr", split=None))
    return asked


PHANTOMS = [f"phantom-{m}" for m in MODALITIES]


def test_without_a_folder_there_are_phantoms_alone(drawn):
    once, twice = unseen.once(ASKED, 8, None), unseen.twice(ASKED, 8, None)
    assert list(once) == list(twice) == PHANTOMS
    assert {(len(s), s.patients) for s in once.values()} == {(4, 4)}
    assert {(len(s), s.patients) for s in twice.values()} == {(4, 2)}
    assert {(a["population"], a["size"], a["seed"]) for a in drawn} == {("private", 8, 90)}
    assert list(unseen.classed(ASKED, 8, None)) == ["phantom-xray", "phantom-ct"]
    assert list(unseen.behind_gates(ASKED, 8, None, 0)) == PHANTOMS[1:] and unseen.slices_behind_gates(8, None) == {}
    assert list(unseen.taught_on(ASKED, None)) == [f"{p}-64" for p in (*PHANTOMS, "phantom-heart")]


def test_populations_that_are_compared_are_several_and_the_first_is_the_one_that_is_looked_at(drawn):
    found = unseen.classed(ASKED, 8, None)
    once = unseen.once(ASKED, 8, None)
    for name, (first, second) in found.items():
        assert first.content_hash == once[name].content_hash != second.content_hash
    assert unseen.classes_of(first).tolist() == first.attributes["finding"].tolist()


def test_phantoms_behind_a_gate_have_strangers_and_second_scans(drawn):
    for name, given in unseen.behind_gates(ASKED, 8, None, 7).items():
        assert (given.private.patients, given.unseen.patients, given.scans.patients) == (6, 4, 6)
        assert given.private.modality == name.removeprefix("phantom-")
    assert {(a["patients"], a["scans"], a["seed"]) for a in drawn} == {(10, 2, 7)}


def test_with_a_folder_real_sets_stand_beside_them(drawn, real_folder):
    # unseen and noncommercial rows of CT, test rows of what was trained on, all hearts
    once = {k: s for k, s in unseen.once(ASKED, 8, real_folder).items() if k not in PHANTOMS}
    assert {k: sorted(set(s.patient.tolist())) for k, s in once.items()} == {
        "cxr_kermany": [6, 7], "cxr_nih": [6, 7], "ct_tcia": [0, 2, 4, 6], "mri_acdc": list(range(8)), "mri_hippocampus": [6, 7],
    }  # fmt: skip
    assert {s.spatial for s in once.values()} == {(8, 8)} and all(s.people for s in once.values())
    assert "NC" not in once["ct_tcia"].data_licence and len(once["mri_acdc"]) == 8 * 7
    classed = unseen.classed(ASKED, 8, real_folder)
    assert {k: len(v) for k, v in classed.items()} == {"phantom-xray": 2, "phantom-ct": 2, "cxr_kermany": 1, "ct_tcia": 1}
    assert set(unseen.classes_of(classed["ct_tcia"][0])) == {"LIDC"}
    assert set(unseen.classes_of(classed["cxr_kermany"][0])) == {"none", "pneumonia_bacterial"}
    taught = unseen.taught_on(ASKED, real_folder)
    assert {"cxr_kermany", "cxr_covid"} < set(taught) and all(s.role == "public" for s in taught.values())
    # nobody is measured on whom a weight was trained
    trained = {row for s in taught.values() for row in s.row_hashes}
    assert not trained & {row for s in public.unseen_once(real_folder, 64).values() for row in s.row_hashes}


def test_people_seen_twice_are_those_whose_number_is_one_person(drawn, real_folder):
    found = unseen.twice(ASKED, 8, real_folder)
    # patient 6 is normal, and of normal images it is not certain
    assert {k: (len(s), sorted(set(s.patient.tolist()))) for k, s in found.items() if k not in PHANTOMS} == {
        "cxr_kermany": (1, [7]), "cxr_nih": (2, [6, 7]), "mri_acdc": (8, list(range(8))),
    }  # fmt: skip
    assert len(found["mri_acdc"].spatial) == 3


def test_one_hospital_is_behind_a_gate_with_its_test_patients_as_strangers(drawn, real_folder):
    given = unseen.behind_gates(ASKED, 8, real_folder, 0)["cxr_kermany_128"]
    assert (given.private.role, given.private.patient.tolist()) == ("private", [2, 3])
    assert (given.unseen.role, given.unseen.patient.tolist(), given.scans) == ("eval", [6, 7], None)
    assert given.private.spatial == given.unseen.spatial == (8, 8)


def test_slices_are_those_of_the_chapter_on_restoration(monkeypatch, make_set):
    asked = []

    def sources(config, data, modality):
        asked.append((data, modality, config.size))
        return Sources(make_set(role="private", modality=modality), make_set(role="eval"))

    monkeypatch.setattr(public, "private_and_test", sources)
    found = unseen.slices_behind_gates(8, Path("folder"))
    assert asked == [("folder/ct_tcia_hu_256.npz", "ct", 8), ("folder/mri_acdc_3d.npz", "mr", 8)]
    assert {k: (t.private.modality, t.private.role, t.unseen.role, t.scans) for k, t in found.items()} == {
        "ct_tcia_hu_256": ("ct", "private", "eval", None), "mri_acdc_3d": ("mr", "private", "eval", None),
    }  # fmt: skip

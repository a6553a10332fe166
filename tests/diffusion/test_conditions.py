"""What a set says of its images, column by column."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from medsynth.diffusion.conditions import conditions_of
from medsynth.language.vocabulary import FINDINGS, MODALITIES
from medsynth.models.conditioning import THORAX


def test_thorax_condition_column_by_column(make_set):
    table = pd.DataFrame(
        {
            "finding": pd.array(["none", "nodule", None, "todo", "pneumonia_viral", "abnormal"], dtype="string"),
            "age": [50, np.nan, 1, 2, 3, 4],
            "sex": pd.array([1, 0, None, 1, 1, 1], dtype="Int64"),
            "licence": pd.array(["generated"] * 6, dtype="string"),
        }
    )
    s = make_set(6, attributes=table, modality="ct")
    made = pd.DataFrame(conditions_of(s, THORAX), columns=THORAX)
    assert made.to_numpy().dtype == np.float32 and made.shape == (6, len(THORAX))
    assert made[list(MODALITIES)].to_numpy().tolist() == [[0, 1, 0, 0]] * 6
    assert (made["phantom"] == 1).all()
    for i, finding in enumerate(table["finding"]):
        row = made.loc[i, list(FINDINGS)]
        if pd.isna(finding) or finding == "todo":
            # a finding that nobody named is unknown, not absent
            assert row.isna().all()
        else:
            assert row.to_dict() == {f: float(f == finding) for f in FINDINGS}
    np.testing.assert_array_equal(made["age"], np.float32([50, np.nan, 1, 2, 3, 4]))
    np.testing.assert_array_equal(made["sex"], np.float32([1, 0, np.nan, 1, 1, 1]))
    assert made["bmi"].isna().all()


def test_findings_that_nobody_can_ask_for_are_said_once(make_set, caplog):
    table = pd.DataFrame({"finding": pd.array(["none", "Nodule", None, "todo"], dtype="string")})
    s = make_set(4, attributes=table, name="ward")
    for _ in range(2):
        conditions_of(s, THORAX)
    (said,) = caplog.messages
    assert said.startswith("ward: the findings of 2 images are taken for unknown; expected none, nodule") and "todo" not in said
    conditions_of(make_set(4), THORAX)
    conditions_of(make_set(4, attributes=table, name="hearts"), ("age",))
    assert len(caplog.messages) == 1


def test_thorax_condition_of_real_images_without_attributes(make_set):
    s = make_set(4, attributes=pd.DataFrame({"licence": ["generated"] * 4}), origin="scan")
    made = pd.DataFrame(conditions_of(s, THORAX), columns=THORAX)
    assert made[["xray", "ct", "phantom"]].to_numpy().tolist() == [[1, 0, 0]] * 4
    assert made[[*FINDINGS, "age", "sex", "bmi"]].isna().all(axis=None)
    with pytest.raises(ValueError, match="tiny: its modality is not known; expected one of"):
        conditions_of(replace(s, modality=""), THORAX)

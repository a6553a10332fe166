"""What several proofs come to together."""

from dataclasses import replace

import numpy as np
import pytest

from medsynth.ledger import Entry, statement
from medsynth.mechanism import NONE, Mechanism, composed

DP_SGD = Mechanism("dp-sgd", unit="patient", epsilon=8.0, delta=1e-6, accountant="prv", q=0.01, steps=1000, randomness="secure")
VOTES = Mechanism("laplace mechanism", unit="image", epsilon=0.5)


def entry(mechanism=NONE, *, patients=100, role="private", stage="train denoiser"):
    return Entry(stage, "ward", "abc", patients, role, mechanism)


def test_proofs_add_up_and_the_weaker_unit_holds_for_all():
    assert composed([DP_SGD]) == (8.0, 1e-6, "patient")
    assert composed([DP_SGD, VOTES, DP_SGD]) == (16.5, 2e-6, "image")
    assert str(composed([DP_SGD, VOTES])) == "(epsilon = 8.5, delta = 1e-06) per image"


def test_one_reading_without_a_proof_leaves_nothing_of_the_others():
    assert composed([DP_SGD, NONE]) is None and composed([]) is None


def test_a_shown_epsilon_is_never_below_the_proved_one():
    for epsilon in np.random.default_rng(0).uniform(0.1, 20, 50):
        shown = str(composed([Mechanism("exponential mechanism", unit="patient", epsilon=float(epsilon))]))
        assert epsilon <= float(shown.split()[2].strip(",")) <= epsilon + 0.0101


def test_the_statement_says_what_is_covered_and_what_is_not():
    said = statement([entry(DP_SGD), entry(role="eval", stage="FID")])
    assert said.startswith("(epsilon = 8, delta = 1e-06) per patient covers what train denoiser read")
    assert "a distance gate against private images" in said and "seeded" not in said and "one over" not in said


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([], "public images alone"),
        ([entry(role="eval")], "public images alone"),
        ([entry()], "Nothing is proved"),
        ([entry(DP_SGD), entry(stage="train refiner")], "Nothing is proved"),
        ([entry(replace(DP_SGD, randomness="seeded"))], "who knows the seed can take it off"),
        ([entry(DP_SGD, patients=1_000_000)], "Delta is not below one over the number of patients"),
    ],
)
def test_the_statement_warns(entries, said):
    assert said in statement(entries)

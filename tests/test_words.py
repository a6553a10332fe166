from __future__ import annotations

import pytest

from medsynth.language.words import did_you_mean, plain, unexpected


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("smok", ["smoke", "laptop"], "did you mean 'smoke'?"),
        ("zzz", ["smoke", "laptop"], "expected one of smoke, laptop"),
        ("zzz", {"smoke": 1}, "expected one of smoke"),
        ("zzz", (n for n in ("a", "b")), "expected one of a, b"),
        ("zzz", [], "there are none"),
        ("zzz", map(str, range(30)), f"expected one of {', '.join(map(str, range(20)))}, …"),
    ],
)
def test_an_unknown_name_is_answered_with_known_ones(name, known, said):
    assert did_you_mean(name, known) == said


def test_an_error_of_the_system_begins_with_its_file():
    assert plain(FileNotFoundError(2, "No such file", "a.npz")).startswith("a.npz: no such file; check the name")
    assert plain(ValueError("so")) == plain(OSError("so")) == "so"


@pytest.mark.parametrize(("error", "said"), [
    (RuntimeError("two\n\tlines"), "unexpected RuntimeError: two lines; set MEDSYNTH_TRACEBACK=1"),
    (MemoryError(), "unexpected MemoryError; set MEDSYNTH_TRACEBACK=1"),
])  # fmt: skip
def test_an_error_that_nobody_expected_is_one_line(error, said):
    assert unexpected(error).startswith(said)

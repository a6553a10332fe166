from __future__ import annotations

import pytest

from medsynth.words import did_you_mean


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

"""What an error says about a name that nobody knows."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_SHOWN = 20  # names, at most


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of such a message: the closest of the names that would have been right, or else all of them."""
    known = list(known)
    close = get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"expected one of {', '.join(known[:_SHOWN])}{', …' * (len(known) > _SHOWN)}" if known else "there are none"

"""What errors say: of a name that nobody knows, and on the command line."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_SHOWN = 20  # names, at most
TRACEBACK = "MEDSYNTH_TRACEBACK"  # in the environment, 1: errors are shown with their traceback


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of such a message: the closest of the names that would have been right, or else all of them."""
    known = list(known)
    close = get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"expected one of {', '.join(known[:_SHOWN])}{', …' * (len(known) > _SHOWN)}" if known else "there are none"


def plain(error: Exception) -> str:
    """What an error says; the system's own begin with the file that they are about and end without a number."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}; check the name and who may read or write it"
    return str(error)


def unexpected(error: Exception) -> str:
    """What is said of an error that is none of ours: that, and how to see where it began, in one line."""
    said = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
    return f"{said}; set {TRACEBACK}=1 in the environment to see where"

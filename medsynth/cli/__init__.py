"""The command line: `medsynth reproduce`, `train`, `generate`, `ledger`, `gate`, `verify` and the rest; see `medsynth --help`."""

from __future__ import annotations

import os
import signal
import sys

from medsynth.cli import book, generator, release  # noqa: F401 - their commands
from medsynth.cli.app import app
from medsynth.language.words import TRACEBACK, plain, unexpected
from medsynth.publish.notebook import ChapterError


def main() -> None:
    """Entry point: an error is one line and exit code 2 (1 for a failed chapter, 3 for one that nobody expected).

    `--debug`, and MEDSYNTH_TRACEBACK=1 in the environment, show its traceback.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        # unwinds, so that no half-made release and no private features stay behind; nohup has it ignored, and so it stays
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        app()
    except Exception as error:
        if "--debug" in sys.argv or os.environ.get(TRACEBACK) == "1":
            raise
        expected = isinstance(error, ChapterError | ValueError | OSError | FloatingPointError)
        print(f"error: {plain(error) if expected else unexpected(error)}", file=sys.stderr, flush=True)
        sys.exit(1 if isinstance(error, ChapterError) else 2 if expected else 3)

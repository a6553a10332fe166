"""Cold against warm `medsynth reproduce`: how much a second run with nothing changed costs. Removes build/PROFILE first.

python benchmarks/reproduce.py [--profile smoke]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time

from medsynth.settings.profile import project_root


def seconds(profile: str, cache: str) -> float:
    """Wall time of one `reproduce`."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "medsynth", "reproduce", "--profile", profile]
    subprocess.run(command, check=True, env=os.environ | {"MEDSYNTH_CACHE": cache}, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Run twice on an empty cache and an empty build folder; print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="smoke")
    args = parser.parse_args()
    shutil.rmtree(project_root() / "build" / args.profile, ignore_errors=True)
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = seconds(args.profile, cache), seconds(args.profile, cache)
    print(f"{args.profile}: cold {cold:.0f} s, warm {warm:.1f} s, ratio {cold / warm:.1f}")


if __name__ == "__main__":
    main()

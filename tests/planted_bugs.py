"""Plants bugs that void a promise of differential privacy, one at a time in a copy of the package, and runs the tests on each.

`python tests/planted_bugs.py [NAME ...]` prints which test found which bug; exit 1 if one is not found. Minutes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Bug(NamedTuple):
    """A piece of a module's source, what takes its place, and the tests that have to notice."""

    module: str
    old: str
    new: str
    tests: str


_LOOP, _ROWS = "tests/privacy/dp/test_dp_training.py", "tests/privacy/dp/test_fine_tuning.py"
_SHARED = "tests/privacy/dp/test_distributed.py"
_SUMS = "tests/privacy/dp/gradients/test_clipped_sums.py"
BUGS = {
    "noise omitted": Bug("privacy/dp/training", "        if state.sigma:\n", "        if False:\n", _LOOP),
    "clipping omitted": Bug(
        "privacy/dp/gradients/clipped_sums", "torch.where(good, factor, 0)", "torch.where(good, torch.ones_like(factor), 0)",
        _SUMS,
    ),
    "clip after averaging over patients": Bug(
        "privacy/dp/gradients/clipped_sums", "torch.where(good, factor, 0)",
        "torch.where(good, factor.mean().expand_as(factor), 0)", _SUMS,
    ),
    "clip per record": Bug(
        "privacy/dp/fine_tuning", "        patient = torch.repeat_interleave(sizes)\n",
        "        sizes = torch.ones(int(sizes.sum())).long()\n        patient = torch.repeat_interleave(sizes)\n", _ROWS,
    ),
    "realised batch size": Bug("privacy/dp/training", "/ config.batch)", "/ max(1, len(sampled)))", _LOOP),
    "budget forgotten on resume": Bug(
        "privacy/dp/training", "return state, tensors\n", "return replace(state, spent=state.done), tensors\n", _LOOP
    ),
    "noise on every process": Bug(
        "privacy/dp/training", "        return _clipped_sum(model, rows_of, some, keys, config, seed, step)\n",
        "        own = _clipped_sum(model, rows_of, some, keys, config, seed, step)\n"
        "        return with_noise(own, config.clip, randomness='seeded', seed=seed, step=step)\n", _SHARED,
    ),
    "a patient counted by every process": Bug(
        "privacy/dp/distributed", "    return patients[distributed.get_rank() :: distributed.get_world_size()]\n",
        "    return patients\n", _SHARED,
    ),
    "latent scale from private data": Bug(
        "privacy/dp/fine_tuning", "        return cls(latents, torch", "        return cls(latents / latents.std(), torch", _ROWS
    ),
    "moving average on virtual steps": Bug(
        "privacy/dp/training", "        average.step(parameters)\n",
        "        for _ in sampled.split(config.physical):\n            average.step(parameters)\n", _LOOP,
    ),
    "private set in a public role": Bug(
        "ledger", "if shared := self._shared_with(images, role):\n                names",
        "if shared := {}:\n                names",
        "tests/test_ledger.py",
    ),
    "conditions from private attributes unrecorded": Bug(
        "diffusion/conditions", '    ledger.read(images, stage="draw conditions", output=f',
        '    len(images) or ledger.read(images, stage="draw conditions", output=f', "tests/diffusion/test_generator.py",
    ),
    "samples asked for by private attributes": Bug(
        "diffusion/generator", "if conditions.private and", "if False and", "tests/privacy/dp/test_fine_tuning.py"
    ),
    "patients known by their place in the list": Bug(
        "privacy/dp/fine_tuning", "    keys = patient_keys(images)\n", "    keys = list(range(len(people)))\n",
        "tests/privacy/dp/test_fine_tuning.py",
    ),
    "one noise for two runs of a seed": Bug(
        "privacy/dp/training", "        return run_stream(self.seed, json_hash(said))\n", "        return self.seed\n", _LOOP
    ),
    "central images divided by a private count": Bug(
        "privacy/dp/central_images", "sums / (patients / groups)",
        "sums / np.maximum(np.bincount(group_of(keys, groups), minlength=groups), 1)[:, None]",
        "tests/privacy/dp/test_central_images.py",
    ),
}  # fmt: skip


def found_by(bug: Bug) -> str:
    """The first test that fails with the bug in place, or "" where none does."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for item in ROOT.iterdir():
            if item.name not in ("medsynth", "build", ".git"):
                (home / item.name).symlink_to(item)
        shutil.copytree(ROOT / "medsynth", home / "medsynth", ignore=shutil.ignore_patterns("weights", "__pycache__"))
        (home / "medsynth" / "weights").symlink_to(ROOT / "medsynth" / "weights")
        file = home / "medsynth" / f"{bug.module}.py"
        text = file.read_text(encoding="utf-8")
        if text.count(bug.old) != 1:
            raise ValueError(f"{bug.module}: {bug.old!r} stands there {text.count(bug.old)} times; expected once")
        file.write_text(text.replace(bug.old, bug.new), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", bug.tests]
        # the copy comes before the installed package
        ran = subprocess.run(
            command, cwd=home, env=os.environ | {"PYTHONPATH": str(home)}, capture_output=True, text=True, check=False
        )
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", ran.stdout, re.MULTILINE)
    return failed[1] if ran.returncode == 1 and failed else ""


def main(names: list[str]) -> int:
    """Plant, run, report."""
    missed = 0
    for name in names or BUGS:
        test = found_by(BUGS[name])
        missed += not test
        print(f"{name}: {f'found by {test}' if test else 'NOT FOUND'}", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

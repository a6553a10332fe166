"""The randomness that privacy rests on, Gaussian noise and who takes part in a step, in two modes that a record tells apart.

"seeded": a function of (seed, run, step). A run can be repeated and resumed to the same weights, so it is for experiments. The
proof holds against whoever cannot guess the seed: who can, subtracts the noise. PyTorch reads 32 bits, so guessing is cheap.
Noise is another in every run (`run_stream`): two releases with the same noise, at two epsilons or on sets that differ in a
patient, would give it away, and what is proved of each would not add up.

"secure": every bit from the operating system (`os.urandom`), whose cryptographic generator hardware entropy seeds. Its state is
secret and too long to guess, and no run can be repeated; who can break the generator can subtract the noise. What is left is
arithmetic, since the proof is about real numbers:
- Floating-point noise leaves gaps, and which values can be reached tells what it was added to (Mironov, CCS 2012: least bits).
  A value is therefore the sum of four Gaussians over two (Holohan & Braghin, arXiv:2107.10138; so does Opacus' secure mode), made
  and added in float64, and only then rounded to float32: some 2^29 sums of float64 round to each.
- A uniform number of 53 bits ends the tails: each of the four stays below 8.6 sd. A Gaussian does not with chance 1e-17.
- How long a step takes tells how many patients took part.
None of this is a proof. Discrete noise has one (Canonne et al., arXiv:2004.00010); it is not built here.

Which timesteps and which noise a patient's own images are given need not be secret, since the bound holds for any: they are
seeded in both modes. But they may depend on nobody else. A patient's place in a list does: without the first one, all others
move up, draw other noise, and the sum changes by more than one patient's part. So they are keyed by the patient's own images
(`patient_keys`). The coins of who takes part must be secret in both modes, as noise must: seeded, they are tossed by place, and
what holds for them holds against whoever cannot guess the seed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
import torch

from medsynth.imageset import ImageSet
from medsynth.mechanism import RANDOMNESS
from medsynth.store.hashes import bytes_hash
from medsynth.training import step_generator

_CHUNK = 2**18  # values whose random bytes are in memory at a time
# what randomness is for: two purposes of one step share none
_NOISE, _SAMPLING, _PATIENTS = range(3)


def gaussian_noise(
    shape: tuple[int, ...],
    sd: float,
    *,
    randomness: str,
    seed: int,
    step: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """N(0, sd^2) of that shape. "secure" asks neither seed nor step; "seeded" draws other values on a GPU than on a CPU.

    One call a step: a second one of "seeded" would give the same values.
    """
    _check(randomness)
    if randomness == "secure":
        return _secure_gaussian(math.prod(shape)).mul_(sd).view(shape).to(device, dtype)
    generator = step_generator(stream(seed, _NOISE), step, torch.device(device).type)
    return torch.randn(shape, generator=generator, dtype=dtype, device=device) * sd


def with_noise(sums: dict[str, torch.Tensor], sd: float, *, randomness: str, seed: int, step: int) -> dict[str, torch.Tensor]:
    """Each of the sums with independent N(0, sd^2) added, in the type of the sums; the only call of a step."""
    first = next(iter(sums.values()))
    # "secure": the sum is rounded to the type of the sums, and not the noise before it
    dtype = torch.float64 if randomness == "secure" else first.dtype
    count = sum(v.numel() for v in sums.values())
    noise = gaussian_noise((count,), sd, randomness=randomness, seed=seed, step=step, dtype=dtype, device=first.device)
    parts = noise.split([v.numel() for v in sums.values()])
    return {name: (v + part.view(v.shape)).to(v.dtype) for (name, v), part in zip(sums.items(), parts, strict=True)}


def sampled_patients(n: int, q: float, *, randomness: str, seed: int, step: int) -> torch.Tensor:
    """Which of n patients take part in a step, int64, ascending: each by a coin of its own with chance q (Poisson sampling)."""
    _check(randomness)
    uniform = _secure_uniform(n) if randomness == "secure" else np.random.default_rng([stream(seed, _SAMPLING), step]).random(n)
    return torch.from_numpy(np.flatnonzero(uniform < q))


def patient_generators(keys: Sequence[int], *, seed: int, step: int, device: str = "cpu") -> list[torch.Generator]:
    """Of each patient the randomness of one step: (seed, step, the patient's key) decide it, whoever else there is."""
    within = stream(stream(seed, _PATIENTS), step)
    return [step_generator(within, key, device) for key in keys]


def patient_keys(images: ImageSet) -> list[int]:
    """A number below 2^60 for each patient, in the order of their numbers, which the patient's own images alone decide."""
    _, unit = np.unique(images.patient, return_inverse=True)
    own: list[list[str]] = [[] for _ in range(unit.max(initial=-1) + 1)]
    for person, digest in zip(unit.tolist(), images.row_hashes.tolist(), strict=True):
        own[person].append(digest)
    return [int(bytes_hash(" ".join(sorted(digests)).encode())[:15], 16) for digests in own]


def stream(seed: int, purpose: int) -> int:
    """A seed of 63 bits for one purpose of a seed, not below 0; streams share nothing that is known."""
    return int(np.random.SeedSequence([seed, purpose]).generate_state(1, np.uint64)[0] >> 1)


def run_stream(seed: int, run: str) -> int:
    """A seed of 63 bits for one run of a seed; `run` names all that tells it from others: settings, promise and images."""
    return stream(seed, int(bytes_hash(run.encode())[:15], 16))


def _secure_gaussian(n: int) -> torch.Tensor:
    """float64 (n,) of unit variance: halves of sums of four Gaussians, each by Box and Muller's formula from two numbers."""
    out = torch.empty(n, dtype=torch.float64)
    for part in out.split(_CHUNK):
        radius, angle = torch.from_numpy(_secure_uniform(8 * len(part))).view(2, 4, len(part))
        # 1 - u is above 0, so its logarithm is finite
        part.copy_(((-2 * (1 - radius).log()).sqrt_() * (2 * math.pi * angle).cos_()).sum(0) / 2)
    return out


def _secure_uniform(n: int) -> np.ndarray:
    """float64 (n,) in [0, 1), multiples of 2^-53."""
    return (np.frombuffer(os.urandom(8 * n), dtype=np.uint64) >> np.uint64(11)) * 2.0**-53


def _check(randomness: str) -> None:
    if randomness not in RANDOMNESS:
        raise ValueError(f"randomness {randomness!r}; expected one of {RANDOMNESS}")

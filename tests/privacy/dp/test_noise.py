from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from medsynth.mechanism import RANDOMNESS
from medsynth.privacy.dp import noise
from medsynth.privacy.dp.noise import gaussian_noise, patient_generators, sampled_patients, stream, with_noise

ONE = {"seed": 3, "step": 5}


@pytest.mark.parametrize("randomness", RANDOMNESS)
def test_noise_is_gaussian_with_the_deviation_that_was_asked_for(randomness):
    values = gaussian_noise((200, 500), 2.5, randomness=randomness, **ONE)
    assert (values.shape, values.dtype) == ((200, 500), torch.float32)
    # Kolmogorov and Smirnov: chance below 1e-6 under the null, and 100,000 values tell a deviation that is 2 % off
    flat = values.double().flatten().numpy()
    assert stats.kstest(flat, stats.norm(0, 2.5).cdf).pvalue > 1e-6
    assert stats.kstest(flat, stats.norm(0, 2.6).cdf).pvalue < 1e-6
    # neighbours know nothing of each other, nor do values that stand at the same place of two chunks
    assert abs(np.corrcoef(flat[:-1], flat[1:])[0, 1]) < 5 / math.sqrt(len(flat))


def test_secure_noise_is_alike_across_chunks(monkeypatch):
    monkeypatch.setattr(noise, "_CHUNK", 1000)
    values = gaussian_noise((100_500,), 1.0, randomness="secure", dtype=torch.float64, **ONE).numpy()
    assert stats.kstest(values, stats.norm.cdf).pvalue > 1e-6
    assert len(np.unique(values)) == len(values)
    assert abs(np.corrcoef(values[:-1000], values[1000:])[0, 1]) < 0.02


def test_seeded_noise_is_a_function_of_seed_and_step_and_secure_noise_is_not():
    for randomness, again in (("seeded", True), ("secure", False)):
        draw = gaussian_noise((50,), 1.0, randomness=randomness, **ONE)
        assert torch.equal(draw, gaussian_noise((50,), 1.0, randomness=randomness, **ONE)) == again
        for other in ({"seed": 4, "step": 5}, {"seed": 3, "step": 6}, {"seed": 5, "step": 3}):
            assert not torch.equal(draw, gaussian_noise((50,), 1.0, randomness=randomness, **other))


def test_secure_randomness_reads_fresh_bytes_of_the_system_for_each_value(monkeypatch):
    asked = []

    def urandom(n: int) -> bytes:
        asked.append(n)
        return np.random.default_rng(len(asked)).bytes(n)

    monkeypatch.setattr(noise.os, "urandom", urandom)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    gaussian_noise((7,), 1.0, randomness="secure", **ONE)
    sampled_patients(11, 0.5, randomness="secure", **ONE)
    # four Gaussians of two numbers of 8 bytes a value, one such number a patient
    assert asked == [7 * 4 * 2 * 8, 11 * 8]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("byte", [b"\x00", b"\xff"])
def test_the_rarest_bytes_give_finite_noise_below_the_stated_bound(monkeypatch, byte):
    monkeypatch.setattr(noise.os, "urandom", lambda n: byte * n)
    values = gaussian_noise((3,), 1.0, randomness="secure", **ONE)
    assert values.isfinite().all() and values.abs().max() <= 2 * 8.6


@pytest.mark.parametrize("randomness", RANDOMNESS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_sum_gets_noise_of_its_own(randomness, dtype):
    sums = {"a": torch.full((300, 40), 100.0, dtype=dtype), "b": torch.full((12_000,), -7.0, dtype=dtype)}
    noisy = with_noise(sums, 3.0, randomness=randomness, **ONE)
    assert {k: (v.shape, v.dtype) for k, v in noisy.items()} == {k: (v.shape, dtype) for k, v in sums.items()}
    a, b = (noisy[k].double().flatten().numpy() - float(sums[k].flatten()[0]) for k in "ab")
    for added in (a, b):
        assert added.std() == pytest.approx(3.0, rel=0.03) and abs(added.mean()) < 0.15
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.05
    # what was handed in is not touched
    assert (sums["a"] == 100).all()


def test_secure_noise_is_rounded_once_after_it_was_added():
    """Where the sum is large, float32 noise would be rounded twice; the remainders of a float64 sum are not seen."""
    big = {"a": torch.full((20_000,), 2.0**24)}
    noisy = with_noise(big, 0.4, randomness="secure", **ONE)["a"]
    # floats are 2 apart above and 1 below: values come to a share of both, and no other
    assert set((noisy - 2.0**24).tolist()) <= {-2.0, -1.0, 0.0, 2.0}
    below = float((noisy < 2.0**24).double().mean())
    assert below == pytest.approx(stats.norm.cdf(-0.5 / 0.4), abs=0.02)


@pytest.mark.parametrize("randomness", RANDOMNESS)
def test_patients_are_sampled_independently_at_rate_q(randomness):
    n, q, steps = 40, 0.3, 1500
    taken = np.zeros((steps, n), dtype=bool)
    for step in range(steps):
        sampled = sampled_patients(n, q, randomness=randomness, seed=1, step=step)
        assert sampled.dtype == torch.int64 and (sampled.diff() > 0).all()
        taken[step, sampled.numpy()] = True
    # each at rate q
    squares = (taken.sum(0) - steps * q) ** 2 / (steps * q * (1 - q))
    assert stats.chi2(n).sf(squares.sum()) > 1e-6
    # sizes are binomial, so not of one size, as a shuffled epoch would have
    sizes = taken.sum(1)
    assert sizes.var() == pytest.approx(n * q * (1 - q), rel=0.2)
    # pairs of patients, and a patient's neighbouring steps, are independent
    together = np.corrcoef(taken.T.astype(float))[np.triu_indices(n, 1)]
    assert abs(together).max() < 5.5 / math.sqrt(steps)
    assert abs(np.corrcoef(taken[:-1].ravel(), taken[1:].ravel())[0, 1]) < 5 / math.sqrt(steps * n)


def test_a_rate_of_one_takes_everybody_and_a_batch_may_be_empty():
    for randomness in RANDOMNESS:
        assert sampled_patients(9, 1.0, randomness=randomness, **ONE).tolist() == list(range(9))
        assert len(sampled_patients(9, 1e-12, randomness=randomness, **ONE)) == 0


def test_a_further_patient_changes_nobodys_coin():
    few, many = (sampled_patients(n, 0.4, randomness="seeded", **ONE) for n in (50, 51))
    assert many[many < 50].tolist() == few.tolist()


def test_a_patients_randomness_is_its_own():
    def draws(patients: list[int], **key: int) -> dict[int, list[float]]:
        generators = patient_generators(patients, **(ONE | key))
        return {p: torch.rand(4, generator=g).tolist() for p, g in zip(patients, generators, strict=True)}

    together = draws([4, 9, 17])
    assert draws([9])[9] == together[9] and draws([17, 9]) == {17: together[17], 9: together[9]}
    assert len({tuple(v) for v in (*together.values(), *draws([4], seed=4).values(), *draws([4], step=6).values())}) == 5
    assert len({g.initial_seed() % 2**32 for g in patient_generators(range(20_000), **ONE)}) == 20_000


def test_no_purpose_of_a_seed_shares_its_stream():
    seeds = {stream(seed, purpose) % 2**32 for seed in range(100) for purpose in range(3)}
    assert len(seeds) == 300 and all(0 <= stream(seed, 0) < 2**63 for seed in range(100))
    # the coins of a step are not the noise of the same step
    assert stream(3, noise._NOISE) != stream(3, noise._SAMPLING)


def test_an_unknown_mode_is_refused_by_all():
    message = r"randomness 'fast'; expected one of \('seeded', 'secure'\)"
    for ask in (
        lambda: gaussian_noise((2,), 1.0, randomness="fast", **ONE),
        lambda: with_noise({"a": torch.zeros(2)}, 1.0, randomness="fast", **ONE),
        lambda: sampled_patients(3, 0.5, randomness="fast", **ONE),
    ):
        with pytest.raises(ValueError, match=message):
            ask()

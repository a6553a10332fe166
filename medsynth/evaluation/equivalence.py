"""Restoration networks compared over patients and seeds, and equivalence claimed only where a difference would have shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from medsynth.evaluation.image_quality import image_psnr, image_rmse, image_ssim
from medsynth.evaluation.statistics import Estimate, generator
from medsynth.imageset import ImageSet

METRICS = ("psnr", "ssim", "rmse")  # dB, 1, and the unit of the images
MARGINS = {"psnr": 0.5, "ssim": 0.01}  # what counts as the same
BEATS_BASELINE = 1.5  # dB by which the real-trained network must beat the classical baseline
CONVERGED = 0.2  # dB by which twice the budget may change it


class Finding(NamedTuple):
    """What is claimed of two arms, with the margin and why."""

    verdict: str  # "equivalent", "different", "not shown" or "experiment not sensitive"
    difference: Estimate  # its interval at confidence 1 - 2 alpha
    margin: float
    reasons: tuple[str, ...]


def image_scores(reference: ImageSet, images: ImageSet) -> dict[str, np.ndarray]:
    """PSNR (peak = width of the range), SSIM (Gaussian window, sigma 1.5) and RMSE of each image, (n,) each."""
    if reference.images.shape != images.images.shape or (reference.unit, reference.range) != (images.unit, images.range):
        raise ValueError(
            f"{images.name}: shape {images.images.shape}, range {images.range} {images.unit}; expected "
            f"{reference.images.shape}, {reference.range} {reference.unit}, as {reference.name}"
        )
    if not np.array_equal(reference.patient, images.patient):
        raise ValueError(f"{images.name}: patients differ from those of {reference.name}; rows must be the same scans")
    return {
        "psnr": image_psnr(reference, images),
        "ssim": image_ssim(reference, images),
        "rmse": image_rmse(reference, images),
    }


@dataclass(frozen=True)
class Comparison:
    """Scores of every arm on the same patients: scores[arm][metric] is (seeds, patients), the mean over a patient's images."""

    scores: dict[str, dict[str, np.ndarray]]
    patients: int

    def estimate(self, arm: str, metric: str, *, seed: int, replicates: int = 2000, level: float = 0.95) -> Estimate:
        """Mean over patients and seeds with its interval over both. n = patients."""
        return two_level([(1, self.matrix(arm, metric))], seed=seed, replicates=replicates, level=level)

    def difference(
        self, arm: str, other: str, metric: str, *, seed: int, replicates: int = 2000, level: float = 0.95
    ) -> Estimate:
        """Mean of `arm` minus mean of `other`: patients are paired, the seeds of two arms are not. n = patients."""
        terms = [(1, self.matrix(arm, metric)), (-1, self.matrix(other, metric))]
        return two_level(terms, seed=seed, replicates=replicates, level=level)

    def matrix(self, arm: str, metric: str) -> np.ndarray:
        """Scores (seeds, patients) of one arm."""
        if arm not in self.scores:
            raise ValueError(f"no arm {arm!r}; expected one of {sorted(self.scores)}")
        if metric not in METRICS:
            raise ValueError(f"no metric {metric!r}; expected one of {METRICS}")
        return self.scores[arm][metric]


def compare(reference: ImageSet, restored: Mapping[str, Sequence[ImageSet]]) -> Comparison:
    """Score the restored images of every arm against the clean ones; an arm has one set per training seed.

    Every patient counts once, however many images it has. Raises ValueError where rows are not those of the reference.
    """
    people, unit = np.unique(reference.patient, return_inverse=True)
    images = np.bincount(unit)
    scores: dict[str, dict[str, np.ndarray]] = {}
    for arm, sets in restored.items():
        if isinstance(sets, ImageSet) or not len(sets):
            raise ValueError(f"arm {arm!r}: expected a list of ImageSets, one per seed")
        per_image = [image_scores(reference, s) for s in sets]
        scores[arm] = {m: np.stack([np.bincount(unit, s[m]) / images for s in per_image]) for m in METRICS}
    return Comparison(scores, len(people))


def two_level(terms: Sequence[tuple[float, np.ndarray]], *, seed: int, replicates: int = 2000, level: float = 0.95) -> Estimate:
    """The sum of factor * mean(scores) over terms, scores (seeds, patients), with a bootstrap interval over both levels.

    Patients are resampled once for all terms (they are paired), seeds for each term. The interval is the value plus and minus
    the standard error of the replicates times the quantile of Student's t, because a bootstrap over three seeds cannot reach
    beyond them, and so has no tail of its own. Deviations of the resampled weights from equal ones are widened by
    sqrt(u / (u - 1)) for u units, which makes the variance unbiased; the degrees of freedom follow from the variance that each
    level adds (Welch and Satterthwaite). A term with one seed has no seed variance: the interval is then for that network
    alone. n = patients. Source: Efron and Tibshirani (1993), section 12.2; Hesterberg, The American Statistician 69:371 (2015).
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level}; expected a number between 0 and 1, such as 0.95")
    terms = [(factor, np.atleast_2d(np.asarray(values, dtype=np.float64))) for factor, values in terms]
    patients = {values.shape[1] for _, values in terms}
    if len(patients) != 1 or not all(np.isfinite(values).all() for _, values in terms):
        raise ValueError(f"scores of {sorted(patients)} patients; expected finite scores of the same patients in every arm")
    (n,) = patients
    if n < 2:
        raise ValueError(f"bootstrap over {n} patient(s): no interval can be had; expected at least 2")
    by_patient = _weights(n, replicates, seed, 0)
    total = np.zeros(replicates)
    # variance that each level adds alone, with its degrees of freedom
    levels = [(np.var(by_patient @ sum(factor * values.mean(0) for factor, values in terms)), n - 1)]
    for i, (factor, values) in enumerate(terms):
        seeds = len(values)
        if seeds == 1:
            total += factor * (by_patient @ values[0])
            continue
        by_seed = _weights(seeds, replicates, seed, 1 + i)
        total += factor * ((by_seed @ values) * by_patient).sum(1)
        levels.append((np.var(factor * (by_seed @ values.mean(1))), seeds - 1))
    value = float(sum(factor * values.mean() for factor, values in terms))
    variance = sum(v for v, _ in levels)
    if variance == 0:
        return Estimate(value, value, value, n, level=level)
    freedom = variance**2 / sum(v**2 / f for v, f in levels)
    reach = float(stats.t.isf((1 - level) / 2, freedom) * total.std())
    return Estimate(value, value - reach, value + reach, n, level=level)


def tost(
    terms: Sequence[tuple[float, np.ndarray]] | np.ndarray,
    *,
    margin: float,
    seed: int,
    alpha: float = 0.05,
    replicates: int = 4000,
) -> Finding:
    """Two one-sided tests at level alpha: equivalent if the 1 - 2 alpha interval of a mean difference lies inside +-margin.

    terms: differences per patient, (patients,) or (seeds, patients), or terms as in `two_level`. "different": the interval
    leaves the margins and excludes zero. Else "not shown". Source: Schuirmann (1987), J Pharmacokinet Biopharm 15:657.
    """
    if not (np.isfinite(margin) and margin > 0):
        raise ValueError(f"margin {margin}; expected a positive number, chosen before the data were seen")
    terms = [(1, terms)] if isinstance(terms, np.ndarray) else terms
    difference = two_level(terms, seed=seed, replicates=replicates, level=1 - 2 * alpha)
    said = f"{100 * (1 - 2 * alpha):.0f} % interval [{difference.low:.3g}, {difference.high:.3g}]"
    if -margin < difference.low and difference.high < margin:
        return Finding("equivalent", difference, margin, (f"{said} lies inside +-{margin:g}",))
    if difference.low > 0 or difference.high < 0:
        return Finding("different", difference, margin, (f"{said} excludes zero and leaves +-{margin:g}",))
    return Finding("not shown", difference, margin, (f"{said} holds zero and leaves +-{margin:g}: too few patients or seeds",))


def equivalence(
    comparison: Comparison,
    arm: str,
    *,
    real: str,
    twice: str,
    baseline: str,
    seed: int,
    metric: str = "psnr",
    margin: float | None = None,
    replicates: int = 4000,
) -> Finding:
    """Is `arm` equivalent to the real-trained network, in an experiment that could have shown that it is not?

    arm, real: what is compared; twice: the real-trained network at twice the budget; baseline: the best classical method.
    An experiment is sensitive where (a) real beats baseline by 1.5 dB, so that training matters at all, and (b) twice the
    budget changes real by at most 0.2 dB, so that both arms are not merely unfinished: both in PSNR, as point values. If it
    is not, "equivalent" and "not shown" become "experiment not sensitive"; a difference that is seen is still one.
    """
    if metric not in MARGINS and margin is None:
        raise ValueError(f"no margin is agreed for {metric!r}; expected one of {sorted(MARGINS)}, or a margin of your own")
    margin = MARGINS[metric] if margin is None else margin
    terms = [(1, comparison.matrix(arm, metric)), (-1, comparison.matrix(real, metric))]
    finding = tost(terms, margin=margin, seed=seed, replicates=replicates)
    gain = comparison.difference(real, baseline, "psnr", seed=seed, replicates=replicates)
    change = comparison.difference(twice, real, "psnr", seed=seed, replicates=replicates)
    failed = []
    if gain.value < BEATS_BASELINE:
        failed.append(f"{real} beats {baseline} by {gain.value:.2f} dB, less than {BEATS_BASELINE} dB")
    if abs(change.value) > CONVERGED:
        failed.append(f"twice the budget changes {real} by {change.value:.2f} dB, more than {CONVERGED} dB")
    reasons = finding.reasons + tuple(failed)
    if min(len(values) for _, values in terms) == 1:
        reasons += ("one seed: this holds for these networks, not for training again",)
    insensitive = bool(failed) and finding.verdict != "different"
    return finding._replace(verdict="experiment not sensitive" if insensitive else finding.verdict, reasons=reasons)


def _weights(units: int, replicates: int, *key: int) -> np.ndarray:
    """Bootstrap weights (replicates, units) that sum to 1, their deviations from 1 / units widened by sqrt(u / (u - 1))."""
    drawn = generator(*key).multinomial(units, np.full(units, 1 / units), size=replicates) / units
    return 1 / units + (drawn - 1 / units) * np.sqrt(units / (units - 1))

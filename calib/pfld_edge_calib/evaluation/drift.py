"""NME drift between two models on the same faces: its bootstrap interval, and the verdict on a budget."""

import math
import warnings
from dataclasses import dataclass
from enum import Enum
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.arrays import Float64Array

CONFIDENCE = 0.95
RESAMPLES = 10_000
MIN_PHOTOGRAPHS = 8
"""With fewer photographs a bootstrap interval is far too short; the extremes of single faces are given instead."""

FEWEST_FACES = 20
"""Subsets with fewer faces are not judged by themselves."""

_MOST_UNITS = 1_000
_POWER = 0.8
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class DriftEstimate:
    """The relative change of an NME with its 95 % interval from `low` to `high`.

    `value` is the change of the mean error over the reference's mean error on the same faces: 0.01 is one percent
    worse. `resolvable` is the smallest drift that as many faces would distinguish from none with a power of 0.8: 2.8
    standard errors; infinite where there are too few photographs. `method` is ``bca``; ``extremes`` with fewer than 8
    photographs, where the interval reaches from the least to the largest change of a single face; or ``none``.
    """

    value: float
    low: float
    high: float
    resolvable: float
    faces: int
    photographs: int
    method: str


def paired_drift(
    nmes: Float64Array,
    reference: Float64Array,
    photographs: NDArray[np.integer],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> DriftEstimate:
    """Estimate how much worse a model is than another, on the same faces.

    Differences of faces are resampled, for what makes a face difficult is difficult for both models. The interval is
    BCa (Efron, "Better bootstrap confidence intervals", JASA 82, 1987), over whole photographs. More than 1,000
    photographs are resampled in 1,000 random bundles, which keeps the interval's width.

    `nmes` and `reference` are the ``(N,)`` errors of both, NaN for missed faces; those that either missed are left out.
    Faces with the same of the ``(N,)`` integers `photographs` share one.
    """
    both = np.isfinite(nmes) & np.isfinite(reference)
    change, base = (nmes - reference)[both], reference[both]
    if not len(base) or not base.sum() > 0:
        return DriftEstimate(math.nan, math.nan, math.nan, math.nan, len(base), 0, "none")
    sums = _sums_by_photograph(change, base, photographs[both])
    count = sums.shape[1]
    value = float(change.sum() / base.sum())
    if count < MIN_PHOTOGRAPHS:
        single = change / base.mean()
        return DriftEstimate(value, float(single.min()), float(single.max()), math.inf, len(base), count, "extremes")
    low, high, error = _bootstrap(sums, resamples, seed)
    resolvable = (_NORMAL.inv_cdf(0.5 + CONFIDENCE / 2) + _NORMAL.inv_cdf(_POWER)) * error
    return DriftEstimate(value, low, high, resolvable, len(base), count, "bca")


def mean_interval(
    nmes: Float64Array, photographs: NDArray[np.integer], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """95 % interval of the mean of ``(N,)`` errors, as in `paired_drift`; None with fewer than 8 photographs."""
    known = nmes[np.isfinite(nmes)]
    sums = _sums_by_photograph(known, np.ones(len(known)), photographs[np.isfinite(nmes)])
    return None if sums.shape[1] < MIN_PHOTOGRAPHS else _bootstrap(sums, resamples, seed)[:2]


def _sums_by_photograph(
    numerator: Float64Array, denominator: Float64Array, photographs: NDArray[np.integer]
) -> Float64Array:
    """``(2, U)`` sums of numerators and denominators over the faces of each photograph."""
    _, unit = np.unique(photographs, return_inverse=True)
    return np.stack([np.bincount(unit, weights) for weights in (numerator, denominator)])


def _bootstrap(sums: Float64Array, resamples: int, seed: int) -> tuple[float, float, float]:
    """Ends of the BCa interval and standard error of the ratio of the sums of ``(2, U)`` units."""
    from scipy.stats import bootstrap

    if sums.shape[1] > _MOST_UNITS:
        bundle = np.random.default_rng(seed).permutation(sums.shape[1]) % _MOST_UNITS
        sums = np.stack([np.bincount(bundle, row, _MOST_UNITS) for row in sums])
    with warnings.catch_warnings():
        # All samples may lie on one side, or be equal: then there is no BCa interval.
        warnings.simplefilter("ignore")
        found = bootstrap(
            (sums[0], sums[1]),
            lambda numerator, denominator, axis=-1: numerator.sum(axis=axis) / denominator.sum(axis=axis),
            paired=True,
            vectorized=True,
            n_resamples=resamples,
            batch=1000,
            confidence_level=CONFIDENCE,
            method="BCa",
            random_state=np.random.default_rng(seed),
        )
    low, high = found.confidence_interval
    if not math.isfinite(low + high):
        low, high = found.bootstrap_distribution.min(), found.bootstrap_distribution.max()
    return float(low), float(high), float(found.standard_error)


class Verdict(str, Enum):
    """Relation of a model's drift to the budget."""

    REFERENCE = "reference"
    """The model that the others are compared with."""
    UNJUDGED = "unjudged"
    """No budget was given, or there is nothing to compare with."""
    PASS = "pass"  # noqa: S105 - a verdict, no password
    """The whole interval of the drift lies within the budget."""
    FAIL = "fail"
    """The whole interval lies beyond it."""
    INCONCLUSIVE = "inconclusive"
    """The budget lies inside the interval."""


def judge(drift: DriftEstimate, budget: float | None) -> tuple[Verdict, str]:
    """Compare a drift's interval with the budget: the verdict, and a sentence, empty where there is no budget."""
    if budget is None:
        return Verdict.UNJUDGED, ""
    allowed = f"{100 * budget:.3g}%"
    interval = f"{drift.value:+.3%} [{drift.low:+.3%}, {drift.high:+.3%}]"
    if drift.high <= budget:
        return Verdict.PASS, f"drift {interval} is within {allowed}"
    if drift.low > budget:
        return Verdict.FAIL, f"drift {interval} exceeds {allowed}"
    if not math.isfinite(drift.value):
        return Verdict.FAIL, "the drift is not a number: a network gave NaN, or found no face"
    return (
        Verdict.INCONCLUSIVE,
        f"drift {interval}: {drift.faces} faces can't tell whether it is within {allowed}; " + (_advice(drift, budget)),
    )


def _advice(drift: DriftEstimate, budget: float) -> str:
    if drift.method != "bca":
        return (
            f"they come from {drift.photographs} photographs, too few for an interval: give --data with hundreds of "
            "labelled faces"
        )
    needed = faces_needed(drift, budget)
    if needed is None:
        return "the drift is the budget itself, and no number of faces would tell"
    return f"about {needed:,} such faces would"


def faces_needed(drift: DriftEstimate, budget: float) -> int | None:
    """Faces that would decide, if the drift stays and the interval shrinks as 1 / sqrt(faces); two leading digits."""
    away = drift.value - budget
    reach = drift.value - drift.low if away > 0 else drift.high - drift.value
    if away == 0:
        return None
    exact = float(drift.faces * (reach / away) ** 2)
    step = int(10 ** max(0, math.floor(math.log10(max(exact, 1))) - 1))
    return max(drift.faces + 1, math.ceil(exact / step) * step)

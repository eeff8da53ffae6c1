"""How far a drift can be trusted: the bias-corrected and accelerated bootstrap over photographs."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = ["CONFIDENCE", "FEWEST_PHOTOGRAPHS", "RESAMPLES", "DriftEstimate", "mean_interval", "paired_drift"]

Float = NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 10_000
FEWEST_PHOTOGRAPHS = 8
"""With fewer a bootstrap's interval is far too short; what the single faces show at most stands in its place."""

_MOST_UNITS = 1_000
_POWER = 0.8
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class DriftEstimate:
    """The relative change of an NME, and how far it can be trusted.

    Attributes:
        value: Change of the mean error over the reference's mean error on the same faces: 0.01 is one percent worse.
        low: Lower end of its 95 % interval.
        high: Upper end.
        resolvable: Smallest drift that as many faces would show as different from none four times in five, given how
            unequally these faces changed: 2.8 standard errors; infinite where there are too few photographs to say.
        faces: Number of faces.
        photographs: Number of photographs, which are what is resampled: faces of one photograph are not independent.
        method: ``bca``; ``extremes`` where there are fewer than 8 photographs: the interval then reaches from the
            least to the largest change of a single face.
    """

    value: float
    low: float
    high: float
    resolvable: float
    faces: int
    photographs: int
    method: str


def paired_drift(
    nmes: Float, reference: Float, photographs: NDArray[np.integer], *, resamples: int = RESAMPLES, seed: int = 0
) -> DriftEstimate:
    """Estimate how much worse a network is than another, on the same faces.

    The faces' differences are resampled, not two means: what makes a face hard is hard for both. The interval is BCa
    (Efron, "Better bootstrap confidence intervals", JASA 82, 1987), over whole photographs. Beyond 1,000 photographs
    they are resampled in 1,000 bundles drawn by chance, which leaves the interval's width what it is.

    Args:
        nmes: ``(N,)`` errors of the network that is judged, at least one finite pair. NaN where the face was missed;
            faces that either missed are left out.
        reference: ``(N,)`` of the reference.
        photographs: ``(N,)`` integers: faces with the same one share a photograph.
        resamples: Number of bootstrap samples.
        seed: Of the resampling.
    """
    both = np.isfinite(nmes) & np.isfinite(reference)
    change, base = (nmes - reference)[both], reference[both]
    if not len(base) or not base.sum() > 0:
        return DriftEstimate(math.nan, math.nan, math.nan, math.nan, len(base), 0, "none")
    _, unit = np.unique(photographs[both], return_inverse=True)
    count = int(unit.max()) + 1
    sums: Float = np.stack([np.bincount(unit, weights, count) for weights in (change, base)]).astype(np.float64)
    value = float(sums[0].sum() / sums[1].sum())
    error = _standard_error(sums)
    resolvable = (_NORMAL.inv_cdf(0.5 + CONFIDENCE / 2) + _NORMAL.inv_cdf(_POWER)) * error
    if count < FEWEST_PHOTOGRAPHS:
        single = change / base.mean()
        low, high = float(single.min()), float(single.max())
        return DriftEstimate(value, low, high, math.inf, len(base), count, "extremes")
    low, high = _bca(_bundled(sums, seed), value, resamples, seed)
    return DriftEstimate(value, low, high, resolvable, len(base), count, "bca")


def mean_interval(
    nmes: Float, photographs: NDArray[np.integer], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """Say how far a mean error can be trusted: its 95 % interval, by the same bootstrap as `paired_drift`.

    Args:
        nmes: ``(N,)``; NaN, a missed face, is left out.
        photographs: ``(N,)`` integers, as for `paired_drift`.
        resamples: Number of bootstrap samples.
        seed: Of the resampling.

    Returns:
        Both ends; None where there are fewer than 8 photographs.
    """
    known = np.isfinite(nmes)
    _, unit = np.unique(photographs[known], return_inverse=True)
    count = int(unit.max(initial=-1)) + 1
    if count < FEWEST_PHOTOGRAPHS:
        return None
    sums: Float = np.stack([np.bincount(unit, nmes[known], count), np.bincount(unit, minlength=count)])
    return _bca(_bundled(sums, seed), float(nmes[known].mean()), resamples, seed)


def _bundled(sums: Float, seed: int) -> Float:
    """Add up ``(2, U)`` sums of photographs in at most 1,000 bundles."""
    count = sums.shape[1]
    if count <= _MOST_UNITS:
        return sums
    bundle = np.random.default_rng(seed).permutation(count) % _MOST_UNITS
    return np.stack([np.bincount(bundle, row, _MOST_UNITS) for row in sums])


def _bca(sums: Float, value: float, resamples: int, seed: int) -> tuple[float, float]:
    """Ends of the interval of a ratio of sums over ``(2, U)`` units."""
    drawn = _resampled(sums, resamples, seed)
    below = float((drawn < value).mean() + (drawn == value).mean() / 2)
    if not 0 < below < 1:
        return float(drawn.min()), float(drawn.max())
    bias = _NORMAL.inv_cdf(below)
    left_out = (sums[0].sum() - sums[0]) / (sums[1].sum() - sums[1])
    pull = left_out.mean() - left_out
    spread = float((pull**2).sum()) ** 1.5
    skew = float((pull**3).sum()) / (6 * spread) if spread > 0 else 0.0
    ends = []
    for share in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2):
        z = bias + _NORMAL.inv_cdf(share)
        ends.append(float(np.quantile(drawn, _NORMAL.cdf(bias + z / (1 - skew * z)))))
    return ends[0], ends[1]


def _resampled(sums: Float, resamples: int, seed: int) -> Float:
    """``(resamples,)`` ratios; a sample is how often each unit was drawn."""
    random, units = np.random.default_rng(seed), sums.shape[1]
    parts = []
    for start in range(0, resamples, 1000):
        rows = min(1000, resamples - start)
        drawn = random.multinomial(units, np.full(units, 1 / units), rows).astype(np.float64) @ sums.T
        parts.append(drawn[:, 0] / drawn[:, 1])
    return np.concatenate(parts)


def _standard_error(sums: Float) -> float:
    """Of the ratio, by linearization (Cochran, "Sampling Techniques", section 6.3)."""
    count = sums.shape[1]
    if count < 2:
        return math.inf
    residuals = sums[0] - sums[0].sum() / sums[1].sum() * sums[1]
    return math.sqrt(count / (count - 1) * float((residuals**2).sum())) / float(sums[1].sum())

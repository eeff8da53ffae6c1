"""How far medians, and ratios of medians, can be trusted: the moving-block bootstrap."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Estimate", "median_of", "ratio_of_medians"]

Float = NDArray[np.float64]

_RESAMPLES = 2000
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and how far it can be trusted.

    Attributes:
        value: The figure.
        low: Lower end of its 95 % interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the interval, as a share of the value."""
        return (self.high - self.low) / 2 / self.value if self.value else 0.0


def median_of(times: Float, seed: int = 0) -> Estimate:
    """Estimate the median of ``(rounds,)`` times, at least one."""
    return _estimate(float(np.median(times)), np.median(times[_resampled_rounds(len(times), seed)], axis=1))


def ratio_of_medians(times: Float, reference: Float, seed: int = 0) -> Estimate:
    """Estimate how many times as long something takes as a reference.

    Both are resampled by the same rounds, so that what slowed a round for both widens nothing; and by whole stretches
    of rounds, for what slows one round mostly slows the next too (Künsch, "The jackknife and the bootstrap for general
    stationary observations", Annals of Statistics 17, 1989; here on a circle, after Politis and Romano, 1992).

    Args:
        times: ``(rounds,)``, of what is judged.
        reference: ``(rounds,)``, of the same rounds.
        seed: Of the resampling.
    """
    rows = _resampled_rounds(len(times), seed)
    ratios = np.median(times[rows], axis=1) / np.median(reference[rows], axis=1)
    return _estimate(float(np.median(times) / np.median(reference)), ratios)


def _resampled_rounds(count: int, seed: int) -> NDArray[np.intp]:
    """``(resamples, count)`` rounds, drawn in stretches of the cube root of their number."""
    stretch = max(1, round(count ** (1 / 3)))
    starts = np.random.default_rng(seed).integers(0, count, (_RESAMPLES, -(-count // stretch)))
    rows: NDArray[np.intp] = (starts[:, :, None] + np.arange(stretch)).reshape(_RESAMPLES, -1)[:, :count] % count
    return rows


def _estimate(value: float, resampled: Float) -> Estimate:
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))

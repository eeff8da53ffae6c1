"""Range estimation: how far a grid should reach, given what was seen.

Every method reads a `ChannelHistogram` and answers for each of its rows; for one range a tensor, give it
`ChannelHistogram.merged`. None is best for all networks: `quantize` tries several and keeps the one whose landmarks
stay closest to those of the float network.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pfld_edge_convert.quantization.grid import LEVELS
from pfld_edge_convert.quantization.histogram import BINS, ChannelHistogram

__all__ = ["RANGE_METHODS", "Ranges", "estimate"]

Array = NDArray[np.float64]
Ranges = tuple[Array, Array]
"""Lower and upper ends, ``(C,)`` each; the lower never above 0, the upper never below."""

_MARGIN = 2.0
"""A face may reach this much further than nearly all others before it counts as odd."""

_SHARES = np.geomspace(0.05, 1, 61)
"""Parts of the whole range that are tried as clipping points."""


def estimate(histogram: ChannelHistogram, method: str) -> Ranges:
    """Estimate the range of each row.

    Args:
        histogram: At least one batch counted.
        method: ``minmax``: all that was seen. ``moving-average``: of the batches' extremes, momentum 0.1.
            ``percentile:P``: P percent of the values lie inside, e.g. ``percentile:99.99``. ``faces:P``:
            twice what P percent of the faces hold, so that a few odd faces don't coarsen the grid of all others; only
            for histograms with peaks. ``mse``: least mean squared error of clipping and rounding. ``entropy``: least
            Kullback-Leibler divergence of the quantized distribution (Migacz, 8-bit inference with TensorRT, GTC 2017).

    Raises:
        ValueError: The method is unknown.
    """
    name, _, argument = method.partition(":")
    if name not in RANGE_METHODS:
        raise ValueError(f"range method {method!r} is unknown; known are {', '.join(RANGE_METHODS)}")
    low, high = RANGE_METHODS[name](histogram, argument)
    # Bins are wider than the values in them: never beyond what was seen.
    return np.minimum(np.maximum(low, histogram.low), 0), np.maximum(np.minimum(high, histogram.high), 0)


def _minmax(histogram: ChannelHistogram, _: str) -> Ranges:
    return histogram.low, histogram.high


def _moving_average(histogram: ChannelHistogram, _: str) -> Ranges:
    return histogram.average_low, histogram.average_high


def _percentile(histogram: ChannelHistogram, argument: str) -> Ranges:
    outside = (1 - float(argument or 99.99) / 100) * histogram.counts.sum(axis=1, keepdims=True)
    edges = np.arange(BINS + 1) - BINS // 2
    # Half of what is cut off may lie on either side.
    below = np.cumsum(histogram.counts, axis=1) <= outside / 2
    above = np.cumsum(histogram.counts[:, ::-1], axis=1) <= outside / 2
    low = edges[np.minimum(below.sum(axis=1), BINS - 1)] * histogram.width
    high = edges[np.maximum(BINS - above.sum(axis=1), 1)] * histogram.width
    return low, high


def _faces(histogram: ChannelHistogram, argument: str) -> Ranges:
    if not histogram.peaks:
        raise ValueError("a merged histogram knows no faces; estimate each channel's range and take the widest")
    high, low = (_quantile(peaks, float(argument or 98) / 100) for peaks in histogram.peaks)
    return -_MARGIN * low, _MARGIN * high


def _quantile(histogram: ChannelHistogram, share: float) -> Array:
    """``(C,)`` upper edge of the bin below which the share of the values lies."""
    enough = np.cumsum(histogram.counts, axis=1) >= share * histogram.counts.sum(axis=1, keepdims=True)
    edge = np.argmax(enough, axis=1) + 1 - BINS // 2
    result: Array = np.minimum(edge * histogram.width, histogram.high)
    return result


def _mse(histogram: ChannelHistogram, _: str) -> Ranges:
    low, high = np.minimum(histogram.low, 0), np.maximum(histogram.high, 0)
    best, errors = np.ones(len(low)), np.full(len(low), np.inf)
    counts, centers = histogram.counts.astype(np.float64), histogram.centers()
    total = np.maximum(counts.sum(axis=1), 1)
    for share in _SHARES:
        clipped = np.clip(centers, (low * share)[:, None], (high * share)[:, None])
        step = (high - low) * share / LEVELS
        error = (counts * (centers - clipped) ** 2).sum(axis=1) / total + step**2 / 12
        better = error < errors
        best[better], errors[better] = share, error[better]
    return low * best, high * best


def _entropy(histogram: ChannelHistogram, _: str) -> Ranges:
    low, high = np.minimum(histogram.low, 0), np.maximum(histogram.high, 0)
    best = np.ones(len(low))
    for row, counts in enumerate(histogram.counts):
        if histogram.width[row] > 0:
            divergences = [
                _divergence(counts, histogram.width[row], low[row] * share, high[row] * share) for share in _SHARES
            ]
            best[row] = _SHARES[int(np.argmin(divergences))]
    return low * best, high * best


def _divergence(counts: NDArray[np.int64], width: float, low: float, high: float) -> float:
    """Kullback-Leibler divergence from the clipped distribution to the one that its 256 levels can tell apart."""
    centers = (np.arange(BINS) + 0.5 - BINS // 2) * width
    inside = (centers >= low) & (centers <= high)
    if not inside.any():
        return float("inf")
    seen = counts[inside].astype(np.float64)
    reference = seen.copy()
    reference[0] += counts[centers < low].sum()
    reference[-1] += counts[centers > high].sum()
    step = max((high - low) / LEVELS, 1e-30)
    levels = np.rint((centers[inside] - low) / step).astype(np.int64)
    levels -= levels.min()
    mass, filled = np.bincount(levels, seen), np.bincount(levels, seen > 0)
    spread = np.where(seen > 0, (mass / np.maximum(filled, 1))[levels], 0)
    p, q = reference / max(reference.sum(), 1), spread / max(spread.sum(), 1)
    q = np.maximum(q, 1e-9)
    terms = np.where(p > 0, p * np.log(np.maximum(p, 1e-30) / q), 0)
    return float(terms.sum())


RANGE_METHODS: dict[str, Callable[[ChannelHistogram, str], Ranges]] = {
    "minmax": _minmax,
    "moving-average": _moving_average,
    "percentile": _percentile,
    "faces": _faces,
    "mse": _mse,
    "entropy": _entropy,
}

"""What a tensor's channels were seen to hold: exact extremes and a histogram each, in bounded memory."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["BINS", "ChannelHistogram"]

BINS = 1024
"""Bins of a channel; half of them below zero."""

_PIXELS = 784
"""Most pixels of a map that enter the histogram from one face; the extremes see all."""

_MOMENTUM = 0.1
"""Weight of the newest batch in the moving average of extremes."""

_ZERO = 1e-30
"""What is smaller has no reciprocal in float32, and no meaning."""

Array = NDArray[np.float64]


class ChannelHistogram:
    """Histograms of a tensor's channels, which widen as they meet larger values.

    Bins are centred on zero and of equal width in a channel. A value outside doubles the channel's width until it
    fits, which merges neighbouring bins exactly; so nothing seen is lost, whatever comes first, and memory does not
    grow with the number of faces.

    Attributes:
        counts: ``(C, BINS)`` how many values fell in each bin.
        width: ``(C,)`` width of the channel's bins; 0 for a channel that has been zero so far.
        low: ``(C,)`` smallest values.
        high: ``(C,)`` largest values.
        average_low: ``(C,)`` moving average of the batches' smallest values.
        average_high: ``(C,)`` moving average of the batches' largest values.
        peaks: Histograms of each face's largest values, and of its smallest ones with their sign turned: what tells a
            tensor that is wide for all faces from one that a few odd faces blow up.
    """

    def __init__(self, channels: int, *, with_peaks: bool = True) -> None:
        self.counts = np.zeros((channels, BINS), np.int64)
        self.width: Array = np.zeros(channels)
        self.low: Array = np.full(channels, np.inf)
        self.high: Array = np.full(channels, -np.inf)
        self.average_low: Array = np.zeros(channels)
        self.average_high: Array = np.zeros(channels)
        self._batches = 0
        self.peaks: tuple[ChannelHistogram, ...] = ()
        if with_peaks:
            self.peaks = tuple(ChannelHistogram(channels, with_peaks=False) for _ in range(2))

    def add(self, values: NDArray[np.float32]) -> None:
        """Count a batch.

        Args:
            values: ``(n, C)`` or ``(n, C, H, W)``, finite.
        """
        flat = values.reshape(*values.shape[:2], -1)
        low, high = flat.min(axis=(0, 2)).astype(np.float64), flat.max(axis=(0, 2)).astype(np.float64)
        share = 1.0 if self._batches == 0 else _MOMENTUM
        self.average_low += share * (low - self.average_low)
        self.average_high += share * (high - self.average_high)
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        self._widen(np.maximum(-low, high))
        step = -(-flat.shape[2] // _PIXELS)
        self._count(flat[:, :, self._batches % step :: step])
        self._batches += 1
        for sign, peaks in zip((1, -1), self.peaks, strict=False):
            peaks.add((sign * flat).max(axis=2))

    def divided(self, scales: Array) -> "ChannelHistogram":
        """The histogram of the same values divided by a positive number a channel: exact, nothing is counted anew."""
        result = ChannelHistogram(len(self.width), with_peaks=False)
        result.peaks = tuple(peaks.divided(scales) for peaks in self.peaks)
        result.counts, result.width = self.counts, self.width / scales
        for name in ("low", "high", "average_low", "average_high"):
            setattr(result, name, getattr(self, name) / scales)
        result._batches = self._batches
        return result

    def stretched(self, factor: float) -> "ChannelHistogram":
        """The same, with extremes further out, for values that were seen too seldom to trust their extremes."""
        result = self.divided(np.ones(len(self.width)))
        result.low, result.high = np.minimum(self.low, self.low * factor), np.maximum(self.high, self.high * factor)
        return result

    def merged(self) -> "ChannelHistogram":
        """All channels as one, for a range of the whole tensor; without peaks, which channels don't share."""
        result = ChannelHistogram(1, with_peaks=False)
        result.low, result.high = self.low.min(keepdims=True), self.high.max(keepdims=True)
        result.average_low = self.average_low.min(keepdims=True)
        result.average_high = self.average_high.max(keepdims=True)
        result._batches = self._batches
        width = self.width.max(initial=0)
        result.width = np.array([width])
        if width > 0:
            centers = (np.arange(BINS) + 0.5 - BINS // 2) * self.width[:, None] / width
            bins = np.clip(np.floor(centers).astype(np.int64) + BINS // 2, 0, BINS - 1)
            result.counts = np.bincount(bins.ravel(), self.counts.ravel(), BINS).astype(np.int64)[None]
        else:
            result.counts = self.counts.sum(axis=0, keepdims=True)
        return result

    def centers(self) -> Array:
        """``(C, BINS)`` value in the middle of each bin."""
        middle: Array = (np.arange(BINS) + 0.5 - BINS // 2) * self.width[:, None]
        return middle

    def _widen(self, reach: Array) -> None:
        fresh = (self.width == 0) & (reach > _ZERO)
        # A little room, so that the largest value itself is inside.
        self.width[fresh] = reach[fresh] * 1.001 / (BINS // 2)
        if fresh.any():
            # What was counted so far were zeros, in the bin right of the middle: true for any width.
            self.counts[fresh] = np.where(np.arange(BINS) == BINS // 2, self.counts[fresh].sum(axis=1)[:, None], 0)
        while (small := reach >= self.width * (BINS // 2)).any() and (small := small & (self.width > 0)).any():
            pairs = self.counts[small].reshape(-1, BINS // 2, 2).sum(axis=2)
            self.counts[small] = np.pad(pairs, ((0, 0), (BINS // 4, BINS // 4)))
            self.width[small] *= 2

    def _count(self, values: NDArray[np.float32]) -> None:
        channels = values.shape[1]
        with np.errstate(divide="ignore"):
            factor = np.where(self.width > 0, 1 / self.width, 0).astype(np.float32)
        bins = np.floor(values * factor[:, None]).astype(np.int32)
        bins += BINS // 2 + BINS * np.arange(channels, dtype=np.int32)[:, None]
        self.counts += np.bincount(bins.ravel(), minlength=channels * BINS).reshape(channels, BINS)

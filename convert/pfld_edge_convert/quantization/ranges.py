"""Activation statistics and range estimation: histograms of every channel, and the grids that follow from them.

`estimate_range` implements the range methods; `Quantizer` finds the one with the least landmark deviation.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy

import numpy as np
import onnx

from pfld_edge_convert.errors import CalibrationError
from pfld_edge_convert.model_file import open_model
from pfld_edge_convert.passes.base import GraphIndex, with_outputs
from pfld_edge_convert.quantization.plan import LEVELS, Grid, clamp_bounds, fused_clamp, hard_swish_grid, shared_grids
from pfld_edge_runtime.arrays import BoolArray, Float32Array, Float64Array, Int64Array

BINS = 1024
"""Bins of a channel; half of them below zero."""

_PIXELS = 784
"""Largest number of pixels per face that are counted; extremes are those of all pixels."""

_MOMENTUM = 0.1
"""Weight of the newest batch in the moving average of extremes."""

_ZERO = 1e-30
"""Smaller values count as 0: they have no reciprocal in float32."""

_CHUNK = 16
"""Largest number of faces in one run, which bounds memory (some 8 MB per face for the PFLD family)."""

Ranges = tuple[Float64Array, Float64Array]
"""Lower and upper ends, ``(C,)`` each; the lower never above 0, the upper never below."""

ADDITION_PARTS = 255
"""A step of a summand is a multiple of one such part of a step of the sum. Odd, so that no sum lies halfway."""

_MARGIN = 2.0
"""Factor on the extremes of the given percentage of faces."""

_SHARES = np.geomspace(0.05, 1, 61)
"""Parts of the whole range that are tried as clipping points."""


def activations(
    model: onnx.ModelProto, names: Sequence[str], batches: Iterable[Float32Array]
) -> Iterator[dict[str, Float32Array]]:
    """Run a network and yield the named tensors, for chunks of at most 16 faces; `batches` are as it takes them."""
    if not names:
        return
    session = open_model(with_outputs(model, *names))
    source = session.get_inputs()[0].name
    for batch in batches:
        for start in range(0, len(batch), _CHUNK):
            found = session.run(list(names), {source: batch[start : start + _CHUNK]})
            yield dict(zip(names, found, strict=True))


def collect_histograms(
    model: onnx.ModelProto,
    names: Sequence[str],
    batches: Iterable[Float32Array],
    known: Mapping[str, "ChannelHistogram"] | None = None,
) -> dict[str, "ChannelHistogram"]:
    """Collect the histograms of some tensors, or continue known ones, over any number of faces.

    The batches are as the float network takes them. CalibrationError where there are no faces.
    """
    histograms = dict(known or {})
    for tensors in activations(model, names, batches):
        for name, values in tensors.items():
            if name not in histograms:
                histograms[name] = ChannelHistogram(values.shape[1])
            histograms[name].add(values)
    if not histograms and names:
        raise CalibrationError("no calibration faces: INT8 needs at least one, some 200 give steady ranges")
    return histograms


class ChannelHistogram:
    """Exact extremes and a histogram of each channel of a tensor.

    Bins are centred on zero and of equal width in a channel, 0 in one of zeros. A value outside doubles the width until
    it fits, which merges pairs of bins, so that the order of the batches does not matter. `counts` is ``(C, BINS)``,
    all else ``(C,)``; `peaks` are the histograms of each face's largest values, and of its negated smallest ones.
    """

    def __init__(self, channels: int, *, with_peaks: bool = True) -> None:
        self.counts = np.zeros((channels, BINS), np.int64)
        self.width: Float64Array = np.zeros(channels)
        self.low: Float64Array = np.full(channels, np.inf)
        self.high: Float64Array = np.full(channels, -np.inf)
        self.average_low: Float64Array = np.zeros(channels)
        self.average_high: Float64Array = np.zeros(channels)
        self._batches = 0
        self.peaks = tuple(ChannelHistogram(channels, with_peaks=False) for _ in range(2 if with_peaks else 0))

    def add(self, values: Float32Array) -> None:
        """Count a batch of finite values, ``(n, C)`` or ``(n, C, H, W)``."""
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

    def divided(self, scales: Float64Array) -> "ChannelHistogram":
        """The histogram of the values divided by a number per channel, not 0."""
        result, negative = copy(self), scales < 0
        result.counts = np.where(negative[:, None], self.counts[:, ::-1], self.counts)
        result.width = self.width / np.abs(scales)
        for low, high in (("low", "high"), ("average_low", "average_high")):
            ends = getattr(self, low) / scales, getattr(self, high) / scales
            setattr(result, low, np.minimum(*ends))
            setattr(result, high, np.maximum(*ends))
        pairs = zip(self.peaks, self.peaks[::-1], strict=True)
        result.peaks = tuple(own._with_rows(other, negative).divided(np.abs(scales)) for own, other in pairs)
        return result

    def _with_rows(self, other: "ChannelHistogram", rows: BoolArray) -> "ChannelHistogram":
        result = copy(self)
        result.counts = np.where(rows[:, None], other.counts, self.counts)
        for name in ("width", "low", "high", "average_low", "average_high"):
            setattr(result, name, np.where(rows, getattr(other, name), getattr(self, name)))
        return result

    def stretched(self, factor: float) -> "ChannelHistogram":
        """The histogram with extremes multiplied by a factor."""
        result = copy(self)
        result.low, result.high = np.minimum(self.low, self.low * factor), np.maximum(self.high, self.high * factor)
        return result

    def merged(self) -> "ChannelHistogram":
        """The histogram of all channels together, without peaks."""
        result, width = copy(self), self.width.max(initial=0)
        result.peaks, result.width = (), np.array([width])
        result.low, result.high = self.low.min(keepdims=True), self.high.max(keepdims=True)
        result.average_low = self.average_low.min(keepdims=True)
        result.average_high = self.average_high.max(keepdims=True)
        bins = np.clip(np.floor(self.centers() / (width or 1.0)).astype(np.int64) + BINS // 2, 0, BINS - 1)
        result.counts = np.bincount(bins.ravel(), self.counts.ravel(), BINS).astype(np.int64)[None]
        return result

    def centers(self) -> Float64Array:
        """``(C, BINS)`` value in the middle of each bin."""
        middle: Float64Array = (np.arange(BINS) + 0.5 - BINS // 2) * self.width[:, None]
        return middle

    def _widen(self, reach: Float64Array) -> None:
        fresh = (self.width == 0) & (reach > _ZERO)
        # A little room, so that the largest value itself is inside.
        self.width[fresh] = reach[fresh] * 1.001 / (BINS // 2)
        if fresh.any():
            # Only zeros were counted so far, which are in the bin right of the middle whatever the width.
            self.counts[fresh] = np.where(np.arange(BINS) == BINS // 2, self.counts[fresh].sum(axis=1)[:, None], 0)
        while (small := reach >= self.width * (BINS // 2)).any() and (small := small & (self.width > 0)).any():
            pairs = self.counts[small].reshape(-1, BINS // 2, 2).sum(axis=2)
            self.counts[small] = np.pad(pairs, ((0, 0), (BINS // 4, BINS // 4)))
            self.width[small] *= 2

    def _count(self, values: Float32Array) -> None:
        channels = values.shape[1]
        factor = np.divide(1, self.width, out=np.zeros_like(self.width), where=self.width > 0).astype(np.float32)
        bins = np.floor(values * factor[:, None]).astype(np.int32)
        bins += BINS // 2 + BINS * np.arange(channels, dtype=np.int32)[:, None]
        self.counts += np.bincount(bins.ravel(), minlength=channels * BINS).reshape(channels, BINS)


Histograms = Mapping[str, ChannelHistogram]


def estimate_range(histogram: ChannelHistogram, method: str) -> Ranges:
    """Estimate the range of each channel of a histogram with at least one batch; ValueError for an unknown method.

    ``minmax``: all values. ``moving-average``: of the batches' extremes, momentum 0.1. ``percentile:P``: P percent of
    the values. ``faces:P``: twice the extremes of P percent of the faces, without outliers; only for histograms with
    peaks. ``mse``: least mean squared error of clipping and rounding. ``entropy``: least Kullback-Leibler divergence
    of the quantized distribution (Migacz, 8-bit inference with TensorRT, GTC 2017).
    """
    name, _, argument = method.partition(":")
    if name not in RANGE_METHODS:
        raise ValueError(f"range method {method!r} is unknown; known are {', '.join(RANGE_METHODS)}")
    low, high = RANGE_METHODS[name](histogram, argument)
    # Bins are wider than the values in them: never beyond what was seen.
    return np.minimum(np.maximum(low, histogram.low), 0), np.maximum(np.minimum(high, histogram.high), 0)


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


def _quantile(histogram: ChannelHistogram, share: float) -> Float64Array:
    """``(C,)`` upper edge of the bin below which the share of the values lies."""
    enough = np.cumsum(histogram.counts, axis=1) >= share * histogram.counts.sum(axis=1, keepdims=True)
    edge = np.argmax(enough, axis=1) + 1 - BINS // 2
    result: Float64Array = np.minimum(edge * histogram.width, histogram.high)
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
    for row in np.flatnonzero(histogram.width > 0):
        counts, width = histogram.counts[row], histogram.width[row]
        divergences = [_divergence(counts, width, low[row] * share, high[row] * share) for share in _SHARES]
        best[row] = _SHARES[int(np.argmin(divergences))]
    return low * best, high * best


def _divergence(counts: Int64Array, width: float, low: float, high: float) -> float:
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
    "minmax": lambda histogram, _: (histogram.low, histogram.high),
    "moving-average": lambda histogram, _: (histogram.average_low, histogram.average_high),
    "percentile": _percentile,
    "faces": _faces,
    "mse": _mse,
    "entropy": _entropy,
}


def is_feature(index: GraphIndex, name: str) -> bool:
    """Whether a tensor is one number a channel and face: pooled, or behind the last map."""
    pooled = index.producers[name].op_type == "GlobalAveragePool" or index.shapes.get(name, ())[2:] == (1, 1)
    return pooled or index.rank(name) == 2


def channel_magnitudes(index: GraphIndex, histograms: Histograms, method: str) -> dict[str, Float64Array]:
    """Largest magnitude of each channel, by a range method, negative where it is of a negative value.

    These are the ranges that `EqualizeChannels` levels.
    """
    found = {}
    for name, histogram in histograms.items():
        # A mean has the channels of what it averages; their scales are decided there.
        if index.producers[name].op_type != "GlobalAveragePool":
            low, high = estimate_range(histogram, method)
            found[name] = np.copysign(np.maximum(np.maximum(-low, high), 1e-9), high + low)
    return found


def grids_from(index: GraphIndex, histograms: Histograms, method: str) -> dict[str, Grid]:
    """Give every tensor a grid, one for all tensors that are concatenated.

    Features that are one number a face always get all of their range: clipping them clips large poses. No range goes
    beyond the bounds of a Relu or Clip.
    """
    ends = {}
    for name, histogram in histograms.items():
        used = "minmax" if is_feature(index, name) else method
        low, high = estimate_range(histogram if used.startswith("faces") else histogram.merged(), used)
        least, most = clamp_bounds(index, index.producers[name]) or (-math.inf, math.inf)
        ends[name] = (max(float(low.min()), least), min(float(high.max()), most))
    for group in shared_grids(index):
        known = [ends[name] for name in group if name in ends]
        if known:
            common = (min(low for low, _ in known), max(high for _, high in known))
            ends.update({name: common for name in group if name in ends})
    grids = {name: Grid.covering(*pair) for name, pair in ends.items()}
    tied = {name for group in shared_grids(index) if len(ends.keys() & group) > 1 for name in group}
    for node in index.graph.node:
        source, output = node.input[0] if node.input else "", node.output[0]
        if node.op_type == "HardSwish" and source in ends and source not in tied:
            # What lies below -3 gives 0 as -3 does; only another reader needs it.
            least, most = ends[source]
            grids[source] = hard_swish_grid(-3.0 if index.only_consumer(source) is not None else least, most)
        elif node.op_type == "Sigmoid" and output in grids:
            # The grid that LiteRT's kernel demands.
            grids[output] = Grid(1 / 256, 0)
    return grids


def align_addition_scales(index: GraphIndex, grids: Mapping[str, Grid]) -> dict[str, Grid]:
    """Widen the grids of summands so that every processor rounds their sums alike.

    onnxruntime's QLinearAdd computes ``a * (scale_a / scale_y) + b * (scale_b / scale_y) + c`` in float32, with or
    without fused multiply-adds, and rounds halves to even or away from zero, depending on the processor. With ratios
    of ``p / 255`` every result is a multiple of 1/255, at least 1/510 away from a half, so that all agree. Scales grow
    by less than 1/255 of their sum's. Where two sums read a tensor, the later one counts.
    """
    result = dict(grids)
    groups = shared_grids(index)
    settled: set[str] = set()

    def together(name: str) -> list[str]:
        group = next((group for group in groups if name in group), [name])
        return [member for member in group if member in result]

    for node in reversed(index.graph.node):
        clamp = fused_clamp(index, node)
        made = (together(clamp.output[0]) if clamp else []) or together(node.output[0])
        if node.op_type != "Add" or not made:
            continue
        settled.update(made)
        unit = result[made[0]].scale / ADDITION_PARTS
        for name in node.input:
            summands = together(name)
            if not settled & {*summands}:
                result.update({member: _widened(result[member], unit) for member in summands})
                settled.update(summands)
    return result


def _widened(grid: Grid, unit: float) -> Grid:
    """The same range on the next wider scale that is a multiple of a unit."""
    scale = float(np.float32(math.ceil(grid.scale / unit) * unit))
    zero_point = round(grid.zero_point * grid.scale / scale)
    least, most = int(grid.zero_point > 0), LEVELS - int(grid.zero_point < LEVELS)
    return Grid(scale, min(max(zero_point, least), most))

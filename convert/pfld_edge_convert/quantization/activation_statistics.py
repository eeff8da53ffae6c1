"""Activation statistics: histograms of every channel, and second moments of layers' inputs, summed up over faces."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from pfld_edge_convert.errors import CalibrationError
from pfld_edge_convert.inference import open_model
from pfld_edge_convert.passes.graph_index import attribute, drop_unused

Array = NDArray[np.float64]
Batch = NDArray[np.float32]

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


def with_outputs(model: onnx.ModelProto, *tensors: str) -> onnx.ModelProto:
    """The part of a network that computes some tensors, which are its outputs."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    part.graph.ClearField("output")
    part.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in tensors)
    drop_unused(part)
    return part


def activations(model: onnx.ModelProto, names: Sequence[str], batches: Iterable[Batch]) -> Iterator[dict[str, Batch]]:
    """Run a network and yield the named tensors, for chunks of at most 16 faces.

    Args:
        model: Float or INT8; left as it is.
        names: Tensors that nodes of the graph make.
        batches: As the network takes them.
    """
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
    batches: Iterable[Batch],
    known: Mapping[str, "ChannelHistogram"] | None = None,
) -> dict[str, "ChannelHistogram"]:
    """Collect the histograms of some tensors over any number of faces.

    Args:
        model: Float; left as it is.
        names: The tensors.
        batches: As the network takes them.
        known: Histograms to continue.

    Raises:
        CalibrationError: No faces.
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

    Bins are centred on zero and of equal width in a channel. A value outside doubles the width until it fits, which
    merges pairs of bins, so that the order of the batches does not matter.

    Attributes:
        counts: ``(C, BINS)`` how many values fell in each bin.
        width: ``(C,)`` width of the bins; 0 for a channel of zeros.
        low: ``(C,)`` smallest values.
        high: ``(C,)`` largest values.
        average_low: ``(C,)`` moving average of the batches' smallest values.
        average_high: ``(C,)`` moving average of the batches' largest values.
        peaks: Histograms of each face's largest values, and of its negated smallest ones.
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
        """The histogram of the values divided by a positive number per channel."""
        result = ChannelHistogram(len(self.width), with_peaks=False)
        result.peaks = tuple(peaks.divided(scales) for peaks in self.peaks)
        result.counts, result.width = self.counts, self.width / scales
        for name in ("low", "high", "average_low", "average_high"):
            setattr(result, name, getattr(self, name) / scales)
        result._batches = self._batches
        return result

    def stretched(self, factor: float) -> "ChannelHistogram":
        """The histogram with extremes multiplied by a factor."""
        result = self.divided(np.ones(len(self.width)))
        result.low, result.high = np.minimum(self.low, self.low * factor), np.maximum(self.high, self.high * factor)
        return result

    def merged(self) -> "ChannelHistogram":
        """The histogram of all channels together, without peaks."""
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
            # Only zeros were counted so far, which are in the bin right of the middle whatever the width.
            self.counts[fresh] = np.where(np.arange(BINS) == BINS // 2, self.counts[fresh].sum(axis=1)[:, None], 0)
        while (small := reach >= self.width * (BINS // 2)).any() and (small := small & (self.width > 0)).any():
            pairs = self.counts[small].reshape(-1, BINS // 2, 2).sum(axis=2)
            self.counts[small] = np.pad(pairs, ((0, 0), (BINS // 4, BINS // 4)))
            self.width[small] *= 2

    def _count(self, values: NDArray[np.float32]) -> None:
        channels = values.shape[1]
        factor = np.divide(1, self.width, out=np.zeros_like(self.width), where=self.width > 0).astype(np.float32)
        bins = np.floor(values * factor[:, None]).astype(np.int32)
        bins += BINS // 2 + BINS * np.arange(channels, dtype=np.int32)[:, None]
        self.counts += np.bincount(bins.ravel(), minlength=channels * BINS).reshape(channels, BINS)


@dataclass(slots=True)
class Moments:
    """Sums over samples of a layer's inputs: x of the quantized network, f of the float network.

    For a depthwise convolution each array has a leading axis for the channel.

    Attributes:
        count: Samples.
        mean: ``(K,)`` sum of x.
        float_mean: ``(K,)`` sum of f.
        second: ``(K, K)`` sum of x times x.
    """

    count: int = 0
    mean: Array | float = 0.0
    float_mean: Array | float = 0.0
    second: Array | float = 0.0

    def add(self, found: Batch, wanted: Batch) -> None:
        """Add samples ``(..., n, K)`` of x and of f."""
        transposed = np.swapaxes(found, -1, -2)
        self.count += found.shape[-2]
        self.mean = self.mean + found.sum(axis=-2, dtype=np.float64)
        self.float_mean = self.float_mean + wanted.sum(axis=-2, dtype=np.float64)
        self.second = self.second + (transposed @ found).astype(np.float64)

    def centered(self) -> tuple[Array, Array, Array]:
        """Means of x and of f, and the covariance of x.

        The covariance is shrunk towards its diagonal by ``K / (K + count)``, since with few samples it is singular.
        """
        mean, wanted = np.asarray(self.mean) / self.count, np.asarray(self.float_mean) / self.count
        second = np.asarray(self.second) / self.count - mean[..., :, None] * mean[..., None, :]
        size = second.shape[-1]
        share = size / (size + self.count)
        return mean, wanted, second * np.where(np.eye(size) > 0, 1.0, 1 - share)


def input_patches(
    node: onnx.NodeProto, values: Batch, positions: int, random: np.random.Generator, *, depthwise: bool
) -> Batch:
    """Cut the input patches of some output positions of a layer (im2col).

    Args:
        node: A Conv or Gemm.
        values: ``(n, C, H, W)`` or ``(n, K)`` input of the node.
        positions: Output positions a face, at random.
        random: Equal generators give equal positions.
        depthwise: Whether the channels are convolved apart.

    Returns:
        ``(samples, K)``, channels fastest; for a depthwise convolution ``(C, samples, kh * kw)``.
    """
    if node.op_type == "Gemm":
        return values
    height, width = attribute(node, "kernel_shape")
    top, left, bottom, right = attribute(node, "pads", [0, 0, 0, 0])
    down, across = attribute(node, "strides", [1, 1])
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = sliding_window_view(padded, (height, width), axis=(2, 3))[:, :, ::down, ::across]
    count, _, rows, columns = windows.shape[:4]
    chosen = np.stack([random.permutation(rows * columns)[:positions] for _ in range(count)])
    faces = np.repeat(np.arange(count), chosen.shape[1])
    cut = windows[faces, :, chosen.ravel() // columns, chosen.ravel() % columns]
    if depthwise:
        return np.ascontiguousarray(cut.transpose(1, 0, 2, 3)).reshape(cut.shape[1], len(cut), -1)
    return np.ascontiguousarray(cut.transpose(0, 2, 3, 1)).reshape(len(cut), -1)

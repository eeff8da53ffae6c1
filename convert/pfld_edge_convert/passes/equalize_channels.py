"""Cross-layer equalization: one range for all channels of an activation, so that one 8-bit grid serves them all."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from pfld_edge_convert.passes.base import GraphPass
from pfld_edge_convert.passes.channel_map import ChannelMap, channel_weights, is_depthwise
from pfld_edge_convert.passes.graph_index import GraphIndex, is_spatial_mean

Array = NDArray[np.float64]

_LINEAR = frozenset(
    {"Relu", "LeakyRelu", "AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"}
    | {"Identity", "Concat", "Add", "Sub", "Flatten"}
)
"""Operators with f(s * x) = s * f(x) for s > 0 in every channel."""

_LARGEST_RATIO = 2.0**6
"""A channel that hardly moves is not blown up further than this against the widest of its tensor."""


class EqualizeChannels(GraphPass):
    """Divides each channel where it is computed and multiplies it where it is read.

    Nagel et al., Data-Free Quantization, arXiv 1906.04721, section 4.1, with two differences: ranges are those of
    activations on faces, not of weights, which have a scale per output channel anyway; and channels are followed
    through all operators, so that in ``Concat[x, DW(x)]`` x and DW(x) have factors of their own.

    Rewrite rules, s a positive number for each channel:
        - Conv or Gemm that makes a channel: its row and bias divided by s.
        - Conv or Gemm that reads it: its column multiplied by s; a depthwise Conv, its kernel.
        - Relu, LeakyRelu, pooling, Concat, Flatten pass s on; Add and Sub tie the channels that they sum.
        - Channels of the graph's signature and of any other operator keep s = 1.
    """

    name: ClassVar[str] = "equalize-channels"
    tolerance: ClassVar[float] = 1e-5

    def __init__(self, ranges: Mapping[str, Array], strength: float = 1.0) -> None:
        """Set the ranges.

        Args:
            ranges: For tensors as Conv, Relu or Add make them, ``(C,)`` largest magnitude of each channel.
            strength: 1 levels the ranges wholly; less leaves a part of the levelling to the weights that read them, as
                SmoothQuant does (Xiao et al., arXiv 2211.10438, section 4).
        """
        self._ranges = ranges
        self._strength = strength
        self.divisors: dict[str, Array] = {}

    def rewrite(self, model: onnx.ModelProto) -> str:
        """Edit the model in place, and leave in `divisors` what each activation's channels were divided by."""
        index = GraphIndex(model)
        channels = ChannelMap(index, depthwise_apart=True)
        fixed = channels.pinned | _nonlinear(index, channels)
        factors = self._factors(channels, fixed, _column_magnitudes(channels))
        if not factors:
            return ""
        divisors = {
            name: np.array([factors.get(int(number), 1.0) for number in channels.channels(name)])
            for name, ids in channels.ids.items()
            if len(ids)
        }
        count = sum(_scale(index, node, divisors) for node in model.graph.node)
        self.divisors = divisors
        return f"{len(factors)} channels, {count} layers"

    def _factors(self, channels: ChannelMap, fixed: set[int], columns: Mapping[int, float]) -> dict[int, float]:
        factors: dict[int, float] = {}
        for name, reach in self._ranges.items():
            if name not in channels.ids:
                continue
            numbers = [int(number) for number in channels.channels(name)]
            read = np.array([columns.get(number, 0.0) for number in numbers])
            read = np.where(read > 0, read, read.max() if read.max() > 0 else 1.0)
            wanted = np.maximum(reach, 1e-30) ** self._strength / read ** (1 - self._strength)
            # In shares of the tensor's own reach: an addition ties channels of tensors of different size.
            shares = np.maximum(wanted / wanted.max(), 1 / _LARGEST_RATIO)
            for number, share in zip(numbers, shares, strict=True):
                factors[number] = max(factors.get(number, 0.0), float(share))
        return {number: share for number, share in factors.items() if number not in fixed}


def _column_magnitudes(channels: ChannelMap) -> dict[int, float]:
    """Largest weight with which any Conv or Gemm reads each channel."""
    found: dict[int, float] = {}
    for node, weight, _ in channels.dense_layers():
        if node.input[0] not in channels.ids:
            continue
        sizes = np.abs(weight.reshape(*weight.shape[:2], -1)).max(axis=2)
        for number, size in zip(channels.channels(node.input[0]), sizes.max(axis=0), strict=True):
            found[int(number)] = max(found.get(int(number), 0.0), float(size))
    return found


def _nonlinear(index: GraphIndex, channels: ChannelMap) -> set[int]:
    """Channels that meet an operator which scaling would change."""
    found: set[int] = set()
    for node in index.graph.node:
        if not (node.op_type in _LINEAR or is_spatial_mean(index, node) or channel_weights(index, node)):
            for name in (*node.input, *node.output):
                if name in channels.ids:
                    found.update(map(int, channels.channels(name)))
    return found


def _scale(index: GraphIndex, node: onnx.NodeProto, divisors: Mapping[str, Array]) -> bool:
    """Scale one node's weights; False where it has none."""
    depthwise, weights = is_depthwise(index, node), channel_weights(index, node)
    if weights is None:
        return False
    weight, bias = (values.astype(np.float64) for values in weights)
    read, made = divisors.get(node.input[0]), divisors.get(node.output[0])
    extra = (1,) * (weight.ndim - 2)
    if read is not None:
        weight = weight * (read.reshape(-1, 1, *extra) if depthwise else read.reshape(1, -1, *extra))
    if made is not None:
        weight, bias = weight / made.reshape(-1, 1, *extra), bias / made
    index.set_weights(node, weight.astype(np.float32), bias.astype(np.float32))
    return True

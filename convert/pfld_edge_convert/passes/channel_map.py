"""Follows channels through a graph: which tensors share them, which must stay, which are constant.

Axis 1 of every activation holds the channels. A channel gets a number where it is computed; operators that treat
channels separately (Relu, pooling, depthwise convolution) keep it, Concat concatenates numbers, Flatten repeats each
over the pixels, and Add makes two numbers equal. Channels of one number are removed, padded and scaled together.
"""

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from pfld_edge_convert.passes.graph_index import GraphIndex, attribute, is_spatial_mean, spatially_unpadded

Ids = NDArray[np.int64]
Values = NDArray[np.float64]
Number = TypeVar("Number", np.int64, np.float64)

_CHANNELWISE = frozenset({"Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Elu", "Identity"})
_POOLS = frozenset({"AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"})


def is_depthwise(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """Whether a node is a convolution of each channel by itself, with constant weights."""
    weights = index.weights(node) if node.op_type == "Conv" else None
    return weights is not None and weights[0].shape[1] == 1 and attribute(node, "group", 1) == len(weights[0]) > 1


def is_dense(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """Whether a node is a Conv of one group or a plain Gemm, with constant weights: it mixes all channels."""
    if node.op_type not in ("Conv", "Gemm") or index.weights(node) is None:
        return False
    if node.op_type == "Conv":
        return bool(attribute(node, "group", 1) == 1)
    plain = (attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0), attribute(node, "transA", 0))
    return plain == (1.0, 1.0, 0) and index.rank(node.input[0]) == 2


def channel_weights(index: GraphIndex, node: onnx.NodeProto) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Weight, output channels first, and bias of a dense or depthwise layer; None of any other node."""
    return index.weights(node) if is_dense(index, node) or is_depthwise(index, node) else None


class ChannelMap:
    """The channels of every activation of a graph.

    Args:
        index: The graph.
        depthwise_apart: Give the output of a depthwise convolution numbers of its own. Its channels are not its
            input's, only as many: they can be scaled independently, but not removed or moved.

    Attributes:
        ids: For each activation, the number of the channel at each position of axis 1.
        pinned: Numbers that must stay: channels of the graph's signature and of operators not understood.
    """

    def __init__(self, index: GraphIndex, *, depthwise_apart: bool = False) -> None:
        self._index = index
        self._depthwise_apart = depthwise_apart
        self._parent: list[int] = []
        self.ids: dict[str, Ids] = {}
        self._pinned: set[int] = set()
        for value in index.graph.input:
            self._pin(value.name)
        for node in index.graph.node:
            self._visit(node)
        for value in index.graph.output:
            self._pin(value.name)

    def channels(self, name: str) -> Ids:
        """Present numbers of a tensor's channels, after every merge."""
        return np.array([self._find(number) for number in self.ids[name]], np.int64)

    @property
    def pinned(self) -> set[int]:
        """Numbers that must stay."""
        return {self._find(number) for number in self._pinned}

    def _find(self, number: int) -> int:
        while self._parent[number] != number:
            number = self._parent[number]
        return number

    def _fresh(self, count: int) -> Ids:
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def _pin(self, name: str) -> None:
        if name not in self.ids:
            shape = self._index.shapes.get(name, ())
            known = len(shape) > 1 and isinstance(shape[1], int)
            self.ids[name] = self._fresh(int(shape[1])) if known else self._fresh(0)
        self._pinned.update(map(int, self.ids[name]))

    def _visit(self, node: onnx.NodeProto) -> None:
        ids = None if node.op_type == "Constant" else self._passed_on(node)
        if ids is not None:
            self.ids[node.output[0]] = ids
            return
        weights = self._index.weights(node) if is_dense(self._index, node) else None
        if weights is not None and node.input[0] in self.ids:
            if len(self.ids[node.input[0]]) != weights[0].shape[1]:
                # Shape inference gave up, behind Shape -> Reshape for example: the weights know the channels.
                self.ids[node.input[0]] = self._fresh(weights[0].shape[1])
                self._pin(node.input[0])
            self.ids[node.output[0]] = self._fresh(len(weights[0]))
            return
        for name in node.input:
            if name in self.ids:
                self._pin(name)
        for name in node.output:
            self._pin(name)

    def _passed_on(self, node: onnx.NodeProto) -> Ids | None:
        """Numbers of the output of a node that keeps channels apart; None where it does not."""
        inputs = [self.ids[name] for name in node.input if name in self.ids]
        if not inputs or any(len(ids) == 0 for ids in inputs):
            return None
        if node.op_type in _CHANNELWISE or (node.op_type in _POOLS and len(node.output) == 1):
            return inputs[0]
        if is_spatial_mean(self._index, node):
            return inputs[0]
        if is_depthwise(self._index, node):
            return self._fresh(len(inputs[0])) if self._depthwise_apart else inputs[0]
        if node.op_type == "Concat" and len(inputs) == len(node.input) and self._joins_channels(node):
            return np.concatenate(inputs)
        if node.op_type in ("Add", "Mul", "Sub") and len(inputs) == len(node.input) and self._same_shapes(node):
            return self._merged(*inputs)
        return _flattened(self._index, node, inputs[0]) if node.op_type == "Flatten" else None

    def _joins_channels(self, node: onnx.NodeProto) -> bool:
        rank = self._index.rank(node.output[0])
        return rank > 1 and attribute(node, "axis", 0) % rank == 1

    def _same_shapes(self, node: onnx.NodeProto) -> bool:
        # Broadcasting would tie one channel to many. Batch sizes may be spelled differently, the rest may not.
        shapes = {self._index.shapes.get(name, ())[1:] for name in node.input}
        return len(shapes) == 1 and shapes != {()}

    def _merged(self, first: Ids, second: Ids) -> Ids:
        for one, other in zip(first, second, strict=True):
            self._parent[self._find(int(other))] = self._find(int(one))
        return first

    def dense_layers(self) -> Iterator[tuple[onnx.NodeProto, NDArray[Any], NDArray[Any]]]:
        """Nodes that mix channels, first to last, with their present weight and bias."""
        for node in self._index.graph.node:
            weights = self._index.weights(node) if node.input and is_dense(self._index, node) else None
            if weights is not None:
                yield node, *weights


def channel_constants(index: GraphIndex) -> dict[str, Values]:
    """Find the channels whose every pixel has one value that no input can change.

    Returns:
        For each activation that was understood, ``(C,)`` float64: the value, or NaN where the channel varies.
    """
    known: dict[str, Values] = {}
    for value in index.graph.input:
        shape = index.shapes.get(value.name, ())
        if len(shape) > 1 and isinstance(shape[1], int):
            known[value.name] = np.full(shape[1], np.nan)
    for node in index.graph.node:
        result = _constants_of(index, node, known)
        if result is not None:
            known[node.output[0]] = result
    return known


def _constants_of(index: GraphIndex, node: onnx.NodeProto, known: dict[str, Values]) -> Values | None:
    inputs = [known[name] for name in node.input if name in known]
    if node.op_type in ("Conv", "Gemm"):
        return _convolved(index, node, inputs[0] if inputs else None)
    if not inputs:
        return None
    match node.op_type:
        case "Relu":
            return np.maximum(inputs[0], 0)
        case "Identity" | "GlobalAveragePool" | "GlobalMaxPool":
            return inputs[0]
        case "AveragePool" | "MaxPool":
            return inputs[0] if spatially_unpadded(node) else np.where(inputs[0] == 0, 0, np.nan)
        case "ReduceMean":
            return inputs[0] if is_spatial_mean(index, node) else None
        case "Concat":
            rank = index.rank(node.output[0])
            joins = rank > 1 and attribute(node, "axis", 0) % rank == 1 and len(inputs) == len(node.input)
            return np.concatenate(inputs) if joins else None
        case "Flatten":
            return _flattened(index, node, inputs[0])
        case "Add":
            same = len(inputs) == 2 and inputs[0].shape == inputs[1].shape
            return inputs[0] + inputs[1] if same else None
    return None


def _flattened(index: GraphIndex, node: onnx.NodeProto, values: NDArray[Number]) -> NDArray[Number] | None:
    """Values of each channel, repeated for every column that Flatten makes of it."""
    shape = index.shapes.get(node.output[0], ())
    if attribute(node, "axis", 1) != 1 or len(shape) != 2 or not isinstance(shape[1], int):
        return None
    return np.repeat(values, shape[1] // len(values))


def _convolved(index: GraphIndex, node: onnx.NodeProto, values: Values | None) -> Values | None:
    """Constants of a Conv or Gemm's outputs: all that an output looks at must be constant, and zero under padding."""
    weights = channel_weights(index, node)
    if weights is None:
        return None
    gains = weights[0].astype(np.float64).reshape(*weights[0].shape[:2], -1)
    if values is None:
        values = np.full(len(gains) if is_depthwise(index, node) else gains.shape[1], np.nan)
    if node.op_type == "Conv" and not spatially_unpadded(node):
        values = np.where(values == 0, 0, np.nan)
    spread = values[:, None] if is_depthwise(index, node) else np.broadcast_to(values, gains.shape[:2])
    looked_at = (gains != 0).any(axis=2)
    # Where the weight is zero the input does not count, be it NaN.
    terms = np.where(looked_at, gains.sum(axis=2) * np.where(looked_at, spread, 0), 0)
    result: Values = terms.sum(axis=1) + weights[1]
    return result

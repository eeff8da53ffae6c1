"""Follows channels through a graph, and removes those that can't change the output.

Axis 1 of every activation holds the channels. A channel gets a number where it is computed; operators that treat
channels separately (Relu, pooling, depthwise convolution) keep it, Concat concatenates numbers, Flatten repeats each
over the pixels, and Add makes two numbers equal. Channels of one number are removed, padded and scaled together.
"""

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from pfld_edge_convert.passes.base import (
    GraphIndex,
    GraphPass,
    attribute,
    is_spatial_mean,
    set_attribute,
    spatially_unpadded,
)
from pfld_edge_runtime.arrays import Float64Array, Int64Array

Number = TypeVar("Number", np.int64, np.float64)
_CHANNELWISE = frozenset(
    {"Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Elu", "Identity", "Clip"}
)
_POOLS = frozenset({"AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"})

NEGLIGIBLE = 2.0**-24
"""Half a unit in the last place of a float32 next to 1: smaller terms are lost in rounding. Weight decay drives the
weights of dead channels to 1e-6 ... 1e-42, not to exact zero."""

Array = NDArray[Any]


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
    return index.rank(node.input[0]) == 2


def channel_weights(index: GraphIndex, node: onnx.NodeProto) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Weight, output channels first, and bias of a dense or depthwise layer; None of any other node."""
    return index.weights(node) if is_dense(index, node) or is_depthwise(index, node) else None


def pointwise_path(index: GraphIndex, name: str) -> list[str]:
    """A tensor and those that it is made from by operators that treat each value by itself; last what they begin with.

    Empty where one of them has another reader.
    """
    path = [name]
    while (node := index.producers.get(path[-1])) is not None and node.op_type in _CHANNELWISE:
        path.append(node.input[0])
    return path if all(index.only_consumer(step) is not None for step in path) else []


class ChannelMap:
    """The channels of every activation of a graph: in `ids` the number of the one at each position of axis 1.

    With `depthwise_apart` the output of a depthwise convolution has numbers of its own. Its channels are not its
    input's, only as many: they can be scaled independently, but not removed or moved.
    """

    def __init__(self, index: GraphIndex, *, depthwise_apart: bool = False) -> None:
        self._index = index
        self._depthwise_apart = depthwise_apart
        self._parent: list[int] = []
        self.ids: dict[str, Int64Array] = {}
        self._pinned: set[int] = set()
        for value in index.graph.input:
            self._pin(value.name)
        for node in index.graph.node:
            self._visit(node)
        for value in index.graph.output:
            self._pin(value.name)

    def channels(self, name: str) -> Int64Array:
        """Present numbers of a tensor's channels, after every merge."""
        return np.array([self._find(number) for number in self.ids[name]], np.int64)

    @property
    def pinned(self) -> set[int]:
        """Numbers that must stay: channels of the graph's signature and of operators not understood."""
        return {self._find(number) for number in self._pinned}

    def _find(self, number: int) -> int:
        while self._parent[number] != number:
            number = self._parent[number]
        return number

    def _fresh(self, count: int) -> Int64Array:
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

    def _passed_on(self, node: onnx.NodeProto) -> Int64Array | None:
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
        if node.op_type == "Concat" and len(inputs) == len(node.input) and _joins_channels(self._index, node):
            return np.concatenate(inputs)
        if node.op_type in ("Add", "Mul", "Sub") and len(inputs) == len(node.input) and self._same_shapes(node):
            return self._merged(*inputs)
        return _flattened(self._index, node, inputs[0]) if node.op_type == "Flatten" else None

    def _same_shapes(self, node: onnx.NodeProto) -> bool:
        # Broadcasting would tie one channel to many, unless it is over the pixels alone. Batch sizes may be spelled
        # differently, the rest may not.
        shapes = {self._index.shapes.get(name, ())[1:] for name in node.input}
        shapes = {shape for shape in shapes if shape[1:] != (1, 1)} or shapes
        channels = {self._index.shapes.get(name, ("?", "?"))[1:2] for name in node.input}
        return len(shapes) == 1 and shapes != {()} and len(channels) == 1

    def _merged(self, first: Int64Array, second: Int64Array) -> Int64Array:
        for one, other in zip(first, second, strict=True):
            self._parent[self._find(int(other))] = self._find(int(one))
        return first

    def dense_layers(self) -> Iterator[tuple[onnx.NodeProto, NDArray[Any], NDArray[Any]]]:
        """Nodes that mix channels, first to last, with their present weight and bias."""
        for node in self._index.graph.node:
            weights = self._index.weights(node) if node.input and is_dense(self._index, node) else None
            if weights is not None:
                yield node, *weights


def _joins_channels(index: GraphIndex, node: onnx.NodeProto) -> bool:
    rank = index.rank(node.output[0])
    return rank > 1 and attribute(node, "axis", 0) % rank == 1


def channel_constants(index: GraphIndex) -> dict[str, Float64Array]:
    """Values ``(C,)`` of each activation's channels whose every pixel no input can change; NaN of those that vary."""
    known: dict[str, Float64Array] = {}
    for value in index.graph.input:
        shape = index.shapes.get(value.name, ())
        if len(shape) > 1 and isinstance(shape[1], int):
            known[value.name] = np.full(shape[1], np.nan)
    for node in index.graph.node:
        result = _constants_of(index, node, known)
        if result is not None:
            known[node.output[0]] = result
    return known


def _constants_of(index: GraphIndex, node: onnx.NodeProto, known: dict[str, Float64Array]) -> Float64Array | None:
    inputs = [known[name] for name in node.input if name in known]
    if node.op_type in ("Conv", "Gemm"):
        return _convolved(index, node, inputs[0] if inputs else None)
    if not inputs:
        return None
    match node.op_type:
        case "Relu":
            return np.maximum(inputs[0], 0)
        case "Clip":
            ends = [index.constants.get(name) for name in node.input[1:] if name]
            known_ends = len(node.input) == 3 and len(ends) == 2 and all(end is not None for end in ends)
            return np.clip(inputs[0], *(end.item() for end in ends if end is not None)) if known_ends else None
        case "Identity" | "GlobalAveragePool" | "GlobalMaxPool":
            return inputs[0]
        case "AveragePool" | "MaxPool":
            return inputs[0] if spatially_unpadded(node) else np.where(inputs[0] == 0, 0, np.nan)
        case "ReduceMean":
            return inputs[0] if is_spatial_mean(index, node) else None
        case "Concat":
            return np.concatenate(inputs) if len(inputs) == len(node.input) and _joins_channels(index, node) else None
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


def _convolved(index: GraphIndex, node: onnx.NodeProto, values: Float64Array | None) -> Float64Array | None:
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
    result: Float64Array = terms.sum(axis=1) + weights[1]
    return result


class EliminateDeadChannels(GraphPass):
    """Removes every channel that is constant, or that no layer reads, with its weights.

    Rewrite rules, in this order:
        1. A row of a Conv or Gemm is zeroed where in every output of every consumer its term (sum of the row's
           absolute weights and bias, times the consumer's weight for it) is at most `NEGLIGIBLE` times the largest
           term that a row of the same node has there. Only where no depthwise convolution, addition or unknown
           operator lies between.
        2. Where an input channel of a Conv or Gemm has one constant value (rows of zeros, through Relu, pooling,
           Concat, Flatten, depthwise convolution, addition), the value times its weights goes into the bias and the
           weights become zero. A value other than zero only where the convolution has no padding: there it is exact.
        3. A channel that meets only zero weights is cut out of every node that makes or carries it: Conv, depthwise
           Conv, Gemm, Relu, pooling, Concat, Flatten, Add. Channels that an addition ties together go together.
        At least one channel of each tensor stays.
    """

    def _rewrite(self, model: onnx.ModelProto) -> str:
        before = _weight_count(model)
        index = GraphIndex(model)
        _zero_negligible_rows(index)
        _fold_constants(index)
        channels = ChannelMap(index)
        needed = _needed(channels)
        cut = [_cut(index, node, channels, needed) for node in model.graph.node]
        notes = [note for note in cut if note]
        if not notes:
            return ""
        after = _weight_count(model)
        return f"{', '.join(notes)}; {before} weights to {after}"


def _zero_negligible_rows(index: GraphIndex) -> None:
    """Apply rule 1 in place."""
    channels = ChannelMap(index)
    opaque = _opaque(index, channels)
    for node, weight, bias in channels.dense_layers():
        numbers = channels.channels(node.output[0])
        if opaque.intersection(map(int, numbers)):
            continue
        rows = np.abs(weight.reshape(len(weight), -1)).sum(axis=1, dtype=np.float64) + np.abs(bias)
        shares = _largest_shares(channels, dict(zip(map(int, numbers), rows, strict=True)))
        dead = (shares <= NEGLIGIBLE) & (rows > 0)
        if dead.any():
            rows_of = dead.reshape(-1, *[1] * (weight.ndim - 1))
            index.set_weights(node, np.where(rows_of, 0, weight), np.where(dead, 0, bias))


def _opaque(index: GraphIndex, channels: ChannelMap) -> set[int]:
    """Channels whose influence can't be read off the weights that compute and read them."""
    opaque = set(channels.pinned)
    for node in index.graph.node:
        known = node.input and node.input[0] in channels.ids
        if known and node.op_type in ("Add", "Mul", "Sub", "Conv") and not is_dense(index, node):
            opaque.update(map(int, channels.channels(node.input[0])))
    return opaque


def _largest_shares(channels: ChannelMap, gains: dict[int, float]) -> Array:
    """Weigh the channels of one node against each other as their consumers' outputs see them.

    For each channel of `gains` (how large each can be), its largest term in any consumer's output divided by the
    largest term that any of these channels has in the same output; 0 where no layer reads it.
    """
    shares = dict.fromkeys(gains, 0.0)
    for consumer, weight, _ in channels.dense_layers():
        numbers = [int(number) for number in channels.channels(consumer.input[0])]
        if gains.keys().isdisjoint(numbers):
            continue
        inputs = np.array([gains.get(number, 0.0) for number in numbers])
        terms = np.abs(weight.reshape(*weight.shape[:2], -1)).max(axis=2) * inputs
        largest = terms.max(axis=1, keepdims=True)
        relative = np.divide(terms, largest, out=np.zeros_like(terms), where=largest > 0).max(axis=0)
        for number, share in zip(numbers, relative, strict=True):
            if number in shares:
                shares[number] = max(shares[number], float(share))
    return np.array(list(shares.values()))


def _fold_constants(index: GraphIndex) -> None:
    """Apply rule 2 in place; first to last, since what is folded into one node may make its outputs constant."""
    values_of = channel_constants(index)
    for node in index.graph.node:
        if is_dense(index, node) and node.input[0] in values_of and _fold_into(index, node, values_of[node.input[0]]):
            values_of = channel_constants(index)


def _fold_into(index: GraphIndex, node: onnx.NodeProto, values: Array) -> bool:
    """Move a node's constant inputs (``values``; NaN where they vary) into its bias; False where there are none."""
    weights = index.weights(node)
    if weights is None:
        return False
    weight, bias = weights[0].copy(), weights[1].copy()
    exact = node.op_type == "Gemm" or spatially_unpadded(node)
    foldable = (values == 0) | (np.isfinite(values) & exact)
    if not (foldable & weight.any(axis=(0, *range(2, weight.ndim)))).any():
        return False
    columns = weight.reshape(*weight.shape[:2], -1).sum(axis=2, dtype=np.float64)
    bias = (bias + columns[:, foldable] @ values[foldable]).astype(bias.dtype)
    weight[:, foldable] = 0
    index.set_weights(node, weight, bias)
    return True


def _needed(channels: ChannelMap) -> set[int]:
    """Numbers of the channels that some needed row looks at; a least fixed point."""
    tensors = [channels.channels(name) for name, ids in channels.ids.items() if len(ids)]
    needed = channels.pinned
    while True:
        before = len(needed)
        for node, weight, _ in channels.dense_layers():
            rows = np.isin(channels.channels(node.output[0]), list(needed))
            looked_at = weight[rows].any(axis=(0, *range(2, weight.ndim)))
            needed.update(map(int, channels.channels(node.input[0])[looked_at]))
        if len(needed) == before:
            # A tensor without channels is no tensor: the first stays.
            needed.update(int(numbers[0]) for numbers in tensors if needed.isdisjoint(map(int, numbers)))
        if len(needed) == before:
            return needed


def _cut(index: GraphIndex, node: onnx.NodeProto, channels: ChannelMap, needed: set[int]) -> str:
    """Apply rule 3 to one node; describe what was removed."""
    dense, weights = is_dense(index, node), channel_weights(index, node)
    if weights is None or node.output[0] not in channels.ids or node.input[0] not in channels.ids:
        return ""
    weight, bias = weights
    rows = np.isin(channels.channels(node.output[0]), list(needed))
    columns = np.isin(channels.channels(node.input[0]), list(needed))
    if rows.all() and (columns.all() or not dense):
        return ""
    cut = weight[rows][:, columns] if dense else weight[rows]
    index.set_weights(node, cut, bias[rows])
    if not dense:
        set_attribute(node, "group", len(cut))
    gone = int((~rows).sum())
    return f"{gone} of {len(rows)} channels of {node.name or node.output[0]}" if gone else ""


def _weight_count(model: onnx.ModelProto) -> int:
    return sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)

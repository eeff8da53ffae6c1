"""Removes channels that can't change the output."""

from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from pfld_edge_convert.passes.base import GraphPass
from pfld_edge_convert.passes.channel_map import ChannelMap, channel_constants, channel_weights, is_dense
from pfld_edge_convert.passes.graph_index import GraphIndex, set_attribute, spatially_unpadded

NEGLIGIBLE = 2.0**-24
"""Half a unit in the last place of a float32 next to 1: smaller terms are lost in rounding. Weight decay drives the
weights of dead channels to 1e-6 ... 1e-42, not to exact zero."""

Array = NDArray[Any]


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

    name: ClassVar[str] = "eliminate-dead-channels"

    def rewrite(self, model: onnx.ModelProto) -> str:
        """Edit the model in place; return what was done."""
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

    Args:
        channels: Of the graph.
        gains: How large each channel can be, by its number, in one unit for all.

    Returns:
        For each channel, in the order of `gains`: its largest term in any consumer's output divided by the largest
        term that any of these channels has in the same output; 0 where no layer reads it.
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

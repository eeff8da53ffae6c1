"""Pads the channels of depthwise convolutions to the multiple that vector kernels take."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from pfld_edge_convert.passes.base import GraphPass
from pfld_edge_convert.passes.channel_map import ChannelMap, channel_weights, is_depthwise
from pfld_edge_convert.passes.graph_index import GraphIndex, set_attribute

Ids = NDArray[np.int64]

_VALUES_PER_BYTE = 4.0
"""Least number of output values per byte of added weights at which padding pays."""


class AlignChannels(GraphPass):
    """Adds channels of zeros to depthwise convolutions, up to a multiple that 8-bit kernels take.

    onnxruntime's fast 8-bit depthwise kernel takes multiples of 16 channels on x86 and of 8 on arm64; other numbers
    fall back to a kernel that is five times slower. Added channels are multiplied by zero.

    Rewrite rule: a depthwise Conv of C channels gets ``-C % multiple`` more behind its last channel, or behind an
    earlier one where that would misalign another depthwise Conv. Layers that compute that channel get rows of zeros,
    layers that read it columns of zeros; Concat, Add, Relu and pooling carry it. Not where the channel belongs to the
    graph's inputs or outputs, a Flatten over several pixels or an unknown operator, or where padding doesn't pay.
    """

    name: ClassVar[str] = "align-channels"

    def __init__(self, multiple: int = 16) -> None:
        """Set the number of channels that a kernel takes at a time."""
        self._multiple = multiple

    def rewrite(self, model: onnx.ModelProto) -> str:
        """Edit the model in place."""
        index = GraphIndex(model)
        channels = ChannelMap(index)
        numbers = {name: channels.channels(name) for name, ids in channels.ids.items() if len(ids)}
        fixed = channels.pinned | _over_pixels(index, numbers)
        pads: dict[int, int] = {}
        depthwise = [node for node in index.graph.node if is_depthwise(index, node) and node.input[0] in numbers]
        for node in depthwise:
            aligned = [numbers[other.input[0]] for other in depthwise]
            pads = self._widened(index, node, numbers, fixed, pads, [ids for ids in aligned if self._fits(ids, pads)])
        if not pads:
            return ""
        widened = sum(len(_layout(ids, pads)) > len(ids) for ids in (numbers[node.input[0]] for node in depthwise))
        before, after = (_weight_count(index, numbers, chosen) for chosen in ({}, pads))
        for node in index.graph.node:
            _pad(index, node, numbers, pads)
        return f"{widened} depthwise convolutions; {before} weights to {after}"

    def _fits(self, ids: Ids, pads: Mapping[int, int]) -> bool:
        return len(_layout(ids, pads)) % self._multiple == 0

    def _widened(
        self,
        index: GraphIndex,
        node: onnx.NodeProto,
        numbers: Mapping[str, Ids],
        fixed: set[int],
        pads: Mapping[int, int],
        aligned: Sequence[Ids],
    ) -> dict[int, int]:
        """Give the padding that suits this node too and leaves aligned what is, or `pads` if none pays."""
        ids = numbers[node.input[0]]
        if self._fits(ids, pads):
            return dict(pads)
        for last in dict.fromkeys(map(int, ids[::-1])):
            wider = dict(pads)
            while last not in fixed and wider.get(last, 0) < pads.get(last, 0) + self._multiple:
                wider[last] = wider.get(last, 0) + 1
                if all(self._fits(others, wider) for others in (ids, *aligned)):
                    values = int(np.prod([size for size in index.shapes[node.output[0]][1:] if isinstance(size, int)]))
                    added = _weight_count(index, numbers, wider) - _weight_count(index, numbers, pads)
                    return wider if values >= _VALUES_PER_BYTE * added else dict(pads)
        return dict(pads)


def _over_pixels(index: GraphIndex, numbers: Mapping[str, Ids]) -> set[int]:
    """Channels that a Flatten spreads over several columns."""
    found: set[int] = set()
    for node in index.graph.node:
        if node.op_type == "Flatten" and len(numbers.get(node.output[0], ())) != len(numbers.get(node.input[0], ())):
            found.update(map(int, numbers.get(node.output[0], ())))
    return found


def _layout(ids: Ids, pads: Mapping[int, int]) -> Ids:
    """Where each position of a padded tensor comes from; -1 for padding."""
    result: list[int] = []
    for position, number in enumerate(map(int, ids)):
        result += [position] + [-1] * pads.get(number, 0)
    return np.array(result)


def _weight_count(index: GraphIndex, numbers: Mapping[str, Ids], pads: Mapping[int, int]) -> int:
    count = 0
    for node in index.graph.node:
        weights = channel_weights(index, node)
        if weights is not None:
            rows, columns = _layouts(index, node, weights[0], numbers, pads)
            count += len(rows) * len(columns) * int(np.prod(weights[0].shape[2:]))
    return count


def _layouts(
    index: GraphIndex,
    node: onnx.NodeProto,
    weight: NDArray[np.generic],
    numbers: Mapping[str, Ids],
    pads: Mapping[int, int],
) -> tuple[Ids, Ids]:
    """Layouts of a weight's rows and columns."""
    made, read = numbers.get(node.output[0]), numbers.get(node.input[0])
    rows = np.arange(weight.shape[0]) if made is None else _layout(made, pads)
    whole = read is None or is_depthwise(index, node)
    return rows, np.arange(weight.shape[1]) if whole or read is None else _layout(read, pads)


def _pad(index: GraphIndex, node: onnx.NodeProto, numbers: Mapping[str, Ids], pads: Mapping[int, int]) -> None:
    weights = channel_weights(index, node)
    if weights is None:
        return
    weight, bias = weights
    depthwise = is_depthwise(index, node)
    rows, columns = _layouts(index, node, weight, numbers, pads)
    if len(rows) == weight.shape[0] and len(columns) == weight.shape[1]:
        return
    wider = np.zeros((len(rows), len(columns), *weight.shape[2:]), weight.dtype)
    wider[np.ix_(rows >= 0, columns >= 0)] = weight
    offsets = np.zeros(len(rows), bias.dtype)
    offsets[rows >= 0] = bias
    index.set_weights(node, wider, offsets)
    if depthwise:
        set_attribute(node, "group", len(rows))

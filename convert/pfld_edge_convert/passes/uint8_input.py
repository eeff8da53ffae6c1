"""uint8 images as input: normalization folded into the first layers, and a stem that reads four pixels at a time."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from pfld_edge_convert.passes.base import GraphPass
from pfld_edge_convert.passes.channel_map import is_dense
from pfld_edge_convert.passes.graph_index import GraphIndex, attribute

Int8 = NDArray[np.int8]

CENTER = 128
"""Zero point of the uint8 input."""


class FoldNormalization(GraphPass):
    """Folds ``(pixel - mean) / scale`` into the first convolutions, so that the input is ``pixel - 128``.

    Rewrite rule, for every Conv that reads the graph's input, where nothing else reads it:
        - ``Conv((p - mean) / scale, w, b)`` becomes ``Conv(p - 128, w / scale, b + sum(w * (128 - mean) / scale))``.

    Exact inside the picture. Where the convolution pads, its zeros were the grey level `mean` and become 128: for the
    usual mean of 127.5 half a grey level, in the outermost row of taps.

    The pass changes what the input means, so that `run_passes` can't compare outputs; `applies` says whether the rule
    fits, and its test compares on translated inputs.
    """

    name: ClassVar[str] = "fold-normalization"

    def __init__(self, mean: Sequence[float], scale: Sequence[float]) -> None:
        """Set the normalization.

        Args:
            mean: Three grey levels in the network's channel order.
            scale: Three divisors.
        """
        self._mean, self._scale = np.asarray(mean, np.float64), np.asarray(scale, np.float64)

    def applies(self, model: onnx.ModelProto) -> bool:
        """Whether only convolutions of one group read the input."""
        index = GraphIndex(model)
        readers = index.consumers[model.graph.input[0].name]
        return bool(readers) and all(node.op_type == "Conv" and is_dense(index, node) for node in readers)

    def rewrite(self, model: onnx.ModelProto) -> str:
        """Edit the model in place."""
        if not self.applies(model):
            return ""
        index = GraphIndex(model)
        readers = index.consumers[model.graph.input[0].name]
        for node in readers:
            weights = index.weights(node)
            if weights is not None:
                weight, bias = (values.astype(np.float64) for values in weights)
                weight = weight / self._scale.reshape(1, -1, 1, 1)
                shift = (weight.sum(axis=(2, 3)) * (CENTER - self._mean)).sum(axis=1)
                index.set_weights(node, weight.astype(np.float32), (bias + shift).astype(np.float32))
        return f"{len(readers)} convolutions read pixels"


class SpaceToDepthStem(GraphPass):
    """Moves four neighbouring pixels of a row into twelve channels, for the first convolution (space to depth).

    onnxruntime's 8-bit convolutions are slow for input channels that are no multiple of four. Four pixels in
    channels-last order are twelve channels in the same memory, of which one position gives two neighbouring outputs.
    Every output has the same bits, at 2.7 times the multiplications.

    Rewrite rule, for an input ``(n, H, W, 3)`` uint8 with H even and W a multiple of four:
        - ``QLinearConv(Transpose(x), w)`` with a 3x3 kernel, strides of 2 and one pixel of padding all around, M
          outputs, becomes ``Reshape(QLinearConv(Transpose(Reshape(x)), w'))`` with a 3x2 kernel, strides of (2, 1) and
          2 M outputs. The Transpose nodes that stand in between cancel out when onnxruntime lays the graph out.
    """

    name: ClassVar[str] = "space-to-depth-stem"
    tolerance: ClassVar[float] = 0.0

    def rewrite(self, model: onnx.ModelProto) -> str:
        """Edit the model in place."""
        index = GraphIndex(model)
        source = model.graph.input[0].name
        transpose = index.only_consumer(source)
        if transpose is None or transpose.op_type != "Transpose" or list(attribute(transpose, "perm")) != [0, 3, 1, 2]:
            return ""
        node = index.only_consumer(transpose.output[0])
        shape = index.shapes[source]
        if node is None or not _fits(index, node, shape):
            return ""
        height, width = (int(size) for size in shape[1:3])
        _replace(index, transpose, node, height, width)
        model.graph.ClearField("value_info")
        return f"{width // 4} groups of four pixels a row"


def _fits(index: GraphIndex, node: onnx.NodeProto, shape: tuple[int | str, ...]) -> bool:
    if node.op_type != "QLinearConv" or len(node.input) < 9 or len(shape) != 4 or shape[3] != 3:
        return False
    sizes = [size for size in shape[1:3] if isinstance(size, int)]
    weight, zero = index.constants.get(node.input[3]), index.constants.get(node.input[5])
    geometry = (
        list(attribute(node, "kernel_shape", [])),
        list(attribute(node, "strides", [])),
        list(attribute(node, "pads", [])),
        list(attribute(node, "dilations", [1, 1])),
        attribute(node, "group", 1),
    )
    return (
        weight is not None
        # The taps that are added are zeros.
        and zero is not None
        and zero.ndim == 0
        and not zero.any()
        and len(sizes) == 2
        and sizes[0] % 2 == 0
        and sizes[1] % 4 == 0
        and geometry == ([3, 3], [2, 2], [1, 1, 1, 1], [1, 1], 1)
    )


def _replace(index: GraphIndex, transpose: onnx.NodeProto, node: onnx.NodeProto, height: int, width: int) -> None:
    source, result = transpose.input[0], node.output[0]
    outputs = len(index.constants[node.input[3]])
    grouped = index.add_constant("pixels_grouped", np.array([0, height, width // 4, 12], np.int64))
    apart = index.add_constant("pixels_apart", np.array([0, height // 2, width // 2, outputs], np.int64))
    inputs = list(node.input)
    inputs[0] = f"{source}_fours_nchw"
    inputs[3] = index.add_constant(f"{inputs[3]}4", _weights_of_two(index.constants[inputs[3]]))
    for position in (4, 8):
        value = index.constants[inputs[position]]
        if value.ndim == 1 and len(value) == outputs:
            inputs[position] = index.add_constant(f"{inputs[position]}4", np.concatenate([value, value]))
    names = [f"{source}_fours", f"{result}_pairs", f"{result}_pairs_nhwc", f"{result}_nhwc"]
    convolution = helper.make_node(
        "QLinearConv", inputs, [names[1]], kernel_shape=[3, 2], strides=[2, 1], pads=[1, 1, 1, 0], dilations=[1, 1]
    )
    nodes = [
        helper.make_node("Reshape", [source, grouped], [names[0]]),
        helper.make_node("Transpose", [names[0]], [inputs[0]], perm=[0, 3, 1, 2]),
        convolution,
        helper.make_node("Transpose", [names[1]], [names[2]], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", [names[2], apart], [names[3]]),
        helper.make_node("Transpose", [names[3]], [result], perm=[0, 3, 1, 2]),
    ]
    graph = index.graph
    position = list(graph.node).index(transpose)
    graph.node.remove(transpose)
    graph.node.remove(node)
    for offset, made in enumerate(nodes):
        graph.node.insert(position + offset, made)


def _weights_of_two(weight: Int8) -> Int8:
    """``(2 M, 12, 3, 2)``: kernels of the left and of the right one of two neighbouring outputs.

    A group holds pixels 4 g ... 4 g + 3. The left output looks at pixels -1, 0 and 1 of its group, the right one at 1,
    2 and 3; pixel -1 is the last of the group before.
    """
    outputs = len(weight)
    result = np.zeros((2, outputs, 4, 3, 3, 2), np.int8)
    for half in range(2):
        for tap in range(3):
            pixel = 2 * half + tap - 1
            result[half, :, pixel % 4, :, :, 0 if pixel < 0 else 1] = weight[:, :, :, tap]
    return result.reshape(2 * outputs, 12, 3, 2)

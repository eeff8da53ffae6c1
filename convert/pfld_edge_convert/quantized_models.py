"""Reads quantized models as if they were float, so that both are counted and compared alike.

`float_equivalent` replaces quantized operators by the float ones whose shapes are the same; `layer_weights` gives the
weights of every layer as real numbers, whatever the file stores them in.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pfld_edge_convert.passes.graph_index import GraphIndex, attribute

__all__ = ["LayerWeights", "float_equivalent", "layer_weights"]

Float = NDArray[np.float64]

# How each quantized operator of onnxruntime and of QOperator files reads as a float one: its name, and which of its
# inputs are tensors (the others are scales and zero points). None: every third from the third on.
_FLOAT_OPERATORS: dict[str, tuple[str, tuple[int, ...] | None]] = {
    "QLinearConv": ("Conv", (0, 3, 8)),
    "QLinearMatMul": ("MatMul", (0, 3)),
    "QGemm": ("Gemm", (0, 3, 6)),
    "ConvInteger": ("Conv", (0, 1)),
    "MatMulInteger": ("MatMul", (0, 1)),
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearMul": ("Mul", (0, 3)),
    "QLinearConcat": ("Concat", None),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "QLinearReduceMean": ("ReduceMean", (0,)),
    "QLinearLeakyRelu": ("LeakyRelu", (0,)),
    "QLinearSigmoid": ("Sigmoid", (0,)),
    "QuantizeLinear": ("Identity", (0,)),
    "DequantizeLinear": ("Identity", (0,)),
    "FusedConv": ("Conv", (0, 1, 2)),
    "FusedGemm": ("Gemm", (0, 1, 2)),
}


def float_equivalent(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model with every quantized operator replaced by the float one whose shapes are the same.

    Node i of the copy stands for node i of the model.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.op_type not in _FLOAT_OPERATORS:
            continue
        node_type, positions = _FLOAT_OPERATORS[node.op_type]
        chosen = range(2, len(node.input), 3) if positions is None else positions
        inputs = [node.input[position] for position in chosen if position < len(node.input)]
        if node_type == "Identity":
            del node.attribute[:]
        node.op_type, node.domain = node_type, ""
        del node.input[:]
        node.input.extend(inputs)
    return copy


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """A convolution or product of matrices with constant weights.

    Attributes:
        name: The node's name, or that of its output.
        kind: ``Conv``, ``Gemm``, ``MatMul`` or ``ConvTranspose``, also of their quantized forms.
        integer: Whether the file stores 8-bit weights.
        weight: Real numbers, output channels first for Conv and Gemm.
    """

    name: str
    kind: str
    integer: bool
    weight: Float


def layer_weights(model: onnx.ModelProto) -> list[LayerWeights]:
    """Read all layers with constant weights, first to last."""
    index = GraphIndex(model)
    found = []
    for node in model.graph.node:
        reader = _READERS.get(node.op_type)
        weight = reader(index, node) if reader else None
        if weight is not None:
            kind = _KINDS.get(node.op_type, node.op_type)
            found.append(LayerWeights(node.name or node.output[0], kind, weight[1], weight[0]))
    return found


def _float(index: GraphIndex, node: onnx.NodeProto) -> tuple[Float, bool] | None:
    weight = _constant(index, node, 1)
    if weight is None:
        return _dequantized(index, node)
    return _outputs_first(node, weight.astype(np.float64)), False


def _dequantized(index: GraphIndex, node: onnx.NodeProto) -> tuple[Float, bool] | None:
    """Of a QDQ file: the weight comes from a DequantizeLinear of a constant."""
    producer = index.producers.get(node.input[1])
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    weight = _real(index, producer, 0, int(attribute(producer, "axis", 1)))
    return None if weight is None else (_outputs_first(node, weight), True)


def _quantized(index: GraphIndex, node: onnx.NodeProto) -> tuple[Float, bool] | None:
    axis = 0 if node.op_type == "QLinearConv" or attribute(node, "transB", 0) else 1
    weight = _real(index, node, 3, axis)
    return None if weight is None else (_outputs_first(node, weight), True)


def _real(index: GraphIndex, node: onnx.NodeProto, place: int, axis: int) -> Float | None:
    """Scale integers, of which ``place`` is the input, then their scale and zero point, by channel or all alike."""
    stored, scale, zero = (_constant(index, node, place + step) for step in range(3))
    if stored is None or scale is None:
        return None
    shape = [1] * stored.ndim
    if scale.size > 1:
        shape[axis] = scale.size
    offset = np.zeros(1) if zero is None else zero.astype(np.float64)
    offset = offset.reshape(shape) if offset.size > 1 else offset.reshape(-1)
    real: Float = (stored.astype(np.float64) - offset) * scale.astype(np.float64).reshape(shape)
    return real


def _outputs_first(node: onnx.NodeProto, weight: Float) -> Float:
    is_gemm = node.op_type in ("Gemm", "FusedGemm", "QGemm")
    return weight.T if is_gemm and not attribute(node, "transB", 0) else weight


def _constant(index: GraphIndex, node: onnx.NodeProto, place: int) -> NDArray[Any] | None:
    return index.constants.get(node.input[place]) if place < len(node.input) else None


_KINDS = {
    "QLinearConv": "Conv",
    "FusedConv": "Conv",
    "QGemm": "Gemm",
    "FusedGemm": "Gemm",
    "QLinearMatMul": "MatMul",
}
_READERS: Mapping[str, Callable[[GraphIndex, onnx.NodeProto], tuple[Float, bool] | None]] = {
    **dict.fromkeys(("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "ConvTranspose"), _float),
    **dict.fromkeys(("QLinearConv", "QGemm", "QLinearMatMul"), _quantized),
}

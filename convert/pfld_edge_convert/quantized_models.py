"""Reads quantized models as if they were float, so that both are counted and compared alike.

`float_equivalent` replaces quantized operators by the float ones whose shapes are the same; `layer_weights` gives the
weights of every layer as real numbers, whatever the file stores them in.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from pfld_edge_convert.passes.base import GraphIndex, attribute

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
        kind, places = _FLOAT_OPERATORS.get(node.op_type, (node.op_type, (0, 1)))
        if kind not in ("Conv", "Gemm", "MatMul", "ConvTranspose") or places is None or "Integer" in node.op_type:
            continue
        weight = _constant_weight(index, node, places[1], transposed=kind == "Gemm")
        if weight is not None:
            found.append(LayerWeights(node.name or node.output[0], kind, weight[1], weight[0]))
    return found


def _constant_weight(
    index: GraphIndex, node: onnx.NodeProto, place: int, *, transposed: bool
) -> tuple[Float, bool] | None:
    """A layer's real weight, output channels first, and whether it is stored in 8 bits; None where not constant."""
    by_columns = not attribute(node, "transB", 0)
    stored, integer = index.constants.get(node.input[place]), place > 1
    producer = index.producers.get(node.input[place])
    if integer:
        real = _dequantized(index, node, place, int(node.op_type != "QLinearConv" and by_columns))
    elif stored is not None:
        real = stored.astype(np.float64)
    elif producer is not None and producer.op_type == "DequantizeLinear":
        real, integer = _dequantized(index, producer, 0, int(attribute(producer, "axis", 1))), True
    else:
        return None
    return None if real is None else (real.T if transposed and by_columns else real, integer)


def _dequantized(index: GraphIndex, node: onnx.NodeProto, place: int, axis: int) -> Float | None:
    """Real values of integers that are input `place`, followed by their scale and zero point, per channel or not."""
    names = [*node.input[place : place + 3], "", ""][:3]
    stored, scale, zero = (index.constants.get(name) for name in names)
    if stored is None or scale is None:
        return None
    shape = [-1 if place == axis else 1 for place in range(stored.ndim)] if scale.size > 1 else [1] * stored.ndim
    offset = np.zeros(scale.shape) if zero is None else zero.astype(np.float64)
    real: Float = (stored - offset.reshape(shape)) * scale.astype(np.float64).reshape(shape)
    return real

"""Counts multiply-accumulates and parameters layer by layer, and reads weights, of float and quantized networks alike.

`float_equivalent` replaces quantized operators by the float ones whose shapes are the same; `layer_weights` gives the
weights of every layer as real numbers, whatever the file stores them in.
"""

from dataclasses import dataclass

import numpy as np
import onnx

from pfld_edge_convert.model_file import copied
from pfld_edge_convert.passes.base import Dims, GraphIndex, attribute
from pfld_edge_runtime.arrays import Float64Array

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
    copy = copied(model)
    for node in copy.graph.node:
        if node.op_type not in _FLOAT_OPERATORS:
            continue
        node_type, positions = _FLOAT_OPERATORS[node.op_type]
        chosen = range(2, len(node.input), 3) if positions is None else positions
        inputs = [node.input[position] for position in chosen if position < len(node.input)]
        if node_type == "Identity":
            del node.attribute[:]
        node.op_type, node.domain, node.input[:] = node_type, "", inputs
    return copy


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """A convolution or product of matrices with constant weights."""

    name: str  # the node's name, or that of its output
    kind: str  # Conv, Gemm, MatMul or ConvTranspose, also of their quantized forms
    integer: bool  # whether the file stores 8-bit weights
    weight: Float64Array  # real numbers, output channels first for Conv and Gemm


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
) -> tuple[Float64Array, bool] | None:
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


def _dequantized(index: GraphIndex, node: onnx.NodeProto, place: int, axis: int) -> Float64Array | None:
    """Real values of integers that are input `place`, followed by their scale and zero point, per channel or not."""
    names = [*node.input[place : place + 3], "", ""][:3]
    stored, scale, zero = (index.constants.get(name) for name in names)
    if stored is None or scale is None:
        return None
    shape = [-1 if place == axis else 1 for place in range(stored.ndim)] if scale.size > 1 else [1] * stored.ndim
    offset = np.zeros(scale.shape) if zero is None else zero.astype(np.float64)
    real: Float64Array = (stored - offset.reshape(shape)) * scale.astype(np.float64).reshape(shape)
    return real


_COUNTED = frozenset({"Conv", "Gemm", "MatMul", "ConvTranspose"})


@dataclass(frozen=True, slots=True)
class LayerStats:
    """One node of a network, by its name or that of its output, with the operator as the file has it."""

    name: str
    op_type: str
    output_shape: Dims  # of its first output, the batch by name; empty where unknown
    macs: int  # multiply-accumulates for one face, of Conv, Gemm and MatMul, quantized or not
    parameters: int  # elements of its constant weights and biases, without scales and zero points


@dataclass(frozen=True, slots=True)
class ModelStats:
    """Cost of a network for one face: every node in order, ``Constant`` aside; shared parameters count once."""

    layers: tuple[LayerStats, ...]
    macs: int
    parameters: int

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return len(self.layers)


def model_stats(model: onnx.ModelProto) -> ModelStats:
    """Count by shape inference a float, QOperator or QDQ network; where shapes are unknown, what is known counts."""
    twin = float_equivalent(model)
    index, origin = GraphIndex(twin), _weight_origins(twin)
    layers: list[LayerStats] = []
    seen: set[tuple[str, int]] = set()
    for node, original in zip(twin.graph.node, model.graph.node, strict=True):
        if node.op_type == "Constant":
            continue
        weights = _weight_sizes(index, node, origin)
        name, shape = original.name or original.output[0], index.shapes.get(node.output[0], ())
        macs, parameters = _macs(index, node, shape), sum(weights.values())
        layers.append(LayerStats(name, original.op_type, shape, macs, parameters))
        seen.update(weights.items())
    return ModelStats(tuple(layers), sum(layer.macs for layer in layers), sum(size for _, size in seen))


def _weight_origins(twin: onnx.ModelProto) -> dict[str, tuple[str, int]]:
    """Initializer and element count of each constant, dequantized and widened ones included."""
    origins = {tensor.name: (tensor.name, int(np.prod(tensor.dims))) for tensor in twin.graph.initializer}
    for node in twin.graph.node:
        if node.op_type in ("Cast", "Identity") and node.input[0] in origins:
            origins[node.output[0]] = origins[node.input[0]]
    return origins


def _weight_sizes(index: GraphIndex, node: onnx.NodeProto, origins: dict[str, tuple[str, int]]) -> dict[str, int]:
    takes_weights = node.op_type in _COUNTED or node.op_type in ("BatchNormalization", "PRelu")
    is_arithmetic = node.op_type in ("Add", "Mul", "Sub", "Div")
    if not (takes_weights or (is_arithmetic and index.rank(node.output[0]) > 1)):
        return {}
    names = node.input if is_arithmetic else node.input[1:]
    return dict(origins[name] for name in names if name in origins)


def _macs(index: GraphIndex, node: onnx.NodeProto, output: Dims) -> int:
    """Multiply-accumulates of one face: output values of one face times what each sums over."""
    if node.op_type not in _COUNTED:
        return 0
    source, summed = index.shapes.get(node.input[0], ()), index.shapes.get(node.input[1], ())[1:]
    per_face = output[1:] if node.op_type != "ConvTranspose" else source[1:]
    if node.op_type == "Gemm":
        summed = source[:1] if attribute(node, "transA", 0) else source[1:2]
    elif node.op_type == "MatMul":
        summed = source[-1:]
    sizes = [*per_face, *summed]
    if not per_face or not summed or any(isinstance(size, str) for size in sizes):
        return 0
    return int(np.prod([int(size) for size in sizes], dtype=np.int64))

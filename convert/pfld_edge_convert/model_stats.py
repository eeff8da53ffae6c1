"""Counts multiply-accumulates, parameters and nodes of a network, layer by layer."""

from dataclasses import dataclass

import numpy as np
import onnx

from pfld_edge_convert.passes.base import Dims, GraphIndex, attribute
from pfld_edge_convert.quantized_models import float_equivalent

_COUNTED = frozenset({"Conv", "Gemm", "MatMul", "ConvTranspose"})


@dataclass(frozen=True, slots=True)
class LayerStats:
    """One node of a network, by its name or that of its output, with the operator as the file has it.

    Attributes:
        output_shape: Shape of its first output, the batch by name; empty where unknown.
        macs: Multiply-accumulates for one face; only Conv, Gemm and MatMul (quantized or not) are counted.
        parameters: Elements of its constant weights and biases; scales and zero points don't count.
    """

    name: str
    op_type: str
    output_shape: Dims
    macs: int
    parameters: int


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
    """Initializer and element count of each constant, dequantized ones included."""
    origins = {tensor.name: (tensor.name, int(np.prod(tensor.dims))) for tensor in twin.graph.initializer}
    for node in twin.graph.node:
        if node.op_type == "Identity" and node.input[0] in origins:
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

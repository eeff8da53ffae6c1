"""The steps of a quantized network: which nodes of a plan's float graph compute in integers, and how."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto

import onnx

from pfld_edge_convert.passes.graph_index import attribute
from pfld_edge_convert.quantization.plan import MOVES, Grid, Layer, Plan


class Arithmetic(Enum):
    """How a step computes."""

    FLOAT = auto()
    LAYER = auto()
    """A Conv or Gemm with integer weights, its Relu included."""
    MOVE = auto()
    """Integers of one grid are copied or chosen among; nothing is rescaled."""
    COLUMNS = auto()
    """Features of several grids are concatenated for a Gemm that has their scales in its columns."""
    ADD = auto()
    MEAN = auto()
    """Mean over a map."""


@dataclass(frozen=True, slots=True)
class Step:
    """One node of the float graph, or a layer with its Relu.

    Attributes:
        node: The node; of a layer its Conv or Gemm.
        arithmetic: How it computes.
        output: The tensor that it makes.
        layer: With `Arithmetic.LAYER`, the layer.
    """

    node: onnx.NodeProto
    arithmetic: Arithmetic
    output: str
    layer: Layer | None = None


def integer_steps(plan: Plan, grids: Mapping[str, Grid]) -> Iterator[Step]:
    """Go through a plan's graph, first to last.

    A step computes in integers where everything that it reads is made in integers; layers and `Arithmetic.COLUMNS`
    quantize what they read if need be.

    Args:
        plan: The plan.
        grids: Its grids, and maybe more: see `with_resized`.
    """
    image = plan.model.graph.input[0].name
    integer = {image} if plan.uint8_input else set()
    layers = {layer.node.output[0]: layer for layer in plan.layers if layer.output in plan.weights}
    fused = {layer.relu.output[0] for layer in layers.values() if layer.relu}
    for node in plan.model.graph.node:
        output = node.output[0]
        if output in fused or node.op_type == "Constant":
            continue
        layer = layers.get(output)
        if layer is not None:
            integer.add(layer.source)
            if layer.output in grids:
                integer.add(layer.output)
            yield Step(node, Arithmetic.LAYER, layer.output, layer)
            continue
        arithmetic = _arithmetic(plan, node, grids, integer)
        if arithmetic is Arithmetic.COLUMNS:
            integer.update(node.input)
        if arithmetic is not Arithmetic.FLOAT:
            integer.add(output)
        yield Step(node, arithmetic, output)


def with_resized(plan: Plan) -> dict[str, Grid]:
    """The plan's grids, and those of maps that are enlarged by repeating integers."""
    grids = dict(plan.grids)
    for node in plan.model.graph.node:
        if nearest_resize(node) and node.input[0] in grids:
            grids.setdefault(node.output[0], grids[node.input[0]])
    return grids


def nearest_resize(node: onnx.NodeProto) -> bool:
    """Whether a node is a Resize that copies, pixel y reading pixel ``floor(y / factor)``."""
    return (
        node.op_type == "Resize"
        and attribute(node, "mode", b"nearest") == b"nearest"
        and attribute(node, "coordinate_transformation_mode", b"half_pixel") == b"asymmetric"
        and attribute(node, "nearest_mode", b"round_prefer_floor") == b"floor"
    )


def _arithmetic(plan: Plan, node: onnx.NodeProto, grids: Mapping[str, Grid], integer: set[str]) -> Arithmetic:
    """How a node without weights computes."""
    inputs = node.input[:1] if nearest_resize(node) else node.input
    known = [grids[name] for name in inputs if name in grids]
    if not known or len(known) < len(inputs):
        return Arithmetic.FLOAT
    if node.op_type == "Concat" and _is_columns(plan, node, known):
        return Arithmetic.COLUMNS
    if not all(name in integer for name in inputs):
        return Arithmetic.FLOAT
    output = node.output[0]
    if node.op_type in MOVES or (node.op_type == "Concat" and len(set(known)) == 1):
        return Arithmetic.MOVE
    if nearest_resize(node) and grids.get(output) == known[0]:
        return Arithmetic.MOVE
    if node.op_type == "GlobalAveragePool" and output in grids:
        return Arithmetic.MEAN
    if node.op_type == "Add" and output in grids and len(inputs) == 2:
        return Arithmetic.ADD
    return Arithmetic.FLOAT


def _is_columns(plan: Plan, node: onnx.NodeProto, grids: list[Grid]) -> bool:
    """Whether features of several grids are concatenated for a Gemm that has their scales in its columns.

    What still is float among them must then become integers, since no grid could be given to the whole.
    """
    reader = plan.index.only_consumer(node.output[0])
    if reader is None or reader.op_type != "Gemm" or len(set(grids)) < 2 or plan.index.rank(node.output[0]) != 2:
        return False
    return any(layer.source == node.output[0] and layer.output in plan.weights for layer in plan.layers)

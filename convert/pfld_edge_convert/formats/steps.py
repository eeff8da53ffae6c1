"""The steps of a quantized network, which compute in integers or in float, and the writer that ONNX formats share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_convert.passes.base import attribute
from pfld_edge_convert.quantization.plan import MOVES, Grid, Layer, Plan

CONTRIB = "com.microsoft"
"""The domain of onnxruntime's own operators."""


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
    """One node of the float graph, or a layer with its Relu (`node` is its Conv or Gemm); makes the tensor `output`."""

    node: onnx.NodeProto
    arithmetic: Arithmetic
    output: str
    layer: Layer | None = None


def integer_steps(plan: Plan, grids: Mapping[str, Grid]) -> Iterator[Step]:
    """Go through a plan's graph, first to last; `grids` are the plan's and maybe more: see `with_resized`.

    A step computes in integers where everything that it reads is made in integers; layers and `Arithmetic.COLUMNS`
    quantize what they read if need be.
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
    """Whether features of several grids are concatenated for a Gemm that has their scales in its columns."""
    reader = plan.index.only_consumer(node.output[0])
    if reader is None or reader.op_type != "Gemm" or len(set(grids)) < 2 or plan.index.rank(node.output[0]) != 2:
        return False
    return any(layer.source == node.output[0] and layer.output in plan.weights for layer in plan.layers)


class OnnxWriter(ABC):
    """Collects the nodes and constants of a quantized graph, one step of a plan after the other."""

    def __init__(self, plan: Plan, grids: Mapping[str, Grid]) -> None:
        """Begin a graph; `grids` are as for `integer_steps`."""
        self._plan, self._index = plan, plan.index
        self._image = plan.model.graph.input[0].name if plan.uint8_input else ""
        self._grids = dict(grids)
        self._integer: dict[str, str] = {}
        """Names of the tensors of integers that stand for tensors of the float graph."""
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._kept: set[str] = set()

    def written(self) -> onnx.ModelProto:
        """Write the whole network."""
        if self._image:
            self._open_image()
        for step in integer_steps(self._plan, self._grids):
            if step.arithmetic is Arithmetic.FLOAT:
                self._write_float(step.node)
            else:
                self._write_integer(step)
        for value in self._plan.model.graph.output:
            self._as_float(value.name)
        return self._assembled()

    @abstractmethod
    def _write_integer(self, step: Step) -> None:
        """Write a step that computes in integers."""

    @abstractmethod
    def _as_float(self, name: str) -> str:
        """Name of a tensor's real values, which are dequantized if need be; a constant is kept."""

    def _open_image(self) -> None:
        name = self._image
        self._grids[name] = Grid(1.0, 128)
        self._integer[name] = f"{name}_nchw"
        self._nodes.append(helper.make_node("Transpose", [name], [self._integer[name]], perm=[0, 3, 1, 2]))

    def _write_float(self, node: onnx.NodeProto) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [self._as_float(name) if name else "" for name in node.input]
        self._nodes.append(copy)

    def _shared(self, value: NDArray[np.generic] | np.generic) -> str:
        """A constant that many nodes use, once in the file."""
        array = np.asarray(value)
        shape = "x".join(map(str, array.shape))
        return self._constant(f"{array.dtype.name}_{array.flat[0]:.9g}_{shape}".rstrip("_"), array)

    def _constant(self, name: str, value: NDArray[np.generic]) -> str:
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        return name

    def _channel_grid(self, name: str, grid: Grid, kind: type[np.integer]) -> list[str]:
        """Scale and zero point once for each channel, all the same."""
        shape = self._index.shapes.get(name, ())
        channels = shape[1] if len(shape) > 1 and isinstance(shape[1], int) else 1
        scales, zeros = np.full(channels, grid.scale, np.float32), np.full(channels, grid.zero_point, kind)
        return [self._shared(scales), self._shared(zeros)]

    def _assembled(self) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self._plan.model)
        graph = model.graph
        kept = [tensor for tensor in graph.initializer if tensor.name in self._kept]
        constant_nodes = [node for node in graph.node if node.op_type == "Constant" and node.output[0] in self._kept]
        source = self._plan.model.graph.input[0]
        for field in ("node", "initializer", "value_info", "input"):
            graph.ClearField(field)
        graph.node.extend([*constant_nodes, *self._nodes])
        graph.initializer.extend([*kept, *self._constants.values()])
        graph.input.append(_image_input(source) if self._image else source)
        domains = {item.domain for item in model.opset_import}
        if CONTRIB not in domains and any(node.domain == CONTRIB for node in graph.node):
            model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
        return model


def _image_input(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    batch, channels, height, width = value.type.tensor_type.shape.dim
    result = helper.make_tensor_value_info(value.name, TensorProto.UINT8, [None] * 4)
    for target, dim in zip(result.type.tensor_type.shape.dim, (batch, height, width, channels), strict=True):
        target.CopyFrom(dim)
    return result

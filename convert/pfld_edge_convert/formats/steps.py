"""The steps of a quantized network, which compute in integers or in float, and the writer that ONNX formats share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_convert.quantization.plan import (
    COMPUTED,
    LEVELS,
    Grid,
    Layer,
    Plan,
    clamp_bounds,
    followed_by,
    fused_clamp,
    hard_swish_offset,
    keeps_grid,
)

CONTRIB = "com.microsoft"
"""The domain of onnxruntime's own operators."""


class Arithmetic(Enum):
    """How a step computes."""

    FLOAT = auto()
    LAYER = auto()
    """A Conv or Gemm with integer weights."""
    MOVE = auto()
    """Integers of one grid are copied, chosen among or averaged; nothing is rescaled."""
    CLAMP = auto()
    """Integers of one grid are clamped."""
    COLUMNS = auto()
    """Features of several grids are concatenated for a Gemm that has their scales in its columns."""
    COMPUTE = auto()
    """One of `COMPUTED`."""


@dataclass(frozen=True, slots=True)
class Step:
    """A node of the float graph that makes the tensor `output`, together with the Relu or Clip behind it (`clamp`).

    `reason` tells why it stays in float.
    """

    node: onnx.NodeProto
    arithmetic: Arithmetic
    output: str
    layer: Layer | None = None
    clamp: onnx.NodeProto | None = None
    reason: str = ""


def integer_steps(plan: Plan) -> Iterator[Step]:
    """Go through a plan's graph, first to last.

    A step computes in integers where everything that it reads is made in integers; layers and `Arithmetic.COLUMNS`
    quantize what they read if need be.
    """
    image = plan.model.graph.input[0].name
    integer = {image} if plan.uint8_input else set()
    layers = {layer.node.output[0]: layer for layer in plan.layers if layer.output in plan.weights}
    fused: set[str] = set()
    for node in plan.model.graph.node:
        if node.output[0] in fused or node.op_type == "Constant":
            continue
        layer, clamp = layers.get(node.output[0]), fused_clamp(plan.index, node)
        output = (clamp or node).output[0]
        arithmetic = _arithmetic(plan, node, output, integer) if layer is None else Arithmetic.LAYER
        if isinstance(arithmetic, str):
            yield Step(node, Arithmetic.FLOAT, node.output[0], reason=arithmetic)
            continue
        if clamp is not None:
            fused.add(output)
        if arithmetic in (Arithmetic.LAYER, Arithmetic.COLUMNS):
            integer.update(node.input if layer is None else [layer.source])
        if layer is None or output in plan.grids:
            integer.add(output)
        yield Step(node, arithmetic, output, layer, clamp)


def float_operators(plan: Plan) -> tuple[str, ...]:
    """Operators without weights that compute in float although a layer follows them, each with the reason."""
    followed = followed_by(plan.index, plan.layers)
    layers = {layer.node.output[0] for layer in plan.layers}
    return tuple(
        f"{step.node.op_type} {step.output}: {step.reason}"
        for step in integer_steps(plan)
        if step.arithmetic is Arithmetic.FLOAT and step.output in followed and step.output not in layers
    )


def _arithmetic(plan: Plan, node: onnx.NodeProto, output: str, integer: set[str]) -> Arithmetic | str:
    """How a node without weights computes, or why it stays in float."""
    inputs = [name for name in node.input if name and name not in plan.index.constants]
    grids = [plan.grids[name] for name in inputs if name in plan.grids]
    if not inputs or len(grids) < len(inputs):
        return "what it reads is in float"
    if node.op_type == "Concat" and _is_columns(plan, node, grids):
        return Arithmetic.COLUMNS
    if not integer.issuperset(inputs):
        return "what it reads is in float"
    if output not in plan.grids:
        return f"{node.op_type} has no integer kernel"
    same = {*grids} == {plan.grids[output]}
    if node.op_type == "Concat" or keeps_grid(node):
        return Arithmetic.MOVE if same else "its inputs differ in scale"
    if clamp_bounds(plan.index, node):
        return Arithmetic.CLAMP if same else "its bounds leave less than half of its input's range"
    if node.op_type not in COMPUTED or len(inputs) < len(node.input):
        return f"{node.op_type} has no integer kernel"
    if node.op_type == "HardSwish" and hard_swish_offset(grids[0]) is None:
        return "its input shares a grid on which -3 and 3 are no integers"
    return Arithmetic.COMPUTE


def _is_columns(plan: Plan, node: onnx.NodeProto, grids: list[Grid]) -> bool:
    """Whether features of several grids are concatenated for a Gemm that has their scales in its columns."""
    # What still is float among them must then become integers, since no grid could be given to the whole.
    reader = plan.index.only_consumer(node.output[0])
    if reader is None or reader.op_type != "Gemm" or len(set(grids)) < 2 or plan.index.rank(node.output[0]) != 2:
        return False
    return any(layer.source == node.output[0] and layer.output in plan.weights for layer in plan.layers)


class OnnxWriter(ABC):
    """Collects the nodes and constants of a quantized graph, one step of a plan after the other."""

    def __init__(self, plan: Plan) -> None:
        """Begin a graph."""
        self._plan, self._index = plan, plan.index
        self._image = plan.model.graph.input[0].name if plan.uint8_input else ""
        self._grids = dict(plan.grids)
        self._integer: dict[str, str] = {}
        """Names of the tensors of integers that stand for tensors of the float graph."""
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._kept: set[str] = set()

    def written(self) -> onnx.ModelProto:
        """Write the whole network."""
        if self._image:
            self._open_image()
        for step in integer_steps(self._plan):
            if step.arithmetic is Arithmetic.FLOAT:
                self._write_float(step.node)
            else:
                self._write_integer(step)
        for value in self._plan.model.graph.output:
            self._named(value.name, self._as_float)
        return self._assembled()

    @abstractmethod
    def _write_integer(self, step: Step) -> None:
        """Write a step that computes in integers."""

    @abstractmethod
    def _as_float(self, name: str) -> str:
        """Name of a tensor's real values, which are dequantized if need be."""

    def _named(self, name: str, of: Callable[[str], str]) -> str:
        """Name of a tensor in one of its forms; constants, and inputs that are left out, have only one."""
        if name and name not in self._index.constants:
            return of(name)
        self._kept.add(name)
        return name

    def _levels(self, step: Step) -> tuple[int, int]:
        """The integers to which a step's output must be clamped; all of the grid where there is nothing to do."""
        clamp = step.node if step.arithmetic is Arithmetic.CLAMP else step.clamp
        bounds = clamp and clamp_bounds(self._index, clamp)
        return self._grids[step.output].clamped(bounds) if bounds else (0, LEVELS)

    def _open_image(self) -> None:
        name = self._image
        self._grids[name] = Grid(1.0, 128)
        self._integer[name] = f"{name}_nchw"
        self._nodes.append(helper.make_node("Transpose", [name], [self._integer[name]], perm=[0, 3, 1, 2]))

    def _write_float(self, node: onnx.NodeProto) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [self._named(name, self._as_float) for name in node.input]
        self._nodes.append(copy)

    def _write_clamp(self, clamp: onnx.NodeProto, real: str, output: str) -> str:
        """Add a Relu or Clip of real values."""
        copy = onnx.NodeProto()
        copy.CopyFrom(clamp)
        copy.input[:] = [real, *(self._named(name, self._as_float) for name in clamp.input[1:])]
        copy.output[0] = output
        self._nodes.append(copy)
        return output

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
        # Behind a single scale, onnxruntime (1.32, WeightBiasQuantization) takes a float Conv between DequantizeLinear
        # and QuantizeLinear for a QDQ one, and quantizes its weights itself.
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

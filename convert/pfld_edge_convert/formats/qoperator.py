"""The steps of a quantized network, the writer that ONNX formats share, and the QOperator format.

QOperator nodes (QLinearConv, QGemm, QLinearAdd, ...) compute in integers. onnxruntime runs them as they stand on a
processor: no rewriting by the runtime is needed for any layer.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_convert.model_file import copied
from pfld_edge_convert.quantization.plan import (
    COMPUTED,
    LEVELS,
    Grid,
    IntegerWeights,
    Layer,
    Plan,
    clamp_bounds,
    fused_clamp,
    hard_swish_offset,
    keeps_grid,
    resize_places,
)
from pfld_edge_runtime.arrays import Int64Array

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

    A step computes in integers where everything that it reads is made in integers; layers quantize what they read if
    need be.
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
        if layer is not None:
            integer.add(layer.source)
        if layer is None or output in plan.grids:
            integer.add(output)
        yield Step(node, arithmetic, output, layer, clamp)


def float_operators(plan: Plan) -> tuple[str, ...]:
    """Operators without weights that compute in float, each with the reason."""
    layers = {layer.node.output[0] for layer in plan.layers}
    return tuple(
        f"{step.node.op_type} {step.output}: {step.reason}"
        for step in integer_steps(plan)
        if step.arithmetic is Arithmetic.FLOAT and step.output not in layers
    )


def _arithmetic(plan: Plan, node: onnx.NodeProto, output: str, integer: set[str]) -> Arithmetic | str:
    """How a node without weights computes, or why it stays in float."""
    inputs = [name for name in node.input if name and name not in plan.index.constants]
    grids = [plan.grids[name] for name in inputs if name in plan.grids]
    if not inputs or len(grids) < len(inputs):
        return "what it reads is in float"
    if not integer.issuperset(inputs):
        return "what it reads is in float"
    moves = node.op_type == "Concat" or keeps_grid(node)
    if output not in plan.grids:
        is_known = moves or node.op_type in COMPUTED or clamp_bounds(plan.index, node) is not None
        return "no layer follows it" if is_known else f"{node.op_type} has no integer kernel"
    same = {*grids} == {plan.grids[output]}
    if moves:
        return Arithmetic.MOVE if same else "its inputs differ in scale"
    if clamp_bounds(plan.index, node):
        return Arithmetic.CLAMP if same else "its bounds leave less than half of its input's range"
    if node.op_type not in COMPUTED or len(inputs) < len(node.input):
        return f"{node.op_type} has no integer kernel"
    if node.op_type == "HardSwish" and hard_swish_offset(grids[0]) is None:
        return "its input shares a grid on which -3 and 3 are no integers"
    return Arithmetic.COMPUTE


_LARGE = 4096
"""Values of a constant that is worth a node."""


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
        self._integer[name] = self._node("Transpose", [name], f"{name}_nchw", perm=[0, 3, 1, 2])

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:  # noqa: ANN401
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def _widened(self, name: str) -> str | None:
        """A large constant stored in half precision, if that loses nothing; runtimes widen it when they open a file."""
        value = self._index.constants.get(name)
        if value is None or value.dtype != np.float32 or value.size < _LARGE:
            return None
        with np.errstate(over="ignore"):
            half = value.astype(np.float16)
        if not np.array_equal(half, value):
            return None
        self._constants[f"{name}_half"] = numpy_helper.from_array(half, f"{name}_half")
        return self._node("Cast", [f"{name}_half"], f"{name}_widened", to=TensorProto.FLOAT)

    def _write_float(self, node: onnx.NodeProto) -> None:
        inputs = [self._widened(name) or self._named(name, self._as_float) for name in node.input]
        self._nodes.append(_copied(node, inputs, list(node.output)))

    def _write_clamp(self, clamp: onnx.NodeProto, real: str, output: str) -> str:
        """Add a Relu or Clip of real values."""
        inputs = [real, *(self._named(name, self._as_float) for name in clamp.input[1:])]
        self._nodes.append(_copied(clamp, inputs, [output]))
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
        model = copied(self._plan.model)
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


def _copied(node: onnx.NodeProto, inputs: list[str], outputs: list[str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:], copy.output[:] = inputs, outputs
    return copy


def _image_input(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    batch, channels, height, width = value.type.tensor_type.shape.dim
    result = helper.make_tensor_value_info(value.name, TensorProto.UINT8, [None] * 4)
    for target, dim in zip(result.type.tensor_type.shape.dim, (batch, height, width, channels), strict=True):
        target.CopyFrom(dim)
    return result


def write_qoperator(plan: Plan) -> onnx.ModelProto:
    """Write the INT8 network of a plan; what `integer_steps` leaves in float has conversions around it."""
    return _Writer(plan).written()


def weight_constants(
    name: str, node: onnx.NodeProto, weights: IntegerWeights, input_scale: float
) -> dict[str, NDArray[np.generic]]:
    """The initializers of the layer of an output: integer weights, their scales, the bias."""
    integers = weights.integers if node.op_type == "Conv" else weights.integers.T
    return {
        f"{name}.w": np.ascontiguousarray(integers),
        f"{name}.s": weights.scales,
        f"{name}.b": weights.integer_bias(input_scale),
    }


def integer_name(written: onnx.ModelProto, tensor: str) -> str:
    """Name in a written network of the integers that stand for a tensor of the float network."""
    made = {name for node in written.graph.node for name in node.output}
    source = written.graph.input[0].name
    if tensor == source and f"{source}_nchw" in made:
        return f"{source}_nchw"
    return f"{tensor}_q" if f"{tensor}_q" in made else tensor


class _Writer(OnnxWriter):
    """Knows which tensors exist as integers, as floats, or as both so far."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        image = {self._image} if self._image else set()
        self._float = {value.name for value in plan.model.graph.input} - image

    def _write_float(self, node: onnx.NodeProto) -> None:
        super()._write_float(node)
        self._float.update(node.output)

    def _write_integer(self, step: Step) -> None:
        node, output = step.node, step.output
        match step.arithmetic:
            case Arithmetic.LAYER:
                self._write_layer(step)
            case Arithmetic.COMPUTE if node.op_type == "HardSwish":
                self._write_hard_swish(node, output)
            case Arithmetic.CLAMP:
                self._integer[output] = self._clip(self._as_integer(node.input[0]), f"{output}_q", self._levels(step))
            case kind if kind is Arithmetic.COMPUTE or node.op_type == "AveragePool":
                operands = [*self._operands(*node.input), *self._ends(output)]
                self._emit(f"QLinear{node.op_type}", operands, step, CONTRIB).attribute.extend(node.attribute)
            case _ if node.op_type == "Resize" and (places := resize_places(self._index, node)):
                self._write_resize(step, *places)
            case _:
                inputs = [self._named(name, self._as_integer) for name in node.input]
                self._emit(node.op_type, inputs, step).attribute.extend(node.attribute)

    def _write_layer(self, step: Step) -> None:
        name, node, weights = step.output, step.node, self._plan.weights[step.output]
        operands, scale = self._operands(node.input[0]), self._grids[node.input[0]].scale
        for constant, value in weight_constants(name, node, weights, scale).items():
            self._constant(constant, value)
        zeros = np.zeros(() if node.op_type == "Conv" else len(weights.scales), np.int8)
        operands += [f"{name}.w", f"{name}.s", self._shared(zeros)]
        if node.op_type == "Gemm":
            self._emit("QGemm", [*operands, f"{name}.b", *self._ends(name)], step, CONTRIB)
            return
        made = self._emit("QLinearConv", [*operands, *self._ends(name), f"{name}.b"], step)
        made.attribute.extend(item for item in node.attribute if item.name != "auto_pad")

    def _write_resize(self, step: Step, rows: Int64Array, columns: Int64Array) -> None:
        """Write a Resize as copies of whole rows and pixels, channels last, where onnxruntime's own takes longer."""
        name = f"{step.output}_q"
        moved = self._node("Transpose", [self._as_integer(step.node.input[0])], f"{name}_rows", perm=[0, 2, 3, 1])
        for axis, places in ((2, columns), (1, rows)):
            chosen = self._constant(f"{name}_places_{axis}", places)
            moved = self._node("Gather", [moved, chosen], f"{name}_{axis}", axis=axis)
        self._integer[step.output] = self._node("Transpose", [moved], name, perm=[0, 3, 1, 2])

    def _write_hard_swish(self, node: onnx.NodeProto, output: str) -> None:
        """Write ``x * clip(x / 6 + 1 / 2, 0, 1)``; see `hard_swish_offset`."""
        (source,) = node.input
        grid = self._grids[source]
        offset = hard_swish_offset(grid) or 0
        sixth = Grid(grid.scale / 6, offset)
        gate = self._clip(self._as_integer(source), f"{output}_gate", sixth.clamped((0, 1)))
        operands = [*self._operands(source), gate, *self._grid_constants(sixth), *self._ends(output)]
        self._emit("QLinearMul", operands, Step(node, Arithmetic.COMPUTE, output), CONTRIB)

    def _operands(self, *names: str) -> list[str]:
        """Tensors as onnxruntime's operators take them, each followed by its scale and zero point."""
        return [item for name in names for item in (self._as_integer(name), *self._grid_constants(self._grids[name]))]

    def _ends(self, output: str) -> list[str]:
        return self._grid_constants(self._grids[output]) if output in self._grids else []

    def _emit(self, kind: str, inputs: list[str], step: Step, domain: str = "") -> onnx.NodeProto:
        """Add the node that makes a step's output, in integers where that has a grid, and the clamp that is left."""
        output = step.output
        integer = output in self._grids
        name = f"{output}_q" if integer else output
        node = helper.make_node(kind, inputs, [name], domain=domain)
        self._nodes.append(node)
        if not integer:
            self._float.add(output)
            if step.clamp is not None:
                node.output[0] = f"{output}_wide"
                self._write_clamp(step.clamp, node.output[0], output)
            return node
        self._integer[output] = name
        if step.clamp is not None and self._levels(step) != (0, LEVELS):
            node.output[0] = f"{output}_wide"
            self._clip(node.output[0], name, self._levels(step))
        return node

    def _clip(self, integers: str, output: str, levels: tuple[int, int]) -> str:
        if levels == (0, LEVELS):
            return integers
        return self._node("Clip", [integers, *(self._shared(np.uint8(level)) for level in levels)], output)

    def _as_integer(self, name: str) -> str:
        if name not in self._integer:
            inputs = [name, *self._grid_constants(self._grids[name])]
            self._integer[name] = self._node("QuantizeLinear", inputs, f"{name}_q")
        return self._integer[name]

    def _as_float(self, name: str) -> str:
        # The name of the image is taken: the graph's input has it.
        real = f"{name}_float" if name == self._image else name
        if name not in self._float:
            inputs = [self._integer[name], *self._channel_grid(name, self._grids[name], np.uint8)]
            self._node("DequantizeLinear", inputs, real, axis=1)
            self._float.add(name)
        return real

    def _grid_constants(self, grid: Grid) -> list[str]:
        return [self._shared(np.float32(grid.scale)), self._shared(np.uint8(grid.zero_point))]

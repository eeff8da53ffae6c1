"""QOperator format: nodes that compute in integers (QLinearConv, QGemm, QLinearAdd, ...).

It is what onnxruntime runs as it stands on a processor: no rewriting by the runtime is needed for any layer.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from pfld_edge_convert.formats.steps import CONTRIB, Arithmetic, OnnxWriter, Step
from pfld_edge_convert.quantization.plan import (
    LEVELS,
    Grid,
    IntegerWeights,
    Layer,
    Plan,
    hard_swish_offset,
    layer_input,
)


def write_qoperator(plan: Plan) -> onnx.ModelProto:
    """Write the INT8 network of a plan.

    Every layer with integer weights, and every addition, mean and concatenation between tensors with grids, becomes
    integer arithmetic; the rest stays float, with conversions in between.
    """
    return _Writer(plan).written()


def weight_constants(layer: Layer, weights: IntegerWeights, input_scale: float) -> dict[str, NDArray[np.generic]]:
    """The initializers of a layer: integer weights, their scales, the bias."""
    name = layer.output
    integers = weights.integers if layer.node.op_type == "Conv" else weights.integers.T
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
            case Arithmetic.COMPUTE:
                operands = [*self._operands(*node.input), *self._ends(output)]
                self._emit(f"QLinear{node.op_type}", operands, step, CONTRIB).attribute.extend(node.attribute)
            case Arithmetic.CLAMP:
                self._integer[output] = self._clip(self._as_integer(node.input[0]), f"{output}_q", self._levels(step))
            case Arithmetic.MOVE if node.op_type == "AveragePool":
                operands = [*self._operands(*node.input), *self._ends(output)]
                self._emit("QLinearAveragePool", operands, step, CONTRIB).attribute.extend(node.attribute)
            case _:
                inputs = [self._named(name, self._as_integer) for name in node.input]
                self._emit(node.op_type, inputs, step).attribute.extend(node.attribute)

    def _write_layer(self, step: Step) -> None:
        layer, name, node = step.layer, step.output, step.node
        source = layer_input(self._index, node.input[0], self._grids)
        if layer is None or source is None:
            raise ValueError(f"{name} has integer weights, but its input has no grid")
        operands = [self._as_integer(layer.source), *self._grid_constants(Grid(source.scale, source.zero_point))]
        weights = self._plan.weights[name]
        for constant, value in weight_constants(layer, weights, source.scale).items():
            self._constant(constant, value)
        zeros = np.zeros(() if node.op_type == "Conv" else len(weights.scales), np.int8)
        operands += [f"{name}.w", f"{name}.s", self._shared(zeros)]
        if node.op_type == "Gemm":
            self._emit("QGemm", [*operands, f"{name}.b", *self._ends(name)], step, CONTRIB)
            return
        if name not in self._grids:
            raise ValueError(f"{layer.name} has integer weights, but its output has no grid")
        made = self._emit("QLinearConv", [*operands, *self._ends(name), f"{name}.b"], step)
        made.attribute.extend(item for item in node.attribute if item.name != "auto_pad")

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
        integer = output in self._grids or step.arithmetic is Arithmetic.COLUMNS
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
        ends = [self._shared(np.uint8(level)) for level in levels]
        self._nodes.append(helper.make_node("Clip", [integers, *ends], [output]))
        return output

    def _as_integer(self, name: str) -> str:
        if name not in self._integer:
            inputs = [name, *self._grid_constants(self._grids[name])]
            self._integer[name] = f"{name}_q"
            self._nodes.append(helper.make_node("QuantizeLinear", inputs, [self._integer[name]]))
        return self._integer[name]

    def _as_float(self, name: str) -> str:
        # The name of the image is taken: the graph's input has it.
        real = f"{name}_float" if name == self._image else name
        if name not in self._float:
            inputs = [self._integer[name], *self._channel_grid(name, self._grids[name], np.uint8)]
            self._nodes.append(helper.make_node("DequantizeLinear", inputs, [real], axis=1))
            self._float.add(name)
        return real

    def _grid_constants(self, grid: Grid) -> list[str]:
        return [self._shared(np.float32(grid.scale)), self._shared(np.uint8(grid.zero_point))]

"""QOperator format: nodes that compute in integers (QLinearConv, QGemm, QLinearAdd, ...).

It is what onnxruntime runs as it stands on a processor: no rewriting by the runtime is needed for any layer.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from pfld_edge_convert.formats.onnx_writer import CONTRIB, OnnxWriter
from pfld_edge_convert.formats.steps import Arithmetic, Step
from pfld_edge_convert.quantization.plan import Grid, Layer, Plan, layer_input
from pfld_edge_convert.quantization.weights import IntegerWeights


def write_qoperator(plan: Plan) -> onnx.ModelProto:
    """Write the INT8 network of a plan.

    Every layer with integer weights, and every addition, mean and concatenation between tensors with grids, becomes
    integer arithmetic; the rest stays float, with conversions in between.
    """
    return _Writer(plan, plan.grids).written()


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

    def __init__(self, plan: Plan, grids: Mapping[str, Grid]) -> None:
        super().__init__(plan, grids)
        image = {self._image} if self._image else set()
        self._float = {value.name for value in plan.model.graph.input} - image

    def _write_float(self, node: onnx.NodeProto) -> None:
        super()._write_float(node)
        self._float.update(node.output)

    def _write_integer(self, step: Step) -> None:
        match step.arithmetic:
            case Arithmetic.LAYER:
                self._write_layer(step)
            case Arithmetic.ADD:
                self._call("QLinearAdd", step.node.input, step.output)
            case Arithmetic.MEAN:
                self._call("QLinearGlobalAveragePool", step.node.input, step.output)
            case _:
                # What has no grid are settings: the sizes of a Resize.
                inputs = [
                    self._as_integer(name) if name in self._grids else name and self._as_float(name)
                    for name in step.node.input
                ]
                self._emit(step.node.op_type, inputs, step.output).attribute.extend(step.node.attribute)

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
        target = self._grids.get(name)
        ends = [] if target is None else self._grid_constants(target)
        if node.op_type == "Gemm":
            self._emit("QGemm", [*operands, f"{name}.b", *ends], name, CONTRIB, integer=target is not None)
            return
        if target is None:
            raise ValueError(f"{layer.name} has integer weights, but its output has no grid")
        made = self._emit("QLinearConv", [*operands, *ends, f"{name}.b"], name)
        made.attribute.extend(item for item in node.attribute if item.name != "auto_pad")

    def _call(self, kind: str, sources: Sequence[str], output: str) -> None:
        """Emit one of onnxruntime's operators, whose every tensor is followed by its scale and zero point."""
        operands = []
        for name in sources:
            operands += [self._as_integer(name), *self._grid_constants(self._grids[name])]
        self._emit(kind, [*operands, *self._grid_constants(self._grids[output])], output, CONTRIB)

    def _emit(
        self, kind: str, inputs: list[str], output: str, domain: str = "", *, integer: bool = True
    ) -> onnx.NodeProto:
        name = f"{output}_q" if integer else output
        node = helper.make_node(kind, inputs, [name], domain=domain)
        self._nodes.append(node)
        if integer:
            self._integer[output] = name
        else:
            self._float.add(output)
        return node

    def _as_integer(self, name: str) -> str:
        if name not in self._integer:
            inputs = [name, *self._grid_constants(self._grids[name])]
            self._integer[name] = f"{name}_q"
            self._nodes.append(helper.make_node("QuantizeLinear", inputs, [self._integer[name]]))
        return self._integer[name]

    def _as_float(self, name: str) -> str:
        if name in self._index.constants:
            self._kept.add(name)
            return name
        # The name of the image is taken: the graph's input has it.
        real = f"{name}_float" if name == self._image else name
        if name not in self._float:
            inputs = [self._integer[name], *self._channel_grid(name, self._grids[name], np.uint8)]
            self._nodes.append(helper.make_node("DequantizeLinear", inputs, [real], axis=1))
            self._float.add(name)
        return real

    def _grid_constants(self, grid: Grid) -> list[str]:
        return [self._shared(np.float32(grid.scale)), self._shared(np.uint8(grid.zero_point))]

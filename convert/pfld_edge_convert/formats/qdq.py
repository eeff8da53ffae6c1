"""QDQ format: float operators between QuantizeLinear and DequantizeLinear, standard ONNX operators only.

Runtimes that have integer kernels take each operator together with the conversions around it; those that have none
compute in float on the same grids. Weights are int8 initializers with one scale for each output channel, biases are
int32 in units of input scale times weight scale, so that the integers are those of the QOperator format.

Specification: ONNX operators QuantizeLinear and DequantizeLinear, operator set 13 and later.
"""

import numpy as np
import onnx
from onnx import helper

from pfld_edge_convert.formats.qoperator import Arithmetic, OnnxWriter, Step
from pfld_edge_convert.quantization.plan import LEVELS, Grid, Plan

_TO_SIGNED = 128
"""An int8 activation is the uint8 one less this."""


def write_qdq(plan: Plan, *, signed: bool = False) -> onnx.ModelProto:
    """Write the INT8 network of a plan; `signed` activations are int8 on the same grids. The image stays uint8."""
    return _Writer(plan, signed=signed).written()


class _Writer(OnnxWriter):
    """Every integer tensor has a twin behind DequantizeLinear, which float operators read."""

    def __init__(self, plan: Plan, *, signed: bool) -> None:
        super().__init__(plan)
        self._kind: type[np.integer] = np.int8 if signed else np.uint8
        self._shift = _TO_SIGNED if signed else 0
        self._real: dict[str, str] = {}
        """Names of the dequantized twins."""
        self._made: set[str] = {plan.model.graph.input[0].name}
        """Tensors that exist in float without having been quantized."""

    def _open_image(self) -> None:
        super()._open_image()
        name = self._image
        self._made.discard(name)
        # To OpenVINO a layer is quantized only behind a QuantizeLinear; onnxruntime drops the pair again.
        unsigned = [self._shared(np.float32(1)), self._shared(np.uint8(self._grids[name].zero_point))]
        self._quantize(name, self._node("DequantizeLinear", [self._integer[name], *unsigned], f"{name}_real"))

    def _write_float(self, node: onnx.NodeProto) -> None:
        super()._write_float(node)
        self._made.update(node.output)

    def _write_integer(self, step: Step) -> None:
        node, output = step.node, step.output
        if step.arithmetic is Arithmetic.LAYER:
            self._write_layer(step)
        elif node.op_type == "Concat" and self._shift:
            # Of the integers themselves: OpenVINO 2026.4 takes the zero point off int8 maps that are concatenated, and
            # clamps the negative ones to 0.
            inputs = [self._named(name, self._as_integer) for name in node.input]
            self._integer[output] = self._node("Concat", inputs, f"{output}_q")
            self._nodes[-1].attribute.extend(node.attribute)
        else:
            read = self._summand if node.op_type == "Add" else self._read
            inputs = [self._named(name, read) for name in node.input]
            self._node(node.op_type, inputs, f"{output}_raw")
            self._nodes[-1].attribute.extend(node.attribute)
            self._finish(step, f"{output}_raw")

    def _write_layer(self, step: Step) -> None:
        node, name, weights = step.node, step.output, self._plan.weights[step.output]
        source = self._grids[node.input[0]]
        scales = self._constant(f"{name}.s", weights.scales)
        zeros = self._shared(np.zeros(len(weights.scales), np.int8))
        weight = self._constant(f"{name}.w", weights.integers)
        bias = self._constant(f"{name}.b", weights.integer_bias(source.scale))
        bias_scales = self._constant(f"{name}.bs", np.float32(source.scale) * weights.scales)
        bias_zeros = self._shared(np.zeros(len(weights.scales), np.int32))
        inputs = [
            self._read(node.input[0]),
            self._node("DequantizeLinear", [weight, scales, zeros], f"{name}.weight", axis=0),
            self._node("DequantizeLinear", [bias, bias_scales, bias_zeros], f"{name}.bias", axis=0),
        ]
        raw = f"{name}_raw" if step.clamp is not None or name in self._grids else name
        made = helper.make_node(node.op_type, inputs, [raw], name=node.name)
        if node.op_type == "Gemm":
            made.attribute.append(helper.make_attribute("transB", 1))
        else:
            made.attribute.extend(item for item in node.attribute if item.name != "auto_pad")
        self._nodes.append(made)
        self._finish(step, raw)

    def _finish(self, step: Step, real: str) -> None:
        """Quantize what a step computed, where it has a grid, and add the clamp that is left to do."""
        output, clamp = step.output, step.clamp
        if output not in self._grids:
            self._made.add(output)
            if clamp is not None and clamp.op_type == "Relu":
                # onnxruntime computes a Gemm and the Relu behind it as one, in float.
                self._node("Max", [real, self._shared(np.float32(0))], output)
            elif clamp is not None:
                self._write_clamp(clamp, real, output)
            return
        if clamp is not None and self._levels(step) != (0, LEVELS):
            # Between two conversions, so that runtimes find the layer between conversions too.
            wide = self._node("QuantizeLinear", [real, *self._grid(output)], f"{output}_wide_q")
            wide = self._node("DequantizeLinear", [wide, *self._grid(output)], f"{output}_wide_dq")
            real = (
                self._write_levels(step, wide)
                if clamp.op_type == "Clip"
                else self._write_clamp(clamp, wide, f"{output}_clamped")
            )
        self._quantize(output, real)

    def _write_levels(self, step: Step, real: str) -> str:
        """Clip to values of the grid: a bound between two of them is rounded up by one runtime and down by another."""
        grid = self._grids[step.output]
        bounds = [np.float32(level - grid.zero_point) * np.float32(grid.scale) for level in self._levels(step)]
        return self._node("Clip", [real, *map(self._shared, bounds)], f"{step.output}_clamped")

    def _quantize(self, name: str, real: str) -> None:
        self._integer[name] = self._node("QuantizeLinear", [real, *self._grid(name)], f"{name}_q")

    def _as_integer(self, name: str) -> str:
        if name not in self._integer:
            self._quantize(name, name)
        return self._integer[name]

    def _read(self, name: str) -> str:
        """Name of a tensor's dequantized twin, for a step in integers."""
        if name not in self._real:
            inputs = [self._as_integer(name), *self._grid(name)]
            self._real[name] = self._node("DequantizeLinear", inputs, f"{name}_dq")
        return self._real[name]

    def _summand(self, name: str) -> str:
        """Name of what an addition reads: where it alone reads a convolution, behind a pool of one pixel."""
        made = {layer.output for layer in self._plan.layers if layer.node.op_type == "Conv"}
        if name in made and self._index.only_consumer(name) is not None:
            # OpenVINO 2026.4 computes a convolution and the addition behind it as one, and doesn't round between them.
            # The pool keeps them apart; of a second pair of conversions it drops some.
            pooled = self._node("MaxPool", [self._integer[name]], f"{name}_pooled_q", kernel_shape=[1, 1])
            self._real[name] = self._node("DequantizeLinear", [pooled, *self._grid(name)], f"{name}_dq")
        return self._read(name)

    def _as_float(self, name: str) -> str:
        if name in self._made:
            return name
        real = f"{name}_float" if name == self._image else name
        shifted = Grid(self._grids[name].scale, self._grids[name].zero_point - self._shift)
        inputs = [self._integer[name], *self._channel_grid(name, shifted, self._kind)]
        self._node("DequantizeLinear", inputs, real, axis=1)
        self._made.add(name)
        return real

    def _grid(self, name: str) -> list[str]:
        grid = self._grids[name]
        return [self._shared(np.float32(grid.scale)), self._shared(self._kind(grid.zero_point - self._shift))]

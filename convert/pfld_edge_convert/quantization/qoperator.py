"""Writes an INT8 network as QOperator nodes.

QDQ files, where float operators stand between QuantizeLinear and DequantizeLinear, depend on what each runtime version
fuses: the same settings cost the published GhostOne 14 % of NME as QDQ and 1 to 4 % as QOperator. Nodes that say what
they compute leave nothing to chance.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_convert.passes.graph_index import GraphIndex
from pfld_edge_convert.quantization.grid import Grid
from pfld_edge_convert.quantization.layer_input import layer_input
from pfld_edge_convert.quantization.layers import Layer, weighted_layers
from pfld_edge_convert.quantization.plan import Plan
from pfld_edge_convert.quantization.weights import IntegerWeights

__all__ = ["integer_name", "weight_constants", "write_qoperator"]

_CONTRIB = "com.microsoft"
_MOVES = frozenset({"Flatten", "Identity", "MaxPool"})
"""Operators that move or choose numbers: as true of integers as of what they stand for."""


def write_qoperator(model: onnx.ModelProto, plan: Plan, *, pixels: bool = False) -> onnx.ModelProto:
    """Write the INT8 network that a plan describes.

    Every layer with integer weights, and every addition, mean and concatenation between tensors with grids, becomes
    integer arithmetic; the rest stays float, with conversions in between.

    Args:
        model: The float network that the plan was made for; left as it is.
        plan: Grids and integer weights.
        pixels: The network's input is ``(n, S, S, 3)`` uint8; the float network must take ``pixel - 128``.
    """
    return _Writer(model, plan, pixels).written()


class _Writer:
    def __init__(self, model: onnx.ModelProto, plan: Plan, pixels: bool) -> None:
        self._model = model
        self._index = GraphIndex(model)
        self._plan = plan
        self._pixels = pixels
        self._pixel_input = model.graph.input[0].name if pixels else ""
        self._layers: dict[str, Layer] = {layer.node.output[0]: layer for layer in weighted_layers(self._index)}
        self._inside = {
            layer.relu.output[0] for layer in self._layers.values() if layer.relu and layer.output in plan.weights
        }
        self._grids: dict[str, Grid] = dict(plan.grids)
        self._integer: dict[str, str] = {}
        self._float = {value.name for value in model.graph.input} | set(self._index.constants)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._kept: set[str] = set()

    def written(self) -> onnx.ModelProto:
        source = self._model.graph.input[0]
        if self._pixels:
            self._open_pixels(source.name)
        for node in self._model.graph.node:
            if node.output[0] not in self._inside and node.op_type != "Constant":
                self._write(node)
        for value in self._model.graph.output:
            self._as_float(value.name)
        return self._assembled(source)

    def _write(self, node: onnx.NodeProto) -> None:
        layer = self._layers.get(node.output[0])
        if layer is not None and layer.output in self._plan.weights:
            self._write_layer(layer, self._plan.weights[layer.output])
        elif not self._write_integer(node):
            inputs = [self._as_float(name) if name else "" for name in node.input]
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = inputs
            self._nodes.append(copy)
            self._float.update(node.output)

    def _write_integer(self, node: onnx.NodeProto) -> bool:
        """Write a node without weights as integer arithmetic; False where that can't be."""
        output = node.output[0]
        grids = [self._grids.get(name) for name in node.input if name not in self._index.constants]
        if None in grids or not grids:
            return False
        known = [grid for grid in grids if grid is not None]
        if node.op_type == "Concat" and self._is_columns(node, known):
            self._copy(node)
            return True
        if not all(self._is_integer(name) for name in node.input):
            return False
        match node.op_type:
            case kind if kind in _MOVES or (kind == "Concat" and len(set(known)) == 1):
                # Of one grid: bytes are copied, nothing is rescaled.
                self._copy(node)
            case "GlobalAveragePool" if output in self._grids:
                self._call("QLinearGlobalAveragePool", self._operand(node.input[0]), output, _CONTRIB)
            case "Add" if output in self._grids:
                operands = self._operand(node.input[0]) + self._operand(node.input[1])
                self._call("QLinearAdd", operands, output, _CONTRIB)
            case _:
                return False
        return True

    def _is_columns(self, node: onnx.NodeProto, grids: Sequence[Grid]) -> bool:
        """Whether features of several grids come side by side for a Gemm that has their scales in its columns.

        What still is float among them must then become integers, since no grid could be given to the whole.
        """
        output = node.output[0]
        reader = self._index.only_consumer(output)
        return (
            len(set(grids)) > 1
            and self._index.rank(output) == 2
            and reader is not None
            and self._layer_output(reader) in self._plan.weights
        )

    def _layer_output(self, node: onnx.NodeProto) -> str:
        layer = self._layers.get(node.output[0])
        return "" if layer is None else layer.output

    def _write_layer(self, layer: Layer, weights: IntegerWeights) -> None:
        node, name = layer.node, layer.output
        source = layer_input(self._index, layer.source, self._grids)
        if source is None:
            raise ValueError(f"{layer.name} has integer weights, but its input has no grid")
        grid = Grid(source.scale, source.zero_point)
        operands = [self._as_integer(layer.source), *self._grid_constants(grid)]
        for constant, value in weight_constants(layer, weights, source.scale).items():
            self._constant(constant, value)
        zeros = np.zeros(() if node.op_type == "Conv" else len(weights.scales), np.int8)
        operands += [f"{name}.w", f"{name}.s", self._shared(zeros)]
        target = self._grids.get(name)
        ends = [] if target is None else self._grid_constants(target)
        if node.op_type == "Conv":
            if target is None:
                raise ValueError(f"{layer.name} has integer weights, but its output has no grid")
            made = self._emit("QLinearConv", [*operands, *ends, f"{name}.b"], name)
            made.attribute.extend(item for item in node.attribute if item.name != "auto_pad")
        else:
            self._emit("QGemm", [*operands, f"{name}.b", *ends], name, _CONTRIB, integer=target is not None)

    def _open_pixels(self, name: str) -> None:
        self._grids[name] = Grid(1.0, 128)
        self._float.discard(name)
        self._integer[name] = f"{name}_nchw"
        self._nodes.append(helper.make_node("Transpose", [name], [self._integer[name]], perm=[0, 3, 1, 2]))

    def _is_integer(self, name: str) -> bool:
        return name in self._integer

    def _operand(self, name: str) -> list[str]:
        return [self._as_integer(name), *self._grid_constants(self._grids[name])]

    def _call(self, kind: str, operands: list[str], output: str, domain: str) -> None:
        self._emit(kind, [*operands, *self._grid_constants(self._grids[output])], output, domain)

    def _copy(self, node: onnx.NodeProto) -> None:
        made = self._emit(node.op_type, [self._as_integer(name) for name in node.input], node.output[0])
        made.attribute.extend(node.attribute)

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
        # Of pixels the name is taken: the graph's input has it.
        real = f"{name}_float" if name == self._pixel_input else name
        if name not in self._float:
            # One scale a channel, all the same: behind a single scale, onnxruntime (1.32, WeightBiasQuantization) takes
            # a float Conv between DequantizeLinear and QuantizeLinear for a QDQ one, and quantizes its weights itself.
            grid, shape = self._grids[name], self._index.shapes.get(name, ())
            channels = shape[1] if len(shape) > 1 and isinstance(shape[1], int) else 1
            scales = self._shared(np.full(channels, grid.scale, np.float32))
            zeros = self._shared(np.full(channels, grid.zero_point, np.uint8))
            self._nodes.append(
                helper.make_node("DequantizeLinear", [self._integer[name], scales, zeros], [real], axis=1)
            )
            self._float.add(name)
        return real

    def _grid_constants(self, grid: Grid) -> list[str]:
        return [self._shared(np.float32(grid.scale)), self._shared(np.uint8(grid.zero_point))]

    def _shared(self, value: NDArray[np.generic] | np.generic) -> str:
        """A constant that many nodes use, once in the file."""
        array = np.asarray(value)
        shape = "x".join(map(str, array.shape))
        return self._constant(f"{array.dtype.name}_{array.flat[0]:.9g}_{shape}".rstrip("_"), array)

    def _constant(self, name: str, value: NDArray[np.generic]) -> str:
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        return name

    def _assembled(self, source: onnx.ValueInfoProto) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        graph = model.graph
        kept = [tensor for tensor in graph.initializer if tensor.name in self._kept]
        constant_nodes = [node for node in graph.node if node.op_type == "Constant" and node.output[0] in self._kept]
        for field in ("node", "initializer", "value_info", "input"):
            graph.ClearField(field)
        graph.node.extend([*constant_nodes, *self._nodes])
        graph.initializer.extend([*kept, *self._constants.values()])
        graph.input.append(_pixel_input(source) if self._pixels else source)
        if any(node.domain == _CONTRIB for node in graph.node) and all(
            item.domain != _CONTRIB for item in model.opset_import
        ):
            model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
        return model


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
    """Name in an INT8 network of the integers that stand for a tensor of the float network."""
    made = {name for node in written.graph.node for name in node.output}
    source = written.graph.input[0].name
    if tensor == source and f"{source}_nchw" in made:
        return f"{source}_nchw"
    return f"{tensor}_q" if f"{tensor}_q" in made else tensor


def _pixel_input(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    batch, channels, height, width = value.type.tensor_type.shape.dim
    result = helper.make_tensor_value_info(value.name, TensorProto.UINT8, [None] * 4)
    for target, dim in zip(result.type.tensor_type.shape.dim, (batch, height, width, channels), strict=True):
        target.CopyFrom(dim)
    return result

"""QOperator format: nodes that compute in integers (QLinearConv, QGemm, QLinearAdd, ...).

QDQ files, where float operators stand between QuantizeLinear and DequantizeLinear, depend on what each runtime version
fuses: the same settings cost the published GhostOne 14 % of NME as QDQ and 1 to 4 % as QOperator.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_convert.quantization.plan import MOVES, Grid, Layer, Plan, layer_input
from pfld_edge_convert.quantization.weights import IntegerWeights

__all__ = ["integer_name", "weight_constants", "write_qoperator"]

_CONTRIB = "com.microsoft"


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


class _Writer:
    """Collects nodes and constants; knows which tensors exist as integers, as floats, or as both so far."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._index = plan.index
        self._image = plan.model.graph.input[0].name if plan.uint8_input else ""
        self._layers: dict[str, Layer] = {layer.node.output[0]: layer for layer in plan.layers}
        self._fused_relus = {
            layer.relu.output[0] for layer in plan.layers if layer.relu and layer.output in plan.weights
        }
        self._grids: dict[str, Grid] = dict(plan.grids)
        self._integer: dict[str, str] = {}
        self._float = {value.name for value in plan.model.graph.input} | set(self._index.constants)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._kept: set[str] = set()

    def written(self) -> onnx.ModelProto:
        graph = self._plan.model.graph
        if self._image:
            self._open_image()
        for node in graph.node:
            if node.output[0] not in self._fused_relus and node.op_type != "Constant":
                self._write(node)
        for value in graph.output:
            self._as_float(value.name)
        return self._assembled()

    def _open_image(self) -> None:
        name = self._image
        self._grids[name] = Grid(1.0, 128)
        self._float.discard(name)
        self._integer[name] = f"{name}_nchw"
        self._nodes.append(helper.make_node("Transpose", [name], [self._integer[name]], perm=[0, 3, 1, 2]))

    def _write(self, node: onnx.NodeProto) -> None:
        layer = self._layers.get(node.output[0])
        if layer is not None and layer.output in self._plan.weights:
            self._write_layer(layer, self._plan.weights[layer.output])
        elif not self._write_integer(node):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [self._as_float(name) if name else "" for name in node.input]
            self._nodes.append(copy)
            self._float.update(node.output)

    def _write_integer(self, node: onnx.NodeProto) -> bool:
        """Write a node without weights as integer arithmetic; False where that can't be."""
        output = node.output[0]
        grids = [self._grids.get(name) for name in node.input if name not in self._index.constants]
        known = [grid for grid in grids if grid is not None]
        if not known or len(known) < len(grids):
            return False
        if node.op_type == "Concat" and self._is_columns(node, known):
            self._copy(node)
            return True
        if not all(name in self._integer for name in node.input):
            return False
        match node.op_type:
            case kind if kind in MOVES or (kind == "Concat" and len(set(known)) == 1):
                # Of one grid: bytes are copied, nothing is rescaled.
                self._copy(node)
            case "GlobalAveragePool" if output in self._grids:
                self._call("QLinearGlobalAveragePool", node.input[:1], output)
            case "Add" if output in self._grids:
                self._call("QLinearAdd", node.input[:2], output)
            case _:
                return False
        return True

    def _is_columns(self, node: onnx.NodeProto, grids: Sequence[Grid]) -> bool:
        """Whether features of several grids are concatenated for a Gemm that has their scales in its columns.

        What still is float among them must then become integers, since no grid could be given to the whole.
        """
        reader = self._index.only_consumer(node.output[0])
        layer = self._layers.get(reader.output[0]) if reader is not None else None
        is_integer = layer is not None and layer.output in self._plan.weights
        return is_integer and len(set(grids)) > 1 and self._index.rank(node.output[0]) == 2

    def _write_layer(self, layer: Layer, weights: IntegerWeights) -> None:
        node, name = layer.node, layer.output
        source = layer_input(self._index, layer.source, self._grids)
        if source is None:
            raise ValueError(f"{layer.name} has integer weights, but its input has no grid")
        operands = [self._as_integer(layer.source), *self._grid_constants(Grid(source.scale, source.zero_point))]
        for constant, value in weight_constants(layer, weights, source.scale).items():
            self._constant(constant, value)
        zeros = np.zeros(() if node.op_type == "Conv" else len(weights.scales), np.int8)
        operands += [f"{name}.w", f"{name}.s", self._shared(zeros)]
        target = self._grids.get(name)
        ends = [] if target is None else self._grid_constants(target)
        if node.op_type == "Gemm":
            self._emit("QGemm", [*operands, f"{name}.b", *ends], name, _CONTRIB, integer=target is not None)
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
        self._emit(kind, [*operands, *self._grid_constants(self._grids[output])], output, _CONTRIB)

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
        # The name of the image is taken: the graph's input has it.
        real = f"{name}_float" if name == self._image else name
        if name not in self._float:
            # One scale a channel, all the same: behind a single scale, onnxruntime (1.32, WeightBiasQuantization) takes
            # a float Conv between DequantizeLinear and QuantizeLinear for a QDQ one, and quantizes its weights itself.
            grid, shape = self._grids[name], self._index.shapes.get(name, ())
            channels = shape[1] if len(shape) > 1 and isinstance(shape[1], int) else 1
            scales = self._shared(np.full(channels, grid.scale, np.float32))
            zeros = self._shared(np.full(channels, grid.zero_point, np.uint8))
            node = helper.make_node("DequantizeLinear", [self._integer[name], scales, zeros], [real], axis=1)
            self._nodes.append(node)
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
        if _CONTRIB not in domains and any(node.domain == _CONTRIB for node in graph.node):
            model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
        return model


def _image_input(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    batch, channels, height, width = value.type.tensor_type.shape.dim
    result = helper.make_tensor_value_info(value.name, TensorProto.UINT8, [None] * 4)
    for target, dim in zip(result.type.tensor_type.shape.dim, (batch, height, width, channels), strict=True):
        target.CopyFrom(dim)
    return result

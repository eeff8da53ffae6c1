"""Networks as dataflow, without names, layouts or no-ops: read from ONNX and from torch, and matched."""

import operator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import fx, nn

from pfld_edge_convert.errors import ImportOnnxError

__all__ = ["Flow", "Geometry", "OnnxWeights", "match_flows", "onnx_flow", "torch_flow"]

Weights = TypeVar("Weights")
Ours = TypeVar("Ours")
Theirs = TypeVar("Theirs")


@dataclass(frozen=True, slots=True)
class Geometry:
    """Shape and movement of a convolution or a linear layer.

    Attributes:
        shape: Of the weight: ``(out, in / groups, kh, kw)``, or ``(out, in)``.
        stride: Step, equal along both axes; 1 for a linear layer.
        padding: Zeros on each side; 0 for a linear layer.
        groups: Groups of channels; 1 for a linear layer.
    """

    shape: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    groups: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Flow(Generic[Weights]):
    """One value of a network, compared by identity.

    Attributes:
        op: ``input``, ``conv``, ``linear``, ``relu``, ``add``, ``concat`` or ``pool`` (the mean over the whole map).
            Flattening and slices that cut nothing away don't appear.
        inputs: What the value is computed from, in order.
        geometry: Of ``conv`` and ``linear``.
        weights: What holds their numbers, in whatever form the source has them.
    """

    op: str
    inputs: tuple["Flow[Weights]", ...] = ()
    geometry: Geometry | None = None
    weights: Weights | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class OnnxWeights:
    """The numbers of a convolution or linear layer.

    Attributes:
        weight: As torch lays it out: ``(out, in / groups, kh, kw)`` or ``(out, in)``.
        bias: ``(out,)``; zeros where the file has none.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


def onnx_flow(model: onnx.ModelProto) -> Flow[OnnxWeights]:
    """Follow the graph from its only output back to its only input.

    Raises:
        ImportOnnxError: The graph computes something that no network of the PFLD family does.
    """
    return _Reader(model).output()


_NO_OPS = frozenset({"Reshape", "Flatten", "Slice", "Identity", "Dropout", "Squeeze"})
_PLAIN_OPS = frozenset({"Relu", "Add", "Concat"})


class _Reader:
    """One pass over a graph; every value is read once."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = onnx.shape_inference.infer_shapes(model).graph
        self._graph = graph
        self._arrays = {array.name: numpy_helper.to_array(array) for array in graph.initializer}
        self._arrays |= {
            node.output[0]: numpy_helper.to_array(helper.get_node_attr_value(node, "value"))
            for node in graph.node
            if node.op_type == "Constant"
        }
        values = [*graph.value_info, *graph.input, *graph.output]
        self._shapes = {
            value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in values
        }
        self._flows: dict[str, Flow[OnnxWeights]] = {}

    def output(self) -> Flow[OnnxWeights]:
        inputs = [value.name for value in self._graph.input if value.name not in self._arrays]
        if len(inputs) != 1 or len(self._graph.output) != 1:
            raise ImportOnnxError(
                f"expected one input and one output, found {len(inputs)} and {len(self._graph.output)}"
            )
        self._flows[inputs[0]] = Flow("input")
        for node in self._graph.node:  # ONNX keeps nodes in an order that computes every input first
            if node.op_type != "Constant":
                self._flows[node.output[0]] = self._read(node)
        return self._flows[self._graph.output[0].name]

    def _read(self, node: onnx.NodeProto) -> Flow[OnnxWeights]:
        layers = {
            "Conv": self._conv,
            "Gemm": self._gemm,
            "AveragePool": self._pool,
            "ReduceMean": self._pool,
            "GlobalAveragePool": self._pool,
        }
        if node.op_type in _NO_OPS:
            return self._no_op(node)
        if node.op_type in layers:
            return layers[node.op_type](node)
        if node.op_type in _PLAIN_OPS:
            return Flow(node.op_type.lower(), self._inputs(node))
        raise ImportOnnxError(f"a {node.op_type} node, which no network of the PFLD family has")

    def _inputs(self, node: onnx.NodeProto) -> tuple[Flow[OnnxWeights], ...]:
        unknown = [name for name in node.input if name not in self._flows]
        if unknown:
            raise ImportOnnxError(f"a {node.op_type} node of a constant, which no network of the PFLD family has")
        return tuple(self._flows[name] for name in node.input)

    def _conv(self, node: onnx.NodeProto) -> Flow[OnnxWeights]:
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        weight = self._arrays[node.input[1]]
        strides = set(attributes.get("strides", (1, 1)))
        pads = set(attributes.get("pads", (0, 0, 0, 0)))
        if len(strides) != 1 or len(pads) != 1 or set(attributes.get("dilations", (1,))) != {1}:
            raise ImportOnnxError("a convolution with uneven strides or padding, or with dilation")
        geometry = Geometry(weight.shape, strides.pop(), pads.pop(), attributes.get("group", 1))
        return Flow("conv", (self._flow_of(node.input[0]),), geometry, self._weights(weight, node))

    def _gemm(self, node: onnx.NodeProto) -> Flow[OnnxWeights]:
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        scaling = (attributes.get("alpha", 1.0), attributes.get("beta", 1.0), attributes.get("transA", 0))
        if scaling != (1.0, 1.0, 0):
            raise ImportOnnxError("a Gemm node with alpha, beta or a transposed input")
        weight = self._arrays[node.input[1]]
        weight = weight if attributes.get("transB", 0) else weight.T
        return Flow("linear", (self._flow_of(node.input[0]),), Geometry(weight.shape), self._weights(weight, node))

    def _weights(self, weight: NDArray[np.float32], node: onnx.NodeProto) -> OnnxWeights:
        bias = self._arrays[node.input[2]] if len(node.input) > 2 else np.zeros(len(weight), np.float32)
        return OnnxWeights(weight, bias)

    def _pool(self, node: onnx.NodeProto) -> Flow[OnnxWeights]:
        """A mean is ours where it leaves one number a channel."""
        shape = self._shapes.get(node.output[0], ())
        if shape[2:] not in ((1, 1), ()):
            raise ImportOnnxError(f"an average over part of the map (output {shape}), expected the whole map")
        return Flow("pool", (self._flow_of(node.input[0]),))

    def _no_op(self, node: onnx.NodeProto) -> Flow[OnnxWeights]:
        """Reshapes never change numbers; a slice is passed over where it cuts nothing away."""
        before, after = self._shapes.get(node.input[0]), self._shapes.get(node.output[0])
        if node.op_type == "Slice" and before != after:
            raise ImportOnnxError(f"a slice from {before} to {after}, expected one that cuts nothing away")
        return self._flow_of(node.input[0])

    def _flow_of(self, name: str) -> Flow[OnnxWeights]:
        if name not in self._flows:
            raise ImportOnnxError("a layer whose input is a constant, which no network of the PFLD family has")
        return self._flows[name]


_FUNCTIONS: dict[object, str] = {
    torch.relu: "relu",
    F.relu: "relu",
    torch.cat: "concat",
    operator.add: "add",
    F.adaptive_avg_pool2d: "pool",
}


def torch_flow(model: nn.Module) -> Flow[str]:
    """Trace a fused network; the weights of a flow are the name of the module that holds them."""
    traced = fx.symbolic_trace(model)
    flows: dict[fx.Node, Flow[str]] = {}
    result: Flow[str] | None = None
    for node in traced.graph.nodes:
        if node.op == "output":
            result = flows[node.args[0]]
        else:
            flows[node] = _read_torch(node, traced, flows)
    if result is None:
        raise TypeError("the network has no output")
    return result


def _read_torch(node: fx.Node, traced: fx.GraphModule, flows: dict[fx.Node, Flow[str]]) -> Flow[str]:
    if node.op == "placeholder":
        return Flow("input")
    inputs = tuple(flows[argument] for argument in node.all_input_nodes)
    if node.op == "call_module":
        return _torch_layer(traced.get_submodule(str(node.target)), str(node.target), inputs)
    operation = _FUNCTIONS.get(node.target)
    if operation is not None:
        return Flow(operation, inputs)
    if node.target in ("flatten", operator.getitem):
        return inputs[0]
    raise TypeError(f"{node.target} is not an operation of our networks")


def _torch_layer(module: nn.Module, name: str, inputs: tuple[Flow[str], ...]) -> Flow[str]:
    if isinstance(module, nn.Conv2d):
        stride, padding = int(module.stride[0]), int(module.padding[0])
        return Flow("conv", inputs, Geometry(tuple(module.weight.shape), stride, padding, module.groups), name)
    if isinstance(module, nn.Linear):
        return Flow("linear", inputs, Geometry(tuple(module.weight.shape)), name)
    if isinstance(module, nn.ReLU):
        return Flow("relu", inputs)
    raise TypeError(f"{type(module).__name__} is not a layer of our fused networks")


def match_flows(ours: Flow[Ours], theirs: Flow[Theirs]) -> list[tuple[Ours, Theirs]] | None:
    """Unify two dataflows from their outputs backwards.

    Two values match where operation, geometry and all inputs match; a value matches one value only. The operands of
    an addition may be swapped.

    Args:
        ours: Output of the one network.
        theirs: Output of the other.

    Returns:
        The pairs of weights, or None where the networks differ.
    """
    pairs = _match(ours, theirs, {})
    if pairs is None:
        return None
    return [
        (mine.weights, its.weights)
        for mine, its in pairs.items()
        if mine.weights is not None and its.weights is not None
    ]


_Pairs = dict[Flow[Ours], Flow[Theirs]]


def _match(ours: Flow[Ours], theirs: Flow[Theirs], known: _Pairs[Ours, Theirs]) -> _Pairs[Ours, Theirs] | None:
    """Extend the known pairs so that the two values match, or give None and leave them as they were."""
    if ours in known:
        return known if known[ours] is theirs else None
    if (ours.op, ours.geometry, len(ours.inputs)) != (theirs.op, theirs.geometry, len(theirs.inputs)):
        return None
    orders = [theirs.inputs]
    if ours.op == "add":
        orders.append(theirs.inputs[::-1])
    for order in orders:
        found: _Pairs[Ours, Theirs] | None = {**known, ours: theirs}
        for mine, its in zip(ours.inputs, order, strict=True):
            found = None if found is None else _match(mine, its, found)
        if found is not None:
            return found
    return None

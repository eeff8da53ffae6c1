"""Networks as dataflow, without names, layouts or no-ops: read from ONNX and from torch, and matched."""

import operator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import fx, nn

from pfld_edge_convert.errors import ImportOnnxError
from pfld_edge_convert.passes.base import GraphIndex, attribute, graph_inputs

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


OnnxWeights = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Weight as in torch, ``(out, in / groups, kh, kw)`` or ``(out, in)``, and bias ``(out,)``, zeros if absent."""

_MOVES = frozenset({"Reshape", "Flatten", "Squeeze"})


def onnx_flow(model: onnx.ModelProto) -> Flow[OnnxWeights]:
    """Follow a graph in canonical form (`canonical_form`, `MeanToPool`) from its only input to its only output.

    Raises:
        ImportOnnxError: The graph computes something that no network of the PFLD family does.
    """
    index, inputs, outputs = GraphIndex(model), graph_inputs(model), model.graph.output
    if len(inputs) != 1 or len(outputs) != 1:
        raise ImportOnnxError(f"expected one input and one output, found {len(inputs)} and {len(outputs)}")
    flows: dict[str, Flow[OnnxWeights]] = {inputs[0].name: Flow("input")}
    for node in model.graph.node:  # ONNX keeps nodes in an order that computes every input first
        flows[node.output[0]] = _read_onnx(index, node, flows)
    return flows[outputs[0].name]


def _read_onnx(index: GraphIndex, node: onnx.NodeProto, flows: dict[str, Flow[OnnxWeights]]) -> Flow[OnnxWeights]:
    kind = node.op_type
    names = node.input[:1] if kind in _MOVES or kind in ("Conv", "Gemm") else node.input
    if any(name not in flows for name in names):
        raise ImportOnnxError(f"a {kind} node of a constant, which no network of the PFLD family has")
    inputs = tuple(flows[name] for name in names)
    if kind in _MOVES:
        return inputs[0]
    if kind in ("Relu", "Add", "Concat"):
        return Flow(kind.lower(), inputs)
    if kind == "GlobalAveragePool":
        return Flow("pool", inputs)
    weights = index.weights(node) if kind in ("Conv", "Gemm") else None
    if weights is None:
        raise ImportOnnxError(f"a {kind} node, which no network of the PFLD family has")
    if kind == "Conv":
        return Flow("conv", inputs, _conv_geometry(node, weights[0].shape), weights)
    if (attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0), attribute(node, "transA", 0)) != (1.0, 1.0, 0):
        raise ImportOnnxError("a Gemm node with alpha, beta or a transposed input")
    return Flow("linear", inputs, Geometry(weights[0].shape), weights)


def _conv_geometry(node: onnx.NodeProto, shape: tuple[int, ...]) -> Geometry:
    strides, pads = set(attribute(node, "strides", [1])), set(attribute(node, "pads", [0]))
    if len(strides) != 1 or len(pads) != 1 or set(attribute(node, "dilations", [1])) != {1}:
        raise ImportOnnxError("a convolution with uneven strides or padding, or with dilation")
    return Geometry(shape, strides.pop(), pads.pop(), attribute(node, "group", 1))


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

"""Turns a published PFLD ONNX file back into one of our networks.

Both networks are read as dataflow, without names, layouts or no-ops, from ONNX and from torch, and matched.
"""

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import fx, nn

from pfld_edge_convert.errors import ConvertError, ImportOnnxError
from pfld_edge_convert.model_file import load_onnx
from pfld_edge_convert.passes import MeanToPool, canonical_form
from pfld_edge_convert.passes.base import GraphIndex, attribute, graph_inputs
from pfld_edge_runtime import Contract, fingerprint_image, prepare_input
from pfld_edge_runtime.session import open_session
from pfld_edge_train.checkpoint import Checkpoint
from pfld_edge_train.models import MODEL_KINDS, ModelConfig, build_model
from pfld_edge_train.models.edge import PFLDEdge
from pfld_edge_train.models.pfld import PFLDLuffy
from pfld_edge_train.models.published import width_candidates

# Heat maps (Resize, Softmax) and pfld-luffy's Clip are operations that `onnx_flow` refuses.
_KINDS = tuple(kind for kind in MODEL_KINDS if MODEL_KINDS[kind] not in (PFLDEdge, PFLDLuffy))

TOLERANCE = 1e-5
"""Largest difference between the file's output and ours, in fractions of the crop."""

Weights = TypeVar("Weights")


@dataclass(frozen=True, slots=True)
class Geometry:
    """Weight ``(out, in / groups, kh, kw)`` or ``(out, in)``, stride, padding and groups, equal along both axes."""

    shape: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    groups: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Flow(Generic[Weights]):
    """One value of a network, compared by identity, with geometry and weights of ``conv`` and ``linear``.

    Others are ``input``, ``relu``, ``add``, ``concat`` and ``pool`` (the mean over the whole map). Flattening, and
    slices that cut nothing away, don't appear.
    """

    op: str
    inputs: tuple["Flow[Weights]", ...] = ()
    geometry: Geometry | None = None
    weights: Weights | None = field(default=None, repr=False)


OnnxWeights = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Weight as in torch, ``(out, in / groups, kh, kw)`` or ``(out, in)``, and bias ``(out,)``, zeros if absent."""

_MOVES = frozenset({"Reshape", "Flatten", "Squeeze"})


def import_onnx(path: Path) -> Checkpoint:
    """Read a PFLD, PFLD-GhostNet, PFLD-GhostNet-Slim or PFLD-GhostOne file into a checkpoint.

    The layers are found by what they compute from what, not by their names. The checkpoint holds the inference form
    (``fused``): an ONNX file no longer has the branches that training had. The rebuilt network is run against the
    file, and refused where an output differs by more than 1e-5.

    Raises:
        ModelFileError: The file is missing or not an ONNX model.
        ImportOnnxError: The network is not one of the PFLD family.
    """
    session = open_session(path)
    inputs = session.get_inputs()
    if inputs and inputs[0].type != "tensor(float)":
        raise ImportOnnxError(f"{path}: not a published PFLD network: expected float32 input, found {inputs[0].type}")
    model = load_onnx(path)
    config, pairs = _matched(model, path)
    network = build_model(config).eval()
    _fill(network, pairs)
    contract = Contract(model=config.kind, input_size=config.input_size, trained_on=f"imported from {path.name}")
    probe = prepare_input(fingerprint_image(7, contract.input_size)[None], contract)
    expected = session.run(None, {inputs[0].name: probe})[0]
    with torch.inference_mode():
        difference = float(np.abs(network(torch.from_numpy(probe)).numpy() - expected).max())
    if not difference <= TOLERANCE:
        raise ImportOnnxError(f"{path}: the rebuilt network differs from the file by {difference:g}, not imported")
    # The published protocol names WFLW's points; what other points are called, no file says.
    known = config.num_landmarks == contract.landmarks.num_landmarks
    return Checkpoint(weights=network.state_dict(), model=config, contract=contract.to_dict() if known else None)


def _matched(model: onnx.ModelProto, path: Path) -> tuple[ModelConfig, list[tuple[str, OnnxWeights]]]:
    try:
        *others, theirs = onnx_flow(MeanToPool()(canonical_form(model)).model)
    except (ConvertError, ImportOnnxError) as error:
        raise ImportOnnxError(f"{path}: not a published PFLD network: {error}") from error
    # Output channels of the first convolution and of the last linear layer; 0 where there is none.
    starts = [f.geometry.shape[0] for f in others if f.geometry and f.op == "conv" and f.inputs[0].op == "input"]
    first = starts[0] if len(starts) == 1 else 0
    last = theirs.geometry.shape[0] if theirs.op == "linear" and theirs.geometry else 0
    size = model.graph.input[0].type.tensor_type.shape.dim[-1].dim_value
    for config in _candidates(first, size, last):
        with torch.device("meta"):
            ours = torch_flow(build_model(config))
        pairs = match_flows(ours, theirs)
        if pairs is not None:
            return config, pairs
    counts = Counter(flow.op for flow in (*others, theirs))
    raise ImportOnnxError(
        f"{path}: not a published PFLD network: expected the graph of {', '.join(_KINDS)}, found {size} x {size} "
        f"input, {counts['conv']} convolutions, {counts['concat']} concatenations, {counts['add']} additions, "
        f"{last} outputs"
    )


def _candidates(first: int, size: int, last: int) -> Iterator[ModelConfig]:
    """Yield every network with these channels, this input and these outputs; none where there can't be any."""
    if size % 16 or not 32 <= size <= 1024 or last % 2 or not last:
        return
    for kind in _KINDS:
        for width in width_candidates(kind, first):
            if 0.1 <= width <= 8:
                yield ModelConfig(kind, width, size, last // 2, fused=True)


@torch.no_grad()
def _fill(network: nn.Module, pairs: list[tuple[str, OnnxWeights]]) -> None:
    for name, (weight, bias) in pairs:
        layer = network.get_submodule(name)
        layer.get_parameter("weight").copy_(torch.from_numpy(np.array(weight)))
        # A published layer without bias matches one of ours with or without it.
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(np.array(bias)))


def onnx_flow(model: onnx.ModelProto) -> list[Flow[OnnxWeights]]:
    """Follow a graph in canonical form (`canonical_form`, `MeanToPool`): all its values, its only output last.

    ImportOnnxError where it computes something that no network of the PFLD family does.
    """
    index, inputs, outputs = GraphIndex(model), graph_inputs(model), model.graph.output
    if len(inputs) != 1 or len(outputs) != 1:
        raise ImportOnnxError(f"expected one input and one output, found {len(inputs)} and {len(outputs)}")
    flows: dict[str, Flow[OnnxWeights]] = {inputs[0].name: Flow("input")}
    for node in model.graph.node:  # ONNX keeps nodes in an order that computes every input first
        flows[node.output[0]] = _read_onnx(index, node, flows)
    output = flows[outputs[0].name]
    return [*(flow for flow in dict.fromkeys(flows.values()) if flow is not output), output]


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
    *nodes, output = traced.graph.nodes
    for node in nodes:
        flows[node] = _read_torch(node, traced, flows)
    return flows[output.args[0]]


def _read_torch(node: fx.Node, traced: fx.GraphModule, flows: dict[fx.Node, Flow[str]]) -> Flow[str]:
    if node.op == "placeholder":
        return Flow("input")
    inputs = tuple(flows[argument] for argument in node.all_input_nodes)
    if node.op == "call_module":
        return _torch_layer(traced.get_submodule(str(node.target)), str(node.target), inputs)
    if node.target in _FUNCTIONS:
        return Flow(_FUNCTIONS[node.target], inputs)
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


def match_flows(ours: Flow[str], theirs: Flow[OnnxWeights]) -> list[tuple[str, OnnxWeights]] | None:
    """Unify two dataflows from their outputs backwards: the pairs of weights, or None where the networks differ.

    Two values match where operation, geometry and all inputs match; a value matches one value only. The operands of
    an addition may be swapped.
    """
    pairs = _match(ours, theirs, {})
    if pairs is None:
        return None
    weights = ((mine.weights, its.weights) for mine, its in pairs.items())
    return [(name, values) for name, values in weights if name is not None and values is not None]


_Pairs = dict[Flow[str], Flow[OnnxWeights]]


def _match(ours: Flow[str], theirs: Flow[OnnxWeights], known: _Pairs) -> _Pairs | None:
    """Extend the known pairs so that the two values match, or give None and leave them as they were."""
    if ours in known:
        return known if known[ours] is theirs else None
    if (ours.op, ours.geometry, len(ours.inputs)) != (theirs.op, theirs.geometry, len(theirs.inputs)):
        return None
    for order in (theirs.inputs, theirs.inputs[::-1])[: 2 if ours.op == "add" else 1]:
        found: _Pairs | None = {**known, ours: theirs}
        for mine, its in zip(ours.inputs, order, strict=True):
            found = None if found is None else _match(mine, its, found)
        if found is not None:
            return found
    return None

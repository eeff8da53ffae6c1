"""Turns a published PFLD ONNX file back into one of our networks.

The layers with weights of the file, first to last, are paired with those of a network of the family as it runs them.
The rebuilt network must then give the file's output.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import fx, nn

from pfld_edge_convert.errors import ConvertError, ImportOnnxError
from pfld_edge_convert.model_file import load_onnx
from pfld_edge_convert.passes import MeanToPool, canonical_form
from pfld_edge_convert.passes.base import GraphIndex, attribute
from pfld_edge_runtime import Contract, fingerprint_image, prepare_input
from pfld_edge_runtime.session import open_session
from pfld_edge_train.checkpoint import Checkpoint
from pfld_edge_train.models import MODEL_KINDS, ModelConfig, build_model
from pfld_edge_train.models.edge import PFLDEdge
from pfld_edge_train.models.pfld import PFLDLuffy
from pfld_edge_train.models.published import width_candidates

# Heat maps (Resize, Softmax) and pfld-luffy's Clip are operations that `_onnx_layers` refuses.
_KINDS = tuple(kind for kind in MODEL_KINDS if MODEL_KINDS[kind] not in (PFLDEdge, PFLDLuffy))
_WITHOUT_WEIGHTS = frozenset({"Relu", "Add", "Concat", "GlobalAveragePool", "Reshape", "Flatten", "Squeeze"})

TOLERANCE = 1e-5
"""Largest difference between the file's output and ours, in fractions of the crop."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Weight ``(out, in / groups, kh, kw)`` or ``(out, in)``, stride, padding and groups, equal along both axes."""

    shape: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    groups: int = 1


@dataclass(frozen=True, slots=True)
class OnnxLayer:
    """A Conv or Gemm: weight as in torch, and bias ``(out,)``, zeros if absent."""

    geometry: Geometry
    weight: NDArray[np.float32] = field(repr=False)
    bias: NDArray[np.float32] = field(repr=False)


def import_onnx(path: Path) -> Checkpoint:
    """Read a PFLD, PFLD-GhostNet, PFLD-GhostNet-Slim or PFLD-GhostOne file into a checkpoint.

    The layers are found by their order and geometry, not by their names. The checkpoint holds the inference form
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
    try:
        graph = MeanToPool()(canonical_form(model)).model
        layers = _onnx_layers(graph)
    except (ConvertError, ImportOnnxError) as error:
        raise ImportOnnxError(f"{path}: not a published PFLD network: {error}") from error
    size = model.graph.input[0].type.tensor_type.shape.dim[-1].dim_value
    config, names = _matched(graph, layers, size, path)
    network = build_model(config).eval()
    _fill(network, names, layers)
    contract = Contract(model=config.kind, input_size=size, trained_on=f"imported from {path.name}")
    probe = prepare_input(fingerprint_image(7, size)[None], contract)
    expected = session.run(None, {inputs[0].name: probe})[0]
    with torch.inference_mode():
        found = network(torch.from_numpy(probe)).numpy()
    difference = float(np.abs(found.ravel() - expected.ravel()).max()) if found.size == expected.size else np.inf
    if not difference <= TOLERANCE:
        raise ImportOnnxError(f"{path}: the rebuilt network differs from the file by {difference:g}, not imported")
    # The published protocol names WFLW's points; what other points are called, no file says.
    known = config.num_landmarks == contract.landmarks.num_landmarks
    return Checkpoint(weights=network.state_dict(), model=config, contract=contract.to_dict() if known else None)


def _matched(graph: onnx.ModelProto, layers: list[OnnxLayer], size: int, path: Path) -> tuple[ModelConfig, list[str]]:
    """Find the network whose layers have the geometry of the file's, and their names."""
    shapes = [layer.geometry.shape for layer in layers]
    last = shapes[-1][0] if shapes and len(shapes[-1]) == 2 else 0
    for config in _candidates(shapes[0][0] if shapes else 0, size, last):
        with torch.device("meta"):
            ours = _torch_layers(build_model(config))
        if list(ours.values()) == [layer.geometry for layer in layers]:
            return config, list(ours)
    counts = Counter(node.op_type for node in graph.graph.node)
    raise ImportOnnxError(
        f"{path}: not a published PFLD network: expected the graph of {', '.join(_KINDS)}, found {size} x {size} "
        f"input, {counts['Conv']} convolutions, {counts['Concat']} concatenations, {counts['Add']} additions, "
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
def _fill(network: nn.Module, names: list[str], layers: list[OnnxLayer]) -> None:
    for name, values in zip(names, layers, strict=True):
        layer = network.get_submodule(name)
        layer.get_parameter("weight").copy_(torch.from_numpy(np.array(values.weight)))
        # A published layer without bias matches one of ours with or without it.
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(np.array(values.bias)))


def _onnx_layers(model: onnx.ModelProto) -> list[OnnxLayer]:
    """Layers of a graph in canonical form with `MeanToPool`; ImportOnnxError where the family has no such node."""
    index, layers = GraphIndex(model), []
    for node in model.graph.node:
        weights = index.weights(node) if node.op_type in ("Conv", "Gemm") else None
        if weights is not None:
            shape = weights[0].shape
            layers.append(OnnxLayer(_geometry(node, shape) if node.op_type == "Conv" else Geometry(shape), *weights))
        elif node.op_type not in _WITHOUT_WEIGHTS:
            raise ImportOnnxError(f"a {node.op_type} node, which no network of the PFLD family has")
    return layers


def _geometry(node: onnx.NodeProto, shape: tuple[int, ...]) -> Geometry:
    strides, pads = set(attribute(node, "strides", [1])), set(attribute(node, "pads", [0]))
    if len(strides) != 1 or len(pads) != 1 or set(attribute(node, "dilations", [1])) != {1}:
        raise ImportOnnxError("a convolution with uneven strides or padding, or with dilation")
    return Geometry(shape, strides.pop(), pads.pop(), attribute(node, "group", 1))


def _torch_layers(model: nn.Module) -> dict[str, Geometry]:
    """Layers of a fused network by name, in the order in which it runs them."""
    traced, layers = fx.symbolic_trace(model), dict[str, Geometry]()
    for name in (str(node.target) for node in traced.graph.nodes if node.op == "call_module"):
        module = traced.get_submodule(name)
        if isinstance(module, nn.Conv2d):
            stride, padding = int(module.stride[0]), int(module.padding[0])
            layers[name] = Geometry(tuple(module.weight.shape), stride, padding, module.groups)
        elif isinstance(module, nn.Linear):
            layers[name] = Geometry(tuple(module.weight.shape))
    return layers

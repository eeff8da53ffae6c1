"""Turns a published PFLD ONNX file back into one of our networks.

The layers with weights of the file, first to last, are paired with those of a network of the family as it runs them.
The rebuilt network must then give the file's output.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import fx, nn

from pfld_edge_convert.errors import ConvertError, ImportOnnxError
from pfld_edge_convert.model_file import load_onnx
from pfld_edge_convert.passes.base import GraphIndex
from pfld_edge_convert.passes.canonical_form import canonical_form
from pfld_edge_convert.passes.operator_rewrites import MeanToPool
from pfld_edge_runtime import Contract, fingerprint_image, prepare_input
from pfld_edge_runtime.arrays import Float32Array
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


Layer = tuple[Float32Array, Float32Array]
"""Weight of a Conv or Gemm, as in torch, and bias ``(out,)``, zeros if absent."""


def import_onnx(path: Path) -> Checkpoint:
    """Read a PFLD, PFLD-GhostNet, PFLD-GhostNet-Slim or PFLD-GhostOne file into a checkpoint.

    The layers are found by their order and shapes, not by their names. The checkpoint holds the inference form
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


def _matched(graph: onnx.ModelProto, layers: list[Layer], size: int, path: Path) -> tuple[ModelConfig, list[str]]:
    """Find the network whose layers have the shapes of the file's, and their names."""
    shapes = [weight.shape for weight, _ in layers]
    last = shapes[-1][0] if shapes and len(shapes[-1]) == 2 else 0
    for config in _candidates(shapes[0][0] if shapes else 0, size, last):
        with torch.device("meta"):
            ours = _torch_layers(build_model(config))
        if list(ours.values()) == shapes:
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
def _fill(network: nn.Module, names: list[str], layers: list[Layer]) -> None:
    for name, (weight, bias) in zip(names, layers, strict=True):
        layer = network.get_submodule(name)
        layer.get_parameter("weight").copy_(torch.from_numpy(np.array(weight)))
        # A published layer without bias matches one of ours with or without it.
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(np.array(bias)))


def _onnx_layers(model: onnx.ModelProto) -> list[Layer]:
    """Layers of a graph in canonical form with `MeanToPool`; ImportOnnxError where the family has no such node."""
    index, layers = GraphIndex(model), []
    for node in model.graph.node:
        weights = index.weights(node) if node.op_type in ("Conv", "Gemm") else None
        if weights is not None:
            layers.append(weights)
        elif node.op_type not in _WITHOUT_WEIGHTS:
            raise ImportOnnxError(f"a {node.op_type} node, which no network of the PFLD family has")
    return layers


def _torch_layers(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of a fused network by the layers' names, in the order in which it runs them."""
    traced = fx.symbolic_trace(model)
    called = {
        str(node.target): traced.get_submodule(str(node.target))
        for node in traced.graph.nodes
        if node.op == "call_module"
    }
    return {
        name: tuple(module.weight.shape) for name, module in called.items() if isinstance(module, nn.Conv2d | nn.Linear)
    }

"""Turns a published PFLD ONNX file back into one of our networks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from pfld_edge_convert.errors import ConvertError, ImportOnnxError
from pfld_edge_convert.model_file import load_onnx
from pfld_edge_convert.onnx_import.dataflow import Flow, OnnxWeights, match_flows, onnx_flow, torch_flow
from pfld_edge_convert.passes import MeanToPool, canonical_form
from pfld_edge_runtime import Contract, fingerprint_image, prepare_input
from pfld_edge_runtime.session import open_session
from pfld_edge_train.checkpoint import Checkpoint, width_candidates
from pfld_edge_train.models import MODEL_KINDS, ModelConfig, build_model

# pfld-edge-m's heat maps (Resize, Softmax) are operations that `onnx_flow` refuses: its files can't be matched.
_KINDS = tuple(kind for kind in MODEL_KINDS if kind != "pfld-edge-m")

TOLERANCE = 1e-5
"""Largest difference between the file's output and ours, in fractions of the crop."""


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
    _prove(network, session.run(None, {inputs[0].name: _probe(contract)})[0], contract, path)
    # The published protocol names WFLW's points; what other points are called, no file says.
    known = config.num_landmarks == contract.landmarks.num_landmarks
    return Checkpoint(weights=network.state_dict(), model=config, contract=contract.to_dict() if known else None)


def _matched(model: onnx.ModelProto, path: Path) -> tuple[ModelConfig, list[tuple[str, OnnxWeights]]]:
    try:
        theirs = onnx_flow(MeanToPool()(canonical_form(model)).model)
    except (ConvertError, ImportOnnxError) as error:
        raise ImportOnnxError(f"{path}: not a published PFLD network: {error}") from error
    first, last = _end_layers(theirs)
    size = model.graph.input[0].type.tensor_type.shape.dim[-1].dim_value
    for config in _candidates(first, size, last):
        with torch.device("meta"):
            ours = torch_flow(build_model(config))
        pairs = match_flows(ours, theirs)
        if pairs is not None:
            return config, pairs
    counts = {op: sum(flow.op == op for flow in _all_flows(theirs)) for op in ("conv", "concat", "add", "linear")}
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


def _end_layers(output: Flow[OnnxWeights]) -> tuple[int, int]:
    """Output channels of the first convolution and of the last linear layer; 0 where there is none."""
    first = [f for f in _all_flows(output) if f.op == "conv" and f.inputs[0].op == "input"]
    channels = first[0].geometry.shape[0] if len(first) == 1 and first[0].geometry else 0
    outputs = output.geometry.shape[0] if output.op == "linear" and output.geometry else 0
    return channels, outputs


def _all_flows(output: Flow[OnnxWeights]) -> list[Flow[OnnxWeights]]:
    seen: dict[Flow[OnnxWeights], None] = {}
    waiting = [output]
    while waiting:
        flow = waiting.pop()
        if flow not in seen:
            seen[flow] = None
            waiting.extend(flow.inputs)
    return list(seen)


@torch.no_grad()
def _fill(network: nn.Module, pairs: list[tuple[str, OnnxWeights]]) -> None:
    for name, (weight, bias) in pairs:
        layer = network.get_submodule(name)
        layer.get_parameter("weight").copy_(torch.from_numpy(np.array(weight)))
        # A published layer without bias matches one of ours with or without it.
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(np.array(bias)))


def _probe(contract: Contract) -> NDArray[np.generic]:
    return prepare_input(fingerprint_image(7, contract.input_size)[None], contract)


@torch.no_grad()
def _prove(network: nn.Module, expected: NDArray[np.float32], contract: Contract, path: Path) -> None:
    found = network(torch.from_numpy(_probe(contract))).numpy()
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE:
        raise ImportOnnxError(f"{path}: the rebuilt network differs from the file by {difference:g}, not imported")

"""Puts crop, network and the way back to pixels into one model."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from pfld_edge_convert.end_to_end.crop_nodes import crop_nodes
from pfld_edge_convert.end_to_end.network_nodes import input_nodes, output_nodes
from pfld_edge_convert.end_to_end.node_writer import NodeWriter
from pfld_edge_convert.end_to_end.window_nodes import window_nodes
from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.passes.graph_index import onnx_opset
from pfld_edge_convert.passes.upgrade_opset import OPSET
from pfld_edge_runtime import Contract

__all__ = [
    "BOXES_NAME",
    "IMAGE_NAME",
    "LANDMARKS_NAME",
    "end_to_end_contract",
    "end_to_end_model",
    "end_to_end_path",
]

IMAGE_NAME = "image"
BOXES_NAME = "boxes"
LANDMARKS_NAME = "landmarks"

_CROP = "crop/"
_NETWORK = "network/"


def end_to_end_path(model_path: Path) -> Path:
    """Name of the end-to-end file beside a model: ``face.int8.onnx`` has ``face.int8.e2e.onnx``."""
    return model_path.with_suffix(f".e2e{model_path.suffix}")


def end_to_end_contract(contract: Contract) -> Contract:
    """Say what the end-to-end graph of a network takes and gives; without fingerprint.

    Mean, scale and crop rule stay on record, though the graph itself obeys them.
    """
    return contract.replace(
        color_order="rgb",
        mean=contract.mean[::-1] if contract.color_order == "bgr" else contract.mean,
        scale=contract.scale[::-1] if contract.color_order == "bgr" else contract.scale,
        layout="HWC",
        input_dtype="uint8",
        output_space="image-pixels",
        fingerprint=None,
    )


def end_to_end_model(network: onnx.ModelProto, contract: Contract) -> onnx.ModelProto:
    """Wrap a network: photograph and boxes in, landmarks in photograph pixels out.

    Inputs: ``image`` ``(H, W, 3)`` uint8, RGB; ``boxes`` ``(N, 4)`` float32, x0 y0 x1 y1 in pixels, tight around the
    landmarks, N may be 0. Output: ``landmarks`` ``(N, P, 2)`` float32, x and y in pixels; NaN for a box without area,
    not finite, or beyond 1e9 pixels, where `pfld_edge_runtime` raises `BoxError`. All that is added are standard
    operators of opset 18; the network's nodes are copied as they are, but for the names of their input and output.

    Args:
        network: Of opset 18 and any batch size; left as it is.
        contract: The network's.

    Raises:
        ConvertError: The network has another opset, a fixed batch, or is an end-to-end graph already.
    """
    _check_network(network, contract)
    write = NodeWriter(_free_prefix(network, _CROP))
    windows = window_nodes(write, BOXES_NAME, contract.crop.margin)
    crops = crop_nodes(write, IMAGE_NAME, windows, contract.input_size)
    batch = input_nodes(write, crops, contract)
    renamed = _renamed(network, batch, _free_prefix(network, _NETWORK))
    before, points = len(write.nodes), contract.landmarks.num_landmarks
    output_nodes(write, renamed.output[0].name, windows, points, LANDMARKS_NAME)
    graph = helper.make_graph(
        [*write.nodes[:before], *renamed.node, *write.nodes[before:]],
        "end_to_end",
        [
            helper.make_tensor_value_info(IMAGE_NAME, TensorProto.UINT8, ["height", "width", 3]),
            helper.make_tensor_value_info(BOXES_NAME, TensorProto.FLOAT, ["faces", 4]),
        ],
        [helper.make_tensor_value_info(LANDMARKS_NAME, TensorProto.FLOAT, ["faces", points, 2])],
        [*write.constants, *renamed.initializer],
    )
    made = helper.make_model(graph, opset_imports=list(network.opset_import), ir_version=network.ir_version)
    made.metadata_props.extend(network.metadata_props)
    onnx.checker.check_model(made)
    return made


def _check_network(network: onnx.ModelProto, contract: Contract) -> None:
    if contract.output_space != "crop-fraction":
        raise ConvertError("the model is an end-to-end graph already: wrap the plain file that it was made from")
    if onnx_opset(network) != OPSET:
        raise ConvertError(f"an end-to-end graph needs a network of opset {OPSET}, this one has {onnx_opset(network)}")
    if network.graph.input[0].type.tensor_type.shape.dim[0].dim_value:
        raise ConvertError("an end-to-end graph needs a network that takes any number of faces; this one's is fixed")


def _free_prefix(network: onnx.ModelProto, prefix: str) -> str:
    """Give the prefix, longer where the network has names that begin so."""
    names = {name for node in network.graph.node for name in (*node.input, *node.output, node.name)}
    while any(name.startswith(prefix) for name in names):
        prefix = f"_{prefix}"
    return prefix


def _renamed(network: onnx.ModelProto, batch: str, prefix: str) -> onnx.GraphProto:
    """Copy a network's graph; it reads `batch`, and its tensors make room for the names of the whole graph's."""
    graph = onnx.GraphProto()
    graph.CopyFrom(network.graph)
    new = {name: prefix + name for name in (IMAGE_NAME, BOXES_NAME, LANDMARKS_NAME)}
    new[graph.input[0].name] = batch
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new.get(name, name) for name in names]
    for item in (*graph.initializer, *graph.output):
        item.name = new.get(item.name, item.name)
    return graph

"""Wraps a network in one ONNX graph that takes a photograph and boxes, and compares it with the plain file."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from pfld_edge_calib import Face, jittered, portraits, read_photo
from pfld_edge_convert.end_to_end.crop_nodes import NodeWriter, WindowTensors, crop_nodes, window_nodes
from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.inference import open_model
from pfld_edge_convert.model_file import FINGERPRINT_SEED
from pfld_edge_convert.passes.base import onnx_opset
from pfld_edge_convert.passes.canonical_form import OPSET
from pfld_edge_runtime import Contract, FaceLandmarker, Fingerprint, crop_windows, fingerprint_image

IMAGE_NAME = "image"
BOXES_NAME = "boxes"
LANDMARKS_NAME = "landmarks"

ALLOWED_PIXELS = 0.05
"""Crops are the runtime's bit for bit, so what is left is how onnxruntime orders a network's sums in a larger graph."""

PROOF_FACES = 16

_CROP = "crop/"
_NETWORK = "network/"

Float = NDArray[np.float32]


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
    batch = _input_nodes(write, crops, contract)
    renamed = _renamed(network, batch, _free_prefix(network, _NETWORK))
    before, points = len(write.nodes), contract.landmarks.num_landmarks
    _output_nodes(write, renamed.output[0].name, windows, points, LANDMARKS_NAME)
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


def _input_nodes(write: NodeWriter, crops: str, contract: Contract) -> str:
    """Write `pfld_edge_runtime.prepare_input` for RGB crops.

    Args:
        write: Gets the nodes.
        crops: Name of ``(N, S, S, 3)`` uint8, RGB.
        contract: The network's.

    Returns:
        Name of what the network takes.
    """
    size, swap = contract.input_size, contract.color_order == "bgr"
    batch = crops
    if contract.input_dtype == "float32":
        factor = 1 / np.array(contract.scale, np.float32)
        offset = np.array(contract.mean, np.float32) * factor
        # The contract counts channels as the network does, and they are not swapped yet.
        rgb = slice(None, None, -1) if swap else slice(None)
        real = write.cast(
            "real_levels", write.add("rows", "Reshape", crops, write.numbers(0, size, 3 * size)), TensorProto.FLOAT
        )
        scaled = write.add("scaled_levels", "Mul", real, write.constant("factor", np.tile(factor[rgb], size)))
        shifted = write.add("normalized", "Sub", scaled, write.constant("offset", np.tile(offset[rgb], size)))
        batch = write.add("normalized_crops", "Reshape", shifted, write.numbers(0, size, size, 3))
    # Swapped as planes: onnxruntime moves three large blocks, where channels last it would move single bytes.
    if swap or contract.layout == "NCHW":
        batch = write.add("planar", "Transpose", batch, perm=[0, 3, 1, 2])
    if swap:
        batch = write.add("swapped", "Gather", batch, write.numbers(2, 1, 0), axis=1)
    if swap and contract.layout == "NHWC":
        batch = write.add("channels_last", "Transpose", batch, perm=[0, 2, 3, 1])
    return batch


def _output_nodes(write: NodeWriter, fractions: str, windows: WindowTensors, points: int, output: str) -> None:
    """Write `pfld_edge_runtime.CropWindows.to_image`; NaN for boxes that can't be used.

    Args:
        write: Gets the nodes.
        fractions: Name of the network's ``(N, 2 P)`` output.
        windows: What was cut.
        points: P.
        output: Name of the ``(N, P, 2)`` float32 result, photograph pixels.
    """
    pairs = write.add("fractions", "Reshape", fractions, write.numbers(0, points, 2))
    real = write.cast("real_fractions", pairs, TensorProto.DOUBLE)
    side = write.add("real_sides", "Unsqueeze", write.cast("sides", windows.side, TensorProto.DOUBLE), write.numbers(2))
    corner = write.add(
        "real_corners", "Unsqueeze", write.cast("corners", windows.corner, TensorProto.DOUBLE), write.numbers(1)
    )
    moved = write.add("in_photo", "Add", write.add("in_pixels", "Mul", real, side), corner)
    landmarks = write.cast("all_landmarks", moved, TensorProto.FLOAT)
    usable = write.add("usable_faces", "Unsqueeze", windows.usable, write.numbers(2))
    unknown = write.constant("unknown", np.array(np.nan, np.float32))
    write.add("known_landmarks", "Where", usable, landmarks, unknown)
    write.nodes[-1].output[0] = output


def largest_difference(graph: onnx.ModelProto, plain: bytes) -> float:
    """Run both on the bundled portraits, under their own boxes, moved ones, and one that leaves the photograph.

    Args:
        graph: The end-to-end graph.
        plain: The ONNX file that it was made from, with its contract.

    Returns:
        The largest difference of a coordinate, in pixels.

    Raises:
        ConvertError: onnxruntime refuses the graph, or the difference exceeds `ALLOWED_PIXELS`.
    """
    session, landmarker = open_model(graph), FaceLandmarker(plain)
    found, expected = [], []
    for face in portraits(landmarker.contract):
        photo = np.ascontiguousarray(read_photo(face.image)[:, :, ::-1])
        boxes = _boxes(face)
        found.append(_run(session, photo, boxes))
        expected.append(landmarker(photo, boxes, "rgb"))
    difference = float(np.abs(np.concatenate(found).astype(np.float64) - np.concatenate(expected)).max())
    # Not `difference > ...`: NaN must not pass.
    if not difference <= ALLOWED_PIXELS:
        raise ConvertError(
            f"the end-to-end graph differs from the plain file by {difference:.3g} px on the bundled portraits; "
            f"at most {ALLOWED_PIXELS:g} px is allowed"
        )
    return difference


def pixel_fingerprint(graph: onnx.ModelProto, contract: Contract, tolerance: float) -> Fingerprint:
    """Record what a graph answers to the runtime's seeded image, of which the whole is the box.

    Args:
        graph: As it will be shipped.
        contract: Of the network inside: gives the image's size, and the crop's margin.
        tolerance: Largest difference, in fractions of the crop, that a device may show.
    """
    size = contract.input_size
    box = np.array([[0, 0, size, size]], np.float32)
    output = _run(open_model(graph), fingerprint_image(FINGERPRINT_SEED, size), box).ravel()
    side = int(crop_windows(box, contract.crop.margin).sizes[0])
    return Fingerprint(FINGERPRINT_SEED, tuple(round(float(value), 6) for value in output), tolerance * side)


def _boxes(face: Face) -> Float:
    count = PROOF_FACES // 2
    boxes = np.stack([item.bbox_xyxy for item in jittered([face], count - 1)])
    # The face's own box, moved until its centre is the photograph's corner: three quarters of it lie outside.
    outside = boxes[:1] - (boxes[:1, :2] + np.ptp(boxes[:1].reshape(2, 2), axis=0) / 2)[:, [0, 1, 0, 1]]
    return np.concatenate([boxes, outside]).astype(np.float32)


def _run(session: onnxruntime.InferenceSession, image: NDArray[np.uint8], boxes: Float) -> Float:
    try:
        found = session.run(None, {"image": image, "boxes": boxes})[0]
    except Exception as error:
        raise ConvertError(f"the end-to-end graph can't run: {' '.join(str(error).split())[:300]}") from error
    return np.asarray(found, np.float32)

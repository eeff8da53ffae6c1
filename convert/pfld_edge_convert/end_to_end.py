"""Wraps a network in one ONNX graph from photograph and boxes to landmarks in pixels, and compares it with the file.

The runtime's crop is written as ONNX nodes: boxes to windows in double precision, windows to crops bit for bit.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_calib import Face, jittered, portraits, read_photo
from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.inference import open_model
from pfld_edge_convert.model_file import FINGERPRINT_SEED
from pfld_edge_convert.passes.canonical_form import OPSET
from pfld_edge_convert.passes.graph_index import onnx_opset
from pfld_edge_runtime import Contract, FaceLandmarker, Fingerprint, crop_windows, fingerprint_image

IMAGE_NAME = "image"
BOXES_NAME = "boxes"
LANDMARKS_NAME = "landmarks"

ALLOWED_PIXELS = 0.05
"""Crops are the runtime's bit for bit, so what is left is how onnxruntime orders a network's sums in a larger graph."""

PROOF_FACES = 16

_CROP = "crop/"
_NETWORK = "network/"

_LARGEST_COORDINATE = 1e9
"""The runtime's own limit: beyond it, integer arithmetic on sizes could overflow."""

Float = NDArray[np.float32]


class NodeWriter:
    """Collects nodes, in an order in which they can run, and constants; their names share a prefix like ``crop/``."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: object, dtype: type[np.generic]) -> str:
        """Add a constant; returns its tensor's name."""
        full = self.prefix + name
        if all(tensor.name != full for tensor in self.constants):
            self.constants.append(numpy_helper.from_array(np.array(value, dtype, order="C"), full))
        return full

    def numbers(self, *values: int) -> str:
        """Add a row of int64 numbers, which axes, sizes and indices are."""
        return self.constant("int_" + "_".join(map(str, values)), values, np.int64)

    def add(self, name: str, operator: str, *inputs: str, **attributes: Any) -> str:  # noqa: ANN401 - ONNX's attribute types
        """Add a node of the standard operator set; returns its output's name, which is the node's too."""
        full = self.prefix + name
        self.nodes.append(helper.make_node(operator, list(inputs), [full], full, **attributes))
        return full

    def cast(self, name: str, source: str, to: int) -> str:
        """Add a change of type, `to` one of ``onnx.TensorProto``'s."""
        return self.add(name, "Cast", source, to=to)

    def pick(self, name: str, source: str, index: int, axis: int) -> str:
        """Add ``source[..., index, ...]``, the axis gone."""
        scalar = self.constant(f"index_{index}", index, np.int64)
        return self.add(name, "Gather", source, scalar, axis=axis)


@dataclass(frozen=True, slots=True)
class WindowTensors:
    """Tensors that the window nodes give.

    Attributes:
        corner: ``(N, 2)`` int64, x and y of each window's top left corner in photograph pixels; may be negative.
        side: ``(N, 1)`` int64, its side in pixels, at least 1.
        usable: ``(N, 1)`` bool, false where a box has no area or is not finite; its window is that of a stand-in.
    """

    corner: str
    side: str
    usable: str


def end_to_end_path(model_path: Path) -> Path:
    """Name of the end-to-end file beside a model: ``face.int8.onnx`` has ``face.int8.e2e.onnx``."""
    return model_path.with_suffix(f".e2e{model_path.suffix}")


def end_to_end_contract(contract: Contract) -> Contract:
    """Say what the end-to-end graph of a network takes and gives; without fingerprint.

    Mean, scale and crop rule stay on record, though the graph itself obeys them.
    """
    rgb = slice(None, None, -1 if contract.color_order == "bgr" else 1)
    return contract.replace(
        color_order="rgb",
        mean=contract.mean[rgb],
        scale=contract.scale[rgb],
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
    """Write `pfld_edge_runtime.prepare_input` for RGB crops ``(N, S, S, 3)`` uint8; gives what the network takes."""
    size, swap = contract.input_size, contract.color_order == "bgr"
    batch = crops
    if contract.input_dtype == "float32":
        factor = 1 / np.array(contract.scale, np.float32)
        offset = np.array(contract.mean, np.float32) * factor
        # The contract counts channels as the network does, and they are not swapped yet.
        rgb = slice(None, None, -1) if swap else slice(None)
        rows = write.add("rows", "Reshape", crops, write.numbers(0, size, 3 * size))
        real = write.cast("real_levels", rows, TensorProto.FLOAT)
        tiled = write.constant("factor", np.tile(factor[rgb], size), np.float32)
        scaled = write.add("scaled_levels", "Mul", real, tiled)
        tiled = write.constant("offset", np.tile(offset[rgb], size), np.float32)
        shifted = write.add("normalized", "Sub", scaled, tiled)
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
    """Write `pfld_edge_runtime.CropWindows.to_image`, NaN for boxes that can't be used.

    From the network's ``(N, 2 P)`` fractions to ``(N, P, 2)`` float32, photograph pixels.
    """
    pairs = write.add("fractions", "Reshape", fractions, write.numbers(0, points, 2))
    real = write.cast("real_fractions", pairs, TensorProto.DOUBLE)
    sides = write.cast("sides", windows.side, TensorProto.DOUBLE)
    side = write.add("real_sides", "Unsqueeze", sides, write.numbers(2))
    corners = write.cast("corners", windows.corner, TensorProto.DOUBLE)
    corner = write.add("real_corners", "Unsqueeze", corners, write.numbers(1))
    moved = write.add("in_photo", "Add", write.add("in_pixels", "Mul", real, side), corner)
    landmarks = write.cast("all_landmarks", moved, TensorProto.FLOAT)
    usable = write.add("usable_faces", "Unsqueeze", windows.usable, write.numbers(2))
    unknown = write.constant("unknown", np.nan, np.float32)
    write.add("known_landmarks", "Where", usable, landmarks, unknown)
    write.nodes[-1].output[0] = output


def largest_difference(graph: onnx.ModelProto, plain: bytes) -> float:
    """Compare an end-to-end graph with the ONNX file that it was made from: the largest difference, in pixels.

    Both run on the bundled portraits, under their own boxes, moved ones, and one that leaves the photograph.

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

    The contract is that of the network inside; the tolerance is the largest difference that a device may show, in
    fractions of the crop.
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


def window_nodes(write: NodeWriter, boxes: str, margin: float) -> WindowTensors:
    """Write the window arithmetic, in double precision as the runtime's is.

    A graph can't raise errors: a box that the runtime refuses becomes one of a pixel here, so that no number which
    isn't one reaches an index, and `usable` says so.
    """
    edges = write.cast("edges", boxes, TensorProto.DOUBLE)
    usable = _usable(write, edges)
    stand_in = write.constant("stand_in", [0, 0, 1, 1], np.float64)
    safe = write.add("safe_edges", "Where", usable, edges, stand_in)
    low = write.add("low", "Gather", safe, write.numbers(0, 1), axis=1)
    extent = write.add("extent", "Sub", write.add("high", "Gather", safe, write.numbers(2, 3), axis=1), low)
    longer = write.add(
        "longer", "Max", *(write.add(f"extent_{i}", "Gather", extent, write.numbers(i), axis=1) for i in (0, 1))
    )
    scaled = write.add("scaled", "Mul", longer, write.constant("margin", margin, np.float64))
    side = write.add("side", "Max", write.cast("whole_side", scaled, TensorProto.INT64), write.numbers(1))
    half = write.add("half_extent", "Div", extent, write.constant("two", 2, np.float64))
    center = write.add("floor_center", "Floor", write.add("center", "Add", low, half))
    whole_center = write.cast("whole_center", center, TensorProto.INT64)
    corner = write.add("corner", "Sub", whole_center, write.add("half_side", "Div", side, write.numbers(2)))
    return WindowTensors(corner, side, usable)


def _usable(write: NodeWriter, edges: str) -> str:
    # Comparisons with NaN are false. Where x1 > x0, |x0| and |x1| are small if x0 isn't too low and x1 not too high.
    low = write.add("given_low", "Gather", edges, write.numbers(0, 1), axis=1)
    high = write.add("given_high", "Gather", edges, write.numbers(2, 3), axis=1)
    most = write.constant("most", _LARGEST_COORDINATE, np.float64)
    least = write.constant("least", -_LARGEST_COORDINATE, np.float64)
    limits = write.add("not_low", "GreaterOrEqual", low, least), write.add("not_high", "LessOrEqual", high, most)
    within = write.add("within", "And", *limits)
    good = write.add("good", "And", within, write.add("has_area", "Greater", high, low))
    columns = [write.add(f"good_{i}", "Gather", good, write.numbers(i), axis=1) for i in (0, 1)]
    return write.add("usable", "And", *columns)


@dataclass(frozen=True, slots=True)
class _Taps:
    """One of the two source lines that each line of a crop mixes: ``(N, S)`` int64 indices within the photograph.

    The weights are ``(N, S)`` float32, zero where the line lies outside.
    """

    columns: str
    rows: str
    column_weights: str
    row_weights: str


def crop_nodes(write: NodeWriter, image: str, windows: WindowTensors, size: int) -> str:
    """Write the bilinear crop: OpenCV's sampling positions, zeros outside the photograph, rounded to whole grey levels.

    ``Resize`` and ``RoiAlign`` clamp at other edges and ``GridSample`` wants the whole photograph in float, so taps are
    gathered from the bytes as they are and only what was gathered becomes float. Sums and products are in the
    runtime's order, so that the bytes of the ``(N, S, S, 3)`` uint8 crops, channels as in the photograph, are its too.
    """
    height_width = write.add("height_width", "Shape", image, start=0, end=2)
    lengths = write.add("width_height", "Gather", height_width, write.numbers(1, 0), axis=0)
    lengths = write.add("lengths", "Unsqueeze", lengths, write.numbers(1))
    first, fraction = _positions(write, windows, size)
    one = write.constant("one", 1, np.float32)
    weights = (write.add("near_weight", "Sub", one, fraction), fraction)
    near, far = (_taps(write, windows, lengths, first, weight, offset) for offset, weight in enumerate(weights))
    pixels = write.add("pixels", "Reshape", image, write.numbers(-1, 3))
    width = write.pick("width", height_width, 1, 0)
    sides = []
    for name, columns in (("left", near), ("right", far)):
        upper, lower = (
            _weighted_tap(write, f"{part}_{name}", pixels, width, rows, columns, size)
            for part, rows in (("upper", near), ("lower", far))
        )
        both = write.add(f"{name}_rows", "Add", upper, lower)
        sides.append(write.add(f"{name}_part", "Mul", both, _spread(write, name, columns.column_weights, size)))
    mixed = write.add("mixed", "Add", *sides)
    half = write.constant("half", 0.5, np.float32)
    levels = write.cast("levels", write.add("rounded", "Add", mixed, half), TensorProto.UINT8)
    return write.add("crops", "Reshape", levels, write.numbers(0, size, size, 3))


def _positions(write: NodeWriter, windows: WindowTensors, size: int) -> tuple[str, str]:
    """``(N, S)``: the line of the window at or before each output line, int64, and the way to the next, float32."""
    side = write.cast("real_side", windows.side, TensorProto.DOUBLE)
    scale = write.add("scale", "Div", side, write.constant("size", size, np.float64))
    centers = write.constant("line_centers", np.arange(size) + 0.5, np.float64)
    scaled = write.add("scaled_centers", "Mul", centers, scale)
    position = write.add("position", "Sub", scaled, write.constant("half_line", 0.5, np.float64))
    floor = write.add("floor_position", "Floor", position)
    fraction = write.cast("fraction", write.add("beyond", "Sub", position, floor), TensorProto.FLOAT)
    return write.cast("first", floor, TensorProto.INT64), fraction


def _taps(write: NodeWriter, windows: WindowTensors, lengths: str, first: str, weight: str, offset: int) -> _Taps:
    """Take the line `offset` lines after the first, of both axes at once: ``(N, 2, S)``, x before y."""
    zero, name = write.numbers(0), ("near", "far")[offset]
    line = write.add(f"{name}_line", "Max", write.add(f"{name}_step", "Add", first, write.numbers(offset)), zero)
    last = write.add(f"{name}_last", "Sub", windows.side, write.numbers(1))
    line = write.add(f"{name}_in_window", "Min", line, last)
    line = write.add(f"{name}_row", "Unsqueeze", line, write.numbers(1))
    start = write.add(f"{name}_start", "Unsqueeze", windows.corner, write.numbers(2))
    line = write.add(f"{name}_in_photo", "Add", line, start)
    not_before = write.add(f"{name}_not_before", "GreaterOrEqual", line, zero)
    inside = write.add(f"{name}_inside", "And", not_before, write.add(f"{name}_not_after", "Less", line, lengths))
    nothing = write.constant("nothing", 0, np.float32)
    both = write.add(f"{name}_both", "Unsqueeze", weight, write.numbers(1))
    weights = write.add(f"{name}_weights", "Where", inside, both, nothing)
    end = write.add(f"{name}_end", "Sub", lengths, write.numbers(1))
    legal = write.add(f"{name}_legal", "Min", write.add(f"{name}_not_negative", "Max", line, zero), end)
    return _Taps(
        write.pick(f"{name}_columns", legal, 0, 1),
        write.pick(f"{name}_rows_index", legal, 1, 1),
        write.pick(f"{name}_column_weights", weights, 0, 1),
        write.pick(f"{name}_row_weights", weights, 1, 1),
    )


def _weighted_tap(write: NodeWriter, name: str, pixels: str, width: str, rows: _Taps, columns: _Taps, size: int) -> str:
    """``(N, S, 3 S)`` float32: one tap of every pixel of the crops, times its row's weight."""
    starts = write.add(f"{name}_row_starts", "Mul", rows.rows, width)
    starts = write.add(f"{name}_down", "Unsqueeze", starts, write.numbers(2))
    across = write.add(f"{name}_across", "Unsqueeze", columns.columns, write.numbers(1))
    tap = write.add(f"{name}_tap", "Gather", pixels, write.add(f"{name}_index", "Add", starts, across), axis=0)
    # Rows of 3 S numbers: a last axis of three channels would make every product a loop over three.
    levels = write.add(f"{name}_levels", "Reshape", tap, write.numbers(0, size, 3 * size))
    real = write.cast(f"{name}_real", levels, TensorProto.FLOAT)
    weight = write.add(f"{name}_weight", "Unsqueeze", rows.row_weights, write.numbers(2))
    return write.add(f"{name}_weighted", "Mul", real, weight)


def _spread(write: NodeWriter, name: str, column_weights: str, size: int) -> str:
    """``(N, 1, 3 S)``: every column's weight for each of its channels."""
    single = write.add(f"{name}_single", "Unsqueeze", column_weights, write.numbers(2))
    triple = write.add(f"{name}_triple", "Expand", single, write.numbers(1, 1, 3))
    return write.add(f"{name}_spread", "Reshape", triple, write.numbers(0, 1, 3 * size))

"""Wraps a network in one ONNX graph from photograph and boxes to landmarks in pixels, and compares it with the file.

The runtime's crop is written as ONNX nodes: boxes to windows in double precision, windows to crops bit for bit.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pfld_edge_calib import Face, jittered, portraits, read_photo
from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.model_file import FINGERPRINT_SEED, open_model
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
    ConvertError where the network has an older opset, a fixed batch, or is an end-to-end graph already.
    """
    _check_network(network, contract)
    graph, prefix = _own_graph(contract), _free_prefix(network, _CROP)
    place = next(place for place, node in enumerate(graph.node) if node.op_type == "Network")
    renamed = _renamed(network, prefix + graph.node[place].input[0], _free_prefix(network, _NETWORK))
    kept = {name: name for name in (IMAGE_NAME, BOXES_NAME, LANDMARKS_NAME)}
    kept[graph.node[place].output[0]] = renamed.output[0].name
    for node in graph.node:
        node.name = prefix + node.output[0]
        for names in (node.input, node.output):
            names[:] = [kept.get(name, prefix + name) for name in names]
    for constant in graph.initializer:
        constant.name = prefix + constant.name
    nodes = [*graph.node[:place], *renamed.node, *graph.node[place + 1 :]]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(renamed.initializer)
    made = helper.make_model(graph, opset_imports=list(network.opset_import), ir_version=network.ir_version)
    made.metadata_props.extend(network.metadata_props)
    onnx.checker.check_model(made)
    return made


def _check_network(network: onnx.ModelProto, contract: Contract) -> None:
    if contract.output_space != "crop-fraction":
        raise ConvertError("the model is an end-to-end graph already: wrap the plain file that it was made from")
    if onnx_opset(network) < OPSET:
        raise ConvertError(
            f"an end-to-end graph needs a network of at least opset {OPSET}, this one has {onnx_opset(network)}"
        )
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


_DECLARED = """
end_to_end (uint8[height, width, 3] image, float[faces, 4] boxes) => (float[faces, %(points)d, 2] landmarks) <
    double most = {1e9}, double least = {-1e9}, double[4] stand_in = {0, 0, 1, 1}, double two = {2},
    double size = {%(size)d}, double half_line = {0.5}, float one = {1}, float half = {0.5}, float nothing = {0},
    float parts = {256},
    int64 index_0 = {0}, int64 index_1 = {1}, int64[1] int_0 = {0}, int64[1] int_1 = {1}, int64[1] int_2 = {2},
    int64[2] int_0_1 = {0, 1}, int64[2] int_2_3 = {2, 3}, int64[2] int_1_0 = {1, 0}, int64[3] int_2_1_0 = {2, 1, 0},
    int64[2] pixel_rows = {-1, 3}, int64[3] planar_rows = {0, %(size)d, %(row)d}, int64[3] one_row = {0, 1, %(row)d},
    int64[3] int_1_1_3 = {1, 1, 3}, int64[4] crop_shape = {0, %(size)d, %(size)d, 3},
    int64[3] point_pairs = {0, %(points)d, 2}
>"""

_WINDOWS = """
    edges = Cast <to = 11> (boxes)
    given_low = Gather <axis = 1> (edges, int_0_1)
    given_high = Gather <axis = 1> (edges, int_2_3)
    not_low = GreaterOrEqual (given_low, least)
    not_high = LessOrEqual (given_high, most)
    within = And (not_low, not_high)
    has_area = Greater (given_high, given_low)
    good = And (within, has_area)
    good_0 = Gather <axis = 1> (good, int_0)
    good_1 = Gather <axis = 1> (good, int_1)
    usable = And (good_0, good_1)
    safe_edges = Where (usable, edges, stand_in)
    low = Gather <axis = 1> (safe_edges, int_0_1)
    high = Gather <axis = 1> (safe_edges, int_2_3)
    extent = Sub (high, low)
    extent_0 = Gather <axis = 1> (extent, int_0)
    extent_1 = Gather <axis = 1> (extent, int_1)
    longer = Max (extent_0, extent_1)
    scaled = Mul (longer, margin)
    whole_side = Cast <to = 7> (scaled)
    side = Max (whole_side, int_1)
    half_extent = Div (extent, two)
    center = Add (low, half_extent)
    floor_center = Floor (center)
    whole_center = Cast <to = 7> (floor_center)
    half_side = Div (side, int_2)
    corner = Sub (whole_center, half_side)
"""
"""From boxes to windows in double precision, as the runtime's are: `corner` ``(N, 2)`` int64, x and y of the top left
corner in photograph pixels, may be negative; `side` ``(N, 1)`` int64, at least 1.

A graph can't raise errors: a box that the runtime refuses (without area, not finite, too far out; comparisons with NaN
are false) becomes one of a pixel, so that no number which isn't one reaches an index, and `usable` ``(N, 1)`` says so.
"""

_POSITIONS = """
    height_width = Shape <start = 0, end = 2> (image)
    width_height = Gather <axis = 0> (height_width, int_1_0)
    lengths = Unsqueeze (width_height, int_1)
    real_side = Cast <to = 11> (side)
    scale = Div (real_side, size)
    scaled_centers = Mul (line_centers, scale)
    position = Sub (scaled_centers, half_line)
    floor_position = Floor (position)
    beyond = Sub (position, floor_position)
    far_weight = Cast <to = 1> (beyond)
    first = Cast <to = 7> (floor_position)
    near_weight = Sub (one, far_weight)
    far_parts = Mul (far_weight, parts)
    far_half = Add (far_parts, half)
    far_whole = Floor (far_half)
    far_row_weight = Div (far_whole, parts)
    near_row_weight = Sub (one, far_row_weight)
    pixels = Reshape (image, pixel_rows)
    width = Gather <axis = 0> (height_width, index_1)
"""
"""``(N, S)``: the line of the window at or before each line of a crop, and the weights of this and of the next; rows'
are whole 256ths, as the runtime's are."""

_LINE = """
    {line}_step = Add (first, int_{offset})
    {line}_line = Max ({line}_step, int_0)
    {line}_last = Sub (side, int_1)
    {line}_in_window = Min ({line}_line, {line}_last)
    {line}_row = Unsqueeze ({line}_in_window, int_1)
    {line}_start = Unsqueeze (corner, int_2)
    {line}_in_photo = Add ({line}_row, {line}_start)
    {line}_not_before = GreaterOrEqual ({line}_in_photo, int_0)
    {line}_not_after = Less ({line}_in_photo, lengths)
    {line}_inside = And ({line}_not_before, {line}_not_after)
    {line}_inside_columns = Gather <axis = 1> ({line}_inside, index_0)
    {line}_inside_rows = Gather <axis = 1> ({line}_inside, index_1)
    {line}_column_weights = Where ({line}_inside_columns, {line}_weight, nothing)
    {line}_row_weights = Where ({line}_inside_rows, {line}_row_weight, nothing)
    {line}_end = Sub (lengths, int_1)
    {line}_not_negative = Max ({line}_in_photo, int_0)
    {line}_legal = Min ({line}_not_negative, {line}_end)
    {line}_columns = Gather <axis = 1> ({line}_legal, index_0)
    {line}_rows = Gather <axis = 1> ({line}_legal, index_1)
"""
"""One of the two source lines that each line of a crop mixes, of both axes at once, ``(N, 2, S)``, x before y: indices
that lie in the photograph, and weights that are zero where the line lies outside."""

_TAP = """
    {tap}_row_starts = Mul ({row}_rows, width)
    {tap}_down = Unsqueeze ({tap}_row_starts, int_2)
    {tap}_across = Unsqueeze ({column}_columns, int_1)
    {tap}_index = Add ({tap}_down, {tap}_across)
    {tap}_tap = Gather <axis = 0> (pixels, {tap}_index)
    {tap}_levels = Reshape ({tap}_tap, planar_rows)
    {tap}_real = Cast <to = 1> ({tap}_levels)
    {tap}_weight = Unsqueeze ({row}_row_weights, int_2)
    {tap}_weighted = Mul ({tap}_real, {tap}_weight)
"""
"""``(N, S, 3 S)`` float32: one tap of every pixel of the crops, times its row's weight. Rows are of 3 S numbers: a last
axis of three channels would make every product a loop over three."""

_SIDE = """
    {side}_rows = Add (upper_{side}_weighted, lower_{side}_weighted)
    {side}_single = Unsqueeze ({column}_column_weights, int_2)
    {side}_triple = Expand ({side}_single, int_1_1_3)
    {side}_spread = Reshape ({side}_triple, one_row)
    {side}_part = Mul ({side}_rows, {side}_spread)
"""

_LEVELS = """
    mixed = Add (left_part, right_part)
    rounded = Add (mixed, half)
    levels = Cast <to = 2> (rounded)
    crops = Reshape (levels, crop_shape)
"""

_NORMALIZATION = """
    rows = Reshape (crops, planar_rows)
    real_levels = Cast <to = 1> (rows)
    scaled_levels = Mul (real_levels, factor)
    normalized = Sub (scaled_levels, offset)
    normalized_crops = Reshape (normalized, crop_shape)
"""
"""`pfld_edge_runtime.prepare_input` but for layout and colour order."""

_OUTPUT = """
    fractions = Reshape (network_output, point_pairs)
    real_fractions = Cast <to = 11> (fractions)
    sides = Cast <to = 11> (side)
    real_sides = Unsqueeze (sides, int_2)
    corners = Cast <to = 11> (corner)
    real_corners = Unsqueeze (corners, int_1)
    in_pixels = Mul (real_fractions, real_sides)
    in_photo = Add (in_pixels, real_corners)
    all_landmarks = Cast <to = 1> (in_photo)
    usable_faces = Unsqueeze (usable, int_2)
    landmarks = Where (usable_faces, all_landmarks, unknown)
"""
"""`pfld_edge_runtime.CropWindows.to_image`, NaN for boxes that can't be used: from the network's ``(N, 2 P)`` fractions
to ``(N, P, 2)`` float32, photograph pixels."""


def _crop_nodes() -> str:
    """The bilinear crop: OpenCV's sampling positions, zeros outside the photograph, rounded to whole grey levels.

    ``Resize`` and ``RoiAlign`` clamp at other edges and ``GridSample`` wants the whole photograph in float, so taps are
    gathered from the bytes as they are and only what was gathered becomes float. Sums and products are in the
    runtime's order, so that the bytes of the ``(N, S, S, 3)`` uint8 crops, channels as in the photograph, are its too.
    """
    lines = [_WINDOWS, _POSITIONS, *(_LINE.format(line=line, offset=i) for i, line in enumerate(("near", "far")))]
    for side, column in (("left", "near"), ("right", "far")):
        taps = [(f"upper_{side}", "near"), (f"lower_{side}", "far")]
        lines += [_TAP.format(tap=tap, row=row, column=column) for tap, row in taps]
        lines.append(_SIDE.format(side=side, column=column))
    return "".join([*lines, _LEVELS])


def _input_nodes(contract: Contract) -> str:
    """From RGB crops to the network's input, and a node that stands for the network."""
    nodes, batch, swap = "", "crops", contract.color_order == "bgr"
    if contract.input_dtype == "float32":
        nodes, batch = _NORMALIZATION, "normalized_crops"
    # Swapped as planes: onnxruntime moves three large blocks, where channels last it would move single bytes.
    if swap or contract.layout == "NCHW":
        nodes, batch = f"{nodes} planar = Transpose <perm = [0, 3, 1, 2]> ({batch})", "planar"
    if swap:
        nodes, batch = f"{nodes} swapped = Gather <axis = 1> ({batch}, int_2_1_0)", "swapped"
    if swap and contract.layout == "NHWC":
        nodes, batch = f"{nodes} channels_last = Transpose <perm = [0, 2, 3, 1]> ({batch})", "channels_last"
    return f"{nodes} network_output = Network ({batch})"


def _own_graph(contract: Contract) -> onnx.GraphProto:
    """All nodes but the network's, with their constants."""
    size = contract.input_size
    factor = 1 / np.array(contract.scale, np.float32)
    # The contract counts channels as the network does, and they are not swapped yet.
    rgb = slice(None, None, -1 if contract.color_order == "bgr" else 1)
    constants = {
        "line_centers": np.arange(size) + 0.5,
        "factor": np.tile(factor[rgb], size),
        "offset": np.tile((np.array(contract.mean, np.float32) * factor)[rgb], size),
        "margin": np.array(contract.crop.margin),
        "unknown": np.array(np.nan, np.float32),
    }
    declared = _DECLARED % {"size": size, "row": 3 * size, "points": contract.landmarks.num_landmarks}
    graph = onnx.parser.parse_graph(f"{declared} {{ {_crop_nodes()} {_input_nodes(contract)} {_OUTPUT} }}")
    graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in constants.items())
    read = {name for node in graph.node for name in node.input}
    kept = [constant for constant in graph.initializer if constant.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return graph


def largest_difference(graph: onnx.ModelProto, plain: bytes) -> float:
    """Compare an end-to-end graph with the ONNX file that it was made from: the largest difference, in pixels.

    Both run on the bundled portraits, under their own boxes, moved ones, and one that leaves the photograph.
    ConvertError where onnxruntime refuses the graph, or the difference exceeds `ALLOWED_PIXELS`.
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

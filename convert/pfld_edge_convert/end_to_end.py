"""Wraps a network in one ONNX graph from photograph and boxes to landmarks in pixels, and compares it with the file.

The runtime's crop is written as ONNX nodes: boxes to windows in double precision, windows to crops bit for bit.
"""

from collections.abc import Iterator
from itertools import product
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
from pfld_edge_runtime.contract import MOMENTS

IMAGE_NAME = "image"
BOXES_NAME = "boxes"
LANDMARKS_NAME = "landmarks"
CONFIDENCE_NAME = "confidence"

_MEANING = {
    IMAGE_NAME: "a photograph: rows from the top, RGB",
    BOXES_NAME: "x0 y0 x1 y1 in pixels, tight around the landmarks; of 6 columns the 5th is ignored, the 6th the roll: "
    "degrees by which the face leans, positive clockwise",
    LANDMARKS_NAME: "x y in pixels",
    CONFIDENCE_NAME: "0 to 1: the probability that a point is good",
}

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
    landmarks, N may be 0. Two more columns are a score, which is ignored, and the `roll` of `crop_windows`: a column
    rather than an input, for every language can leave it out, where onnxruntime-web demands all inputs. Outputs:
    ``landmarks`` ``(N, P, 2)`` float32, x and y in pixels, and, of a network that tells it, ``confidence`` ``(N, P)``,
    that of `LandmarkModel.locate_with_confidence`; NaN for a box without area, or a number that is not finite or beyond
    1e9, where `pfld_edge_runtime` raises `BoxError`. All that is added are standard operators of opset 18; the
    network's nodes are copied as they are, but for the names of their input and outputs. ConvertError where the network
    has an older opset, a fixed batch, or is an end-to-end graph already.
    """
    _check_network(network, contract)
    graph, prefix = _own_graph(contract, _tells_spread(network)), _free_prefix(network, _CROP)
    place = next(place for place, node in enumerate(graph.node) if node.op_type == "Network")
    renamed = _renamed(network, prefix + graph.node[place].input[0], _free_prefix(network, _NETWORK))
    kept = {name: name for name in _MEANING}
    kept |= zip(graph.node[place].output, (output.name for output in renamed.output), strict=False)
    for part in _with_subgraphs(graph):
        for node in part.node:
            node.name = prefix + node.output[0]
            for names in (node.input, node.output):
                names[:] = [kept.get(name, prefix + name) for name in names]
        for output in part.output:
            output.name = kept.get(output.name, prefix + output.name)
    for constant in graph.initializer:
        constant.name = prefix + constant.name
    for value in (*graph.input, *graph.output):
        value.doc_string = _MEANING[value.name]
    nodes = [*graph.node[:place], *renamed.node, *graph.node[place + 1 :]]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(renamed.initializer)
    made = helper.make_model(graph, opset_imports=list(network.opset_import), ir_version=network.ir_version)
    made.metadata_props.extend(network.metadata_props)
    onnx.checker.check_model(made)
    return made


def _with_subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for value in node.attribute:
            if value.HasField("g"):
                yield from _with_subgraphs(value.g)


def _check_network(network: onnx.ModelProto, contract: Contract) -> None:
    if contract.output_space != "crop-fraction":
        raise ConvertError("the model is an end-to-end graph already: wrap the plain file that it was made from")
    if onnx_opset(network) < OPSET:
        raise ConvertError(
            f"an end-to-end graph needs a network of at least opset {OPSET}, this one has {onnx_opset(network)}"
        )
    if network.graph.input[0].type.tensor_type.shape.dim[0].dim_value:
        raise ConvertError("an end-to-end graph needs a network that takes any number of faces; this one's is fixed")


def _tells_spread(network: onnx.ModelProto) -> bool:
    return [output.name for output in network.graph.output[1:]] == [MOMENTS]


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
    new = {name: prefix + name for name in _MEANING}
    new[graph.input[0].name] = batch
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new.get(name, name) for name in names]
    for item in (*graph.initializer, *graph.output):
        item.name = new.get(item.name, item.name)
    return graph


_DECLARED = """
end_to_end (uint8[height, width, 3] image, float[faces, columns] boxes) => (%(results)s) <
    double most = {1e9}, double least = {-1e9}, double[4] stand_in = {0, 0, 1, 1}, double two = {2},
    double size = {%(size)d}, double half_line = {0.5}, float one = {1}, float half = {0.5}, float nothing = {0},
    float parts = {256}, double upright = {0}, double one_more = {1}, double two_before = {-2},
    int64 index_0 = {0}, int64 index_1 = {1}, int64[1] int_0 = {0}, int64[1] int_1 = {1}, int64[1] int_2 = {2},
    int64[1] int_3 = {3}, int64[1] int_5 = {5}, int64[3] turn_shape = {0, 2, 2}, int64[4] int_0_to_3 = {0, 1, 2, 3},
    int64[2] int_0_1 = {0, 1}, int64[2] int_2_3 = {2, 3}, int64[2] int_1_0 = {1, 0}, int64[3] int_2_1_0 = {2, 1, 0},
    int64[2] pixel_rows = {-1, 3}, int64[3] planar_rows = {0, %(size)d, %(row)d}, int64[3] one_row = {0, 1, %(row)d},
    int64[3] int_1_1_3 = {1, 1, 3}, int64[4] crop_shape = {0, %(size)d, %(size)d, 3},
    int64[3] point_pairs = {0, %(points)d, 2}
>"""

_WINDOWS = """
    faces = Shape <start = 0, end = 1> (boxes)
    absent_shape = Concat <axis = 0> (faces, int_2)
    absent = ConstantOfShape (absent_shape)
    table = Concat <axis = 1> (boxes, absent)
    roll_column = Gather <axis = 1> (table, int_5)
    given_roll = Cast <to = 11> (roll_column)
    roll_not_low = GreaterOrEqual (given_roll, least)
    roll_not_high = LessOrEqual (given_roll, most)
    good_roll = And (roll_not_low, roll_not_high)
    four_columns = Gather <axis = 1> (boxes, int_0_to_3)
    edges = Cast <to = 11> (four_columns)
    given_low = Gather <axis = 1> (edges, int_0_1)
    given_high = Gather <axis = 1> (edges, int_2_3)
    not_low = GreaterOrEqual (given_low, least)
    not_high = LessOrEqual (given_high, most)
    within = And (not_low, not_high)
    has_area = Greater (given_high, given_low)
    good = And (within, has_area)
    good_0 = Gather <axis = 1> (good, int_0)
    good_1 = Gather <axis = 1> (good, int_1)
    good_box = And (good_0, good_1)
    usable = And (good_box, good_roll)
    roll = Where (usable, given_roll, upright)
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
    real_side = Cast <to = 11> (side)
    real_corner = Cast <to = 11> (corner)
    half_window = Div (real_side, two)
    window_center = Add (real_corner, half_window)
    radians = Mul (roll, degree)
    sine = Sin (radians)
    quarter_more = Add (radians, quarter)
    cosine = Sin (quarter_more)
"""
"""From boxes to windows in double precision, as the runtime's are: `corner` ``(N, 2)`` int64, x and y of the top left
corner in photograph pixels, may be negative; `side` ``(N, 1)`` int64, at least 1; `roll` ``(N, 1)`` degrees, 0 where
`boxes` has no such column. onnxruntime-web has no cosine in double precision.

A graph can't raise errors: a box that the runtime refuses (without area, not finite, too far out; comparisons with NaN
are false) becomes one of a pixel, so that no number which isn't one reaches an index, and `usable` ``(N, 1)`` says so.
"""

_POSITIONS = """
    height_width = Shape <start = 0, end = 2> (image)
    width_height = Gather <axis = 0> (height_width, int_1_0)
    lengths = Unsqueeze (width_height, int_1)
    scale = Div (real_side, size)
    scaled_centers = Mul (line_centers, scale)
    position = Sub (scaled_centers, half_line)
    floor_position = Floor (position)
    beyond = Sub (position, floor_position)
    far_weight = Cast <to = 1> (beyond)
    first = Cast <to = 7> (floor_position)
    far_parts = Mul (far_weight, parts)
    far_half = Add (far_parts, half)
    far_whole = Floor (far_half)
    far_row_weight = Div (far_whole, parts)
    far_of_columns = Unsqueeze (far_weight, int_1)
    far_of_rows = Unsqueeze (far_row_weight, int_1)
    far_weight_pair = Concat <axis = 1> (far_of_columns, far_of_rows)
    near_weight_pair = Sub (one, far_weight_pair)
    pixels = Reshape (image, pixel_rows)
    width = Gather <axis = 0> (height_width, index_1)
"""
"""``(N, S)``: the line of the window at or before each line of a crop; ``(N, 2, S)``, x before y: the weights of this
and of the next; rows' are whole 256ths, as the runtime's are."""

_LINE = """
    {line}_step = Add (first, int_{offset})
    {line}_line = Max ({line}_step, int_0)
    {line}_last = Sub (side, int_1)
    {line}_in_window = Min ({line}_line, {line}_last)
    {line}_row = Unsqueeze ({line}_in_window, int_1)
    {line}_start = Unsqueeze (corner, int_2)
    {line}_in_photo = Add ({line}_row, {line}_start)
"""
"""One of the two source lines that each line of a crop mixes, of both axes at once, ``(N, 2, S)``, x before y."""

_INSIDE = """
    {line}_not_before = GreaterOrEqual ({line}_in_photo, int_0)
    {line}_not_after = Less ({line}_in_photo, {lengths})
    {line}_inside = And ({line}_not_before, {line}_not_after)
    {line}_weights = Where ({line}_inside, {line}_weight_pair, nothing)
    {line}_column_weights = Gather <axis = 1> ({line}_weights, index_0)
    {line}_row_weights = Gather <axis = 1> ({line}_weights, index_1)
    {line}_end = Sub ({lengths}, int_1)
    {line}_not_negative = Max ({line}_in_photo, int_0)
    {line}_legal = Min ({line}_not_negative, {line}_end)
    {line}_columns = Gather <axis = 1> ({line}_legal, index_0)
    {line}_rows = Gather <axis = 1> ({line}_legal, index_1)
"""
"""Indices that lie in the photograph, and weights that are zero where the line lies outside."""

_UPRIGHT_INDEX = """
    {tap}_row_starts = Mul ({row}_rows, width)
    {tap}_down = Unsqueeze ({tap}_row_starts, int_2)
    {tap}_across = Unsqueeze ({column}_columns, int_1)
    {tap}_index = Add ({tap}_down, {tap}_across)
    {tap}_weight = Unsqueeze ({row}_row_weights, int_2)
"""

_TURNED_INDEX = """
    {tap}_row_starts = Mul ({row}_rows, width)
    {tap}_index = Add ({tap}_row_starts, {column}_columns)
    {tap}_of_pixels = Mul ({row}_row_weights, {column}_column_weights)
    {tap}_single = Unsqueeze ({tap}_of_pixels, int_3)
    {tap}_triple = Expand ({tap}_single, int_1_1_3)
    {tap}_weight = Reshape ({tap}_triple, planar_rows)
"""

_TAP = """
    {tap}_tap = Gather <axis = 0> (pixels, {tap}_index)
    {tap}_levels = Reshape ({tap}_tap, planar_rows)
    {tap}_real = Cast <to = 1> ({tap}_levels)
    {tap}_weighted = Mul ({tap}_real, {tap}_weight)
"""
"""``(N, S, 3 S)`` float32: one tap of every pixel of the crops, times its weight (upright: its row's). Rows are of 3 S
numbers: a last axis of three channels would make every product a loop over three."""

_SIDE = """
    {side}_rows = Add (upper_{side}_weighted, lower_{side}_weighted)
    {side}_single = Unsqueeze ({column}_column_weights, int_2)
    {side}_triple = Expand ({side}_single, int_1_1_3)
    {side}_spread = Reshape ({side}_triple, one_row)
    {side}_part = Mul ({side}_rows, {side}_spread)
"""

_ROUNDED = """
    {kind}_rounded = Add ({sum}, half)
    {kind}_levels = Cast <to = 2> ({kind}_rounded)
"""

_TURNED_POSITIONS = """
    along_scale = Mul (cosine, scale)
    across_scale = Mul (sine, scale)
    along = Unsqueeze (along_scale, int_1)
    across = Unsqueeze (across_scale, int_1)
    row_steps = Unsqueeze (steps, int_1)
    right_x = Mul (along, steps)
    down_x = Mul (across, row_steps)
    right_y = Mul (across, steps)
    down_y = Mul (along, row_steps)
    turned_x = Sub (right_x, down_x)
    turned_y = Add (right_y, down_y)
    plane_x = Unsqueeze (turned_x, int_1)
    plane_y = Unsqueeze (turned_y, int_1)
    around_center = Concat <axis = 1> (plane_x, plane_y)
    center_pixel = Sub (window_center, half_line)
    center_plane = Unsqueeze (center_pixel, int_2_3)
    anywhere = Add (around_center, center_plane)
    planar_lengths = Unsqueeze (lengths, int_2)
    real_lengths = Cast <to = 11> (planar_lengths)
    farthest = Add (real_lengths, one_more)
    not_far_before = Max (anywhere, two_before)
    turned_position = Min (not_far_before, farthest)
    turned_floor = Floor (turned_position)
    turned_beyond = Sub (turned_position, turned_floor)
    turned_far_weight_pair = Cast <to = 1> (turned_beyond)
    turned_near_weight_pair = Sub (one, turned_far_weight_pair)
    turned_near_in_photo = Cast <to = 7> (turned_floor)
    turned_far_in_photo = Add (turned_near_in_photo, int_1)
"""
"""`pfld_edge_runtime.crop.warp_affine`: ``(N, 2, S, S)``, x before y, the two lines of each pixel of a turned crop."""

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
    side_along = Mul (cosine, real_side)
    side_across = Mul (sine, real_side)
    side_back = Neg (side_across)
    turn_rows = Concat <axis = 1> (side_along, side_across, side_back, side_along)
    turn = Reshape (turn_rows, turn_shape)
    diagonal = ReduceSum <keepdims = 0> (turn, int_1)
    half_diagonal = Div (diagonal, two)
    origin = Sub (window_center, half_diagonal)
    origins = Unsqueeze (origin, int_1)
    in_pixels = MatMul (real_fractions, turn)
    in_photo = Add (in_pixels, origins)
    all_landmarks = Cast <to = 1> (in_photo)
    usable_faces = Unsqueeze (usable, int_2)
    landmarks = Where (usable_faces, all_landmarks, unknown)
"""
"""`pfld_edge_runtime.CropWindows.to_image`, NaN for boxes that can't be used: from the network's ``(N, 2 P)`` fractions
to ``(N, P, 2)`` float32, photograph pixels."""

_CONFIDENCE = """
    squares = Mul (fractions, fractions)
    squared = ReduceSum <keepdims = 0> (squares, int_2)
    variance = Sub (moments, squared)
    positive = Max (variance, nothing)
    spread = Sqrt (positive)
    real_spread = Cast <to = 11> (spread)
    doubt = Div (real_spread, middle)
    limited = Min (doubt, most)
    power = Pow (limited, steepness)
    odds = Add (power, one_more)
    sure = Div (one_more, odds)
    all_confidence = Cast <to = 1> (sure)
    confidence = Where (usable, all_confidence, unknown)
"""
"""`pfld_edge_runtime.LandmarkModel.locate_with_confidence`: the spread of each heat map on the contract's curve."""


def _crop_nodes(contract: Contract) -> str:
    """The bilinear crop: OpenCV's sampling positions, zeros outside the photograph, rounded to whole grey levels.

    ``Resize`` and ``RoiAlign`` clamp at other edges and ``GridSample`` wants the whole photograph in float, so taps are
    gathered from the bytes as they are and only what was gathered becomes float. Sums and products are in the
    runtime's order, so that the bytes of the ``(N, S, S, 3)`` uint8 crops, channels as in the photograph, are its too.
    """
    size = contract.input_size
    declared = f"uint8[faces, {size}, {3 * size}]"
    return f"""{_WINDOWS} {_POSITIONS} {_LINE.format(line="near", offset=0)} {_LINE.format(line="far", offset=1)}
        {_upright_levels()}
        lean = Abs (roll)
        most_lean = ReduceMax <keepdims = 0> (lean)
        any_leans = Greater (most_lean, upright)
        levels = If (any_leans) <
            then_branch = turned () => ({declared} chosen) {{ {_turned_levels()}
                leans = Greater (lean, upright)
                leaning_crops = Unsqueeze (leans, int_2)
                chosen = Where (leaning_crops, turned_levels, upright_levels)
            }},
            else_branch = upright () => ({declared} same) {{ same = Identity (upright_levels) }}
        >
        crops = Reshape (levels, crop_shape)
    """


def _upright_levels() -> str:
    nodes = [_INSIDE.format(line=line, lengths="lengths") for line in ("near", "far")]
    for side, column in (("left", "near"), ("right", "far")):
        for tap, row in ((f"upper_{side}", "near"), (f"lower_{side}", "far")):
            nodes.append((_UPRIGHT_INDEX + _TAP).format(tap=tap, row=row, column=column))
        nodes.append(_SIDE.format(side=side, column=column))
    return "".join([*nodes, "mixed = Add (left_part, right_part)", _ROUNDED.format(kind="upright", sum="mixed")])


def _turned_levels() -> str:
    nodes = [_TURNED_POSITIONS]
    nodes += [_INSIDE.format(line=f"turned_{line}", lengths="planar_lengths") for line in ("near", "far")]
    total = ""
    for number, (row, column) in enumerate(product(("turned_near", "turned_far"), repeat=2)):
        nodes.append((_TURNED_INDEX + _TAP).format(tap=f"tap_{number}", row=row, column=column))
        if total:
            nodes.append(f"sum_{number} = Add ({total}, tap_{number}_weighted)")
        total = f"sum_{number}" if total else "tap_0_weighted"
    return "".join([*nodes, _ROUNDED.format(kind="turned", sum=total)])


def _input_nodes(contract: Contract, outputs: str) -> str:
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
    return f"{nodes} {outputs} = Network ({batch})"


def _own_graph(contract: Contract, tells_spread: bool) -> onnx.GraphProto:
    """All nodes but the network's, with their constants."""
    size, points, curve = contract.input_size, contract.landmarks.num_landmarks, contract.spread_curve
    factor = 1 / np.array(contract.scale, np.float32)
    # The contract counts channels as the network does, and they are not swapped yet.
    rgb = slice(None, None, -1 if contract.color_order == "bgr" else 1)
    constants = {
        "line_centers": np.arange(size) + 0.5,
        "factor": np.tile(factor[rgb], size),
        "offset": np.tile((np.array(contract.mean, np.float32) * factor)[rgb], size),
        "margin": np.array(contract.crop.margin),
        "unknown": np.array(np.nan, np.float32),
        "steps": np.arange(size) - (size - 1) / 2,
        "degree": np.array(np.pi / 180),
        "quarter": np.array(np.pi / 2),
    }
    results, given, last = f"float[faces, {points}, 2] landmarks", "network_output", _OUTPUT
    if curve is not None and tells_spread:
        constants |= {"middle": np.array(curve.middle), "steepness": np.array(curve.steepness)}
        results, given, last = f"{results}, float[faces, {points}] confidence", f"{given}, moments", last + _CONFIDENCE
    declared = _DECLARED % {"size": size, "row": 3 * size, "points": points, "results": results}
    nodes = f"{_crop_nodes(contract)} {_input_nodes(contract, given)} {last}"
    graph = onnx.parser.parse_graph(f"{declared} {{ {nodes} }}")
    graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in constants.items())
    read = {name for part in _with_subgraphs(graph) for node in part.node for name in node.input}
    kept = [constant for constant in graph.initializer if constant.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return graph


def largest_difference(graph: onnx.ModelProto, plain: bytes) -> float:
    """Compare an end-to-end graph with the ONNX file that it was made from: the largest difference, in pixels.

    Both run on the bundled portraits, under their own boxes, moved ones, and one that leaves the photograph, half of
    them turned.
    ConvertError where onnxruntime refuses the graph, or the difference exceeds `ALLOWED_PIXELS`.
    """
    session, landmarker = open_model(graph), FaceLandmarker(plain)
    found, expected = [], []
    for face in portraits(landmarker.contract):
        photo = np.ascontiguousarray(read_photo(face.image)[:, :, ::-1])
        boxes = _boxes(face)
        # Whole degrees: a roll that float32 rounds turns the two crops differently.
        rolls = np.linspace(-180, 180, len(boxes)).round() * (np.arange(len(boxes)) % 2)
        found.append(_run(session, photo, np.column_stack([boxes, np.zeros(len(boxes)), rolls])))
        expected.append(landmarker(photo, boxes, "rgb", rolls))
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


def _run(session: onnxruntime.InferenceSession, image: NDArray[np.uint8], boxes: NDArray[np.floating]) -> Float:
    try:
        found = session.run(None, {IMAGE_NAME: image, BOXES_NAME: boxes.astype(np.float32)})[0]
    except Exception as error:
        raise ConvertError(f"the end-to-end graph can't run: {' '.join(str(error).split())[:300]}") from error
    return np.asarray(found, np.float32)

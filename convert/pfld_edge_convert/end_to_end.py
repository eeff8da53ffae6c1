"""Wraps a network in one ONNX graph from photograph and boxes to landmarks in pixels, and compares it with the file.

The runtime's crop is written as ONNX nodes: boxes to windows in double precision, windows to crops bit for bit.
"""

from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from pfld_edge_calib import Face, jittered, portraits, read_photo
from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.model_file import FINGERPRINT_SEED, open_model
from pfld_edge_convert.passes.base import Nodes, onnx_opset
from pfld_edge_convert.passes.canonical_form import OPSET
from pfld_edge_runtime import Contract, FaceLandmarker, Fingerprint, crop_windows, fingerprint_image
from pfld_edge_runtime.arrays import Float32Array, Uint8Array
from pfld_edge_runtime.contract import LOG_VARIANCES, ConfidenceCurve

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
    size, points, curve = contract.input_size, contract.landmarks.num_landmarks, contract.spread_curve
    op = Nodes(_free_prefix(network, "crop/"), kept=_MEANING)
    windows = _windows(op, contract.crop.margin)
    crops = op.Reshape(_levels(op, windows, size), [0, size, size, 3], output="crops")
    inner = _renamed(network, _network_input(op, crops, contract), _free_prefix(network, "network/"))
    op.nodes.extend(inner.node)
    found, *variances = (output.name for output in inner.output)
    fractions = op.Reshape(found, [0, points, 2])
    results: dict[str, list[int | str]] = {LANDMARKS_NAME: ["faces", points, 2]}
    _write_landmarks(op, fractions, windows)
    if curve is not None and [output.name for output in network.graph.output[1:]] == [LOG_VARIANCES]:
        results[CONFIDENCE_NAME] = ["faces", points]
        _write_confidence(op, variances[0], windows.usable, curve)
    graph = helper.make_graph(
        op.nodes,
        "end_to_end",
        [
            _described(IMAGE_NAME, TensorProto.UINT8, ["height", "width", 3]),
            _described(BOXES_NAME, TensorProto.FLOAT, ["faces", "columns"]),
        ],
        [_described(name, TensorProto.FLOAT, shape) for name, shape in results.items()],
        [*op.constants.values(), *inner.initializer],
    )
    made = helper.make_model(graph, opset_imports=list(network.opset_import), ir_version=network.ir_version)
    made.metadata_props.extend(network.metadata_props)
    onnx.checker.check_model(made)
    return made


def _described(name: str, kind: int, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape, _MEANING[name])


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
    new = {name: prefix + name for name in _MEANING}
    new[graph.input[0].name] = batch
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new.get(name, name) for name in names]
    for item in (*graph.initializer, *graph.output):
        item.name = new.get(item.name, item.name)
    return graph


class _Windows(NamedTuple):
    """The windows of N boxes in double precision, as the runtime's are; all but `corner` and `side` are float64.

    `corner` ``(N, 2)`` int64 is x and y of the top left corner in photograph pixels, may be negative, `center` the
    middle; `side` ``(N, 1)`` int64 at least 1, `length` the same as a real number; `roll` ``(N, 1)`` degrees, 0 where
    `boxes` has no such column, with `sine` and `cosine`. `usable` ``(N, 1)`` is false of boxes that it refuses.
    """

    corner: str
    side: str
    length: str
    center: str
    roll: str
    sine: str
    cosine: str
    usable: str


def _windows(op: Nodes, margin: float) -> _Windows:
    """From boxes to windows.

    A graph can't raise errors: a box that the runtime refuses (without area, not finite, too far out; comparisons with
    NaN are false) becomes one of a pixel, so that no number which isn't one reaches an index.
    """
    absent = op.ConstantOfShape(op.Concat(op.Shape(BOXES_NAME, start=0, end=1), [2], axis=0))
    given_roll = op.Cast(op.Gather(op.Concat(BOXES_NAME, absent, axis=1), [5], axis=1), to=TensorProto.DOUBLE)
    given = op.Cast(op.Gather(BOXES_NAME, [0, 1, 2, 3], axis=1), to=TensorProto.DOUBLE)

    def within(low: str, high: str) -> str:
        return op.And(op.GreaterOrEqual(low, -1e9), op.LessOrEqual(high, 1e9))

    def split(edges: str) -> list[str]:
        return [op.Gather(edges, pair, axis=1) for pair in ([0, 1], [2, 3])]

    low, high = split(given)
    good = op.And(within(low, high), op.Greater(high, low))
    both = op.And(*(op.Gather(good, [axis], axis=1) for axis in (0, 1)))
    usable = op.And(both, within(given_roll, given_roll))
    roll = op.Where(usable, given_roll, 0.0)
    low, high = split(op.Where(usable, given, [0.0, 0.0, 1.0, 1.0]))
    extent = op.Sub(high, low)
    longer = op.Max(*(op.Gather(extent, [axis], axis=1) for axis in (0, 1)))
    side = op.Max(op.Cast(op.Mul(longer, margin), to=TensorProto.INT64), 1, output="side")
    middle = op.Cast(op.Floor(op.Add(low, op.Div(extent, 2.0))), to=TensorProto.INT64)
    corner = op.Sub(middle, op.Div(side, 2), output="corner")
    length = op.Cast(side, to=TensorProto.DOUBLE)
    center = op.Add(op.Cast(corner, to=TensorProto.DOUBLE), op.Div(length, 2.0))
    radians = op.Mul(roll, np.pi / 180)
    # onnxruntime-web has no cosine in double precision.
    cosine = op.Sin(op.Add(radians, np.pi / 2))
    return _Windows(corner, side, length, center, roll, op.Sin(radians), cosine, usable)


class _Photo(NamedTuple):
    """The photograph's pixels ``(H W, 3)``, its width, and width and height ``(2, 1)``; the side of a crop."""

    pixels: str
    width: str
    lengths: str
    size: int


class _Lines(NamedTuple):
    """One of the two source lines that each line of a crop mixes: indices in the photograph, and weights."""

    columns: str
    rows: str
    column_weights: str
    row_weights: str


def _levels(op: Nodes, windows: _Windows, size: int) -> str:
    """The bilinear crops ``(N, S, 3 S)`` uint8: OpenCV's sampling positions, zeros outside the photograph.

    ``Resize`` and ``RoiAlign`` clamp at other edges and ``GridSample`` wants the whole photograph in float, so taps are
    gathered from the bytes as they are and only what was gathered becomes float. Sums and products are in the
    runtime's order, so that the bytes of the crops, channels as in the photograph, are its too.
    """
    sides = op.Shape(IMAGE_NAME, start=0, end=2)
    lengths = op.Unsqueeze(op.Gather(sides, [1, 0], axis=0), [1])
    photo = _Photo(op.Reshape(IMAGE_NAME, [-1, 3], output="pixels"), op.Gather(sides, 1, axis=0), lengths, size)
    scale = op.Div(windows.length, float(size))
    upright, lean = _upright_levels(op, windows, photo, scale), op.Abs(windows.roll)

    def chosen() -> str:
        leans = op.Unsqueeze(op.Greater(lean, 0.0), [2])
        return op.Where(leans, _turned_levels(op, windows, photo, scale), upright)

    branches = {
        f"{name}_branch": op.subgraph(name, make, TensorProto.UINT8, ["faces", size, 3 * size])
        for name, make in (("then", chosen), ("else", lambda: op.Identity(upright)))
    }
    return op.If(op.Greater(op.ReduceMax(lean, keepdims=0), 0.0), **branches)


def _upright_levels(op: Nodes, windows: _Windows, photo: _Photo, scale: str) -> str:
    """Rows are mixed before columns; rows' weights are whole 256ths, as the runtime's are."""
    position = op.Sub(op.Mul(np.arange(photo.size) + 0.5, scale), 0.5)
    whole = op.Floor(position)
    beyond = op.Cast(op.Sub(position, whole), to=TensorProto.FLOAT)
    parts = op.Floor(op.Add(op.Mul(beyond, np.float32(256)), np.float32(0.5)))
    both = (beyond, op.Div(parts, np.float32(256)))
    far_weights = op.Concat(*(op.Unsqueeze(weight, [1]) for weight in both), axis=1)
    first, lines = op.Cast(whole, to=TensorProto.INT64), []
    for offset, weights in ((0, op.Sub(np.float32(1), far_weights)), (1, far_weights)):
        in_window = op.Min(op.Max(op.Add(first, offset), 0), op.Sub(windows.side, 1))
        in_photo = op.Add(op.Unsqueeze(in_window, [1]), op.Unsqueeze(windows.corner, [2]))
        lines.append(_inside(op, in_photo, weights, photo.lengths))
    halves = []
    for column in lines:
        taps = []
        for row in lines:
            index = op.Add(op.Unsqueeze(op.Mul(row.rows, photo.width), [2]), op.Unsqueeze(column.columns, [1]))
            taps.append(_tap(op, photo, index, op.Unsqueeze(row.row_weights, [2])))
        halves.append(op.Mul(op.Add(*taps), _thrice(op, column.column_weights, [0, 1, 3 * photo.size])))
    return _rounded(op, op.Add(*halves))


def _turned_levels(op: Nodes, windows: _Windows, photo: _Photo, scale: str) -> str:
    """`pfld_edge_runtime.crop.warp_affine`: each pixel has lines of its own, ``(N, 2, S, S)``, x before y."""
    along, across = (op.Unsqueeze(op.Mul(ratio, scale), [1]) for ratio in (windows.cosine, windows.sine))
    steps = np.arange(photo.size) - (photo.size - 1) / 2
    down = steps[:, None]
    x = op.Sub(op.Mul(along, steps), op.Mul(across, down))
    y = op.Add(op.Mul(across, steps), op.Mul(along, down))
    around = op.Concat(*(op.Unsqueeze(axis, [1]) for axis in (x, y)), axis=1)
    anywhere = op.Add(around, op.Unsqueeze(op.Sub(windows.center, 0.5), [2, 3]))
    lengths = op.Unsqueeze(photo.lengths, [2])
    position = op.Min(op.Max(anywhere, -2.0), op.Add(op.Cast(lengths, to=TensorProto.DOUBLE), 1.0))
    whole = op.Floor(position)
    near, far_weights = op.Cast(whole, to=TensorProto.INT64), op.Cast(op.Sub(position, whole), to=TensorProto.FLOAT)
    pairs = ((near, op.Sub(np.float32(1), far_weights)), (op.Add(near, 1), far_weights))
    lines, total = [_inside(op, places, weights, lengths) for places, weights in pairs], ""
    for row, column in product(lines, repeat=2):
        index = op.Add(op.Mul(row.rows, photo.width), column.columns)
        weight = _thrice(op, op.Mul(row.row_weights, column.column_weights), [0, photo.size, 3 * photo.size])
        tap = _tap(op, photo, index, weight)
        total = op.Add(total, tap) if total else tap
    return _rounded(op, total)


def _inside(op: Nodes, places: str, weights: str, lengths: str) -> _Lines:
    """Indices that lie in the photograph, and weights that are zero where the line lies outside."""
    is_inside = op.And(op.GreaterOrEqual(places, 0), op.Less(places, lengths))
    kept = op.Where(is_inside, weights, np.float32(0))
    legal = op.Min(op.Max(places, 0), op.Sub(lengths, 1))
    return _Lines(*(op.Gather(pair, axis, axis=1) for pair in (legal, kept) for axis in (0, 1)))


def _tap(op: Nodes, photo: _Photo, index: str, weight: str) -> str:
    """``(N, S, 3 S)`` float32: one tap of every pixel of the crops, times its weight.

    Rows are of 3 S numbers: a last axis of three channels would make every product a loop over three.
    """
    levels = op.Reshape(op.Gather(photo.pixels, index, axis=0), [0, photo.size, 3 * photo.size])
    return op.Mul(op.Cast(levels, to=TensorProto.FLOAT), weight)


def _thrice(op: Nodes, weights: str, shape: list[int]) -> str:
    """Weights of pixels, once for each channel."""
    return op.Reshape(op.Expand(op.Unsqueeze(weights, [-1]), [1, 1, 3]), shape)


def _rounded(op: Nodes, levels: str) -> str:
    return op.Cast(op.Add(levels, np.float32(0.5)), to=TensorProto.UINT8)


def _network_input(op: Nodes, crops: str, contract: Contract) -> str:
    """From RGB crops to the network's input, as `pfld_edge_runtime.prepare_input` makes it."""
    size, swap, batch = contract.input_size, contract.color_order == "bgr", crops
    if contract.input_dtype == "float32":
        # The contract counts channels as the network does, and they are not swapped yet.
        factor = 1 / np.array(contract.scale, np.float32)
        offset = np.array(contract.mean, np.float32) * factor
        factors, offsets = (np.tile(values[:: -1 if swap else 1], size) for values in (factor, offset))
        real = op.Cast(op.Reshape(crops, [0, size, 3 * size]), to=TensorProto.FLOAT)
        batch = op.Reshape(op.Sub(op.Mul(real, factors), offsets), [0, size, size, 3])
    # Swapped as planes: onnxruntime moves three large blocks, where channels last it would move single bytes.
    if swap or contract.layout == "NCHW":
        batch = op.Transpose(batch, perm=[0, 3, 1, 2])
    if swap:
        batch = op.Gather(batch, [2, 1, 0], axis=1)
    return op.Transpose(batch, perm=[0, 2, 3, 1]) if swap and contract.layout == "NHWC" else batch


def _write_landmarks(op: Nodes, fractions: str, windows: _Windows) -> None:
    """`pfld_edge_runtime.CropWindows.to_image`, NaN for boxes that can't be used."""
    along, across = (op.Mul(ratio, windows.length) for ratio in (windows.cosine, windows.sine))
    turn = op.Reshape(op.Concat(along, across, op.Neg(across), along, axis=1), [0, 2, 2])
    origin = op.Sub(windows.center, op.Div(op.ReduceSum(turn, [1], keepdims=0), 2.0))
    in_photo = op.Add(op.MatMul(op.Cast(fractions, to=TensorProto.DOUBLE), turn), op.Unsqueeze(origin, [1]))
    landmarks = op.Cast(in_photo, to=TensorProto.FLOAT)
    op.Where(op.Unsqueeze(windows.usable, [2]), landmarks, np.float32(np.nan), output=LANDMARKS_NAME)


def _write_confidence(op: Nodes, log_variances: str, usable: str, curve: ConfidenceCurve) -> None:
    """`pfld_edge_runtime.LandmarkModel.locate_with_confidence`: the spread of each heat map on the contract's curve."""
    spread = op.Cast(op.Exp(op.Min(op.Mul(log_variances, np.float32(0.5)), np.float32(0))), to=TensorProto.DOUBLE)
    power = op.Pow(op.Min(op.Div(spread, curve.middle), 1e9), curve.steepness)
    confidence = op.Cast(op.Div(1.0, op.Add(power, 1.0)), to=TensorProto.FLOAT)
    op.Where(usable, confidence, np.float32(np.nan), output=CONFIDENCE_NAME)


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


def _boxes(face: Face) -> Float32Array:
    count = PROOF_FACES // 2
    boxes = np.stack([item.bbox_xyxy for item in jittered([face], count - 1)])
    # The face's own box, moved until its centre is the photograph's corner: three quarters of it lie outside.
    outside = boxes[:1] - (boxes[:1, :2] + np.ptp(boxes[:1].reshape(2, 2), axis=0) / 2)[:, [0, 1, 0, 1]]
    return np.concatenate([boxes, outside]).astype(np.float32)


def _run(session: onnxruntime.InferenceSession, image: Uint8Array, boxes: NDArray[np.floating]) -> Float32Array:
    try:
        found = session.run(None, {IMAGE_NAME: image, BOXES_NAME: boxes.astype(np.float32)})[0]
    except Exception as error:
        raise ConvertError(f"the end-to-end graph can't run: {' '.join(str(error).split())[:300]}") from error
    return np.asarray(found, np.float32)

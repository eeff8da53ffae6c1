"""`pfld_edge_runtime`'s crop as ONNX nodes: boxes to windows in double precision, windows to crops bit for bit."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

_LARGEST_COORDINATE = 1e9
"""The runtime's own limit: beyond it, integer arithmetic on sizes could overflow."""


class NodeWriter:
    """Collects nodes and constants whose names share a prefix, so that they meet no name of another graph.

    Attributes:
        prefix: Before every name, e.g. ``crop/``.
        nodes: In the order in which they were written, which is an order in which they can run.
        constants: Initializers.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Add a constant; returns its tensor's name."""
        full = self.prefix + name
        if all(tensor.name != full for tensor in self.constants):
            self.constants.append(numpy_helper.from_array(np.array(value, order="C"), full))
        return full

    def numbers(self, *values: int) -> str:
        """Add a row of int64 numbers, which axes, sizes and indices are."""
        return self.constant("int_" + "_".join(map(str, values)), np.array(values, np.int64))

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
        scalar = self.constant(f"index_{index}", np.array(index, np.int64))
        return self.add(name, "Gather", source, scalar, axis=axis)


@dataclass(frozen=True, slots=True)
class WindowTensors:
    """Names of what the window nodes give.

    Attributes:
        corner: ``(N, 2)`` int64, x and y of each window's top left corner in photograph pixels; may be negative.
        side: ``(N, 1)`` int64, its side in pixels, at least 1.
        usable: ``(N, 1)`` bool, false where a box has no area or is not finite; its window is that of a stand-in.
    """

    corner: str
    side: str
    usable: str


def window_nodes(write: NodeWriter, boxes: str, margin: float) -> WindowTensors:
    """Write the window arithmetic, in double precision as the runtime's is.

    A graph can't raise errors: a box that the runtime refuses becomes one of a pixel here, so that no number which
    isn't one reaches an index, and `usable` says so.

    Args:
        write: Gets the nodes.
        boxes: Name of the ``(N, 4)`` float32 input.
        margin: Side of the window as a multiple of the box's longer side.
    """
    edges = write.cast("edges", boxes, TensorProto.DOUBLE)
    usable = _usable(write, edges)
    stand_in = write.constant("stand_in", np.array([0, 0, 1, 1], np.float64))
    safe = write.add("safe_edges", "Where", usable, edges, stand_in)
    low, extent = _low_and_extent(write, safe)
    longer = write.add(
        "longer", "Max", *(write.add(f"extent_{i}", "Gather", extent, write.numbers(i), axis=1) for i in (0, 1))
    )
    scaled = write.add("scaled", "Mul", longer, write.constant("margin", np.array(margin, np.float64)))
    side = write.add("side", "Max", write.cast("whole_side", scaled, TensorProto.INT64), write.numbers(1))
    half = write.add("half_extent", "Div", extent, write.constant("two", np.array(2, np.float64)))
    center = write.add("floor_center", "Floor", write.add("center", "Add", low, half))
    whole_center = write.cast("whole_center", center, TensorProto.INT64)
    corner = write.add("corner", "Sub", whole_center, write.add("half_side", "Div", side, write.numbers(2)))
    return WindowTensors(corner, side, usable)


def _low_and_extent(write: NodeWriter, edges: str) -> tuple[str, str]:
    """``(N, 2)`` top left corners, and widths and heights."""
    low = write.add("low", "Gather", edges, write.numbers(0, 1), axis=1)
    high = write.add("high", "Gather", edges, write.numbers(2, 3), axis=1)
    return low, write.add("extent", "Sub", high, low)


def _usable(write: NodeWriter, edges: str) -> str:
    # Comparisons with NaN are false. Where x1 > x0, |x0| and |x1| are small if x0 isn't too low and x1 not too high.
    low = write.add("given_low", "Gather", edges, write.numbers(0, 1), axis=1)
    high = write.add("given_high", "Gather", edges, write.numbers(2, 3), axis=1)
    most = write.constant("most", np.array(_LARGEST_COORDINATE, np.float64))
    least = write.constant("least", np.array(-_LARGEST_COORDINATE, np.float64))
    within = write.add(
        "within",
        "And",
        write.add("not_low", "GreaterOrEqual", low, least),
        write.add("not_high", "LessOrEqual", high, most),
    )
    good = write.add("good", "And", within, write.add("has_area", "Greater", high, low))
    columns = [write.add(f"good_{i}", "Gather", good, write.numbers(i), axis=1) for i in (0, 1)]
    return write.add("usable", "And", *columns)


@dataclass(frozen=True, slots=True)
class _Taps:
    """One of the two source lines that each line of a crop mixes, of rows and of columns.

    Attributes:
        columns: ``(N, S)`` int64 indices that lie in the photograph.
        rows: The same of rows.
        column_weights: ``(N, S)`` float32, zero where the line lies outside.
        row_weights: The same of rows.
    """

    columns: str
    rows: str
    column_weights: str
    row_weights: str


def crop_nodes(write: NodeWriter, image: str, windows: WindowTensors, size: int) -> str:
    """Write the bilinear crop: OpenCV's sampling positions, zeros outside the photograph, rounded to whole grey levels.

    ``Resize`` and ``RoiAlign`` clamp at other edges and ``GridSample`` wants the whole photograph in float, so taps are
    gathered from the bytes as they are and only what was gathered becomes float. Sums and products are in the
    runtime's order, so that the crop's bytes are the runtime's.

    Args:
        write: Gets the nodes.
        image: Name of the ``(H, W, 3)`` uint8 input.
        windows: What to cut.
        size: Side S of the crops.

    Returns:
        Name of the ``(N, S, S, 3)`` uint8 crops, channels as in the photograph.
    """
    height_width = write.add("height_width", "Shape", image, start=0, end=2)
    lengths = write.add("width_height", "Gather", height_width, write.numbers(1, 0), axis=0)
    lengths = write.add("lengths", "Unsqueeze", lengths, write.numbers(1))
    first, fraction = _positions(write, windows, size)
    one = write.constant("one", np.array(1, np.float32))
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
    half = write.constant("half", np.array(0.5, np.float32))
    levels = write.cast("levels", write.add("rounded", "Add", mixed, half), TensorProto.UINT8)
    return write.add("crops", "Reshape", levels, write.numbers(0, size, size, 3))


def _positions(write: NodeWriter, windows: WindowTensors, size: int) -> tuple[str, str]:
    """``(N, S)``: the line of the window at or before each output line, int64, and the way to the next, float32."""
    side = write.cast("real_side", windows.side, TensorProto.DOUBLE)
    scale = write.add("scale", "Div", side, write.constant("size", np.array(size, np.float64)))
    centers = write.constant("line_centers", np.arange(size) + 0.5)
    scaled = write.add("scaled_centers", "Mul", centers, scale)
    position = write.add("position", "Sub", scaled, write.constant("half_line", np.array(0.5, np.float64)))
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
    inside = write.add(
        f"{name}_inside",
        "And",
        write.add(f"{name}_not_before", "GreaterOrEqual", line, zero),
        write.add(f"{name}_not_after", "Less", line, lengths),
    )
    nothing = write.constant("nothing", np.array(0, np.float32))
    weights = write.add(
        f"{name}_weights", "Where", inside, write.add(f"{name}_both", "Unsqueeze", weight, write.numbers(1)), nothing
    )
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

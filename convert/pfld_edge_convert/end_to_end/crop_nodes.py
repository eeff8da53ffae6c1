"""`pfld_edge_runtime.crop.crop_faces` as ONNX nodes, bit for bit."""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from pfld_edge_convert.end_to_end.node_writer import NodeWriter
from pfld_edge_convert.end_to_end.window_nodes import WindowTensors

__all__ = ["crop_nodes"]


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
        upper = _weighted(
            write,
            f"upper_{name}",
            _gathered(write, f"upper_{name}", pixels, width, near.rows, columns.columns, size),
            near.row_weights,
        )
        lower = _weighted(
            write,
            f"lower_{name}",
            _gathered(write, f"lower_{name}", pixels, width, far.rows, columns.columns, size),
            far.row_weights,
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


def _gathered(write: NodeWriter, name: str, pixels: str, width: str, rows: str, columns: str, size: int) -> str:
    """``(N, S, 3 S)`` float32: one tap of every pixel of the crops."""
    starts = write.add(f"{name}_row_starts", "Mul", rows, width)
    starts = write.add(f"{name}_down", "Unsqueeze", starts, write.numbers(2))
    across = write.add(f"{name}_across", "Unsqueeze", columns, write.numbers(1))
    tap = write.add(f"{name}_tap", "Gather", pixels, write.add(f"{name}_index", "Add", starts, across), axis=0)
    # Rows of 3 S numbers: a last axis of three channels would make every product a loop over three.
    rows_of_levels = write.add(f"{name}_levels", "Reshape", tap, write.numbers(0, size, 3 * size))
    return write.cast(f"{name}_real", rows_of_levels, TensorProto.FLOAT)


def _weighted(write: NodeWriter, name: str, taps: str, row_weights: str) -> str:
    down = write.add(f"{name}_weight", "Unsqueeze", row_weights, write.numbers(2))
    return write.add(f"{name}_weighted", "Mul", taps, down)


def _spread(write: NodeWriter, name: str, column_weights: str, size: int) -> str:
    """``(N, 1, 3 S)``: every column's weight for each of its channels."""
    single = write.add(f"{name}_single", "Unsqueeze", column_weights, write.numbers(2))
    triple = write.add(f"{name}_triple", "Expand", single, write.numbers(1, 1, 3))
    return write.add(f"{name}_spread", "Reshape", triple, write.numbers(0, 1, 3 * size))

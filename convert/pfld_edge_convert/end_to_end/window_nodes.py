"""`pfld_edge_runtime.crop.crop_windows` as ONNX nodes."""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from pfld_edge_convert.end_to_end.node_writer import NodeWriter

__all__ = ["WindowTensors", "window_nodes"]

_LARGEST_COORDINATE = 1e9
"""The runtime's own limit: beyond it, integer arithmetic on sizes could overflow."""


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

"""Scales with which additions of 8-bit tensors round the same way on every processor."""

import math
from collections.abc import Mapping

import numpy as np

from pfld_edge_convert.passes.graph_index import GraphIndex
from pfld_edge_convert.quantization.grid import LEVELS, Grid
from pfld_edge_convert.quantization.layers import shared_grids

__all__ = ["PARTS", "clear_sums"]

PARTS = 255
"""A step of a summand is a multiple of one such part of a step of the sum. Odd, so that no sum lies halfway."""


def clear_sums(index: GraphIndex, grids: Mapping[str, Grid]) -> dict[str, Grid]:
    """Widen grids a little so that no sum of two of them lies near the border between two steps.

    onnxruntime's QLinearAdd computes ``a * (scale_a / scale_y) + b * (scale_b / scale_y) + c`` in float32, with fused
    multiply-adds on some processors and without on others, and rounds halves to even or away from zero. Where a result
    lies on the border they differ, and one such step moves landmarks by up to a pixel. With ratios of ``p / 255`` every
    result is a multiple of 1/255, at least 1/510 away from the border: far more than float32 errs.

    Scales are set from the last sum backwards, each summand's by its sum's. Tensors that share a grid for a
    concatenation go together.

    Args:
        index: The float graph.
        grids: A grid for each tensor that has one of its own; tensors that are concatenated have equal ones.

    Returns:
        The same, with summands' scales larger by less than 1/255 of their sum's. A tensor that two sums read in
        different ways keeps what the later one asked for.
    """
    result = dict(grids)
    groups = shared_grids(index)
    settled: set[str] = set()

    def together(name: str) -> list[str]:
        group = next((group for group in groups if name in group), [name])
        return [member for member in group if member in result]

    for node in reversed(index.graph.node):
        made = together(node.output[0])
        if node.op_type != "Add" or not made:
            continue
        settled.update(made)
        unit = result[made[0]].scale / PARTS
        for name in node.input:
            summands = together(name)
            if not settled & {*summands}:
                result.update({member: _widened(result[member], unit) for member in summands})
                settled.update(summands)
    return result


def _widened(grid: Grid, unit: float) -> Grid:
    """The same range on the next wider scale that is a multiple of a unit."""
    scale = float(np.float32(math.ceil(grid.scale / unit) * unit))
    zero_point = round(grid.zero_point * grid.scale / scale)
    least, most = int(grid.zero_point > 0), LEVELS - int(grid.zero_point < LEVELS)
    return Grid(scale, min(max(zero_point, least), most))

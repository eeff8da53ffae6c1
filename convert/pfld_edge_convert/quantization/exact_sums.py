"""Scales with which additions of 8-bit tensors come out the same on every processor."""

import math
from collections.abc import Mapping

import numpy as np

from pfld_edge_convert.passes.graph_index import GraphIndex
from pfld_edge_convert.quantization.grid import LEVELS, Grid
from pfld_edge_convert.quantization.layers import shared_grids

__all__ = ["exact_sums"]

_BITS = 6
"""Of the scale of a sum that no other sum reads, and of the ratio of a summand to its sum."""

_CHAINED_BITS = 4
"""Of that ratio where the summand is a sum itself: mantissas add up along a chain, and float32 has 24 bits."""


def exact_sums(index: GraphIndex, grids: Mapping[str, Grid]) -> dict[str, Grid]:
    """Widen grids a little so that every sum of two of them is exact in float32.

    onnxruntime's QLinearAdd computes ``a * (scale_a / scale_y) + b * (scale_b / scale_y) + c`` in float32, with fused
    multiply-adds on some processors and without on others. Where a result lies close to half a step they round to
    different sides, and one such step moves landmarks by up to a pixel. If the ratios have few bits, all that is
    computed is exact, in whatever order.

    Scales are set from the last sum backwards: its own gets a short mantissa, each summand's becomes a short multiple
    of it. Tensors that share a grid for a concatenation go together.

    Args:
        index: The float graph.
        grids: A grid for each tensor that has one of its own; tensors that are concatenated have equal ones.

    Returns:
        The same, with scales larger by at most an eighth. A tensor that two sums read in different ways keeps what the
        later one asked for.
    """
    result = dict(grids)
    groups = shared_grids(index)
    sums = [node for node in index.graph.node if node.op_type == "Add" and node.output[0] in result]
    made = {node.output[0] for node in sums}
    settled: set[str] = set()

    def settle(name: str, unit: float, bits: int) -> float | None:
        """Give a tensor, and all that share its grid, a scale of so many bits in a unit; None where it has no grid."""
        together = next((group for group in groups if name in group), [name])
        known = [member for member in together if member in result]
        if not known:
            return None
        if not settled & {*together}:
            scale = unit * _short(result[known[0]].scale / unit, bits)
            result.update({member: _widened(result[member], scale) for member in known})
        settled.update(together)
        return result[known[0]].scale

    for node in reversed(sums):
        scale = settle(node.output[0], 1.0, _BITS)
        for name in node.input:
            if scale is not None and name not in index.constants:
                settle(name, scale, _CHAINED_BITS if name in made else _BITS)
    return result


def _short(value: float, bits: int) -> float:
    """Smallest number of so many bits that is not below a positive one."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(math.ceil(math.ldexp(mantissa, bits)), exponent - bits)


def _widened(grid: Grid, scale: float) -> Grid:
    if scale != float(np.float32(scale)):
        # A chain of sums so long that mantissas no longer fit: as it was is as good.
        return grid
    zero_point = round(grid.zero_point * grid.scale / scale)
    least, most = int(grid.zero_point > 0), LEVELS - int(grid.zero_point < LEVELS)
    return Grid(scale, min(max(zero_point, least), most))

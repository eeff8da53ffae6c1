"""What a layer's integers stand for, before its weights meet them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfld_edge_convert.passes.graph_index import GraphIndex
from pfld_edge_convert.quantization.grid import LEVELS, Grid

__all__ = ["LayerInput", "layer_input", "spread_grids"]

Array = NDArray[np.float64]

_MOVES = frozenset({"Flatten", "Identity", "MaxPool"})


@dataclass(frozen=True, slots=True)
class LayerInput:
    """The grid, or the grids of its columns, that a layer reads.

    Attributes:
        scale: Unit of the integers as the integer kernel is told; 1 where columns differ.
        zero_point: What the kernel subtracts; 0 where columns differ.
        factors: ``(K,)`` real value of one step of each column, for features of several grids side by side, else None.
        zeros: ``(K,)`` their zero points.
    """

    scale: float
    zero_point: int
    factors: Array | None = None
    zeros: Array | None = None

    def real(self, integers: NDArray[np.generic]) -> NDArray[np.float32]:
        """What integers stand for."""
        if self.factors is None or self.zeros is None:
            return np.asarray((integers.astype(np.float32) - self.zero_point) * np.float32(self.scale), np.float32)
        return np.asarray((integers.astype(np.float32) - self.zeros) * self.factors, np.float32)

    def clipped(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values as far as the grids reach."""
        scale = self.scale if self.factors is None else self.factors
        zero = self.zero_point if self.zeros is None else self.zeros
        return np.clip(values, np.asarray(-zero * scale, np.float32), np.asarray((LEVELS - zero) * scale, np.float32))

    def met_by(self, weight: Array) -> Array:
        """The weights in the unit of the integers."""
        return weight if self.factors is None else weight * self.factors

    def in_real_units(self, weight: Array) -> Array:
        """Undo `met_by`."""
        return weight if self.factors is None else weight / self.factors

    def moments_met(self, second: Array) -> Array:
        """Second moments in the unit of the integers."""
        return second if self.factors is None else second / np.outer(self.factors, self.factors)

    def bias_with_zeros(self, bias: Array, weight: Array) -> Array:
        """Take the columns' zero points, which no kernel subtracts, out of the bias; `weight` as `met_by` gives it."""
        return bias if self.zeros is None else bias - weight @ self.zeros


def spread_grids(index: GraphIndex, grids: Mapping[str, Grid]) -> dict[str, Grid]:
    """Add the grids of tensors that only move numbers: Flatten, MaxPool, and Concat of equal grids."""
    result = dict(grids)
    for node in index.graph.node:
        inputs = {result.get(name) for name in node.input if name not in index.constants}
        if len(inputs) == 1 and (node.op_type in _MOVES or node.op_type == "Concat"):
            (grid,) = inputs
            if grid is not None and node.output[0] not in result:
                result[node.output[0]] = grid
    return result


def layer_input(index: GraphIndex, source: str, grids: Mapping[str, Grid]) -> LayerInput | None:
    """Describe what a layer reads.

    Args:
        index: The float graph.
        source: The tensor.
        grids: As `spread_grids` gives them.

    Returns:
        None where the tensor has no grid, so that the layer must stay in float.
    """
    if source in grids:
        return LayerInput(grids[source].scale, grids[source].zero_point)
    node = index.producers.get(source)
    if node is None or node.op_type != "Concat" or index.rank(source) != 2 or index.only_consumer(source) is None:
        return None
    parts = [grids.get(name) for name in node.input]
    widths = [index.shapes[name][1] for name in node.input]
    factors: list[float] = []
    zeros: list[float] = []
    for grid, width in zip(parts, widths, strict=True):
        if grid is None or not isinstance(width, int):
            return None
        factors += [grid.scale] * width
        zeros += [grid.zero_point] * width
    return LayerInput(1.0, 0, np.array(factors), np.array(zeros))

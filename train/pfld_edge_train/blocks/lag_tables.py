"""Which correlations make the products of two taps of a 3x3 patch."""

from functools import cache
from itertools import product

import torch
from torch import Tensor

__all__ = ["LAGS", "product_table", "total_table"]

_TAPS = tuple(product((-1, 0, 1), repeat=2))
"""Rows and columns that each value of a patch lies from the middle."""

LAGS = (*((0, across) for across in range(3)), *product((1, 2), range(-2, 3)))
"""One of each pair of opposite lags, rows and columns."""

_BORDERS = tuple(product((0, 1), (0, 1)))
"""Axis (0 for a row) and which one (0 for the first, 1 for the last)."""

_CORNERS = tuple(product((0, 1), (0, 1)))
"""First or last row, first or last column."""

_LOOKS_AWAY = {1: 0, -1: 1}
"""Which row or column a tap never sees that lies so far from the middle."""


@cache
def product_table(device: torch.device) -> Tensor:
    """``(81, 29)`` float64: each product of two taps as a sum of correlations.

    These are those of the map at `LAGS`, those of the first and the last row at lags 0 to 2, those of the columns, and
    the four corners' squares.
    """
    table = torch.zeros(9, 9, len(LAGS) + 3 * len(_BORDERS) + len(_CORNERS), dtype=torch.float64)
    for (i, a), (j, b) in product(enumerate(_TAPS), repeat=2):
        lag = (b[0] - a[0], b[1] - a[1])
        table[i, j, LAGS.index(lag if lag in LAGS else (-lag[0], -lag[1]))] = 1
        away = [_LOOKS_AWAY.get(a[axis]) if a[axis] == b[axis] else None for axis in (0, 1)]
        for axis, which in enumerate(away):
            if which is not None:
                table[i, j, len(LAGS) + 3 * _BORDERS.index((axis, which)) + abs(lag[1 - axis])] = -1
        if away[0] is not None and away[1] is not None:
            table[i, j, len(LAGS) + 3 * len(_BORDERS) + _CORNERS.index((away[0], away[1]))] = 1
    return table.flatten(0, 1).to(device)


@cache
def total_table(device: torch.device) -> Tensor:
    """``(9, 9)`` float64: each tap's sum from those of map, first and last row, first and last column, and corners."""
    table = torch.zeros(9, 1 + len(_BORDERS) + len(_CORNERS), dtype=torch.float64)
    table[:, 0] = 1
    for i, tap in enumerate(_TAPS):
        away = [_LOOKS_AWAY.get(step) for step in tap]
        for axis, which in enumerate(away):
            if which is not None:
                table[i, 1 + _BORDERS.index((axis, which))] = -1
        if away[0] is not None and away[1] is not None:
            table[i, 1 + len(_BORDERS) + _CORNERS.index((away[0], away[1]))] = 1
    return table.to(device)

"""The grid on which detectors without anchor boxes make their predictions."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["grid_points"]


@lru_cache(maxsize=64)
def grid_points(width: int, height: int, repeats: int = 1) -> NDArray[np.float32]:
    """Give the column and row of every cell of a feature map, row by row.

    Args:
        width: Cells in a row.
        height: Rows.
        repeats: Predictions a cell, one after the other.

    Returns:
        ``(width * height * repeats, 2)`` float32, x and y; read-only, since it is kept for the next call.
    """
    rows, columns = np.divmod(np.arange(width * height), width)
    points = np.stack([columns, rows], axis=1).repeat(repeats, axis=0).astype(np.float32)
    points.flags.writeable = False
    return points

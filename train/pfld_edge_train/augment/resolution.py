"""Low resolution as a matrix: shrinking by area and growing bilinearly are linear along each axis."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["resolution_matrices"]


@lru_cache(maxsize=8)
def resolution_matrices(size: int) -> NDArray[np.float32]:
    """Matrices that shrink a line and let it grow again, with OpenCV's sampling positions.

    Args:
        size: Pixels in the line.

    Returns:
        ``(size + 1, size, size)``: matrix ``k`` goes through k pixels; matrix 0 is the identity.
    """
    matrices = np.empty((size + 1, size, size), np.float32)
    matrices[0] = np.eye(size)
    for narrow in range(1, size + 1):
        matrices[narrow] = _grow(narrow, size) @ _shrink(size, narrow)
    return matrices


def _shrink(size: int, narrow: int) -> NDArray[np.float64]:
    """``(narrow, size)``: each short pixel is the mean of what it covers."""
    ends = np.arange(narrow + 1) * (size / narrow)
    pixels = np.arange(size)
    cover = np.minimum(ends[1:, None], pixels + 1) - np.maximum(ends[:-1, None], pixels)
    shares: NDArray[np.float64] = cover.clip(0, None) * (narrow / size)
    return shares


def _grow(narrow: int, size: int) -> NDArray[np.float64]:
    """``(size, narrow)``: bilinear between pixel centres, the edges repeated."""
    place = ((np.arange(size) + 0.5) * narrow / size - 0.5).clip(0, narrow - 1)
    weights: NDArray[np.float64] = 1 - np.abs(place[:, None] - np.arange(narrow))
    return weights.clip(0, None)

"""The similarity transform that lays one set of points on another."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["similarity"]

Array = NDArray[np.float64]


def similarity(source: Array, target: Array) -> Array:
    """Find scale, rotation and shift that bring points nearest to others, by least squares, never mirrored.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI 1991, eq. 40 to
    42, which in the plane has a closed form without a singular value decomposition.

    Args:
        source: ``(N, P, 2)``.
        target: ``(P, 2)``, or ``(N, P, 2)``.

    Returns:
        ``(N, 2, 3)``: ``target ~ source @ M[:, :2].T + M[:, 2]``; NaN where the source's points coincide.
    """
    center, goal = source.mean(axis=-2, keepdims=True), target.mean(axis=-2, keepdims=True)
    x, y = np.moveaxis(source - center, -1, 0)
    u, v = np.moveaxis(np.broadcast_to(target - goal, source.shape), -1, 0)
    # As complex numbers: the best factor of x + iy is the mean of (u + iv) conj(x + iy) over that of |x + iy|^2.
    spread = (x * x + y * y).sum(axis=-1)
    spread = np.where(spread > 0, spread, np.nan)
    cosine, sine = (x * u + y * v).sum(axis=-1) / spread, (x * v - y * u).sum(axis=-1) / spread
    turn = np.stack([cosine, -sine, sine, cosine], axis=-1).reshape(-1, 2, 2)
    shift = np.broadcast_to(goal, center.shape) - center @ turn.transpose(0, 2, 1)
    return np.concatenate([turn, shift.transpose(0, 2, 1)], axis=2)

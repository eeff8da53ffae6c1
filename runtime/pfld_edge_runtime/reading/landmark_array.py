"""What a caller hands in as landmarks, checked once."""

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.errors import LandmarkError

__all__ = ["check_landmarks"]


def check_landmarks(landmarks: object, points: int | None = 98) -> NDArray[np.float64]:
    """Validate landmarks.

    Args:
        landmarks: ``(N, P, 2)``, or ``(P, 2)`` for one face; x and y in photograph pixels.
        points: The P that the caller can read; None for any.

    Returns:
        ``(N, P, 2)`` float64; N may be 0.

    Raises:
        LandmarkError: Wrong shape or type, another number of points, NaN or infinite.
    """
    wanted = "P" if points is None else points
    try:
        array = np.asarray(landmarks, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise LandmarkError(
            f"landmarks must be numbers of shape (N, {wanted}, 2), x and y in pixels: {error}"
        ) from error
    if array.size == 0 and points is not None:
        return np.zeros((0, points, 2))
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[2] != 2 or points not in (None, array.shape[1]):
        raise LandmarkError(f"landmarks must have shape (N, {wanted}, 2), x and y in pixels; found {array.shape}")
    if not np.isfinite(array).all():
        broken = int(np.flatnonzero(~np.isfinite(array).all(axis=(1, 2)))[0])
        raise LandmarkError(f"the landmarks of face {broken} hold NaN or infinity: leave that face out")
    return array

"""How far the landmarks of an INT8 network are from those of the float network."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["deviation_per_face"]


def deviation_per_face(
    found: NDArray[np.float32], expected: NDArray[np.float32], normalizing_points: tuple[int, int]
) -> NDArray[np.float64]:
    """Mean landmark distance of each face, as a fraction of the distance of two landmarks of `expected`.

    Args:
        found: ``(N, 2 * P)`` or ``(N, P, 2)`` landmarks.
        expected: As many, from the network that is right by definition.
        normalizing_points: E.g. the outer eye corners.

    Returns:
        ``(N,)``.
    """
    one, other = (np.asarray(values, np.float64).reshape(len(values), -1, 2) for values in (found, expected))
    first, second = normalizing_points
    span = np.linalg.norm(other[:, first] - other[:, second], axis=1)
    result: NDArray[np.float64] = np.linalg.norm(one - other, axis=2).mean(axis=1) / np.maximum(span, 1e-9)
    return result

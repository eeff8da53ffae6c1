"""Shift, turn and size between two shapes: the part of a face's motion that is rigid in the picture."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Similarity", "face_size", "fit_similarity"]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Similarity:
    """Takes a shape whose centre is `center` onto another, as far as shift, turn and size can.

    Attributes:
        center: Centre of the first shape, x + iy in pixels.
        shift: From there to the centre of the second.
        factor: Turn and size: the complex number that multiplies what lies around the centre.
    """

    center: complex
    shift: complex
    factor: complex

    def partly(self, share: float, points: Array) -> Array:
        """Take ``(P, 2)`` points a share (0..1) of the way."""
        around = (points[:, 0] + 1j * points[:, 1]) - self.center
        moved = self.center + share * self.shift + self.factor**share * around
        return np.stack([moved.real, moved.imag], axis=1)


def fit_similarity(points: Array, target: Array) -> Similarity:
    """Find the similarity that brings ``(P, 2)`` points closest to others, in least squares.

    In the plane a turn with a size is one complex number, and Umeyama's solution (PAMI 1991) is a quotient of sums.
    Points that all coincide give the factor 1.
    """
    source, goal = (shape[:, 0] + 1j * shape[:, 1] for shape in (points, target))
    center, end = source.mean(), goal.mean()
    around = source - center
    power = np.vdot(around, around).real
    factor = np.vdot(around, goal - end) / power if power > 0 else 1.0
    return Similarity(complex(center), complex(end - center), complex(factor))


def face_size(points: NDArray[np.floating]) -> float:
    """The longer side of the box around ``(P, 2)`` points, in their units: what "one face" means in this package."""
    return float(np.max(np.max(points, axis=0) - np.min(points, axis=0)))

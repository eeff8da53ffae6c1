"""Affine 8-bit grids: real value = scale * (integer - zero point), integers from 0 to 255."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEVELS", "Grid"]

LEVELS = 255
"""Steps of an 8-bit grid."""

_SMALLEST_SCALE = 1e-12


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the 256 values of an activation lie.

    Attributes:
        scale: Distance of two neighbours.
        zero_point: The integer, 0 to 255, that stands for exactly 0, so that zero padding costs nothing.
    """

    scale: float
    zero_point: int

    @classmethod
    def covering(cls, low: float, high: float) -> "Grid":
        """Spread the grid over a range, widened to hold 0.

        Scale and zero point follow Jacob et al., arXiv 1712.05877, section 3: the zero point is rounded, the scale
        then widened until both ends are on the grid again.
        """
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        scale = max((high - low) / LEVELS, _SMALLEST_SCALE)
        # Whatever has a part of the range, however small, gets a step.
        zero_point = min(max(round(-low / scale), 1 if low < 0 else 0), LEVELS - 1 if high > 0 else LEVELS)
        below = -low / zero_point if zero_point else 0.0
        above = high / (LEVELS - zero_point) if zero_point < LEVELS else 0.0
        # float32, as the file will hold it, so that what is computed here is what devices compute.
        return cls(float(np.float32(max(below, above, _SMALLEST_SCALE))), zero_point)

    @property
    def low(self) -> float:
        """Smallest value on the grid."""
        return -self.zero_point * self.scale

    @property
    def high(self) -> float:
        """Largest value on the grid."""
        return (LEVELS - self.zero_point) * self.scale

    def quantize(self, values: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Nearest integers, ties to even, clipped to the grid."""
        steps = np.rint(values / np.float32(self.scale)) + self.zero_point
        return np.asarray(np.clip(steps, 0, LEVELS), np.uint8)

    def dequantize(self, integers: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Real values of integers on the grid."""
        return np.asarray((integers.astype(np.float32) - self.zero_point) * np.float32(self.scale), np.float32)

"""From floating-point photographs to grey levels."""

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.errors import ImageError

__all__ = ["grey_levels"]


def grey_levels(sampled: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale what was sampled of a floating-point photograph from 0..1 to 0..255.

    Raises:
        ImageError: It lies elsewhere, or holds NaN.
    """
    low, high = float(sampled.min()), float(sampled.max())
    # Not `low < 0 or high > 1`: comparisons with NaN are false, and NaN must be refused too.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ImageError(
            f"a floating-point image is read as 0..1, found {low:g} to {high:g} in it: pass uint8, or divide by 255"
        )
    levels: NDArray[np.float32] = np.clip(sampled, 0, 1) * np.float32(255)
    return levels

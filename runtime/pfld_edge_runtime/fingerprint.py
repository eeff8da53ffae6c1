"""A seeded input image that every language can make, so that a device can check its build of onnxruntime."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Fingerprint", "fingerprint_image"]

# The linear congruential generator of Numerical Recipes (Press et al., section 7.1): integer arithmetic modulo
# 2**32 alone, so that C++, Swift or JavaScript make the same pixels without numpy's generators.
_MULTIPLIER = np.uint32(1664525)
_INCREMENT = np.uint32(1013904223)
_GRID = 14


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What the exporter saw the network answer to a seeded image.

    Attributes:
        seed: Seed of `fingerprint_image`.
        output: The network's raw output for that image: ``2 * num_landmarks`` fractions of the crop, rounded to 6
            decimals; of an end-to-end graph, pixels, the whole image being the box.
        tolerance: Largest absolute difference, in the output's unit, that a healthy device may show.
    """

    seed: int
    output: tuple[float, ...]
    tolerance: float


def fingerprint_image(seed: int, size: int) -> NDArray[np.uint8]:
    """Draw a coarse mosaic of random colours: a 14 x 14 grid of flat tiles stretched to the input size.

    Tiles rather than single pixels: white noise drives a landmark network into a corner where tiny arithmetic
    differences grow, flat tiles excite it as photographs do.

    Args:
        seed: Any integer from 0 to 2**32 - 1.
        size: Side of the square image in pixels.

    Returns:
        ``(size, size, 3)`` uint8; channel order is whatever the model calls its own.
    """
    count = _GRID * _GRID * 3
    powers = np.cumprod(np.full(count, _MULTIPLIER, np.uint32), dtype=np.uint32)
    geometric = np.cumsum(np.concatenate([np.ones(1, np.uint32), powers[:-1]]), dtype=np.uint32)
    states = powers * np.uint32(seed) + geometric * _INCREMENT
    tiles = (states >> np.uint32(24)).astype(np.uint8).reshape(_GRID, _GRID, 3)
    index = np.arange(size) * _GRID // size
    image: NDArray[np.uint8] = tiles[index][:, index]
    return image

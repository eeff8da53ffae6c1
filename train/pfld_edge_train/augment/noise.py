"""Noise, read from a bank at a place that a face's number says: the same on every device, and cheaper than drawing."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["BANK_STARTS", "BANK_STD", "noise_bank"]

BANK_STARTS = 1 << 20
"""How many places a face's noise may begin at."""
BANK_STD = 32.0
"""Standard deviation of the bank in grey levels."""


@lru_cache(maxsize=4)
def noise_bank(face_values: int) -> NDArray[np.uint8]:
    """Gaussian noise around 128, cut off at four standard deviations.

    Args:
        face_values: Pixels times channels of a face.

    Returns:
        ``(BANK_STARTS + face_values,)``; the same in every process.
    """
    normal = np.random.default_rng(2019).standard_normal(BANK_STARTS + face_values, dtype=np.float32)
    bank: NDArray[np.uint8] = np.rint(128 + BANK_STD * normal).clip(0, 255).astype(np.uint8)
    bank.setflags(write=False)
    return bank

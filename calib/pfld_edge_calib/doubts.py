"""What is suspicious about calibration faces."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEWEST", "calibration_doubts", "color_order_doubt", "share_redder"]

FEWEST = 32
"""Faces under which INT8 ranges are a matter of luck."""

_LEAST_REDDER = 0.5
"""Skin of any tone reflects more red than blue; see `share_redder` for how sharply this parts right from wrong."""

_GREY = 2.0
"""Mean difference of channels, in grey levels, up to which a picture has no colour."""


def calibration_doubts(crops: NDArray[np.uint8], color_order: str) -> tuple[str, ...]:
    """Name all that is suspicious, a sentence each.

    Args:
        crops: ``(N, S, S, 3)`` uint8.
        color_order: ``bgr`` or ``rgb``, what the crops should be in.
    """
    doubts = []
    if len(crops) < FEWEST:
        doubts.append(f"{len(crops)} calibration faces are few: ranges from fewer than {FEWEST} miss what others need")
    wrong = color_order_doubt(crops, color_order)
    return (*doubts, *([wrong] if wrong else []))


def share_redder(crops: NDArray[np.uint8], color_order: str) -> float | None:
    """Part of the faces whose middle is redder than blue.

    Args:
        crops: ``(N, S, S, 3)`` uint8.
        color_order: ``bgr`` or ``rgb``.

    Returns:
        None where fewer than eight faces have colour at all.
    """
    quarter = crops.shape[1] // 4
    middle = crops[:, quarter:-quarter, quarter:-quarter].astype(np.float32)
    blue, _, red = np.moveaxis(middle.mean(axis=(1, 2)), 1, 0)[:: 1 if color_order == "bgr" else -1]
    colored = np.abs(middle[..., 0] - middle[..., 2]).mean(axis=(1, 2)) > _GREY
    if colored.sum() < 8:
        return None
    return float((red > blue)[colored].mean())


def color_order_doubt(crops: NDArray[np.uint8], color_order: str) -> str | None:
    """Say so where faces look as if red and blue were swapped."""
    share = share_redder(crops, color_order)
    if share is None or share >= _LEAST_REDDER:
        return None
    return (
        f"{1 - share:.0%} of the calibration faces are bluer than red: are they really in {color_order.upper()} order?"
    )

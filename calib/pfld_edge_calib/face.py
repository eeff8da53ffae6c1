"""One face with what is known of it."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Face", "tight_box"]


@dataclass(frozen=True, slots=True)
class Face:
    """A face in a photograph.

    Attributes:
        image: Path of the photograph.
        bbox_xyxy: ``(4,)`` float64 x0, y0, x1, y1 in pixels, right and bottom edges exclusive.
        landmarks: ``(P, 2)`` float32 in photograph pixels; None where unknown.
        attributes: What the set says of the face, e.g. ``{"largepose", "blur"}`` for WFLW.
        weight: Trust in the landmarks, 0 to 1; 1 for hand-made labels.
        point_weights: ``(P,)`` float32, trust in each landmark, 0 to 1, a factor to `weight`; None where all are alike.
        group: Faces of one person or one photograph share it, so that no split parts them.
        encoded: The photograph's file, where it came out of a shard; None where `image` is to be read.
    """

    image: Path
    bbox_xyxy: NDArray[np.float64]
    landmarks: NDArray[np.float32] | None = None
    attributes: frozenset[str] = field(default_factory=frozenset)
    weight: float = 1.0
    point_weights: NDArray[np.float32] | None = None
    group: str = ""
    encoded: bytes | None = field(default=None, repr=False)


def tight_box(landmarks: NDArray[np.floating]) -> NDArray[np.float64]:
    """Find the box of the published evaluation protocol: integer, tight, right and bottom edges exclusive.

    Args:
        landmarks: ``(P, 2)`` pixels.

    Returns:
        ``(4,)`` x0, y0, x1, y1 with ``x1 = trunc(max x) + 1``.
    """
    low = np.trunc(landmarks.min(axis=0))
    high = np.trunc(landmarks.max(axis=0)) + 1
    return np.concatenate([low, high]).astype(np.float64)

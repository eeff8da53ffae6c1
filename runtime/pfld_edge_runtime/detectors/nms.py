"""Greedy non-maximum suppression: of boxes that cover one face, the best stays."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["non_maximum_suppression"]

_MOST_CANDIDATES = 5000
"""The best boxes that are looked at, as many as OpenCV's `FaceDetectorYN` looks at."""


def non_maximum_suppression(
    boxes: NDArray[np.floating], scores: NDArray[np.floating], threshold: float, most: int | None = None
) -> NDArray[np.int64]:
    """Choose boxes, the best first, that overlap no better one by more than a threshold.

    Args:
        boxes: ``(N, 4)`` x0, y0, x1, y1, of positive area.
        scores: ``(N,)``; of equal scores the earlier box wins.
        threshold: Largest intersection over union, 0..1, that two chosen boxes may have.
        most: Stop after so many.

    Returns:
        ``(M,)`` int64 indices into `boxes`, by falling score.
    """
    # The same order and the same strictness as cv2.dnn.NMSBoxes.
    left = np.argsort(-scores, kind="stable")[:_MOST_CANDIDATES]
    chosen: list[int] = []
    while len(left) and (most is None or len(chosen) < most):
        best, left = left[0], left[1:]
        chosen.append(int(best))
        left = left[_overlaps(boxes[best], boxes[left]) <= threshold]
    return np.array(chosen, np.int64)


def _overlaps(box: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.float64]:
    """Intersection over union of one box with ``(N, 4)`` others."""
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1, dtype=np.float64)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1, dtype=np.float64)
    overlaps: NDArray[np.float64] = shared / (np.prod(box[2:] - box[:2], dtype=np.float64) + areas - shared)
    return overlaps

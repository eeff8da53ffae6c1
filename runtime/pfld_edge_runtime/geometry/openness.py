"""Eye and mouth aspect ratios: how far eyes and mouths are open."""

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.geometry.landmarks import check_landmarks

Array = NDArray[np.float64]

# The corners, then the points of the upper line and, below each, those of the lower line.
_LEFT_EYE = ((60, 64), (61, 62, 63), (67, 66, 65))
_RIGHT_EYE = ((68, 72), (69, 70, 71), (75, 74, 73))
_INNER_LIPS = ((88, 92), (89, 90, 91), (95, 94, 93))


def eye_openness(landmarks: object) -> Array:
    """Measure how far each eye is open: the gap between the lids as a share of the eye's width.

    The eye aspect ratio of Soukupová and Čech ("Real-time eye blink detection using facial landmarks", CVWW 2016,
    eq. 1) with WFLW's three pairs of lid points in place of their two: the mean distance of 61-67, 62-66 and 63-65 over
    that of the corners 60-64. Scale, place and roll of the face don't change it; a yaw shortens the width, so compare
    it with the same person's earlier frames rather than with a constant.

    Args:
        landmarks: ``(N, 98, 2)`` WFLW points in pixels, or ``(98, 2)`` for one face.

    Returns:
        ``(N, 2)``: the eyes on the photograph's left and right, 0 and above; NaN where the corners coincide. Measured
        ranges: ``docs/reading-landmarks.md``.

    Raises:
        LandmarkError: The landmarks can't be used.
    """
    points = check_landmarks(landmarks)
    return np.column_stack([_aspect_ratio(points, *_LEFT_EYE), _aspect_ratio(points, *_RIGHT_EYE)])


def mouth_openness(landmarks: object) -> Array:
    """Measure how far each mouth is open: the gap between the lips as a share of the mouth's width.

    The eye's ratio on the inner line of the lips: the mean distance of 89-95, 90-94 and 91-93 over that of the inner
    corners 88-92.

    Args:
        landmarks: ``(N, 98, 2)`` WFLW points in pixels, or ``(98, 2)`` for one face.

    Returns:
        ``(N,)``, 0 and above; NaN where the corners coincide.

    Raises:
        LandmarkError: The landmarks can't be used.
    """
    return _aspect_ratio(check_landmarks(landmarks), *_INNER_LIPS)


def _aspect_ratio(points: Array, corners: tuple[int, int], upper: tuple[int, ...], lower: tuple[int, ...]) -> Array:
    """Mean gap over width, ``(N,)``."""
    gap = np.linalg.norm(points[:, upper] - points[:, lower], axis=2).mean(axis=1)
    width = np.linalg.norm(points[:, corners[0]] - points[:, corners[1]], axis=1)
    result = np.full(len(points), np.nan)
    np.divide(gap, width, out=result, where=width > 0)
    return result

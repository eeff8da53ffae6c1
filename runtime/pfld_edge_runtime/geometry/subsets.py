"""Other landmark schemes computed from WFLW's 98 points: the 68 of 300-W, and five points."""

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.geometry.landmarks import check_landmarks

_BROWS_AND_NOSE = (*range(33, 38), *range(42, 47), *range(51, 60))
_LIDS = (60, 61, 63, 64, 65, 67, 68, 69, 71, 72, 73, 75)

NEAREST_68: tuple[int, ...] = (*range(0, 33, 2), *_BROWS_AND_NOSE, *_LIDS, *range(76, 96))
"""The WFLW point nearest to each of the 68 (300-W) points: every other point of the contour, the upper line of the
brows, nose, corners and lids of the eyes, lips."""

# 300-W cuts a lid in three, WFLW in four: its points lie a third of the way from the outer ones to the middle one.
_LIDS_68 = (37, 38, 40, 41, 43, 44, 46, 47)
_MIDDLES = (62, 62, 66, 66, 70, 70, 74, 74)


def landmarks_68(landmarks: object) -> NDArray[np.float32]:
    """Compute the 68 points of 300-W.

    Args:
        landmarks: ``(N, 98, 2)`` WFLW points in pixels, or ``(98, 2)`` for one face.

    Returns:
        ``(N, 68, 2)`` float32 pixels in the order of `IBUG_68`: the points of `NEAREST_68`, those of the lids a third
        of the way to the lid's middle.

    Raises:
        LandmarkError: The landmarks can't be used.
    """
    points = check_landmarks(landmarks)
    chosen = points[:, NEAREST_68]
    chosen[:, _LIDS_68] += (points[:, _MIDDLES] - chosen[:, _LIDS_68]) / 3
    return chosen.astype(np.float32)


def five_points(landmarks: object) -> NDArray[np.float32]:
    """Compute the centres of the eyes, the tip of the nose and the corners of the mouth.

    An eye's centre is the mean of its eight lid points: unlike the pupil it doesn't move with the gaze.

    Args:
        landmarks: ``(N, 98, 2)`` WFLW points in pixels, or ``(98, 2)`` for one face.

    Returns:
        ``(N, 5, 2)`` float32 pixels in the order of `FIVE_POINTS`.

    Raises:
        LandmarkError: The landmarks can't be used.
    """
    points = check_landmarks(landmarks)
    eyes = [points[:, 60:68].mean(axis=1, keepdims=True), points[:, 68:76].mean(axis=1, keepdims=True)]
    return np.concatenate([*eyes, points[:, (54, 76, 82)]], axis=1).astype(np.float32)

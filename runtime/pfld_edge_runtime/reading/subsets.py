"""The point sets that other programs expect, out of WFLW's 98."""

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.reading.landmark_array import check_landmarks
from pfld_edge_runtime.schemes import LandmarkScheme

__all__ = ["FIVE_POINTS", "IBUG_68", "NEAREST_68", "five_points", "landmarks_68"]

_BROWS_AND_NOSE = (*range(33, 38), *range(42, 47), *range(51, 60))
_LIDS = (60, 61, 63, 64, 65, 67, 68, 69, 71, 72, 73, 75)

NEAREST_68: tuple[int, ...] = (*range(0, 33, 2), *_BROWS_AND_NOSE, *_LIDS, *range(76, 96))
"""The WFLW point nearest to each of the 68 (300-W) points: every other point of the contour, the upper line of the
brows, nose, corners and lids of the eyes, lips."""

# 300-W cuts a lid in three, WFLW in four: its points lie a third of the way from the outer ones to the middle one.
_LIDS_68 = (37, 38, 40, 41, 43, 44, 46, 47)
_MIDDLES = (62, 62, 66, 66, 70, 70, 74, 74)

# 300-W (Sagonas et al., ICCV Workshops 2013, figure 1): the region, its size, and how it maps onto the mirrored region.
_IBUG_PARTS: tuple[tuple[str, int, tuple[int, ...]], ...] = (
    ("contour", 17, tuple(range(16, -1, -1))),
    ("left_brow", 5, (26, 25, 24, 23, 22)),
    ("right_brow", 5, (21, 20, 19, 18, 17)),
    ("nose_bridge", 4, (27, 28, 29, 30)),
    ("nose_base", 5, (35, 34, 33, 32, 31)),
    ("left_eye", 6, (45, 44, 43, 42, 47, 46)),
    ("right_eye", 6, (39, 38, 37, 36, 41, 40)),
    ("outer_lip", 12, (54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55)),
    ("inner_lip", 8, (64, 63, 62, 61, 60, 67, 66, 65)),
)

IBUG_68 = LandmarkScheme(
    name="ibug-68",
    names=tuple(f"{part}_{i}" for part, count, _ in _IBUG_PARTS for i in range(count)),
    mirror=tuple(index for _, _, mirror in _IBUG_PARTS for index in mirror),
    normalizing_points=(36, 45),
)
"""The 68 points of 300-W, which dlib and many others use."""

FIVE_POINTS = LandmarkScheme(
    name="five-points",
    names=("left_eye", "right_eye", "nose_tip", "left_mouth_corner", "right_mouth_corner"),
    mirror=(1, 0, 2, 4, 3),
    normalizing_points=(0, 1),
)
"""The five points of detectors and of face recognition; "left" is the photograph's."""


def landmarks_68(landmarks: object) -> NDArray[np.float32]:
    """Give the 68 points of 300-W.

    Args:
        landmarks: ``(N, 98, 2)`` WFLW points in pixels, or ``(98, 2)`` for one face.

    Returns:
        ``(N, 68, 2)`` float32 pixels in the order of `IBUG_68`: the points of `NEAREST_68`, those of the lids a third
        of the way to the lid's middle.

    Raises:
        LandmarkError: The landmarks can't be read.
    """
    points = check_landmarks(landmarks)
    chosen = points[:, NEAREST_68]
    chosen[:, _LIDS_68] += (points[:, _MIDDLES] - chosen[:, _LIDS_68]) / 3
    return chosen.astype(np.float32)


def five_points(landmarks: object) -> NDArray[np.float32]:
    """Give the centres of the eyes, the tip of the nose and the corners of the mouth.

    An eye's centre is the mean of its eight lid points: unlike the pupil it doesn't move with the gaze.

    Args:
        landmarks: ``(N, 98, 2)`` WFLW points in pixels, or ``(98, 2)`` for one face.

    Returns:
        ``(N, 5, 2)`` float32 pixels in the order of `FIVE_POINTS`.

    Raises:
        LandmarkError: The landmarks can't be read.
    """
    points = check_landmarks(landmarks)
    eyes = [points[:, 60:68].mean(axis=1, keepdims=True), points[:, 68:76].mean(axis=1, keepdims=True)]
    return np.concatenate([*eyes, points[:, (54, 76, 82)]], axis=1).astype(np.float32)

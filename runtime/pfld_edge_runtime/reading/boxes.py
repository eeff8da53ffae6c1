"""The box that a face's landmarks fill."""

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.reading.landmark_array import check_landmarks

__all__ = ["bounding_boxes"]


def bounding_boxes(landmarks: object) -> NDArray[np.float32]:
    """Find the boxes that networks are trained on: tight around the landmarks, whole pixels.

    What `FaceLandmarker` takes as boxes, so a second call with them sees the face as the network was trained to see it.

    Args:
        landmarks: ``(N, P, 2)`` of any scheme, in photograph pixels, or ``(P, 2)`` for one face.

    Returns:
        ``(N, 4)`` float32 x0, y0, x1, y1, right and bottom edges exclusive: ``floor(min)``, ``floor(max) + 1``. May
        leave the photograph.

    Raises:
        LandmarkError: The landmarks can't be read.
    """
    points = check_landmarks(landmarks, points=None)
    corners = [np.floor(points.min(axis=1)), np.floor(points.max(axis=1)) + 1]
    return np.concatenate(corners, axis=1).astype(np.float32)

"""A face and its surroundings at a known size, so that one strength means the same on every photograph."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.face import Face, tight_box

__all__ = ["FACE_SIDE", "FacePatch", "face_patch", "turned"]

FACE_SIDE = 160
"""Longer side of the landmarks' box in a patch, pixels: more than any network of 112 pixels sees of it (93)."""

_REACH = 2.6
"""Side of a patch over that of the box: a crop of 1.2 that is turned, shifted and widened stays inside."""


@dataclass(frozen=True, slots=True)
class FacePatch:
    """One face, cut out with room.

    Attributes:
        image: ``(S, S, 3)`` uint8 BGR; black where the photograph ends.
        landmarks: ``(P, 2)`` float64, the truth in pixels of the patch.
        box: ``(4,)`` float64 x0, y0, x1, y1, what the networks are given.
    """

    image: NDArray[np.uint8]
    landmarks: NDArray[np.float64]
    box: NDArray[np.float64]


def face_patch(photo: NDArray[np.uint8], face: Face) -> FacePatch:
    """Cut a patch; large faces are averaged down, small ones interpolated.

    Args:
        photo: ``(H, W, 3)`` uint8 BGR.
        face: With landmarks and a box.
    """
    if face.landmarks is None:
        raise ValueError("a patch needs a face with landmarks")
    truth = face.landmarks.astype(np.float64)
    low, high = truth.min(axis=0), truth.max(axis=0)
    scale = FACE_SIDE / float((high - low).max())
    size = round(FACE_SIDE * _REACH)
    corner = (low + high) / 2 - size / scale / 2
    # Averaging first: cv2's linear interpolation skips pixels where a face shrinks by more than two.
    shrink = max(1, int(1 / scale))
    kept = np.ones(2)
    if shrink > 1:
        before = np.array(photo.shape[1::-1])
        after = np.maximum(1, before // shrink)
        photo = np.asarray(cv2.resize(photo, after.tolist(), interpolation=cv2.INTER_AREA), np.uint8)
        kept = after / before
    factor = scale / kept
    matrix = np.array([[factor[0], 0, -corner[0] * scale], [0, factor[1], -corner[1] * scale]])
    # Pixel centres: the centre of the first pixel is at 0 for cv2, at 0.5 for landmarks.
    matrix[:, 2] += (factor - 1) / 2
    image = cv2.warpAffine(photo, matrix, (size, size), flags=cv2.INTER_LINEAR)
    placed = face.bbox_xyxy.reshape(2, 2)
    return FacePatch(
        np.asarray(image, np.uint8), (truth - corner) * scale, ((placed - corner) * scale).ravel().astype(np.float64)
    )


def turned(patch: FacePatch, degrees: float) -> FacePatch:
    """Turn a patch about the middle of its face; the box is the tight box of the turned truth."""
    center = (patch.landmarks.min(axis=0) + patch.landmarks.max(axis=0)) / 2
    matrix = cv2.getRotationMatrix2D((center[0] - 0.5, center[1] - 0.5), degrees, 1.0)
    size = patch.image.shape[0]
    image = cv2.warpAffine(patch.image, matrix, (size, size), flags=cv2.INTER_LINEAR)
    points = (patch.landmarks - 0.5) @ matrix[:, :2].T + matrix[:, 2] + 0.5
    return replace(patch, image=np.asarray(image, np.uint8), landmarks=points, box=tight_box(points))

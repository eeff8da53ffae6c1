"""What WFLW's 98 points give: the schemes of 68 and five points, openness of eyes and mouth, crops for recognition."""

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.arrays import Float32Array, Float64Array, Uint8Array
from pfld_edge_runtime.crop import check_image, warp_affine
from pfld_edge_runtime.errors import ImageError, LandmarkError, check_counts
from pfld_edge_runtime.geometry.landmarks import check_landmarks, fit_similarity

_BROWS_AND_NOSE = (*range(33, 38), *range(42, 47), *range(51, 60))
_LIDS = (60, 61, 63, 64, 65, 67, 68, 69, 71, 72, 73, 75)

NEAREST_68: tuple[int, ...] = (*range(0, 33, 2), *_BROWS_AND_NOSE, *_LIDS, *range(76, 96))
"""The WFLW point nearest to each of the 68 (300-W) points: every other point of the contour, the upper line of the
brows, nose, corners and lids of the eyes, lips."""

# 300-W cuts a lid in three, WFLW in four: its points lie a third of the way from the outer ones to the middle one.
_LIDS_68 = (37, 38, 40, 41, 43, 44, 46, 47)
_MIDDLES = (62, 62, 66, 66, 70, 70, 74, 74)


def landmarks_68(landmarks: object) -> Float32Array:
    """Compute the 68 points of 300-W in the order of `IBUG_68`, ``(N, 68, 2)`` float32 pixels.

    They are the points of `NEAREST_68`, those of the lids a third of the way to the lid's middle. `landmarks` are ``(N,
    98, 2)`` WFLW points in pixels, or ``(98, 2)`` for one face; a `LandmarkError` says that they can't be used.
    """
    points = check_landmarks(landmarks)
    chosen = points[:, NEAREST_68]
    chosen[:, _LIDS_68] += (points[:, _MIDDLES] - chosen[:, _LIDS_68]) / 3
    return chosen.astype(np.float32)


def five_points(landmarks: object) -> Float32Array:
    """Compute the eyes' centres, nose tip and mouth corners, ``(N, 5, 2)`` float32, ordered as `FIVE_POINTS`.

    An eye's centre is the mean of its eight lid points: unlike the pupil it doesn't move with the gaze. Arguments and
    errors are those of `landmarks_68`.
    """
    points = check_landmarks(landmarks)
    eyes = [points[:, 60:68].mean(axis=1, keepdims=True), points[:, 68:76].mean(axis=1, keepdims=True)]
    return np.concatenate([*eyes, points[:, (54, 76, 82)]], axis=1).astype(np.float32)


# The corners, then the points of the upper line and, below each, those of the lower line.
_LEFT_EYE = ((60, 64), (61, 62, 63), (67, 66, 65))
_RIGHT_EYE = ((68, 72), (69, 70, 71), (75, 74, 73))
_INNER_LIPS = ((88, 92), (89, 90, 91), (95, 94, 93))


def eye_openness(landmarks: object) -> Float64Array:
    """Measure how far each eye is open: the gap between the lids as a share of the eye's width.

    The eye aspect ratio of Soukupová and Čech ("Real-time eye blink detection using facial landmarks", CVWW 2016, eq.
    1) with WFLW's three pairs of lid points in place of their two: the mean distance of 61-67, 62-66 and 63-65 over
    that of the corners 60-64. Scale, place and roll of the face don't change it; a yaw shortens the width, so compare
    it with the same person's earlier frames rather than with a constant.

    Of ``(N, 98, 2)`` WFLW points in pixels, or ``(98, 2)`` for one face: ``(N, 2)``, the eyes on the photograph's left
    and right, 0 and above; NaN where the corners coincide. Measured ranges: ``docs/reading-landmarks.md``. A
    `LandmarkError` says that the landmarks can't be used.
    """
    points = check_landmarks(landmarks)
    return np.column_stack([_aspect_ratio(points, *_LEFT_EYE), _aspect_ratio(points, *_RIGHT_EYE)])


def mouth_openness(landmarks: object) -> Float64Array:
    """Measure how far each mouth is open, ``(N,)``: the gap between the lips as a share of the mouth's width.

    The eye's ratio on the inner line of the lips: the mean distance of 89-95, 90-94 and 91-93 over that of the inner
    corners 88-92. Arguments, range and errors are those of `eye_openness`.
    """
    return _aspect_ratio(check_landmarks(landmarks), *_INNER_LIPS)


def _aspect_ratio(
    points: Float64Array, corners: tuple[int, int], upper: tuple[int, ...], lower: tuple[int, ...]
) -> Float64Array:
    """Mean gap over width, ``(N,)``."""
    gap = np.linalg.norm(points[:, upper] - points[:, lower], axis=2).mean(axis=1)
    width = np.linalg.norm(points[:, corners[0]] - points[:, corners[1]], axis=1)
    result = np.full(len(points), np.nan)
    np.divide(gap, width, out=result, where=width > 0)
    return result


ARCFACE_POINTS: Float64Array = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
"""``(5, 2)`` pixels of a 112 x 112 crop: eyes, nose, corners of the mouth. Published by the authors of ArcFace (Deng et
al., CVPR 2019) with their code; recognition networks are trained on faces aligned to it."""
ARCFACE_POINTS.flags.writeable = False
_ARCFACE_SIZE = 112


def aligned_face(image: NDArray[np.generic], landmarks: object, size: int = 112) -> Uint8Array:
    """Crop one face, ``(98, 2)`` or ``(1, 98, 2)`` WFLW points, to ``(size, size, 3)`` uint8; see `aligned_faces`."""
    faces = aligned_faces(image, landmarks, size)
    if len(faces) != 1:
        raise LandmarkError(f"aligned_face takes the landmarks of one face, found {len(faces)}: use aligned_faces")
    face: Uint8Array = faces[0]
    return face


def aligned_faces(image: NDArray[np.generic], landmarks: object, size: int = 112) -> Uint8Array:
    """Rotate, scale and crop faces so that five points lie nearest to ArcFace's template, which grows with `size`.

    Bilinear, black outside the photograph, no smoothing of large faces: what ``cv2.warpAffine`` does with a similarity,
    and what recognition networks are trained on. Only the pixels that the crop needs are read. Gives ``(N, size, size,
    3)`` uint8 in the image's channel order for ``(N, 98, 2)`` WFLW points, or ``(98, 2)`` for one face.

    Raises:
        ImageError: The image, or the size, can't be used.
        LandmarkError: The landmarks can't be used, or a face's five points coincide.
    """
    check_counts(ImageError, 1, size=size)
    photo = check_image(image)
    points = five_points(landmarks).astype(np.float64)
    template = ARCFACE_POINTS * (size / _ARCFACE_SIZE)
    maps = fit_similarity(points, template).inverse.matrix
    if not np.isfinite(maps).all():
        raise LandmarkError("the landmarks of a face lie on one point: leave that face out")
    faces = np.empty((len(maps), size, size, 3), np.uint8)
    for face, mapping in zip(faces, maps, strict=True):
        face[:] = warp_affine(photo, mapping, size)
    return faces

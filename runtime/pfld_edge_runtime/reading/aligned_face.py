"""The aligned crop that face recognition networks take."""

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.crop import check_image
from pfld_edge_runtime.errors import ImageError, LandmarkError
from pfld_edge_runtime.reading.similarity import similarity
from pfld_edge_runtime.reading.subsets import five_points

__all__ = ["ARCFACE_POINTS", "aligned_face", "aligned_faces"]

Array = NDArray[np.float64]

ARCFACE_POINTS: Array = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
"""``(5, 2)`` pixels of a 112 x 112 crop: eyes, nose, corners of the mouth. Published by the authors of ArcFace (Deng et
al., CVPR 2019) with their code; recognition networks are trained on faces that lie so."""
ARCFACE_POINTS.flags.writeable = False
_ARCFACE_SIZE = 112


def aligned_face(image: NDArray[np.generic], landmarks: object, size: int = 112) -> NDArray[np.uint8]:
    """Cut one face as `aligned_faces` does.

    Args:
        image: As for `aligned_faces`.
        landmarks: ``(98, 2)`` or ``(1, 98, 2)`` WFLW points in photograph pixels.
        size: Side of the crop in pixels.

    Returns:
        ``(size, size, 3)`` uint8.

    Raises:
        ImageError: The image can't be used.
        LandmarkError: The landmarks can't be read, or are those of several faces or of none.
    """
    faces = aligned_faces(image, landmarks, size)
    if len(faces) != 1:
        raise LandmarkError(f"aligned_face takes the landmarks of one face, found {len(faces)}: use aligned_faces")
    face: NDArray[np.uint8] = faces[0]
    return face


def aligned_faces(image: NDArray[np.generic], landmarks: object, size: int = 112) -> NDArray[np.uint8]:
    """Turn, scale and cut faces so that five points lie nearest to ArcFace's template.

    Bilinear, black outside the photograph, no smoothing of large faces: what ``cv2.warpAffine`` does with a similarity,
    which is what recognition networks are trained on. Only the pixels that the crop needs are read.

    Args:
        image: ``(H, W, 3)``, ``(H, W, 4)`` (alpha is ignored), ``(H, W, 1)`` or ``(H, W)``; uint8, or floating point in
            0..1.
        landmarks: ``(N, 98, 2)`` WFLW points in photograph pixels, or ``(98, 2)`` for one face.
        size: Side of the crops in pixels; the template grows with it.

    Returns:
        ``(N, size, size, 3)`` uint8 in the image's channel order.

    Raises:
        ImageError: The image can't be used.
        LandmarkError: The landmarks can't be read, or a face's five points coincide.
    """
    photo = check_image(image)
    points = five_points(landmarks).astype(np.float64)
    # From the crop to the photograph: that is the way in which pixels are fetched.
    template = ARCFACE_POINTS * (size / _ARCFACE_SIZE)
    maps = _inverse(similarity(points, template))
    if not np.isfinite(maps).all():
        raise LandmarkError("the landmarks of a face lie on one point: leave that face out")
    faces = np.empty((len(maps), size, size, 3), np.uint8)
    for face, mapping in zip(faces, maps, strict=True):
        face[:] = _warped(photo, mapping, size)
    return faces


def _inverse(maps: Array) -> Array:
    """The inverse of ``(N, 2, 3)`` similarities."""
    turn = maps[:, :, :2]
    scale = (turn[:, 0] ** 2).sum(axis=1)[:, None, None]
    back = turn.transpose(0, 2, 1) / scale
    return np.concatenate([back, -back @ maps[:, :, 2:]], axis=2)


def _warped(photo: NDArray[np.generic], mapping: Array, size: int) -> NDArray[np.uint8]:
    """``(size, size, C)`` uint8: the photograph's pixel at ``mapping @ (x, y, 1)`` for each x, y of the crop."""
    steps = np.arange(size)
    x = mapping[0, 0] * steps + mapping[0, 1] * steps[:, None] + mapping[0, 2]
    y = mapping[1, 0] * steps + mapping[1, 1] * steps[:, None] + mapping[1, 2]
    height, width = photo.shape[:2]
    # Far outside, indices would overflow; one pixel outside is as black.
    x, y = x.clip(-2, width + 1), y.clip(-2, height + 1)
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    right_share, low_share = (x - left).astype(np.float32), (y - top).astype(np.float32)
    face = np.zeros((size, size, photo.shape[2]), np.float32)
    for down, across in ((0, 0), (0, 1), (1, 0), (1, 1)):
        rows, columns = top + down, left + across
        weights = (low_share if down else 1 - low_share) * (right_share if across else 1 - right_share)
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        taps = photo[rows.clip(0, height - 1), columns.clip(0, width - 1)]
        face += taps.astype(np.float32, copy=False) * (weights * inside)[:, :, None]
    if photo.dtype != np.uint8:
        if not (face.min() >= -1e-3 and face.max() <= 1 + 1e-3):
            raise ImageError("a floating-point image is read as 0..1: pass uint8, or divide by 255")
        face *= 255
    levels: NDArray[np.uint8] = (face + np.float32(0.5)).clip(0, 255).astype(np.uint8)
    return levels

"""Aligned face crops for face recognition networks."""

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.crop import check_image, warp_affine
from pfld_edge_runtime.errors import LandmarkError
from pfld_edge_runtime.geometry.landmarks import fit_similarity
from pfld_edge_runtime.geometry.subsets import five_points

Array = NDArray[np.float64]

ARCFACE_POINTS: Array = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
"""``(5, 2)`` pixels of a 112 x 112 crop: eyes, nose, corners of the mouth. Published by the authors of ArcFace (Deng et
al., CVPR 2019) with their code; recognition networks are trained on faces aligned to it."""
ARCFACE_POINTS.flags.writeable = False
_ARCFACE_SIZE = 112


def aligned_face(image: NDArray[np.generic], landmarks: object, size: int = 112) -> NDArray[np.uint8]:
    """Crop one face as `aligned_faces` does.

    Args:
        image: As for `aligned_faces`.
        landmarks: ``(98, 2)`` or ``(1, 98, 2)`` WFLW points in photograph pixels.
        size: Side of the crop in pixels.

    Returns:
        ``(size, size, 3)`` uint8.

    Raises:
        ImageError: The image can't be used.
        LandmarkError: The landmarks can't be used, or are those of several faces or of none.
    """
    faces = aligned_faces(image, landmarks, size)
    if len(faces) != 1:
        raise LandmarkError(f"aligned_face takes the landmarks of one face, found {len(faces)}: use aligned_faces")
    face: NDArray[np.uint8] = faces[0]
    return face


def aligned_faces(image: NDArray[np.generic], landmarks: object, size: int = 112) -> NDArray[np.uint8]:
    """Rotate, scale and crop faces so that five points lie nearest to ArcFace's template.

    Bilinear, black outside the photograph, no smoothing of large faces: what ``cv2.warpAffine`` does with a similarity,
    and what recognition networks are trained on. Only the pixels that the crop needs are read.

    Args:
        image: ``(H, W, 3)``, ``(H, W, 4)`` (alpha is ignored), ``(H, W, 1)`` or ``(H, W)``; uint8, or floating point in
            0..1.
        landmarks: ``(N, 98, 2)`` WFLW points in photograph pixels, or ``(98, 2)`` for one face.
        size: Side of the crops in pixels; the template grows with it.

    Returns:
        ``(N, size, size, 3)`` uint8 in the image's channel order.

    Raises:
        ImageError: The image can't be used.
        LandmarkError: The landmarks can't be used, or a face's five points coincide.
    """
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

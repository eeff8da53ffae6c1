"""Maps 300-W's 68 landmarks to WFLW's 98; points that have no counterpart get the weight 0."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face
from pfld_edge_runtime import IBUG_68, WFLW_98

_SAME = (
    *zip(range(0, 33, 2), range(17), strict=True),  # contour
    *zip(range(33, 38), range(17, 22), strict=True),  # brows
    *zip(range(42, 47), range(22, 27), strict=True),
    *zip(range(51, 60), range(27, 36), strict=True),  # nose
    *zip((60, 64, 68, 72), (36, 39, 42, 45), strict=True),  # corners of the eyes
    *zip(range(76, 96), range(48, 68), strict=True),  # lips
)
"""(WFLW, 300-W) points at one place of a face (Wu et al. 2018, figure 2; Sagonas et al. 2013, figure 1)."""

# (WFLW point, 300-W corner, 300-W lid point). 300-W divides a lid into three parts, WFLW into four: WFLW's outer points
# lie three quarters of the way from the corner to 300-W's first point. The lid's middle has no counterpart.
_LIDS = ((61, 36, 37), (63, 39, 38), (65, 39, 40), (67, 36, 41), (69, 42, 43), (71, 45, 44), (73, 45, 46), (75, 42, 47))


def wflw_98_from_68() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Build the ``(98, 68)`` float32 map, whose rows sum to 1 where a point has a counterpart, and their mask."""
    matrix = np.zeros((WFLW_98.num_landmarks, IBUG_68.num_landmarks), np.float32)
    for point, source in _SAME:
        matrix[point, source] = 1
    for point, corner, lid in _LIDS:
        matrix[point, corner], matrix[point, lid] = 0.25, 0.75
    return matrix, np.asarray(matrix.any(axis=1), np.float32)


def points_as_wflw_98(
    landmarks: NDArray[np.float32], weights: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Map ``(N, 68, 2)`` points and their ``(N, 68)`` weights to ``(N, 98, 2)`` and ``(N, 98)``.

    Points without counterpart lie at the mean of the 68 and have the weight 0.
    """
    matrix, mask = wflw_98_from_68()
    wider = np.matmul(matrix, landmarks).astype(np.float32)
    wider[:, mask == 0] = landmarks.mean(axis=1, keepdims=True)
    # A point interpolated between two gets the lower of their weights.
    mapped = np.where(matrix > 0, weights[:, None], 1).min(axis=2) * mask
    return wider, mapped.astype(np.float32)


def as_wflw_98(faces: Sequence[Face]) -> list[Face]:
    """Map faces with the 68 points of `IBUG_68`, or else a FaceSetError, to 98; those without counterpart weigh 0."""
    wider = []
    for face in faces:
        if face.landmarks is None or len(face.landmarks) != IBUG_68.num_landmarks:
            count = 0 if face.landmarks is None else len(face.landmarks)
            raise FaceSetError(f"{face.image}: {count} landmarks, expected the 68 of {IBUG_68.name}")
        each = np.ones(IBUG_68.num_landmarks, np.float32) if face.point_weights is None else face.point_weights
        landmarks, weights = points_as_wflw_98(face.landmarks[None], each[None])
        wider.append(replace(face, landmarks=landmarks[0], point_weights=weights[0]))
    return wider

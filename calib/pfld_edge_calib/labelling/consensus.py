"""Combines several predictions of a face to a pseudo-label with confidences.

Predictions come from several networks, from the mirrored crop, and from shifted crops (test-time augmentation). The
label is their median, coordinate by coordinate, which a single outlier moves little. The disagreement of a landmark is
the standard deviation of its predictions as a share of the face's size; it ranks landmarks and faces by their true
error. ``docs/labelling.md`` has the figures, also of the alternatives that were tried.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.calibration import jittered
from pfld_edge_calib.errors import LabellingError
from pfld_edge_calib.face import Face
from pfld_edge_runtime import LandmarkModel, LandmarkScheme, crop_faces, crop_windows

TYPICAL_ERROR = 0.03
"""Typical error of labels on which all predictions agree, as a share of the face's size."""

_MIN_EYE_SHARE = 0.35
"""Eye distance over the longer side of the landmarks' box in a frontal face. In profile the eye distance vanishes, and
the box still gives the face's size."""

_SHIFT, _SCALE = 0.04, 0.08
"""Largest shift and change of scale of further crops, as shares of the box: similar to a detector's errors."""


def augmented_predictions(
    photo: NDArray[np.uint8], boxes: NDArray[np.float64], teachers: Sequence[LandmarkModel], *, flip: bool, crops: int
) -> NDArray[np.float32]:
    """Predict the landmarks of every face with every teacher under test-time augmentation.

    Args:
        photo: ``(H, W, 3)`` BGR.
        boxes: ``(N, 4)`` tight boxes of the landmarks, N at least 1.
        teachers: Networks of one landmark scheme.
        flip: Predict each crop's mirror image too.
        crops: Crops of each face; the first is the box's own, the others are shifted alike for every face.

    Returns:
        ``(V, N, P, 2)`` photograph pixels: V predictions, one for each teacher, crop and mirror image.

    Raises:
        LabellingError: A network predicts NaN or infinity.
    """
    return np.stack(
        [
            _prediction(photo, moved, teacher, mirrored=mirrored)
            for moved in _jittered_boxes(boxes, crops)
            for teacher in teachers
            for mirrored in ((False, True) if flip else (False,))
        ]
    )


def _prediction(
    photo: NDArray[np.uint8], boxes: NDArray[np.float64], teacher: LandmarkModel, *, mirrored: bool
) -> NDArray[np.float32]:
    contract = teacher.contract
    windows = crop_windows(boxes, contract.crop.margin)
    crops = crop_faces(photo, windows, contract.input_size, swap_channels=contract.color_order != "bgr")
    if not mirrored:
        found = teacher.predict(crops)
    else:
        flipped = teacher.predict(np.ascontiguousarray(crops[:, :, ::-1]))[:, contract.landmarks.mirror]
        found = np.stack([1 - flipped[..., 0], flipped[..., 1]], axis=-1)
    if not np.isfinite(found).all():
        raise LabellingError(f"{teacher.name} gave landmarks that are not finite numbers: the file is damaged")
    return windows.to_image(found)


def _jittered_boxes(boxes: NDArray[np.float64], crops: int) -> NDArray[np.float64]:
    """Jitter boxes ``(crops, N, 4)``; the same seed for each face, whose crops must not depend on the other faces."""
    moved = [jittered([Face(Path(), box)], crops, 0, _SHIFT, _SCALE) for box in boxes]
    return np.array([[faces[i].bbox_xyxy for faces in moved] for i in range(crops)])


@dataclass(frozen=True, slots=True)
class Consensus:
    """The pseudo-labels of N faces.

    A confidence is inversely proportional to the expected error, whose square is the sum of T squared, the typical
    error of any label, D squared, the face's disagreement, and d squared, the landmark's:
    ``T / sqrt(T^2 + D^2 + d^2)``. It is the product of the face's weight and the landmark's weight, as training
    multiplies them.

    Attributes:
        landmarks: ``(N, P, 2)`` float32 pixels, the median of the predictions.
        disagreement: ``(N, P)`` float64, d, as shares of the face's size.
        face_disagreement: ``(N,)`` float64, D, the median over the landmarks.
        weights: ``(N,)`` float64 in 0 to 1, confidence in the face: ``T / sqrt(T^2 + D^2)``.
        point_weights: ``(N, P)`` float64 in 0 to 1, confidence in a landmark relative to its face's:
            ``sqrt(T^2 + D^2) / sqrt(T^2 + D^2 + d^2)``.
    """

    landmarks: NDArray[np.float32]
    disagreement: NDArray[np.float64]
    face_disagreement: NDArray[np.float64]
    weights: NDArray[np.float64]
    point_weights: NDArray[np.float64]


def consensus(predictions: NDArray[np.float32], scheme: LandmarkScheme) -> Consensus:
    """Combine ``(V, N, P, 2)`` predictions in pixels, V at least 2; see `augmented_predictions`."""
    landmarks = np.median(predictions, axis=0).astype(np.float32)
    spread = np.linalg.norm(predictions.astype(np.float64).std(axis=0), axis=2)
    disagreement = spread / face_sizes(landmarks, scheme)[:, None]
    of_face = np.median(disagreement, axis=1)
    level = np.hypot(of_face, TYPICAL_ERROR)
    return Consensus(
        landmarks=landmarks,
        disagreement=disagreement,
        face_disagreement=of_face,
        weights=TYPICAL_ERROR / level,
        point_weights=level[:, None] / np.hypot(disagreement, level[:, None]),
    )


def face_sizes(landmarks: NDArray[np.floating], scheme: LandmarkScheme) -> NDArray[np.float64]:
    """Measure ``(N, P, 2)`` landmarks: the distance that normalizes the NME, or 0.35 of their box where that is larger.

    ``(N,)``, in the landmarks' pixels, at least 1.
    """
    first, second = scheme.normalizing_points
    eyes = np.linalg.norm(landmarks[:, first].astype(np.float64) - landmarks[:, second], axis=1)
    longer = np.ptp(landmarks.astype(np.float64), axis=1).max(axis=1)
    return np.asarray(np.maximum(np.maximum(eyes, _MIN_EYE_SHARE * longer), 1.0), np.float64)

"""Landmarks of a photograph's faces, as one record."""

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.crop import check_boxes, check_image
from pfld_edge_runtime.faces import Faces
from pfld_edge_runtime.landmark_network import LandmarkNetwork
from pfld_edge_runtime.reading.confidence import (
    BUNDLED_CURVE,
    ConfidenceCurve,
    landmark_confidence,
    predict_with_mirror,
)

__all__ = ["read_faces"]


def read_faces(
    landmarker: LandmarkNetwork,
    image: NDArray[np.generic],
    boxes: object,
    color: str = "rgb",
    confidence: bool = False,
    curve: ConfidenceCurve = BUNDLED_CURVE,
) -> Faces:
    """Find the landmarks of every boxed face and, if asked, how far they can be trusted.

    Args:
        landmarker: The network.
        image: As for `FaceLandmarker`.
        boxes: As for `FaceLandmarker`; a fifth column is the detector's score.
        color: Channel order of `image`: ``rgb`` or ``bgr``.
        confidence: Fill `Faces.confidences`; costs a second row of the batch for each face.
        curve: For a network that isn't the bundled one.

    Returns:
        N faces; the landmarks are those of ``landmarker(image, boxes, color)``, with confidences or without.

    Raises:
        ImageError: The image can't be used.
        BoxError: A box can't be used.
    """
    valid = check_boxes(boxes)
    height, width = check_image(image).shape[:2]
    unknown = np.full(len(valid), np.nan, np.float32)
    columns = np.asarray(boxes, np.float32).reshape(len(valid), -1) if len(valid) else valid
    scheme = landmarker.contract.landmarks
    confidences = unknown
    if confidence:
        landmarks, mirrored = predict_with_mirror(landmarker, image, valid, color)
        confidences = landmark_confidence(landmarks, mirrored, scheme, curve)
    else:
        landmarks = landmarker(image, valid, color)
    return Faces(
        landmarks=landmarks,
        boxes=valid.astype(np.float32),
        scores=columns[:, 4].astype(np.float32) if columns.shape[1] > 4 else unknown,
        confidences=confidences,
        ids=np.full(len(valid), -1, np.int64),
        image_size=(width, height),
        scheme=scheme,
    )

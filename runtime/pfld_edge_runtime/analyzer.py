"""Photograph in, faces with their landmarks out: a detector and a landmarker, one after the other."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.crop import check_image
from pfld_edge_runtime.detectors import Detector, DetectorError, find_boxes, open_detector
from pfld_edge_runtime.faces import Faces
from pfld_edge_runtime.landmark_network import LandmarkNetwork
from pfld_edge_runtime.landmarker import FaceLandmarker

__all__ = ["FaceAnalyzer", "landmark_boxes"]


class FaceAnalyzer:
    """Finds the faces of a photograph, and their landmarks.

    Thread-safe where the detector is; those of this package are.

    Example:
        >>> analyze = FaceAnalyzer("yunet")
        >>> faces = analyze(image)
        >>> faces.landmarks  # (N, 98, 2), photograph pixels
    """

    def __init__(
        self,
        detector: Detector | str | Path,
        landmarker: LandmarkNetwork | None = None,
        refine: int = 1,
        max_faces: int | None = None,
    ) -> None:
        """Put the two stages together.

        Args:
            detector: A `FaceDetector`; any callable that takes an image and gives ``(N, 4)`` or ``(N, 5)`` boxes tight
                around landmarks; or what `open_detector` takes.
            landmarker: None for the bundled model.
            refine: How many times landmarks are looked for again, in the tight box of those found before. A landmark
                network is trained on tight boxes, and no detector's box is one; 0 trusts the detector.
            max_faces: Look for the landmarks of so many faces, those of the best scores; None for all.

        Raises:
            DetectorError: A setting is out of range, or the named detector isn't there.
            ModelFileError: A file can't be opened.
        """
        if refine < 0:
            raise DetectorError(f"refine must be 0 or more, not {refine!r}")
        if max_faces is not None and max_faces < 1:
            raise DetectorError(f"max_faces must be 1 or more, not {max_faces!r}")
        self.detector: Detector = open_detector(detector) if isinstance(detector, str | Path) else detector
        self.landmarker: LandmarkNetwork = FaceLandmarker() if landmarker is None else landmarker
        self._refine = refine
        self._max_faces = max_faces

    def __call__(self, image: NDArray[np.generic], color: str = "rgb") -> Faces:
        """Find faces and landmarks.

        Args:
            image: As for `FaceLandmarker`.
            color: Channel order of `image`: ``rgb`` or ``bgr``.

        Returns:
            The faces, the detector's best first; `Faces.boxes` is what the last pass cut them by. A photograph with no
            face gives no faces, never an error. Confidences are NaN and ids -1.

        Raises:
            ImageError: The image can't be used.
            BoxError: A detector of your own gave what can't be read as boxes.
        """
        height, width = check_image(image).shape[:2]
        boxes, scores = find_boxes(self.detector, image, color, self.landmarker.contract)
        # NaN, where a detector gives no scores, sorts last and keeps the detector's order.
        order = np.argsort(-scores, kind="stable")[: self._max_faces]
        boxes, scores = boxes[order], scores[order]
        landmarks = self.landmarker(image, boxes, color)
        for _ in range(self._refine if len(boxes) else 0):
            boxes = landmark_boxes(landmarks)
            landmarks = self.landmarker(image, boxes, color)
        count = len(boxes)
        return Faces(
            landmarks=landmarks,
            boxes=boxes.astype(np.float32),
            scores=scores,
            confidences=np.full(count, np.nan, np.float32),
            ids=np.full(count, -1, np.int64),
            image_size=(width, height),
            scheme=self.landmarker.contract.landmarks,
        )


def landmark_boxes(landmarks: NDArray[np.floating]) -> NDArray[np.float64]:
    """Find the boxes that landmark networks are trained on: integer, tight, right and bottom edges exclusive.

    Args:
        landmarks: ``(N, P, 2)`` pixels.

    Returns:
        ``(N, 4)`` float64 x0, y0, x1, y1: ``floor`` of the least and ``floor + 1`` of the greatest coordinates.
    """
    low = np.floor(landmarks.min(axis=1)).astype(np.float64)
    high = np.floor(landmarks.max(axis=1)).astype(np.float64) + 1
    return np.concatenate([low, high], axis=1)

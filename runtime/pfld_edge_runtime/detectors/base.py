"""What a detector is, and how it is asked for the boxes that landmark networks are trained on."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.contract import Contract
from pfld_edge_runtime.crop import check_boxes
from pfld_edge_runtime.detectors.box_map import BoxMap, scheme_box_map
from pfld_edge_runtime.errors import BoxError, ImageError

__all__ = ["BoxMap", "Detector", "FaceDetector", "find_boxes"]

Detector = Callable[[NDArray[np.generic]], object]
"""Anything that takes an image and gives ``(N, 4)`` boxes, x0 y0 x1 y1 in pixels, or ``(N, 5)`` with a score."""


class FaceDetector(ABC):
    """A detector that knows how its boxes lie around the landmarks.

    Attributes:
        box_map: From its boxes to landmark boxes.
    """

    box_map: BoxMap = BoxMap()

    def __call__(self, image: NDArray[np.generic], color: str = "rgb") -> NDArray[np.float32]:
        """Find faces.

        Args:
            image: As for `FaceLandmarker`.
            color: Channel order of `image`: ``rgb`` or ``bgr``.

        Returns:
            ``(N, 5)`` float32: x0, y0, x1, y1 in pixels, and a score in 0..1; the best first.

        Raises:
            ImageError: The image can't be used.
        """
        if color not in ("rgb", "bgr"):
            raise ImageError(f"color must be 'rgb' or 'bgr', not {color!r}")
        return self._detect(image, color)

    @abstractmethod
    def _detect(self, image: NDArray[np.generic], color: str) -> NDArray[np.float32]: ...


def find_boxes(
    detector: Detector, image: NDArray[np.generic], color: str = "rgb", contract: Contract | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Ask any detector for the landmark boxes of a photograph.

    Args:
        detector: A `FaceDetector`, whose boxes are mapped to landmark boxes, or a callable, whose boxes are taken as
            they are and which gets the image as it is.
        image: As for `FaceLandmarker`.
        color: Channel order of `image`.
        contract: Of the network that the boxes are for; None for WFLW's 98 points.

    Returns:
        ``(N, 4)`` float64 boxes that are tight around landmarks, and ``(N,)`` float32 scores, NaN where it gave none.

    Raises:
        BoxError: What the detector gave can't be read as boxes.
        ImageError: The image can't be used.
    """
    found = detector(image, color) if isinstance(detector, FaceDetector) else detector(image)
    boxes = check_boxes(found)
    values = np.asarray(found, np.float32)
    if len(boxes) == 0:
        return boxes, np.zeros(0, np.float32)
    values = values.reshape(len(boxes), -1)
    if values.shape[1] not in (4, 5):
        raise BoxError(f"a detector must give (N, 4) or (N, 5) numbers, x0 y0 x1 y1 and a score; found {values.shape}")
    scores = values[:, 4] if values.shape[1] == 5 else np.full(len(boxes), np.nan, np.float32)
    if isinstance(detector, FaceDetector):
        boxes = detector.box_map(boxes)
        boxes = boxes if contract is None else scheme_box_map(contract)(boxes)
    return boxes, scores

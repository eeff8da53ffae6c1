"""The detector interface, and the map from a detector's boxes to the boxes that landmark networks are trained on."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.contract import Contract, CropRule
from pfld_edge_runtime.crop import check_boxes, turn_points
from pfld_edge_runtime.errors import BoxError, ImageError

Detector = Callable[[NDArray[np.generic]], object]
"""Any callable from an image to ``(N, 4)`` boxes, x0 y0 x1 y1 in pixels, or ``(N, 5)`` with a score."""


@dataclass(frozen=True, slots=True)
class BoxMap:
    """The map from a detector's box to the tight box of the landmarks, in fractions of the detector's box.

    Attributes:
        shift: How far the centre moves, as fractions of width and height.
        scale: New width and height as fractions of the old ones.
    """

    shift: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)

    def __call__(self, boxes: NDArray[np.float64], roll: float = 0.0) -> NDArray[np.float64]:
        """Map ``(N, 4)`` boxes of faces that lean by `roll` degrees, which turns the shift."""
        sizes = boxes[:, 2:] - boxes[:, :2]
        shifts = sizes * self.shift
        if roll:
            shifts = turn_points(shifts[:, None], np.zeros((1, 2)), np.array([roll]))[:, 0]
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2 + shifts
        half = sizes * self.scale / 2
        return np.concatenate([centers - half, centers + half], axis=1)


class FaceDetector(ABC):
    """A detector with a measured map from its boxes to landmark boxes.

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
    """Run any detector and give the landmark boxes of a photograph.

    Args:
        detector: A `FaceDetector`, whose boxes are mapped to landmark boxes, or a callable, whose boxes are taken as
            landmark boxes and which gets the image unchanged.
        image: As for `FaceLandmarker`.
        color: Channel order of `image`.
        contract: Of the network that the boxes are for; None for WFLW's 98 points.

    Returns:
        ``(N, 4)`` float64 boxes that are tight around landmarks, and ``(N,)`` float32 scores, NaN where it gave none.

    Raises:
        BoxError: The detector returned something other than boxes.
        ImageError: The image can't be used.
    """
    boxes, scores = detect_boxes(detector, image, color)
    return landmark_boxes(detector, boxes, contract), scores


def detect_boxes(
    detector: Detector, image: NDArray[np.generic], color: str = "rgb"
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Run any detector as `find_boxes` does, and give ``(N, 4)`` boxes of its own and ``(N,)`` scores."""
    found = detector(image, color) if isinstance(detector, FaceDetector) else detector(image)
    boxes = check_boxes(found)
    values = np.asarray(found, np.float32)
    if len(boxes) == 0:
        return boxes, np.zeros(0, np.float32)
    values = values.reshape(len(boxes), -1)
    if values.shape[1] not in (4, 5):
        raise BoxError(f"a detector must give (N, 4) or (N, 5) numbers, x0 y0 x1 y1 and a score; found {values.shape}")
    return boxes, values[:, 4] if values.shape[1] == 5 else np.full(len(boxes), np.nan, np.float32)


def landmark_boxes(
    detector: Detector, boxes: NDArray[np.float64], contract: Contract | None = None, roll: float = 0.0
) -> NDArray[np.float64]:
    """Map a detector's ``(N, 4)`` boxes to landmark boxes: those of the faces turned upright, if they lean by `roll`.

    Args:
        detector: Only a `FaceDetector` has a map.
        boxes: Of `detect_boxes`.
        contract: As for `find_boxes`.
        roll: Degrees, as for `crop_windows`.
    """
    if roll:
        # The box of a leaning face is not that of the face turned upright: a square of the mean side stands for it.
        centers, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).mean(axis=1, keepdims=True) / 2
        boxes = np.concatenate([centers - half, centers + half], axis=1)
    if isinstance(detector, FaceDetector):
        boxes = detector.box_map(boxes, roll)
        boxes = boxes if contract is None else scheme_box_map(contract)(boxes, roll)
    return boxes


_SCHEME_MAPS = {
    "wflw-98": BoxMap(),
    # The same contour and brows.
    "ibug-68": BoxMap(),
    # Means over 1,166 faces of WFLW training photographs, labelled by published networks.
    "five-points": BoxMap(shift=(0.0, -0.083), scale=(0.465, 0.502)),
}


def scheme_box_map(contract: Contract) -> BoxMap:
    """Give the map from the tight box of WFLW's 98 points to the tight box of a network's own landmark scheme.

    An unmeasured scheme is assumed to be centred and as large as its crop margin implies: crops show the same part of a
    face, so points with a larger margin fill a smaller box.

    Args:
        contract: Of the network.
    """
    side = CropRule().margin / contract.crop.margin
    return _SCHEME_MAPS.get(contract.landmarks.name, BoxMap(scale=(side, side)))

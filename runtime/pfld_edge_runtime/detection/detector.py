"""The detector interface, and the map from a detector's boxes to the boxes that landmark networks are trained on."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.arrays import Float32Array, Float64Array, Int64Array
from pfld_edge_runtime.contract import Contract, CropRule
from pfld_edge_runtime.crop import check_boxes, check_color, turn_points
from pfld_edge_runtime.errors import BoxError

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

    def __call__(self, boxes: Float64Array, rolls: Float64Array | float = 0.0) -> Float64Array:
        """Map ``(N, 4)`` boxes of faces that lean by so many degrees, one number or ``(N,)``, which turns the shift."""
        sizes = boxes[:, 2:] - boxes[:, :2]
        shifts = sizes * self.shift
        if np.any(rolls):
            degrees = np.broadcast_to(rolls, len(boxes))
            shifts = turn_points(shifts[:, None], np.zeros((1, 2)), degrees)[:, 0]
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2 + shifts
        half = sizes * self.scale / 2
        return np.concatenate([centers - half, centers + half], axis=1)


class FaceDetector(ABC):
    """A detector with a measured map from its boxes to landmark boxes.

    A subclass has `_detect`, which gives the ``(N, 5)`` float32 of a call; a sixth column is the roll in degrees.

    Attributes:
        box_map: From its boxes to landmark boxes.
    """

    box_map: BoxMap = BoxMap()

    def __call__(self, image: NDArray[np.generic], color: str = "rgb") -> Float32Array:
        """Find faces; the arguments are those of `FaceLandmarker`.

        Gives ``(N, 5)`` float32: x0, y0, x1, y1 in pixels, and a score in 0..1; the best first. An `ImageError` says
        that the image can't be used.
        """
        check_color(color)
        return self._detect(image, color)[:, :5]

    @abstractmethod
    def _detect(self, image: NDArray[np.generic], color: str) -> Float32Array: ...


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """What a detector found in one photograph.

    Attributes:
        boxes: ``(N, 4)`` float64, the detector's own.
        scores: ``(N,)`` float32, 0..1; NaN where it gave none.
        rolls: ``(N,)`` float64 degrees by which each face leans; 0 where the detector doesn't tell.
        box_map: From its boxes to landmark boxes; None for boxes that are landmark boxes already.
    """

    boxes: Float64Array
    scores: Float32Array
    rolls: Float64Array
    box_map: BoxMap | None

    @classmethod
    def find(cls, detector: Detector, image: NDArray[np.generic], color: str) -> "Detections":
        """Run any detector; see `find_boxes`."""
        found: object
        if isinstance(detector, FaceDetector):
            check_color(color)
            found, box_map, most_columns = detector._detect(image, color), detector.box_map, 6
        else:
            found, box_map, most_columns = detector(image), None, 5
        boxes = check_boxes(found)
        values = np.asarray(found, np.float32).reshape(len(boxes), -1) if len(boxes) else np.zeros((0, 4), np.float32)
        if not 4 <= values.shape[1] <= most_columns:
            raise BoxError(
                f"a detector must give (N, 4) or (N, 5) numbers, x0 y0 x1 y1 and a score; found {values.shape}"
            )
        columns = np.full((len(boxes), 2), (np.nan, 0), np.float32)
        columns[:, : values.shape[1] - 4] = values[:, 4:]
        return cls(boxes, columns[:, 0], columns[:, 1].astype(np.float64), box_map)

    def __getitem__(self, rows: list[int] | Int64Array) -> "Detections":
        """Choose rows by their indices."""
        return Detections(self.boxes[rows], self.scores[rows], self.rolls[rows], self.box_map)

    def landmark_boxes(self, contract: Contract | None, rolls: Float64Array | float = 0.0) -> Float64Array:
        """Map the boxes to ``(N, 4)`` landmark boxes: those of the faces turned upright, if they lean by `rolls`."""
        # The box of a leaning face is not that of the face turned upright: a square of the mean side stands for it.
        centers = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        half = (self.boxes[:, 2:] - self.boxes[:, :2]).mean(axis=1, keepdims=True) / 2
        squares = np.concatenate([centers - half, centers + half], axis=1)
        boxes = np.where(np.reshape(rolls, (-1, 1)) == 0, self.boxes, squares)
        if self.box_map is not None:
            boxes = self.box_map(boxes, rolls)
            boxes = boxes if contract is None else scheme_box_map(contract)(boxes, rolls)
        return boxes


def find_boxes(
    detector: Detector, image: NDArray[np.generic], color: str = "rgb", contract: Contract | None = None
) -> tuple[Float64Array, Float32Array]:
    """Run any detector and give the landmark boxes of a photograph, for a network of some contract (None: WFLW-98).

    The boxes of a `FaceDetector` are mapped to landmark boxes; those of a callable, which gets the image unchanged, are
    taken as landmark boxes. Gives ``(N, 4)`` float64 boxes and ``(N,)`` float32 scores, NaN where it gave none.

    Raises:
        BoxError: The detector returned something other than boxes.
        ImageError: The image can't be used.
    """
    found = Detections.find(detector, image, color)
    return found.landmark_boxes(contract), found.scores


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
    """
    side = CropRule().margin / contract.crop.margin
    return _SCHEME_MAPS.get(contract.landmarks.name, BoxMap(scale=(side, side)))

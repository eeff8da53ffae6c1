"""`Faces`: the faces of one photograph, with their landmarks, boxes, scores and ids."""

import importlib
import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.arrays import Float32Array, Float64Array, Int64Array, Uint8Array
from pfld_edge_runtime.contract import WFLW_98, LandmarkScheme
from pfld_edge_runtime.errors import LandmarkError, MissingPackageError
from pfld_edge_runtime.geometry.pose import HeadPose, head_pose
from pfld_edge_runtime.geometry.wflw_points import aligned_faces, eye_openness, mouth_openness

_ARRAYS = ("landmarks", "boxes", "scores", "confidences", "ids", "rolls", "landmark_confidence")


@dataclass(frozen=True, slots=True, eq=False)
class Faces:
    """The faces of one photograph or video frame: arrays with one row for each face.

    An index, a slice, a list of indices or a mask gives the chosen `Faces`; iteration gives them one by one. Two are
    equal where they are the same object: compare their arrays.

    Attributes:
        landmarks: ``(N, P, 2)`` float32, x and y in photograph pixels.
        boxes: ``(N, 4)`` float32 x0, y0, x1, y1: what the faces were cropped by.
        scores: ``(N,)`` float32, the detector's, 0..1; NaN where no detector gave one.
        confidences: ``(N,)`` float32, see `landmark_confidence`, 0..1; NaN where not asked for.
        ids: ``(N,)`` int64, the same for the same face in every frame of a video; -1 where nothing was tracked.
        image_size: Width and height of the photograph.
        scheme: Of the points.
        rolls: ``(N,)`` float64 degrees by which each crop was turned about its box's centre, positive clockwise; 0 for
            upright faces, and where not given.
        landmark_confidence: ``(N, P)`` float32, the probability that each point is good, by the spread of its heat map
            (`LandmarkModel.locate_with_confidence`); NaN where the network doesn't tell it.
    """

    landmarks: Float32Array
    boxes: Float32Array
    scores: Float32Array
    confidences: Float32Array
    ids: Int64Array
    image_size: tuple[int, int]
    scheme: LandmarkScheme = WFLW_98
    rolls: Float64Array = field(default_factory=lambda: np.zeros(0))
    landmark_confidence: Float32Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def __post_init__(self) -> None:
        count = len(self.landmarks)
        if len(self.rolls) == 0:
            object.__setattr__(self, "rolls", np.zeros(count))
        points = self.scheme.num_landmarks
        if len(self.landmark_confidence) == 0:
            object.__setattr__(self, "landmark_confidence", np.full((count, points), np.nan, np.float32))
        shapes = (count, points, 2), (count, 4), (count,), (count,), (count,), (count,), (count, points)
        for name, expected in zip(_ARRAYS, shapes, strict=True):
            found = np.shape(getattr(self, name))
            if found != expected:
                raise LandmarkError(f"faces need {name} of shape {expected}, found {found}: give one row a face")

    def __len__(self) -> int:
        """How many faces there are."""
        return len(self.landmarks)

    def __getitem__(self, chosen: int | slice | list[int] | NDArray[np.generic]) -> "Faces":
        """Choose faces; an integer gives the one face, still as `Faces`."""
        rows = np.arange(len(self))[chosen].reshape(-1)
        return replace(self, **{name: getattr(self, name)[rows] for name in _ARRAYS})

    def __iter__(self) -> Iterator["Faces"]:
        """Give the faces one by one, each as `Faces`."""
        return (self[row] for row in range(len(self)))

    def head_pose(self, camera_matrix: object = None) -> HeadPose:
        """Yaw, pitch and roll of the heads; see `pfld_edge_runtime.head_pose`."""
        return head_pose(self.landmarks, self.image_size, camera_matrix)

    def eye_openness(self) -> Float64Array:
        """How far the eyes are open, ``(N, 2)``; see `pfld_edge_runtime.eye_openness`."""
        return eye_openness(self.landmarks)

    def mouth_openness(self) -> Float64Array:
        """How far the mouths are open, ``(N,)``; see `pfld_edge_runtime.mouth_openness`."""
        return mouth_openness(self.landmarks)

    def aligned(self, image: NDArray[np.generic], size: int = 112) -> Uint8Array:
        """Crops for face recognition, ``(N, size, size, 3)``; see `pfld_edge_runtime.aligned_faces`."""
        return aligned_faces(image, self.landmarks, size)

    def to_dicts(self) -> list[dict[str, Any]]:
        """Turn the faces into plain JSON types, one dictionary a face.

        ``id`` (None where untracked), ``box`` (four pixels), ``score`` and ``confidence`` (None where unknown),
        ``landmarks`` (P pairs of pixels), and ``landmark_confidence`` (P numbers) where it is known. Pixels are rounded
        to hundredths, scores to four digits.
        """
        points = self.landmark_confidence
        return [
            {
                "id": None if self.ids[row] < 0 else int(self.ids[row]),
                "box": _rounded(self.boxes[row]),
                "score": _known(float(self.scores[row])),
                "confidence": _known(float(self.confidences[row])),
                "landmarks": _rounded(self.landmarks[row]),
                **({"landmark_confidence": _rounded(points[row], 4)} if np.isfinite(points[row]).all() else {}),
            }
            for row in range(len(self))
        ]

    def to_supervision(self) -> Any:  # noqa: ANN401 - the class belongs to a package that need not be there
        """Turn the faces into ``supervision.KeyPoints``, for that package's annotators and sinks.

        Returns:
            ``xy`` are the landmarks, ``class_id`` is 0 and ``data["class_name"]`` is "face" throughout; the confidence
            of a point is `landmark_confidence`, or its face's, and left out where neither is known. Versions since 0.29
            get the detector's scores too. Where faces were tracked, ``data["tracker_id"]`` holds `ids`.

        Raises:
            MissingPackageError: The package supervision isn't installed.
        """
        try:
            key_points = importlib.import_module("supervision").KeyPoints
        except ImportError as error:
            raise MissingPackageError(
                "to_supervision needs the package supervision: pip install supervision"
            ) from error
        data: dict[str, Any] = {"class_name": np.array(["face"] * len(self), dtype=object)}
        fields: dict[str, Any] = {"xy": self.landmarks, "class_id": np.zeros(len(self), np.int64), "data": data}
        if (self.ids >= 0).any():
            data["tracker_id"] = self.ids
        known = inspect.signature(key_points).parameters
        by_point = np.isfinite(self.landmark_confidence).any()
        if by_point or np.isfinite(self.confidences).any():
            # Renamed in supervision 0.29, which still takes the old name with a warning.
            name = "keypoint_confidence" if "keypoint_confidence" in known else "confidence"
            of_face = np.repeat(self.confidences[:, None], self.scheme.num_landmarks, axis=1)
            fields[name] = self.landmark_confidence if by_point else of_face
        if "detection_confidence" in known and np.isfinite(self.scores).any():
            fields["detection_confidence"] = self.scores
        return key_points(**fields)


def _rounded(values: Float32Array, digits: int = 2) -> Any:  # noqa: ANN401 - nested lists
    return np.round(values.astype(np.float64), digits).tolist()


def _known(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None

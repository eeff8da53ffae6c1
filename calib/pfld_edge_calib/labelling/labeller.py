"""Pseudo-labels the faces of one photograph."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.datasets.points_csv import points_row
from pfld_edge_calib.datasets.units import DatasetPhoto
from pfld_edge_calib.errors import FaceSetError, LabellingError
from pfld_edge_calib.face import Face
from pfld_edge_calib.find_landmarks import shared_scheme
from pfld_edge_calib.labelling.consensus import Consensus, augmented_predictions, consensus
from pfld_edge_calib.photo import decode_photo, read_photo
from pfld_edge_runtime import LandmarkModel, tight_box
from pfld_edge_runtime.detection.onnx_detector import non_maximum_suppression

BoxFinder = Callable[[NDArray[np.uint8]], NDArray[np.float64]]
"""A ``(H, W, 3)`` BGR photograph to ``(N, 4)`` boxes of the kind that the network was trained on."""

DROP_REASONS: Mapping[str, str] = {
    "small": "too small",
    "twice": "found twice",
    "unsure": "the teachers disagree",
}
"""Why a detected face gets no label."""

_SAME_FACE = 0.5
"""Intersection over union of two labels' boxes above which they are one face."""


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """How faces are labelled.

    Attributes:
        flip: Each teacher predicts the mirror image too.
        crops: Crops of each face, at least 1.
        passes: The last pass's predictions become the label; each pass before moves the box to the landmarks found.
        least_agreement: Faces of a lower weight are dropped, 0 to 1; see `Consensus.weights`.
        least_size: Faces with a smaller box are dropped, pixels of the longer side.
    """

    flip: bool = False
    crops: int = 1
    passes: int = 2
    least_agreement: float = 0.25
    least_size: float = 26.0


@dataclass(frozen=True, slots=True)
class PhotoLabels:
    """The labelled faces of a photograph in the order of their boxes, and the numbers of those dropped by reason."""

    labels: Sequence[Face] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DonePhoto:
    """The lines of a photograph in the CSV, the dropped faces, and why it could not be read; empty where it could."""

    rows: list[list[str]] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    unreadable: str = ""


class Labeller:
    """Labels photographs with an ensemble of `teachers` of one landmark `scheme`."""

    def __init__(
        self, teachers: Sequence[LandmarkModel], settings: LabelSettings, find: BoxFinder | None = None
    ) -> None:
        """Check that the teachers can be used together; `find` is None where boxes come with each photograph.

        Raises:
            ModelContractError: The teachers have different landmark schemes.
            LabellingError: There is no teacher, `flip` is asked for with a scheme without mirror image, or each face
                would get one prediction only.
        """
        if not teachers:
            raise LabellingError("no teacher: give at least one landmark network")
        self.scheme = shared_scheme(teachers)
        if settings.flip and not self.scheme.has_mirror:
            raise LabellingError(f"{teachers[0].name}: its landmark scheme says no mirror image, so leave flip out")
        if len(teachers) * settings.crops * (2 if settings.flip else 1) < 2:
            raise LabellingError(
                "one network that looks once always agrees with itself: add a teacher, the mirror image, or crops"
            )
        self.teachers = teachers
        self._find, self._settings = find, settings

    def __call__(self, photo: DatasetPhoto) -> DonePhoto:
        """Label the faces that are found in a photograph, or without `find` those in its boxes.

        Raises:
            LabellingError: A teacher is damaged.
        """
        if not photo.error and photo.faces is None and self._find is None:
            return DonePhoto(unreadable=f"{photo.image}: no box beside it; give a detector")
        try:
            if photo.error:
                raise FaceSetError(photo.error)
            image = read_photo(photo.image) if photo.encoded is None else decode_photo(photo.encoded, photo.image)
        except FaceSetError as error:
            return DonePhoto(unreadable=str(error))
        except (OSError, cv2.error) as error:
            return DonePhoto(unreadable=f"{photo.image}: {' '.join(str(error).split())[:200]}")
        if self._find is None:
            boxes = np.array([face.bbox_xyxy for face in photo.faces or ()]).reshape(-1, 4)
        else:
            boxes = self._find(image)
        found = self.label(image, boxes)
        rows = [points_row(photo.name, face) for face in found.labels]
        return DonePhoto(rows, dict(found.dropped))

    def label(self, photo: NDArray[np.uint8], boxes: NDArray[np.float64]) -> PhotoLabels:
        """Label the faces of a ``(H, W, 3)`` BGR photograph in ``(N, 4)`` boxes."""
        dropped: Counter[str] = Counter()
        large = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0) >= self._settings.least_size
        dropped["small"] += int((~large).sum())
        if not large.any():
            return PhotoLabels(dropped=+dropped)
        found = self._consensus(photo, boxes[large])
        tight = tight_box(found.landmarks)
        keep = np.zeros(len(tight), bool)
        keep[non_maximum_suppression(tight, -found.face_disagreement, _SAME_FACE)] = True
        dropped["twice"] += int((~keep).sum())
        sure = found.weights >= self._settings.least_agreement
        dropped["unsure"] += int((keep & ~sure).sum())
        keep &= sure
        shrunk = (tight[:, 2:] - tight[:, :2]).max(axis=1) < self._settings.least_size
        dropped["small"] += int((keep & shrunk).sum())
        labels = [
            Face(Path(), tight[i], found.landmarks[i], weight=found.weights[i], point_weights=found.point_weights[i])
            for i in np.flatnonzero(keep & ~shrunk)
        ]
        return PhotoLabels(labels, +dropped)

    def _consensus(self, photo: NDArray[np.uint8], boxes: NDArray[np.float64]) -> Consensus:
        flip = self._settings.flip
        for _ in range(self._settings.passes - 1):
            found = augmented_predictions(photo, boxes, self.teachers, flip=flip, crops=1)
            boxes = tight_box(np.median(found, axis=0))
        found = augmented_predictions(photo, boxes, self.teachers, flip=flip, crops=self._settings.crops)
        return consensus(found, self.scheme)

"""Pseudo-labels the faces of one photograph."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.errors import FaceSetError, LabellingError
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
class FaceLabel:
    """One pseudo-labelled face.

    Attributes:
        landmarks: ``(P, 2)`` float32 pixels.
        weight: Confidence in the face, 0 to 1.
        point_weights: ``(P,)`` confidence in each landmark, 0 to 1.
    """

    landmarks: NDArray[np.float32]
    weight: float
    point_weights: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PhotoLabels:
    """The result for one photograph.

    Attributes:
        labels: Its labelled faces, in the order in which they were found.
        dropped: Number of faces without label, by key of `DROP_REASONS`.
        unreadable: Why the photograph could not be read; empty where it could.
    """

    labels: Sequence[FaceLabel] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    unreadable: str = ""


class Labeller:
    """Labels photographs with an ensemble of teachers.

    Attributes:
        teachers: The networks.
        scheme: Their landmark scheme.
    """

    def __init__(
        self, teachers: Sequence[LandmarkModel], settings: LabelSettings, find: BoxFinder | None = None
    ) -> None:
        """Check that the teachers can be used together.

        Args:
            teachers: At least one.
            settings: How to use them.
            find: Finds faces; None where boxes come with each photograph.

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
                "one network that looks once always agrees with itself: add a teacher (--teacher), the mirror image "
                "(--flip), or --crops"
            )
        self.teachers = teachers
        self._settings, self._find = settings, find

    def __call__(
        self, path: Path, boxes: NDArray[np.float64] | None = None, encoded: bytes | None = None
    ) -> PhotoLabels:
        """Label a photograph's faces.

        Args:
            path: The photograph; where it can't be read, `PhotoLabels.unreadable` gives the reason.
            boxes: ``(N, 4)`` of its faces; None where they are to be found.
            encoded: The encoded photograph; None where `path` is to be read.

        Raises:
            LabellingError: A teacher is damaged.
        """
        try:
            photo = read_photo(path) if encoded is None else decode_photo(encoded, path)
        except FaceSetError as error:
            return PhotoLabels(unreadable=str(error))
        except (OSError, cv2.error) as error:
            return PhotoLabels(unreadable=f"{path}: {' '.join(str(error).split())[:200]}")
        if boxes is None:
            boxes = np.zeros((0, 4)) if self._find is None else self._find(photo)
        return self.label(photo, boxes)

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
            FaceLabel(found.landmarks[i], float(found.weights[i]), found.point_weights[i])
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

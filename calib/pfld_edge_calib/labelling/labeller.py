"""Combines several predictions of a face to a pseudo-label with confidences.

Predictions come from several networks, from the mirrored crop, and from shifted crops (test-time augmentation). The
label is their median, coordinate by coordinate, which a single outlier moves little. The disagreement of a landmark is
the standard deviation of its predictions as a share of the face's size; it ranks landmarks and faces by their true
error. ``docs/labelling.md`` has the figures, also of the alternatives that were tried.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.calibration import jittered
from pfld_edge_calib.datasets.points_csv import points_row
from pfld_edge_calib.errors import FaceSetError, LabellingError
from pfld_edge_calib.face import DatasetPhoto, Face
from pfld_edge_calib.find_landmarks import shared_scheme
from pfld_edge_calib.photo import face_photo
from pfld_edge_runtime import FaceLandmarker, LandmarkModel, LandmarkScheme, predict_with_mirror, tight_box
from pfld_edge_runtime.arrays import Float32Array, Float64Array, Uint8Array
from pfld_edge_runtime.detection.onnx_detector import non_maximum_suppression

TYPICAL_ERROR = 0.03
"""Typical error of labels on which all predictions agree, as a share of the face's size."""

_MIN_EYE_SHARE = 0.35
"""Eye distance over the longer side of the landmarks' box in a frontal face. In profile the eye distance vanishes, and
the box still gives the face's size."""

_SHIFT, _SCALE = 0.04, 0.08
"""Largest shift and change of scale of further crops, as shares of the box: similar to a detector's errors."""


def augmented_predictions(
    photo: Uint8Array, boxes: Float64Array, teachers: Sequence[LandmarkModel], *, flip: bool, crops: int
) -> Float32Array:
    """Predict the landmarks of every face with every teacher under test-time augmentation.

    Of ``(N, 4)`` tight boxes in a ``(H, W, 3)`` BGR photograph: ``(V, N, P, 2)`` pixels, V predictions, one for each
    teacher, crop and, with `flip`, mirror image. The first crop is the box's own, the others are shifted alike for
    every face. A prediction that is no finite number is a LabellingError.
    """
    # The same seed for each face, whose crops must not depend on the other faces.
    jitters = [jittered([Face(Path(), box)], crops, 0, _SHIFT, _SCALE) for box in boxes]
    moved = [np.array([faces[i].bbox_xyxy for faces in jitters]) for i in range(crops)]
    found: list[Float32Array] = []
    for places, teacher in product(moved, teachers):
        find = FaceLandmarker(teacher)
        views = predict_with_mirror(find, photo, places, "bgr") if flip else (teacher.locate(photo, places, "bgr"),)
        if not np.isfinite(views).all():
            raise LabellingError(f"{teacher.name} gave landmarks that are not finite numbers: the file is damaged")
        found += views
    return np.stack(found)


@dataclass(frozen=True, slots=True)
class Consensus:
    """The pseudo-labels of N faces.

    A confidence is inversely proportional to the expected error, whose square is the sum of T squared, the typical
    error of any label, D squared, the face's disagreement, and d squared, the landmark's:
    ``T / sqrt(T^2 + D^2 + d^2)``, the product of the face's and the landmark's weight, as training multiplies them.

    `landmarks` are the median of the predictions in pixels. `disagreement` is d, ``(N, P)`` shares of the face's size,
    `face_disagreement` D, its median over the landmarks; weights lie in 0 to 1.
    """

    landmarks: Float32Array
    disagreement: Float64Array
    face_disagreement: Float64Array
    weights: Float64Array
    point_weights: Float64Array


def consensus(predictions: Float32Array, scheme: LandmarkScheme) -> Consensus:
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


def face_sizes(landmarks: NDArray[np.floating], scheme: LandmarkScheme) -> Float64Array:
    """``(N,)`` sizes of ``(N, P, 2)`` landmarks: the NME's normalizing distance, or 0.35 of their box if larger."""
    first, second = scheme.normalizing_points
    eyes = np.linalg.norm(landmarks[:, first].astype(np.float64) - landmarks[:, second], axis=1)
    longer = np.ptp(landmarks.astype(np.float64), axis=1).max(axis=1)
    return np.asarray(np.maximum(np.maximum(eyes, _MIN_EYE_SHARE * longer), 1.0), np.float64)


BoxFinder = Callable[[Uint8Array], Float64Array]
"""A ``(H, W, 3)`` BGR photograph to ``(N, 4)`` boxes of the kind that the network was trained on."""

DROP_REASONS: Mapping[str, str] = {"small": "too small", "twice": "found twice", "unsure": "the teachers disagree"}
"""Why a detected face gets no label."""

_SAME_FACE = 0.5
"""Intersection over union of two labels' boxes above which they are one face."""


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """How faces are labelled: with mirror images (`flip`), and so many `crops` of each face.

    The last pass's predictions become the label; each pass before moves the box to the landmarks found. Faces are
    dropped with a lower weight than `least_agreement`, 0 to 1 (see `Consensus`), or a longer side under `least_size`
    pixels.
    """

    flip: bool = False
    crops: int = 1
    passes: int = 2
    least_agreement: float = 0.25
    least_size: float = 26.0


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

        Different landmark schemes are a ModelContractError. No teacher, `flip` with a scheme without mirror image, or
        one prediction a face only is a LabellingError.
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
        self._find, self._settings = find, settings

    def __call__(self, photo: DatasetPhoto) -> DonePhoto:
        """Label the faces that are found in a photograph, or without `find` those in its boxes."""
        if not photo.error and photo.faces is None and self._find is None:
            return DonePhoto(unreadable=f"{photo.image}: no box beside it; give a detector")
        try:
            if photo.error:
                raise FaceSetError(photo.error)
            image = face_photo(photo)
        except FaceSetError as error:
            return DonePhoto(unreadable=str(error))
        if self._find is None:
            boxes = np.array([face.bbox_xyxy for face in photo.faces or ()]).reshape(-1, 4)
        else:
            boxes = self._find(image)
        faces, dropped = self.label(image, boxes)
        return DonePhoto([points_row(photo.name, face) for face in faces], dropped)

    def label(self, photo: Uint8Array, boxes: Float64Array) -> tuple[list[Face], dict[str, int]]:
        """Label the faces of a ``(H, W, 3)`` BGR photograph in ``(N, 4)`` boxes, in their order.

        Also gives the numbers of those dropped, by reason.
        """
        dropped: Counter[str] = Counter()
        large = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0) >= self._settings.least_size
        dropped["small"] += int((~large).sum())
        if not large.any():
            return [], dict(dropped)
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
        return labels, dict(+dropped)

    def _consensus(self, photo: Uint8Array, boxes: Float64Array) -> Consensus:
        flip = self._settings.flip
        for _ in range(self._settings.passes - 1):
            found = augmented_predictions(photo, boxes, self.teachers, flip=flip, crops=1)
            boxes = tight_box(np.median(found, axis=0))
        found = augmented_predictions(photo, boxes, self.teachers, flip=flip, crops=self._settings.crops)
        return consensus(found, self.scheme)

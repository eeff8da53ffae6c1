"""`FaceAnalyzer` and `read_faces`: photograph in, `Faces` out, with a detector or with boxes that are known."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.arrays import Float64Array
from pfld_edge_runtime.contract import ConfidenceCurve, Contract
from pfld_edge_runtime.crop import check_boxes, check_image
from pfld_edge_runtime.detection.catalogue import as_detector
from pfld_edge_runtime.detection.detector import Detections, Detector
from pfld_edge_runtime.errors import DetectorError, ModelContractError, check_counts
from pfld_edge_runtime.faces import Faces
from pfld_edge_runtime.geometry.confidence import landmark_confidence, predict_with_mirror
from pfld_edge_runtime.geometry.roll import detected_rolls, follow_roll, refine_detected, turned_box
from pfld_edge_runtime.landmark_model import FaceLandmarker, LandmarkModel, as_landmarker, locate_points, takes_roll


class FaceAnalyzer:
    """Finds the faces of a photograph, and their landmarks.

    Thread-safe where the detector is; those of this package are.

    Example:
        >>> analyze = FaceAnalyzer()
        >>> faces = analyze(cv2.imread("photo.jpg"), "bgr")
        >>> faces.landmarks  # (N, 98, 2), photograph pixels
    """

    def __init__(
        self,
        detector: Detector | str | Path | None = None,
        landmarker: FaceLandmarker | LandmarkModel | str | Path | bytes | None = None,
        refine: int = 1,
        max_faces: int | None = None,
    ) -> None:
        """Put the two stages together.

        Args:
            detector: A `FaceDetector`; any callable that takes an image and gives ``(N, 4)`` or ``(N, 5)`` boxes tight
                around landmarks; or what `open_detector` takes: None for the bundled detector.
            landmarker: A `FaceLandmarker`, or what it takes: a model's file or a `LandmarkModel`; None for the bundled
                model.
            refine: How many times landmarks are predicted again, in the tight box of those found before: landmark
                networks are trained on tight boxes, which detectors' boxes are not. Faces that lie or stand on their
                head are cropped upright, see `refine_detected`. 0 uses the detector's box alone.
            max_faces: Most faces to find the landmarks of, those of the best scores; None for all.

        Raises:
            DetectorError: A setting is out of range, or the named detector isn't there.
            ModelFileError: A file can't be opened.
            ModelContractError: The landmarker has no contract, or none that fits.
        """
        check_counts(DetectorError, 0, refine=refine)
        check_counts(DetectorError, 1, optional=True, max_faces=max_faces)
        self.detector: Detector = as_detector(detector)
        self.landmarker: FaceLandmarker = as_landmarker(landmarker)
        if not isinstance(getattr(self.landmarker, "contract", None), Contract):
            raise ModelContractError(
                f"{landmarker!r} has no contract: pass a FaceLandmarker, its file, or an object with a `contract`"
            )
        self._scheme = self.landmarker.contract.landmarks if takes_roll(self.landmarker) else None
        self._refine = refine
        self._max_faces = max_faces

    def __call__(self, image: NDArray[np.generic], color: str = "rgb") -> Faces:
        """Find faces and landmarks; the arguments are those of `FaceLandmarker`.

        Gives the faces, the detector's best first; `Faces.boxes` are those of the last crop. A photograph with no face
        gives no faces, never an error. Confidences are NaN and ids -1.

        Raises:
            ImageError: The image can't be used.
            BoxError: The detector returned something other than boxes.
            LandmarkError: The landmarker returned something other than the landmarks of its contract's scheme.
        """
        height, width = check_image(image).shape[:2]
        contract = self.landmarker.contract
        found = Detections.find(self.detector, image, color)
        # NaN, where a detector gives no scores, sorts last and keeps the detector's order.
        found = found[np.argsort(-found.scores, kind="stable")[: self._max_faces]]

        def boxes_at(rolls: Float64Array | float) -> Float64Array:
            return found.landmark_boxes(contract, rolls)

        def predict(boxes: Float64Array, rolls: Float64Array) -> NDArray[np.floating]:
            return locate_points(self.landmarker, image, boxes, color, rolls, contract.landmarks)

        rolls = detected_rolls(found.rolls, self._scheme)
        boxes = boxes_at(rolls)
        points = predict(boxes, rolls)
        for step in range(self._refine if len(boxes) else 0):
            if step == 0:
                points, boxes, rolls = refine_detected(predict, points, rolls, boxes_at, self._scheme)
                continue
            rolls = follow_roll(points[..., :2], self._scheme, rolls)
            boxes = turned_box(points[..., :2], rolls)
            points = predict(boxes, rolls)
        return Faces(
            landmarks=points[..., :2].astype(np.float32),
            boxes=boxes.astype(np.float32),
            scores=found.scores,
            confidences=np.full(len(boxes), np.nan, np.float32),
            ids=np.full(len(boxes), -1, np.int64),
            image_size=(width, height),
            scheme=contract.landmarks,
            rolls=rolls,
            landmark_confidence=points[..., 2].astype(np.float32),
        )


def read_faces(
    landmarker: FaceLandmarker,
    image: NDArray[np.generic],
    boxes: object,
    color: str = "rgb",
    confidence: bool = False,
    curve: ConfidenceCurve | None = None,
) -> Faces:
    """Find the landmarks of every boxed face, as ``landmarker(image, boxes, color)`` does, and give them as `Faces`.

    A fifth column of `boxes` is the detector's score. With `confidence`, `Faces.confidences` are filled, which costs
    two more predictions of each face; `curve` is taken in place of the contract's `confidence_curve`.

    Raises:
        ImageError: The image can't be used.
        BoxError: A box can't be used.
        ModelContractError: Confidence is asked for, and there is no curve.
    """
    valid = check_boxes(boxes)
    height, width = check_image(image).shape[:2]
    columns = np.asarray(boxes, np.float32).reshape(len(valid), -1) if len(valid) else valid
    confidences = unknown = np.full(len(valid), np.nan, np.float32)
    points = locate_points(landmarker, image, valid, color, np.zeros(len(valid)), landmarker.contract.landmarks)
    if confidence:
        pair = predict_with_mirror(landmarker, image, valid, color)
        confidences = landmark_confidence(*pair, landmarker.contract, curve)
    return Faces(
        landmarks=points[..., :2].astype(np.float32),
        boxes=valid.astype(np.float32),
        scores=columns[:, 4].astype(np.float32) if columns.shape[1] > 4 else unknown,
        confidences=confidences,
        ids=np.full(len(valid), -1, np.int64),
        image_size=(width, height),
        scheme=landmarker.contract.landmarks,
        landmark_confidence=points[..., 2].astype(np.float32),
    )

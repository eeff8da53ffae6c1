"""Finds faces in photographs, with the box that the network was trained on."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.evaluate import CropPredictor, predict_landmarks
from pfld_edge_calib.face import Face, tight_box
from pfld_edge_calib.photo import read_photo
from pfld_edge_runtime import Contract

__all__ = ["detected_faces", "refined"]

_LEAST_SCORE = 0.7
_SMALLEST = 32
"""Side in pixels under which a face is too coarse to calibrate on."""


def detected_faces(
    photos: Sequence[Path], detector: Path, advance: Callable[[int], object] | None = None
) -> list[Face]:
    """Find the faces of photographs.

    Args:
        photos: Paths of the photographs.
        detector: A YuNet ONNX file, as `cv2.FaceDetectorYN` takes it.
        advance: Called with 1 after each photograph.

    Returns:
        Faces with the detector's boxes, which are not those that a landmark network was trained on; see `refined`.

    Raises:
        FaceSetError: The detector can't be opened, a photograph can't be read, or there is no face.
    """
    if not detector.is_file():
        raise FaceSetError(f"{detector}: no such detector; give a YuNet ONNX file")
    try:
        with _quiet():
            yunet = cv2.FaceDetectorYN.create(str(detector), "", (320, 320), _LEAST_SCORE)
    except cv2.error as error:
        raise FaceSetError(f"{detector}: not a detector that OpenCV can open; give a YuNet ONNX file") from error
    faces = []
    for path in photos:
        photo = read_photo(path)
        yunet.setInputSize((photo.shape[1], photo.shape[0]))
        try:
            _, found = yunet.detect(photo)
        except cv2.error as error:
            raise FaceSetError(f"{detector}: not a YuNet detector, or not for pictures of any size") from error
        for x, y, width, height in [] if found is None else found[:, :4].astype(np.float64):
            if max(width, height) >= _SMALLEST:
                faces.append(Face(path, np.array([x, y, x + width, y + height]), group=str(path)))
        if advance is not None:
            advance(1)
    if not faces:
        raise FaceSetError(f"the detector found no face of {_SMALLEST} pixels or more in {len(photos)} photographs")
    return faces


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep OpenCV's remarks on its own engines from the terminal."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


def refined(faces: Sequence[Face], predict: CropPredictor, contract: Contract, passes: int = 2) -> list[Face]:
    """Replace each box by the tight box of the landmarks that a network finds in it, some times over.

    Args:
        faces: With any boxes that show the face.
        predict: The landmark network.
        contract: Of the network.
        passes: The second pass sees the face as the network was trained to see it.

    Returns:
        The faces with new boxes and landmarks, without those whose landmarks fell on a point.
    """
    kept = list(faces)
    for _ in range(passes):
        landmarks = predict_landmarks(predict, contract, kept)
        moved = [
            replace(face, bbox_xyxy=tight_box(points), landmarks=points)
            for face, points in zip(kept, landmarks, strict=True)
        ]
        kept = [face for face in moved if (face.bbox_xyxy[2:] - face.bbox_xyxy[:2]).max() >= _SMALLEST / 2]
    return kept

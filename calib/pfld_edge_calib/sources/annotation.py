"""What a shard says of a photograph's faces, as JSON beside it or as columns of a table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face, tight_box
from pfld_edge_runtime.crop import check_boxes

__all__ = ["FACE_FIELDS", "annotated_faces"]

FACE_FIELDS = ("landmarks", "box", "attributes", "weight", "point_weights")
"""What is read of a face; all optional, but one of the first two must be there."""


def annotated_faces(record: Mapping[str, Any], image: Path, encoded: bytes | None) -> tuple[Face, ...] | None:
    """Read the faces of one photograph.

    Args:
        record: `FACE_FIELDS` of its only face, or ``faces``, a list of such mappings. ``landmarks`` are P pairs or 2 P
            numbers in photograph pixels; ``box`` is x0, y0, x1, y1, the landmarks' tight box where left out;
            ``attributes`` are names. Other fields are ignored.
        image: The photograph, for messages too.
        encoded: Its file.

    Returns:
        None where the record says nothing of faces.

    Raises:
        FaceSetError: A field is not what it should be.
    """
    faces = record.get("faces")
    if faces is None:
        faces = [record] if record.get("landmarks") is not None or record.get("box") is not None else None
    if faces is None:
        return None
    if not isinstance(faces, list) or not all(isinstance(face, dict) for face in faces):
        raise FaceSetError(f"{image}: faces must be a list of objects with landmarks or a box")
    return tuple(_face(face, image, encoded) for face in faces)


def _face(record: Mapping[str, Any], image: Path, encoded: bytes | None) -> Face:
    try:
        landmarks = _landmarks(record.get("landmarks"))
        box = _box(record.get("box"), landmarks)
        weight = 1.0 if record.get("weight") is None else float(record["weight"])
        each = None if record.get("point_weights") is None else np.array(record["point_weights"], np.float32)
        attributes = frozenset(str(name) for name in record.get("attributes") or ())
    except (TypeError, ValueError) as error:
        raise FaceSetError(f"{image}: {str(error).removeprefix('box 0 is ')}") from error
    if not 0 <= weight <= 1 or (each is not None and not ((each >= 0) & (each <= 1)).all()):
        raise FaceSetError(f"{image}: trust must be from 0 to 1")
    return Face(image, box, landmarks, attributes, weight, each, str(image), encoded)


def _landmarks(values: object) -> NDArray[np.float32] | None:
    if values is None:
        return None
    landmarks = np.array(values, np.float32)
    if landmarks.size == 0 or landmarks.size % 2 or landmarks.ndim > 2 or not np.isfinite(landmarks).all():
        raise ValueError("landmarks must be pairs of finite numbers")
    if landmarks.ndim == 2 and landmarks.shape[1] != 2:
        raise ValueError("landmarks must be pairs of finite numbers")
    return landmarks.reshape(-1, 2)


def _box(values: object, landmarks: NDArray[np.float32] | None) -> NDArray[np.float64]:
    if values is not None:
        (box,) = check_boxes(values)
        return np.asarray(box, np.float64)
    if landmarks is None:
        raise ValueError("a face needs landmarks or a box")
    return tight_box(landmarks)

"""Chooses the faces that static quantization looks at."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pfld_edge_calib.boxes_csv import read_boxes_csv
from pfld_edge_calib.detect import detected_faces
from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face
from pfld_edge_calib.face_set import labelled_faces
from pfld_edge_calib.photo import photos_in, photos_listed, read_photo
from pfld_edge_calib.portraits import portraits
from pfld_edge_calib.wflw import wflw_list

__all__ = ["as_detected", "calibration_candidates", "calibration_faces", "jittered"]

BOXES_FILE = "boxes.csv"


def calibration_candidates(
    path: Path,
    images: Path | None = None,
    detector: Path | None = None,
    advance: Callable[[int], object] | None = None,
) -> list[Face]:
    """All faces that a source offers for calibration.

    Args:
        path: A WFLW folder with its official training list; a CSV of points; a folder of photographs, or a text file
            that lists some, with a detector; a folder with a ``boxes.csv`` (``image,x0,y0,x1,y1``, a line a face); or
            one with neither, a face a photograph, filling it.
        images: For a CSV or a list, the folder that its photographs are relative to.
        detector: A YuNet ONNX file.
        advance: Called with 1 after each photograph that was searched.

    Returns:
        Faces in the order of their photographs. WFLW's test list is never among them.

    Raises:
        FaceSetError: The path holds no faces that may be used.
    """
    if detector is None:
        return _candidates(path, images)
    photos = photos_listed(path, images) if path.suffix.lower() == ".txt" else photos_in(path)
    return detected_faces(photos, detector, advance)


def calibration_faces(path: Path | None, limit: int = 256, seed: int = 0, images: Path | None = None) -> list[Face]:
    """Choose faces for calibration, at random but the same for a seed.

    Args:
        path: A WFLW folder with its official training list; a CSV of points; a folder of photographs with a
            ``boxes.csv`` (``image,x0,y0,x1,y1``, a line a face) or, without one, a face a photograph, filling it; None
            for the bundled portraits, each under many boxes.
        limit: Most faces.
        seed: Of the choice.
        images: For a CSV, the folder that its image column is relative to.

    Returns:
        Faces in the order of their photographs. WFLW's test list is never among them.

    Raises:
        FaceSetError: The path holds no faces that may be used.
    """
    if path is None:
        faces = portraits()
        return jittered(faces, limit // len(faces), seed)
    faces = _candidates(path, images)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(faces))[:limit])
    return [faces[index] for index in chosen]


def jittered(faces: Sequence[Face], copies: int, seed: int = 0, shift: float = 0.08, scale: float = 0.12) -> list[Face]:
    """Repeat each face under boxes that err as a detector's do.

    Args:
        faces: Any faces.
        copies: Boxes a face; the first is the face's own.
        seed: Of the errors.
        shift: Largest shift as a share of the box's longer side.
        scale: Largest change of the sides, as a share.
    """
    random = np.random.default_rng(seed)
    result = []
    for face in faces:
        center = (face.bbox_xyxy[:2] + face.bbox_xyxy[2:]) / 2
        half = (face.bbox_xyxy[2:] - face.bbox_xyxy[:2]) / 2
        result.append(face)
        for _ in range(copies - 1):
            moved = center + random.uniform(-shift, shift, 2) * 2 * half.max()
            sides = half * (1 + random.uniform(-scale, scale))
            result.append(replace(face, bbox_xyxy=np.concatenate([moved - sides, moved + sides])))
    return result


def as_detected(faces: Sequence[Face], seed: int = 0, shift: float = 0.03, scale: float = 0.05) -> list[Face]:
    """Move each face's box as detectors err.

    Args:
        faces: Any faces.
        seed: Of the errors.
        shift: Standard deviation of the shift, as a share of the box's longer side.
        scale: Standard deviation of the change of the sides, as a share.
    """
    random = np.random.default_rng(seed)
    result = []
    for face in faces:
        low, high = face.bbox_xyxy[:2], face.bbox_xyxy[2:]
        center = (low + high) / 2 + random.normal(0, shift, 2) * (high - low).max()
        half = (high - low) / 2 * max(0.5, 1 + random.normal(0, scale))
        result.append(replace(face, bbox_xyxy=np.concatenate([center - half, center + half])))
    return result


def _candidates(path: Path, images: Path | None) -> list[Face]:
    if path.suffix.lower() == ".txt":
        raise FaceSetError(f"{path}: a list of photographs says nothing of their faces; give a detector too")
    if path.is_file():
        return labelled_faces(path, images=images)
    if (path / "WFLW_annotations").is_dir():
        if not wflw_list(path, "train").is_file():
            raise FaceSetError(
                f"{path}: the official training list is missing ({wflw_list(path, 'train')}), and the test faces are "
                f"never calibrated on; give a CSV, or a folder of photographs with a {BOXES_FILE}"
            )
        return labelled_faces(path, "train")
    if (path / BOXES_FILE).is_file():
        return read_boxes_csv(path / BOXES_FILE)
    return [_whole_photo(photo) for photo in photos_in(path)]


def _whole_photo(path: Path) -> Face:
    height, width = read_photo(path).shape[:2]
    return Face(path, np.array([0.0, 0.0, width, height]), group=path.name)

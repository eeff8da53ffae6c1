"""Boxes from face detectors: for photographs without annotation, and in place of the boxes of annotated faces."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face
from pfld_edge_calib.find_landmarks import predict_landmarks
from pfld_edge_calib.photo import UnusableFaces, readable_photo
from pfld_edge_runtime import Contract, Detector, LandmarkModel, tight_box
from pfld_edge_runtime.detection import find_boxes

Boxes = NDArray[np.float64]

SAME_FACE = 0.3
"""Least intersection over union of a detection and the tight box of the annotated landmarks to match them."""

_MIN_SCORE = 0.7
_MIN_SIZE = 32
"""Side in pixels under which a face is too coarse to calibrate on."""


def detected_faces(
    photos: Sequence[Path],
    detector: Detector,
    contract: Contract,
    advance: Callable[[int], object] | None = None,
    skip: Callable[[FaceSetError], object] | None = None,
) -> list[Face]:
    """Find the faces of a score of 0.7 or more and 32 pixels or more; `refined` gives them the boxes of landmarks.

    The network's contract gives the kind of box. `advance` gets 1 after each photograph, and `skip` the error of each
    that can't be read; where None it is raised, as is FaceSetError where there is no face.
    """
    faces = []
    for path in photos:
        photo = readable_photo(path, skip)
        if photo is not None:
            boxes, scores = find_boxes(detector, photo, "bgr", contract)
            large = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0) >= _MIN_SIZE
            # A detector that gives no scores gives NaN.
            chosen = boxes[large & ~(scores < _MIN_SCORE)].astype(np.float64)
            faces += [Face(path, box, group=str(path)) for box in chosen]
        if advance is not None:
            advance(1)
    if not faces:
        raise FaceSetError(f"the detector found no face of {_MIN_SIZE} pixels or more in {len(photos)} photographs")
    return faces


def refined(faces: Sequence[Face], model: LandmarkModel, passes: int = 2) -> list[Face]:
    """Replace each box by the tight box of the landmarks that a network predicts in it, `passes` times.

    The second pass sees the face in the box that the network was trained on. The faces get these landmarks; those whose
    landmarks collapsed are left out.
    """
    kept = list(faces)
    for _ in range(passes):
        found = zip(kept, predict_landmarks(model, kept), strict=True)
        moved = [replace(face, bbox_xyxy=tight_box(points), landmarks=points) for face, points in found]
        kept = [face for face in moved if (face.bbox_xyxy[2:] - face.bbox_xyxy[:2]).max() >= _MIN_SIZE / 2]
    return kept


def as_detected_by(
    detector: Detector,
    faces: Sequence[Face],
    contract: Contract,
    advance: Callable[[int], object] | None = None,
    unusable: UnusableFaces | None = None,
) -> list[Face]:
    """Replace the box of each annotated face by its detection, mapped to the box that the network was trained on.

    A missed or unusable face gets a box of NaN. Unmatched detections are ignored, for datasets may annotate only some
    faces of a photograph. `advance` gets the number of faces done after each photograph. A photograph that can't be
    read is an error unless there is `unusable`.
    """
    unusable = UnusableFaces() if unusable is None else unusable
    found = [replace(face, bbox_xyxy=np.full(4, np.nan)) for face in faces]
    by_photo: dict[str, list[int]] = {}
    for row, face in enumerate(faces):
        by_photo.setdefault(str(face.image), []).append(row)
    for rows in by_photo.values():
        photo, shown = unusable.read(faces, rows)
        if photo is not None and shown:
            boxes, _ = find_boxes(detector, photo, "bgr", contract)
            truth = np.stack([faces[row].bbox_xyxy for row in shown])
            for row, box in zip(shown, matched(truth, boxes.astype(np.float64)), strict=True):
                found[row] = replace(faces[row], bbox_xyxy=box)
        if advance is not None:
            advance(len(rows))
    return found


def matched(truth: Boxes, detections: Boxes) -> Boxes:
    """Match annotated boxes with detections one to one, so that the summed intersection over union is largest.

    Of N and D boxes these are ``(N, 4)``, the detection of each annotated box, NaN where none overlaps by `SAME_FACE`.
    """
    from scipy.optimize import linear_sum_assignment

    overlaps = _intersection_over_union(truth, detections)
    overlaps[overlaps < SAME_FACE] = 0
    rows, columns = linear_sum_assignment(overlaps, maximize=True)
    matches = overlaps[rows, columns] > 0
    result = np.full(truth.shape, np.nan)
    result[rows[matches]] = detections[columns[matches]]
    return result


def _intersection_over_union(first: Boxes, second: Boxes) -> Boxes:
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    return np.asarray(shared / (areas[0][:, None] + areas[1][None] - shared), np.float64)

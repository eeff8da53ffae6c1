"""Gives labelled faces the boxes that a detector finds, and says which it missed."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.face import Face
from pfld_edge_calib.photo import read_photo
from pfld_edge_runtime import Contract, Detector
from pfld_edge_runtime.detectors import find_boxes

__all__ = ["SAME_FACE", "as_detected_by", "matched"]

SAME_FACE = 0.3
"""Least intersection over union, with the tight box of the true landmarks, at which a detection is that face."""

Boxes = NDArray[np.float64]


def as_detected_by(
    detector: Detector, faces: Sequence[Face], contract: Contract, advance: Callable[[int], object] | None = None
) -> list[Face]:
    """Replace each face's box by what a detector finds of it, mapped to the box that the network was trained on.

    Args:
        detector: Of the runtime; any other callable gets the photograph as BGR.
        faces: With their true boxes; they may share photographs.
        contract: The network's; gives the kind of box.
        advance: Called with the number of faces done after each photograph.

    Returns:
        The faces in their order; a missed one has a box of NaN. Detections that are nobody's count for nothing: sets
        label some faces of a photograph, not all.

    Raises:
        FaceSetError: A photograph can't be read.
    """
    found = list(faces)
    by_photo: dict[str, list[int]] = {}
    for row, face in enumerate(faces):
        by_photo.setdefault(str(face.image), []).append(row)
    for rows in by_photo.values():
        boxes, scores = find_boxes(detector, read_photo(faces[rows[0]].image), "bgr", contract)
        ordered = boxes[np.argsort(-scores, kind="stable")].astype(np.float64)
        for row, box in zip(rows, matched(np.stack([faces[row].bbox_xyxy for row in rows]), ordered), strict=True):
            found[row] = replace(faces[row], bbox_xyxy=box)
        if advance is not None:
            advance(len(rows))
    return found


def matched(truth: Boxes, detections: Boxes) -> Boxes:
    """Pair true boxes with detections, the largest overlap first; no detection is two faces.

    Args:
        truth: ``(N, 4)``.
        detections: ``(D, 4)``.

    Returns:
        ``(N, 4)`` the detection of each true box, NaN where none overlaps by `SAME_FACE`.
    """
    result = np.full(truth.shape, np.nan)
    if not len(detections):
        return result
    shared = _overlaps(truth, detections)
    for _ in range(len(truth)):
        row, column = np.unravel_index(int(shared.argmax()), shared.shape)
        if shared[row, column] < SAME_FACE:
            break
        result[row] = detections[column]
        shared[row], shared[:, column] = 0, 0
    return result


def _overlaps(first: Boxes, second: Boxes) -> Boxes:
    """``(N, D)`` intersection over union."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    union: Boxes = areas[0][:, None] + areas[1][None] - shared
    return np.asarray(shared / union, np.float64)

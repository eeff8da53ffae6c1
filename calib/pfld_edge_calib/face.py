"""One annotated face, the record that every dataset reader yields."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_runtime import tight_box

_LIMIT = 1e9
"""Pixels beyond which a coordinate is damage; boxes have the same limit."""


@dataclass(frozen=True, slots=True)
class Face:
    """A face in a photograph.

    Attributes:
        image: Path of the photograph.
        bbox_xyxy: ``(4,)`` float64 x0, y0, x1, y1 in pixels, right and bottom edges exclusive.
        landmarks: ``(P, 2)`` float32 in photograph pixels; None where unknown.
        attributes: Names of the dataset's attributes that hold, e.g. ``{"largepose", "blur"}`` for WFLW.
        weight: Confidence in the landmarks, 0 to 1; 1 for manual annotations.
        point_weights: ``(P,)`` float32 confidence in each landmark, 0 to 1, multiplied by `weight`; None where all
            are 1. A landmark of weight 0 is unlabelled: readers place it at the mean of the others.
        group: Faces of one person or one photograph share it; a split never separates a group.
        encoded: The encoded photograph, where it was read from a shard; None where `image` is to be read.
    """

    image: Path
    bbox_xyxy: NDArray[np.float64]
    landmarks: NDArray[np.float32] | None = None
    attributes: frozenset[str] = field(default_factory=frozenset)
    weight: float = 1.0
    point_weights: NDArray[np.float32] | None = None
    group: str = ""
    encoded: bytes | None = field(default=None, repr=False)


def labelled_face(
    image: Path,
    landmarks: NDArray[np.floating],
    where: str,
    *,
    attributes: frozenset[str] = frozenset(),
    weight: float = 1.0,
    point_weights: NDArray[np.floating] | None = None,
    group: str = "",
) -> Face:
    """Check what a file says of a face, and make a `Face` of it; `where` names the line or file in error messages.

    Its box is the tight box of the labelled landmarks, or of all where none is labelled. FaceSetError where a landmark
    isn't finite or lies beyond 1e9 pixels, a weight lies outside of 0..1, there isn't one weight a landmark, or all
    labelled landmarks lie in 0..1: they are fractions of the photograph, not pixels.
    """
    weights = np.ones(len(landmarks)) if point_weights is None else point_weights
    if weights.shape != landmarks.shape[:1]:
        raise FaceSetError(f"{where}: {len(landmarks)} landmarks need as many point_weights, found {weights.size}")
    if not (np.abs(landmarks) < _LIMIT).all():
        raise FaceSetError(f"{where}: landmarks must be finite and below 1e9 pixels")
    if not 0 <= weight <= 1 or not ((weights >= 0) & (weights <= 1)).all():
        raise FaceSetError(f"{where}: trust must be from 0 to 1")
    landmarks = landmarks.astype(np.float32)  # not before the check: float64 may hold what float32 can't
    known = landmarks[weights > 0]
    if len(known) > 1 and (known >= 0).all() and (known <= 1).all():
        raise FaceSetError(
            f"{where}: all points lie in 0..1, but pixels are expected: multiply x by the photograph's width and y by "
            "its height"
        )
    box = tight_box(known if len(known) else landmarks)
    if len(known):
        landmarks = np.where(weights[:, None] > 0, landmarks, known.mean(axis=0)).astype(np.float32)
    each = None if point_weights is None else point_weights.astype(np.float32)
    return Face(image, box, landmarks, attributes, weight, each, group)

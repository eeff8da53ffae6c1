"""One annotated face, the record that every dataset reader yields."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_runtime import tight_box


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


LARGEST_COORDINATE = 1e9
"""Pixels from which on a coordinate is an error of the file; everything below fits float32."""


def labelled_landmarks(
    landmarks: NDArray[np.float32], point_weights: NDArray[np.floating] | None, where: str
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Move unlabelled points, whose coordinates mean nothing, to the mean of the labelled ones.

    Args:
        landmarks: ``(P, 2)`` as in the file.
        point_weights: ``(P,)``, 0 for unlabelled points; None where all are labelled.
        where: The line or file, named in error messages.

    Returns:
        ``(P, 2)`` landmarks, and ``(4,)`` the tight box of the labelled ones (of all where none is labelled).

    Raises:
        FaceSetError: All labelled points lie in 0..1: they are fractions of the photograph, not pixels.
    """
    labelled = np.ones(len(landmarks), bool) if point_weights is None else np.asarray(point_weights) > 0
    if not labelled.any():
        return landmarks, tight_box(landmarks)
    known = landmarks[labelled]
    if len(known) > 1 and (known >= 0).all() and (known <= 1).all():
        raise FaceSetError(
            f"{where}: all points lie in 0..1, but pixels are expected: multiply x by the photograph's width and y by "
            "its height"
        )
    moved = np.where(labelled[:, None], landmarks, known.mean(axis=0)).astype(np.float32)
    return moved, tight_box(known)

"""Whether there still is a face under the landmarks. The network answers for a wall too, and looks no less sure.

What gives a wall away is that its landmarks belong to the crop and not to the picture: cut a little beside, a face's
landmarks stay where they are, a wall's go along. Median movement, in faces, when the box is shifted by 6 % each way
(8.5 % in all), with the bundled model: 0.012 on 300 video faces (youtube68), 0.111 on 321 boxes without a face
(WFLW's unlabelled photographs). Beyond 0.05 lie 0.3 % of the faces and 99 % of the rest; with the published GhostOne,
none and 99 %. The price is one more face in the landmark network's batch, so it is not paid in every frame.
"""

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.tracking.similarity import face_size, fit_similarity

__all__ = ["follows_the_crop", "has_run", "is_gone", "is_sudden", "shifted_boxes"]

Array = NDArray[np.float64]

_SHIFT = 0.06
_FOLLOWS = 0.05

_LEAST_INSIDE = 0.2
"""Share of the landmarks that must lie in the frame."""

_SMALLEST = 8.0
"""Side in pixels of a face on which landmarks mean nothing any more."""

_LARGEST_BEND = 0.1
"""Root mean square change of shape in faces; two frames of one face seconds apart stay below 0.12 in 99 % of 200 clips
(youtube68), so two that follow each other stay well below."""

_RUN = 0.1
_LARGEST_GROWTH = 1.5
_LARGEST_STEP = 0.5


def shifted_boxes(boxes: Array) -> Array:
    """Boxes ``(N, 4)`` beside the given ones, for the second look that `follows_the_crop` needs."""
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True, initial=0)
    shifted: Array = boxes + _SHIFT * sides
    return shifted


def follows_the_crop(landmarks: Array, beside: Array) -> bool:
    """Tell whether landmarks ``(P, 2)`` moved with the crop when it was cut at `shifted_boxes` (`beside`)."""
    moved = np.linalg.norm(beside - landmarks, axis=1).mean()
    # Not `moved > ...`: NaN must count as no face.
    return not moved <= _FOLLOWS * face_size(landmarks)


def has_run(box: Array, landmarks: Array) -> bool:
    """Tell whether the centre of a face's ``(P, 2)`` landmarks lies well beside that of the box it was cut by."""
    center = (landmarks.max(axis=0) + landmarks.min(axis=0)) / 2
    run = np.linalg.norm(center - (box[:2] + box[2:]) / 2) / (box[2:] - box[:2]).max()
    # Landmarks that are no numbers, or fell on a point, give no box to look at.
    return bool(run > _RUN) and face_size(landmarks) >= _SMALLEST


def is_gone(landmarks: Array, image_size: tuple[int, int]) -> bool:
    """Tell whether ``(P, 2)`` landmarks are no numbers, fell on a point, left the frame or outgrew it."""
    if not np.isfinite(landmarks).all():
        return True
    inside = ((landmarks >= 0) & (landmarks < image_size)).all(axis=1).mean()
    return bool(inside < _LEAST_INSIDE) or not _SMALLEST <= face_size(landmarks) <= 2 * max(image_size)


def is_sudden(before: Array, now: Array, expected_shift: Array) -> bool:
    """Tell whether ``(P, 2)`` landmarks changed as no face does from one frame to the next.

    Args:
        before: The last frame's.
        now: This frame's, finite.
        expected_shift: ``(2,)`` how far the face was to move by its speed, in pixels.
    """
    size = face_size(before)
    step = fit_similarity(before, now)
    bend = np.sqrt(((now - step.partly(1.0, before)) ** 2).sum(axis=1).mean())
    surprise = np.linalg.norm(now.mean(axis=0) - before.mean(axis=0) - expected_shift)
    growth = face_size(now) / size
    return bool(
        bend > _LARGEST_BEND * size
        or surprise > _LARGEST_STEP * size
        or not 1 / _LARGEST_GROWTH < growth < _LARGEST_GROWTH
    )

"""One tracked face, and the checks of whether its landmarks still show a face.

A landmark network gives plausible landmarks for any crop, so they alone don't tell a face from background. But
landmarks of background move with the crop: when the crop is shifted a little, a face's landmarks stay in place. Median
movement, in faces, when the box is shifted by 6 % each way (8.5 % in all), with the bundled model: 0.012 on 300 video
faces (youtube68), 0.111 on 321 boxes without a face (WFLW's unlabelled photographs). Beyond 0.05 are 0.3 % of the faces
and 99 % of the rest; with the published GhostOne, none and 99 %. The check costs one more face in the landmark
network's batch, so it does not run in every frame.
"""

from dataclasses import dataclass, field
from math import exp, nan

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.geometry.landmarks import face_size, fit_similarity
from pfld_edge_runtime.geometry.roll import follow_roll, turned_box
from pfld_edge_runtime.schemes import LandmarkScheme
from pfld_edge_runtime.tracking.smoothing import FaceSmoother, Smoothing

Array = NDArray[np.float64]

_MOVES_WITH_CROP = 0.05

_LEAST_INSIDE = 0.2
"""Share of the landmarks that must lie in the frame."""

_SMALLEST = 8.0
"""Side in pixels of a face below which landmarks mean nothing."""

_LARGEST_BEND = 0.1
"""Root mean square change of shape in faces. Two frames of one face seconds apart differ by less than 0.12 in 99 % of
200 clips (youtube68), so consecutive frames differ by much less."""

_LARGEST_OFFSET = 0.1
_LARGEST_GROWTH = 1.5
_LARGEST_STEP = 0.5

_SPEED_TIME = 0.1
"""Seconds over which the speed is averaged."""

_SLACK = 0.01
"""How far the edges of a box may be off before the crop is moved, in faces. 0.02 and more made the landmarks of a
moving face rougher (mean acceleration 2.1 instead of 1.9); with none the landmarks of a still face drifted."""

_SLACK_AT_REST = 0.02
_REST = 0.1
"""Faces a second, below which `_SLACK_AT_REST` holds. With a slack of 0.01 a noisy still face changed its box now and
then, and each change moved all landmarks a little (0.2 pixels, where the noise left 0.05)."""

_ERROR_TIME = 0.2
"""Seconds over which the prediction error is averaged."""

_COAST_TIME = 0.5
"""Time constant in seconds with which the predicted speed of a lost face decays."""


@dataclass(slots=True, eq=False)
class Track:
    """One face.

    Attributes:
        id: Its number.
        smoothing: Settings of the smoothing. The next box always comes from smoothed landmarks, so that the jitter of
            one frame's landmarks doesn't become the jitter of the next frame's crop.
        landmarks: ``(P, 2)`` the network's last output.
        box: ``(4,)`` the box of that crop, before it was turned.
        last_seen: Seconds, the time of `landmarks`.
        score: The detector's; NaN where it gave none.
        roll: Degrees by which that crop was turned.
        scheme: Of the points; None where crops can't be turned.
        smoothed: ``(P, 2)`` the smoothed landmarks.
        speed: ``(2,)`` pixels a second.
        prediction_error: Mean distance of late between the face and its predicted place, in faces.
        lost: It was not found in the last frame, and may reappear.
        misses: How many times in a row the detector didn't find it.
        last_detected: Seconds, when the detector last found it.
    """

    id: int
    smoothing: Smoothing
    landmarks: Array
    box: Array
    last_seen: float
    score: float = nan
    roll: float = 0.0
    scheme: LandmarkScheme | None = None
    smoothed: Array = field(init=False)
    speed: Array = field(default_factory=lambda: np.zeros(2))
    prediction_error: float = 0.0
    lost: bool = False
    misses: int = 0
    last_detected: float = field(init=False)
    _smoother: FaceSmoother = field(init=False)

    def __post_init__(self) -> None:
        """Start with the first landmarks."""
        self.last_detected = self.last_seen
        self._smoother = FaceSmoother(self.smoothing)
        self.smoothed = self._smoother(self.landmarks, 0.0)

    def predicted_shift(self, now: float) -> Array:
        """How far it has moved since it was last seen, ``(2,)`` pixels, with a speed that decays exponentially."""
        shift: Array = self.speed * (_COAST_TIME * (1 - exp((self.last_seen - now) / _COAST_TIME)))
        return shift

    def predicted_crop(self, now: float) -> tuple[Array, float]:
        """The box of its next crop, ``(4,)``, and the degrees by which that is turned.

        They are the last ones as long as those still fit: each pixel by which a box moves changes the network's output,
        so the boxes and landmarks of a still face would drift otherwise.
        """
        moved = (self.smoothed + self.predicted_shift(now))[None]
        rolls = follow_roll(moved, self.scheme, np.array([self.roll]))
        box, roll = turned_box(moved, rolls)[0], float(rolls[0])
        size = float((box[2:] - box[:2]).max())
        at_rest = float(np.linalg.norm(self.speed)) < _REST * size
        slack = max(1.0, (_SLACK_AT_REST if at_rest else _SLACK) * size)
        return (self.box if roll == self.roll and np.abs(box - self.box).max() <= slack else box), roll

    def update(self, landmarks: Array, box: Array, roll: float, now: float) -> None:
        """Add a frame's landmarks and the box and roll of their crop; after a loss the filters start again."""
        self.landmarks, self.box, self.roll = landmarks, box, roll
        if self.lost:
            self._smoother = FaceSmoother(self.smoothing)
            self.smoothed = self._smoother(landmarks, 0.0)
            self.speed, self.prediction_error, self.lost = np.zeros(2), 0.0, False
        elif now > self.last_seen:
            interval, last = now - self.last_seen, self.smoothed
            error = landmarks.mean(axis=0) - last.mean(axis=0) - self.predicted_shift(now)
            share = interval / (interval + _ERROR_TIME)
            self.prediction_error += share * (float(np.linalg.norm(error)) / face_size(last) - self.prediction_error)
            self.smoothed = self._smoother(landmarks, interval)
            share = interval / (interval + _SPEED_TIME)
            moved = self.smoothed.mean(axis=0) - last.mean(axis=0)
            self.speed = self.speed + share * (moved / interval - self.speed)
        self.last_seen = now


def moves_with_crop(landmarks: Array, shifted: Array) -> bool:
    """Whether landmarks ``(P, 2)`` moved when the crop moved to `shifted_boxes` (`shifted`): they show no face."""
    moved = np.linalg.norm(shifted - landmarks, axis=1).mean()
    # Not `moved > ...`: NaN must count as no face.
    return not moved <= _MOVES_WITH_CROP * face_size(landmarks)


def is_off_center(box: Array, landmarks: Array) -> bool:
    """Whether the centre of a face's ``(P, 2)`` landmarks lies well beside that of their crop's box."""
    center = (landmarks.max(axis=0) + landmarks.min(axis=0)) / 2
    offset = np.linalg.norm(center - (box[:2] + box[2:]) / 2) / (box[2:] - box[:2]).max()
    # NaN landmarks, or landmarks on one point, have no tight box.
    return bool(offset > _LARGEST_OFFSET) and face_size(landmarks) >= _SMALLEST


def is_implausible(landmarks: Array, image_size: tuple[int, int]) -> bool:
    """Whether ``(P, 2)`` landmarks are not finite, lie on one point, left the frame or outgrew it."""
    if not np.isfinite(landmarks).all():
        return True
    inside = ((landmarks >= 0) & (landmarks < image_size)).all(axis=1).mean()
    return bool(inside < _LEAST_INSIDE) or not _SMALLEST <= face_size(landmarks) <= 2 * max(image_size)


def is_discontinuous(before: Array, now: Array, predicted_shift: Array) -> bool:
    """Whether ``(P, 2)`` landmarks changed more than those of one face do between consecutive frames.

    `now` must be finite; `predicted_shift`, ``(2,)`` pixels, is how far the face was to move by its speed.
    """
    size = face_size(before)
    bend = np.sqrt(((now - fit_similarity(before, now).apply(before)) ** 2).sum(axis=1).mean())
    step = np.linalg.norm(now.mean(axis=0) - before.mean(axis=0) - predicted_shift)
    growth = face_size(now) / size
    return bool(
        bend > _LARGEST_BEND * size or step > _LARGEST_STEP * size or not 1 / _LARGEST_GROWTH < growth < _LARGEST_GROWTH
    )

"""One face through time."""

from dataclasses import dataclass, field
from math import exp, nan

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.tracking.similarity import face_size
from pfld_edge_runtime.tracking.smoothing import FaceSmoother, Smoothing

__all__ = ["Track", "tight_box"]

Array = NDArray[np.float64]

_SPEED_TIME = 0.1
"""Seconds over which the speed is averaged."""

_SLACK = 0.01
"""How far the edges of a box may be off before another is cut, in faces. 0.02 and more made the landmarks of a moving
face rougher (mean acceleration 2.1 in place of 1.9), none at all let a still face wander."""

_SLACK_AT_REST = 0.02
_REST = 0.1
"""Faces a second, below which a face keeps its box longer. At 0.01 a noisy still face changed its box now and then, and
each change moved all landmarks a little (0.2 pixels, where the noise left 0.05)."""

_SURPRISE_TIME = 0.2
"""Seconds over which departures from the expected place are remembered."""

_COAST_TIME = 0.5
"""Seconds in which a hidden face comes to rest, as far as we know."""


def tight_box(landmarks: Array) -> Array:
    """The box that the crop rule asks for: integer, tight around ``(P, 2)`` landmarks; ``(4,)``."""
    return np.concatenate([np.floor(landmarks.min(axis=0)), np.floor(landmarks.max(axis=0)) + 1])


@dataclass(slots=True, eq=False)
class Track:
    """What is known of a face.

    Attributes:
        id: Its number.
        smoothing: How its landmarks are smoothed; the steadier ones always give the next box, so that the jitter of
            one frame's landmarks doesn't become the jitter of the next frame's crop.
        landmarks: ``(P, 2)`` as the network gave them last.
        box: ``(4,)`` what they were cut by.
        seen: Seconds, when that was.
        steady: ``(P, 2)`` the smoothed landmarks.
        speed: ``(2,)`` pixels a second.
        surprise: How far the face was from where it was expected of late, in faces.
        score: The detector's; NaN where it gave none.
        hidden: Nothing was seen of it in the last frame; it may come back.
        misses: How many times on end the detector didn't find it.
        vouched: Seconds, when the detector last found it.
    """

    id: int
    smoothing: Smoothing
    landmarks: Array
    box: Array
    seen: float
    score: float = nan
    steady: Array = field(init=False)
    speed: Array = field(default_factory=lambda: np.zeros(2))
    surprise: float = 0.0
    hidden: bool = False
    misses: int = 0
    vouched: float = 0.0
    _smoother: FaceSmoother = field(init=False)

    def __post_init__(self) -> None:
        """Start with the first landmarks."""
        self.vouched = self.seen
        self._smoother = FaceSmoother(self.smoothing)
        self.steady = self._smoother(self.landmarks, 0.0)

    def shift(self, now: float) -> Array:
        """How far it has gone since it was seen, ``(2,)`` pixels, if it slows down the way that a head does."""
        far: Array = self.speed * (_COAST_TIME * (1 - exp((self.seen - now) / _COAST_TIME)))
        return far

    def expected_box(self, now: float) -> Array:
        """Where it should be, ``(4,)``.

        It is the last box as long as that still fits, since each pixel by which the box moves changes what the network
        answers: on a still face the boxes would wander, and the landmarks with them.
        """
        box = tight_box(self.steady + self.shift(now))
        size = float((box[2:] - box[:2]).max())
        at_rest = float(np.linalg.norm(self.speed)) < _REST * size
        slack = max(1.0, (_SLACK_AT_REST if at_rest else _SLACK) * size)
        return self.box if np.abs(box - self.box).max() <= slack else box

    def see(self, landmarks: Array, box: Array, now: float) -> None:
        """Take a frame's landmarks, cut by a box; of a face that was hidden, the filters' knowledge is stale."""
        self.landmarks, self.box = landmarks, box
        if self.hidden:
            self._smoother = FaceSmoother(self.smoothing)
            self.steady = self._smoother(landmarks, 0.0)
            self.speed, self.surprise, self.hidden = np.zeros(2), 0.0, False
        elif now > self.seen:
            self._move(landmarks, now)
        self.seen = now

    def _move(self, landmarks: Array, now: float) -> None:
        """Smooth the landmarks, and learn from them how the face moves."""
        interval, last = now - self.seen, self.steady
        off = landmarks.mean(axis=0) - last.mean(axis=0) - self.shift(now)
        share = interval / (interval + _SURPRISE_TIME)
        self.surprise += share * (float(np.linalg.norm(off)) / face_size(last) - self.surprise)
        self.steady = self._smoother(landmarks, interval)
        share = interval / (interval + _SPEED_TIME)
        self.speed = self.speed + share * ((self.steady.mean(axis=0) - last.mean(axis=0)) / interval - self.speed)

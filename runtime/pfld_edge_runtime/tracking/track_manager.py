"""The tracks of a scene: their update in each frame, their presence checks, their association with detected faces.

A landmark network gives plausible landmarks for any crop, so they alone don't tell a face from background. But
landmarks of background move with the crop: when the crop is shifted a little, a face's landmarks stay in place. Median
movement, in faces, when the box is shifted by 6 % each way (8.5 % in all), with the bundled model: 0.012 on 300 video
faces (youtube68), 0.111 on 321 boxes without a face (WFLW's unlabelled photographs). Beyond 0.05 are 0.3 % of the faces
and 99 % of the rest; with the published GhostOne, none and 99 %. The check costs one more prediction, so it does not
run in every frame, and never where the network itself is sure: the mean confidence of its points is at least 0.82 on
400 faces of youtube68 (0.94 on 99 % of them), and at most 0.70 on 320 boxes without a face, followed for six frames.
"""

from cmath import phase
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import degrees, exp, hypot, isfinite, nan

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.arrays import Float64Array
from pfld_edge_runtime.contract import Contract, LandmarkScheme
from pfld_edge_runtime.detection.detector import Detections
from pfld_edge_runtime.geometry.landmarks import Shape, fit_similarity, tight_box
from pfld_edge_runtime.geometry.roll import (
    LEAST_SHAPE,
    UPRIGHT,
    Points,
    Predict,
    detected_rolls,
    lean,
    refine_detected,
    roll_weights,
    shifted_boxes,
    turned_box,
)
from pfld_edge_runtime.tracking.smoothing import FaceSmoother, Smoothing

_GATE = 0.7
"""Largest distance of a detected box from a visible face (see `match_boxes`)."""

_LOST_GATE = 1.0
"""The same for a lost face, whose place is extrapolated."""

_MOST_MISSES = 3
"""A face that the detector misses so many times in a row, over `memory` seconds, is taken for background."""

_DUPLICATE_DISTANCE = 0.25
"""Mean distance of corresponding landmarks, in faces, under which two sets of landmarks lie on one face. The
landmarks of two heads are farther apart: cheek to cheek about 0.8, one half behind the other 0.5."""

_MOVES_WITH_CROP = 0.05
_CERTAIN = 0.75
"""Mean confidence of the points from which on a face needs no presence check."""

_SAME_LOOK = 0.85
"""Correlation of a face's look with that of its last check from which on it needs no other: boxes beside 400 faces
(WIDER FACE), and the next person's face (youtube68), correlate by less than 0.85 in all and 0.62 in 99 % of 1,612
cases; a shift by 2 % of the face, or noise of 20 grey levels, leaves more in 96 %."""

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

    The next box always comes from smoothed landmarks, so that the jitter of one frame's landmarks doesn't become the
    jitter of the next frame's crop.

    `found` is the network's last output, at `last_seen` seconds in a crop of `box` turned by `roll`; a `scheme` of None
    means that crops can't be turned. `speed` is in pixels a second (x + iy), `prediction_error` the mean distance of
    late between the face and its predicted place, in faces. A `lost` face was not found in the last frame, and may
    reappear; the detector didn't find it `misses` times in a row. `look` is the signature of its box when its presence
    was checked last.
    """

    id: int
    smoothing: Smoothing
    found: Shape
    box: Float64Array
    last_seen: float
    score: float = nan
    roll: float = 0.0
    confidence: NDArray[np.floating] | None = None
    scheme: LandmarkScheme | None = None
    smoothed: Shape = field(init=False)
    speed: complex = 0j
    prediction_error: float = 0.0
    lost: bool = False
    misses: int = 0
    look: Float64Array | None = None
    last_detected: float = field(init=False)
    _smoother: FaceSmoother = field(init=False)
    _weights: NDArray[np.complex128] | None = field(init=False)

    def __post_init__(self) -> None:
        self.last_detected = self.last_seen
        self._weights = None if self.scheme is None else roll_weights(self.scheme)
        self._restart()

    def _restart(self) -> None:
        self._smoother = FaceSmoother(self.smoothing)
        self.smoothed = self._smoother.smooth(self.found, 0.0)
        self.speed, self.prediction_error, self.lost, self.look = 0j, 0.0, False, None

    def predicted_shift(self, now: float) -> complex:
        """Pixels that it has moved since it was last seen, x + iy, with a speed that decays exponentially."""
        return self.speed * (_COAST_TIME * (1 - exp((self.last_seen - now) / _COAST_TIME)))

    def predicted_crop(self, now: float) -> tuple[Float64Array, float]:
        """The box of its next crop, ``(4,)``, and the degrees by which that is turned.

        They are the last ones as long as those still fit: each pixel by which a box moves changes the network's output,
        so the boxes and landmarks of a still face would drift otherwise.
        """
        shift = self.predicted_shift(now)
        roll = self._next_roll()
        if roll:
            moved = self.smoothed.landmarks[None] + np.array([shift.real, shift.imag])
            edges = turned_box(moved, np.array([roll]))[0].tolist()
        else:  # the `tight_box`, in plain numbers: numpy takes longer to start than to compute
            left, top, right, bottom = self.smoothed.extent
            edges = [int(left + shift.real), int(top + shift.imag)]
            edges += [int(right + shift.real) + 1, int(bottom + shift.imag) + 1]
        size = max(edges[2] - edges[0], edges[3] - edges[1])
        slack = max(1.0, (_SLACK_AT_REST if abs(self.speed) < _REST * size else _SLACK) * size)
        if roll == self.roll and all(abs(a - b) <= slack for a, b in zip(edges, self.box.tolist(), strict=True)):
            return self.box, roll
        return np.array(edges, np.float64), roll

    def _next_roll(self) -> float:
        """`follow_roll` of the smoothed landmarks, which asks numpy for one product only."""
        if self._weights is None:
            return self.roll
        across = complex(np.dot(self.smoothed.points, self._weights))
        found = degrees(phase(across)) if abs(across) >= LEAST_SHAPE * self.smoothed.size else nan
        return found if lean(found, self.roll) > UPRIGHT else self.roll

    def update(
        self, found: Shape, confidence: NDArray[np.floating], box: Float64Array, roll: float, now: float
    ) -> None:
        """Add a frame's landmarks and the box and roll of their crop; after a loss the filters start again."""
        self.found, self.confidence, self.box, self.roll = found, confidence, box, roll
        if self.lost:
            self._restart()
        elif now > self.last_seen:
            interval, last = now - self.last_seen, self.smoothed
            error = abs(found.center - last.center - self.predicted_shift(now)) / last.size
            self.prediction_error += interval / (interval + _ERROR_TIME) * (error - self.prediction_error)
            self.smoothed = self._smoother.smooth(found, interval)
            speed = (self.smoothed.center - last.center) / interval
            self.speed += interval / (interval + _SPEED_TIME) * (speed - self.speed)
        self.last_seen = now


def moves_with_crop(found: Shape, shifted: Float64Array) -> bool:
    """Whether landmarks moved when the crop moved to `shifted_boxes` (`shifted`, ``(P, 2)``): they show no face."""
    moved = np.linalg.norm(shifted - found.landmarks, axis=1).mean()
    # Not `moved > ...`: NaN must count as no face.
    return not moved <= _MOVES_WITH_CROP * found.size


def is_off_center(box: Float64Array, found: Shape) -> bool:
    """Whether the centre of a face's landmarks lies well beside that of their crop's box."""
    left, top, right, bottom = found.extent
    x0, y0, x1, y1 = box.tolist()
    offset = hypot(left + right - x0 - x1, top + bottom - y0 - y1) / 2 / max(x1 - x0, y1 - y0)
    # NaN landmarks, or landmarks on one point, have no tight box.
    return offset > _LARGEST_OFFSET and found.size >= _SMALLEST


def is_implausible(found: Shape, image_size: tuple[int, int]) -> bool:
    """Whether landmarks are not finite, lie on a point, leave the frame or outgrow it."""
    left, top, right, bottom = found.extent
    if not isfinite(left + top + right + bottom):
        return True
    if not _SMALLEST <= found.size <= 2 * max(image_size):
        return True
    if left >= 0 and top >= 0 and right < image_size[0] and bottom < image_size[1]:
        return False
    inside = (found.landmarks >= 0) & (found.landmarks < image_size)
    return int(inside.all(axis=1).sum()) < _LEAST_INSIDE * len(inside)


def is_discontinuous(track: Track, found: Shape, now: float) -> bool:
    """Whether finite landmarks changed more than those of one face do between consecutive frames."""
    last, size = track.found, track.found.size
    shift = found.center - last.center
    if abs(shift - track.predicted_shift(now)) > _LARGEST_STEP * size:
        return True
    if not 1 / _LARGEST_GROWTH < found.size / size < _LARGEST_GROWTH:
        return True
    moved = found.points - last.points
    moved -= shift
    limit = len(moved) * (_LARGEST_BEND * size) ** 2
    # What translation alone leaves is never less than what the best similarity leaves.
    if np.vdot(moved, moved).real <= limit:
        return False
    fitted = fit_similarity(last.landmarks, found.landmarks).apply(last.landmarks)
    return bool(((found.landmarks - fitted) ** 2).sum() > limit)


class TrackManager:
    """Keeps the tracks. For each frame: `update`, then `associate` if a detector ran, then `drop_expired`."""

    def __init__(
        self, smoothing: Smoothing, memory: float, max_faces: int | None, scheme: LandmarkScheme | None
    ) -> None:
        """Keep the settings of `FaceTracker`; a `scheme` of None means that crops can't be turned."""
        self._smoothing, self._memory, self._max_faces, self._scheme = smoothing, memory, max_faces, scheme
        self._tracks: list[Track] = []
        self._next_id = 0

    @property
    def visible(self) -> list[Track]:
        """The faces that were found in the last frame, oldest id first."""
        return [track for track in self._tracks if not track.lost]

    @property
    def lost(self) -> list[Track]:
        """The faces that may reappear."""
        return [track for track in self._tracks if track.lost]

    @property
    def is_full(self) -> bool:
        """Whether `max_faces` faces are visible, each found when the detector last ran: it could add none."""
        return len(self.visible) == self._max_faces and not any(track.misses for track in self._tracks)

    @property
    def is_certain(self) -> bool:
        """Whether the network was certain of each visible face when it last saw it; False where it doesn't tell."""
        return all(track.confidence is not None and _is_certain(track.confidence) for track in self.visible)

    def clear(self) -> None:
        """Drop all tracks; their ids are not given again."""
        self._tracks = []

    def drop_expired(self, now: float) -> None:
        """Drop the tracks that have been lost for more than `memory` seconds."""
        self._tracks = [track for track in self._tracks if not track.lost or now - track.last_seen <= self._memory]

    def update(
        self,
        predict: Predict,
        now: float,
        image_size: tuple[int, int],
        checked: Callable[[Track], bool],
        look: Callable[[Float64Array], Float64Array | None],
    ) -> list[Track]:
        """Predict the landmarks of all visible faces in their predicted boxes, at the time `now` in seconds.

        `checked` says whether the presence of a track is checked, by a second prediction in a shifted box: where the
        network is not certain of it, and the signature that `look` gives of its box has changed since the last check.
        Gives the unconfirmed tracks, which a detector must confirm; they keep the last frame's landmarks until then.
        """
        tracks = self.visible
        if not tracks:
            return []
        crops = [track.predicted_crop(now) for track in tracks]
        boxes, rolls = np.array([box for box, _ in crops]), np.array([roll for _, roll in crops])
        found, shapes = _recentered(predict, boxes, rolls, predict(boxes, rolls))
        due = [row for row, track in enumerate(tracks) if checked(track) and not _is_certain(found[row, :, 2])]
        looks = {row: look(boxes[row]) for row in due}
        rows = [row for row, seen in looks.items() if not _is_alike(seen, tracks[row].look)]
        moved = predict(shifted_boxes(boxes[rows]), rolls[rows]) if rows else found[:0]
        shifted = dict(zip(rows, moved, strict=True))
        unconfirmed = []
        for row, (track, shape) in enumerate(zip(tracks, shapes, strict=True)):
            if is_implausible(shape, image_size):
                track.lost = True
            elif is_discontinuous(track, shape, now) or (
                row in shifted and moves_with_crop(shape, shifted[row][:, :2])
            ):
                unconfirmed.append(track)
            else:
                track.update(shape, found[row, :, 2], boxes[row], float(rolls[row]), now)
                track.look = looks[row] if row in shifted else track.look
        self._drop_duplicates([track for track in tracks if track not in unconfirmed and not track.lost])
        return unconfirmed

    def associate(
        self,
        found: Detections,
        contract: Contract | None,
        predict: Predict,
        now: float,
        image_size: tuple[int, int],
        unconfirmed: Sequence[Track],
    ) -> None:
        """Match tracks with detected faces: confirm, lose, recover and add tracks; `contract` is the landmarker's.

        Those of `unconfirmed`, from `update`, that are not detected become lost.
        """
        rolls = detected_rolls(found.rolls, self._scheme)
        boxes = found.landmark_boxes(contract, rolls)
        matches = self._matches(boxes, now, unconfirmed)
        for index, track in matches.items():
            track.misses, track.last_detected, track.score = 0, now, float(found.scores[index])
        stale = {index: track for index, track in matches.items() if track.lost or track in unconfirmed}
        new = [index for index in range(len(boxes)) if index not in matches]
        # The highest score first, then the largest box; NaN counts as 0.
        ranks = np.lexsort([-(boxes[:, 2:] - boxes[:, :2]).max(axis=1), -np.nan_to_num(found.scores)])
        new.sort(key=ranks.tolist().index)
        order = [*stale, *new]
        first = predict(boxes[order], rolls[order])
        usable = [row for row, points in enumerate(first[..., :2]) if not is_implausible(Shape(points), image_size)]
        rows = [order[row] for row in usable]
        some = found[rows]
        refined = refine_detected(
            predict, first[usable], rolls[rows], lambda roll: some.landmark_boxes(contract, roll), self._scheme
        )
        updated = []
        for row, points, box, roll in zip(rows, *refined, strict=True):
            known = stale.get(row)
            shape = Shape(points[:, :2])
            if not is_implausible(shape, image_size) and self._has_room_for(shape, known, now):
                track = known or self._add(shape, box, now, float(found.scores[row]))
                track.update(shape, points[:, 2], box, float(roll), now)
                updated.append(track)
        for track in stale.values():
            track.lost = track not in updated

    def _add(self, found: Shape, box: Float64Array, now: float, score: float) -> Track:
        track = Track(self._next_id, self._smoothing, found, box, now, score, scheme=self._scheme)
        self._next_id += 1
        self._tracks.append(track)
        return track

    def _matches(self, boxes: Float64Array, now: float, unconfirmed: Sequence[Track]) -> dict[int, Track]:
        """Tracks by index of the box: visible ones first, then lost ones. Unmatched ones may become lost."""
        tracks = self.visible
        known = [
            track.predicted_crop(now)[0] if track in unconfirmed else tight_box(track.found.landmarks)
            for track in tracks
        ]
        matches = {column: tracks[row] for row, column in match_boxes(known, boxes, _GATE)}
        for track in tracks:
            if track not in matches.values():
                track.misses += 1
                given_up = track.misses >= _MOST_MISSES and now - track.last_detected > self._memory
                track.lost = track in unconfirmed or given_up
        lost = [track for track in self.lost if now - track.last_seen <= self._memory]
        left = [index for index in range(len(boxes)) if index not in matches]
        pairs = match_boxes([track.predicted_crop(now)[0] for track in lost], boxes[left], _LOST_GATE)
        return matches | {left[column]: lost[row] for row, column in pairs}

    def _has_room_for(self, found: Shape, track: Track | None, now: float) -> bool:
        """Whether no other track has these landmarks, and fewer than `max_faces` others are visible."""
        others = [other for other in self.visible if other is not track and other.last_seen == now]
        full = self._max_faces is not None and len(others) >= self._max_faces
        return not (full or any(are_duplicates(found, other.found) for other in others))

    def _drop_duplicates(self, tracks: Sequence[Track]) -> None:
        """Of two tracks on one face, lose the one with the larger prediction error, at a tie the younger."""
        for one, other in combinations(tracks, 2):
            if not (one.lost or other.lost) and are_duplicates(one.found, other.found):
                max(one, other, key=lambda track: (track.prediction_error, track.id)).lost = True


def match_boxes(known: Sequence[Float64Array], found: Float64Array, gate: float) -> list[tuple[int, int]]:
    """Pair N known and ``(M, 4)`` found boxes of the same face, the closest first, each box at most once.

    Distance, at most `gate`, is that of the boxes' centres in faces, plus the absolute logarithm of the ratio of their
    sizes. Unlike intersection over union it orders boxes that no longer overlap, as after an occlusion. Greedy pairing
    differs from the optimal assignment only where two found boxes both suit two known ones, so where heads are within a
    gate of each other; there the closest pair is also the most certain one.
    """
    if len(known) == 0 or len(found) == 0:
        return []
    both = np.array(known), found
    centers = [(boxes[:, :2] + boxes[:, 2:]) / 2 for boxes in both]
    sizes = [(boxes[:, 2:] - boxes[:, :2]).max(axis=1) for boxes in both]
    shift = np.linalg.norm(centers[0][:, None] - centers[1][None], axis=-1)
    mean = (sizes[0][:, None] + sizes[1][None]) / 2
    distance = shift / mean + np.abs(np.log(sizes[0][:, None] / sizes[1][None]))
    pairs = []
    while distance.min() <= gate:
        row, column = (int(index) for index in np.unravel_index(distance.argmin(), distance.shape))
        pairs.append((row, column))
        distance[row], distance[:, column] = np.inf, np.inf
    return pairs


def are_duplicates(one: Shape, other: Shape) -> bool:
    """Whether two sets of landmarks lie on the same face."""
    return float(np.abs(one.points - other.points).mean()) < _DUPLICATE_DISTANCE * min(one.size, other.size)


def correlation(one: Float64Array, other: Float64Array) -> float:
    """Correlation of two arrays of mean 0 and deviation 1."""
    return float(np.vdot(one, other)) / one.size


def _is_alike(look: Float64Array | None, last: Float64Array | None) -> bool:
    return look is not None and last is not None and correlation(look, last) >= _SAME_LOOK


def _is_certain(confidence: NDArray[np.floating]) -> bool:
    """Whether a face is there, by the confidence of its points; False where the network doesn't tell that."""
    return bool(np.add.reduce(confidence) >= _CERTAIN * len(confidence))


def _recentered(
    predict: Predict, boxes: Float64Array, rolls: Float64Array, found: Points
) -> tuple[Points, list[Shape]]:
    """Predict again the faces that are off the centre of their crop, changing `boxes` to their tight boxes.

    Landmarks from a crop that is off by a third of a face still show where the face is, but are imprecise. Gives the
    points, and the shapes of the faces.
    """
    shapes = [Shape(points[:, :2]) for points in found]
    rows = [row for row, shape in enumerate(shapes) if is_off_center(boxes[row], shape)]
    if rows:
        boxes[rows] = turned_box(found[rows, :, :2], rolls[rows])
        found[rows] = predict(boxes[rows], rolls[rows])
        for row in rows:
            shapes[row] = Shape(found[row, :, :2])
    return found, shapes

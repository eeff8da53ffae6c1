"""The tracks of a scene: their update in each frame, and their association with detected faces."""

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.contract import Contract
from pfld_edge_runtime.detection.detector import Detections
from pfld_edge_runtime.geometry.landmarks import face_size, tight_box
from pfld_edge_runtime.geometry.roll import Predict, detected_rolls, refine_detected, shifted_boxes, turned_box
from pfld_edge_runtime.schemes import LandmarkScheme
from pfld_edge_runtime.tracking.smoothing import Smoothing
from pfld_edge_runtime.tracking.track import Track, is_discontinuous, is_implausible, is_off_center, moves_with_crop

Array = NDArray[np.float64]

_GATE = 0.7
"""Largest distance of a detected box from a visible face (see `match_boxes`)."""

_LOST_GATE = 1.0
"""The same for a lost face, whose place is extrapolated."""

_MOST_MISSES = 3
"""A face that the detector misses so many times in a row, over `memory` seconds, is taken for background."""

_DUPLICATE_DISTANCE = 0.25
"""Mean distance of corresponding landmarks, in faces, under which two sets of landmarks lie on one face. The
landmarks of two heads are farther apart: cheek to cheek about 0.8, one half behind the other 0.5."""


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

    def clear(self) -> None:
        """Drop all tracks; their ids are not given again."""
        self._tracks = []

    def drop_expired(self, now: float) -> None:
        """Drop the tracks that have been lost for more than `memory` seconds."""
        self._tracks = [track for track in self._tracks if not track.lost or now - track.last_seen <= self._memory]

    def update(
        self, predict: Predict, now: float, image_size: tuple[int, int], checked: Callable[[Track], bool]
    ) -> list[Track]:
        """Predict the landmarks of all visible faces in their predicted boxes, at the time `now` in seconds.

        `checked` says whether a track's presence is checked by a second prediction in a shifted box. Gives the
        unconfirmed tracks, which a detector must confirm; they keep the last frame's landmarks until then.
        """
        tracks = self.visible
        if not tracks:
            return []
        crops = [track.predicted_crop(now) for track in tracks]
        boxes, rolls = np.stack([box for box, _ in crops]), np.array([roll for _, roll in crops])
        to_check = [index for index, track in enumerate(tracks) if checked(track)]
        landmarks = predict(
            np.concatenate([boxes, shifted_boxes(boxes[to_check])]), np.concatenate([rolls, rolls[to_check]])
        )
        shifted = dict(zip(to_check, landmarks[len(tracks) :], strict=True))
        landmarks = _recentered(predict, boxes, rolls, landmarks[: len(tracks)])
        unconfirmed = []
        for index, (track, box, roll, points) in enumerate(zip(tracks, boxes, rolls, landmarks, strict=True)):
            if is_implausible(points, image_size):
                track.lost = True
            elif is_discontinuous(track.landmarks, points, track.predicted_shift(now)) or (
                index in shifted and moves_with_crop(points, shifted[index])
            ):
                unconfirmed.append(track)
            else:
                track.update(points, box, float(roll), now)
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
        new.sort(key=lambda index: _priority(boxes[index], float(found.scores[index])))
        order = [*stale, *new]
        first = predict(boxes[order], rolls[order])
        usable = [row for row, points in enumerate(first) if not is_implausible(points, image_size)]
        rows = [order[row] for row in usable]
        some = found[rows]
        refined = refine_detected(
            predict, first[usable], rolls[rows], lambda roll: some.landmark_boxes(contract, roll), self._scheme
        )
        updated = []
        for row, points, box, roll in zip(rows, *refined, strict=True):
            known = stale.get(row)
            if not is_implausible(points, image_size) and self._has_room_for(points, known, now):
                track = known or self._add(points, box, now, float(found.scores[row]))
                track.update(points, box, float(roll), now)
                updated.append(track)
        for track in stale.values():
            track.lost = track not in updated

    def _add(self, points: Array, box: Array, now: float, score: float) -> Track:
        track = Track(self._next_id, self._smoothing, points, box, now, score, scheme=self._scheme)
        self._next_id += 1
        self._tracks.append(track)
        return track

    def _matches(self, boxes: Array, now: float, unconfirmed: Sequence[Track]) -> dict[int, Track]:
        """Tracks by index of the box: visible ones first, then lost ones. Unmatched ones may become lost."""
        tracks = self.visible
        known = [
            track.predicted_crop(now)[0] if track in unconfirmed else tight_box(track.landmarks) for track in tracks
        ]
        matches = {column: tracks[row] for row, column in match_boxes(_table(known), boxes, _GATE)}
        for track in tracks:
            if track not in matches.values():
                track.misses += 1
                given_up = track.misses >= _MOST_MISSES and now - track.last_detected > self._memory
                track.lost = track in unconfirmed or given_up
        lost = [track for track in self.lost if now - track.last_seen <= self._memory]
        left = [index for index in range(len(boxes)) if index not in matches]
        pairs = match_boxes(_table([track.predicted_crop(now)[0] for track in lost]), boxes[left], _LOST_GATE)
        return matches | {left[column]: lost[row] for row, column in pairs}

    def _has_room_for(self, points: Array, track: Track | None, now: float) -> bool:
        """Whether no other track has these landmarks, and fewer than `max_faces` others are visible."""
        others = [other for other in self.visible if other is not track and other.last_seen == now]
        full = self._max_faces is not None and len(others) >= self._max_faces
        return not (full or any(are_duplicates(points, other.landmarks) for other in others))

    def _drop_duplicates(self, tracks: Sequence[Track]) -> None:
        """Of two tracks on one face, lose the one with the larger prediction error, at a tie the younger."""
        for one, other in combinations(tracks, 2):
            if not (one.lost or other.lost) and are_duplicates(one.landmarks, other.landmarks):
                max(one, other, key=lambda track: (track.prediction_error, track.id)).lost = True


def match_boxes(known: Array, found: Array, gate: float) -> list[tuple[int, int]]:
    """Pair boxes of the same face, the closest first, each box at most once.

    Distance is that of the boxes' centres in faces, plus the absolute logarithm of the ratio of their sizes. Unlike
    intersection over union it orders boxes that no longer overlap, as after an occlusion. Greedy pairing differs
    from the optimal assignment only where two found boxes both suit two known ones, so where heads are within a gate of
    each other; there the closest pair is also the most certain one. Gives indices into the ``(N, 4)`` known and the
    ``(M, 4)`` found boxes, of pairs whose distance is at most `gate`.
    """
    if len(known) == 0 or len(found) == 0:
        return []
    centers = [(boxes[:, :2] + boxes[:, 2:]) / 2 for boxes in (known, found)]
    sizes = [(boxes[:, 2:] - boxes[:, :2]).max(axis=1) for boxes in (known, found)]
    shift = np.linalg.norm(centers[0][:, None] - centers[1][None], axis=-1)
    mean = (sizes[0][:, None] + sizes[1][None]) / 2
    distance = shift / mean + np.abs(np.log(sizes[0][:, None] / sizes[1][None]))
    pairs = []
    while distance.min() <= gate:
        row, column = (int(index) for index in np.unravel_index(distance.argmin(), distance.shape))
        pairs.append((row, column))
        distance[row], distance[:, column] = np.inf, np.inf
    return pairs


def are_duplicates(one: Array, other: Array) -> bool:
    """Whether two sets of ``(P, 2)`` landmarks lie on the same face."""
    distance = np.linalg.norm(one - other, axis=1).mean()
    return bool(distance < _DUPLICATE_DISTANCE * min(face_size(one), face_size(other)))


def _recentered(predict: Predict, boxes: Array, rolls: Array, landmarks: Array) -> Array:
    """Predict again the faces that are off the centre of their crop, changing `boxes` to their tight boxes.

    Landmarks from a crop that is off by a third of a face still show where the face is, but are imprecise.
    """
    rows = [row for row, points in enumerate(landmarks) if is_off_center(boxes[row], points)]
    if rows:
        boxes[rows] = turned_box(landmarks[rows], rolls[rows])
        landmarks[rows] = predict(boxes[rows], rolls[rows])
    return landmarks


def _table(boxes: Sequence[Array]) -> Array:
    return np.array(boxes, np.float64).reshape(-1, 4)


def _priority(box: Array, score: float) -> tuple[float, float]:
    """Sort key: the highest score first, then the largest box; NaN scores count as 0."""
    return (-score if score == score else 0.0, -float((box[2:] - box[:2]).max()))

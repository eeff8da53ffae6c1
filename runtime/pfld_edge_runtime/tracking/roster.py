"""The faces of a scene: who is in view, who is hidden, who is new."""

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.tracking.association import are_twins, closest_pairs
from pfld_edge_runtime.tracking.presence import follows_the_crop, has_run, is_gone, is_sudden, shifted_boxes
from pfld_edge_runtime.tracking.smoothing import Smoothing
from pfld_edge_runtime.tracking.track import Track, tight_box

__all__ = ["Look", "Roster"]

Array = NDArray[np.float64]

Look = Callable[[Array], Array]
"""From ``(N, 4)`` boxes to ``(N, P, 2)`` landmarks in the frame at hand."""

_GATE = 0.7
"""How far a detector's box may lie from a face in view (see `closest_pairs`)."""

_HIDDEN_GATE = 1.0
"""The same for a face out of view, whose place is a guess."""

_PATIENCE = 3
"""A face that the detector misses so many times on end, over `memory` seconds, was never one, or is none any more."""


class Roster:
    """Keeps the tracks; one frame is `follow`, then perhaps `take` with what a detector found, then `forget`."""

    def __init__(self, smoothing: Smoothing, memory: float, max_faces: int | None) -> None:
        self._smoothing, self._memory, self._max_faces = smoothing, memory, max_faces
        self._tracks: list[Track] = []
        self._next_id = 0

    @property
    def in_view(self) -> list[Track]:
        """The faces that were seen in the last frame, oldest id first."""
        return [track for track in self._tracks if not track.hidden]

    @property
    def hidden(self) -> list[Track]:
        """The faces that may come back."""
        return [track for track in self._tracks if track.hidden]

    def clear(self) -> None:
        """Forget all faces; their ids are not given again."""
        self._tracks = []

    def forget(self, now: float) -> None:
        """Forget the faces that have been hidden too long."""
        self._tracks = [track for track in self._tracks if not track.hidden or now - track.seen <= self._memory]

    def follow(
        self, look: Look, now: float, image_size: tuple[int, int], checked: Callable[[Track], bool]
    ) -> list[Track]:
        """Look for the faces where they are expected.

        Args:
            look: Gives landmarks.
            now: Seconds.
            image_size: Width and height.
            checked: Whose presence is checked with a second look.

        Returns:
            Those that only a detector can tell from a wall; they keep the last frame's landmarks until then.
        """
        tracks = self.in_view
        if not tracks:
            return []
        boxes = np.stack([track.expected_box(now) for track in tracks])
        second = [index for index, track in enumerate(tracks) if checked(track)]
        landmarks = look(np.concatenate([boxes, shifted_boxes(boxes[second])]))
        beside = dict(zip(second, landmarks[len(tracks) :], strict=True))
        landmarks = _caught_up(look, boxes, landmarks[: len(tracks)])
        doubted = []
        for index, (track, box, points) in enumerate(zip(tracks, boxes, landmarks, strict=True)):
            if is_gone(points, image_size):
                track.hidden = True
            elif is_sudden(track.landmarks, points, track.shift(now)) or (
                index in beside and follows_the_crop(points, beside[index])
            ):
                doubted.append(track)
            else:
                track.see(points, box, now)
        self._part_twins([track for track in tracks if track not in doubted and not track.hidden])
        return doubted

    def take(
        self,
        found: tuple[Array, NDArray[np.float32]],
        look: Look,
        now: float,
        image_size: tuple[int, int],
        doubted: Sequence[Track],
    ) -> None:
        """Compare the faces with what a detector found: keep, hide, bring back, add.

        Args:
            found: ``(N, 4)`` boxes, and N scores, NaN where there is none.
            look: Gives landmarks.
            now: Seconds.
            image_size: Width and height.
            doubted: What `follow` gave; those that the detector didn't find either become hidden.
        """
        boxes, scores = found
        matches = self._matches(boxes, now, doubted)
        for index, track in matches.items():
            track.misses, track.vouched, track.score = 0, now, float(scores[index])
        unsettled = {index: track for index, track in matches.items() if track.hidden or track in doubted}
        strangers = [index for index in range(len(boxes)) if index not in matches]
        strangers.sort(key=lambda index: _rank(boxes[index], float(scores[index])))
        order = [*unsettled, *strangers]
        # The first landmarks give the box that the network was trained on; a detector's own is only near it.
        first = look(boxes[order])
        usable = [row for row, points in enumerate(first) if not is_gone(points, image_size)]
        closer = np.array([tight_box(first[row]) for row in usable]).reshape(-1, 4)
        settled = []
        for row, box, points in zip(usable, closer, look(closer), strict=True):
            known = unsettled.get(order[row])
            if not is_gone(points, image_size) and self._has_room_for(points, known, now):
                settled.append(known or self._added(points, box, now, float(scores[order[row]])))
                settled[-1].see(points, box, now)
        for track in unsettled.values():
            track.hidden = track not in settled

    def _added(self, points: Array, box: Array, now: float, score: float) -> Track:
        """Welcome a new face."""
        track = Track(self._next_id, self._smoothing, points, box, now, score)
        self._next_id += 1
        self._tracks.append(track)
        return track

    def _matches(self, boxes: Array, now: float, doubted: Sequence[Track]) -> dict[int, Track]:
        """Which box is which face: first those in view, then the hidden ones; those not found are hidden if need be."""
        tracks = self.in_view
        known = [track.expected_box(now) if track in doubted else tight_box(track.landmarks) for track in tracks]
        matches = {column: tracks[row] for row, column in closest_pairs(_table(known), boxes, _GATE)}
        for track in tracks:
            if track not in matches.values():
                track.misses += 1
                given_up = track.misses >= _PATIENCE and now - track.vouched > self._memory
                track.hidden = track in doubted or given_up
        hidden = [track for track in self.hidden if now - track.seen <= self._memory]
        left = [index for index in range(len(boxes)) if index not in matches]
        known = [track.expected_box(now) for track in hidden]
        pairs = closest_pairs(_table(known), boxes[left], _HIDDEN_GATE)
        return matches | {left[column]: hidden[row] for row, column in pairs}

    def _has_room_for(self, points: Array, track: Track | None, now: float) -> bool:
        """Tell whether no other face lies there already, and not too many elsewhere."""
        others = [other for other in self.in_view if other is not track and other.seen == now]
        full = self._max_faces is not None and len(others) >= self._max_faces
        return not (full or any(are_twins(points, [other.landmarks for other in others])))

    def _part_twins(self, tracks: Sequence[Track]) -> None:
        """Of two that lie on one face, hide the one that strayed from its path to get there."""
        for one, other in combinations(tracks, 2):
            if not (one.hidden or other.hidden) and are_twins(one.landmarks, [other.landmarks])[0]:
                # At a tie the younger: a face found twice is no new face.
                max(one, other, key=lambda track: (track.surprise, track.id)).hidden = True


def _caught_up(look: Look, boxes: Array, landmarks: Array) -> Array:
    """Look again at the faces that ran from their boxes, changing `boxes` to where they were found.

    A crop that is off by a third of a face still shows where the face went, but not well.
    """
    closer = {row: tight_box(points) for row, points in enumerate(landmarks) if has_run(boxes[row], points)}
    if closer:
        rows = list(closer)
        boxes[rows] = list(closer.values())
        landmarks[rows] = look(boxes[rows])
    return landmarks


def _table(boxes: Sequence[Array]) -> Array:
    return np.array(boxes, np.float64).reshape(-1, 4)


def _rank(box: Array, score: float) -> tuple[float, float]:
    """Sort key: the surest first, then the largest."""
    return (-score if score == score else 0.0, -float((box[2:] - box[:2]).max()))

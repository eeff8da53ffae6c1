"""Upright crops: the roll of a face, and the box and turn of its next crop.

Landmark networks read faces that lean by up to about 30 degrees; of a face that lies or stands on its head they give
the landmarks of an upright face, at a plausible place. The crop is therefore turned by the face's roll. On 112 faces
of 300-W (Helen, AFW), turned by a known angle and cropped as they were, the bundled network's NME rose by 1 % at 20
degrees, 5 % at 30, 17 % at 45 and 50 % at 60; the roll that it found was still right to 5 degrees at 60 (90 % of the
faces), and meaningless from 90 on. So one prediction is enough to turn the next crop of a face that leans by up to 60
degrees, and `search_roll` tries all four sides where the landmarks of a face move with its crop. The key points of
YuNet and SCRFD are no help: beyond 60 and 110 degrees they too are those of an upright face. The bundled detector is
trained on faces of any roll; its points turn the first crop already.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.arrays import Float64Array
from pfld_edge_runtime.contract import LandmarkScheme
from pfld_edge_runtime.crop import turn_points
from pfld_edge_runtime.geometry.landmarks import as_complex, tight_box

Angle = TypeVar("Angle", float, Float64Array)

Points = NDArray[np.floating]
"""``(N, P, 3)`` landmarks in one photograph, x and y, and their confidence, which goes along with them."""

Predict = Callable[[Float64Array, Float64Array], Points]
"""From ``(N, 4)`` boxes and ``(N,)`` rolls in degrees to points."""

BoxesAt = Callable[[float], Float64Array]
"""From a roll in degrees to the ``(N, 4)`` boxes of faces that lean by it."""

_QUADRANTS = (0.0, 90.0, 180.0, 270.0)

UPRIGHT = 20.0
"""Degrees by which a face may lean in its crop; a face that leans more is cropped again, upright."""

_STILL_LEANS = 8.0
"""The same in a crop that was turned. Of a face turned by 90 degrees an upright crop may show 62: the next leans by 28.
On 153 held-out faces (WIDER FACE, WFLW, AFLW2000, 300-W) the mean error at 90 degrees fell from 0.0412 to 0.0402."""

_DOUBTFUL = 0.008
"""Doubt in landmarks (see `_doubts`) beyond which other rolls are tried: for 4 % of 387 held-out faces of WIDER FACE,
WFLW, AFLW2000 and 300-W, with a teacher's labels, upright, and for all that are found wrong at other angles. This and
the weighing in `_doubts` were chosen on such faces: on faces that nobody looked at the gain is smaller."""

_UNKNOWN = 0.16
"""Doubt of a network that tells no confidence: `_DOUBTFUL` is a movement of 5 % of the face then."""

_CROP_SHIFT = 0.06

_AGREEMENT = 0.06
"""Mean distance of landmarks, in faces, under which two crops found the same. The 612 faces have a mean error of 0.0438
of the eye distance upright and 0.0444 turned (0.0460 and 0.0450 by movement without confidence); with the best of all
crops, which nobody knows, 0.0367. What is left are faces under helmets, veils and hands, or seen from behind."""

LEAST_SHAPE = 0.4
"""Least length of the sum that gives the roll, in faces: 0.69 to 1.2 for the 1,537 faces of Helen and AFW."""


def face_roll(landmarks: NDArray[np.floating], scheme: LandmarkScheme | None) -> Float64Array:
    """Find by how much faces ``(N, P, 2)`` lean: the direction from eye to eye and from the eyes to the mouth.

    Gives ``(N,)`` degrees, -180 to 180, positive clockwise as `HeadPose.roll`; NaN for landmarks that are not finite or
    don't have the shape of a face, and for schemes without eyes and mouth, or None.
    """
    weights = None if scheme is None else roll_weights(scheme)
    if weights is None or len(landmarks) == 0:
        return np.full(len(landmarks), np.nan)
    across = as_complex(landmarks) @ weights
    sizes = (np.maximum.reduce(landmarks, 1) - np.minimum.reduce(landmarks, 1)).max(axis=1)
    return np.where(np.abs(across) >= LEAST_SHAPE * sizes, np.degrees(np.arctan2(across.imag, across.real)), np.nan)


@lru_cache(maxsize=64)
def roll_weights(scheme: LandmarkScheme) -> NDArray[np.complex128] | None:
    """Give the ``(P,)`` weights whose product with the landmarks, as complex numbers, points along the roll."""
    left, right, mouth = (
        np.array([any(name.startswith(part) for part in parts) for name in scheme.names], np.float64)
        for parts in (("left_eye",), ("right_eye",), ("outer_lip", "left_mouth", "right_mouth"))
    )
    if not (left.any() and right.any() and mouth.any()):
        return None
    left, right, mouth = left / left.sum(), right / right.sum(), mouth / mouth.sum()
    weights: NDArray[np.complex128] = right - left - 1j * (mouth - (left + right) / 2)
    return weights


def follow_roll(landmarks: NDArray[np.floating], scheme: LandmarkScheme | None, rolls: Float64Array) -> Float64Array:
    """Choose the ``(N,)`` rolls of faces' next crops: the last ones, as long as the faces stand upright in them.

    A scheme of None, where crops can't be turned, changes nothing.
    """
    return _next_rolls(face_roll(landmarks, scheme), rolls)


def detected_rolls(found: Float64Array, scheme: LandmarkScheme | None) -> Float64Array:
    """Choose the ``(N,)`` rolls of detected faces' first crops: the detector's for faces that lean, else 0."""
    return np.zeros(len(found)) if scheme is None else _next_rolls(found, np.zeros(len(found)))


def lean(roll: Angle, crop: Angle) -> Angle:
    """Degrees by which faces of a roll lean, either way, in a crop that is turned by another: 0 to 180, NaN of NaN."""
    return abs((roll - crop + 180) % 360 - 180)


def _next_rolls(found: Float64Array, rolls: Float64Array) -> Float64Array:
    # Comparisons with NaN are false: such faces keep their roll.
    return np.where(lean(found, rolls) > UPRIGHT, found, rolls)


def turned_box(landmarks: NDArray[np.floating], rolls: Float64Array) -> Float64Array:
    """Find the tight boxes of faces turned upright, at the place of the faces: what `crop_windows` takes with a roll.

    ``(N, 4)``: the `tight_box` of the ``(N, P, 2)`` landmarks turned back by their ``(N,)`` rolls, with the centre
    where it lies in the photograph, to a pixel. The same as `tight_box` where the roll is 0, with its errors.
    """
    if not rolls.any():
        return tight_box(landmarks)
    pivots = landmarks.mean(axis=1, dtype=np.float64)
    boxes = tight_box(np.where(rolls[:, None, None] == 0, landmarks, turn_points(landmarks, pivots, -rolls)))
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    # Whole pixels, like `tight_box`: float32 holds them exactly.
    moved = np.round(turn_points(centers[:, None], pivots, rolls)[:, 0] - centers)
    return boxes + np.where(rolls[:, None] == 0, 0, np.tile(moved, 2))


def refine_detected(
    predict: Predict, first: Points, rolls: Float64Array, boxes: BoxesAt, scheme: LandmarkScheme | None
) -> tuple[Points, Float64Array, Float64Array]:
    """Predict newly detected faces again, upright and in the tight box of the landmarks found first.

    The first landmarks give the tight box and the roll that landmark networks are trained on; a detector's box only
    approximates the one and seldom tells the other. Where landmarks are in doubt, `search_roll` follows; what it finds
    is taken where it is in less doubt. Faces that still lean in a turned crop are predicted once more.

    `first` are the points of crops that were turned by `rolls`; `boxes` gives the detector's boxes; a `scheme` of None
    means that crops can't be turned, and one without eyes and mouth tells no roll. Gives the new points, and the
    ``(N, 4)`` boxes and ``(N,)`` rolls of their crops.
    """
    rolls = follow_roll(first[..., :2], scheme, rolls)
    places = turned_box(first[..., :2], rolls)
    if scheme is None or roll_weights(scheme) is None:
        return predict(places, rolls), places, rolls
    both = predict(np.concatenate([places, shifted_boxes(places)]), np.concatenate([rolls, rolls]))
    points, shifted = np.split(both, 2)
    # Landmarks of a face on its head may not have the shape of a face, and so no roll: they are searched too.
    doubts = _doubts(first, points, shifted)
    rows = np.flatnonzero(doubts > _DOUBTFUL)  # false where a point is NaN
    if len(rows):
        *found, remaining = search_roll(predict, lambda roll: boxes(roll)[rows], scheme)
        better = remaining < doubts[rows]
        points[rows[better]], places[rows[better]], rolls[rows[better]] = (part[better] for part in found)
    own = face_roll(points[..., :2], scheme)
    rows = np.flatnonzero((rolls != 0) & (lean(own, rolls) > _STILL_LEANS))
    if len(rows):
        rolls[rows], places[rows] = own[rows], turned_box(points[rows, :, :2], own[rows])
        points[rows] = predict(places[rows], rolls[rows])
    return points, places, rolls


def search_roll(
    predict: Predict, boxes: BoxesAt, scheme: LandmarkScheme
) -> tuple[Points, Float64Array, Float64Array, Float64Array]:
    """Find faces of any roll: of four crops a quarter turn apart, that whose landmarks are in the least doubt.

    Two crops mostly arrive at the same landmarks, those of the face, so doubts count half where two agree. Arguments
    and results are those of `refine_detected`; after them come ``(N,)`` doubts, infinite where no crop shows the shape
    of a face.
    """
    first = np.concatenate([boxes(roll) for roll in _QUADRANTS])
    rolls = np.repeat(_QUADRANTS, len(first) // len(_QUADRANTS))
    points = predict(first, rolls)
    for _ in range(2):
        before, rolls = points, follow_roll(points[..., :2], scheme, rolls)
        places = turned_box(before[..., :2], rolls)
        points = predict(places, rolls)
    doubts = _doubts(before, points, predict(shifted_boxes(places), rolls))
    doubts[np.isnan(doubts + face_roll(points[..., :2], scheme))] = np.inf
    doubts = doubts.reshape(len(_QUADRANTS), -1)
    found = points[..., :2].reshape(*doubts.shape, -1, 2)
    apart = np.linalg.norm(found[:, None] - found, axis=4).mean(axis=3)
    agreeing = (apart < _AGREEMENT * np.ptp(found, axis=2).max(axis=2)).sum(axis=0)
    doubts /= np.maximum(agreeing, 1)
    faces = np.arange(doubts.shape[1])
    best = doubts.argmin(axis=0) * len(faces) + faces
    return points[best], places[best], rolls[best], doubts.ravel()[best]


def shifted_boxes(boxes: Float64Array) -> Float64Array:
    """Shift boxes ``(N, 4)`` by 6 % of their longer side each way, to see whether the landmarks move with the crop."""
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True, initial=0)
    shifted: Float64Array = boxes + _CROP_SHIFT * sides
    return shifted


def _doubts(before: Points, now: Points, shifted: Points) -> Float64Array:
    """``(N,)`` movements of landmarks, times the network's own doubt in them; NaN for a point, or where one is NaN.

    Landmarks of a face stay when their crop is refined, and when it is shifted; guesses move with it. The movement is
    the mean distance from the landmarks `before` plus that from the `shifted` crop's, in faces; the network's doubt is
    1 - confidence, on average over the points in both crops. Of landmarks in the wrong roll's crop the confidence of
    pfld-edge-m, which was shown turned faces, is 0.05 in the median, of those in the right one's 0.99.
    """
    landmarks = now[..., :2]
    sizes = np.ptp(landmarks, axis=1).max(axis=1)
    apart = [np.linalg.norm(other[..., :2] - landmarks, axis=2).mean(axis=1) for other in (before, shifted)]
    unsure = 1.01 - (now[..., 2] + shifted[..., 2]).mean(axis=1) / 2
    doubts: Float64Array = (apart[0] + apart[1]) / np.where(sizes > 0, sizes, np.nan)
    return doubts * np.where(np.isnan(unsure), _UNKNOWN, unsure)

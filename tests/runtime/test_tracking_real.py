"""`FaceTracker` with the bundled network on videos made of the bundled portraits."""

from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from pfld_edge_calib import portraits
from pfld_edge_calib.face import Face
from pfld_edge_calib.photo import read_photo
from pfld_edge_runtime import FaceLandmarker, FaceTracker
from pfld_edge_runtime.arrays import Float64Array, Uint8Array

FACE = 150.0
WIDTH, HEIGHT = 960, 540


@pytest.fixture(scope="module")
def landmarker() -> FaceLandmarker:
    return FaceLandmarker()


@pytest.fixture(scope="module")
def wall() -> Uint8Array:
    coarse = np.random.default_rng(0).integers(40, 200, (9, 16, 3)).astype(np.uint8)
    return np.asarray(cv2.GaussianBlur(np.kron(coarse, np.ones((60, 60, 1), np.uint8)), (0, 0), 15), np.uint8)


def put(frame: Uint8Array, face: Face, x: float) -> Uint8Array:
    """A copy with a portrait's head in it, its landmarks centred at x and half the height."""
    assert face.landmarks is not None
    low, high = face.landmarks.min(axis=0), face.landmarks.max(axis=0)
    scale = FACE / float((high - low).max())
    shift = np.array([x, HEIGHT / 2]) - scale * (low + high) / 2
    head = cv2.warpAffine(read_photo(face.image), np.c_[np.eye(2) * scale, shift], (WIDTH, HEIGHT))
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(mask, (int(x), HEIGHT // 2 - 15), (108, 120), 0, 0, 360, 255, -1)
    return np.where(mask[:, :, None] > 0, head, frame).astype(np.uint8)


class Boxes:
    """A detector that is told where the faces are."""

    def __init__(self) -> None:
        self.centers: list[float] = []
        self.calls = 0

    def __call__(self, _: object) -> Float64Array:
        self.calls += 1
        half, y = FACE / 2, HEIGHT / 2
        return np.array([[x - half, y - half, x + half, y + half] for x in self.centers]).reshape(-1, 4)


def test_a_face_that_vanishes_is_noticed_before_the_detector_is_due(
    landmarker: FaceLandmarker, wall: Uint8Array
) -> None:
    boxes, (face, other) = Boxes(), portraits()
    tracker = FaceTracker(boxes, landmarker, every=1000)
    boxes.centers = [250, 700]
    both = put(put(wall, face, 250), other, 700)
    for _ in range(8):
        assert len(tracker(both, color="bgr")) == 2
    assert boxes.calls == 1
    boxes.centers = [700]
    alone = put(wall, other, 700)
    counts = [len(tracker(alone, color="bgr")) for _ in range(6)]
    assert counts[-1] == 1


def moving(speed: float) -> Iterator[float]:
    return (480 + 300 * np.sin(2 * np.pi * step * speed) for step in range(60))


def test_a_moving_face_is_followed_without_the_detector(landmarker: FaceLandmarker, wall: Uint8Array) -> None:
    boxes, (face, _) = Boxes(), portraits()
    tracker = FaceTracker(boxes, landmarker, every=1000)
    for x in moving(1 / 80):  # at most 0.16 faces a frame
        boxes.centers = [x]
        faces = tracker(put(wall, face, x), color="bgr")
        assert faces.ids.tolist() == [0]
        center = (faces.landmarks[0].min(axis=0) + faces.landmarks[0].max(axis=0)) / 2
        assert np.abs(center - (x, HEIGHT / 2)).max() < 0.1 * FACE
    assert boxes.calls <= 3


def test_two_portraits_that_cross_keep_their_ids(landmarker: FaceLandmarker, wall: Uint8Array) -> None:
    boxes, (face, other) = Boxes(), portraits()
    tracker = FaceTracker(boxes, landmarker)
    for step in range(80):
        front, back = 160 + 8.0 * step, 800 - 8.0 * step
        frame = put(put(wall, other, back), face, front)
        boxes.centers = [front] if abs(front - back) < 0.6 * FACE else [front, back]
        faces = tracker(frame, color="bgr")
    centers = dict(zip(faces.ids.tolist(), faces.landmarks.mean(axis=1)[:, 0], strict=True))
    assert sorted(centers) == [0, 1]
    assert abs(centers[0] - front) < 30
    assert abs(centers[1] - back) < 30


@pytest.mark.parametrize("index", [0, 1])
def test_a_still_face_jitters_less_than_a_sixth_of_its_raw_landmarks(
    landmarker: FaceLandmarker, wall: Uint8Array, index: int
) -> None:
    face, rng = portraits()[index], np.random.default_rng(0)
    boxes, clean = Boxes(), put(wall, face, 480)
    boxes.centers = [480]
    tracker, raw, smooth = FaceTracker(boxes, landmarker), [], []
    for _ in range(90):
        frame = np.clip(clean + rng.normal(0, 25, clean.shape).astype(np.float32), 0, 255).astype(np.uint8)
        raw.append(landmarker(frame, boxes(frame), "bgr")[0])
        smooth.append(tracker(frame, color="bgr").landmarks[0])
    jitter = [np.sqrt(np.var(track[30:], axis=0).sum(-1)).mean() for track in (raw, smooth)]
    assert jitter[1] < jitter[0] * 0.3 / 2

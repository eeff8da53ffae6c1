"""`FaceTracker` on simulated faces: ids, losses, cuts, timestamps and detector calls; matching of boxes."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from pfld_edge_calib import portraits, read_photo
from pfld_edge_runtime import (
    BoxError,
    Faces,
    FaceTracker,
    ImageError,
    OneEuro,
    PfldEdgeError,
    Smoothing,
    TimestampError,
    TrackerError,
    tight_box,
)
from pfld_edge_runtime.arrays import Float32Array, Float64Array, Uint8Array
from pfld_edge_runtime.detection.detector import Detections
from pfld_edge_runtime.geometry.landmarks import Shape
from pfld_edge_runtime.tracking.track_manager import TrackManager, are_duplicates, match_boxes

SIZE = 60.0


BLANK = np.full((480, 640, 3), 90, np.uint8)


_ANGLES = np.arange(98) / 98 * 2 * np.pi


OVAL = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1) * SIZE / 2


class World:
    """Faces at known centres, the first in front; a detector and a landmarker that see them as the real ones do.

    The landmarker answers for every box: with the face whose centre is nearest, if it is in the crop, or else with a
    face that fills the crop, as a network does on a wall.
    """

    def __init__(self) -> None:
        self.faces: list[tuple[float, float]] = []
        self.blind: list[int] = []
        self.detections = 0
        self.looks = 0
        self.rng = np.random.default_rng(0)

    def detect(self, _: NDArray[np.generic]) -> Float64Array:
        self.detections += 1
        seen = [face for index, face in enumerate(self.faces) if index not in self.blind and not self.covered(index)]
        half = SIZE / 2
        return np.array([[x - half, y - half, x + half, y + half] for x, y in seen]).reshape(-1, 4)

    def covered(self, index: int) -> bool:
        return any(math.dist(front, self.faces[index]) < 0.5 * SIZE for front in self.faces[:index])

    def landmarks(self, _: NDArray[np.generic], boxes: Any, color: str = "rgb") -> Float32Array:
        assert color == "rgb"
        found = []
        for box in np.asarray(boxes, np.float64):
            self.looks += 1
            center, side = (box[:2] + box[2:]) / 2, float((box[2:] - box[:2]).max())
            shown = [face for index, face in enumerate(self.faces) if not self.covered(index)]
            near = min(shown, key=lambda face: math.dist(face, center), default=(math.inf, math.inf))
            if math.dist(near, center) < 0.4 * side:
                found.append(OVAL + near + self.rng.normal(0, 0.2, (98, 2)))
            else:
                found.append(OVAL * side / SIZE + center)
        return np.array(found, np.float32)

    def tracker(self, **settings: Any) -> FaceTracker:
        return FaceTracker(self.detect, self.landmarks, **settings)


@pytest.fixture
def world() -> World:
    return World()


def named(faces: Faces, *centers: tuple[float, float]) -> list[int]:
    """The id of the face at each centre."""
    found = faces.landmarks.mean(axis=1)
    assert len(found) == len(centers), f"{len(found)} faces, expected {len(centers)}"
    ids = []
    for center in centers:
        distance = np.linalg.norm(found - center, axis=1)
        assert distance.min() < 0.2 * SIZE, f"no face at {center}: {found.tolist()}"
        ids.append(int(faces.ids[distance.argmin()]))
    return ids


def test_faces_come_with_ids_boxes_and_the_detectors_scores(world: World) -> None:
    world.faces = [(100, 100), (300, 200)]
    scored = lambda image: np.c_[world.detect(image), [0.9, 0.8]]  # noqa: E731
    faces = FaceTracker(scored, world.landmarks)(BLANK)
    assert named(faces, *world.faces) == [0, 1]
    assert (faces.landmarks.dtype, faces.boxes.dtype, faces.ids.dtype) == (np.float32, np.float32, np.int64)
    np.testing.assert_allclose(faces.boxes[0], [70, 70, 130, 130], atol=2)
    np.testing.assert_allclose(faces.scores, [0.9, 0.8])
    assert np.isnan(faces.confidences).all()
    assert faces.image_size == (640, 480)


@pytest.mark.parametrize(("max_faces", "runs"), [(None, 4), (3, 4), (2, 1)])
def test_the_detector_runs_every_k_frames_while_all_is_well(world: World, max_faces: int | None, runs: int) -> None:
    world.faces = [(100, 100), (300, 200)]
    tracker = world.tracker(every=10, max_faces=max_faces)
    for step in range(31):
        world.faces = [(100 + 3.0 * step, 100), (300, 200)]
        assert named(tracker(BLANK), *world.faces) == [0, 1]
    assert world.detections == runs  # frames 0, 10, 20, 30; 0, 40 where no face could be added


def test_a_second_look_is_paid_once_in_some_frames(world: World) -> None:
    world.faces = [(100, 100)]
    tracker = world.tracker(every=1000, check_every=5)
    tracker(BLANK)
    world.looks = 0
    for _ in range(50):
        tracker(BLANK)
    assert world.looks == 60


@pytest.mark.parametrize(("confidence", "looks"), [(0.76, 1), (0.74, 2), (math.nan, 2)])
def test_only_where_the_network_is_unsure_a_second_look_is_paid(confidence: float, looks: int) -> None:
    calls: list[int] = []

    def predict(boxes: Float64Array, _: Float64Array) -> Float64Array:
        calls.append(len(boxes))
        return np.c_[OVAL + 100, np.full(98, confidence)][None].repeat(len(boxes), axis=0)

    manager = TrackManager(Smoothing(), 1.0, None, None)
    found = Detections.find(lambda _: [[70, 70, 130, 130]], BLANK, "rgb")
    manager.associate(found, None, predict, 0.0, (640, 480), [])
    calls.clear()
    manager.update(predict, 1 / 30, (640, 480), lambda _: True, lambda _: None)
    assert calls == [1] * looks
    assert manager.is_certain is (looks == 1)


def test_the_detector_runs_in_every_16th_interval_where_the_network_is_certain_of_all_faces() -> None:
    face, runs = portraits()[0], []
    photo, box = read_photo(face.image), tight_box(np.asarray(face.landmarks))
    tracker = FaceTracker(lambda _: (runs.append(1), box)[1], every=1, max_faces=1)
    counts = []
    for _ in range(18):
        assert len(tracker(photo, color="bgr")) == 1
        counts.append(len(runs))
    assert counts == [1] * 16 + [2, 2]


def test_a_second_look_is_saved_while_the_face_looks_the_same(world: World) -> None:
    world.faces = [(100, 100)]
    tracker, pictures = world.tracker(every=1000, check_every=5), [scene(3), np.roll(scene(3), 30, axis=1)]
    tracker(pictures[0])
    world.looks = 0
    for step in range(1, 41):
        tracker(pictures[step > 20])
    assert world.looks == 42  # frame 5, and 25, where the picture has changed


def test_with_no_faces_the_detector_searches_in_steps(world: World) -> None:
    tracker = world.tracker(search_every=3)
    for _ in range(10):
        faces = tracker(BLANK)
        assert len(faces) == 0
        assert (faces.landmarks.shape, faces.boxes.shape, faces.ids.shape) == ((0, 98, 2), (0, 4), (0,))
    assert world.detections == 4
    assert world.looks == 0


def test_a_face_that_enters_gets_a_new_id(world: World) -> None:
    world.faces = [(100, 100)]
    tracker = world.tracker(every=5)
    tracker(BLANK)
    world.faces.append((400, 300))
    for _ in range(5):
        faces = tracker(BLANK)
    assert named(faces, *world.faces) == [0, 1]


@pytest.mark.parametrize("speed", [2.0, 6.0, 12.0])
def test_two_faces_that_cross_keep_their_ids(world: World, speed: float) -> None:
    tracker = world.tracker()
    for step in range(int(440 / speed)):
        world.faces = [(100 + speed * step, 200), (540 - speed * step, 210)]
        faces = tracker(BLANK)
    assert named(faces, *world.faces) == [0, 1]


def test_the_front_face_keeps_its_id_while_it_hides_the_other(world: World) -> None:
    tracker = world.tracker()
    for step in range(40):
        world.faces = [(100 + 6.0 * step, 200), (340, 200)]
        faces = tracker(BLANK)
    assert named(faces, world.faces[0]) == [0]


@pytest.mark.parametrize("hidden", [2, 8, 25])
def test_a_face_keeps_its_id_through_a_short_occlusion(world: World, hidden: int) -> None:
    tracker = world.tracker()
    for step in range(60 + hidden):
        center = (100 + 3.0 * step, 200)
        world.faces = [] if 30 <= step < 30 + hidden else [center]
        faces = tracker(BLANK)
    assert named(faces, center) == [0]


def test_a_face_that_comes_back_after_memory_is_a_new_one(world: World) -> None:
    tracker = world.tracker(memory=0.5)
    for step in range(80):
        world.faces = [] if 20 <= step < 60 else [(200, 200)]
        faces = tracker(BLANK)
    assert named(faces, (200, 200)) == [1]


def test_a_face_that_is_gone_is_noticed_though_the_landmarker_goes_on_answering(world: World) -> None:
    world.faces = [(200, 200), (400, 300)]
    tracker = world.tracker(every=1000, check_every=5)
    for _ in range(10):
        tracker(BLANK)
    world.faces = [(400, 300)]
    counts = [len(tracker(BLANK)) for _ in range(5)]
    assert counts[-1] == 1
    assert world.detections == 3  # at the start, when the second look told a wall, and in search of the lost face


def test_a_face_that_leaves_the_frame_is_dropped(world: World) -> None:
    tracker = world.tracker()
    counts = []
    for step in range(60):
        world.faces = [(500 + 5.0 * step, 200)]
        counts.append(len(tracker(BLANK)))
    assert counts[0] == 1
    assert counts[-1] == 0


def test_a_face_that_the_detector_misses_now_and_then_stays(world: World) -> None:
    world.faces = [(200, 200)]
    tracker = world.tracker(every=10)
    for step in range(60):
        world.blind = [0] if 5 < step < 25 else []
        assert named(tracker(BLANK), (200, 200)) == [0]


@pytest.mark.parametrize("settings", [{"every": 10}, {"every": 3, "max_faces": 1}])
def test_a_face_that_the_detector_never_finds_again_is_given_up(world: World, settings: dict[str, int]) -> None:
    world.faces = [(200, 200)]
    tracker = world.tracker(**settings, memory=1.0)
    counts = []
    for step in range(60):
        world.blind = [0] if step > 5 else []
        counts.append(len(tracker(BLANK)))
    assert counts[29] == 1  # missed at frames 10 and 20; at 12, 15, 18 and so on, within the memory
    assert counts[-1] == 0


def test_a_face_found_twice_is_one_face(world: World) -> None:
    world.faces = [(200, 200)]
    twice = lambda image: np.concatenate([world.detect(image), world.detect(image) + 5])  # noqa: E731
    tracker = FaceTracker(twice, world.landmarks, every=5)
    for _ in range(20):
        assert named(tracker(BLANK), (200, 200)) == [0]


def test_the_surest_faces_are_followed_where_not_all_may_be(world: World) -> None:
    world.faces = [(100, 100), (300, 100), (500, 100)]
    scored = lambda image: np.c_[world.detect(image), [0.5, 0.9, 0.7]]  # noqa: E731
    tracker = FaceTracker(scored, world.landmarks, max_faces=2, every=5)
    for _ in range(12):
        assert named(tracker(BLANK), (300, 100), (500, 100)) == [0, 1]


def scene(seed: int, shape: tuple[int, int] = (480, 640)) -> Uint8Array:
    """A picture of coarse blocks."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 10, 1))
    return np.kron(coarse, np.ones((shape[0] // 8, shape[1] // 10, 3))).astype(np.uint8)


def test_a_scene_cut_gives_new_ids(world: World) -> None:
    world.faces = [(200, 200)]
    tracker = world.tracker()
    ids = [int(tracker(scene(0 if step < 10 else 1)).ids[0]) for step in range(20)]
    assert ids == [0] * 10 + [1] * 10


def test_a_cut_through_black_is_a_cut(world: World) -> None:
    world.faces = [(200, 200)]
    tracker = world.tracker()
    shots = [scene(0)] * 5 + [np.zeros_like(scene(0))] * 3 + [scene(1)] * 5
    assert [int(tracker(shot).ids[0]) for shot in shots] == [0] * 8 + [1] * 5


@pytest.mark.parametrize("name", ["noise", "flash", "dark", "pan", "float"])
def test_noise_light_and_pans_are_no_cuts(world: World, name: str) -> None:
    world.faces = [(200, 200)]
    tracker, rng = world.tracker(), np.random.default_rng(0)
    changed = {
        "noise": lambda picture, _: np.clip(picture + rng.normal(0, 40, picture.shape), 0, 255).astype(np.uint8),
        "flash": lambda picture, step: (255 - (255 - picture) * (0.4 if step % 3 == 0 else 1)).astype(np.uint8),
        "dark": lambda picture, step: (picture * (0.3 if step % 3 == 0 else 1)).astype(np.uint8),
        "pan": lambda picture, step: np.roll(picture, 12 * step, axis=1),
        "float": lambda picture, _: picture.astype(np.float32) / 255,
    }[name]
    assert {int(tracker(changed(scene(0), step)).ids[0]) for step in range(20)} == {0}


def test_frames_are_not_written_to_and_may_have_any_strides(world: World) -> None:
    world.faces = [(200, 200)]
    tracker, frame = world.tracker(), scene(0)[::-1, :, ::-1]
    frame.flags.writeable = False
    assert named(tracker(frame), (200, 200)) == named(tracker(frame), (200, 200)) == [0]


def test_a_frame_of_another_size_begins_a_new_scene(world: World) -> None:
    world.faces = [(100, 100)]
    tracker = world.tracker()
    shapes = [(480, 640)] * 3 + [(240, 320)] * 3 + [(1, 1)] * 2 + [(480, 640)]
    ids = [tracker(np.zeros((*shape, 3), np.uint8)).ids.tolist() for shape in shapes]
    assert ids == [[0]] * 3 + [[1]] * 3 + [[]] * 2 + [[2]]


def test_reset_forgets_faces_and_time_but_gives_no_id_twice(world: World) -> None:
    world.faces = [(200, 200)]
    tracker = world.tracker()
    assert tracker(BLANK, 100.0).ids.tolist() == [0]
    tracker.reset()
    assert tracker(BLANK, 0.0).ids.tolist() == [1]


@pytest.mark.parametrize("timestamp", [0.9, 1.0, math.nan, math.inf, "soon"])
def test_time_that_does_not_run_forwards_is_refused_and_the_tracker_goes_on(world: World, timestamp: Any) -> None:
    world.faces = [(200, 200)]
    tracker = world.tracker()
    tracker(BLANK, 1.0)
    with pytest.raises(TimestampError, match="timestamp") as caught:
        tracker(BLANK, timestamp)
    assert isinstance(caught.value, PfldEdgeError)
    assert "\n" not in str(caught.value)
    assert tracker(BLANK, 1.1).ids.tolist() == [0]


def test_irregular_intervals_are_followed(world: World) -> None:
    tracker, rng, now = world.tracker(), np.random.default_rng(0), 0.0
    for _ in range(100):
        now += float(rng.choice([0.005, 0.033, 0.15]))
        world.faces = [(100 + 60 * now, 200)]
        assert named(tracker(BLANK, now), *world.faces) == [0]


def test_after_a_long_gap_a_face_that_stayed_keeps_its_id(world: World) -> None:
    world.faces = [(200, 200)]
    tracker = world.tracker()
    assert [tracker(BLANK, now).ids.tolist() for now in (0.0, 0.03, 20.0)] == [[0]] * 3


def test_landmarks_are_smoothed_unless_asked_otherwise(world: World) -> None:
    world.faces = [(200.3, 200.6)]
    deviations = []
    for smoothing in ({}, {"smoothing": OneEuro(1.0)}, {"smoothing": None}):
        world.rng = np.random.default_rng(0)
        tracker = world.tracker(**smoothing)
        found = np.array([tracker(BLANK).landmarks[0] for _ in range(90)])[30:]
        deviations.append(found.std(axis=0).mean())
    assert deviations[0] < 0.3 * deviations[2]
    assert deviations[1] < 0.6 * deviations[2]
    assert deviations[2] == pytest.approx(0.2, rel=0.1)  # the landmarker's own


def test_trackers_of_several_threads_do_not_disturb_each_other() -> None:
    def run(offset: int) -> list[list[float]]:
        # A tracker is one video's and is called by one thread.
        own = World()
        own.rng = np.random.default_rng(offset)
        tracker = own.tracker()
        rows = []
        for step in range(30):
            own.faces = [(100.0 + offset + step, 200.0)]
            rows.append(tracker(BLANK).landmarks.mean(axis=(0, 1)).tolist())
        return rows

    expected = [run(offset) for offset in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(4))) == expected


@pytest.mark.parametrize(
    "settings",
    [{"every": 0}, {"search_every": 0}, {"check_every": -1}, {"max_faces": 0}, {"memory": -1.0}, {"fps": 0.0}],
)
def test_settings_out_of_range_are_refused(world: World, settings: dict[str, Any]) -> None:
    with pytest.raises(TrackerError, match=next(iter(settings))):
        world.tracker(**settings)


def answer(shape: Sequence[int], value: float = 0.0) -> Float32Array:
    return np.full(shape, value, np.float32)


def test_what_cannot_be_used_is_refused(world: World) -> None:
    world.faces = [(200, 200)]
    with pytest.raises(ImageError):
        world.tracker()(BLANK[:0])
    with pytest.raises(ImageError, match="'rgb' or 'bgr'"):
        world.tracker()(BLANK, color="grb")
    with pytest.raises(BoxError):
        FaceTracker(lambda _: "boxes", world.landmarks)(BLANK)
    with pytest.raises(TrackerError, match=r"landmarker gave \(1, 68, 2\)"):
        FaceTracker(world.detect, lambda *_: answer((1, 68, 2)))(BLANK)


@pytest.mark.parametrize("value", [0.0, math.nan, 1e8])
def test_landmarks_that_are_no_face_are_no_face(world: World, value: float) -> None:
    world.faces = [(200, 200)]
    tracker = FaceTracker(world.detect, lambda _, boxes, __: answer((len(boxes), 98, 2), value))
    assert [len(tracker(BLANK)) for _ in range(5)] == [0] * 5


def test_a_face_whose_landmarks_break_down_is_hidden_and_returns(world: World) -> None:
    world.faces = [(200, 200)]
    broken = [False]

    def landmarks(image: NDArray[np.generic], boxes: Any, color: str = "rgb") -> Float32Array:
        return answer((len(boxes), 98, 2), math.nan) if broken[0] else world.landmarks(image, boxes, color)

    tracker = FaceTracker(world.detect, landmarks)
    ids = []
    for step in range(30):
        broken[0] = 10 <= step < 15
        ids.append(tracker(BLANK).ids.tolist())
    assert ids[9] == ids[29] == [0]
    assert ids[12] == []


def boxes(centers: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([centers - sizes[:, None] / 2, centers + sizes[:, None] / 2], axis=1)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 8), gone=st.integers(0, 3), scale=st.floats(0.01, 100))
def test_pairs_are_the_best_assignment_where_heads_stand_apart(seed: int, count: int, gone: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    # Heads of size 1 stand 1.5 apart and moved by up to 0.35 each way.
    centers = 1.5 * rng.permutation(np.stack(np.meshgrid(range(3), range(3)), axis=-1).reshape(-1, 2))[:count]
    known = boxes(centers, np.ones(count)) * scale
    order = rng.permutation(count)[: max(0, count - gone)]
    moved = centers[order] + rng.uniform(-0.35, 0.35, (len(order), 2))
    found = boxes(moved, np.ones(len(order))) * scale
    distance = np.linalg.norm(centers[:, None] - moved[None], axis=-1)
    expected = {(int(row), int(column)) for row, column in zip(*linear_sum_assignment(distance), strict=True)}
    assert set(match_boxes(known, found, gate=0.7)) == expected


def test_boxes_beyond_the_gate_are_no_pair() -> None:
    here, there = np.array([[0.0, 0, 10, 10]]), np.array([[8.0, 0, 18, 10]])
    assert match_boxes(here, there, gate=0.7) == []
    assert match_boxes(here, there, gate=0.9) == [(0, 0)]
    assert match_boxes(here, np.array([[-5.0, -5, 15, 15]]), gate=0.6) == []  # the same place, twice the size


def test_nothing_pairs_with_nothing() -> None:
    assert match_boxes(np.zeros((0, 4)), np.array([[0.0, 0, 1, 1]]), gate=1.0) == []


def test_duplicates_lie_on_one_face() -> None:
    shape = np.random.default_rng(0).uniform(0, 100, (98, 2))
    others = [Shape(other) for other in (shape + 10, shape + 50, shape * 2)]
    assert [are_duplicates(Shape(shape), other) for other in others] == [True, False, False]

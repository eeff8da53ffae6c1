"""Crops that follow the roll: turned windows against cv2, and faces that lie or stand on their heads."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pfld_edge_calib import portraits, read_photo
from pfld_edge_calib.datasets.open_faces import open_faces
from pfld_edge_runtime import (
    FIVE_POINTS,
    IBUG_68,
    WFLW_98,
    BoxError,
    CropWindows,
    FaceAnalyzer,
    FaceLandmarker,
    Faces,
    FaceTracker,
    crop_faces,
    crop_windows,
    head_pose,
    landmarks_68,
    predict_with_mirror,
    tight_box,
)
from pfld_edge_runtime.arrays import Float64Array, Uint8Array
from pfld_edge_runtime.crop import turn_points
from pfld_edge_runtime.geometry.roll import face_roll, refine_detected, turned_box


def turned(photo: Uint8Array, landmarks: NDArray[np.floating], angle: float) -> tuple[Uint8Array, Float64Array]:
    """A face turned clockwise about the centre of its landmarks, in a square of three times their size, by cv2."""
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    side = int(3 * (high - low).max())
    center = (low + high) / 2
    matrix = cv2.getRotationMatrix2D((float(center[0]) - 0.5, float(center[1]) - 0.5), -angle, 1)
    matrix[:, 2] += side / 2 - center
    # cv2's integers are centres of pixels, landmarks' are their corners.
    return cv2.warpAffine(photo, matrix, (side, side)), (landmarks - 0.5) @ matrix[:, :2].T + matrix[:, 2] + 0.5


def window(x: int, y: int, side: int, roll: float) -> CropWindows:
    return CropWindows(np.array([[x, y]]), np.array([side]), np.array([roll]))


@given(
    st.integers(-60, 60), st.integers(-60, 60), st.integers(1, 200), st.floats(-360, 360), st.sampled_from([16, 112])
)
def test_a_turned_crop_is_that_of_cv2(x: int, y: int, side: int, roll: float, size: int) -> None:
    assume(roll)  # a window that is not turned repeats its edges, as cv2.resize does
    coarse = np.random.default_rng(1).integers(0, 256, (6, 8, 3), np.uint8)
    photo = cv2.resize(coarse, (80, 60), interpolation=cv2.INTER_CUBIC)
    center = (x + side / 2 - 0.5, y + side / 2 - 0.5)
    matrix = cv2.getRotationMatrix2D(center, roll, size / side)
    matrix[:, 2] += (size - 1) / 2 - np.array(center)
    expected = cv2.warpAffine(photo, matrix, (size, size))
    found = crop_faces(photo, window(x, y, side, roll), size)[0]
    # cv2.warpAffine rounds positions to 1/32 pixel, so a pixel of the border may change by 1/32 of white each way.
    assert np.abs(found.astype(int) - expected).max() <= 255 / 32 * 2 + 1


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_quarter_turn_is_that_of_numpy(photo: Uint8Array, quarters: int) -> None:
    upright = crop_faces(photo, window(10, 5, 48, 0), 48)[0]
    found = crop_faces(photo, window(10, 5, 48, 90 * quarters), 48, swap_channels=True)[0]
    np.testing.assert_array_equal(found[:, :, ::-1], np.rot90(upright, quarters))


def test_a_roll_of_zero_changes_no_bit(photo: Uint8Array) -> None:
    boxes = [[10, 5, 50, 60], [-9, -20, 70, 33]]
    plain, rolled = crop_windows(boxes, 1.2), crop_windows(boxes, 1.2, [0, 40])
    expected = crop_faces(photo, plain, 112)
    np.testing.assert_array_equal(crop_faces(photo, rolled, 112)[0], expected[0])
    assert (crop_faces(photo, rolled, 112)[1] != expected[1]).any()
    assert crop_windows(boxes, 1.2, 0.0).rolls is None


@given(st.lists(st.floats(-1e3, 1e3), min_size=20, max_size=20), st.integers(1, 900), st.floats(-400, 400))
def test_turned_windows_map_there_and_back(values: list[float], side: int, roll: float) -> None:
    points, windows = np.array(values, np.float32).reshape(1, 10, 2), window(-7, 30, side, roll)
    np.testing.assert_allclose(windows.to_image(windows.to_crop(points)), points, rtol=1e-4, atol=2e-2)
    corners = windows.to_image(np.array([[[0.5, 0.5], [1, 0.5]]], np.float32))[0]
    np.testing.assert_allclose(corners[0], [side / 2 - 7, side / 2 + 30], rtol=1e-5)
    # Clockwise in the photograph, whose y points down.
    along = [np.cos(np.radians(roll)), np.sin(np.radians(roll))]
    np.testing.assert_allclose(corners[1] - corners[0], np.multiply(along, side / 2), atol=1e-2)


@pytest.mark.parametrize("roll", [[1, 2], np.nan, [np.inf], "left", [[3]], None])
def test_rolls_that_cannot_be_used_are_refused(roll: Any) -> None:
    if roll is None:
        assert crop_windows([[0, 0, 9, 9]], 1.2, roll).rolls is None
        return
    if np.shape(roll) == (1, 1):
        roll = np.zeros((2, 1, 1))
    with pytest.raises(BoxError, match="roll must be"):
        crop_windows([[0, 0, 9, 9]], 1.2, roll)


@pytest.mark.parametrize("angle", [-170.0, -95.0, -30.0, 0.0, 12.0, 60.0, 91.0, 135.0])
def test_the_roll_is_the_angle_by_which_a_face_was_turned(angle: float) -> None:
    for face in portraits():
        assert face.landmarks is not None
        _, points = turned(np.zeros((9, 9, 3), np.uint8), face.landmarks, angle)
        own = face_roll(face.landmarks[None], WFLW_98)[0]
        for found in (face_roll(points[None], WFLW_98), face_roll(landmarks_68(points), IBUG_68)):
            assert abs((found[0] - own - angle + 180) % 360 - 180) < 2
        pose = head_pose(points[None], (2000, 2000)).roll[0]
        assert abs((face_roll(points[None], WFLW_98)[0] - pose + 180) % 360 - 180) < 15


def test_landmarks_without_the_shape_of_a_face_have_no_roll() -> None:
    noise = np.random.default_rng(0).normal(0, 9, (20, 98, 2))
    assert np.isnan(face_roll(noise, WFLW_98)).all()
    assert np.isnan(face_roll(np.full((2, 98, 2), np.nan), WFLW_98)).all()
    assert np.isnan(face_roll(np.zeros((1, 5, 2)), None)).all()
    points = np.array([[[0, 0], [4, 0], [2, 2], [1, 4], [3, 4]]])
    np.testing.assert_allclose(face_roll(points, FIVE_POINTS), [0], atol=1e-9)


def test_the_box_of_a_turned_face_is_that_of_the_upright_one() -> None:
    upright = np.random.default_rng(0).uniform(100, 300, (1, 98, 2))
    _, points = turned(np.zeros((9, 9, 3), np.uint8), upright[0], 70)
    box, expected = turned_box(points[None], np.array([70.0]))[0], tight_box(upright)[0]
    np.testing.assert_allclose(box[2:] - box[:2], expected[2:] - expected[:2], atol=1.01)
    np.testing.assert_allclose(box[2:] + box[:2], 2 * np.full(2, int(3 * np.ptp(upright[0], axis=0).max()) / 2), atol=4)
    np.testing.assert_array_equal(turned_box(upright, np.zeros(1)), tight_box(upright))


@given(st.floats(35, 80), st.sampled_from([-1, 1]))
def test_a_face_whose_crops_show_only_a_part_of_its_roll_is_turned_upright(size: float, sign: int) -> None:
    face, angle = portraits()[0].landmarks, sign * size
    assert face is not None
    _, truth = turned(np.zeros((9, 9, 3), np.uint8), face, angle)

    def predict(_: Float64Array, rolls: Float64Array) -> Float64Array:
        leaning = angle - rolls
        shown = np.where(np.abs(leaning) > 15, 0.7 * leaning, leaning) + rolls
        points = turn_points(np.repeat(truth[None], len(rolls), 0), truth.mean(axis=0)[None], shown - angle)
        return np.concatenate([points, np.ones((len(rolls), 98, 1))], axis=2)

    def boxes(_: float) -> Float64Array:
        return tight_box(truth)[None]

    points, places, rolls = refine_detected(predict, predict(boxes(0), np.zeros(1)), np.zeros(1), boxes, WFLW_98)
    np.testing.assert_allclose(points[0, :, :2], truth, atol=1e-6)
    assert abs(rolls[0] - face_roll(truth[None], WFLW_98)[0]) < 15
    assert np.abs(places - turned_box(truth[None], rolls)).max() < 0.15 * np.ptp(truth, axis=0).max()


def analyzed(frame: Uint8Array, points: NDArray[np.floating], landmarker: FaceLandmarker) -> Faces:
    box = tight_box(points)
    return FaceAnalyzer(lambda _: box, landmarker)(frame, "bgr")


@pytest.mark.parametrize("angle", [45, 75, 90, 120, 150, 180, 200, 270, 310])
def test_portraits_turned_by_any_angle_keep_their_landmarks(angle: float) -> None:
    landmarker = FaceLandmarker()
    for face in portraits():
        assert face.landmarks is not None
        photo, errors = read_photo(face.image), []
        for turn in (0, angle):
            frame, points = turned(photo, face.landmarks, turn)
            faces = analyzed(frame, points, landmarker)
            eyes = np.linalg.norm(points[60] - points[72])
            errors.append(np.linalg.norm(faces.landmarks[0] - points, axis=1).mean() / eyes)
            again = landmarker(frame, faces.boxes, "bgr", roll=faces.rolls)
            plain, mirrored = predict_with_mirror(landmarker, frame, faces.boxes, "bgr", faces.rolls)
            for found in (again, plain):
                np.testing.assert_allclose(found, faces.landmarks, atol=1e-3)
            assert np.linalg.norm(mirrored - plain, axis=2).mean() < 0.1 * eyes
        assert abs(errors[1] - errors[0]) < 0.03


def test_a_face_that_turns_over_is_followed_without_the_detector() -> None:
    face = portraits()[0]
    assert face.landmarks is not None
    photo, calls = read_photo(face.image), []
    _, upright = turned(photo, face.landmarks, 0)

    def detect(_: NDArray[np.generic]) -> Float64Array:
        calls.append(1)
        return tight_box(upright)

    tracker = FaceTracker(detect, every=1000)
    for angle in range(0, 360, 6):
        frame, points = turned(photo, face.landmarks, angle)
        faces = tracker(frame, color="bgr")
        assert faces.ids.tolist() == [0]
        error = np.linalg.norm(faces.landmarks[0] - points, axis=1).mean()
        assert error < 0.1 * np.linalg.norm(points[60] - points[72])
        assert abs((faces.rolls[0] - angle + 180) % 360 - 180) < 30
    assert len(calls) == 1


def test_wflw_faces_turned_by_any_angle_keep_their_nme(shared: Path) -> None:
    faces = open_faces(shared / "data/WFLW_more").load()[::16]
    landmarker, errors = FaceLandmarker(), []
    for face in faces:
        assert face.landmarks is not None
        photo, row = read_photo(face.image), []
        for angle in (0, 45, 90, 135, 180, 225, 270, 315):
            frame, points = turned(photo, face.landmarks, angle)
            found = analyzed(frame, points, landmarker).landmarks[0]
            row.append(np.linalg.norm(found - points, axis=1).mean() / np.linalg.norm(points[60] - points[72]))
        errors.append(row)
    upright, *others = np.mean(errors, axis=0)
    assert np.mean(others) < 1.03 * upright

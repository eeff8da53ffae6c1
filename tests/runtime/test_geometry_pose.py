"""Head pose against OpenCV's solvePnP and known projections; the effect of rotating or mirroring a photograph."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pfld_edge_calib import open_faces, portraits, predict_landmarks, read_photo, true_landmarks
from pfld_edge_runtime import WFLW_98, FaceLandmarker, LandmarkError, default_camera, head_pose
from pfld_edge_runtime.arrays import Float64Array
from pfld_edge_runtime.geometry.pose import FACE_SHAPE, RIGID_POINTS

SIZE = (640, 480)


def rotation_of(yaw: float, pitch: float, roll: float) -> Float64Array:
    """The documented ``Rz(roll) @ Ry(-yaw) @ Rx(-pitch)``, by scipy."""
    return np.asarray(Rotation.from_euler("ZYX", [roll, -yaw, -pitch], degrees=True).as_matrix())


def projected(rotation: Float64Array, place: tuple[float, float, float], camera: Float64Array) -> Float64Array:
    """98 points, the rigid ones where OpenCV projects the face, one face."""
    seen, _ = cv2.projectPoints(
        np.array(FACE_SHAPE), cv2.Rodrigues(rotation)[0], np.array(place, np.float64), camera, None
    )
    landmarks = np.zeros((1, 98, 2))
    landmarks[0, RIGID_POINTS] = seen[:, 0]
    return landmarks


def opencv_rotation(points: Float64Array, camera: Float64Array) -> Float64Array:
    """OpenCV's iterative solution, started from a face that looks at the camera from a metre off."""
    start = np.zeros((3, 1)), np.array([[0.0], [0.0], [1000.0]])
    found = cv2.solvePnP(np.array(FACE_SHAPE), points, camera, None, *start, True, cv2.SOLVEPNP_ITERATIVE)
    return np.asarray(cv2.Rodrigues(found[1])[0])


def apart(first: Float64Array, second: Float64Array) -> float:
    """Degrees between two rotations."""
    return float(np.degrees((Rotation.from_matrix(first).inv() * Rotation.from_matrix(second)).magnitude()))


def reprojection(
    rotation: Float64Array, translation: Float64Array, points: Float64Array, camera: Float64Array
) -> float:
    seen, _ = cv2.projectPoints(np.array(FACE_SHAPE), cv2.Rodrigues(rotation)[0], translation, camera, None)
    return float(((seen[:, 0] - points) ** 2).sum())


ANGLES = {"yaw": st.floats(-80, 80), "pitch": st.floats(-50, 50), "roll": st.floats(-170, 170)}
PLACES = st.tuples(st.floats(-150, 150), st.floats(-120, 120), st.floats(350, 3000))


@settings(max_examples=200)
@given(**ANGLES, place=PLACES)
def test_the_pose_of_an_exact_projection_is_found(
    yaw: float, pitch: float, roll: float, place: tuple[float, float, float]
) -> None:
    found = head_pose(projected(rotation_of(yaw, pitch, roll), place, default_camera(SIZE)), SIZE)
    np.testing.assert_allclose([found.yaw[0], found.pitch[0], found.roll[0]], [yaw, pitch, roll], atol=1e-3)
    np.testing.assert_allclose(found.translation[0], place, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(found.rotation[0], rotation_of(yaw, pitch, roll), atol=1e-5)


@settings(max_examples=150)
@given(**ANGLES, place=PLACES, seed=st.integers(0, 2**32 - 1))
def test_with_noise_the_pose_is_opencvs_or_fits_better(
    yaw: float, pitch: float, roll: float, place: tuple[float, float, float], seed: int
) -> None:
    camera = default_camera(SIZE)
    landmarks = projected(rotation_of(yaw, pitch, roll), place, camera)
    landmarks += np.random.default_rng(seed).normal(0, 0.02 * 90 * 640 / place[2], landmarks.shape)
    points = landmarks[0, RIGID_POINTS]
    found = head_pose(landmarks, SIZE)
    ours = reprojection(found.rotation[0], found.translation[0], points, camera)
    start = cv2.solvePnP(np.array(FACE_SHAPE), points, camera, None, flags=cv2.SOLVEPNP_SQPNP)[1:]
    theirs = cv2.solvePnPRefineLM(np.array(FACE_SHAPE), points, camera, None, *start)
    theirs_error = reprojection(cv2.Rodrigues(theirs[0])[0], theirs[1], points, camera)
    if theirs[1][2] > 0:
        assert ours <= theirs_error * (1 + 1e-6)
        assert apart(cv2.Rodrigues(theirs[0])[0], found.rotation[0]) < 1 or ours < theirs_error * 0.999


@pytest.mark.parametrize("source", ["true", "predicted"])
def test_poses_of_wflws_test_faces_are_opencvs_within_a_degree(shared: Path, source: str) -> None:
    faces, landmarker = open_faces(shared / "data/WFLW").load(), FaceLandmarker()
    landmarks = true_landmarks(faces, landmarker.contract)
    if source == "predicted":
        landmarks = predict_landmarks(landmarker.model, faces)
    for face, points in zip(faces, landmarks.astype(np.float64), strict=True):
        height, width = read_photo(face.image).shape[:2]
        found = head_pose(points, (width, height))
        theirs = opencv_rotation(points[list(RIGID_POINTS)], default_camera((width, height)))
        assert apart(found.rotation[0], theirs) < 1, face.image.name


def test_many_faces_at_once_have_the_poses_of_each_alone() -> None:
    random = np.random.default_rng(3)
    poses = [(random.uniform(-70, 70), random.uniform(-40, 40), random.uniform(-40, 40)) for _ in range(20)]
    faces = np.concatenate([projected(rotation_of(*p), (10, -20, 700), default_camera(SIZE)) for p in poses])
    faces += random.normal(0, 1, faces.shape)
    together = head_pose(faces, SIZE)
    assert len(together) == 20
    for row, face in enumerate(faces):
        assert apart(head_pose(face, SIZE).rotation[0], together.rotation[row]) < 1e-3


def test_the_signs_of_the_angles_are_as_documented() -> None:
    tip, brow = RIGID_POINTS.index(54), RIGID_POINTS.index(37)
    camera, eyes = default_camera(SIZE), [60, 64, 68, 72]

    def seen(yaw: float, pitch: float, roll: float) -> Float64Array:
        return projected(rotation_of(yaw, pitch, roll), (0, 0, 1000), camera)[0]

    ahead = seen(0, 0, 0)
    assert seen(30, 0, 0)[54, 0] > ahead[54, 0] + 5, "a positive yaw moves the nose to the photograph's right"
    assert seen(0, 30, 0)[54, 1] < ahead[54, 1] - 5, "a positive pitch moves the nose up"
    assert seen(0, 0, 30)[72, 1] > ahead[72, 1] + 5, "a positive roll lowers the eye on the right"
    np.testing.assert_allclose(ahead[eyes].mean(axis=0), (320, 240), atol=1)
    assert FACE_SHAPE[tip, 2] < FACE_SHAPE[brow, 2] < 0, "the nose is nearest to the camera"


def test_the_shape_is_symmetric_and_its_origin_lies_between_the_eyes() -> None:
    mirrored = FACE_SHAPE[[RIGID_POINTS.index(WFLW_98.mirror[point]) for point in RIGID_POINTS]] * (-1, 1, 1)
    np.testing.assert_allclose(mirrored, FACE_SHAPE)
    corners = [RIGID_POINTS.index(point) for point in (60, 64, 68, 72)]
    np.testing.assert_allclose(FACE_SHAPE[corners].mean(axis=0), 0, atol=0.05)


def test_a_mirrored_face_has_yaw_and_roll_negated() -> None:
    face = portraits()[0].landmarks
    assert face is not None
    plain = head_pose(face, SIZE)
    mirrored = head_pose((face * (-1, 1) + (SIZE[0], 0))[list(WFLW_98.mirror)], SIZE)
    np.testing.assert_allclose(mirrored.yaw, -plain.yaw, atol=1e-3)
    np.testing.assert_allclose(mirrored.pitch, plain.pitch, atol=1e-3)
    np.testing.assert_allclose(mirrored.roll, -plain.roll, atol=1e-3)


@given(degrees=st.floats(-60, 60))
@settings(max_examples=30)
def test_turning_the_photograph_turns_the_roll_alone(degrees: float) -> None:
    landmarks = projected(rotation_of(20, -10, 5), (60, 40, 600), default_camera((500, 500)))
    turn = Rotation.from_euler("z", degrees, degrees=True).as_matrix()[:2, :2]
    found = head_pose((landmarks - 250) @ turn.T + 250, (500, 500))
    np.testing.assert_allclose([found.yaw[0], found.pitch[0], found.roll[0]], [20, -10, 5 + degrees], atol=1e-3)


def test_a_known_camera_gives_the_true_distance() -> None:
    camera = np.array([[900.0, 0, 300], [0, 850, 260], [0, 0, 1]])
    landmarks = projected(rotation_of(15, 5, -5), (30, 20, 800), camera)
    np.testing.assert_allclose(head_pose(landmarks, SIZE, camera).translation[0], (30, 20, 800), rtol=1e-5)
    assert abs(head_pose(landmarks, SIZE).translation[0, 2] - 800) > 50


def test_no_faces_have_no_poses_and_a_face_on_one_point_has_nan() -> None:
    empty = head_pose(np.zeros((0, 98, 2)), SIZE)
    assert (len(empty), empty.yaw.shape, empty.rotation.shape) == (0, (0,), (0, 3, 3))
    good = projected(rotation_of(10, 0, 0), (0, 0, 700), default_camera(SIZE))
    both = head_pose(np.concatenate([np.full((1, 98, 2), 7.0), good]), SIZE)
    assert np.isnan(both.yaw[0])
    assert np.isnan(both.rotation[0]).all()
    assert both.yaw[1] == pytest.approx(10, abs=1e-3)


@pytest.mark.parametrize(
    ("landmarks", "camera", "told"),
    [
        (np.zeros((1, 68, 2)), None, r"\(N, 98, 2\).*found \(1, 68, 2\)"),
        (np.full((1, 98, 2), np.nan), None, "face 0 hold NaN"),
        ("nose", None, "must be numbers"),
        (np.zeros((1, 98, 2)), np.eye(2), "3 x 3"),
        (np.zeros((1, 98, 2)), np.zeros((3, 3)), "fx"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(landmarks: object, camera: object, told: str) -> None:
    with pytest.raises(LandmarkError, match=told) as caught:
        head_pose(landmarks, SIZE, camera)
    assert "\n" not in str(caught.value)

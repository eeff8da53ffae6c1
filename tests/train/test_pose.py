"""The pose of augmented faces in torch: against OpenCV, the runtime's own solver and known projections."""

from pathlib import Path

import cv2
import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from pfld_edge_calib import open_faces, portraits
from pfld_edge_runtime import WFLW_98, head_pose
from pfld_edge_runtime.arrays import Float64Array
from pfld_edge_runtime.geometry.pose import FACE_SHAPE, RIGID_POINTS
from pfld_edge_train.pose import FOCAL_LENGTH, head_angles

CAMERA = np.array([[FOCAL_LENGTH, 0, 0.5], [0, FOCAL_LENGTH, 0.5], [0, 0, 1]])
DISTANCE = FOCAL_LENGTH * 180
"""At which a crop is 180 mm wide, about what the crop rule gives a head."""
OTHERS = [point for point in range(98) if point not in RIGID_POINTS]


def projected(angles: Float64Array, noise: float = 0.0, seed: int = 0) -> Float64Array:
    """Faces ``(N, 98, 2)`` whose rigid points OpenCV projects, the other points anywhere."""
    random = np.random.default_rng(seed)
    landmarks = random.uniform(0, 1, (len(angles), 98, 2))
    for face, (yaw, pitch, roll) in zip(landmarks, angles, strict=True):
        turn = Rotation.from_euler("ZYX", [roll, -yaw, -pitch], degrees=True).as_rotvec()
        place = np.array([random.uniform(-20, 20), random.uniform(-20, 20), DISTANCE])
        seen, _ = cv2.projectPoints(np.array(FACE_SHAPE), turn, place, CAMERA, None)
        face[list(RIGID_POINTS)] = seen[:, 0] + random.normal(0, noise, (17, 2))
    return landmarks


def degrees(landmarks: Float64Array, weights: Float64Array | None = None) -> Float64Array:
    trust = None if weights is None else torch.tensor(weights, dtype=torch.float32)
    return np.degrees(head_angles(torch.tensor(landmarks, dtype=torch.float32), trust).numpy().astype(np.float64))


def least_squares_degrees(face: Float64Array, angles: tuple[float, float, float] | None = None) -> Float64Array:
    """Where the reprojection error is least: OpenCV's camera, SciPy's minimum, started from OpenCV's solution.

    OpenCV's own iteration ends up to half a degree early on noisy profiles, and at times in the minimum of the wrong
    profile: where the true angles are known, SciPy starts from them.
    """
    shape, points = np.array(FACE_SHAPE), face[list(RIGID_POINTS)]
    start = np.zeros((3, 1)), np.array([[0.0], [0.0], [DISTANCE]])
    found = cv2.solvePnP(shape, points, CAMERA, None, *start, True, cv2.SOLVEPNP_ITERATIVE)
    turn, place = found[1][:, 0], found[2][:, 0]
    if angles is not None:
        yaw, pitch, roll = angles
        turn = Rotation.from_euler("ZYX", [roll, -yaw, -pitch], degrees=True).as_rotvec()
        place = np.array([0.0, 0.0, DISTANCE])

    def off(place: Float64Array) -> Float64Array:
        seen = cv2.projectPoints(shape, place[:3], place[3:], CAMERA, None)[0]
        return np.asarray(seen[:, 0] - points).ravel()

    def slope(place: Float64Array) -> Float64Array:
        return np.asarray(cv2.projectPoints(shape, place[:3], place[3:], CAMERA, None)[1][:, :6])

    best = least_squares(off, np.concatenate([turn, place]), slope, xtol=1e-12, ftol=1e-12)
    roll, yaw, pitch = Rotation.from_rotvec(best.x[:3]).as_euler("ZYX", degrees=True)
    return np.array([-yaw, -pitch, roll])


def cropped(landmarks: Float64Array) -> Float64Array:
    """Fractions of the square crop around the points."""
    low, high = landmarks.min(axis=1), landmarks.max(axis=1)
    return (landmarks - (low + high)[:, None] / 2) / ((high - low).max(axis=1) * 1.2)[:, None, None] + 0.5


ANGLES = st.tuples(st.floats(-80, 80), st.floats(-50, 50), st.floats(-90, 90))


@settings(max_examples=60, deadline=None)
@given(st.lists(ANGLES, min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_the_pose_of_an_exact_projection_is_found(angles: list[tuple[float, float, float]], seed: int) -> None:
    found = degrees(projected(np.array(angles), seed=seed))
    np.testing.assert_allclose(found, angles, atol=0.05)


@settings(max_examples=40, deadline=None)
@given(st.lists(ANGLES, min_size=1, max_size=5), st.integers(0, 2**32 - 1))
@example([(79.0, -46.0, 35.0)], 0)
@example([(72.0, -46.0, 64.0)], 0)  # from OpenCV's solution SciPy ends at the other profile
def test_with_noise_the_pose_is_that_of_the_least_error(angles: list[tuple[float, float, float]], seed: int) -> None:
    faces = projected(np.array(angles), noise=0.005, seed=seed)
    expected = np.array([least_squares_degrees(face, true) for face, true in zip(faces, angles, strict=True)])
    np.testing.assert_allclose(degrees(faces), expected, atol=0.05)


def test_the_portraits_poses_are_opencvs() -> None:
    faces = cropped(np.stack([face.landmarks for face in portraits() if face.landmarks is not None]).astype(float))
    expected = np.array([least_squares_degrees(face) for face in faces])
    np.testing.assert_allclose(degrees(faces), expected, atol=0.5)


def test_poses_of_wflws_test_faces_are_opencvs_and_near_the_photographs(shared: Path) -> None:
    labelled = open_faces(shared / "data/WFLW").load()
    landmarks = np.stack([face.landmarks for face in labelled if face.landmarks is not None]).astype(float)
    faces = cropped(landmarks)
    apart = np.abs(degrees(faces) - np.array([least_squares_degrees(face) for face in faces]))
    assert np.quantile(apart, 0.95) < 0.5
    assert apart.max() < 5
    # A camera that looks at the face from afar: what a photograph cut down to the face would give.
    far = [head_pose(face * 100, (10_000, 10_000), np.diag([1e5, 1e5, 1])) for face in faces - 0.5]
    yaw = np.array([pose.yaw[0] for pose in far])
    assert np.median(np.abs(degrees(faces)[:, 0] - yaw)) < 4


@settings(max_examples=30, deadline=None)
@given(st.lists(ANGLES, min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_a_mirrored_face_has_yaw_and_roll_negated(angles: list[tuple[float, float, float]], seed: int) -> None:
    faces = projected(np.array(angles), noise=0.005, seed=seed)
    mirrored = ((1, 0) + faces * (-1, 1))[:, list(WFLW_98.mirror)]
    np.testing.assert_allclose(degrees(mirrored), degrees(faces) * (-1, 1, -1), atol=0.1)


def test_unknown_points_do_not_count() -> None:
    angles = np.array([[30.0, 10, -20], [-50, 0, 40]])
    faces = projected(angles)
    weights = np.ones((2, 98))
    for point in (33, 46, 55, 59):
        faces[:, point] = 0.1
        weights[:, point] = 0
    np.testing.assert_allclose(degrees(faces, weights), angles, atol=0.1)
    assert np.abs(degrees(faces) - angles).max() > 5


def test_faces_that_cannot_be_read_have_nan_and_leave_the_others_alone() -> None:
    good = projected(np.array([[20.0, 5, 10]]))
    weights = np.ones((4, 98))
    weights[1] = 0
    weights[2, [point for point in RIGID_POINTS if point not in (60, 64, 68, 72)]] = 0
    faces = np.concatenate([good, good, good, np.full((1, 98, 2), 0.4)])
    found = degrees(faces, weights)
    np.testing.assert_allclose(found[0], [20, 5, 10], atol=0.05)
    assert np.isnan(found[1:]).all()


def test_no_gradient_runs_through_the_pose_and_autocast_does_not_blur_it() -> None:
    faces = torch.tensor(projected(np.array([[33.0, -12, 8]])), dtype=torch.float32, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head_angles(faces)
    assert not found.requires_grad
    np.testing.assert_allclose(np.degrees(found[0].numpy()), [33, -12, 8], atol=0.05)
    assert head_angles(faces[:0]).shape == (0, 3)

"""Eye and mouth openness by hand; the 68 points of 300-W against labelled faces, five points, tight boxes."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pfld_edge_calib import portraits, predict_landmarks, read_points_csv
from pfld_edge_runtime import (
    FIVE_POINTS,
    IBUG_68,
    WFLW_98,
    Contract,
    FaceLandmarker,
    LandmarkError,
    LandmarkScheme,
    crop_windows,
    eye_openness,
    five_points,
    landmarks_68,
    mouth_openness,
    tight_box,
)
from pfld_edge_runtime.arrays import Float32Array, Float64Array
from pfld_edge_runtime.geometry.wflw_points import NEAREST_68

EYE = [(0, 0), (10, -4), (20, -6), (30, -2), (40, 0), (30, 2), (20, 6), (10, 4)]


"""Gaps of 8, 12 and 4 over a width of 40: 24 / (3 * 40)."""


def face() -> Float64Array:
    points = np.random.default_rng(0).uniform(0, 200, (1, 98, 2))
    points[0, 60:68] = np.add(EYE, (50, 80))
    points[0, 68:76] = np.array(EYE) * (1, 0.5) + (120, 80)
    points[0, 88:96] = np.array(EYE) * (2, 3) + (60, 160)
    return points


def test_the_ratios_are_mean_gap_over_width() -> None:
    np.testing.assert_allclose(eye_openness(face()), [[0.2, 0.1]])
    np.testing.assert_allclose(mouth_openness(face()), [0.3])


def test_the_eye_ratio_is_soukupovas_where_its_points_lie_on_the_same_lid_heights() -> None:
    points = face()
    points[0, [62, 66]] = (70, 77), (70, 83)
    p2, p3, p5, p6 = points[0, [61, 63, 65, 67]]
    expected = (np.linalg.norm(p2 - p6) + np.linalg.norm(p3 - p5)) / (2 * 40)
    np.testing.assert_allclose(eye_openness(points)[0, 0], expected)


@given(scale=st.floats(0.05, 50), degrees=st.floats(-180, 180), x=st.floats(-1e4, 1e4), y=st.floats(-1e4, 1e4))
def test_scale_roll_and_place_change_no_ratio(scale: float, degrees: float, x: float, y: float) -> None:
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = face() @ turn.T * scale + (x, y)
    np.testing.assert_allclose(eye_openness(moved), eye_openness(face()), atol=1e-7)
    np.testing.assert_allclose(mouth_openness(moved), mouth_openness(face()), atol=1e-7)


def test_a_mirror_swaps_the_eyes() -> None:
    mirrored = (face() * (-1, 1))[:, list(WFLW_98.mirror)]
    np.testing.assert_allclose(eye_openness(mirrored), eye_openness(face())[:, ::-1])
    np.testing.assert_allclose(mouth_openness(mirrored), mouth_openness(face()))


def test_closed_lids_read_zero_and_coinciding_corners_nan() -> None:
    points = face()
    points[0, 65:68] = points[0, [63, 62, 61]]
    points[0, 72] = points[0, 68]
    found = eye_openness(points)[0]
    assert found[0] == 0
    assert np.isnan(found[1])


def test_open_eyes_of_smiling_portraits_read_as_open() -> None:
    points = np.stack([portrait.landmarks for portrait in portraits() if portrait.landmarks is not None])
    # Soukupová and Čech, figure 1: an open eye reads about 0.25 to 0.35, a closed one about 0.05 to 0.1.
    assert (eye_openness(points) > 0.15).all()
    assert (eye_openness(points) < 0.5).all()


def test_no_faces_have_no_ratios_and_other_schemes_are_refused() -> None:
    assert eye_openness(np.zeros((0, 98, 2))).shape == (0, 2)
    assert mouth_openness(np.zeros((0, 98, 2))).shape == (0,)
    with pytest.raises(LandmarkError, match=r"found \(1, 68, 2\)"):
        eye_openness(np.zeros((1, 68, 2)))


# The 300-W points whose nearest WFLW point is, on the video faces, a neighbour of the mapped one: the labels' contour
# begins lower than WFLW's, their wings of the nose and corners of the mouth lie further in, lids lie between points.
NEIGHBOUR_IS_NEARER = {0, 1, 15, 16, 31, 35, 38, 43, 48, 54}


@cache
def labelled_in(shared: Path) -> tuple[Float32Array, Float32Array]:
    """True 68 and predicted 98 points of the video faces of test.csv."""
    folder = shared / "data/youtube68"
    faces = read_points_csv(folder / "test.csv", folder / "images")
    reference = shared / "models/reference/PFLD_GhostOne_112_1_opt_sim.onnx"
    landmarker = FaceLandmarker(reference, contract=Contract())
    predicted = predict_landmarks(landmarker.model, faces)
    return np.stack([face.landmarks for face in faces if face.landmarks is not None]), predicted


def shares(vectors: Float32Array, truth: Float32Array) -> NDArray[np.complex128]:
    """Vectors as complex shares of the line from eye to eye: what is left when faces turn and grow."""
    line = truth[:, 45] - truth[:, 36]
    return (vectors[..., 0] + 1j * vectors[..., 1]) / (line[:, 0] + 1j * line[:, 1]).reshape(
        -1, *[1] * (vectors.ndim - 2)
    )


@pytest.mark.parametrize("scheme", [IBUG_68, FIVE_POINTS])
def test_mirroring_twice_gives_every_point_back(scheme: LandmarkScheme) -> None:
    assert [scheme.mirror[other] for other in scheme.mirror] == list(range(scheme.num_landmarks))
    assert len(set(scheme.names)) == scheme.num_landmarks in (5, 68)


def test_the_schemes_mirror_as_wflw_does() -> None:
    """A face, mirrored and then mapped, is the mapped face, mirrored."""
    face = np.random.default_rng(0).uniform(0, 100, (2, 98, 2))
    mirrored = (face * (-1, 1))[:, list(WFLW_98.mirror)]
    for mapped, scheme in ((landmarks_68, IBUG_68), (five_points, FIVE_POINTS)):
        expected = (mapped(face) * (-1, 1))[:, list(scheme.mirror)]
        np.testing.assert_allclose(mapped(mirrored), expected, atol=1e-4)


def test_the_normalizing_points_are_the_outer_corners_of_the_eyes() -> None:
    face = np.random.default_rng(0).uniform(0, 100, (1, 98, 2)).astype(np.float32)
    np.testing.assert_array_equal(landmarks_68(face)[:, IBUG_68.normalizing_points], face[:, [60, 72]])


def test_points_of_68_are_wflws_but_for_the_lids() -> None:
    face = np.random.default_rng(0).uniform(0, 100, (1, 98, 2)).astype(np.float32)
    lids = [37, 38, 40, 41, 43, 44, 46, 47]
    rest = [point for point in range(68) if point not in lids]
    np.testing.assert_array_equal(landmarks_68(face)[:, rest], face[:, NEAREST_68][:, rest])
    # Evenly spaced points: WFLW's lie at 1/4, 2/4 and 3/4 of the lid, 300-W's at 1/3 and 2/3.
    face[0, 60:65, 0] = 0, 3, 6, 9, 12
    np.testing.assert_allclose(landmarks_68(face)[0, 36:40, 0], (0, 4, 8, 12))


def test_each_of_the_68_points_is_nearest_to_its_label_but_for_known_neighbours(shared: Path) -> None:
    truth, predicted = labelled_in(shared)
    mean = shares(truth[:, :, None] - predicted[:, None], truth).mean(axis=0)
    # The labels lie off to one side as a whole; faces and their mirror images together tell the scheme.
    mirrored = -mean[list(IBUG_68.mirror)][:, list(WFLW_98.mirror)].conj()
    distance = np.abs(mean + mirrored) / 2
    nearest = distance.argmin(axis=1)
    wrong = {point for point in range(68) if nearest[point] != NEAREST_68[point]}
    assert wrong <= NEIGHBOUR_IS_NEARER
    for point in wrong:
        assert distance[point, NEAREST_68[point]] < 0.09
        assert np.argsort(distance[point])[1] == NEAREST_68[point], "the mapped point is the second nearest"


def test_lids_a_third_of_the_way_are_nearer_to_true_lids_than_any_single_point(shared: Path) -> None:
    truth, predicted = labelled_in(shared)
    lids = [37, 38, 40, 41, 43, 44, 46, 47]
    mapped = np.abs(shares(truth - landmarks_68(predicted), truth))[:, lids].mean()
    single = np.abs(shares(truth - predicted[:, NEAREST_68], truth))[:, lids].mean()
    assert mapped < 0.95 * single


def test_five_points_are_eye_centres_nose_tip_and_mouth_corners() -> None:
    face = np.random.default_rng(0).uniform(0, 100, (1, 98, 2)).astype(np.float32)
    found = five_points(face)[0]
    np.testing.assert_allclose(found[0], face[0, 60:68].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found[1], face[0, 68:76].mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(found[2:], face[0, [54, 76, 82]])


def test_boxes_are_the_networks_own_and_feed_the_crop() -> None:
    points = np.array([[[10.2, 20.9], [-3.5, 40.0], [30.0, 25.0]]])
    found = tight_box(points)
    np.testing.assert_array_equal(found, [[-3, 20, 31, 41]])
    assert found.dtype == np.float64
    assert crop_windows(found, 1.2).sizes[0] == 40
    assert tight_box(np.zeros((0, 98, 2))).shape == (0, 4)


@pytest.mark.parametrize("function", [landmarks_68, five_points])
def test_other_schemes_are_refused(function: object) -> None:
    assert callable(function)
    with pytest.raises(LandmarkError, match=r"\(N, 98, 2\)"):
        function(np.zeros((2, 68, 2)))
    with pytest.raises(LandmarkError):
        tight_box(np.zeros((2, 3)))

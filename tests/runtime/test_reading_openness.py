"""How far eyes and mouths are open: by hand, and under what must not matter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pfld_edge_calib import portraits
from pfld_edge_runtime import WFLW_98, LandmarkError, eye_openness, mouth_openness

EYE = [(0, 0), (10, -4), (20, -6), (30, -2), (40, 0), (30, 2), (20, 6), (10, 4)]
"""Gaps of 8, 12 and 4 over a width of 40: 24 / (3 * 40)."""


def face() -> NDArray[np.float64]:
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

"""Drawn faces: every point shows, the photograph stays as it was."""

import numpy as np

from pfld_edge.drawing import draw_landmarks, regions
from pfld_edge_runtime import WFLW_98, LandmarkScheme


def test_regions_are_those_of_the_data_set() -> None:
    found = regions(WFLW_98)
    # Wu et al. 2018, figure 2.
    assert found["contour"] == list(range(33))
    assert found["left_eye"] == list(range(60, 68))
    assert found["outer_lip"] == list(range(76, 88))
    assert sorted(index for indices in found.values() for index in indices) == list(range(98))


def test_every_point_is_drawn_where_it_is() -> None:
    photo = np.zeros((200, 200, 3), np.uint8)
    rows, columns = np.divmod(np.arange(98), 10)
    points = np.stack([columns * 20 + 10.5, rows * 20 + 10.5], axis=1).astype(np.float32)
    drawn = draw_landmarks(photo, points[None], WFLW_98)
    # Integers are pixel edges: 10.5 is the centre of pixel 10.
    assert drawn[rows * 20 + 10, columns * 20 + 10].any(axis=1).all()
    assert not photo.any()


def test_points_off_the_photograph_and_other_schemes_are_fine() -> None:
    scheme = LandmarkScheme("three", ("nose", "eye_0", "eye_1"), (0, 2, 1), (1, 2))
    points = np.array([[[-1e9, 5], [5, 1e30], [3, 3]]], np.float32)
    photo = np.zeros((9, 9, 3), np.uint8)
    assert draw_landmarks(photo, points, scheme).shape == photo.shape
    assert not draw_landmarks(photo, points[:0], scheme).any()


def test_a_photograph_of_any_strides_can_be_drawn_on() -> None:
    photo = np.zeros((60, 40, 3), np.uint8).transpose(1, 0, 2)[::-1]
    points = np.full((1, 98, 2), 20.5, np.float32)
    assert draw_landmarks(photo, points, WFLW_98)[20, 20].any()

"""Suppression keeps what OpenCV keeps."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfld_edge_runtime.detectors.nms import non_maximum_suppression


def random_boxes(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of whole numbers in a small square, many of which overlap, with scores of their own."""
    rng = np.random.default_rng(seed)
    corners, sizes = rng.integers(0, 60, (count, 2)), rng.integers(1, 50, (count, 2))
    return np.concatenate([corners, corners + sizes], axis=1).astype(np.float64), rng.permutation(count) / count + 0.001


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.floats(0, 1))
def test_the_same_boxes_stay_as_in_opencv(seed: int, count: int, threshold: float) -> None:
    boxes, scores = random_boxes(seed, count)
    as_opencv = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    expected = cv2.dnn.NMSBoxes(as_opencv.tolist(), scores.tolist(), 0.0, threshold)
    np.testing.assert_array_equal(non_maximum_suppression(boxes, scores, threshold), np.ravel(expected))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 9))
def test_a_limit_gives_the_best_of_them(seed: int, count: int, most: int) -> None:
    boxes, scores = random_boxes(seed, count)
    every = non_maximum_suppression(boxes, scores, 0.3)
    np.testing.assert_array_equal(non_maximum_suppression(boxes, scores, 0.3, most), every[:most])


@pytest.mark.parametrize(("overlap", "left"), [(0.49, 1), (0.5, 2)])
def test_an_overlap_of_just_the_threshold_is_allowed(overlap: float, left: int) -> None:
    # 10 x 10 and its left half: intersection 50, union 100.
    boxes = np.array([[0, 0, 10, 10], [0, 0, 5, 10]], float)
    assert len(non_maximum_suppression(boxes, np.array([0.9, 0.8]), overlap)) == left


def test_of_equal_scores_the_first_box_wins() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10]], float)
    np.testing.assert_array_equal(non_maximum_suppression(boxes, np.array([0.5, 0.5]), 0.3), [0])


def test_no_boxes_give_none() -> None:
    assert len(non_maximum_suppression(np.zeros((0, 4)), np.zeros(0), 0.3)) == 0

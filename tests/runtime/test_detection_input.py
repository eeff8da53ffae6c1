"""Letterbox input against cv2.resize, and non-maximum suppression against cv2.dnn.NMSBoxes."""

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfld_edge_runtime import ImageError
from pfld_edge_runtime.arrays import Uint8Array
from pfld_edge_runtime.detection.onnx_detector import Letterbox, non_maximum_suppression

SIDES = st.integers(1, 90)


def sample_letterbox(image: Any, letterbox: Letterbox, *, swap_channels: bool) -> Uint8Array:
    """The sampled planes as an image."""
    return letterbox.sample(image, swap_channels=swap_channels).transpose(1, 2, 0)


@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 99))
def test_the_photograph_is_resized_as_opencv_does(width: int, height: int, inner: int, other: int, seed: int) -> None:
    photo = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    seen = sample_letterbox(photo, Letterbox((width, height), (inner, other), (96, 96)), swap_channels=False)
    expected = cv2.resize(photo, (inner, other), interpolation=cv2.INTER_LINEAR)
    # OpenCV rounds its weights to 11 bits.
    assert np.abs(seen[:other, :inner].astype(int) - expected).max() <= 1
    assert not seen[other:].any()
    assert not seen[:, inner:].any()


@given(SIDES, SIDES, st.integers(1, 7), st.integers(0, 99))
def test_a_whole_factor_gives_what_opencv_gives(width: int, height: int, factor: int, seed: int) -> None:
    photo = np.random.default_rng(seed).integers(0, 256, (height * factor, width * factor, 3), np.uint8)
    inner, canvas = (width, height), (96, 96)
    seen = sample_letterbox(photo, Letterbox((width * factor, height * factor), inner, canvas), swap_channels=True)
    expected = cv2.resize(photo, inner, interpolation=cv2.INTER_LINEAR)
    assert np.abs(seen[:height, :width, ::-1].astype(int) - expected).max() <= (0 if factor % 2 else 1)


@pytest.mark.parametrize(
    ("photo", "inner"),
    [
        ((1920, 1080), (320, 180)),
        ((1024, 683), (341, 227)),
        ((3024, 4032), (232, 310)),
        ((352, 264), (352, 264)),
        ((800, 600), (320, 240)),
        ((500, 375), (320, 240)),
        ((64, 48), (320, 240)),
        ((1920, 2), (320, 1)),
    ],
    ids=str,
)
def test_a_whole_factor_is_taken_where_it_is_within_a_tenth(photo: tuple[int, int], inner: tuple[int, int]) -> None:
    box = Letterbox.within(photo, 320, 32, enlarge=True, whole=True)
    assert box.inner == inner
    assert all(0 <= side - seen < max(1, max(photo) // 288) for side, seen in zip(photo, box.photo, strict=True))


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1000), st.booleans())
def test_the_aspect_is_kept_to_a_pixel(width: int, height: int, side: int, enlarge: bool) -> None:
    boxes = (
        Letterbox.within((width, height), side, 32, enlarge=enlarge),
        Letterbox.inside((width, height), (side, side), enlarge=enlarge),
    )
    for box in boxes:
        scale = side / max(width, height) if enlarge else min(side / max(width, height), 1)
        assert box.inner == (max(1, round(width * scale)), max(1, round(height * scale)))
        assert all(0 < inner <= canvas for inner, canvas in zip(box.inner, box.canvas, strict=True))
    assert all(canvas % 32 == 0 and canvas - inner < 32 for inner, canvas in zip(*_sides(boxes[0]), strict=True))


def _sides(box: Letterbox) -> tuple[tuple[int, int], tuple[int, int]]:
    return box.inner, box.canvas


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_whole_photograph_maps_back_to_itself(width: int, height: int) -> None:
    box = Letterbox.inside((width, height), (320, 240), enlarge=True)
    corners = np.array([[0, 0, *box.inner]], np.float32)
    np.testing.assert_allclose(box.to_image(corners), [[0, 0, width, height]])


@pytest.mark.parametrize("enlarge", [True, False])
def test_a_photograph_of_the_inputs_size_is_taken_as_it_is(photo: Uint8Array, enlarge: bool) -> None:
    box = Letterbox.inside((80, 60), (80, 64), enlarge=enlarge)
    np.testing.assert_array_equal(sample_letterbox(photo, box, swap_channels=True)[:60], photo[:, :, ::-1])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floating_point_photographs_are_the_same_to_a_grey_level(photo: Uint8Array, dtype: type) -> None:
    box = Letterbox.inside((80, 60), (33, 33), enlarge=True)
    seen = sample_letterbox((photo / 255).astype(dtype), box, swap_channels=False)
    expected = sample_letterbox(photo, box, swap_channels=False)
    assert np.abs(seen.astype(int) - expected).max() <= 1


def test_odd_layouts_are_read_like_plain_ones(photo: Uint8Array) -> None:
    box = Letterbox.inside((80, 60), (33, 33), enlarge=True)
    expected = sample_letterbox(photo, box, swap_channels=False)
    for same in (np.asfortranarray(photo), np.dstack([photo, photo[:, :, 0]]), photo[::-1, ::-1].copy()[::-1, ::-1]):
        np.testing.assert_array_equal(sample_letterbox(same, box, swap_channels=False), expected)
    grey = sample_letterbox(photo[:, :, 1], box, swap_channels=False)
    np.testing.assert_array_equal(grey, np.repeat(expected[:, :, 1:2], 3, axis=2))


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5, 255.0, 1e300])
def test_values_out_of_range_are_refused(value: float) -> None:
    image = np.full((50, 60, 3), 0.5)
    image[20, 30] = value
    with pytest.raises(ImageError, match=r"0\.\.1"):
        sample_letterbox(image, Letterbox.inside((60, 50), (64, 64), enlarge=True), swap_channels=False)


def random_boxes(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of whole numbers in a small square, many of which overlap, with scores of their own."""
    rng = np.random.default_rng(seed)
    corners, sizes = rng.integers(0, 60, (count, 2)), rng.integers(1, 50, (count, 2))
    return np.concatenate([corners, corners + sizes], axis=1).astype(np.float64), rng.permutation(count) / count + 0.001


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.floats(0, 1))
def test_the_same_boxes_stay_as_in_opencv(seed: int, count: int, threshold: float) -> None:
    boxes, scores = random_boxes(seed, count)
    as_opencv = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    expected = cv2.dnn.NMSBoxes(as_opencv.tolist(), scores.tolist(), 0.0, threshold)
    np.testing.assert_array_equal(non_maximum_suppression(boxes, scores, threshold), np.ravel(expected))


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

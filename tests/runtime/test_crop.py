"""The numpy crop equals the published protocol's cv2 crop, for any box and any kind of image."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfld_edge_runtime import BoxError, CropWindows, ImageError, crop_faces, crop_windows
from pfld_edge_runtime.arrays import Uint8Array


def cv2_crop(image: Uint8Array, x: int, y: int, side: int, size: int) -> Uint8Array:
    """The reference: pad with zeros until the window is inside, cut it out, resize."""
    height, width = image.shape[:2]
    left, top = max(0, -x), max(0, -y)
    right, bottom = max(0, x + side - width), max(0, y + side - height)
    padded = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=0)
    window = padded[y + top : y + top + side, x + left : x + left + side]
    return np.asarray(cv2.resize(window, (size, size), interpolation=cv2.INTER_LINEAR), np.uint8)


def assert_same_levels(ours: Uint8Array, reference: Uint8Array) -> None:
    difference = np.abs(ours.astype(int) - reference)
    assert difference.max() <= 2
    assert (difference == 2).mean() < 0.001


def window(x: int, y: int, side: int) -> CropWindows:
    return CropWindows(np.array([[x, y]], np.int64), np.array([side], np.int64))


def noise(height: int, width: int, seed: int) -> Uint8Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


photos = st.builds(noise, st.integers(1, 90), st.integers(1, 90), st.integers(0, 5))


@settings(max_examples=150)
@given(photos, st.integers(-130, 130), st.integers(-130, 130), st.integers(1, 260), st.sampled_from([16, 112, 113]))
def test_crop_equals_cv2(image: Uint8Array, x: int, y: int, side: int, size: int) -> None:
    assert_same_levels(crop_faces(image, window(x, y, side), size)[0], cv2_crop(image, x, y, side, size))


@pytest.mark.parametrize(
    ("x", "y", "side"),
    [
        (10, 5, 40),
        (-20, -30, 80),
        (60, 40, 80),
        (-500, 3, 20),
        (79, 59, 1),
        (0, 0, 1),
        (80, 60, 7),
        (5, 5, 112),
        (-40, -40, 224),
        (-900, -900, 2000),
    ],
    ids=[
        "inside",
        "across top left",
        "across bottom right",
        "outside",
        "last pixel",
        "first pixel",
        "just past the corner",
        "not resized",
        "halved",
        "far larger than the photograph",
    ],
)
def test_crop_equals_cv2_at_the_edges(photo: Uint8Array, x: int, y: int, side: int) -> None:
    assert_same_levels(crop_faces(photo, window(x, y, side), 112)[0], cv2_crop(photo, x, y, side, 112))


def test_a_photograph_of_two_pixels_can_be_cut() -> None:
    image = noise(1, 2, 0)
    assert_same_levels(crop_faces(image, window(0, 0, 2), 112)[0], cv2_crop(image, 0, 0, 2, 112))


def test_a_window_outside_the_photograph_is_black(photo: Uint8Array) -> None:
    assert not crop_faces(photo, window(1000, -1000, 50), 112).any()


def test_grey_photographs_are_repeated_over_the_channels(photo: Uint8Array) -> None:
    grey = photo[:, :, 0]
    for image in (grey, grey[:, :, None]):
        crop = crop_faces(image, window(-5, 5, 60), 112)[0]
        assert_same_levels(crop, np.repeat(cv2_crop(grey, -5, 5, 60, 112)[:, :, None], 3, axis=2))


def test_alpha_is_ignored(photo: Uint8Array) -> None:
    rgba = np.dstack([photo, noise(60, 80, 3)[:, :, 0]])
    np.testing.assert_array_equal(crop_faces(rgba, window(-5, 5, 60), 112), crop_faces(photo, window(-5, 5, 60), 112))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floating_point_photographs_are_read_as_0_to_1(photo: Uint8Array, dtype: type) -> None:
    crop = crop_faces((photo / 255).astype(dtype), window(-5, 5, 60), 112)
    assert np.abs(crop.astype(int) - crop_faces(photo, window(-5, 5, 60), 112)).max() <= 1


@pytest.mark.parametrize("value", [255.0, -0.5, np.nan, np.inf])
def test_floating_point_photographs_out_of_range_are_refused(value: float) -> None:
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(ImageError, match=r"read as 0\.\.1.*divide by 255"),
    ):
        crop_faces(np.full((9, 9, 3), value), window(0, 0, 9), 16)


@pytest.mark.parametrize(
    "view",
    [
        lambda image: image[::2, 1::3],
        lambda image: image[::-1, ::-1],
        lambda image: image[:, :, ::-1],
        lambda image: image.transpose(1, 0, 2),
        np.asfortranarray,
        lambda image: np.moveaxis(np.ascontiguousarray(image.transpose(2, 0, 1)), 0, 2),
    ],
    ids=["sliced", "flipped", "channels reversed", "transposed", "fortran", "planar"],
)
def test_strides_do_not_matter(photo: Uint8Array, view: Callable[[Uint8Array], Uint8Array]) -> None:
    image = view(photo)
    before = image.copy()
    crop = crop_faces(image, window(-5, 5, 60), 112)
    np.testing.assert_array_equal(crop, crop_faces(np.ascontiguousarray(image), window(-5, 5, 60), 112))
    np.testing.assert_array_equal(image, before)


def test_a_read_only_photograph_can_be_cut(photo: Uint8Array) -> None:
    frozen = photo.copy()
    frozen.flags.writeable = False
    assert crop_faces(frozen, window(0, 0, 60), 112).any()


def test_swapping_channels_reverses_them(photo: Uint8Array) -> None:
    swapped = crop_faces(photo, window(-5, 5, 60), 112, swap_channels=True)
    np.testing.assert_array_equal(swapped[..., ::-1], crop_faces(photo, window(-5, 5, 60), 112))


def test_a_huge_box_costs_no_huge_padding(photo: Uint8Array) -> None:
    windows = crop_windows([[-1e9, -1e9, 1e9, 1e9], [0, 0, 1e9, 1]], 1.2)
    # A padded copy would take exabytes.
    assert crop_faces(photo, windows, 112).shape == (2, 112, 112, 3)


@given(photos, st.integers(-130, 130), st.integers(-130, 130), st.integers(1, 260), st.sampled_from([16, 112, 113]))
def test_cv2_remap_at_opencvs_positions_gives_the_crop(image: Uint8Array, x: int, y: int, side: int, size: int) -> None:
    offsets = ((np.arange(size) + 0.5) * side / size - 0.5).clip(0, side - 1)
    columns, rows = np.meshgrid((x + offsets).astype(np.float32), (y + offsets).astype(np.float32))
    expected = cv2.remap(image.astype(np.float32), columns, rows, cv2.INTER_LINEAR)
    # cv2.remap rounds positions to 1/32 pixel: 255 grey levels times 1/64 each way, and half a level of rounding.
    assert np.abs(crop_faces(image, window(x, y, side), size)[0] - expected).max() <= 255 / 32 + 0.51


@pytest.mark.parametrize(
    ("box", "corner", "side"),
    [
        # The protocol of the published evaluation, worked by hand: int(max(w, h) * 1.2) around the integer centre.
        ((10, 20, 60, 100), (-13, 12), 96),
        ((0, 0, 1, 1), (0, 0), 1),
        ((-7, -9, -4, -4), (-9, -10), 6),
        ((100, 50, 207, 181), (75, 37), 157),
    ],
)
def test_windows_follow_the_published_protocol(box: Any, corner: tuple[int, int], side: int) -> None:
    windows = crop_windows([box], 1.2)
    assert windows.sizes.tolist() == [side]
    assert windows.corners.tolist() == [list(corner)]


def test_a_box_smaller_than_a_pixel_gives_a_window_of_one(photo: Uint8Array) -> None:
    windows = crop_windows([[10.2, 10.2, 10.3, 10.3]], 1.2)
    assert (windows.sizes.tolist(), windows.corners.tolist()) == ([1], [[10, 10]])
    assert (crop_faces(photo, windows, 16)[0] == photo[10, 10]).all()


@given(st.lists(st.floats(-1e4, 1e4), min_size=196, max_size=196), st.integers(-999, 999), st.integers(1, 5000))
def test_to_crop_is_the_inverse_of_to_image(values: list[float], x: int, side: int) -> None:
    landmarks = np.array(values, np.float32).reshape(1, 98, 2)
    windows = window(x, -x, side)
    np.testing.assert_allclose(windows.to_image(windows.to_crop(landmarks)), landmarks, rtol=1e-5, atol=2e-3)


def test_the_crops_corners_are_fractions_zero_and_one() -> None:
    corners = np.array([[[0, 0], [1, 1], [0.5, 0.25]]], np.float32)
    assert window(-20, 40, 100).to_image(corners).tolist() == [[[-20, 40], [80, 140], [30, 65]]]


@pytest.mark.parametrize(
    "boxes",
    [
        [[np.nan, 0, 10, 10]],
        [[0, 0, np.inf, 10]],
        [[0, 0, 10, -np.inf]],
        [[0, 0, 2e9, 10]],
        [[10, 10, 10, 20]],
        [[10, 10, 5, 20]],
        [[1, 2, 3]],
        [1, 2, 3],
        [[[1, 2, 3, 4]]],
        [[1, 2, 3, 4], [1, 2]],
        "face",
        [["a", "b", "c", "d"]],
        None,
        {"x": 1},
        5,
    ],
    ids=repr,
)
def test_boxes_that_cannot_be_used_are_refused(boxes: object) -> None:
    with pytest.raises(BoxError, match=r"box"):
        crop_windows(boxes, 1.2)


def test_the_box_at_fault_is_named() -> None:
    with pytest.raises(BoxError, match=r"box 1 is \[5\.0, 5\.0, nan, 9\.0\].*finite"):
        crop_windows([[0, 0, 9, 9], [5, 5, np.nan, 9]], 1.2)


@pytest.mark.parametrize("boxes", [[], np.zeros((0, 4)), np.zeros((0, 5), np.float32), ()], ids=repr)
def test_zero_boxes_give_zero_windows(boxes: object, photo: Uint8Array) -> None:
    assert crop_faces(photo, crop_windows(boxes, 1.2), 112).shape == (0, 112, 112, 3)


def test_one_flat_box_and_a_detectors_score_are_accepted() -> None:
    for boxes in ([10, 20, 60, 100], [[10, 20, 60, 100, 0.93]], np.array([10, 20, 60, 100], np.float32)):
        assert crop_windows(boxes, 1.2).sizes.tolist() == [96]


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 0), np.uint8),
        np.zeros((5, 5, 2), np.uint8),
        np.zeros((5, 5, 5), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((1, 5, 5, 3), np.uint8),
        np.zeros((5, 5, 3), np.int32),
        np.zeros((5, 5, 3), bool),
        np.zeros((5, 5, 3), np.complex64),
        np.zeros((5, 5, 3), object),
        [[0, 0], [0, 0]],
        "photo.jpg",
        None,
    ],
    ids=lambda image: f"{image.dtype}{image.shape}" if isinstance(image, np.ndarray) else repr(image),
)
def test_images_that_cannot_be_used_are_refused(image: object) -> None:
    with pytest.raises(ImageError, match="image"):
        crop_faces(image, window(0, 0, 4), 16)

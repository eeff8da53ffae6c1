"""Any image and any boxes give landmarks or an error of the documented type."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from pfld_edge_runtime import BoxError, Contract, FaceLandmarker, ImageError, crop_faces, crop_windows

FIXTURE = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])

VIEWS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "flipped": lambda image: image[::-1],
    "mirrored": lambda image: image[:, ::-1],
    "channels reversed": lambda image: image[:, :, ::-1],
    "sliced": lambda image: image[::2, 1::3],
    "transposed": lambda image: image.transpose(1, 0, 2),
    "fortran": np.asfortranarray,
    "planar": lambda image: np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0),
    "repeated line": lambda image: np.broadcast_to(image[:1], image.shape),
    "repeated pixel": lambda image: np.broadcast_to(image[:1, :1], image.shape),
    "three of four channels": lambda image: np.dstack([image, image[:, :, :1]])[:, :, :3],
    "inside a larger photograph": lambda image: np.pad(image, ((2, 3), (4, 5), (0, 0)))[2:-3, 4:-5],
}


def attempt(call: Callable[[], NDArray[np.float32]], kind: type[ValueError]) -> tuple[NDArray[np.float32], str]:
    """Give the landmarks and a filler, or no face and the sentence of the error; any other error fails the test."""
    try:
        return call(), "the image and its boxes are all right"
    except kind as error:
        return np.zeros((0, 98, 2), np.float32), str(error)


@pytest.fixture
def landmarker(build: Callable[..., Path], contract: Contract) -> FaceLandmarker:
    return FaceLandmarker(build(contract))


@settings(max_examples=200)
@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(2, 40), st.integers(2, 40), st.just(3))),
    st.lists(st.sampled_from(sorted(VIEWS)), max_size=3),
    st.tuples(st.integers(-60, 60), st.integers(-60, 60), st.integers(1, 90)),
    st.booleans(),
)
def test_no_view_of_a_photograph_changes_its_crops(
    photo: NDArray[np.uint8], views: list[str], box: tuple[int, int, int], swap: bool
) -> None:
    view = photo
    for name in views:
        view = VIEWS[name](view) if VIEWS[name](view).size else view
    plain = view.copy(order="C")
    if view.flags.owndata:
        view.flags.writeable = False
    x, y, side = box
    windows = crop_windows([[x, y, x + side, y + side]], 1.2)
    crops = crop_faces(view, windows, 24, swap_channels=swap)
    np.testing.assert_array_equal(crops, crop_faces(plain, windows, 24, swap_channels=swap))
    np.testing.assert_array_equal(view, plain)


coordinates = st.one_of(
    st.floats(),
    st.integers(-(10**10), 10**10),
    st.sampled_from([0, -0.0, 1e-300, 1e9, -1e9, 1e18, 1e308, 2**63, 10**400, True, "7", "x", None, 1j, b"1"]),
)
boxes = st.one_of(
    st.lists(st.lists(coordinates, max_size=6), max_size=4),
    st.lists(st.floats(-200, 200), min_size=4, max_size=5),
    st.lists(st.lists(st.integers(-100, 100), min_size=4, max_size=5), max_size=4),
    arrays.arrays(
        st.one_of(arrays.floating_dtypes(), arrays.integer_dtypes(), arrays.complex_number_dtypes(), st.just(np.bool_)),
        arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6),
    ),
    coordinates,
)


@FIXTURE
@given(boxes)
def test_any_boxes_give_landmarks_or_one_sentence(landmarker: FaceLandmarker, boxes: object) -> None:
    photo = np.full((30, 40, 3), 90, np.uint8)
    found, said = attempt(lambda: landmarker(photo, boxes), BoxError)
    assert found.shape[1:] == (98, 2)
    assert np.isfinite(found).all()
    assert "box" in said
    assert "\n" not in said


images = st.one_of(
    arrays.arrays(
        st.one_of(
            st.just(np.uint8),
            arrays.floating_dtypes(),
            arrays.integer_dtypes(),
            arrays.complex_number_dtypes(),
            arrays.datetime64_dtypes(),
            arrays.unicode_string_dtypes(),
            st.just(np.bool_),
        ),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
    ),
    arrays.arrays(
        st.one_of(st.just(np.uint8), arrays.floating_dtypes()),
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 4])),
    ),
    st.none(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.lists(st.lists(st.integers(0, 255))),
)


@FIXTURE
@given(images)
def test_any_image_gives_landmarks_or_one_sentence(landmarker: FaceLandmarker, image: Any) -> None:
    found, said = attempt(lambda: landmarker(image, [[-1, 0, 5, 6], [2, 2, 3, 3]]), ImageError)
    assert np.isfinite(found).all()
    assert "image" in said
    assert "\n" not in said


def test_a_matrix_and_a_masked_array_are_read_as_plain_arrays(landmarker: FaceLandmarker) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    expected = landmarker(grey, [[1, 1, 6, 7]])
    with pytest.warns(PendingDeprecationWarning):
        matrix = np.matrix(grey)
    for image in (matrix, np.ma.masked_array(grey, grey > 9)):
        np.testing.assert_array_equal(landmarker(image, [[1, 1, 6, 7]]), expected)


def test_a_crowd_in_one_call_equals_one_by_one(landmarker: FaceLandmarker) -> None:
    """More faces than one run of the network takes."""
    photo = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    crowd = [[i % 50, i % 30, i % 50 + 20, i % 30 + 25] for i in range(70)]
    alone = np.concatenate([landmarker(photo, [box]) for box in crowd])
    np.testing.assert_allclose(landmarker(photo, crowd), alone, atol=1e-3)

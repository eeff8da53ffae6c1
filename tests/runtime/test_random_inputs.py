"""Any image, boxes and settings give landmarks or an error of the documented type."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from pfld_edge_runtime import (
    BoxError,
    Contract,
    DetectorError,
    DeviceError,
    FaceAnalyzer,
    FaceLandmarker,
    FaceTracker,
    ImageError,
    LandmarkError,
    ModelContractError,
    ModelFileError,
    OneEuro,
    PfldEdgeError,
    Smoothing,
    SmoothingError,
    TimestampError,
    TrackerError,
    YuNet,
    aligned_faces,
    crop_faces,
    crop_windows,
    head_pose,
    open_detector,
)
from pfld_edge_runtime.arrays import Float32Array, Uint8Array

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


def attempt(call: Callable[[], Float32Array], kind: type[ValueError]) -> tuple[Float32Array, str]:
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
    photo: Uint8Array, views: list[str], box: tuple[int, int, int], swap: bool
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


WRONG = ("1", 1.5, float("nan"), [1], ..., True, -1)
NUMBERS: dict[str, tuple[type[PfldEdgeError], Callable[..., object]]] = {
    "refine": (DetectorError, FaceAnalyzer),
    "max_faces": (DetectorError, FaceAnalyzer),
    "largest_side": (DetectorError, open_detector),
    "threads": (DeviceError, FaceLandmarker),
    "every": (TrackerError, FaceTracker),
    "search_every": (TrackerError, FaceTracker),
    "check_every": (TrackerError, FaceTracker),
}
"""Settings that are whole numbers, with their errors and whom they are given to."""


@pytest.mark.parametrize("value", WRONG, ids=str)
@pytest.mark.parametrize("name", NUMBERS)
def test_a_setting_that_is_no_whole_number_is_refused_by_its_name(name: str, value: object) -> None:
    error, make = NUMBERS[name]
    with pytest.raises(error, match=f"^{name} must be [01] or more and whole") as caught:
        make(**{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.int64(2), np.uint8(2)], ids=repr)
@pytest.mark.parametrize("name", NUMBERS)
def test_whole_numbers_of_numpy_are_whole_numbers(name: str, value: object) -> None:
    NUMBERS[name][1](**{name: value})


@pytest.mark.parametrize("value", ["1", None, [1], ..., True], ids=str)
def test_a_setting_that_is_no_number_is_refused_by_its_name(value: object) -> None:
    settings: dict[str, tuple[type[PfldEdgeError], Callable[..., object]]] = {
        "fps": (TrackerError, FaceTracker),
        "memory": (TrackerError, FaceTracker),
        "min_cutoff": (SmoothingError, OneEuro),
        "motion": (SmoothingError, Smoothing),
    }
    if value is not None:
        settings |= {
            "score_threshold": (DetectorError, open_detector),
            "nms_threshold": (DetectorError, open_detector),
            "smoothing": (TrackerError, FaceTracker),
        }
    for name, (error, make) in settings.items():
        with pytest.raises(error, match=name):
            make(**{name: value})


@pytest.mark.parametrize("model", [3, 0.5, ["a.onnx"], True, ..., FaceLandmarker, YuNet], ids=str)
def test_what_is_neither_file_nor_network_is_refused_as_a_model(model: Any) -> None:
    for error, make in (
        (ModelFileError, FaceLandmarker),
        (ModelContractError, lambda it: FaceAnalyzer(landmarker=it)),
        (DetectorError, open_detector),
        (DetectorError, FaceAnalyzer),
        (DetectorError, FaceTracker),
    ):
        with pytest.raises(error, match="found "):
            make(model)


@pytest.mark.parametrize("value", [np.zeros((2, 4)), ["rgb", "bgr"], {"x": 1}], ids=lambda it: type(it).__name__)
def test_an_argument_of_another_kind_is_refused_in_one_line(value: Any, photo: Uint8Array) -> None:
    points = np.random.default_rng(0).uniform(0, 99, (1, 98, 2))
    calls: list[tuple[type[PfldEdgeError], str, Callable[[], object]]] = [
        (ImageError, "color must be", lambda: FaceLandmarker()(photo, [[5, 5, 40, 40]], value)),
        (ImageError, "color must be", lambda: FaceAnalyzer()(photo, value)),
        (ImageError, "color must be", lambda: FaceTracker()(photo, 0, value)),
        (BoxError, "box", lambda: FaceAnalyzer(lambda _: value)(photo)),
        (TimestampError, "timestamp is", lambda: FaceTracker()(photo, value)),
        (ModelContractError, "contract must be a Contract", lambda: FaceLandmarker(contract=value)),
        (LandmarkError, "camera_matrix must", lambda: head_pose(points, (99, 99), value)),
    ]
    for error, words, call in calls:
        with pytest.raises(error, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given", [None, np.zeros((98, 2)), np.zeros((1, 68, 2)), np.zeros((1, 98, 3)), "points"], ids=np.shape
)
def test_a_landmarker_that_gives_no_landmarks_is_told_what_its_scheme_asks_for(given: Any, photo: Uint8Array) -> None:
    class Own:
        contract = Contract()

        def __call__(self, *_: object) -> Any:
            return given

    with pytest.raises(LandmarkError, match=r"the landmarker gave .* asks for \(1, 98, 2\)"):
        FaceAnalyzer(lambda _: [[5, 5, 40, 40]], Own())(photo)  # type: ignore[arg-type]
    assert len(FaceAnalyzer(lambda _: [], Own())(photo)) == 0  # type: ignore[arg-type]


def test_a_checkpoint_and_a_folder_are_told_from_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelFileError, match=r"net\.pth is a checkpoint: `pfld-edge convert`"):
        FaceLandmarker(tmp_path / "net.pth")
    with pytest.raises(ModelFileError, match="a folder, no such model file"):
        FaceLandmarker(tmp_path)


def test_a_litert_file_without_contract_is_named(tmp_path: Path) -> None:
    (tmp_path / "net.tflite").write_bytes(bytes(4) + b"TFL3" + bytes(50))
    with pytest.raises(ModelContractError, match=r"net\.tflite: the model carries no contract"):
        FaceLandmarker(tmp_path / "net.tflite")


@pytest.mark.parametrize(
    ("image", "mend"),
    [
        (None, r"cv2\.imread gives"),
        ("photo.jpg", r"read the file first"),
        (Path("photo.jpg"), r"read the file first"),
        ([[1, 2], [3, 4]], r"np\.asarray\(image, np\.uint8\)"),
        (Image.new("P", (4, 4)), r'image\.convert\("RGB"\)'),
        (np.zeros((3, 40, 50), np.uint8), r"image\.transpose\(1, 2, 0\)"),
        (np.zeros((1, 40, 50, 3), np.uint8), "one photograph a call"),
        (np.zeros((40, 50, 3), np.uint16), "65535"),
        (np.zeros((40, 50, 3), np.int64), r"astype\(np\.uint8\)"),
        (np.zeros((40, 50, 3), bool), r"astype\(np\.uint8\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_image_that_cannot_be_used_is_refused_with_its_mend(image: Any, mend: str) -> None:
    for find in (FaceAnalyzer(), FaceTracker(), lambda given: crop_faces(given, crop_windows([0, 0, 9, 9], 1), 8)):
        with pytest.raises(ImageError, match=mend):
            find(image)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan], ids=str)
def test_a_frame_that_is_not_finite_is_an_image_error_and_no_warning(value: float) -> None:
    with pytest.raises(ImageError, match=r"read as 0\.\.1"):
        FaceTracker()(np.full((60, 80, 3), value, np.float32))


@pytest.mark.parametrize("size", [(0, 0), (640, 480, 3), None, "640x480", (float("nan"), 480), (-640, 480)], ids=str)
def test_a_head_pose_asks_for_the_size_of_the_photograph(size: Any) -> None:
    with pytest.raises(LandmarkError, match=r"image\.shape\[1::-1\]"):
        head_pose(np.random.default_rng(0).uniform(0, 99, (1, 98, 2)), size)


@pytest.mark.parametrize("size", [0, -1, 1.5, "112"], ids=str)
def test_an_aligned_face_has_a_whole_size(size: Any) -> None:
    with pytest.raises(ImageError, match="size must be 1 or more and whole"):
        aligned_faces(np.zeros((9, 9, 3), np.uint8), np.random.default_rng(0).uniform(0, 9, (1, 98, 2)), size)


def test_results_are_compared_as_objects_without_an_error() -> None:
    faces = [FaceAnalyzer()(np.zeros((60, 80, 3), np.uint8)) for _ in "ab"]
    windows = [crop_windows([[0, 0, 9, 9], [1, 1, 9, 9]], 1) for _ in "ab"]
    assert (faces[0] == faces[0], faces[0] == faces[1], windows[0] == windows[1]) == (True, False, False)

"""The face detector that comes with the package: faces, points and roll, defaults, and its decoder on known outputs."""

import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_calib import Face, nme_per_face, portraits, read_photo
from pfld_edge_runtime import (
    BUNDLED_DETECTOR,
    FaceAnalyzer,
    FaceTracker,
    ModelFileError,
    PfldEdgeDetector,
    find_boxes,
    open_detector,
)
from pfld_edge_runtime.arrays import Float32Array, Float64Array, Uint8Array
from pfld_edge_runtime.detection.detector import Detections

PORTRAITS = portraits()


def overlap(one: NDArray[Any], other: NDArray[Any]) -> float:
    shared = np.maximum(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0).prod()
    return float(shared / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - shared))


def turned(photo: Uint8Array, angle: float) -> tuple[Uint8Array, Float64Array]:
    """Turned clockwise about its centre by cv2, in a square that holds it at any angle; and the matrix of the turn."""
    height, width = photo.shape[:2]
    side = int(np.hypot(height, width))
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), -angle, 1)
    matrix[:, 2] += (side - width) / 2, (side - height) / 2
    return np.asarray(cv2.warpAffine(photo, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE), np.uint8), matrix


@pytest.mark.parametrize("face", PORTRAITS, ids=lambda face: face.image.stem)
def test_the_face_of_each_portrait_is_found(face: Face) -> None:
    photo = read_photo(face.image)
    boxes, scores = find_boxes(open_detector(), photo, "bgr")
    assert len(boxes) == 1
    assert 0.5 <= scores[0] <= 1
    for side in (None, 160, 256, 640):
        boxes, _ = find_boxes(open_detector(largest_side=side), photo, "bgr")
        assert len(boxes) == 1
        assert overlap(boxes[0], face.bbox_xyxy) > 0.6


@pytest.mark.parametrize("face", PORTRAITS, ids=lambda face: face.image.stem)
@pytest.mark.parametrize("angle", [-90.0, -40.0, 40.0, 90.0, 150.0, 180.0])
def test_turned_faces_are_found_and_cropped_upright(face: Face, angle: float) -> None:
    assert face.landmarks is not None
    photo, matrix = turned(read_photo(face.image), angle)
    # Turned faces have lower scores.
    faces = FaceAnalyzer(open_detector(score_threshold=0.5, max_faces=1))(photo, "bgr")
    assert abs((faces.rolls[0] - angle + 180) % 360 - 180) < 20
    # cv2's integers are centres of pixels, landmarks' are their corners.
    truth = (face.landmarks - 0.5) @ matrix[:, :2].T + matrix[:, 2] + 0.5
    assert nme_per_face(faces.landmarks, truth[None].astype(np.float32), (60, 72))[0] < 0.05


def test_three_lines_give_the_landmarks_of_every_face() -> None:
    analyze = FaceAnalyzer()
    for face in PORTRAITS:
        faces = analyze(read_photo(face.image), "bgr")
        assert faces.landmarks.shape == (1, 98, 2)
        assert face.landmarks is not None
        assert nme_per_face(faces.landmarks, face.landmarks[None], (60, 72))[0] < 0.05


def test_both_portraits_side_by_side_are_two_faces() -> None:
    photos = [cv2.resize(read_photo(face.image), (500, 600)) for face in PORTRAITS]
    faces = FaceAnalyzer()(np.hstack(photos), "bgr")
    assert sorted(faces.landmarks.mean(axis=1)[:, 0] // 500) == [0, 1]


def test_every_face_of_a_group_is_found(shared: Path) -> None:
    for name, people in (("persons", 6), ("duo", 2), ("duo2", 2)):
        assert FaceAnalyzer()(read_photo(shared / f"photos/{name}.jpg"), "bgr").landmarks.shape == (people, 98, 2)


def test_a_tracker_without_arguments_follows_the_face() -> None:
    tracker, photo = FaceTracker(), read_photo(PORTRAITS[0].image)
    assert [tracker(photo, color="bgr").ids.tolist() for _ in range(3)] == [[0]] * 3


def test_a_picture_without_a_face_has_none() -> None:
    for image in (np.full((90, 120, 3), 90, np.uint8), np.zeros((1, 1), np.uint8), np.ones((3, 900, 4))):
        assert open_detector()(image).shape == (0, 5)
        assert len(FaceAnalyzer()(image)) == 0


def test_a_pickled_detector_finds_the_same_faces() -> None:
    detector, photo = open_detector(score_threshold=0.3, max_faces=1), read_photo(PORTRAITS[0].image)
    copy = pickle.loads(pickle.dumps(detector))  # noqa: S301 - our own bytes
    np.testing.assert_array_equal(copy(photo, "bgr"), detector(photo, "bgr"))


def test_the_file_is_small_and_is_opened_by_its_path_too() -> None:
    assert BUNDLED_DETECTOR.stat().st_size < 250_000
    assert type(open_detector(BUNDLED_DETECTOR)) is type(open_detector()) is PfldEdgeDetector


PHOTO = np.full((48, 64, 3), 90, np.uint8)


def network(folder: Path, dtype: int, maps: dict[int, Float32Array]) -> Path:
    """A network with an input of 64 x 64 that gives the same maps for every image."""
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"map{stride}"], [f"stride{stride}"]) for stride in maps],
        "constant",
        [helper.make_tensor_value_info("image", dtype, [1, 3, 64, 64])],
        [helper.make_tensor_value_info(f"stride{s}", TensorProto.FLOAT, cells.shape) for s, cells in maps.items()],
        [numpy_helper.from_array(cells, f"map{stride}") for stride, cells in maps.items()],
    )
    path = folder / "constant.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def known_maps() -> dict[int, Float32Array]:
    """One face of stride 16 in row 1, column 2 of 4: centre (2.75, 1.25) cells, 2 x 1 cells, leaning by 90 degrees."""
    maps = {stride: np.full((1, 11, 64 // stride, 64 // stride), -5, np.float32) for stride in (8, 16, 32)}
    eyes_and_mouth = [0, -0.5, 0, 0.5, -1, 0]  # left eye above the right one, the mouth to the left
    maps[16][0, :, 1, 2] = [np.log(3), 0.25, -0.25, np.log(2), 0, *eyes_and_mouth]
    return maps


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.UINT8])
def test_the_maps_are_decoded_as_they_are_defined(dtype: int, tmp_path: Path) -> None:
    detector = open_detector(network(tmp_path, dtype, known_maps()))
    # Sigmoid of log 3 is 3/4.
    np.testing.assert_allclose(detector(PHOTO), [[28, 12, 60, 28, 0.75]], atol=1e-4)
    found = Detections.find(detector, PHOTO, "rgb")
    np.testing.assert_allclose(found.rolls, [90], atol=1e-4)


def test_a_score_at_the_threshold_is_a_face(tmp_path: Path) -> None:
    path = network(tmp_path, TensorProto.FLOAT, known_maps())
    assert len(open_detector(path, score_threshold=0.74)(PHOTO)) == 1
    assert len(open_detector(path, score_threshold=0.76)(PHOTO)) == 0
    assert len(open_detector(path, score_threshold=0, nms_threshold=1)(PHOTO)) == 64 + 16 + 4
    assert len(open_detector(path, score_threshold=1)(PHOTO)) == 0


def test_other_maps_are_no_detector(tmp_path: Path) -> None:
    maps = {stride: cells[:, :10] for stride, cells in known_maps().items()}
    with pytest.raises(ModelFileError, match="not a detector of a kind known here"):
        open_detector(network(tmp_path, TensorProto.FLOAT, maps))

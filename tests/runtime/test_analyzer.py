"""`FaceAnalyzer`: detection, refinement in tight boxes, order of faces, and invalid arguments."""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pfld_edge_calib import portraits, read_photo
from pfld_edge_runtime import (
    BoxError,
    BoxMap,
    Contract,
    DetectorError,
    FaceAnalyzer,
    FaceDetector,
    FaceLandmarker,
    ImageError,
    PfldEdgeError,
    tight_box,
)
from pfld_edge_runtime.arrays import Float32Array, Uint8Array

Build = Callable[..., Path]

BOXES = np.array([[10, 10, 50, 55, 0.5], [-30, -5, 20, 40, 0.9], [60, 40, 300, 200, 0.7]], np.float32)


def published_box(landmarks: NDArray[np.floating]) -> list[int]:
    """PFLD's data preparation: ``astype(np.int32)`` of the extremes, and a width of greatest - least + 1."""
    low, high = np.min(landmarks, axis=0).astype(np.int32), np.max(landmarks, axis=0).astype(np.int32)
    return [*low, *(low + (high - low + 1))]


class Halved(FaceDetector):
    """Gives known boxes, which its map halves about their centres; notes the colour it was told."""

    box_map = BoxMap(scale=(0.5, 0.5))

    def __init__(self) -> None:
        self.colors: list[str] = []

    def _detect(self, image: NDArray[np.generic], color: str) -> Float32Array:  # noqa: ARG002 - an answer known
        self.colors.append(color)
        return BOXES


@pytest.fixture
def landmarker(build: Build, contract: Contract) -> FaceLandmarker:
    """The small network."""
    return FaceLandmarker(build(contract))


def test_landmarks_are_the_landmarkers_in_the_mapped_boxes_best_score_first(
    landmarker: FaceLandmarker, photo: Uint8Array
) -> None:
    faces = FaceAnalyzer(Halved(), landmarker, refine=0)(photo)
    expected = np.array([[-17.5, 6.25, 7.5, 28.75], [120, 80, 240, 160], [20, 21.25, 40, 43.75]])
    np.testing.assert_allclose(faces.boxes, expected)
    np.testing.assert_array_equal(faces.landmarks, landmarker(photo, expected))
    np.testing.assert_array_equal(faces.scores, np.float32([0.9, 0.7, 0.5]))


def test_each_refining_pass_cuts_by_the_tight_box_of_the_landmarks_before(
    landmarker: FaceLandmarker, photo: Uint8Array
) -> None:
    passes = [FaceAnalyzer(lambda _: BOXES, landmarker, refine=count)(photo) for count in range(3)]
    for before, after in itertools.pairwise(passes):
        np.testing.assert_array_equal(after.boxes, [published_box(points) for points in before.landmarks])
        np.testing.assert_array_equal(after.landmarks, landmarker(photo, after.boxes))


def test_what_was_not_asked_for_is_marked_so(landmarker: FaceLandmarker, photo: Uint8Array) -> None:
    faces = FaceAnalyzer(lambda _: BOXES[:, :4], landmarker)(photo)
    assert len(faces) == 3
    assert np.isnan(faces.confidences).all()
    assert np.isnan(faces.scores).all()
    assert (faces.ids == -1).all()
    assert faces.image_size == (80, 60)
    assert faces.scheme == landmarker.contract.landmarks
    np.testing.assert_array_equal(faces.landmarks, landmarker(photo, faces.boxes))


def test_max_faces_takes_the_best_and_without_scores_the_first(landmarker: FaceLandmarker, photo: Uint8Array) -> None:
    best = FaceAnalyzer(lambda _: BOXES, landmarker, 0, max_faces=1)(photo)
    np.testing.assert_array_equal(best.boxes, BOXES[1:2, :4])
    first = FaceAnalyzer(lambda _: BOXES[:, :4], landmarker, 0, max_faces=2)(photo)
    np.testing.assert_array_equal(first.boxes, BOXES[:2, :4])


@pytest.mark.parametrize("refine", [0, 1])
@pytest.mark.parametrize("nothing", [[], np.zeros((0, 4)), np.zeros((0, 5), np.float32)], ids=["list", "4", "5"])
def test_no_face_is_no_error(landmarker: FaceLandmarker, photo: Uint8Array, nothing: object, refine: int) -> None:
    faces = FaceAnalyzer(lambda _: nothing, landmarker, refine)(photo)
    assert len(faces) == 0
    assert faces.landmarks.shape == (0, 98, 2)
    assert (faces.boxes.shape, faces.scores.shape) == ((0, 4), (0,))
    assert (faces.ids.shape, faces.confidences.shape) == ((0,), (0,))


def test_both_stages_are_told_the_colour(landmarker: FaceLandmarker, photo: Uint8Array) -> None:
    detector = Halved()
    analyzer = FaceAnalyzer(detector, landmarker)
    expected = analyzer(photo).landmarks
    np.testing.assert_array_equal(analyzer(photo[:, :, ::-1], "bgr").landmarks, expected)
    assert detector.colors == ["rgb", "bgr"]


def test_arrays_have_the_promised_types(landmarker: FaceLandmarker, photo: Uint8Array) -> None:
    faces = FaceAnalyzer(lambda _: BOXES, landmarker)(photo)
    floats = (faces.landmarks, faces.boxes, faces.scores, faces.confidences)
    assert {array.dtype for array in floats} == {np.dtype(np.float32)}
    assert faces.ids.dtype == np.int64


def test_one_analyzer_serves_many_threads(landmarker: FaceLandmarker, photo: Uint8Array) -> None:
    analyzer = FaceAnalyzer(lambda _: BOXES, landmarker)
    expected = analyzer(photo).landmarks
    with ThreadPoolExecutor(4) as pool:
        for faces in pool.map(lambda _: analyzer(photo), range(16)):
            np.testing.assert_array_equal(faces.landmarks, expected)


@pytest.mark.parametrize("given", [[[1, 2, 3]], [[5, 5, 5, 9]], "boxes", [[0, 0, 9, 9, 0.5, 1]]])
def test_a_detector_that_gives_no_boxes_gets_a_sentence(
    landmarker: FaceLandmarker, photo: Uint8Array, given: object
) -> None:
    with pytest.raises(BoxError):
        FaceAnalyzer(lambda _: given, landmarker)(photo)


def test_settings_and_images_that_cannot_be_used_are_refused(landmarker: FaceLandmarker, photo: Uint8Array) -> None:
    with pytest.raises(DetectorError, match="refine must be 0 or more"):
        FaceAnalyzer(Halved(), landmarker, refine=-1)
    with pytest.raises(DetectorError, match="max_faces must be 1 or more"):
        FaceAnalyzer(Halved(), landmarker, max_faces=0)
    with pytest.raises(DetectorError, match="unknown detector 'haar'"):
        FaceAnalyzer("haar", landmarker)
    for image in (photo[:0], photo.astype(int), None):
        with pytest.raises(ImageError):
            FaceAnalyzer(Halved(), landmarker)(image)  # type: ignore[arg-type]
    with pytest.raises(PfldEdgeError):
        FaceAnalyzer(lambda _: BOXES, landmarker)(photo, "grb")


def test_tight_boxes_truncate_as_the_published_protocol_does() -> None:
    points = np.array([[[1.2, 7.9], [3.0, 2.5]], [[-0.5, 0], [0.2, 0]], [[-3.7, -2.2], [-1.5, -0.3]]])
    expected = [[1, 2, 4, 8], [0, 0, 1, 1], [-3, -2, 0, 1]]
    np.testing.assert_array_equal(tight_box(points), expected)
    np.testing.assert_array_equal([published_box(face) for face in points], expected)
    np.testing.assert_array_equal(tight_box(points[2]), expected[2])


@pytest.mark.parametrize("file", ["yunet_n_dynamic.onnx", "scrfd_500m_kps.onnx", "version-RFB-320.onnx"])
def test_the_portraits_landmarks_are_found_without_boxes(shared: Path, file: str) -> None:
    analyzer = FaceAnalyzer(shared / "models/detectors" / file)
    for face in portraits():
        photo = read_photo(face.image)
        faces = analyzer(photo, "bgr")
        assert len(faces) == 1
        assert face.landmarks is not None
        eyes = np.hypot(*(face.landmarks[60] - face.landmarks[72]))
        assert np.hypot(*(faces.landmarks[0] - face.landmarks).T).mean() / eyes < 0.08
        grey = analyzer(cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY))
        assert len(grey) == 1

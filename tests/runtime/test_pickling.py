"""Landmarkers, detectors, analyzers and trackers go to other processes, and take the same words for their networks."""

import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pfld_edge_calib import portraits, read_photo
from pfld_edge_runtime import (
    BUNDLED_MODEL,
    Contract,
    DetectorError,
    FaceAnalyzer,
    FaceLandmarker,
    FaceTracker,
    ModelContractError,
    ModelFileError,
    open_detector,
)
from pfld_edge_runtime.arrays import Float32Array, Uint8Array
from pfld_edge_runtime.session import open_session

BOXES = [[10, 5, 60, 50]]


def boxes(_: NDArray[np.generic]) -> list[list[int]]:
    """A detector that can be pickled."""
    return BOXES


def landmarks(callable_: Callable[..., Any], photo: Uint8Array) -> Float32Array:
    found: Float32Array = callable_(photo).landmarks
    return found


def test_landmarkers_analyzers_and_trackers_are_pickled_by_their_files(photo: Uint8Array) -> None:
    landmarker = FaceLandmarker()
    copy = pickle.loads(pickle.dumps(landmarker))  # noqa: S301 - bytes of our own
    np.testing.assert_array_equal(copy(photo, BOXES), landmarker(photo, BOXES))
    for whole in (FaceAnalyzer(boxes, landmarker), FaceTracker(boxes, landmarker)):
        data = pickle.dumps(whole)
        assert len(data) < BUNDLED_MODEL.stat().st_size / 4
        again = pickle.loads(data)  # noqa: S301 - bytes of our own
        np.testing.assert_array_equal(landmarks(again, photo), landmarks(whole, photo))


def test_a_copy_finds_its_file_from_another_working_folder(
    tmp_path: Path, photo: Uint8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(BUNDLED_MODEL.parent)
    detector = "face-detector.int8.onnx"
    made = FaceLandmarker(BUNDLED_MODEL.name), open_detector(detector), type(open_detector())(detector)
    data = pickle.dumps(made)
    monkeypatch.chdir(tmp_path)
    copies = pickle.loads(data)  # noqa: S301 - bytes of our own
    np.testing.assert_array_equal(copies[0](photo, BOXES), made[0](photo, BOXES))
    for copy in copies[1:]:
        np.testing.assert_array_equal(copy(photo), made[1](photo))


def test_a_tracker_goes_on_where_it_was_pickled(photo: Uint8Array) -> None:
    tracker = FaceTracker(boxes)
    tracker(photo)
    copy = pickle.loads(pickle.dumps(tracker))  # noqa: S301 - bytes of our own
    for _ in range(3):
        expected, found = tracker(photo), copy(photo)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.landmarks, expected.landmarks)


def test_a_spawned_process_finds_landmarks(photo: Uint8Array) -> None:
    landmarker = FaceLandmarker()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(landmarker, photo, BOXES).result(timeout=120)
    np.testing.assert_array_equal(found, landmarker(photo, BOXES))


@pytest.mark.parametrize("file", ["yunet_n_dynamic.onnx", "scrfd_500m_kps.onnx", "version-RFB-320.onnx"])
def test_detectors_are_pickled_with_their_settings(shared: Path, file: str) -> None:
    path = shared / "models/detectors" / file
    photo = read_photo(portraits()[0].image)
    opened = open_detector(path, score_threshold=0.3, max_faces=1)
    for detector in (opened, type(opened)(path, 0.3, max_faces=1), type(opened)(path.read_bytes(), 0.3, max_faces=1)):
        copy = pickle.loads(pickle.dumps(detector))  # noqa: S301 - bytes of our own
        np.testing.assert_array_equal(copy(photo, "bgr"), detector(photo, "bgr"))
    with pytest.raises(TypeError, match="open session can't be pickled"):
        pickle.dumps(type(opened)(open_session(path)))


@pytest.mark.parametrize("kind", [FaceAnalyzer, FaceTracker])
def test_networks_are_named_by_their_files(
    kind: Callable[..., Any], build: Callable[..., Path], contract: Contract, photo: Uint8Array
) -> None:
    path = build(contract)
    expected = landmarks(kind(boxes, FaceLandmarker(path)), photo)
    for given in (path, str(path), path.read_bytes(), FaceLandmarker(path).model):
        np.testing.assert_array_equal(landmarks(kind(boxes, given), photo), expected)


@pytest.mark.parametrize("kind", [FaceAnalyzer, FaceTracker])
def test_what_is_no_network_is_refused_at_construction(kind: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(DetectorError, match="unknown detector 'haar'"):
        kind("haar")
    for wrong in (5, BOXES):
        with pytest.raises(DetectorError, match=r"a detector is bundled, yunet, .* or a callable"):
            kind(wrong)
    with pytest.raises(ModelFileError, match="no such model file"):
        kind(boxes, tmp_path / "own.onnx")
    with pytest.raises(ModelContractError, match="a landmarker is"):
        kind(boxes, 5)


def test_an_analyzers_landmarker_needs_a_contract() -> None:
    with pytest.raises(ModelContractError, match="has no contract"):
        FaceAnalyzer(boxes, lambda *_: np.zeros((1, 98, 2)))  # type: ignore[arg-type]

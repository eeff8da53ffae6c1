"""Calibration faces: chosen evenly, doubted where odd, cached, found by a detector."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfld_edge_calib import PORTRAITS, FaceSetError, as_detected, cut_faces, portraits, refined
from pfld_edge_calib.calibration import calibration_candidates, calibration_warnings, pose_features, stratified_sample
from pfld_edge_calib.find_landmarks import detected_faces
from pfld_edge_convert.calibration import CalibrationSource, calibration_crops, crop_cache_folder
from pfld_edge_runtime import Contract, LandmarkModel, open_detector
from pfld_edge_runtime.arrays import Float32Array, Uint8Array

CONTRACT = Contract(input_size=48)


@settings(max_examples=50, deadline=None)
@given(count=st.integers(3, 200), limit=st.integers(1, 80), seed=st.integers(0, 99))
def test_the_choice_is_even_over_the_cells(count: int, limit: int, seed: int) -> None:
    features = np.random.default_rng(seed).standard_t(2, (count, 2))
    features[:, 1] = np.nan
    rows = stratified_sample(features, (3, 2), limit, seed)
    assert len(rows) == min(count, limit)
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, stratified_sample(features, (3, 2), limit, seed))
    # No third gives two more than another that still has some.
    thirds = np.searchsorted(np.quantile(features[:, 0], [1 / 3, 2 / 3]), features[:, 0])
    taken, there = (np.bincount(values, minlength=3) for values in (thirds[rows], thirds))
    spare = taken < there
    if spare.any():
        assert taken.max() - taken[spare].min() <= 1


def test_a_turned_face_has_a_pose() -> None:
    (turn, tilt), *_ = pose_features(portraits())
    assert abs(turn) < 0.5
    assert abs(tilt) < 0.5


def test_boxes_err_around_the_true_one() -> None:
    face = portraits()[0]
    boxes = np.stack([item.bbox_xyxy for item in as_detected([face] * 400, seed=1)])
    side = (face.bbox_xyxy[2:] - face.bbox_xyxy[:2]).max()
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2 - (face.bbox_xyxy[:2] + face.bbox_xyxy[2:]) / 2
    assert centers.std() / side == pytest.approx(0.03, rel=0.15)
    assert np.abs(centers.mean(axis=0)).max() < 0.01 * side


def test_few_faces_and_swapped_colours_are_doubted() -> None:
    crops = np.concatenate([next(cut_faces(as_detected(portraits() * 8, seed), CONTRACT)).crops for seed in range(2)])
    assert calibration_warnings(crops, "bgr") == ()
    (swapped,) = calibration_warnings(crops, "rgb")
    assert "are bluer than red: are they really in RGB order?" in swapped
    assert "10 calibration faces are few" in calibration_warnings(crops[:10], "bgr")[0]
    grey = np.repeat(crops[:, :, :, :1], 3, axis=3)
    assert calibration_warnings(grey, "rgb") == ()


def test_crops_are_cached_and_a_damaged_cache_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = CalibrationSource(PORTRAITS / "landmarks.csv", seed=3)
    first = calibration_crops(source, CONTRACT)
    assert first.source == "2 faces of landmarks.csv, seed 3, boxes jittered"
    (file,) = crop_cache_folder().iterdir()
    monkeypatch.setattr("pfld_edge_convert.calibration._chosen", lambda *_: pytest.fail("cut again"))
    np.testing.assert_array_equal(calibration_crops(source, CONTRACT).crops, first.crops)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file.write_bytes(file.read_bytes()[:50])
    np.testing.assert_array_equal(calibration_crops(source, CONTRACT).crops, first.crops)
    other = calibration_crops(CalibrationSource(PORTRAITS / "landmarks.csv", seed=4, jitter=False), CONTRACT)
    assert (other.crops != first.crops).any()
    assert len(list(crop_cache_folder().iterdir())) == 2


@pytest.mark.parametrize(
    ("content", "detected", "message"),
    [
        ("", True, "no photographs in it"),
        ("a.jpg\n", True, "a.jpg is missing"),
        ("a.jpg\n", False, "give a detector too"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(tmp_path: Path, content: str, detected: bool, message: str) -> None:
    (tmp_path / "list.txt").write_text(content, encoding="utf-8")
    with pytest.raises(FaceSetError, match=message):
        calibration_candidates(tmp_path / "list.txt", detector=whole_picture if detected else None)


def whole_picture(photo: Uint8Array) -> Float32Array:
    """A detector that finds one face in every photograph."""
    return np.array([[0, 0, photo.shape[1], photo.shape[0]]], np.float32)


@pytest.mark.parametrize("kind", ["folder", "list", "csv", "boxes"])
def test_a_photograph_that_cannot_be_read_does_not_cost_the_others(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    folder.mkdir()
    names = [face.image.name for face in portraits()]
    for face in portraits():
        (folder / face.image.name).write_bytes(face.image.read_bytes())
    (folder / "broken.jpg").write_bytes(b"damaged")
    (folder / "._broken.jpg").write_bytes(b"resource fork")
    rows = "".join(f"{name},10,10,200,200\n" for name in [names[0], "broken.jpg", names[1], "broken.jpg"])
    (folder / "list.txt").write_text("\n".join([*names, "broken.jpg"]))
    (folder / "faces.csv").write_text("image,x0,y0,x1,y1\n" + rows)
    if kind == "boxes":
        (folder / "faces.csv").rename(folder / "boxes.csv")
    path = {"list": folder / "list.txt", "csv": folder / "faces.csv"}.get(kind, folder)
    if kind == "list":
        complaints: list[FaceSetError] = []
        found = calibration_candidates(path, None, whole_picture, CONTRACT, skip=complaints.append)
        assert [face.image.name for face in found] == names
        assert len(complaints) == 1
        return
    model = LandmarkModel.open() if kind == "folder" else None
    contract = CONTRACT if model is None else model.contract
    source = CalibrationSource(path, detector="bundled" if model else None, model=model)
    # Again and again: a run's complaints are not lost in the cache.
    for _ in range(2):
        complaints = []
        assert len(calibration_crops(source, contract, skip=complaints.append).crops) == 2
        assert {str(error) for error in complaints} == {
            (
                f"{folder}/broken.jpg: not an image that can be read, or a damaged one (JPEG, PNG, TIFF, AVIF, WebP, "
                "GIF, BMP expected)"
            )
        }
    with pytest.raises(FaceSetError, match=r"broken\.jpg"):
        calibration_crops(source, contract)


def test_photographs_without_a_face_are_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "face.jpg").write_bytes(portraits()[0].image.read_bytes())
    cv2.imwrite(str(folder / "wall.png"), np.full((300, 400, 3), 128, np.uint8))
    model = LandmarkModel.open()
    source = CalibrationSource(folder, detector="bundled", model=model)
    for _ in range(2):  # the second time from the cache
        found = calibration_crops(source, model.contract)
        assert len(found.crops) == 1
        assert found.faceless == (str(folder / "wall.png"),)
    with pytest.raises(FaceSetError, match="give a detector"):
        calibration_candidates(folder)


def test_sure_faces_of_any_detector_that_are_large_enough_are_taken(tmp_path: Path) -> None:
    photo = tmp_path / "a.png"
    cv2.imwrite(str(photo), np.zeros((40, 40, 3), np.uint8))
    boxes = np.array([[0, 0, 32, 10, 0.7], [0, 0, 31, 31, 0.9], [0, 0, 32, 32, 0.6]], np.float32)
    (face,) = detected_faces([photo], lambda _: boxes, CONTRACT)
    assert face.bbox_xyxy.tolist() == [0, 0, 32, 10]
    assert len(detected_faces([photo], lambda _: boxes[:, :4], CONTRACT)) == 2
    with pytest.raises(FaceSetError, match="no face of 32 pixels or more in 1 photographs"):
        detected_faces([photo], lambda _: [], CONTRACT)


def test_detected_boxes_become_those_of_the_landmarks(shared: Path) -> None:
    faces = portraits()
    detector = open_detector(shared / "models/detectors/yunet_n_dynamic.onnx")
    model = LandmarkModel.open()
    found = refined(detected_faces([face.image for face in faces], detector, model.contract), model)
    assert len(found) == 2
    for face, expected in zip(found, faces, strict=True):
        side = (expected.bbox_xyxy[2:] - expected.bbox_xyxy[:2]).max()
        assert np.abs(face.bbox_xyxy - expected.bbox_xyxy).max() < 0.06 * side

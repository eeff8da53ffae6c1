"""Readers of face sets: what they take, and what they say of what they can't."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from pfld_edge_calib import FaceSetError, calibration_faces, cut_faces, labelled_faces, portraits, tight_box
from pfld_edge_runtime import WFLW_98, Contract


def wflw_folder(root: Path, lines: list[str], split: str = "train") -> Path:
    lists = root / "WFLW_annotations/list_98pt_rect_attr_train_test"
    lists.mkdir(parents=True)
    (root / "WFLW_images/1--Handshaking").mkdir(parents=True)
    (lists / f"list_98pt_rect_attr_{split}.txt").write_text("\n".join(lines))
    image = np.random.default_rng(0).integers(0, 256, (80, 90, 3), np.uint8)
    cv2.imwrite(str(root / "WFLW_images/1--Handshaking/a.png"), image)
    return root


def wflw_line(landmarks: np.ndarray, flags: str = "1 0 0 0 1 0") -> str:
    numbers = " ".join(f"{value:.4f}" for value in landmarks.ravel())
    return f"{numbers} 1 2 3 4 {flags} 1--Handshaking/a.png"


LANDMARKS = np.random.default_rng(1).uniform(10, 70, (98, 2)).astype(np.float32)


def test_the_official_training_list_is_read(tmp_path: Path) -> None:
    faces = labelled_faces(wflw_folder(tmp_path, [wflw_line(LANDMARKS)] * 2), split="train")
    assert len(faces) == 2
    assert faces[0].attributes == {"largepose", "occlusion"}
    np.testing.assert_allclose(faces[0].landmarks, LANDMARKS, atol=1e-3)


def test_crops_are_those_of_opencv(tmp_path: Path) -> None:
    faces = labelled_faces(wflw_folder(tmp_path, [wflw_line(LANDMARKS)]), split="train")
    (batch,) = cut_faces(faces, Contract())
    photo = cv2.imread(str(faces[0].image))
    (x, y), side = batch.windows.corners[0], int(batch.windows.sizes[0])
    padded = cv2.copyMakeBorder(photo, 200, 200, 200, 200, cv2.BORDER_CONSTANT, value=0)
    expected = cv2.resize(padded[y + 200 : y + 200 + side, x + 200 : x + 200 + side], (112, 112))
    assert np.abs(batch.crops[0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 2 3", "line 1: expected 207 columns, found 3"),
        (wflw_line(LANDMARKS).replace("1 0 0 0 1 0", "x 0 0 0 1 0"), "line 1: invalid literal"),
        (wflw_line(LANDMARKS * np.nan), "not a finite number"),
        ("", "the list is empty"),
    ],
)
def test_a_damaged_list_names_its_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(FaceSetError, match=message):
        labelled_faces(wflw_folder(tmp_path, [line]), split="train")


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(FaceSetError, match=r"list_98pt_rect_attr_test\.txt"):
        labelled_faces(wflw_folder(tmp_path, [wflw_line(LANDMARKS)]), split="test")


def test_the_test_faces_are_never_calibrated_on(tmp_path: Path) -> None:
    with pytest.raises(FaceSetError, match="never calibrated on"):
        calibration_faces(wflw_folder(tmp_path, [wflw_line(LANDMARKS)], split="test"))


@pytest.mark.parametrize("points", [5, 68, 98])
def test_a_csv_of_any_number_of_points_is_read(tmp_path: Path, points: int) -> None:
    header = ["image", "weight", *(f"{axis}{i}" for i in range(points) for axis in "xy")]
    row = ["face_1.png", "0.5", *map(str, range(2 * points))]
    (tmp_path / "set.csv").write_text(",".join(header) + "\n" + ",".join(row) + "\n")
    (face,) = labelled_faces(tmp_path / "set.csv")
    assert face.landmarks is not None
    assert face.landmarks.shape == (points, 2)
    assert (face.weight, face.image) == (0.5, tmp_path / "face_1.png")


def test_each_point_of_a_csv_may_have_its_own_trust(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text("image,x0,y0,x1,y1,c0,c1\na.png,1,2,3,4,0.25,1\n")
    (face,) = labelled_faces(tmp_path / "set.csv")
    assert face.landmarks is not None
    assert face.landmarks.tolist() == [[1, 2], [3, 4]]
    assert face.point_weights is not None
    assert face.point_weights.tolist() == [0.25, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,x0,y0,c1\na,1,2,1\n", "header must read"),
        ("image,x0,y0,c0\na,1,2,1.5\n", "trust from 0 to 1"),
        ("picture,x0,y0\na,1,2\n", "header must read"),
        ("image,x0,y0\na,1\n", "line 2: expected 3 columns, found 2"),
        ("image,x0,y0\na,1,nan\n", "must be finite"),
        ("image,x0,y0\n", "at least one face"),
    ],
)
def test_a_damaged_csv_says_where(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "set.csv").write_text(text)
    with pytest.raises(FaceSetError, match=message):
        labelled_faces(tmp_path / "set.csv")


def test_a_photo_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"not an image")
    with pytest.raises(FaceSetError, match=r"a\.jpg: not an image"):
        calibration_faces(tmp_path)


def test_calibration_takes_the_faces_of_a_boxes_file(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("image,x0,y0,x1,y1\na.png,1,2,30,40\na.png,5,6,70,80\n")
    faces = calibration_faces(tmp_path)
    assert sorted(face.bbox_xyxy.tolist() for face in faces) == [[1, 2, 30, 40], [5, 6, 70, 80]]


def test_the_bundled_portraits_calibrate_under_many_boxes() -> None:
    faces = calibration_faces(None, limit=64)
    assert len(faces) == 64
    assert len({tuple(face.bbox_xyxy) for face in faces}) == 64


def test_the_portraits_eyes_lie_inside_their_faces() -> None:
    for face in portraits():
        assert face.landmarks is not None
        x0, y0, x1, y1 = face.bbox_xyxy
        left, right = face.landmarks[WFLW_98.names.index("left_pupil_0")], face.landmarks[97]
        assert x0 < left[0] < right[0] < x1
        assert y0 < min(left[1], right[1]) < (y0 + y1) / 2


def test_the_tight_box_is_the_published_protocols() -> None:
    box = tight_box(np.array([[10.7, 20.2], [30.9, 41.0]]))
    assert box.tolist() == [10, 20, 31, 42]

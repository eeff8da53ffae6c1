"""Datasets: what their readers find, in which order, and how they refuse what they can't read."""

import csv
import gzip
import io
import json
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pfld_edge_calib import PORTRAITS, Face, FaceSetError, cut_faces, open_faces, portraits, read_photo, read_points_csv
from pfld_edge_calib.calibration import calibration_candidates
from pfld_edge_calib.datasets.open_faces import FaceSet, is_sharded
from pfld_edge_calib.face import Unit, unit_faces
from pfld_edge_calib.parallel import ResultsFolder, unit_results
from pfld_edge_calib.photo import decode_photo
from pfld_edge_runtime import WFLW_98, Contract, tight_box


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
    return f"{numbers} 10 10 70 70 {flags} 1--Handshaking/a.png"


LANDMARKS = np.random.default_rng(1).uniform(10, 70, (98, 2)).astype(np.float32)


def test_the_official_training_list_is_read(tmp_path: Path) -> None:
    faces = open_faces(wflw_folder(tmp_path, [wflw_line(LANDMARKS)] * 2), split="train").load()
    assert len(faces) == 2
    assert faces[0].attributes == {"largepose", "occlusion"}
    np.testing.assert_allclose(faces[0].landmarks, LANDMARKS, atol=1e-3)


def test_crops_are_those_of_opencv(tmp_path: Path) -> None:
    faces = open_faces(wflw_folder(tmp_path, [wflw_line(LANDMARKS)]), split="train").load()
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
        (wflw_line(LANDMARKS).replace("1 0 0 0 1 0", "x 0 0 0 1 0"), "line 1: could not convert"),
        (wflw_line(LANDMARKS).replace(".", ",", 1), "line 1: .* write a decimal point"),
        (wflw_line(LANDMARKS * np.nan), "line 1: landmarks must be finite"),
        ("", "the list is empty"),
    ],
)
def test_a_damaged_list_names_its_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(FaceSetError, match=message):
        open_faces(wflw_folder(tmp_path, [line]), split="train").load()


def test_the_name_of_a_listed_photograph_may_hold_blanks(tmp_path: Path) -> None:
    line = wflw_line(LANDMARKS).replace("a.png", "two words.png \r")
    (face,) = open_faces(wflw_folder(tmp_path, [line]), split="train").load()
    assert face.image.name == "two words.png"


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(FaceSetError, match=r"list_98pt_rect_attr_test\.txt"):
        open_faces(wflw_folder(tmp_path, [wflw_line(LANDMARKS)]), split="test").load()


def test_the_test_faces_are_never_calibrated_on(tmp_path: Path) -> None:
    with pytest.raises(FaceSetError, match="never calibrated on"):
        calibration_candidates(wflw_folder(tmp_path, [wflw_line(LANDMARKS)], split="test"))


@pytest.mark.parametrize("points", [5, 68, 98])
def test_a_csv_of_any_number_of_points_is_read(tmp_path: Path, points: int) -> None:
    header = ["image", "weight", *(f"{axis}{i}" for i in range(points) for axis in "xy")]
    row = ["face_1.png", "0.5", *map(str, range(2 * points))]
    (tmp_path / "set.csv").write_text(",".join(header) + "\n" + ",".join(row) + "\n")
    (face,) = open_faces(tmp_path / "set.csv").load()
    assert face.landmarks is not None
    assert face.landmarks.shape == (points, 2)
    assert (face.weight, face.image) == (0.5, tmp_path / "face_1.png")


def test_each_point_of_a_csv_may_have_its_own_trust(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text("image,x0,y0,x1,y1,c0,c1\na.png,1,2,3,4,0.25,1\n")
    (face,) = open_faces(tmp_path / "set.csv").load()
    assert face.landmarks is not None
    assert face.landmarks.tolist() == [[1, 2], [3, 4]]
    assert face.point_weights is not None
    assert face.point_weights.tolist() == [0.25, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,x0,y0,c1\na,1,2,1\n", "header must read"),
        ("image,x0,y0,c0\na,1,2,1.5\n", "trust must be from 0 to 1"),
        ("picture,x0,y0\na,1,2\n", r"header must read.*; it reads picture,x0,y0$"),
        ("image;x0;y0\na;1;2\n", "columns are parted by commas, and numbers have a decimal point"),
        ("image\tx0\ty0\na\t1\t2\n", "columns are parted by commas"),
        ("", "has none|is empty"),
        ('image,x0,y0\na,"1,5",2\n', "line 2: .* write a decimal point"),
        ("image,x0,y0\na,1\n", "line 2: expected 3 columns, found 2"),
        ("image,x0,y0\na,1,nan\n", "must be finite"),
        ("image,x0,y0\n", "at least one face"),
        ('{"images": [], "annotations": []}', r"header must read.*; it reads \{"),
        ("[version: 1]\nn_points: 68\n", r"header must read.*; it reads \[version: 1\]$"),
    ],
)
def test_a_damaged_csv_says_where(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "set.csv").write_text(text)
    with pytest.raises(FaceSetError, match=message):
        open_faces(tmp_path / "set.csv").load()


def test_calibration_takes_the_faces_of_a_boxes_file(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("image,x0,y0,x1,y1\na.png,1,2,30,40\na.png,5,6,70,80\n")
    faces = calibration_candidates(tmp_path)
    assert sorted(face.bbox_xyxy.tolist() for face in faces) == [[1, 2, 30, 40], [5, 6, 70, 80]]


def test_the_portraits_eyes_lie_inside_their_faces() -> None:
    for face in portraits():
        assert face.landmarks is not None
        x0, y0, x1, y1 = face.bbox_xyxy
        left, right = face.landmarks[WFLW_98.names.index("left_pupil_0")], face.landmarks[97]
        assert x0 < left[0] < right[0] < x1
        assert y0 < min(left[1], right[1]) < (y0 + y1) / 2


POINTS = np.random.default_rng(0).uniform(5, 25, (20, 98, 2)).round(2)


def jpeg(number: int) -> bytes:
    return cv2.imencode(".jpg", np.full((30, 40, 3), 10 * number, np.uint8))[1].tobytes()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_tar(path: Path, numbers: Sequence[int], **notes: Any) -> Path:
    with tarfile.open(path, "w") as tar:
        add(tar, "README.txt", b"Faces.")
        for number in numbers:
            # In this order the label comes first, as in shards that were written by name.
            add(tar, f"sub/{number:03}.cls", b"1")
            add(tar, f"sub/{number:03}.json", json.dumps({"landmarks": POINTS[number].tolist(), **notes}).encode())
            add(tar, f"sub/{number:03}.JPG", jpeg(number))
    return path


def sent(units: Sequence[Unit]) -> Sequence[Unit]:
    """As another process gets them."""
    return pickle.loads(pickle.dumps(units))  # type: ignore[no-any-return]  # noqa: S301 - written just before


def faces_of(source: FaceSet) -> list[Face]:
    return [face for unit in sent(source.units) for face in unit_faces(unit)]


@given(size=st.integers(1, 12), first=st.integers(0, 9))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_however_a_tar_is_cut_every_photograph_comes_once_and_in_order(tmp_path: Path, size: int, first: int) -> None:
    shards = [write_tar(tmp_path / "b.tar", range(first, 10)), write_tar(tmp_path / "a.tar", range(10, 13))]
    source = open_faces(tmp_path, size=size)
    assert max(unit.count for unit in source.units) <= size
    assert source.count == 10 - first + 3
    photos = [photo for unit in sent(source.units) for photo in unit.photos()]
    expected = [(shards[1], number) for number in range(10, 13)] + [(shards[0], number) for number in range(first, 10)]
    assert [photo.image for photo in photos] == [path / f"sub/{number:03}.JPG" for path, number in expected]
    assert photos[0].name == "a/sub/010.JPG"
    for photo, (_, number) in zip(photos, expected, strict=True):
        assert photo.encoded == jpeg(number)
        assert photo.faces is not None
        np.testing.assert_allclose(photo.faces[0].landmarks, POINTS[number], rtol=1e-6)


def test_long_names_and_several_faces_a_photograph_are_read(tmp_path: Path) -> None:
    long = "a" * 150
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(4):
            faces = [{"landmarks": POINTS[number].ravel().tolist()}, {"box": [1, 2, 30, 20], "attributes": ["blur"]}]
            add(tar, f"{long}/{number}é.png", cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes())
            add(tar, f"{long}/{number}é.json", json.dumps({"faces": faces}).encode())
    found = faces_of(open_faces(tmp_path / "x.tar", size=2))
    assert len(found) == 8
    assert found[6].image == tmp_path / f"x.tar/{long}/3é.png"
    assert found[7].landmarks is None
    assert found[7].attributes == {"blur"}
    np.testing.assert_array_equal(found[7].bbox_xyxy, [1, 2, 30, 20])


def test_a_range_in_braces_names_shards_as_a_shell_does(tmp_path: Path) -> None:
    for number in range(8, 12):
        write_tar(tmp_path / f"s-{number:03}.tar", [number])
    source = open_faces([tmp_path / "s-{008..011}.tar"])
    assert [unit.photos().__next__().image.parts[-3] for unit in source.units] == [
        f"s-{n:03}.tar" for n in range(8, 12)
    ]
    with pytest.raises(FaceSetError, match=r"s-012\.tar: no such shard"):
        open_faces([tmp_path / "s-{008..012}.tar"])


def test_a_folder_of_photographs_that_holds_a_tar_too_is_one_of_photographs(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [1])
    # What macOS leaves beside files counts for nothing.
    for hidden in ("._x.tar", "._a.jpg"):
        (tmp_path / hidden).write_bytes(b"resource fork")
    assert is_sharded(tmp_path)
    assert open_faces([tmp_path]).count == 1
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    assert not is_sharded(tmp_path)


def test_damage_names_the_shard_and_the_key(tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(FaceSetError) as caught:
            faces_of(open_faces(path))
        return str(caught.value)

    good = write_tar(tmp_path / "good.tar", [1, 2]).read_bytes()
    (tmp_path / "none.tar").write_bytes(b"no tar at all")
    (tmp_path / "zip.tar").write_bytes(gzip.compress(good))
    for length in (600, 1000, 1024, 1300, 3000, 6826):
        (tmp_path / "cut.tar").write_bytes(good[:length])
        assert "cut.tar: " in refused(tmp_path / "cut.tar")
    for name in ("none.tar", "zip.tar"):
        assert f"{name}: not a tar that can be read" in refused(tmp_path / name)
    with tarfile.open(tmp_path / "alone.tar", "w") as tar:
        add(tar, "7.json", b"{}")
    assert "alone.tar/7: no photograph beside its .json" in refused(tmp_path / "alone.tar")
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        add(tar, "7.txt", b"")
    assert "other.tar: no photographs in it" in refused(tmp_path / "other.tar")
    for notes, message in (
        (b"[1]", "7.json: expected an object"),
        (b"{", "7.json: not JSON"),
        (b'{"landmarks": [1, 2, 3]}', "7.jpg: landmarks must be pairs"),
        (b'{"landmarks": [[1, "x"]]}', "7.jpg: could not convert"),
        (b'{"box": [5, 5, 1, 1]}', "7.jpg: .*x1 must exceed x0"),
        (b'{"landmarks": [1, 2], "weight": 3}', "7.jpg: trust must be from 0 to 1"),
    ):
        with tarfile.open(tmp_path / "bad.tar", "w") as tar:
            add(tar, "7.jpg", jpeg(1))
            add(tar, "7.json", notes)
        with pytest.raises(FaceSetError, match=rf"bad\.tar.{message}"):
            faces_of(open_faces(tmp_path / "bad.tar"))


@pytest.mark.parametrize("size", [1, 3, 256])
def test_a_csv_in_units_is_the_csv_in_one(tmp_path: Path, size: int) -> None:
    names = ["plain.jpg", "a, b.jpg", 'with "quotes".jpg', "two\nlines.jpg", "é.jpg"]
    with (tmp_path / "faces.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *(f"{axis}{i}" for i in range(98) for axis in "xy")])
        writer.writerows([name, *POINTS[number].ravel()] for number, name in enumerate(names))
    source = open_faces(tmp_path / "faces.csv", size=size)
    found, expected = faces_of(source), read_points_csv(tmp_path / "faces.csv")
    assert [face.image for face in found] == [face.image for face in expected]
    np.testing.assert_array_equal([face.landmarks for face in found], [face.landmarks for face in expected])
    with (tmp_path / "faces.csv").open("a", encoding="utf-8") as file:
        file.write("x.jpg,1,2\n")
    with pytest.raises(FaceSetError, match=r"faces\.csv, line \d: expected 197 columns"):
        faces_of(open_faces(tmp_path / "faces.csv", size=size))
    assert open_faces(tmp_path / "faces.csv", size=size).identity != source.identity


def test_parquet_rows_are_read_whatever_the_row_groups(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    rows = [{"image": jpeg(n), "landmarks": POINTS[n].tolist(), "attributes": ["blur"], "other": n} for n in range(9)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=2)
    source = open_faces(tmp_path / "x.parquet", size=5)
    assert [unit.count for unit in source.units] == [4, 5]
    faces = faces_of(source)
    assert [face.encoded for face in faces] == [jpeg(n) for n in range(9)]
    assert faces[8].image == tmp_path / "x.parquet/row-8"
    np.testing.assert_allclose([face.landmarks for face in faces], POINTS[:9], rtol=1e-6)
    named = [{"image": {"bytes": jpeg(n), "path": f"p{n}.jpg"}, "box": [1, 1, 9, 9]} for n in range(3)]
    parquet.write_table(pyarrow.Table.from_pylist(named), tmp_path / "y.parquet")
    assert faces_of(open_faces(tmp_path / "y.parquet"))[2].image == tmp_path / "y.parquet/p2.jpg"
    for path, number in ((tmp_path / "x.parquet/row-7", 7), (tmp_path / "y.parquet/p2.jpg", 2)):
        np.testing.assert_array_equal(read_photo(path), decode_photo(jpeg(number), path))
    (tmp_path / "bad.parquet").write_bytes(b"no table")
    with pytest.raises(FaceSetError, match=r"bad\.parquet: not a Parquet file"):
        open_faces(tmp_path / "bad.parquet")
    parquet.write_table(pyarrow.table({"picture": [b""]}), tmp_path / "bad.parquet")
    with pytest.raises(FaceSetError, match=r"bad\.parquet: no column `image`; found picture"):
        open_faces(tmp_path / "bad.parquet")
    parquet.write_table(pyarrow.table({"image": ["a.jpg"]}), tmp_path / "bad.parquet")
    with pytest.raises(FaceSetError, match=r"bad\.parquet, row 0: no image bytes"):
        faces_of(open_faces(tmp_path / "bad.parquet"))


def test_a_photograph_in_a_tar_is_found_again_by_its_path(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", range(5))
    path = tmp_path / "x.tar/sub/003.JPG"
    np.testing.assert_array_equal(read_photo(path), decode_photo(jpeg(3), path))
    with pytest.raises(FaceSetError, match="no such photograph"):
        read_photo(tmp_path / "x.tar/sub/009.jpg")
    with pytest.raises(FaceSetError, match="no such photograph"):
        read_photo(PORTRAITS / "landmarks.csv/x.jpg")


def test_results_in_a_folder_are_not_computed_again_and_those_of_another_run_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", range(6))
    units = open_faces(tmp_path / "x.tar", size=2).units
    worked: list[int] = []

    def run(make: Any, tasks: Any) -> Any:
        for task in tasks:
            worked.append(units.index(task))
            yield make()(task)

    def work() -> Any:
        return lambda unit: str(units.index(unit)).encode()

    folder = ResultsFolder(tmp_path / "results", {"models": "a"})
    first = unit_results(work, units, run, folder)
    next(first)
    first.close()
    assert 0 in folder
    assert 1 not in folder
    again = [
        result for _, result in unit_results(work, units, run, ResultsFolder(tmp_path / "results", {"models": "a"}))
    ]
    assert again == [b"0", b"1", b"2"]
    assert worked == [0, 1, 2]
    with pytest.raises(FaceSetError, match="results of a run with other models: repeat that command"):
        ResultsFolder(tmp_path / "results", {"models": "b"})
    with pytest.raises(FaceSetError, match="holds other files"):
        ResultsFolder(tmp_path, {"models": "b"})


def unlabelled_csv(folder: Path) -> Path:
    """Two faces with the same points, the second one's pupils at (0, 0) with weight 0."""
    points, weights = np.tile(LANDMARKS + 20, (2, 1, 1)), np.ones((2, 98))
    points[1, 96:], weights[1, 96:] = 0, 0
    with (folder / "faces.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *(f"{axis}{i}" for i in range(98) for axis in "xy"), *(f"c{i}" for i in range(98))])
        writer.writerows(["a.png", *xy.ravel(), *c] for xy, c in zip(points, weights, strict=True))
    return folder / "faces.csv"


def test_points_of_weight_0_count_in_no_box(tmp_path: Path) -> None:
    whole, hidden = open_faces(unlabelled_csv(tmp_path)).load()
    assert hidden.bbox_xyxy.tolist() == tight_box((LANDMARKS + 20)[:96]).tolist()
    assert hidden.landmarks is not None
    assert whole.landmarks is not None
    np.testing.assert_array_equal(hidden.landmarks[:96], whole.landmarks[:96])
    weights = [1.0] * 96 + [0.0] * 2
    points = [*(LANDMARKS + 20)[:96].tolist(), [0, 0], [0, 0]]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "7.jpg", jpeg(1))
        add(tar, "7.json", json.dumps({"landmarks": points, "point_weights": weights}).encode())
    (packed,) = open_faces(tmp_path / "x.tar")
    assert packed.bbox_xyxy.tolist() == hidden.bbox_xyxy.tolist()


@pytest.mark.parametrize("hidden", ["nan", "", "inf", "-1", "0", "1e300"])
def test_it_does_not_matter_where_an_unlabelled_point_is_said_to_lie(tmp_path: Path, hidden: str) -> None:
    header = "image,x0,y0,x1,y1,x2,y2,c0,c1,c2"
    (tmp_path / "a.csv").write_text(f"{header}\na.png,10,20,{hidden},{hidden},30,44,1,0,1\n")
    number = None if hidden == "" else float(hidden)  # json writes null, NaN and Infinity
    points = [10, 20, 2, number, number, 0, 30, 44, 1]
    record = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"image_id": 1, "keypoints": points}],
    }
    (tmp_path / "a.json").write_text(json.dumps(record))
    for name in ("a.csv", "a.json"):
        (face,) = open_faces(tmp_path / name)
        assert face.landmarks is not None
        assert face.landmarks.tolist() == [[10, 20], [20, 32], [30, 44]]
        np.testing.assert_array_equal(face.bbox_xyxy, tight_box(face.landmarks[[0, 2]]))


@pytest.mark.parametrize("hidden", ["-1", "-1.0", "nan", ""])
def test_without_confidences_a_point_at_minus_one_or_without_numbers_is_unlabelled(tmp_path: Path, hidden: str) -> None:
    row = f"a.png,10,20,{hidden},{hidden},30,44"
    (tmp_path / "a.csv").write_text(f"image,x0,y0,x1,y1,x2,y2\n{row}\na.png,10,20,-1,-2,30,44\n")
    number = None if hidden == "" else float(hidden)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "7.jpg", jpeg(1))
        add(tar, "7.json", json.dumps({"landmarks": [10, 20, number, number, 30, 44]}).encode())
    csv_face, beyond_the_border = open_faces(tmp_path / "a.csv")
    (tar_face,) = open_faces(tmp_path / "a.tar")
    for face in (csv_face, tar_face):
        assert face.landmarks is not None
        assert face.point_weights is not None
        assert face.point_weights.tolist() == [1, 0, 1]
        np.testing.assert_array_equal(face.bbox_xyxy, tight_box(face.landmarks[[0, 2]]))
    assert beyond_the_border.point_weights is None
    (tmp_path / "half.csv").write_text("image,x0,y0,x1,y1\na.png,10,20,nan,44\n")
    with pytest.raises(FaceSetError, match=r"line 2: landmarks must be finite.*or without weights is -1,-1"):
        open_faces(tmp_path / "half.csv").load()
    (tmp_path / "none.csv").write_text(f"image,x0,y0,x1,y1\na.png,{','.join([hidden] * 4)}\n")
    (face,) = open_faces(tmp_path / "none.csv")
    assert face.point_weights is not None
    assert not face.point_weights.any()


def test_fractions_of_the_photograph_are_refused_with_the_mend(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text("image,x0,y0,x1,y1\na.png,10,20,30,40\na.png,0.1,0.2,0.3,1\n")
    with pytest.raises(FaceSetError, match=r"line 3: all points lie in 0\.\.1.*multiply x by the photograph's width"):
        open_faces(tmp_path / "set.csv").load()
    with pytest.raises(FaceSetError, match=r"line 1: all points lie in 0\.\.1"):
        open_faces(wflw_folder(tmp_path / "wflw", [wflw_line(LANDMARKS / 100)]), split="train").load()


def test_a_wflw_rectangle_that_misses_the_landmarks_is_refused(tmp_path: Path) -> None:
    line = wflw_line(LANDMARKS).replace(" 10 10 70 70 ", " 200 200 260 260 ")
    with pytest.raises(FaceSetError, match="line 1: the rectangle and the landmarks don't overlap"):
        open_faces(wflw_folder(tmp_path, [line]), split="train").load()


def pts_file(path: Path, points: NDArray[np.floating], count: int | None = None) -> None:
    lines = "".join(f"{x} {y}\n" for x, y in points)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"version: 1\nn_points:  {len(points) if count is None else count}\n{{\n{lines}}}\n")


def test_a_folder_of_pts_files_is_a_dataset_whose_first_pixel_is_1(tmp_path: Path) -> None:
    points = np.array([[10, 20], [30.5, 44.25], [-1, -1], [0.5, 60]])
    for name, photo in {"b.pts": "b.PNG", "a/sub folder/Ä 1.PTS": "a/sub folder/Ä 1.jpg", "gone.pts": None}.items():
        pts_file(tmp_path / name, points)
        if photo is not None:
            (tmp_path / photo).write_bytes(jpeg(1))
    faces = open_faces(tmp_path).load()
    names = ["a/sub folder/Ä 1.jpg", "b.PNG", "gone.jpg"]
    assert [face.image.relative_to(tmp_path).as_posix() for face in faces] == names == [face.group for face in faces]
    for face in faces:
        assert face.landmarks is not None
        assert face.landmarks[[0, 1, 3]].tolist() == [[9, 19], [29.5, 43.25], [-0.5, 59]]
        assert face.point_weights is not None
        assert face.point_weights.tolist() == [1, 1, 0, 1]
    elsewhere = open_faces(tmp_path, images=tmp_path / "photos").load()
    assert elsewhere[0].image == tmp_path / "photos/a/sub folder/Ä 1.jpg"
    identity = open_faces(tmp_path).identity
    pts_file(tmp_path / "b.pts", points + 1)
    assert open_faces(tmp_path).identity != identity


@pytest.mark.parametrize(
    "change", [("\n{", " {"), ("\n}", " }"), (" ", "\t"), ("\n", "\r\n"), ("version", "// by\nversion")]
)
def test_pts_files_of_other_writers_are_read(tmp_path: Path, change: tuple[str, str]) -> None:
    pts_file(tmp_path / "a.pts", np.array([[10, 20], [30, 40]]))
    text = (tmp_path / "a.pts").read_text()
    assert change[0] in text
    (tmp_path / "a.pts").write_bytes(text.replace(*change).encode())
    (face,) = open_faces(tmp_path)
    assert face.landmarks is not None
    assert face.landmarks.tolist() == [[9, 19], [29, 39]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 1\nn_points: 3\n{\n1 2\n30 4\n", "a.pts: n_points says 3, and there are 2 points; is it cut off"),
        ("version: 1\nn_points: 2\n{\n1 2\n30 4 5\n}", "a.pts, line 5: expected x y, found '30 4 5'"),
        ("version: 1\nn_points: 2\n{\n1 2\n30 x\n}", "a.pts: could not convert"),
        ("version: 1\nn_points: 2\n{\n1 2\n30,5 4\n}", "a.pts: .*write a decimal point"),
        ("", "a.pts: no n_points, and there are 0 points"),
        ("version: 1\nn_points: 2\n{\n1 2\n30 nan\n}", "a.pts: landmarks must be finite"),
        ("version: 1\nn_points: 3\n{\n1 2\n3 4\n5 6\n}", "different numbers of points: 2 in .*b.pts, 3 in .*a.pts"),
    ],
)
def test_a_damaged_pts_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.pts").write_text(text)
    pts_file(tmp_path / "b.pts", np.array([[10, 20], [30, 40]]))
    with pytest.raises(FaceSetError, match=message):
        open_faces(tmp_path)


def test_several_datasets_open_as_one(tmp_path: Path) -> None:
    first = wflw_folder(tmp_path / "a", [wflw_line(LANDMARKS)] * 2)
    second = wflw_folder(tmp_path / "b", [wflw_line(LANDMARKS)] * 3)
    both = open_faces([first, second], "train")
    assert [face.image.parts[-4] for face in both] == ["a"] * 2 + ["b"] * 3
    assert both.count == 5
    assert both.identity not in (open_faces(first, "train").identity, open_faces(second, "train").identity)

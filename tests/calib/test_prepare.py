"""Prepared sets: the same bytes whoever makes them, resumed after any stop, out of folders, archives and COCO files."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from pfld_edge.cli import run
from pfld_edge_calib import PORTRAITS, FaceSetError, portraits, read_coco, read_wflw
from pfld_edge_calib.datasets.points_csv import points_row, write_points_csv
from pfld_edge_calib.datasets.prepared import PrepareSettings, open_prepared, prepare_faces, read_shard
from pfld_edge_calib.datasets.wflw import ARCHIVES, WFLW_ATTRIBUTES, points_as_wflw_98, wflw_98_from_68
from pfld_edge_runtime import IBUG_68, crop_faces, crop_windows
from pfld_edge_runtime.geometry.wflw_points import landmarks_68

LIST = "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_train.txt"
RAW = PrepareSettings(input_size=32, encoding="raw", shard_faces=4)


@pytest.fixture(scope="module")
def wflw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten photographs with a face each, the first one with two, in WFLW's layout."""
    folder = tmp_path_factory.mktemp("wflw")
    face = portraits()[0]
    assert face.landmarks is not None
    photo = cv2.imread(str(face.image))
    assert photo is not None
    lines = []
    for number in (*range(10), 0):
        path = folder / f"WFLW_images/{number % 2}--Event/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.roll(photo, number, axis=1)[::2, ::2])
        points = (face.landmarks + np.array([number, 0])) / 2
        flags = [number >> i & 1 for i in range(6)]
        name = path.relative_to(folder / "WFLW_images").as_posix()
        lines.append(" ".join([*(f"{value:.3f}" for value in points.ravel()), "20 20 300 300", *map(str, flags), name]))
    (folder / LIST).parent.mkdir(parents=True)
    (folder / LIST).write_text("\n".join(lines) + "\n")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def prepare(wflw: Path, out: Path, *more: str) -> int:
    return run(["prepare", "wflw", str(wflw), "-o", str(out), "--input-size", "32", "--shard-faces", "4", *more])


def test_names_that_are_not_utf_8_stay_in_shards(wflw: Path, tmp_path: Path) -> None:
    faces = [replace(face, group=f"caf\udce9{i}") for i, face in enumerate(read_wflw(wflw, "train"))]  # as os.fsdecode
    manifest = prepare_faces(faces, "listed", wflw, tmp_path, RAW, workers=1).manifest
    groups = {group for entry in manifest.shards for group in read_shard(tmp_path / entry.file, RAW.size).groups}
    assert groups == {face.group for face in faces}


def test_a_shard_holds_the_runtimes_crops(wflw: Path, tmp_path: Path) -> None:
    faces = read_wflw(wflw, "train")
    manifest = prepare_faces(faces, "wflw train", wflw, tmp_path, RAW, workers=1).manifest
    assert (manifest.faces, manifest.points, dict(manifest.skipped)) == (11, 98, {})
    shards = [read_shard(tmp_path / entry.file, RAW.size) for entry in manifest.shards]
    assert [shard.crops.shape[0] for shard in shards] == [4, 4, 3]
    # Photographs in the order of their first face: the eleventh line's face comes second.
    kept = [(shard, place) for shard in shards for place in range(shard.crops.shape[0])]
    for (shard, place), number in zip(kept, [0, 10, *range(1, 10)], strict=True):
        face = faces[number]
        windows = crop_windows(face.bbox_xyxy[None], 1.2 * 1.5)
        assert face.landmarks is not None
        photo = cv2.imread(str(face.image))
        assert photo is not None
        np.testing.assert_array_equal(shard.crops[place], crop_faces(photo, windows, 48)[0])
        np.testing.assert_array_equal(shard.windows[place], [*windows.corners[0], windows.sizes[0]])
        np.testing.assert_allclose(shard.landmarks[place], face.landmarks, atol=1e-3)
        assert shard.groups[place] == face.group
        named = {name for name, flag in zip(WFLW_ATTRIBUTES, shard.attributes[place], strict=True) if flag}
        assert named == face.attributes


def test_the_bytes_do_not_depend_on_the_workers(wflw: Path, tmp_path: Path) -> None:
    for count in ("1", "2"):
        assert prepare(wflw, tmp_path / count, "--workers", count) == 0
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert len(contents(tmp_path / "1")) == 4


class StoppedError(Exception):
    """As good as a kill: nothing catches it."""


def test_a_stopped_run_goes_on(wflw: Path, tmp_path: Path) -> None:
    faces = read_wflw(wflw, "train")
    done = 0

    def stop(count: int) -> None:
        nonlocal done
        done += count
        if done > 4:
            raise StoppedError

    with pytest.raises(StoppedError):
        prepare_faces(faces, "wflw train", wflw, tmp_path / "cut", RAW, 1, stop)
    first, second = sorted((tmp_path / "cut").glob("shard-*.npz"))
    untouched = first.stat().st_mtime_ns
    second.write_bytes(second.read_bytes()[:-9])  # a disk that lies
    with pytest.raises(FaceSetError, match=r"prepared\.partial holds the results of a run with other set"):
        prepare_faces(faces[:5], "wflw train", wflw, tmp_path / "cut", RAW, 1)
    assert prepare_faces(faces, "wflw train", wflw, tmp_path / "cut", RAW, 1).kept == 4
    assert first.stat().st_mtime_ns == untouched
    prepare_faces(faces, "wflw train", wflw, tmp_path / "straight", RAW, 1)
    assert contents(tmp_path / "cut") == contents(tmp_path / "straight")


def test_a_whole_set_is_left_alone_and_another_is_refused(
    wflw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(wflw, tmp_path, "--workers", "1") == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert prepare(wflw, tmp_path, "--workers", "1") == 0
    assert "11 faces are in" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert prepare(wflw, tmp_path, "--workers", "1", "--encoding", "raw") == 2
    assert "holds another prepared set" in capsys.readouterr().err


def archived(wflw: Path, folder: Path) -> Path:
    """The two official archives, the photographs' with members that lead elsewhere."""
    folder.mkdir()
    with tarfile.open(folder / ARCHIVES[0], "w:gz") as tar:
        for name in ("../evil.png", "/evil.png", "WFLW_images/../../evil.png"):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"evil"))
        link = tarfile.TarInfo("WFLW_images/0--Event/0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        tar.add(wflw / "WFLW_images", "WFLW_images")
    with tarfile.open(folder / ARCHIVES[1], "w:gz") as tar:
        tar.add(wflw / "WFLW_annotations", "WFLW_annotations")
    return folder


def test_the_archives_give_what_the_folder_gives(wflw: Path, tmp_path: Path) -> None:
    archives = archived(wflw, tmp_path / "archives")
    assert prepare(wflw, tmp_path / "folder", "--workers", "1") == 0
    assert prepare(archives / ARCHIVES[0], tmp_path / "archive", "--workers", "1") == 0
    assert contents(tmp_path / "folder") == contents(tmp_path / "archive")
    assert prepare(archives, tmp_path / "archive", "--workers", "1") == 0
    assert not list(tmp_path.rglob("*evil*"))


def test_what_is_missing_is_named(wflw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archives = archived(wflw, tmp_path / "archives")
    listed = wflw / LIST
    more = listed.read_text() + listed.read_text().splitlines()[0].rpartition(" ")[0] + " 7--Lost/lost.png\n"
    (tmp_path / "more" / LIST).parent.mkdir(parents=True)
    (tmp_path / "more" / LIST).write_text(more)
    lost = archived(wflw, tmp_path / "lost")
    with tarfile.open(lost / ARCHIVES[1], "w:gz") as tar:
        tar.add(tmp_path / "more/WFLW_annotations", "WFLW_annotations")
    (archives / ARCHIVES[1]).unlink()
    damaged = archived(wflw, tmp_path / "damaged")
    (damaged / ARCHIVES[0]).write_bytes((damaged / ARCHIVES[0]).read_bytes()[:2000])
    (tmp_path / "images only/WFLW_images").mkdir(parents=True)
    cases = [
        (archives, f"{ARCHIVES[1]} is missing; both official archives must lie there"),
        (lost, "WFLW_images/7--Lost/lost.png is missing in it"),
        (damaged, "a damaged archive"),
        (tmp_path / "nowhere", "no such file or folder"),
        (tmp_path, "neither a WFLW folder"),
        (listed, "expected a WFLW folder, or one of the official archives"),
        (tmp_path / "images only", "list_98pt_rect_attr_train.txt: no such WFLW list"),
    ]
    for number, (source, message) in enumerate(cases):
        out = tmp_path / f"out{number}"
        assert prepare(source, out, "--workers", "1") == 2, message
        assert message in capsys.readouterr().err
        assert not (out / "prepared.json").exists()


def test_unreadable_photographs_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = (PORTRAITS / "landmarks.csv").read_text().splitlines()
    broken = "broken.jpg," + rows[1].partition(",")[2]
    (tmp_path / "faces.csv").write_text("\n".join([*rows, broken]))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    for name in (row.partition(",")[0] for row in rows[1:]):
        (tmp_path / name).write_bytes((PORTRAITS / name).read_bytes())
    command = ["prepare", "csv", str(tmp_path / "faces.csv"), "-o", str(tmp_path / "out"), "--workers", "1"]
    assert run([*command, "--strict"]) == 2
    assert "broken.jpg: not an image" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out" / "prepared.json").exists()
    last = "Error: 1 of 3 faces are left out: their photographs could not be read"
    assert run(command) == 2
    said = capsys.readouterr()
    assert "skipped" in said.err
    assert "broken.jpg: not an image" in said.err
    assert said.err.splitlines()[-1] == last
    assert "left out: 1 unreadable" in said.out
    assert open_prepared(tmp_path / "out").skipped == {"unreadable": 1}
    # The same command says the same, though it has nothing left to do.
    assert run(command) == 2
    assert capsys.readouterr().err.splitlines()[-1] == last


def coco(tmp_path: Path, keypoints: list[list[float]]) -> Path:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((60, 60, 3), 90, np.uint8))
    record = {
        "images": [{"id": 7, "file_name": "a.png"}],
        "annotations": [{"image_id": 7, "keypoints": points, "iscrowd": 0} for points in keypoints],
    }
    path = tmp_path / "keypoints.json"
    path.write_text(json.dumps(record))
    return path


def test_coco_points_that_nobody_labelled_weigh_nothing(tmp_path: Path) -> None:
    path = coco(tmp_path, [[10, 20, 2, 40, 50, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 0]])
    (face,) = read_coco(path)
    assert face.point_weights is not None
    assert face.point_weights.tolist() == [1, 1, 0]
    assert face.bbox_xyxy.tolist() == [10, 20, 41, 51]
    assert run(["prepare", "coco", str(path), "-o", str(tmp_path / "out"), "--workers", "1"]) == 0
    shard = read_shard(tmp_path / "out/shard-00000.npz", 168)
    assert shard.weights.tolist() == [[1, 1, 0]]
    assert shard.crops.shape == (1, 168, 168, 3)


@pytest.mark.parametrize(("crowd", "faces"), [(0, 1), ("0", 1), (None, 1), (False, 1), (1, 0), ("1", 0), (True, 0)])
def test_a_coco_crowd_is_no_face(tmp_path: Path, crowd: object, faces: int) -> None:
    path = coco(tmp_path, [[10, 20, 2, 40, 50, 1], [5, 5, 2, 30, 30, 2]])
    record = json.loads(path.read_text())
    record["annotations"][0]["iscrowd"] = crowd
    path.write_text(json.dumps(record))
    assert len(read_coco(path)) == 1 + faces


def test_points_of_weight_0_do_not_stretch_a_prepared_crop(tmp_path: Path) -> None:
    face = portraits()[0]
    assert face.landmarks is not None
    weights = np.ones(98, np.float32)
    weights[96:] = 0
    points = face.landmarks * weights[:, None]  # pupils at (0, 0)
    hidden, shown = replace(face, landmarks=points, point_weights=weights), replace(face, point_weights=weights)
    rows = [points_row(str(face.image), hidden), points_row(str(face.image), shown)]
    write_points_csv(tmp_path / "faces.csv", 98, rows)
    assert run(["prepare", "csv", str(tmp_path / "faces.csv"), "-o", str(tmp_path / "out"), "--workers", "1"]) == 0
    shard = read_shard(tmp_path / "out/shard-00000.npz", 168)
    np.testing.assert_array_equal(shard.crops[0], shard.crops[1])
    np.testing.assert_array_equal(shard.landmarks[0], shard.landmarks[1])
    # The face fills the network's crop (112 pixels) but for the margin of 1.2.
    filled = np.ptp(shard.landmarks[0, :96], axis=0).max() / shard.windows[0, 2] * 168
    assert filled == pytest.approx(112 / 1.2, abs=1.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not a COCO file"),
        ("{}", "not a COCO file"),
        ('{"images": [], "annotations": [{"image_id": 1, "keypoints": [1, 2, 2]}]}', "its image_id 1 is no image"),
        (
            '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "keypoints": [1, 2]}]}',
            "repeated",
        ),
        ('{"images": [], "annotations": []}', "no annotation with keypoints"),
    ],
)
def test_a_damaged_coco_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(FaceSetError, match=message):
        read_coco(tmp_path / "bad.json")


def test_68_points_are_98_with_a_mask() -> None:
    face = portraits()[0]
    assert face.landmarks is not None
    straight = face.landmarks.copy()
    # Lids of evenly spaced points on straight lines: there thirds and quarters agree.
    for corner, other, first in ((60, 64, 61), (64, 60, 65), (68, 72, 69), (72, 68, 73)):
        straight[first : first + 3] = np.linspace(straight[corner], straight[other], 5)[1:4]
    points = landmarks_68(straight)[0]
    (found,), (weights,) = points_as_wflw_98(points[None], np.ones((1, 68), np.float32))
    matrix, mask = wflw_98_from_68()
    np.testing.assert_array_equal(weights, mask)
    np.testing.assert_allclose(matrix.sum(axis=1), mask)
    # Odd contour points, the lower lines of the brows, the lids' middles, the pupils: 16 + 8 + 4 + 2 are not known.
    assert mask.sum() == 98 - 30
    np.testing.assert_allclose(found[mask > 0], straight[mask > 0], atol=0.02)
    assert len(points) == IBUG_68.num_landmarks

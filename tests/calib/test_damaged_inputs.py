"""One damaged file, or one damaged model, costs itself only: it is named, counted, and told by the exit status."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from pfld_edge.cli import run
from pfld_edge.commands.convert import judged_faces
from pfld_edge.console import SkippedFiles
from pfld_edge_calib import PORTRAITS, Face, FaceSetError, as_detected, cut_faces, open_faces, portraits, read_photo
from pfld_edge_calib.datasets.points_csv import points_row, write_points_csv
from pfld_edge_calib.datasets.prepared import open_prepared
from pfld_edge_calib.errors import LabellingError
from pfld_edge_calib.evaluation.drift import Verdict
from pfld_edge_calib.evaluation.verification import VerificationSettings, verify_models
from pfld_edge_calib.labelling.labeller import Labeller, LabelSettings
from pfld_edge_convert.landmark_models import EndToEndModel
from pfld_edge_runtime import BUNDLED_MODEL, Contract, FaceLandmarker, LandmarkModel, ModelFileError
from pfld_edge_runtime.arrays import Float32Array, Uint8Array
from pfld_edge_train.config import load_config
from pfld_edge_train.face_cache import FaceCache, open_cache, split_groups

DAMAGED = {
    "empty.tar": "not a tar that can be read",
    "cut.tar": "cut.tar: ",
    "members.tar/json.jpg": None,
    "members.tar/json.json": "not JSON",
    "members.tar/list.json": "expected an object",
    "members.tar/alone": "no photograph beside its .json",
    "members.tar/bare.jpg": "no landmarks",
    "members.tar/boxed.jpg": "no landmarks, the model predicts 98",
    "members.tar/five.jpg": "5 landmarks, the model predicts 98",
    "members.tar/far.jpg": "landmarks must be finite and below 1e9 pixels",
    "members.tar/broken.jpg": "not an image",
}
GOOD = 2 + 2 + 2
"""Faces of the whole shard, before the cut, and among the damaged members."""


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def add_faces(tar: tarfile.TarFile, names: tuple[str, ...]) -> None:
    for name, face in zip(names, portraits(), strict=True):
        assert face.landmarks is not None
        add(tar, f"{name}.jpg", face.image.read_bytes())
        add(tar, f"{name}.json", json.dumps({"landmarks": face.landmarks.tolist()}).encode())


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, (face, _) = tmp_path_factory.mktemp("shards"), portraits()
    assert face.landmarks is not None
    photo, points = face.image.read_bytes(), face.landmarks.tolist()
    with tarfile.open(folder / "whole.tar", "w") as tar:
        add_faces(tar, ("a", "b"))
    with tarfile.open(folder / "cut.tar", "w") as tar:
        add_faces(tar, ("c", "d"))
        add_faces(tar, ("e", "f"))
    with tarfile.open(folder / "cut.tar") as tar:
        length = tar.getmember("e.json").offset_data + 10
    (folder / "cut.tar").write_bytes((folder / "cut.tar").read_bytes()[:length])
    (folder / "empty.tar").write_bytes(b"no tar at all")
    with tarfile.open(folder / "members.tar", "w") as tar:
        add_faces(tar, ("g", "h"))
        for name, notes in (
            ("json", b"{"),
            ("list", b"[1]"),
            ("bare", b"{}"),
            ("boxed", json.dumps({"box": face.bbox_xyxy.tolist()}).encode()),
            ("five", json.dumps({"landmarks": points[:5]}).encode()),
            ("far", json.dumps({"landmarks": [[1e30, 5], *points[1:]]}).encode()),
        ):
            add(tar, f"{name}.jpg", photo)
            add(tar, f"{name}.json", notes)
        add(tar, "alone.json", b"{}")
        add(tar, "broken.jpg", b"no picture")
        add(tar, "broken.json", json.dumps({"landmarks": points}).encode())
    return folder


def names_each(said: str) -> None:
    for name, reason in DAMAGED.items():
        lines = [line for line in said.splitlines() if line.startswith("Note: skipped") and name in line]
        assert len(lines) == (reason is not None), (name, said)
        assert reason is None or reason in lines[0]


@pytest.mark.parametrize("command", [["evaluate"], ["verify", str(BUNDLED_MODEL)], ["evaluate", "--workers", "2"]])
def test_damaged_shards_and_members_cost_no_other_face(
    shards: Path, tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [command[0], *command[1 : 2 if command[0] == "verify" else 1], str(BUNDLED_MODEL)]
    words += [*command[2 if command[0] == "verify" else 1 :], "--json", str(tmp_path / "found.json"), "--data"]
    assert run([*words, str(shards)]) == 2
    said = capsys.readouterr()
    names_each(said.err)
    assert said.err.splitlines()[-1] == f"Error: {len(DAMAGED) - 1} files could not be read (named above)"
    record = json.loads((tmp_path / "found.json").read_text())
    assert record["faces"] == GOOD
    # The two portraits, three times: the whole shard says the same.
    assert run([*words, str(shards / "whole.tar")]) == 0
    whole = json.loads((tmp_path / "found.json").read_text())
    for model, same in zip(record["models"], whole["models"], strict=True):
        assert model["accuracy"]["all"]["nme"] == pytest.approx(same["accuracy"]["all"]["nme"], rel=1e-6)
    capsys.readouterr()
    for name in ("empty.tar", "cut.tar", "members.tar"):
        assert run([*words, str(shards / name), "--strict"]) == 2
        assert capsys.readouterr().err.startswith(f"Error: {shards / name}")


def test_a_damaged_parquet_file_costs_no_other(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    photos = [face.image.read_bytes() for face in portraits()]
    points = [np.asarray(face.landmarks).tolist() for face in portraits()]
    rows = [{"image": photos[0], "landmarks": points[0]}, {"image": None, "landmarks": points[0]}]
    rows += [{"image": photos[1], "landmarks": None}, {"image": photos[1], "landmarks": points[1]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=1)
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    # The pages of the last row group: its footer is whole.
    place = parquet.ParquetFile(tmp_path / "a.parquet").metadata.row_group(3).column(0).data_page_offset
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[place : place + 64] = bytes(64)
    (tmp_path / "c.parquet").write_bytes(data)
    found: list[str] = []
    source = open_faces(tmp_path, size=1, skip=lambda error: found.append(str(error)))
    faces = source.load(lambda error: found.append(str(error)))
    assert [face.image.relative_to(tmp_path).as_posix() for face in faces] == [
        "a.parquet/row-0",
        "a.parquet/row-3",
        "c.parquet/row-0",
    ]
    assert len(found) == 2 * 2 + 1 + 1
    assert "b.parquet: not a Parquet file" in found[0]
    assert "c.parquet: row 3 or the next can't be read" in found[-1]
    with pytest.raises(FaceSetError, match=r"b\.parquet: not a Parquet file"):
        open_faces(tmp_path)


def test_label_names_damaged_members_and_labels_the_others(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["label", str(shards), "--teacher", str(BUNDLED_MODEL), "--flip", "--workers", "1"]
    assert run([*words, "-o", str(tmp_path / "labels.csv")]) == 2
    said = capsys.readouterr().err
    for name in ("empty.tar", "cut.tar", "json.json", "list.json", "alone", "far.jpg", "broken.jpg"):
        assert sum(name in line for line in said.splitlines() if line.startswith("Note: skipped")) == 1, name
    assert "members.tar/bare.jpg: no box beside it; give a detector" in said
    assert "could not be read" in said.splitlines()[-1]
    # Those with five points or a box only say where the face is.
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 1 + GOOD + 2
    assert run([*words, "--strict", "-o", str(tmp_path / "none.csv")]) == 2
    assert not (tmp_path / "none.csv").exists()


def training_config(path: Path, data: Path) -> Path:
    lines = ["width_factor = 0.25", "input_size = 32", "epochs = 1", "batch_size = 2", "[[data]]"]
    path.write_text("\n".join([*lines, f"path = {str(data)!r}"]))
    return path


def test_training_names_damaged_shards_and_learns_from_the_others(shards: Path, tmp_path: Path) -> None:
    config, contract = load_config(training_config(tmp_path / "run.toml", shards)), Contract(input_size=32)
    found: list[str] = []
    for _ in range(2):  # the second time from cut faces
        found.clear()
        cache = open_cache(config, tmp_path / "cache", contract, lambda error: found.append(str(error)))
        assert int(cache.weights.any(axis=1).sum()) == len(cache.repeats) == GOOD  # without the photograph that is none
        for name, reason in DAMAGED.items():
            assert sum(name in line for line in found) == (reason is not None), (name, found)
    with pytest.raises(FaceSetError):
        open_cache(config, tmp_path / "cache", contract)
    rows = cache.weights.any(axis=1)
    expected = np.concatenate([batch.crops for batch in cut_faces(portraits(), Contract(input_size=48), 2)])
    assert cache.crops.shape[1:] == expected.shape[1:]
    assert (cache.windows[rows, 2] > 0).all()


def test_train_tells_by_its_exit_status(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = training_config(tmp_path / "run.toml", shards)
    found = open_faces(shards, skip=lambda _error: None).load(lambda _error: None)
    groups = [face.group for face in found if face.landmarks is not None and face.image.stem in "abcdgh"]
    assert len(groups) == GOOD
    seed = next(seed for seed in range(100) if 1 <= split_groups(groups, 0.45, seed).sum() <= GOOD - 2)
    config.write_text(f"validation = 0.45\nseed = {seed}\n" + config.read_text())
    assert run(["train", "--config", str(config), "-o", str(tmp_path / "strict"), "--strict"]) == 2
    assert "cut.tar" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "strict/last.pth").exists()
    assert run(["train", "--config", str(config), "-o", str(tmp_path / "run"), "--threads", "1"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("files could not be read (named above)")
    assert (tmp_path / "run/last.pth").exists()


def test_training_leaves_out_a_damaged_prepared_shard_and_a_damaged_picture(tmp_path: Path) -> None:
    rows = (PORTRAITS / "landmarks.csv").read_text().splitlines()
    copies = [str(PORTRAITS / row) for row in rows[1:]] * 3
    (tmp_path / "faces.csv").write_text("\n".join([rows[0], *copies]))
    words = ["prepare", "csv", str(tmp_path / "faces.csv"), "-o", str(tmp_path / "set"), "--input-size", "32"]
    assert run([*words, "--shard-faces", "1", "--workers", "1"]) == 0
    shards = [tmp_path / f"set/shard-0000{number}.npz" for number in (0, 1)]
    config = load_config(training_config(tmp_path / "run.toml", tmp_path / "set"))

    def opened() -> tuple[list[str], FaceCache]:
        found: list[str] = []
        contract = Contract(input_size=32)
        return found, open_cache(config, tmp_path / "cache", contract, lambda error: found.append(str(error)))

    data = bytearray(shards[0].read_bytes())
    start = data.index(b"\xff\xd8\xff")
    data[start : start + 40] = bytes(40)
    shards[0].write_bytes(data)
    with pytest.raises(FaceSetError, match=r"shard-00000\.npz: picture 0 is damaged"):
        open_cache(config, tmp_path / "cache", Contract(input_size=32))
    found, cache = opened()
    assert len(found) == 1
    assert "shard-00000.npz: picture 0 is damaged" in found[0]
    assert cache.weights.any(axis=1).tolist() == [False, True, True, True, True, True]
    assert cache.repeats[0] == 0
    assert not cache.held_out[0]
    shards[1].write_bytes(shards[1].read_bytes()[:900])
    found, cache = opened()
    assert len(cache.weights) == 3
    assert len(found) == 2
    assert "shard-00001.npz: a damaged shard" in found[1]


def edge_set(folder: Path) -> Path:
    """The portraits; one of them under a box just left of the photograph; and two photographs that can't be read."""
    rows = []
    for face in portraits():
        (folder / face.image.name).write_bytes(face.image.read_bytes())
        rows.append(points_row(face.image.name, face))
    face = portraits()[0]
    assert face.landmarks is not None
    # Its crop, with a margin, reaches into the photograph; its box does not.
    beside = face.landmarks - np.array([face.bbox_xyxy[2] + 1, 0], np.float32)
    rows.append(points_row(face.image.name, Face(face.image, face.bbox_xyxy, beside)))
    (folder / "broken.jpg").write_bytes(b"no picture")
    rows += [points_row(name, face) for name in ("broken.jpg", "absent.jpg")]
    write_points_csv(folder / "faces.csv", 98, rows)
    return folder / "faces.csv"


def test_convert_judges_by_the_faces_that_evaluate_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, contract, skip = edge_set(tmp_path), Contract(), SkippedFiles()
    found = judged_faces(data, None, contract, skip)
    said = capsys.readouterr().err
    assert "broken.jpg: not an image" in said
    assert "absent.jpg: no such photograph" in said
    assert f"1 of 5 faces of {data} left out: they lie outside of their photographs" in said
    (expected,) = cut_faces(portraits(), contract)
    np.testing.assert_array_equal(found.crops, expected.crops)
    assert len(found.landmarks) == len(found.large_pose) == len(found.photographs) == 2
    with pytest.raises(Exception, match="2 files could not be read"):
        skip.check()
    with pytest.raises(FaceSetError, match=r"broken\.jpg: not an image"):
        judged_faces(data, None, contract, SkippedFiles(strict=True))


def test_prepare_and_evaluate_leave_out_the_same_faces(tmp_path: Path) -> None:
    data = edge_set(tmp_path)
    assert run(["evaluate", str(BUNDLED_MODEL), "--data", str(data), "--json", str(tmp_path / "found.json")]) == 2
    record = json.loads((tmp_path / "found.json").read_text())
    assert (record["faces"], len(record["outside"]), len(record["unreadable"])) == (2, 1, 2)
    assert run(["prepare", "csv", str(data), "-o", str(tmp_path / "set"), "--workers", "1"]) == 2
    manifest = open_prepared(tmp_path / "set")
    assert (manifest.faces, dict(manifest.skipped)) == (2, {"outside of the photograph": 1, "unreadable": 2})


def damaged(value: float) -> Callable[[Uint8Array], Float32Array]:
    """A network of which one coordinate is damaged."""

    def predict(crops: Uint8Array) -> Float32Array:
        found = np.random.default_rng(0).uniform(0.2, 0.8, (len(crops), 98, 2)).astype(np.float32)
        found[:, 5, 1] = value
        return found

    return predict


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30, 1e5])
def test_landmarks_beyond_any_photograph_are_no_numbers(value: float) -> None:
    contract, faces = Contract(), as_detected(portraits() * 4)
    good, bad = LandmarkModel(contract, damaged(0.5), name="good"), LandmarkModel(contract, damaged(value), name="bad")
    whole = EndToEndModel(
        contract.replace(layout="HWC", input_dtype="uint8", output_space="image-pixels"),
        lambda photo, boxes: [(damaged(value)(photo[None].repeat(len(boxes), 0)) * 100).astype(np.float32)],
        name="whole",
    )
    found = verify_models([good, bad, whole], faces, VerificationSettings(max_drift=0.5))
    for model in found.models[1:]:
        assert (model.verdict, model.reason) == (Verdict.FAIL, "it gives no numbers for 8 of 8 faces")
        assert model.accuracy["all"].misses == 8
    photo, box = read_photo(faces[0].image), faces[0].bbox_xyxy
    with pytest.raises(ModelFileError, match="bad gave landmarks that are not finite"):
        FaceLandmarker(bad)(photo, box)
    with pytest.raises(LabellingError, match="bad gave landmarks that are not finite"):
        Labeller([good, bad], LabelSettings()).label(photo, box[None])


def test_faces_half_outside_of_their_photograph_keep_their_landmarks() -> None:
    photo = cv2.imread(str(portraits()[0].image))
    assert photo is not None
    model = LandmarkModel(Contract(), damaged(40.0))
    assert np.isfinite(model.locate(photo, [[-500, -400, 60, 70]], "bgr")).all()

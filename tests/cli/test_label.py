"""`label` from the command line: the bundled model labels the portraits, and a network trains on the labels."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from pfld_edge.cli import run
from pfld_edge_calib import PORTRAITS, nme_per_face, portraits, read_points_csv
from pfld_edge_runtime import BUNDLED_MODEL, IBUG_68, Contract
from pfld_edge_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pfld_edge_train.face_cache import split_groups
from pfld_edge_train.models import ModelConfig, build_model


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    """Boxes of the portraits that are off by a tenth."""
    lines = ["image,x0,y0,x1,y1"]
    for face in portraits():
        shifted = face.bbox_xyxy + 0.1 * np.tile(face.bbox_xyxy[2:] - face.bbox_xyxy[:2], 2)
        lines.append(",".join([str(face.image), *map(str, shifted)]))
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    return tmp_path / "boxes.csv"


def arguments(boxes: Path, out: Path, *more: str) -> list[str]:
    return ["label", "--teacher", str(BUNDLED_MODEL), "--flip", "--boxes", str(boxes), "-o", str(out), *more]


def test_the_bundled_model_labels_the_portraits_and_a_network_trains_on_them(
    boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "labels.csv"
    assert run(arguments(boxes, out, "--crops", "2", "--workers", "1")) == 0
    assert f"2 faces of 2 photographs -> {out}" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.partial"))
    faces, known = read_points_csv(out), portraits()
    assert [face.image.resolve() for face in faces] == [face.image.resolve() for face in known]
    found, truth = (
        np.stack([face.landmarks for face in some if face.landmarks is not None]) for some in (faces, known)
    )
    assert nme_per_face(found, truth, (60, 72)).max() < 0.06
    seed = next(seed for seed in range(100) if split_groups([face.group for face in faces], 0.49, seed).sum() == 1)
    lines = ["width_factor = 0.25", "input_size = 32", "epochs = 1", "batch_size = 2", "validation = 0.49"]
    lines += [f"seed = {seed}", "[[data]]", "path = 'labels.csv'", "repeat = 4"]
    (tmp_path / "run.toml").write_text("\n".join(lines))
    assert run(["train", "--config", str(tmp_path / "run.toml"), "-o", str(tmp_path / "run")]) == 0
    assert load_checkpoint(tmp_path / "run/last.pth").step == 2


def test_two_processes_give_the_same_bytes_as_one(boxes: Path, tmp_path: Path) -> None:
    for name, workers in (("one.csv", "1"), ("two.csv", "2")):
        assert run(arguments(boxes, tmp_path / name, "--workers", workers)) == 0
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and SIGINT are POSIX's")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_goes_on(
    tmp_path: Path, sent: signal.Signals, stop_command: Callable[..., tuple[int, str]]
) -> None:
    photo = cv2.imread(str(PORTRAITS / "grace_hopper.jpg"))
    assert photo is not None
    lines = ["image,x0,y0,x1,y1", *(f"{number}.jpg,173,157,354,333" for number in range(40))]
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    for number in range(40):
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), photo[: 400 - number // 4])
    partial = tmp_path / "a.csv.partial"
    command = arguments(tmp_path / "boxes.csv", tmp_path / "a.csv", "--workers", "1", "--crops", "4")
    status, said = stop_command(command, sent, 4)
    done = len(list(partial.rglob("*.part")))
    assert done == 4
    if sent == signal.SIGINT:
        assert status == 130
        assert f"{done} of 40 photographs are kept; the same command goes on" in said
    assert run(arguments(tmp_path / "boxes.csv", tmp_path / "a.csv", "--crops", "4", "--workers", "1")) == 0
    assert run(arguments(tmp_path / "boxes.csv", tmp_path / "b.csv", "--crops", "4", "--workers", "1")) == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert not partial.exists()


def test_unreadable_photographs_are_named_and_skipped(
    boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    boxes.write_text(boxes.read_text() + "\nbroken.jpg,0,0,50,50\nabsent.jpg,0,0,50,50\nbroken.jpg,9,9,50,50")
    out = tmp_path / "labels.csv"
    for workers in ("1", "2"):
        assert run(arguments(boxes, out, "--workers", workers)) == 2
        said = capsys.readouterr()
        assert said.err.count("broken.jpg: not an image that can be read") == 1
        assert said.err.count("absent.jpg: no such photograph") == 1
        assert said.err.endswith("Error: 2 of 4 files could not be read (named above)\n")
        assert f"2 faces of 2 photographs -> {out}" in said.out
        assert len(read_points_csv(out)) == 2
        out.unlink()


def test_strict_stops_at_the_first_unreadable_photograph_and_goes_on_once_it_is_mended(
    boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    boxes.write_text(boxes.read_text() + "\nbroken.jpg,173,157,354,333")
    strict = arguments(boxes, tmp_path / "labels.csv", "--workers", "1", "--strict")
    for _ in range(2):
        assert run(strict) == 2
        assert capsys.readouterr().err.endswith(
            "broken.jpg: not an image that can be read, or a damaged one (JPEG, PNG, TIFF, AVIF, WebP, GIF, BMP "
            "expected)\n"
        )
        assert not (tmp_path / "labels.csv").exists()
    (tmp_path / "broken.jpg").write_bytes((PORTRAITS / "grace_hopper.jpg").read_bytes())
    assert run(strict) == 0
    said = capsys.readouterr()
    assert "2 of 3 photographs are done already" in said.err
    assert "3 faces of 3 photographs" in said.out


def test_the_bundled_detector_finds_the_faces_to_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "labels.csv"
    one = ["label", "--teacher", str(BUNDLED_MODEL), "--flip", "-o", str(out), "--workers", "1"]
    assert run([*one, str(PORTRAITS)]) == 0
    said = capsys.readouterr()
    assert "2 faces of 2 photographs" in said.out
    assert "the bundled detector finds the faces" in said.err


def test_a_folder_says_what_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes((PORTRAITS / "grace_hopper.jpg").read_bytes())
    (tmp_path / "photos/._a.jpg").write_bytes(b"no picture")
    (tmp_path / "photos/notes.doc").write_bytes(b"no picture")
    (tmp_path / "boxes.csv").write_text("image,x0,y0,x1,y1\nphotos/a.jpg,173,157,354,333\n")
    given = arguments(tmp_path / "boxes.csv", tmp_path / "labels.csv", "--workers", "1", str(tmp_path / "photos"))
    assert run(given) == 0
    said = capsys.readouterr()
    assert "photos: left out, as no photographs: notes.doc" in said.err
    assert "1 faces of 1 photographs" in said.out


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' file names are text")
def test_a_photograph_whose_name_is_not_utf_8_is_named_and_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (b"plain.jpg", b"caf\xe9.jpg"):
        (tmp_path / os.fsdecode(name)).write_bytes((PORTRAITS / "grace_hopper.jpg").read_bytes())
    out = tmp_path / "labels.csv"
    one = ["label", "--teacher", str(BUNDLED_MODEL), "--flip", "-o", str(out), "--workers", "1"]
    assert run([*one, str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "its name is not UTF-8, as the CSV of labels is; rename it" in said.err
    assert "1 faces of 1 photographs" in said.out
    assert [face.image.name for face in read_points_csv(out)] == ["plain.jpg"]


def test_mistakes_get_a_sentence(boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ModelConfig("pfld-edge-s", width_factor=0.25, input_size=32, num_landmarks=68)
    contract = Contract(model=config.kind, input_size=32, landmarks=IBUG_68).to_dict()
    other = tmp_path / "other.pth"
    save_checkpoint(other, Checkpoint(build_model(config).state_dict(), config, contract=contract))
    out, black = tmp_path / "labels.csv", tmp_path / "black.png"
    cv2.imwrite(str(black), np.zeros((50, 60, 3), np.uint8))
    (tmp_path / "small.csv").write_text("image,x0,y0,x1,y1\nblack.png,0,0,20,20\n")
    one = ["label", "--teacher", str(BUNDLED_MODEL), "-o", str(out)]
    cases = [
        (
            arguments(boxes, out, "--teacher", str(other)),
            "other.pth finds 68 landmarks (ibug-68), pfld-edge-m.int8.onnx",
        ),
        ([*one, "--boxes", str(boxes)], "always agrees with itself"),
        (arguments(boxes, out, "--detector", "yunet"), "--detector and --boxes both say where faces are"),
        ([*one, "--flip", "--detector", "yunet"], "give PHOTOS"),
        (arguments(boxes, tmp_path / "labels.txt"), "must end in .csv"),
        (arguments(tmp_path / "none.csv", out), "none.csv: no such CSV file"),
        (arguments(boxes, out, str(black)), "none of the 1 photographs has a box"),
        (arguments(tmp_path / "small.csv", out), "show 1 faces, none fit to label: 1 too small"),
    ]
    for typed, message in cases:
        assert run([*typed, "--workers", "1"]) == 2, message
        assert message in capsys.readouterr().err
    assert not out.exists()
    assert not list(tmp_path.glob("*.partial"))

"""`pfld-edge predict` draws the landmarks that the model finds, and refuses what it can't use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from pfld_edge.cli import run
from pfld_edge_calib import nme_per_face, portraits, read_photo
from pfld_edge_runtime.arrays import Float32Array


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), np.full((200, 300, 3), 90, np.uint8))
    return path


def test_json_holds_the_landmarks_in_photograph_pixels(
    tmp_path: Path, photo: Path, known_model: Path, fractions: Float32Array
) -> None:
    boxes = ["--box", "100,50,150,100", "--box", "-10,-10,40,20"]
    out, record = tmp_path / "drawn.png", tmp_path / "found.json"
    assert run(["predict", str(photo), "-o", str(out), "--model", str(known_model), *boxes, "--json", str(record)]) == 0
    found = json.loads(record.read_text())
    assert found["scheme"] == "wflw-98"
    faces = found["photos"][0]["faces"]
    assert [face["box"] for face in faces] == [[100, 50, 150, 100], [-10, -10, 40, 20]]
    # Both boxes are 50 pixels wide, so both crops are squares of 60 around (125, 75) and (15, 5).
    for face, corner in zip(faces, ([95, 45], [-15, -25]), strict=True):
        np.testing.assert_allclose(face["landmarks"], fractions * 60 + corner, atol=0.006)


def test_the_face_is_drawn_and_nothing_else(tmp_path: Path, photo: Path, known_model: Path) -> None:
    before = photo.read_bytes()
    out = tmp_path / "new" / "drawn.png"
    assert run(["predict", str(photo), "-o", str(out), "--model", str(known_model), "--box", "100,50,150,100"]) == 0
    drawn = cv2.imread(str(out))
    assert drawn is not None
    changed = np.argwhere((drawn != 90).any(axis=2))
    # The crop reaches from (95, 45) to (155, 105), and its corners are among the points.
    assert (np.abs(changed.min(axis=0) - [45, 95]) <= 3).all()
    assert (np.abs(changed.max(axis=0) - [105, 155]) <= 3).all()
    assert photo.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["drawn.png"]


def test_a_whole_picture_may_be_the_box_of_a_face(
    tmp_path: Path, photo: Path, known_model: Path, fractions: Float32Array
) -> None:
    record = tmp_path / "found.json"
    arguments = ["-o", str(tmp_path / "out"), "--model", str(known_model), "--json", str(record)]
    second = photo.with_name("second.png")
    second.write_bytes(photo.read_bytes())
    assert run(["predict", str(photo), str(second), "--box", "whole", *arguments]) == 0
    assert (tmp_path / "out" / "photo-landmarks.png").is_file()
    (face,), (other,) = (found["faces"] for found in json.loads(record.read_text())["photos"])
    assert face["box"] == other["box"] == [0, 0, 300, 200]
    np.testing.assert_allclose(face["landmarks"], fractions * 360 + [150 - 180, 100 - 180], atol=0.02)


def test_several_photographs_go_to_a_folder(tmp_path: Path, photo: Path, known_model: Path) -> None:
    second = photo.with_name("second.jpg")
    cv2.imwrite(str(second), np.zeros((5, 5), np.uint8))
    assert run(["predict", str(photo), str(second), "-o", str(tmp_path / "out"), "--model", str(known_model)]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"photo-landmarks.png", "second-landmarks.png"}


def test_huge_boxes_are_drawn_without_overflow(tmp_path: Path, photo: Path, known_model: Path) -> None:
    out = tmp_path / "drawn.jpg"
    arguments = ["-o", str(out), "--model", str(known_model), "--box", "-1e9,-1e9,1e9,1e9"]
    assert run(["predict", str(photo), *arguments]) == 0
    assert out.is_file()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("missing.jpg -o out", "missing.jpg: no such photograph"),
        ("text.jpg -o out", "text.jpg: not an image that can be read"),
        ("empty.jpg -o out", "empty.jpg: not an image that can be read"),
        ("photo.png -o out --box 1,2,3", "'1,2,3' is not a box; give four pixel coordinates"),
        ("photo.png -o out --box a,b,c,d", "'a,b,c,d' is not a box"),
        ("photo.png -o out --box nan,0,9,9", "coordinates must be finite"),
        ("photo.png -o out --box 90,90,10,10", "x1 must exceed x0"),
        ("photo.png -o out --model missing.onnx", "missing.onnx: no such model file"),
        ("photo.png -o out --model text.onnx", "text.onnx is not an ONNX model"),
        ("photo.png -o text.jpg/x.png", "text.jpg"),
        ("photo.png -o out --csv .", "'--csv': File '.' is a directory"),
        ("photo.png -o out --json text.jpg/x.json", "text.jpg/x.json can't be made"),
        ("photo.png -o out --csv /proc/x.csv", "/proc/x.csv: No such file"),
        ("photo.png -o text.onnx", "text.onnx is neither a folder nor a .png or .jpg file"),
        ("photo.png -o photo.png", "photo.png is the photograph itself"),
        ("photo.png text.jpg -o one.png", "one.png is one file, and there are 2 photographs"),
        ("photo.png photo.png -o out", "2 photographs would be drawn to out/photo-landmarks.png"),
        ("photo.png text.jpg -o out --box 1,2,3,4", "--box goes with a single PHOTO"),
        ("photo.png text.jpg -o out --box whole --box 1,2,3,4", "--box goes with a single PHOTO"),
        ("photo.png -o out --threads -1", "--threads"),
        ("https://example.org/photo.jpg -o out", "https://example.org/photo.jpg is an address"),
        ("rtsp://10.0.0.1/stream -o out", "rtsp://10.0.0.1/stream is an address"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    arguments: str,
    says: str,
    tmp_path: Path,
    photo: Path,
    known_model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(photo.parent)
    before = photo.read_bytes()
    for name, text in {"text.jpg": "hello", "empty.jpg": "", "text.onnx": "hello"}.items():
        (tmp_path / name).write_text(text)
    given = arguments.split()
    model = [] if "--model" in given else ["--model", str(known_model)]
    assert run(["predict", *given, *model]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("Error: ")
    assert says in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert photo.read_bytes() == before


@pytest.fixture
def folder(tmp_path: Path, photo: Path) -> Path:
    """A folder with two photographs of one name, one that is damaged, and a hidden file."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.png").write_bytes(photo.read_bytes())
    (folder / "sub/a.png").write_bytes(photo.read_bytes())
    (folder / "b.jpg").write_bytes(b"damaged")
    (folder / "._a.jpg").write_bytes(b"resource fork")
    return folder


def test_a_damaged_photograph_does_not_cost_the_others(
    tmp_path: Path, folder: Path, known_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, table = tmp_path / "out", tmp_path / "found.csv"
    arguments = ["predict", str(folder), "-o", str(out), "--model", str(known_model), "--csv", str(table)]
    assert run([*arguments, "--box", "whole"]) == 2
    printed = capsys.readouterr().err
    assert "skipped" in printed
    assert "b.jpg: not an image" in printed
    assert printed.splitlines()[-1] == "Error: 1 of 3 files could not be read (named above)"
    assert {str(path.relative_to(out)) for path in out.rglob("*.png")} == {
        "a-landmarks.png",
        "sub/a-landmarks.png",
    }
    assert len(table.read_text().splitlines()) == 3


def test_strict_stops_at_a_damaged_photograph_and_keeps_what_was_found(
    tmp_path: Path, folder: Path, known_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "found.jsonl"
    arguments = ["predict", str(folder), "-o", str(tmp_path / "out"), "--model", str(known_model), "--strict"]
    assert run([*arguments, "--json", str(lines)]) == 2
    assert "b.jpg: not an image" in capsys.readouterr().err.splitlines()[-1]
    assert [Path(json.loads(line)["photo"]).name for line in lines.read_text().splitlines()] == ["a.png"]
    assert not (tmp_path / "found.jsonl.partial").exists()


def test_drawings_of_the_last_run_are_not_drawn_on(folder: Path, known_model: Path) -> None:
    (folder / "b.jpg").unlink()
    for _ in range(2):
        assert run(["predict", str(folder), "-o", str(folder), "--model", str(known_model)]) == 0
    drawings = sorted(str(path.relative_to(folder)) for path in folder.rglob("*landmarks*"))
    assert drawings == ["a-landmarks.png", "sub/a-landmarks.png"]


def test_json_on_standard_output_is_alone_there(
    tmp_path: Path, photo: Path, known_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", str(photo), "-o", str(tmp_path / "out"), "--model", str(known_model), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["photos"]) == 1


def test_names_may_have_letters_that_the_console_lacks(tmp_path: Path, photo: Path, known_model: Path) -> None:
    photo.rename(tmp_path / "\u9854.png")
    arguments = [
        "predict",
        "\u9854.png",
        "-o",
        "out",
        "--model",
        str(known_model),
        "--csv",
        "\u8868.csv",
        "--box",
        "1,1,9,9",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pfld_edge", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\u9854.png -> out" in done.stdout
    assert (tmp_path / "\u8868.csv").is_file()


def test_a_write_error_names_the_file(
    tmp_path: Path, photo: Path, known_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    out = tmp_path / "drawn.png"
    assert run(["predict", str(photo), "-o", str(out), "--model", str(known_model)]) == 2
    assert capsys.readouterr().err == f"Error: {out}: No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
@pytest.mark.parametrize("name", ["faces.json", "faces.jsonl", "faces.csv"])
def test_a_full_disk_names_the_records(
    tmp_path: Path, photo: Path, known_model: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / f"{name}.partial").symlink_to("/dev/full")
    option = "--csv" if name.endswith("csv") else "--json"
    target = str(tmp_path / name)
    assert run(["predict", str(photo), "-o", str(tmp_path), "--model", str(known_model), option, target]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"Error: {target}: No space left on device"
    assert not Path(target).exists()


@pytest.mark.parametrize("suffix", [".png", ".mp4"])
def test_what_is_still_to_be_read_is_not_drawn_over(
    tmp_path: Path, known_model: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    names = [str(tmp_path / f"a{end}{suffix}") for end in ("", "-landmarks")]  # what *.png names in a second run
    for name in names:
        Path(name).write_bytes(b"given")
    assert run(["predict", *names, "-o", str(tmp_path), "--model", str(known_model)]) == 2
    assert f"{names[1]} is among the inputs and would be drawn over" in capsys.readouterr().err
    assert [Path(name).read_bytes() for name in names] == [b"given"] * 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("where", ["whole", "10,10,90,90"])
def test_a_network_that_answers_no_positions_is_named(
    tmp_path: Path, photo: Path, known_model: Path, value: float, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(known_model)
    points = next(item for item in model.graph.initializer if item.name == "points")
    points.CopyFrom(numpy_helper.from_array(np.full(196, value, np.float32), "points"))
    onnx.save(model, known_model)
    arguments = ["--draw", "points,contours,boxes,pose,ids,confidence", "--json", str(tmp_path / "a.json")]
    command = ["predict", str(photo), "--box", where, "-o", str(tmp_path / "out"), "--model", str(known_model)]
    assert run([*command, *arguments]) == 2
    printed = capsys.readouterr().err.splitlines()
    told = (
        "known.onnx gave landmarks that are not finite numbers, or far outside of the photograph: its contract doesn't "
        "fit the network (`pfld-edge contract --find` tells), or the file is damaged"
    )
    assert printed == [f"Error: {photo}: {told}"]


def test_all_faces_of_a_photograph_are_found_without_an_option(
    tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left, right = (read_photo(face.image) for face in portraits())
    height = max(len(left), len(right))
    both = np.zeros((height, left.shape[1] + right.shape[1], 3), np.uint8)
    both[: len(left), : left.shape[1]], both[: len(right), left.shape[1] :] = left, right
    cv2.imwrite(str(tmp_path / "both.png"), both)
    record = tmp_path / "found.json"
    command = ["predict", str(tmp_path / "both.png"), str(photo), "-o", str(tmp_path / "out"), "--json", str(record)]
    assert run(command) == 0
    printed = capsys.readouterr()
    assert [line.rsplit("(")[-1] for line in printed.out.splitlines()[:2]] == ["2 faces)", "no face found)"]
    assert printed.err.splitlines() == [
        "Note: the bundled detector finds the faces; --detector takes others, --box gives them",
        f"Note: no face found in 1 photograph: {photo}",
    ]
    found, nothing = json.loads(record.read_text())["photos"]
    assert nothing["faces"] == []
    assert (cv2.imread(str(tmp_path / "out/photo-landmarks.png")) == 90).all()
    points = sorted((np.array(face["landmarks"]) for face in found["faces"]), key=lambda face: float(face[0, 0]))
    for face, truth, shift in zip(points, portraits(), (0, left.shape[1]), strict=True):
        assert truth.landmarks is not None
        assert nme_per_face(face[None], truth.landmarks[None] + [shift, 0], (60, 72))[0] < 0.08
    assert run([*command, "--detector", "bundled"]) == 0
    assert "the bundled detector" not in capsys.readouterr().err


def test_boxes_outside_of_the_picture_are_told(
    tmp_path: Path, photo: Path, known_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", str(photo), "-o", str(tmp_path / "out"), "--model", str(known_model)]
    assert run([*command, "--box", "10,10,90,90", "--box", "300,20,350,80", "--box", "-50,-50,0,9"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"Note: {photo}: the box 300,20,350,80 lies outside of the picture (300 x 200)",
        f"Note: {photo}: the box -50,-50,0,9 lies outside of the picture (300 x 200)",
    ]


def test_a_folder_is_read_in_all_formats_and_what_is_left_out_is_named(
    tmp_path: Path, photo: Path, known_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "phone"
    folder.mkdir()
    picture = Image.open(photo)
    for name in ("a.TIFF", "b.avif", "c.webp", "d.gif"):
        picture.save(folder / name)
    for name in ("clip.mov", "notes.txt", ".hidden.txt"):
        (folder / name).touch()
    command = [
        "predict",
        str(folder),
        "-o",
        str(folder),
        "--model",
        str(known_model),
        "--csv",
        str(folder / "found.csv"),
    ]
    assert run(command) == 0
    assert f"Note: {folder}: left out, as no photographs: clip.mov, notes.txt\n" in capsys.readouterr().err
    assert len(list(folder.glob("*-landmarks.png"))) == 4
    for path in folder.glob("[abcd].*"):
        path.unlink()
    assert run(command) == 2
    assert capsys.readouterr().err == f"Error: {folder}: holds only drawings of an earlier run, no photographs\n"


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
@pytest.mark.parametrize("wrong", ["missing.jpg", "empty.jpg"])
def test_a_run_without_a_result_leaves_the_records_of_an_earlier_one(
    tmp_path: Path, known_model: Path, kind: str, wrong: str
) -> None:
    (tmp_path / "empty.jpg").touch()
    record = tmp_path / f"found.{kind}"
    record.write_text("of an earlier run")
    option = "--csv" if kind == "csv" else "--json"
    given = ["predict", str(tmp_path / wrong), "-o", str(tmp_path / "out"), "--model", str(known_model)]
    assert run([*given, option, str(record)]) == 2
    assert record.read_text() == "of an earlier run"
    assert not list(tmp_path.glob("*.partial"))


def test_without_an_output_drawings_go_to_the_working_folder(
    tmp_path: Path, photo: Path, known_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["predict", str(photo), "--model", str(known_model)]) == 0
    assert (tmp_path / "photo-landmarks.png").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' file names are text")
def test_names_that_are_not_utf_8_keep_their_bytes(tmp_path: Path, photo: Path, known_model: Path) -> None:
    strange = tmp_path / os.fsdecode(b"caf\xe9.png")
    strange.write_bytes(photo.read_bytes())
    table, record = tmp_path / "found.csv", tmp_path / "found.json"
    given = ["predict", str(strange), "-o", str(tmp_path / "out"), "--model", str(known_model), "--box", "whole"]
    assert run([*given, "--csv", str(table), "--json", str(record)]) == 0
    assert b"/caf\xe9.png," in table.read_bytes()
    assert json.loads(record.read_text())["photos"][0]["photo"] == str(strange)


def test_many_files_that_cannot_be_read_are_counted(
    tmp_path: Path, known_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(30):
        (tmp_path / f"{number:02d}.jpg").write_bytes(b"damaged")
    assert run(["predict", str(tmp_path), "-o", str(tmp_path / "out"), "--model", str(known_model)]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert sum("skipped" in line for line in printed) == 20
    assert printed[-1] == "Error: 30 of 30 files could not be read (the first 20 are named above)"

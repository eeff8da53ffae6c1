"""`pfld-edge predict` draws the landmarks that the model finds, and refuses what it can't use."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pfld_edge.cli import run


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), np.full((200, 300, 3), 90, np.uint8))
    return path


def test_json_holds_the_landmarks_in_photograph_pixels(
    tmp_path: Path, photo: Path, known_model: Path, fractions: NDArray[np.float32]
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


def test_without_a_box_the_whole_picture_is_one_face(
    tmp_path: Path, photo: Path, known_model: Path, fractions: NDArray[np.float32]
) -> None:
    record = tmp_path / "found.json"
    arguments = ["-o", str(tmp_path / "out"), "--model", str(known_model), "--json", str(record)]
    assert run(["predict", str(photo), *arguments]) == 0
    assert (tmp_path / "out" / "photo-landmarks.png").is_file()
    (face,) = json.loads(record.read_text())["photos"][0]["faces"]
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
        ("photo.png -o text.onnx", "text.onnx is neither a folder nor a .png or .jpg file"),
        ("photo.png -o photo.png", "photo.png is the photograph itself"),
        ("photo.png text.jpg -o one.png", "one.png is one file, and there are 2 photographs"),
        ("photo.png photo.png -o out", "2 photographs would be drawn to out/photo-landmarks.png"),
        ("photo.png text.jpg -o out --box 1,2,3,4", "--box goes with a single PHOTO"),
        ("photo.png -o out --threads -1", "--threads"),
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
    assert photo.read_bytes() == before

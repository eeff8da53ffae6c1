"""`pfld-edge predict` on videos, folders and with a detector; what is kept when it is interrupted."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import pfld_edge_runtime
from pfld_edge.cli import run
from pfld_edge.drawing import draw_faces
from pfld_edge.options import DRAW_LIST, DRAWABLE
from pfld_edge_calib import portraits, read_photo
from pfld_edge_runtime import FaceLandmarker, Faces, read_faces
from pfld_edge_runtime.arrays import Uint8Array

Found = Callable[[NDArray[np.generic]], object]
FRAMES = 9


@pytest.fixture(scope="module")
def face() -> tuple[Uint8Array, list[float]]:
    """A portrait in BGR, and its face's box."""
    portrait = portraits()[0]
    return read_photo(portrait.image), portrait.bbox_xyxy.tolist()


@pytest.fixture
def clip(tmp_path: Path, face: tuple[Uint8Array, list[float]]) -> Path:
    """A video of a portrait that doesn't move, 12.5 frames a second."""
    photo = face[0]
    path = tmp_path / "clip.mp4"
    size = (photo.shape[1] // 2 * 2, photo.shape[0] // 2 * 2)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 12.5, size)
    for _ in range(FRAMES):
        writer.write(photo[: size[1], : size[0]])
    writer.release()
    return path


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch, face: tuple[Uint8Array, list[float]]) -> list[int]:
    """A stand-in that always finds the portrait's face, and counts its calls; a negative count interrupts."""
    calls = [0]

    def find(_image: NDArray[np.generic]) -> object:
        calls[0] += 1
        if calls[0] == 0:
            raise KeyboardInterrupt
        return [[*face[1], 0.9]]

    def opened(_name: str, **_settings: object) -> Found:
        return find

    monkeypatch.setattr(pfld_edge_runtime, "open_detector", opened)
    return calls


def frames_of(path: Path) -> list[Uint8Array]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        more, frame = capture.read()
        if not more:
            return frames
        frames.append(np.asarray(frame, np.uint8))


def test_a_video_becomes_a_video_and_records(tmp_path: Path, clip: Path, detector: list[int]) -> None:
    out, lines, table = tmp_path / "new/drawn.mp4", tmp_path / "found.jsonl", tmp_path / "found.csv"
    arguments = [
        "predict",
        str(clip),
        "-o",
        str(out),
        "--detector",
        "yunet",
        "--confidence",
        "--draw",
        "points,pose,ids",
    ]
    assert run([*arguments, "--json", str(lines), "--csv", str(table)]) == 0
    assert detector[0] >= 1
    drawn, before = frames_of(out), frames_of(clip)
    assert len(drawn) == len(before) == FRAMES
    assert cv2.VideoCapture(str(out)).get(cv2.CAP_PROP_FPS) == 12.5
    assert np.abs(drawn[3].astype(int) - before[3]).max() > 100
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [record["frame"] for record in records] == list(range(FRAMES))
    assert [record["seconds"] for record in records] == [round(index / 12.5, 4) for index in range(FRAMES)]
    for record in records:
        (found,) = record["faces"]
        assert found["id"] == 0
        assert found["confidence"] > 0.8
        assert abs(found["pose"]["roll"]) < 20
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == FRAMES
    first = records[0]["faces"][0]
    assert [float(rows[0]["x_contour_0"]), float(rows[0]["y_contour_0"])] == first["landmarks"][0]
    assert float(rows[0]["yaw"]) == first["pose"]["yaw"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["drawn.mp4"]


def test_an_interruption_keeps_what_is_done(
    tmp_path: Path, clip: Path, detector: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    out, record = tmp_path / "out", tmp_path / "found.json"
    detector[0] = -5
    arguments = ["predict", str(clip), "-o", str(out), "--detector", "yunet", "--every", "1", "--json", str(record)]
    assert run(arguments) == 130
    assert "4 frames kept" in capsys.readouterr().err
    assert len(frames_of(out / "clip-landmarks.mp4")) == 4
    assert [frame["frame"] for frame in json.loads(record.read_text())["frames"]] == [0, 1, 2, 3]
    assert [path.name for path in out.iterdir()] == ["clip-landmarks.mp4"]


def test_a_video_needs_no_option_and_says_that_it_shows_no_face(
    tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blank = tmp_path / "blank.mp4"
    writer = cv2.VideoWriter(str(blank), cv2.VideoWriter.fourcc(*"mp4v"), 10, (160, 120))
    for _ in range(3):
        writer.write(np.full((120, 160, 3), 128, np.uint8))
    writer.release()
    out = tmp_path / "out"
    command = ["predict", str(clip), str(blank), "-o", str(out), "--frames", "2", "--csv", str(tmp_path / "a.csv")]
    assert run(command) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[:2] == [
        f"{clip} -> {out / 'clip-landmarks.mp4'} (2 frames)",
        f"{blank} -> {out / 'blank-landmarks.mp4'} (2 frames, no face found)",
    ]
    assert printed.err.startswith("Note: the bundled detector finds the faces")
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 3


def test_so_many_frames_and_no_more(tmp_path: Path, clip: Path, detector: list[int]) -> None:
    arguments = ["predict", str(clip), "-o", str(tmp_path / "out"), "--detector", "yunet", "--no-smooth"]
    assert run([*arguments, "--frames", "3"]) == 0
    assert len(frames_of(tmp_path / "out/clip-landmarks.mp4")) == 3
    assert detector == [1]


@pytest.mark.usefixtures("detector")
def test_videos_of_one_name_are_drawn_to_files_of_their_own(
    tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = [clip.with_suffix(".M4V"), tmp_path / "more/clip.M4V"]
    others[1].parent.mkdir()
    for other in others:
        other.write_bytes(clip.read_bytes())
    arguments = ["-o", str(tmp_path / "out"), "--frames", "1"]
    assert run(["predict", str(clip), str(others[0]), *arguments]) == 0
    drawn = {path.name for path in (tmp_path / "out").iterdir()}
    assert drawn == {"clip-landmarks.mp4", "clip.M4V-landmarks.mp4"}
    assert run(["predict", *map(str, [clip, *others]), *arguments]) == 2
    assert "is another video's in this run" in capsys.readouterr().err


@pytest.mark.usefixtures("detector")
@pytest.mark.parametrize("suffix", [".mpg", ".ts", ".flv", ".wmv", ".3gp"])
def test_a_video_of_a_less_usual_container_is_a_video(tmp_path: Path, clip: Path, suffix: str) -> None:
    # FFmpeg looks at the contents, whatever the name.
    other = clip.rename(clip.with_suffix(suffix))
    assert run(["predict", str(other), "-o", str(tmp_path / "out"), "--frames", "2"]) == 0
    assert len(frames_of(tmp_path / "out/clip-landmarks.mp4")) == 2


def test_a_folder_and_a_video_go_together(
    tmp_path: Path, clip: Path, detector: list[int], face: tuple[Uint8Array, list[float]]
) -> None:
    folder = tmp_path / "photos/deep"
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "one.png"), face[0])
    record = tmp_path / "found.json"
    arguments = ["predict", str(folder.parent), str(clip), "-o", str(tmp_path / "out")]
    assert run([*arguments, "--json", str(record)]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clip-landmarks.mp4", "deep"]
    assert (tmp_path / "out/deep/one-landmarks.png").is_file()
    found = json.loads(record.read_text())
    assert len(found["frames"]) == FRAMES
    (photo,) = found["photos"]
    assert photo["faces"][0]["score"] == 0.9
    assert detector[0] >= 2


def test_each_part_is_drawn_and_nothing_without_parts(face: tuple[Uint8Array, list[float]]) -> None:
    photo, box = face
    found = read_faces(FaceLandmarker(), photo, [box], "bgr", confidence=True)
    tracked = Faces(
        found.landmarks, found.boxes, found.scores, found.confidences, np.array([7]), found.image_size, found.scheme
    )
    assert (draw_faces(photo, tracked, ()) == photo).all()
    drawings = [draw_faces(photo, tracked, (part,)) for part in DRAWABLE]
    for index, drawing in enumerate(drawings):
        assert (drawing != photo).any(), DRAWABLE[index]
        assert not any((drawing == other).all() for other in drawings[:index])
    # No ids, no confidences, no drawing of them.
    plain = read_faces(FaceLandmarker(), photo, [box], "bgr")
    assert (draw_faces(photo, plain, ("ids", "confidence")) == photo).all()


def test_the_words_of_draw_are_the_drawable_parts() -> None:
    assert DRAW_LIST.convert(",".join(DRAWABLE), None, None) == frozenset(DRAWABLE)
    assert DRAW_LIST.convert("none", None, None) == frozenset()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("clip.mp4 -o out --box whole", "--box goes with a single PHOTO"),
        ("missing.mp4 -o out --detector yunet", "missing.mp4: no such video"),
        ("clip.mp4 -o clip.mp4 --detector yunet", "clip.mp4 is the video itself"),
        ("clip.mp4 -o text.txt --detector yunet", "text.txt is neither a folder nor an .mp4 file"),
        ("clip.mp4 -o out.png --detector yunet", "out.png would be a picture: give an .mp4 file, or a folder"),
        ("photo.png -o out.mp4 --detector yunet", "out.mp4 is one video"),
        ("clip.mp4 clip.mp4 -o out.mp4 --detector yunet", "out.mp4 is one video"),
        ("clip.mp4 -o out --detector yunet --box 1,1,9,9", "--box goes with a single PHOTO"),
        ("photo.png -o out --detector yunet --box 1,1,9,9", "leave one out"),
        ("empty -o out --detector yunet", "empty: no photographs found"),
        ("-o out", "give photographs, videos or folders, or else --camera"),
        ("photo.png --camera 0 -o out", "give photographs, videos or folders, or else --camera"),
        ("--camera 99 -o out --detector yunet", "camera 99: can't be opened"),
        ("photo.png -o out --draw points,nose", "'nose' can't be drawn; known: points, contours"),
        ("photo.png -o out --csv text.txt/x.csv", "text.txt"),
    ],
)
@pytest.mark.usefixtures("detector", "clip")
def test_what_cannot_be_used_is_one_line(
    arguments: str, says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    cv2.imwrite("photo.png", np.full((20, 30, 3), 90, np.uint8))
    before = Path("clip.mp4").read_bytes()
    assert run(["predict", *arguments.split()]) == 2
    printed = capfd.readouterr().err
    assert printed.startswith("Error: ")
    assert says in printed
    assert printed.count("\n") == 1
    assert Path("clip.mp4").read_bytes() == before


def test_a_file_that_is_no_video_gives_one_line(tmp_path: Path) -> None:
    # In a process of its own: FFmpeg, which would add a line, is told to be quiet once a process.
    (tmp_path / "text.mp4").write_text("hello")
    code = (
        "import sys, pfld_edge_runtime; from pfld_edge.cli import run;"
        "pfld_edge_runtime.open_detector = lambda name, **settings: lambda image: [];"
        "sys.exit(run(['predict', 'text.mp4', '-o', 'out', '--detector', 'yunet']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "Error: text.mp4: not a video that can be read\n"


def test_a_detector_that_is_not_here_gives_one_line(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert run(["predict", str(clip), "-o", str(tmp_path / "out"), "--detector", "yunet"]) == 2
    printed = capsys.readouterr().err
    assert "pfld-edge detector download yunet" in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()

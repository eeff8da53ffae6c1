"""Photographs and text files as cameras, spreadsheets and other systems write them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pfld_edge_calib import FaceSetError, read_coco, read_photo, read_points_csv
from pfld_edge_calib.datasets.points_csv import csv_units, read_boxes_csv
from pfld_edge_calib.datasets.wflw import read_wflw, wflw_list
from pfld_edge_calib.face import unit_faces
from pfld_edge_calib.photo import listed_paths, other_files, photos_in
from pfld_edge_runtime.arrays import Uint8Array

UPRIGHT = np.zeros((80, 120, 3), np.uint8)
UPRIGHT[:40, :60], UPRIGHT[:40, 60:], UPRIGHT[40:, :60] = (200, 30, 30), (30, 180, 30), (30, 30, 210)

# EXIF 2.32, tag 274: where the stored picture's first row and column are in the upright one.
STORED: dict[int, Callable[[Uint8Array], Uint8Array]] = {
    1: lambda image: image,
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: image.transpose(1, 0, 2),
    6: np.rot90,
    7: lambda image: np.rot90(image, 2).transpose(1, 0, 2),
    8: lambda image: np.rot90(image, 3),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff", "avif", "heif"])
def test_a_photograph_is_turned_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    if kind == "heif":
        pytest.importorskip("pillow_heif").register_heif_opener()
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"a.{kind}"
    # From bytes pillow-heif writes the turn as cameras do, in the file's own box.
    Image.fromarray(np.ascontiguousarray(STORED[orientation](UPRIGHT))).save(path, exif=exif.tobytes())
    found = read_photo(path)
    assert found.shape == UPRIGHT.shape
    # Lossy formats blur the borders of the four quarters.
    for y, x in ((20, 30), (20, 90), (60, 30), (60, 90)):
        np.testing.assert_allclose(found[y, x, ::-1], UPRIGHT[y, x], atol=12)


def test_of_several_pictures_in_a_file_the_first_is_read(tmp_path: Path) -> None:
    first, second = Image.fromarray(UPRIGHT), Image.fromarray(255 - UPRIGHT)
    for name in ("a.gif", "a.tiff", "a.webp"):
        first.save(
            tmp_path / name, save_all=True, append_images=[second], **({"lossless": True} if "webp" in name else {})
        )
        assert np.abs(read_photo(tmp_path / name)[:, :, ::-1].astype(int) - UPRIGHT).max() <= 8, name


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "F", "I;16"])
def test_a_tiff_may_be_of_any_pixel_type(tmp_path: Path, mode: str) -> None:
    grey = np.full((40, 60), 200, np.uint8)
    picture = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    picture.save(tmp_path / "a.tif")
    found = read_photo(tmp_path / "a.tif")
    assert found.shape == (40, 60, 3)
    assert abs(float(found.mean()) - 200) < 60


def test_heic_names_the_package_that_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(FaceSetError, match="HEIC is read by a further package: pip install pillow-heif"):
        read_photo(tmp_path / "a.heic")


@pytest.mark.parametrize(
    "start", [b"GIF89a", b"II*\0", b"\0\0\0\x18ftypavif", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b""]
)
def test_damaged_photographs_are_named(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(start and start + bytes(range(64)))
    with pytest.raises(FaceSetError, match="not an image that can be read"):
        read_photo(tmp_path / "a.jpg")


def test_a_folder_gives_all_formats_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    inside = ["a.TIF", "b.avif", "c.webp", "d.gif", "e.heic", "sub/a.JPG"]
    (tmp_path / "sub").mkdir()
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / "folder.jpg").mkdir()
    for name in [*inside, "._a.jpg", ".thumbnails/a.jpg", ".DS_Store", "notes.txt", "sub/clip.mov"]:
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in photos_in(tmp_path)] == inside
    assert [str(path.relative_to(tmp_path)) for path in other_files(tmp_path)] == ["notes.txt", "sub/clip.mov"]


def test_links_to_folders_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    album, elsewhere = tmp_path / "album", tmp_path / "elsewhere"
    for folder in (album / "sub", elsewhere):
        folder.mkdir(parents=True)
        (folder / "a.jpg").touch()
    for name, target in {"loop": "..", "0-again": "sub", "linked": "../elsewhere", "album": "."}.items():
        (album / name if name != "loop" else album / "sub/loop").symlink_to(target, target_is_directory=True)
    (album / "self.jpg").symlink_to("self.jpg")
    found = [str(path.relative_to(album)) for path in photos_in(album)]
    assert found == ["linked/a.jpg", "self.jpg", "sub/a.jpg"]


def test_a_folder_that_cannot_be_read_is_left_out_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed.jpg").mkdir()
    (tmp_path / "a.jpg").touch()
    listed = Path.iterdir

    def refused(folder: Path) -> Iterator[Path]:
        if folder.name == "closed.jpg":
            raise PermissionError(13, "Permission denied", str(folder))
        return iter(list(listed(folder)))

    monkeypatch.setattr(Path, "iterdir", refused)
    assert photos_in(tmp_path) == [tmp_path / "a.jpg"]
    assert other_files(tmp_path) == [tmp_path / "closed.jpg"]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_decoders_print_nothing_of_a_damaged_photograph(
    tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    grey = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(grey).save(tmp_path / f"whole{suffix}")
    data = (tmp_path / f"whole{suffix}").read_bytes()
    half = len(data) // 2
    for damaged in (data[:half], data[:half] + b"\xff" * 50 + data[half + 50 :], data[:-40] + bytes(40)):
        (tmp_path / f"a{suffix}").write_bytes(damaged)
        with ThreadPoolExecutor(4) as pool, suppress(FaceSetError):
            list(pool.map(read_photo, [tmp_path / f"a{suffix}"] * 8))
    os.write(2, b"standard error is back\n")
    assert capfd.readouterr().err == "standard error is back\n"


def test_a_folder_is_no_photograph(tmp_path: Path) -> None:
    with pytest.raises(FaceSetError, match="a folder, not a photograph"):
        read_photo(tmp_path)


POINTS = "image,x0,y0,x1,y1,x2,y2\nb\u00fcro/\u9854.jpg,1,2,30,40,5.5,6\nc\u010a\u0a0a.jpg,1,2,30,40,5.5,6\n"
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-be-mark"]


def encoded(text: str, encoding: str) -> bytes:
    return ("\ufeff" + text).encode("utf-16-be") if encoding == "utf-16-be-mark" else text.encode(encoding)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_text_files_of_any_system_read_alike(tmp_path: Path, encoding: str, ends: str) -> None:
    def write(name: str, text: str) -> Path:
        (tmp_path / name).write_bytes(encoded(text.replace("\n", ends), encoding))
        return tmp_path / name

    points = write("points.csv", POINTS)
    names = ["b\u00fcro/\u9854.jpg", "c\u010a\u0a0a.jpg"]
    faces = read_points_csv(points)
    assert [face.group for face in faces] == names
    # In units of one line each the file is read from the middle.
    assert [face.group for unit in csv_units(points, size=1) for face in unit_faces(unit)] == names
    boxes = write("boxes.csv", "image,x0,y0,x1,y1\n" + "".join(f"{name},1,2,30,40\n" for name in names))
    assert [face.group for face in read_boxes_csv(boxes)] == names
    (tmp_path / names[1]).touch()
    listed = listed_paths(write("list.txt", "\n".join(names) + "\n\n"))
    assert listed == [tmp_path / name for name in names]
    numbers = " ".join(["10", "20", "30", "40"] * 49 + ["1", "2", "50", "60"] + ["0", "1.0", "0", "0", "0", "0"])
    wflw_list(tmp_path, "test").parent.mkdir(parents=True)
    (tmp_path / "WFLW_images").mkdir()
    write(str(wflw_list(tmp_path, "test").relative_to(tmp_path)), f"{numbers} {names[0]} \n\n")
    (face,) = read_wflw(tmp_path)
    assert (face.group, face.attributes) == (names[0], {"expression"})
    coco = {
        "images": [{"id": 1, "file_name": names[0]}],
        "annotations": [{"image_id": 1, "keypoints": [1, 2, 2, 30, 40, 2]}],
    }
    (face,) = read_coco(write("coco.json", json.dumps(coco, ensure_ascii=False, indent=1)))
    assert face.image == tmp_path / names[0]


def test_blanks_and_backslashes_cost_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\nimage, x0, y0, x1 ,y1,x2,y2,,\n sub\\a.jpg , 1, 2,30 ,40,5,6,,\n  \n,,,,,,,,\n")
    (face,) = read_points_csv(tmp_path / "a.csv")
    assert face.image == tmp_path / "sub/a.jpg"
    (tmp_path / "boxes.csv").write_text("image, x0,y0, x1,y1\nsub\\a.jpg ,1.0, 2,30,40\n\n ,,,,\n")
    assert [face.image for face in read_boxes_csv(tmp_path / "boxes.csv")] == [tmp_path / "sub/a.jpg"]
    # A name that is really so is kept.
    (tmp_path / "x\\y .jpg").touch()
    (tmp_path / "list.txt").write_text("x\\y .jpg\nx\\z.jpg  \n")
    assert listed_paths(tmp_path / "list.txt") == [tmp_path / "x\\y .jpg", tmp_path / "x/z.jpg"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (POINTS.encode() + b"caf\xe9.jpg,1,2,30,40,5,6\n", "line 4: not a text file, or not UTF-8"),
        (POINTS.encode("utf-16-le"), "line 1: not a text file"),
        (POINTS.encode() + b"\n\na.jpg,1,2,30,40\n", "line 6: expected 7 columns, found 5"),
        (POINTS.encode() + b" ,1,2,30,40,5,6\n", "line 4: names no image"),
        (POINTS.encode() + b"a.jpg,1,2,30,40,5,1e30\n", "line 4: landmarks must be finite and below 1e9 pixels"),
        (POINTS.replace("\n", "\r").encode(), "line 1: lines end with CR alone"),
        (POINTS.encode() + b"a.jpg,1,2,30,40,5,six\n", "line 4: could not convert"),
        (POINTS.encode() + b'"a.jpg' + b"x" * 200_000, "line 4: not a CSV file"),
    ],
)
def test_what_is_wrong_with_a_csv_names_its_line(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(FaceSetError, match=says):
        read_points_csv(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"images": [],\n "annotations": [}\n', "line 2: not a COCO file, nor JSON"),
        (b'{"images": [], "annotations": "caf\xe9"}', "not a text file, or not UTF-8"),
        (
            b'{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "keypoints": [1e39, 1, 1]}]}',
            "pixels",
        ),
        (
            b'{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "keypoints": [1'
            + b"0" * 400
            + b", 1, 1]}]}",
            "an annotation has image_id, keypoints",
        ),
    ],
)
def test_what_is_wrong_with_a_coco_file_is_said(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(FaceSetError, match=says):
        read_coco(tmp_path / "a.json")


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on the size of files is Unix's")
def test_a_checkpoint_that_the_disk_has_no_room_for_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "net.pth"
    target.write_bytes(b"old")
    code = (
        "import resource, signal, sys, torch; from pathlib import Path; from pfld_edge_calib.files import replacing\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (9999, 9999))\n"
        "try:\n"
        "    with replacing(Path(sys.argv[1])) as file: torch.save({'a': torch.zeros(9999)}, file)\n"
        "except OSError as error: print(error.filename, error.strerror)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{target} File too large\n"
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]

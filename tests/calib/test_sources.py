"""Sets of any size: what their readers find, in which order, and what they say of what they can't read."""

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

from pfld_edge_calib import PORTRAITS, Face, FaceSetError, read_photo, read_points_csv
from pfld_edge_calib.photo import decode_photo
from pfld_edge_calib.sources import FaceSource, ResultsFolder, Unit, is_sharded, open_shards, open_source, unit_results

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


def faces_of(source: FaceSource) -> list[Face]:
    return [face for unit in source.units for photo in unit.photos() for face in photo.faces or ()]


@given(size=st.integers(1, 12), first=st.integers(0, 9))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_however_a_tar_is_cut_every_photograph_comes_once_and_in_order(tmp_path: Path, size: int, first: int) -> None:
    shards = [write_tar(tmp_path / "b.tar", range(first, 10)), write_tar(tmp_path / "a.tar", range(10, 13))]
    source = open_source(tmp_path, size=size)
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
    found = faces_of(open_source(tmp_path / "x.tar", size=2))
    assert len(found) == 8
    assert found[6].image == tmp_path / f"x.tar/{long}/3é.png"
    assert found[7].landmarks is None
    assert found[7].attributes == {"blur"}
    np.testing.assert_array_equal(found[7].bbox_xyxy, [1, 2, 30, 20])


def test_a_range_in_braces_names_shards_as_a_shell_does(tmp_path: Path) -> None:
    for number in range(8, 12):
        write_tar(tmp_path / f"s-{number:03}.tar", [number])
    source = open_shards([tmp_path / "s-{008..011}.tar"])
    assert [unit.photos().__next__().image.parts[-3] for unit in source.units] == [
        f"s-{n:03}.tar" for n in range(8, 12)
    ]
    with pytest.raises(FaceSetError, match=r"s-012\.tar: no such shard"):
        open_shards([tmp_path / "s-{008..012}.tar"])


def test_a_folder_of_photographs_that_holds_a_tar_too_is_one_of_photographs(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [1])
    assert is_sharded(tmp_path)
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    assert not is_sharded(tmp_path)


def test_damage_names_the_shard_and_the_key(tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(FaceSetError) as caught:
            faces_of(open_source(path))
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
            faces_of(open_source(tmp_path / "bad.tar"))


@pytest.mark.parametrize("size", [1, 3, 256])
def test_a_csv_in_units_is_the_csv_in_one(tmp_path: Path, size: int) -> None:
    names = ["plain.jpg", "a, b.jpg", 'with "quotes".jpg', "two\nlines.jpg", "é.jpg"]
    with (tmp_path / "faces.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *(f"{axis}{i}" for i in range(98) for axis in "xy")])
        writer.writerows([name, *POINTS[number].ravel()] for number, name in enumerate(names))
    source = open_source(tmp_path / "faces.csv", size=size)
    found, expected = faces_of(source), read_points_csv(tmp_path / "faces.csv")
    assert [face.image for face in found] == [face.image for face in expected]
    np.testing.assert_array_equal([face.landmarks for face in found], [face.landmarks for face in expected])
    with (tmp_path / "faces.csv").open("a", encoding="utf-8") as file:
        file.write("x.jpg,1,2\n")
    with pytest.raises(FaceSetError, match=r"faces\.csv, line \d: expected 197 columns"):
        faces_of(open_source(tmp_path / "faces.csv", size=size))
    assert open_source(tmp_path / "faces.csv", size=size).identity != source.identity


def test_parquet_rows_are_read_whatever_the_row_groups(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    rows = [{"image": jpeg(n), "landmarks": POINTS[n].tolist(), "attributes": ["blur"], "other": n} for n in range(9)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=2)
    source = open_source(tmp_path / "x.parquet", size=5)
    assert [unit.count for unit in source.units] == [4, 5]
    faces = faces_of(source)
    assert [face.encoded for face in faces] == [jpeg(n) for n in range(9)]
    assert faces[8].image == tmp_path / "x.parquet/row-8"
    np.testing.assert_allclose([face.landmarks for face in faces], POINTS[:9], rtol=1e-6)
    named = [{"image": {"bytes": jpeg(n), "path": f"p{n}.jpg"}, "box": [1, 1, 9, 9]} for n in range(3)]
    parquet.write_table(pyarrow.Table.from_pylist(named), tmp_path / "y.parquet")
    assert faces_of(open_source(tmp_path / "y.parquet"))[2].image == tmp_path / "y.parquet/p2.jpg"
    for path, number in ((tmp_path / "x.parquet/row-7", 7), (tmp_path / "y.parquet/p2.jpg", 2)):
        np.testing.assert_array_equal(read_photo(path), decode_photo(jpeg(number), path))
    (tmp_path / "bad.parquet").write_bytes(b"no table")
    with pytest.raises(FaceSetError, match=r"bad\.parquet: not a Parquet file"):
        open_source(tmp_path / "bad.parquet")
    parquet.write_table(pyarrow.table({"picture": [b""]}), tmp_path / "bad.parquet")
    with pytest.raises(FaceSetError, match=r"bad\.parquet: no column `image`; found picture"):
        open_source(tmp_path / "bad.parquet")
    parquet.write_table(pyarrow.table({"image": ["a.jpg"]}), tmp_path / "bad.parquet")
    with pytest.raises(FaceSetError, match=r"bad\.parquet, row 0: no image bytes"):
        faces_of(open_source(tmp_path / "bad.parquet"))


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
    units = open_source(tmp_path / "x.tar", size=2).units
    worked: list[int] = []

    def run(make: Any, tasks: Any) -> Any:
        for task in tasks:
            worked.append(task.start)
            yield make()(task)

    def work() -> Any:
        return lambda unit: str(unit.start).encode()

    folder = ResultsFolder(tmp_path / "results", {"models": "a"})
    first = unit_results(work, units, run, folder)
    next(first)
    first.close()
    assert 0 in folder
    assert 1 not in folder
    again = [
        result for _, result in unit_results(work, units, run, ResultsFolder(tmp_path / "results", {"models": "a"}))
    ]
    assert again == [str(unit.start).encode() for unit in units]
    assert worked == [unit.start for unit in units]
    with pytest.raises(FaceSetError, match="results of a run with other models: repeat that command"):
        ResultsFolder(tmp_path / "results", {"models": "b"})
    with pytest.raises(FaceSetError, match="holds other files"):
        ResultsFolder(tmp_path, {"models": "b"})

"""Large sets from the command line: the same bytes however many processes, however often interrupted, and on Ray."""

import importlib.util
import io
import json
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from pfld_edge.cli import run
from pfld_edge_calib import PORTRAITS, portraits, read_photo
from pfld_edge_runtime import BUNDLED_MODEL, FaceLandmarker

FACES, SHARD = 300, 50  # a shard is a unit at least
SIDE = 96


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two portraits, moved and scaled at random, in six tars."""
    folder, random = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    known = [(read_photo(face.image), face) for face in portraits()]
    for shard in range(FACES // SHARD):
        with tarfile.open(folder / f"faces-{shard}.tar", "w") as tar:
            for number in range(shard * SHARD, (shard + 1) * SHARD):
                photo, face = known[number % 2]
                low, high = face.bbox_xyxy[:2], face.bbox_xyxy[2:]
                scale = SIDE / ((high - low).max() * random.uniform(1.3, 1.6))
                shift = SIDE / 2 - scale * (low + high) / 2
                picture = cv2.warpAffine(photo, np.column_stack([np.eye(2) * scale, shift]), (SIDE, SIDE))
                landmarks = np.asarray(face.landmarks) * scale + shift
                notes = {"landmarks": landmarks.tolist(), "attributes": ["blur"] if number % 3 else []}
                add(tar, f"{number:06}.jpg", cv2.imencode(".jpg", picture)[1].tobytes())
                add(tar, f"{number:06}.json", json.dumps(notes).encode())
    return folder


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def evaluated(data: Path, out: Path, *more: str) -> bytes:
    assert run(["evaluate", str(BUNDLED_MODEL), "--data", str(data), "--json", str(out), *more]) == 0
    return out.read_bytes()


@pytest.fixture(scope="module")
def by_one(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What one process finds."""
    return evaluated(shards, tmp_path_factory.mktemp("one") / "one.json", "--workers", "1")


def test_one_process_finds_what_the_runtime_finds_face_by_face(shards: Path, by_one: bytes) -> None:
    record, landmarker = json.loads(by_one), FaceLandmarker()
    assert record["faces"] == FACES
    assert record["subsets"] == {"blur": 200}
    for number in (0, 49, 50, 172, 299):
        with tarfile.open(shards / f"faces-{number // SHARD}.tar") as tar:
            files = [tar.extractfile(f"{number:06}.{kind}") for kind in ("jpg", "json")]
            picture, notes = (file.read() for file in files if file is not None)
        photo = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
        truth = np.array(json.loads(notes)["landmarks"])
        box = [*np.trunc(truth.min(axis=0)), *(np.trunc(truth.max(axis=0)) + 1)]
        found = landmarker(photo, box, "bgr")[0]
        error = np.hypot(*(found - truth).T).mean() / np.hypot(*(truth[60] - truth[72]))
        assert record["each_face"][number]["nme"][0] == pytest.approx(error, rel=1e-4)
        assert record["each_face"][number]["image"].endswith(f"faces-{number // SHARD}.tar/{number:06}.jpg")


def test_two_processes_find_the_same_bytes(shards: Path, by_one: bytes, tmp_path: Path) -> None:
    assert evaluated(shards, tmp_path / "two.json", "--workers", "2") == by_one


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and SIGINT are POSIX's")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    shards: Path,
    by_one: bytes,
    tmp_path: Path,
    sent: signal.Signals,
    stop_command: Callable[..., tuple[int, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = tmp_path / "results"
    arguments = ["evaluate", str(BUNDLED_MODEL), "--data", str(shards), "--resume", str(results), "--workers", "1"]
    status, said = stop_command(arguments, sent, 2)
    assert status == (130 if sent == signal.SIGINT else -sent)
    assert sent == signal.SIGKILL or f"what is done is kept in {results}; the same command goes on" in said
    done = {path: path.stat().st_mtime_ns for path in results.rglob("*.part")}
    assert len(done) == 2
    assert evaluated(shards, tmp_path / "resumed.json", "--workers", "1", "--resume", str(results)) == by_one
    assert "are done already" in capsys.readouterr().err
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())
    assert len(list(results.rglob("*.part"))) == FACES // SHARD


def test_ctrl_c_while_results_are_joined_says_what_is_kept(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(parts: Iterator[object], *_: object) -> None:
        next(parts)
        raise KeyboardInterrupt  # outside of the generator that measures

    monkeypatch.setattr("pfld_edge.evaluation_run.join_units", interrupted)
    results = tmp_path / "results"
    arguments = ["evaluate", str(BUNDLED_MODEL), "--data", str(shards), "--workers", "1", "--resume", str(results)]
    assert run(arguments) == 130
    assert f"what is done is kept in {results}; the same command goes on" in capsys.readouterr().err.replace("\n", " ")


def test_results_of_another_set_are_refused(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = shards / "faces-0.tar"
    evaluated(one, tmp_path / "a.json", "--resume", str(tmp_path / "results"), "--workers", "1")
    arguments = ["evaluate", str(BUNDLED_MODEL), "--data", str(shards / "faces-1.tar"), "--workers", "1"]
    assert run([*arguments, "--resume", str(tmp_path / "results")]) == 2
    assert "holds the results of a run with other faces" in capsys.readouterr().err


RAY = """
import sys
from pfld_edge.cli import run

data, model, shard, folder = sys.argv[1:]
evaluated = run(["evaluate", model, "--data", data, "--json", f"{folder}/ray.json", "--workers", "2", "--ray"])
label = ["label", shard, "--teacher", model, "--flip", "--workers", "2", "-o", f"{folder}/ray.csv", "--ray"]
sys.exit(evaluated or run(label))
"""


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (pfld-edge[ray])")
def test_two_workers_of_a_ray_cluster_find_and_label_the_same_bytes(
    shards: Path, by_one: bytes, tmp_path: Path
) -> None:
    # In a process of its own: Ray's warnings are not ours.
    words = [str(shards), str(BUNDLED_MODEL), str(shards / "faces-0.tar"), str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", RAY, *words], capture_output=True, text=True, check=False)
    if "Ray did not start" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ray.json").read_bytes() == by_one
    label = ["label", str(shards / "faces-0.tar"), "--teacher", str(BUNDLED_MODEL), "--flip", "--workers", "1"]
    assert run([*label, "-o", str(tmp_path / "local.csv")]) == 0
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "local.csv").read_bytes()


def test_labels_of_a_shard_name_the_photographs_as_it_does_without_its_suffix(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label = ["label", str(shards / "faces-1.tar"), "--teacher", str(BUNDLED_MODEL), "--flip", "--workers", "1"]
    assert run([*label, "-o", str(tmp_path / "labels.csv")]) == 0
    lines = (tmp_path / "labels.csv").read_text().splitlines()
    assert len(lines) == SHARD + 1
    assert lines[1].startswith("faces-1/000050.jpg,")
    with tarfile.open(tmp_path / "bare.tar", "w") as tar:
        add(tar, "a.jpg", cv2.imencode(".jpg", np.zeros((9, 9, 3), np.uint8))[1].tobytes())
    capsys.readouterr()
    for arguments, message in (
        ([str(tmp_path / "bare.tar")], "bare.tar/a.jpg: no box beside it; give a detector"),
        ([str(shards), "a.jpg"], "a.jpg is no shard: shards and other photographs need runs of their own"),
        ([str(shards), "--boxes", "x.csv"], "leave --boxes out"),
    ):
        out = tmp_path / "none.csv"
        assert run(["label", *arguments, "--teacher", str(BUNDLED_MODEL), "--flip", "-o", str(out)]) == 2
        assert message in capsys.readouterr().err


def test_a_corrupt_photograph_is_one_line_that_names_shard_and_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "faces-7.tar", "w") as tar:
        add(tar, "000042.jpg", b"no picture")
        add(tar, "000042.json", json.dumps({"landmarks": [[i, i % 7] for i in range(98)]}).encode())
    for more in ([], ["--workers", "2", "--resume", str(tmp_path / "results")]):
        assert run(["evaluate", str(BUNDLED_MODEL), "--data", str(tmp_path / "faces-7.tar"), "--strict", *more]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"Error: {tmp_path / 'faces-7.tar/000042.jpg'}: not an image")
        assert said.count("\n") == 1


def test_a_corrupt_photograph_is_skipped_and_read_again_once_it_is_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Units of 256 lines: the photograph of the second is corrupt, then mended, and only that unit is worked on."""
    header, *rows = (PORTRAITS / "landmarks.csv").read_text().splitlines()
    image, *numbers = rows[0].split(",")
    photo = (PORTRAITS / image).read_bytes()
    (tmp_path / "a.jpg").write_bytes(photo)
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    names = ["a.jpg"] * 256 + ["b.jpg"] * 3
    (tmp_path / "set.csv").write_text("\n".join([header, *(",".join([name, *numbers]) for name in names)]) + "\n")
    results, out = tmp_path / "results", tmp_path / "out.json"
    arguments = ["evaluate", str(BUNDLED_MODEL), "--data", str(tmp_path / "set.csv"), "--workers", "1"]
    arguments += ["--json", str(out), "--resume", str(results)]
    for _ in range(2):
        assert run(arguments) == 2
        said = capsys.readouterr()
        assert said.err.count("b.jpg: not an image") == 1
        assert "3 of 259 faces left out: their photographs can't be read" in said.out
        assert json.loads(out.read_text())["faces"] == 256
        assert len(list(results.rglob("*.part"))) == 1
    assert "256 of 259 are done already" in said.err
    (tmp_path / "b.jpg").write_bytes(photo)
    assert run(arguments) == 0
    assert json.loads(out.read_text())["faces"] == 259
    assert len(list(results.rglob("*.part"))) == 2

"""Every example runs, or says why not."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import onnxruntime
import pytest

from pfld_edge_calib import PORTRAITS, portraits, read_photo
from pfld_edge_convert.end_to_end import end_to_end_model
from pfld_edge_convert.model_file import load_onnx, read_contract
from pfld_edge_runtime import BUNDLED_MODEL, FaceLandmarker
from pfld_edge_runtime.arrays import Float32Array, Uint8Array

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_faces_are_aligned(tmp_path: Path) -> None:
    photos = sorted(PORTRAITS.glob("*.jpg"))
    done = python(EXAMPLES / "align_for_recognition.py", *photos, "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    pictures = [cv2.imread(str(tmp_path / f"{photo.stem}-0.png")) for photo in photos]
    assert [picture.shape for picture in pictures if picture is not None] == [(112, 112, 3)] * len(photos)


def squeezed_eyes(photo: Uint8Array, landmarks: Float32Array, share: float) -> Uint8Array:
    """Press both eyes flat: what is within an eye's height shrinks to `share` of it, the lids stretch to fill in."""
    y, x = np.mgrid[: photo.shape[0], : photo.shape[1]].astype(np.float32)
    for first in (60, 68):
        eye = landmarks[first : first + 8]
        middle, (width, height) = (eye.min(axis=0) + eye.max(axis=0)) / 2, np.ptp(eye, axis=0)
        reach, half = 0.75 * width, 0.7 * height
        away = y - middle[1]
        outer = half + (np.abs(away) - half * share) * (reach - half) / (reach - half * share)
        source = np.where(np.abs(away) < half * share, away / share, np.sign(away) * outer)
        strength = np.clip(2.6 - 2 * np.abs(x - middle[0]) / reach, 0, 1)
        y = np.where(np.abs(away) < reach, y + (source - away) * strength, y).astype(np.float32)
    return np.asarray(cv2.remap(photo, x, y, cv2.INTER_LINEAR), np.uint8)


def test_eyes_that_close_ring(tmp_path: Path) -> None:
    """The eyes of a portrait are closed for the middle two of six seconds."""
    face = next(face for face in portraits() if "collins" in face.image.stem)
    assert face.landmarks is not None
    open_eyes = read_photo(face.image)
    shut = squeezed_eyes(open_eyes, face.landmarks, 0.15)
    size = (open_eyes.shape[1], open_eyes.shape[0])
    writer = cv2.VideoWriter(str(tmp_path / "drive.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 20, size)
    for frame in range(120):
        writer.write(shut if 40 <= frame < 80 else open_eyes)
    writer.release()
    done = python(EXAMPLES / "drowsiness.py", tmp_path / "drive.avi")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(": ")[2] for line in lines] == ["eyes closed for 1 s", "eyes open again"]
    rung, over = (float(line.split()[0]) for line in lines)
    assert 2.9 < rung < 3.6
    assert 3.9 < over < 4.4


def test_the_endpoint_answers_and_survives_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi", reason="the extra 'examples' is not installed: no fastapi")
    client_module = pytest.importorskip("fastapi.testclient", reason="httpx is not installed")
    monkeypatch.delenv("DETECTOR", raising=False)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import serve

    client = client_module.TestClient(serve.app)
    photo = (PORTRAITS / "grace_hopper.jpg").read_bytes()
    found = client.post("/faces", files={"photo": photo}).json()["faces"]
    assert len(found) == 1
    assert np.array(found[0]["landmarks"]).shape == (98, 2)
    assert client.post("/faces", files={"photo": b"no picture"}).status_code == 422
    assert client.post("/faces", files={"photo": b""}).status_code == 422
    assert client.post("/faces", files={"photo": b"x" * (serve.MOST_BYTES + 1)}).status_code == 413


HEADERS = "com.github.asus4.onnxruntime@0.4.9"
"""An npm package that holds the C headers of onnxruntime 1.29, which newer libraries serve."""


@pytest.fixture
def onnxruntime_root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder as onnxruntime's releases have it: the headers from npm, the library of the Python wheel."""
    for program in ("cmake", "npm"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    libraries = list((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    if not libraries:
        pytest.skip("the wheel of onnxruntime for this platform brings no libonnxruntime.so")
    assert request.config.cache is not None
    include = request.config.cache.mkdir("onnxruntime-headers") / HEADERS
    if not include.exists():
        pack = ["npm", "pack", HEADERS, "--ignore-scripts", "--prefer-offline", "--pack-destination", str(tmp_path)]
        done = subprocess.run(pack, cwd=tmp_path, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"npm can't fetch {HEADERS}: {' '.join(done.stderr.split())[:200]}")
        unpack_headers(next(tmp_path.glob("*.tgz")), include)
    root = tmp_path / "onnxruntime"
    (root / "lib").mkdir(parents=True)
    (root / "include").symlink_to(include)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (root / "lib" / name).symlink_to(libraries[0])
    return root


def unpack_headers(package: Path, include: Path) -> None:
    """Read the package, 400 MB unpacked, no further than the headers of the first of its platforms."""
    partial = include.with_suffix(".partial")
    partial.mkdir(exist_ok=True)
    with tarfile.open(package, "r|gz") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.suffix == ".h" and path.parent.name == "Headers":
                content = tar.extractfile(member)
                assert content is not None
                (partial / path.name).write_bytes(content.read())
            elif (partial / "onnxruntime_c_api.h").exists() and path.parent.name != "Headers":
                break
    partial.rename(include)


def test_the_cpp_program_finds_what_python_finds(onnxruntime_root: Path, tmp_path: Path) -> None:
    build = ["cmake", "-S", str(EXAMPLES / "cpp"), "-B", str(tmp_path / "build"), f"-DONNXRUNTIME={onnxruntime_root}"]
    subprocess.run(build, check=True, capture_output=True)
    subprocess.run(["cmake", "--build", str(tmp_path / "build")], check=True, capture_output=True)
    network = load_onnx(BUNDLED_MODEL)
    contract = read_contract(network)
    assert contract is not None
    graph = end_to_end_model(network, contract)
    (tmp_path / "face.e2e.onnx").write_bytes(graph.SerializeToString())
    face = portraits()[0]
    photo = read_photo(face.image)
    cv2.imwrite(str(tmp_path / "photo.ppm"), photo)
    box = [str(value) for value in face.bbox_xyxy.tolist()]
    command = [str(tmp_path / "build/landmarks"), str(tmp_path / "face.e2e.onnx"), str(tmp_path / "photo.ppm"), *box]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = np.array([line.split() for line in done.stdout.splitlines()], np.float64)
    np.testing.assert_allclose(found, FaceLandmarker()(photo, face.bbox_xyxy, "bgr")[0], atol=1e-3)

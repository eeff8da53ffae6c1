"""The runtime's wheel is small, installs alone, and runs at the oldest and newest versions that it claims."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import metadata
from pathlib import Path

import numpy as np
import pytest

from pfld_edge_calib import portraits, read_photo
from pfld_edge_runtime import BUNDLED_MODEL, FaceLandmarker

ROOT = Path(__file__).parents[2]

# The oldest onnxruntime that the runtime claims with a wheel for that Python, and the oldest numpy that goes with it.
OLDEST = {
    "3.10": ("numpy==1.23.5", "onnxruntime==1.17.0"),
    "3.11": ("numpy==1.24.2", "onnxruntime==1.17.0"),
    "3.12": ("numpy==1.26.0", "onnxruntime==1.17.0"),
    "3.13": ("numpy==2.1.0", "onnxruntime==1.20.0"),
}

# Runs inside the fresh environment: argv holds the photograph and box, and the file for the landmarks.
SCRIPT = """
import json, sys
import numpy as np
import onnxruntime
import pfld_edge_runtime
from pfld_edge_runtime import BUNDLED_MODEL, FaceLandmarker, crop_faces, crop_windows
data = np.load(sys.argv[1])
assert crop_faces(data["photo"], crop_windows(data["box"], 1.2), 112).any()
if BUNDLED_MODEL.is_file():
    np.save(sys.argv[2], FaceLandmarker()(data["photo"], data["box"], "bgr"))
packages = {name.partition(".")[0] for name, module in list(sys.modules.items())
            if "site-packages" in (getattr(module, "__file__", None) or "")}
print(json.dumps({"numpy": np.__version__, "onnxruntime": onnxruntime.__version__,
                  "python": sys.version.split()[0], "packages": sorted(packages)}))
"""


def oldest_python() -> tuple[str, str]:
    """Find Python 3.10, the oldest that is claimed, or fall back to the running one: its version and its path."""
    roots = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/3.10.*/bin/python3.10"))
    for path in [shutil.which("python3.10"), *map(str, roots)]:
        if path and subprocess.run([path, "-c", "import venv"], capture_output=True, check=False).returncode == 0:
            return "3.10", path
    return f"{sys.version_info[0]}.{sys.version_info[1]}", sys.executable


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT / "runtime")]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module", params=["oldest", "newest"])
def fresh_python(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel, and nothing of ours besides, in a new environment."""
    version, python = oldest_python() if request.param == "oldest" else ("", sys.executable)
    pins = OLDEST.get(version, ()) if request.param == "oldest" else ("numpy", "onnxruntime")
    if not pins:
        pytest.skip(f"no Python 3.10 here, and no oldest versions are known for Python {version}")
    folder = tmp_path_factory.mktemp(f"venv-{request.param}")
    subprocess.run([python, "-m", "venv", "--without-pip", str(folder)], check=True)
    fresh = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [sys.executable, "-m", "pip", "--python", str(fresh), "install", "--quiet", "--only-binary", ":all:"]
    # onnxruntime's dependencies are never imported (the test sees to it), and take longer than all else.
    done = subprocess.run([*pip, "--no-deps", *pins, str(wheel)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return fresh


def test_the_wheel_is_small_and_holds_the_runtime_alone(wheel: Path) -> None:
    assert wheel.stat().st_size < 1.5e6
    names = zipfile.ZipFile(wheel).namelist()
    assert all(name.startswith(("pfld_edge_runtime/", "pfld_edge_runtime-")) for name in names)
    assert {"pfld_edge_runtime/py.typed", "pfld_edge_runtime/landmark_model.py"} <= set(names)
    assert any(name.endswith("LICENSE") for name in names)
    if BUNDLED_MODEL.is_file():
        assert f"pfld_edge_runtime/models/{BUNDLED_MODEL.name}" in names


def test_the_tested_versions_are_the_claimed_ones() -> None:
    claimed = metadata("pfld-edge-runtime")
    pins = OLDEST[claimed["Requires-Python"].removeprefix(">=")]
    assert {pin.replace("==", ">=").removesuffix(".0") for pin in pins} == set(claimed.get_all("Requires-Dist") or ())


def test_the_wheel_runs_in_a_fresh_environment(fresh_python: Path, tmp_path: Path) -> None:
    face = portraits()[0]
    photo = read_photo(face.image)
    np.savez(tmp_path / "face.npz", photo=photo, box=face.bbox_xyxy)
    files = [str(tmp_path / "face.npz"), str(tmp_path / "found.npy")]
    command = [str(fresh_python), "-I", "-W", "error", "-c", SCRIPT, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    versions = json.loads(done.stdout)
    print(versions)  # noqa: T201 - which versions were tested
    assert set(versions["packages"]) == {"numpy", "onnxruntime", "pfld_edge_runtime"}
    if not BUNDLED_MODEL.is_file():
        pytest.skip("the bundled model is not there: only the import and the crop were tested")
    found, here = np.load(tmp_path / "found.npy"), FaceLandmarker()(photo, face.bbox_xyxy, "bgr")
    side = float(np.ptp(here, axis=1).max())
    # INT8 kernels round differently from version to version; a hundredth of the face is far below the model's error.
    assert np.abs(found - here).max() < 0.01 * side
    assert face.landmarks is not None
    assert np.linalg.norm(found[0] - face.landmarks, axis=1).mean() < 0.05 * side

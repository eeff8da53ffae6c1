"""The runtime imports numpy and onnxruntime alone, and only the modules that are used."""

import subprocess
import sys

import pytest

import pfld_edge_runtime

CHECK = """
import sys
import numpy as np
from pfld_edge_runtime import Contract, crop_faces, crop_windows, fingerprint_image, prepare_input
contract = Contract()
windows = crop_windows([[1, 2, 30, 40]], contract.crop.margin)
prepare_input(crop_faces(np.zeros((50, 50, 3), np.uint8), windows, 112), contract)
heavy = {"torch", "torchvision", "cv2", "PIL", "onnx", "scipy", "click", "rich", "pfld_edge_train"}
found = sorted(heavy & set(sys.modules))
print(*found)
sys.exit(bool(found))
"""


def test_the_runtime_imports_no_toolkit() -> None:
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


EVERY_MODULE = """
import importlib, pkgutil, types
import pfld_edge_runtime as package
for module in pkgutil.walk_packages(package.__path__, "pfld_edge_runtime."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
hidden = [name for name in package.__all__ if isinstance(getattr(package, name), types.ModuleType)]
assert not hidden, hidden
"""


ONE_FACE = """
import sys
import numpy as np
from pfld_edge_runtime import FaceLandmarker
FaceLandmarker()(np.zeros((9, 9, 3), np.uint8), [[0, 0, 9, 9]])
later = {"detection", "tracking", "geometry", "faces", "analyzer", "device_check"}
loaded = {name.split(".")[1] for name in sys.modules if name.startswith("pfld_edge_runtime.")}
assert not loaded & later, loaded & later
known = set(sys.modules)
from pfld_edge_runtime import FaceAnalyzer
assert "hashlib" not in set(sys.modules) - known, "OpenSSL is loaded, which only downloads need"
"""


def test_every_public_name_is_there_and_listed() -> None:
    assert len(set(pfld_edge_runtime.__all__)) == len(pfld_edge_runtime.__all__)
    for name in pfld_edge_runtime.__all__:
        assert getattr(pfld_edge_runtime, name) is not None
        assert name in dir(pfld_edge_runtime)


@pytest.mark.parametrize("code", [EVERY_MODULE, ONE_FACE], ids=["no module hides a name", "landmarks load no more"])
def test_in_a_fresh_process(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'FaceFinder'"):
        _ = pfld_edge_runtime.FaceFinder

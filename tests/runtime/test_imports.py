"""The runtime needs numpy and onnxruntime, and nothing else."""

import subprocess
import sys

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

"""A network that finds the same face in every crop, so that its answer is known; commands that are stopped."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_runtime import CONTRACT_KEY, Contract
from pfld_edge_runtime.arrays import Float32Array


@pytest.fixture(scope="session")
def fractions() -> Float32Array:
    """The 98 points that the network finds, as fractions of the crop: the corners first, the others between."""
    points = np.random.default_rng(5).uniform(0.2, 0.8, (98, 2))
    points[:2] = [[0, 0], [1, 1]]
    return points.astype(np.float32)


@pytest.fixture
def known_model(tmp_path: Path, fractions: Float32Array) -> Path:
    """An ONNX file with its contract whose answer is `fractions`."""
    tensors = {"zero": np.zeros((3 * 16 * 16, 196), np.float32), "points": fractions.ravel()}
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("Gemm", ["flat", "zero", "points"], ["y"])],
        "known",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 196])],
        [numpy_helper.from_array(values, name) for name, values in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {CONTRACT_KEY: Contract(model="known", input_size=16).to_json()})
    path = tmp_path / "known.onnx"
    onnx.save(model, path)
    return path


# Run as a program: its own process sends the signal, so that no busy machine lets the command finish before it.
_STOPPED = """
import os, signal, sys
from pfld_edge.cli import run

number, left = (int(sys.argv.pop(1)) for _ in range(2))

def stop(event, arguments):
    global left
    if event == "os.rename" and str(arguments[1]).endswith(".part"):
        left -= 1
        if left == -1:
            os.kill(os.getpid(), number)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may ignore it
sys.addaudithook(stop)
sys.exit(run(sys.argv[1:]))
"""


@pytest.fixture
def stop_command() -> Callable[[list[str], signal.Signals, int], tuple[int, str]]:
    """Runs `pfld-edge` in a process that gets a signal at a part after so many: its exit status and stderr."""

    def stopped(arguments: list[str], sent: signal.Signals, parts: int) -> tuple[int, str]:
        command = [sys.executable, "-c", _STOPPED, str(int(sent)), str(parts), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    return stopped

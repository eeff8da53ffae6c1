"""A small network and a small photograph."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_runtime import CONTRACT_KEY, Contract
from pfld_edge_runtime.arrays import Uint8Array

SIZE = 16


@pytest.fixture
def contract() -> Contract:
    """The contract of the small network."""
    return Contract(model="tiny", input_size=SIZE)


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Path]:
    """Write a network of one linear layer; its metadata and shapes can be spoilt by the caller."""

    def write(contract: object = None, *, batch: int | str = "n", points: int = 98, size: int = SIZE) -> Path:
        weights = np.random.default_rng(0).normal(0, 0.01, (3 * size * size, 2 * points)).astype(np.float32)
        graph = helper.make_graph(
            [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("Gemm", ["flat", "w", "b"], ["y"])],
            "tiny",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, size, size])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 2 * points])],
            [
                numpy_helper.from_array(weights, "w"),
                numpy_helper.from_array(np.full(2 * points, 0.5, np.float32), "b"),
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        if contract is not None:
            text = contract.to_json() if isinstance(contract, Contract) else str(contract)
            helper.set_model_props(model, {CONTRACT_KEY: text})
        path = tmp_path / "tiny.onnx"
        onnx.save(model, path)
        return path

    return write


@pytest.fixture(scope="session")
def photo() -> Uint8Array:
    """A 60 x 80 RGB photograph of smooth noise, every channel different."""
    coarse = np.random.default_rng(1).integers(0, 256, (13, 17, 3))
    return np.kron(coarse, np.ones((5, 5, 1))).astype(np.uint8)[:60, :80]

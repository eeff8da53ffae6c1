"""Small graphs to rewrite, and the published files."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Build = Callable[..., onnx.ModelProto]

PUBLISHED = {
    "ghostone": "PFLD_GhostOne_112_1_opt_sim.onnx",
    "ghostnet": "PFLD_GhostNet_112_1_opt_sim.onnx",
    "slim": "PFLD_GhostNet_Slim_112_1_opt_sim.onnx",
}


def build_model(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, NDArray[np.generic]],
    input_shape: Sequence[int | str],
    opset: int = 18,
) -> onnx.ModelProto:
    """Make a model from input ``x`` to output ``y``."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


@pytest.fixture(scope="session")
def build() -> Build:
    return build_model


@pytest.fixture(scope="session")
def published() -> Callable[[str], onnx.ModelProto]:
    shared = os.environ.get("PFLD_EDGE_SHARED")
    if shared is None:
        pytest.skip("PFLD_EDGE_SHARED is not set: no published files to look at")
    return lambda kind: onnx.load(str(Path(shared) / "models/reference" / PUBLISHED[kind]))


@pytest.fixture(scope="session")
def faces() -> NDArray[np.float32]:
    """Sixteen crops of the bundled portraits, as the published protocol feeds them."""
    from pfld_edge_convert.calibration import sample_inputs
    from pfld_edge_runtime import Contract

    return sample_inputs(Contract())

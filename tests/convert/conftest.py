"""Small graphs to rewrite, and the published files."""

import functools
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_runtime.arrays import Float32Array

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
def added_convolutions() -> Callable[[int], Any]:
    """Plans of two convolutions without ReLU, the sum of their maps and a convolution of it; input (n, 16, 9, 9)."""
    from pfld_edge_convert.quantization.plan import Grid, IntegerWeights, Plan

    def plan(seed: int) -> Plan:
        random = np.random.default_rng(seed)
        # Ratios of scales are fractions with an odd denominator: no ties, which runtimes break differently.
        scales = {"x": 1 / 64, "a": 77 / 6464, "b": 53 / 6464, "s": 1 / 64, "y": 1 / 64}
        grids = {name: Grid(float(np.float32(scale)), int(random.integers(100, 156))) for name, scale in scales.items()}
        steps = [("x", "a"), ("x", "b"), ("s", "y")]
        weights = {}
        for source, name in steps:
            integers = random.integers(-63, 64, (16, 16, 1, 1)).astype(np.int8)
            unit = scales[name] / 101
            bias = np.asarray(random.integers(-500, 500, 16) * unit, np.float64)
            weights[name] = IntegerWeights(integers, np.full(16, unit / scales[source], np.float32), bias)
        nodes = [helper.make_node("Conv", [source, f"{name}w"], [name]) for source, name in steps]
        nodes.insert(2, helper.make_node("Add", ["a", "b"] if seed % 2 else ["b", "a"], ["s"]))
        constants = {f"{name}w": layer.real().astype(np.float32) for name, layer in weights.items()}
        return Plan(build_model(nodes, constants, ["n", 16, 9, 9]), grids, weights)

    return plan


@pytest.fixture(scope="session")
def published(shared: Path) -> Callable[[str], onnx.ModelProto]:
    return lambda kind: onnx.load(str(shared / "models/reference" / PUBLISHED[kind]))


@pytest.fixture(scope="session")
def faces() -> Float32Array:
    """Sixteen crops of the bundled portraits, as the published protocol feeds them."""
    from pfld_edge_convert.calibration import sample_crops
    from pfld_edge_runtime import Contract, prepare_input

    return np.asarray(prepare_input(sample_crops(Contract()), Contract()), np.float32)


@pytest.fixture(scope="session")
def exported(made_once: Callable[..., Path]) -> Callable[[Any, Any], onnx.ModelProto]:
    """A torch network as the graph that is quantized."""
    from pfld_edge_convert.calibration import sample_crops
    from pfld_edge_convert.export import export_onnx
    from pfld_edge_convert.passes.base import run_passes
    from pfld_edge_convert.passes.canonical_form import default_passes
    from pfld_edge_convert.reparameterize import reparameterize
    from pfld_edge_runtime import prepare_input

    def graph(model: Any, contract: Any) -> onnx.ModelProto:
        def make(path: Path) -> None:
            samples = np.asarray(prepare_input(sample_crops(contract), contract), np.float32)
            network = export_onnx(reparameterize(model), contract.input_size)
            onnx.save(run_passes(network, default_passes(), samples)[0], path)

        # The modules too: networks that differ in an activation may have equal weights.
        content = str(model).encode() + b"".join(value.numpy().tobytes() for value in model.state_dict().values())
        return onnx.load(made_once(f"{sha256(content).hexdigest()[:16]}-{contract.input_size}.onnx", make))

    return graph


@pytest.fixture(scope="session")
def quantizer_of(exported: Callable[[Any, Any], onnx.ModelProto]) -> Callable[..., Any]:
    """A `Quantizer` of a torch network, with the fastest settings."""
    from pfld_edge_convert.calibration import sample_crops
    from pfld_edge_convert.quantization.quantizer import Quantizer
    from pfld_edge_convert.quantization.settings import QuantizationSettings

    def prepared(model: Any, contract: Any) -> Quantizer:
        settings = QuantizationSettings(ranges="minmax", feedback=False)
        return Quantizer(exported(model, contract), sample_crops(contract), contract, settings)

    return prepared


@pytest.fixture(scope="session")
def bundled(quantizer_of: Callable[..., Any]) -> Callable[[str], Any]:
    """The bundled checkpoints, quantized."""
    from pfld_edge_convert.model_file import checkpoint_contract
    from pfld_edge_train.checkpoint import load_model

    @functools.cache
    def quantized(name: str) -> Any:
        model, checkpoint = load_model(Path(__file__).parents[2] / "checkpoints" / f"{name}.pth")
        return quantizer_of(model, checkpoint_contract(checkpoint)).make()

    return quantized


@pytest.fixture(scope="session")
def multi_scale_64(quantizer_of: Callable[..., Any]) -> Any:
    """Of a network with concatenations and depthwise layers, whose last product reads features of several grids."""
    import torch

    from pfld_edge_runtime import Contract
    from pfld_edge_train.models import ModelConfig, build_model

    torch.manual_seed(0)
    model = build_model(ModelConfig("pfld-ghostone", width_factor=0.25, input_size=64))
    return quantizer_of(model, Contract(input_size=64))

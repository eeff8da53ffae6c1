"""Formats of one quantization: standard operators, the integers that were proven, the same landmarks."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from pfld_edge_convert.calibration import sample_crops
from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.formats import FORMATS, format_named
from pfld_edge_convert.formats.qdq import write_qdq
from pfld_edge_convert.formats.qoperator import write_qoperator
from pfld_edge_convert.int8_stage import Int8Request
from pfld_edge_convert.model_file import optimized_graph, run_model
from pfld_edge_convert.model_stats import layer_weights
from pfld_edge_convert.passes.base import GraphIndex
from pfld_edge_convert.pipeline import convert
from pfld_edge_convert.quantization.mixed_precision import fusion_coverage
from pfld_edge_convert.quantization.plan import Grid, IntegerWeights, Plan
from pfld_edge_convert.quantization.quantizer import Quantized, Quantizer
from pfld_edge_convert.quantization.settings import QuantizationSettings
from pfld_edge_runtime import Contract, LandmarkModel
from pfld_edge_train.models import ModelConfig, build_model

FAST = QuantizationSettings(ranges="minmax", feedback=False)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", ["pfld-edge-s", "pfld-edge-m"])
def test_qdq_gives_the_landmarks_of_qoperator(
    bundled: Callable[[str], Quantized], name: str, signed: bool, fused: bool
) -> None:
    quantized = bundled(name)
    crops = sample_crops(quantized.contract, 16)
    found = run_model(write_qdq(quantized.plan, signed=signed), crops, fuse_qdq=fused)
    np.testing.assert_allclose(found, run_model(quantized.model, crops), atol=1e-5)


def test_onnxruntime_turns_a_qdq_file_into_the_operators_of_a_qoperator_file(
    bundled: Callable[[str], Quantized], multi_scale_64: Quantizer
) -> None:
    for quantized, signed in product((bundled("pfld-edge-s"), multi_scale_64.make()), (False, True)):
        crops = sample_crops(quantized.contract, 4)
        model = write_qdq(quantized.plan, signed=signed)
        run, expected = (
            Counter(node.op_type for node in optimized_graph(either).graph.node) for either in (model, quantized.model)
        )
        # The bound of a sum is a step of its own: between floats in a QDQ file, of integers in the other. Where
        # activations are int8, pixels become so first.
        for kind in ("QuantizeLinear", "DequantizeLinear"):
            # The refinement of landmarks has a Clip before its logarithm, in float.
            assert run[kind] == expected[kind] + run["Clip"] - run["Log"] + signed
        assert not {"Conv", "Gemm"} & set(run)
        np.testing.assert_array_equal(run_model(model, crops), run_model(quantized.model, crops))


@pytest.mark.parametrize("signed", [False, True])
def test_qdq_holds_standard_operators_and_integer_weights(multi_scale_64: Quantizer, signed: bool) -> None:
    quantized = multi_scale_64.make()
    model = write_qdq(quantized.plan, signed=signed)
    onnx.checker.check_model(model, full_check=True)
    assert {item.domain for item in model.opset_import} == {""}
    index = GraphIndex(model)
    weighted = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(weighted) == len(quantized.plan.layers)
    for node in weighted:
        sources = [index.producers[name] for name in node.input]
        assert {source.op_type for source in sources} == {"DequantizeLinear"}
        _, weight, bias = sources
        assert index.constants[weight.input[0]].dtype == np.int8
        assert index.constants[bias.input[0]].dtype == np.int32
        assert next(item.i for item in weight.attribute if item.name == "axis") == 0
        assert index.constants[weight.input[1]].shape == index.constants[bias.input[0]].shape
    kinds = {index.constants[node.input[2]].dtype for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert kinds == {np.dtype(np.int8 if signed else np.uint8)}
    stored = layer_weights(model)
    assert all(layer.integer for layer in stored)
    for layer, plain in zip(stored, layer_weights(write_qoperator(quantized.plan)), strict=True):
        np.testing.assert_array_equal(layer.weight, plain.weight)


@pytest.mark.parametrize("seed", range(3))
def test_layers_that_stay_in_float_are_float_in_qdq(multi_scale_64: Quantizer, seed: int) -> None:
    random = np.random.default_rng(seed)
    layers = tuple(name for name in multi_scale_64.layers if random.random() < (0.1, 0.5, 0.9)[seed])
    quantized = multi_scale_64.make(layers)
    model = write_qdq(quantized.plan)
    assert len(fusion_coverage(model).floating) == len(layers)
    crops = multi_scale_64.held_back
    assert np.abs(run_model(model, crops) - run_model(quantized.model, crops)).max() < 1e-3


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", ["pfld-edge-m", "multi_scale_64"])
def test_openvino_gives_the_landmarks_of_qoperator_with_every_convolution_in_8_bits(
    bundled: Callable[[str], Quantized], multi_scale_64: Quantizer, name: str, signed: bool
) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    quantized = multi_scale_64.make() if name == "multi_scale_64" else bundled(name)
    model = openvino.Core().read_model(write_qdq(quantized.plan, signed=signed).SerializeToString())
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    crops = sample_crops(quantized.contract, 8)
    # A single activation that is rounded otherwise moves landmarks by 1e-4 and more.
    np.testing.assert_allclose(compiled(crops)[0], run_model(quantized.model, crops), atol=1e-5)
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    runs = [node["runtimePrecision"].astype(str) for node in nodes if node["layerType"].astype(str) == "Convolution"]
    assert len(runs) == sum(layer.node.op_type == "Conv" for layer in quantized.plan.layers)
    assert set(runs) <= {"u8", "i8"}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_openvino_rounds_a_convolution_before_it_is_added(
    added_convolutions: Callable[[int], Plan], seed: int, signed: bool
) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    plan = added_convolutions(seed)
    model = openvino.Core().read_model(write_qdq(plan, signed=signed).SerializeToString())
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    inputs = np.random.default_rng(seed).normal(size=(2, 16, 9, 9)).astype(np.float32) / 2
    np.testing.assert_allclose(compiled(inputs)[0], run_model(write_qoperator(plan), inputs), atol=1e-5)


def test_only_an_addition_of_integers_has_pools_before_it(added_convolutions: Callable[[int], Plan]) -> None:
    plan = added_convolutions(0)
    in_float = replace(
        plan, grids={name: plan.grids[name] for name in "xab"}, weights=dict(list(plan.weights.items())[:2])
    )
    pools = [Counter(node.op_type for node in write_qdq(each).graph.node)["MaxPool"] for each in (plan, in_float)]
    assert pools == [2, 0]


def test_a_product_with_relu_that_gives_float_runs_in_integers(build: Callable[..., onnx.ModelProto]) -> None:
    random = np.random.default_rng(0)
    weights = IntegerWeights(
        random.integers(-63, 64, (8, 16)).astype(np.int8), np.full(8, 1 / 64, np.float32), np.zeros(8)
    )
    nodes = [helper.make_node("Gemm", ["x", "w"], ["a"], transB=1), helper.make_node("Relu", ["a"], ["y"])]
    model = build(nodes, {"w": weights.real().astype(np.float32)}, ["n", 16])
    plan = Plan(model, {"x": Grid(1 / 64, 120)}, {"y": weights})
    written = write_qdq(plan)
    coverage = fusion_coverage(written)
    assert len(coverage.integer) == 1
    assert not coverage.floating
    inputs = random.normal(size=(3, 16)).astype(np.float32)
    np.testing.assert_allclose(run_model(written, inputs), run_model(write_qoperator(plan), inputs), atol=1e-5)


def test_all_files_of_a_conversion_come_from_one_quantization(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ModelConfig("pfld-edge-s", width_factor=0.25, input_size=32)
    contract = Contract(model=config.kind, input_size=32)
    crops = sample_crops(contract, 8)
    request = Int8Request(crops, "eight", FAST, allow_slower=True, formats=("qdq", "qoperator", "qdq"))
    report = convert(build_model(config), contract, tmp_path / "face.onnx", crops, request)
    assert [file.path.name for file in report.files] == ["face.onnx", "face.int8.onnx", "face.qdq.onnx"]
    models = [LandmarkModel.open(file.path) for file in report.files[1:]]
    np.testing.assert_allclose(models[0].predict(crops), models[1].predict(crops), atol=1e-4)
    assert "QDQ, uint8 activations" in models[1].contract.quantization
    assert models[0].contract.fingerprint == models[1].contract.fingerprint
    assert (tmp_path / "face.qdq.json").is_file()


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(ConvertError, match=f"known are {', '.join(FORMATS)}"):
        format_named("mnn")

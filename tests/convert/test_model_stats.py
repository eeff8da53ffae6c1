"""Costs are counted alike in float, QOperator and QDQ files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from pfld_edge_convert.formats.qoperator import write_qoperator
from pfld_edge_convert.inspection import inspect_file
from pfld_edge_convert.model_stats import model_stats
from pfld_edge_convert.passes.base import GraphIndex, run_passes
from pfld_edge_convert.passes.canonical_form import MakeBatchDynamic, UpgradeOpset
from pfld_edge_convert.passes.operator_rewrites import MeanToPool
from pfld_edge_convert.quantization.plan import Grid, integer_tensors, weighted_layers
from pfld_edge_convert.quantization.ranges import collect_histograms, grids_from
from pfld_edge_convert.quantization.reconstruction import initial_plan
from pfld_edge_convert.quantization.settings import FULL_RANGE

Build = Callable[..., onnx.ModelProto]


# Published figures: 74.9, 98.4 and 81.9 million, and 0.703, 0.804 and 0.736 million.
@pytest.mark.parametrize(
    ("kind", "macs", "parameters"), [("ghostone", 74.9, 0.703), ("ghostnet", 98.4, 0.804), ("slim", 81.9, 0.736)]
)
def test_the_published_files_cost_what_was_published(
    published: Callable[[str], onnx.ModelProto], kind: str, macs: float, parameters: float
) -> None:
    stats = model_stats(published(kind))
    assert round(stats.macs / 1e6, 1) == macs
    assert round(stats.parameters / 1e6, 3) == parameters


def small(build: Build) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    constants = {
        "w1": random.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "b1": random.normal(size=8).astype(np.float32),
        "wd": random.normal(size=(8, 1, 3, 3)).astype(np.float32),
        "wf": random.normal(size=(4, 16)).astype(np.float32),
        "bf": random.normal(size=4).astype(np.float32),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c"], name="first", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"], name="relu"),
        node("Conv", ["r", "wd"], ["d"], name="depthwise", group=8, pads=[1, 1, 1, 1]),
        node("Concat", ["r", "d"], ["both"], name="concat", axis=1),
        node("GlobalAveragePool", ["both"], ["p"], name="pool"),
        node("Flatten", ["p"], ["f"], name="flatten", axis=1),
        node("Gemm", ["f", "wf", "bf"], ["y"], name="last", transB=1),
    ]
    return build(nodes, constants, ["batch", 3, 16, 16])


MACS = {"first": 8 * 8 * 8 * 27, "depthwise": 8 * 8 * 8 * 9, "last": 4 * 16}
PARAMETERS = {"first": 8 * 27 + 8, "depthwise": 8 * 9, "last": 4 * 16 + 4}


def test_each_layer_is_counted_by_the_textbook_formula(build: Build) -> None:
    layers = {layer.name: layer for layer in model_stats(small(build)).layers}
    assert {name: layers[name].macs for name in MACS} == MACS
    assert {name: layers[name].parameters for name in MACS} == PARAMETERS
    assert layers["pool"].output_shape == ("batch", 16, 1, 1)


@pytest.mark.parametrize("kept", [frozenset(), frozenset({"y"})])
def test_a_qoperator_file_costs_what_its_float_file_does(build: Build, kept: frozenset[str]) -> None:
    model = small(build)
    batch = np.random.default_rng(1).normal(size=(4, 3, 16, 16)).astype(np.float32)
    index = GraphIndex(model)
    names = ["x", *integer_tensors(index, weighted_layers(index))]
    histograms = collect_histograms(model, names[1:], [batch])
    grids = {"x": Grid.covering(-4, 4), **grids_from(index, histograms, "minmax")}
    quantized = write_qoperator(initial_plan(model, grids, FULL_RANGE, kept))
    assert "QLinearConv" in {node.op_type for node in quantized.graph.node}
    stats = model_stats(quantized)
    assert stats.macs == sum(MACS.values())
    assert stats.parameters - sum(PARAMETERS.values()) in (0, 8)  # the quantizer adds a bias to the depthwise layer


class Once(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self._left = [np.random.default_rng(1).normal(size=(4, 3, 16, 16)).astype(np.float32)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return {"x": self._left.pop()} if self._left else None


def test_a_qdq_file_costs_what_its_float_file_does(build: Build, tmp_path: Path) -> None:
    model = small(build)
    add_pre_process_metadata(model)
    quantize_static(model, tmp_path / "qdq.onnx", Once(), quant_format=QuantFormat.QDQ, per_channel=True)
    stats = model_stats(onnx.load(tmp_path / "qdq.onnx"))
    assert stats.macs == sum(MACS.values())
    assert stats.parameters == sum(PARAMETERS.values())


def test_a_dynamic_batch_is_not_multiplied_in(published: Callable[[str], onnx.ModelProto]) -> None:
    original = published("slim")
    model, _ = run_passes(
        original, [UpgradeOpset(), MakeBatchDynamic(), MeanToPool()], np.zeros((1, 3, 112, 112), np.float32)
    )
    assert model_stats(model).macs == model_stats(original).macs


def test_a_mean_over_a_tensor_of_unknown_rank_is_inspected(tmp_path: Path) -> None:
    node, value = helper.make_node, helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            node("FastGelu", ["x"], ["g"], domain="com.microsoft"),
            node("ReduceMean", ["g"], ["y"], axes=[2, 3], keepdims=0),
        ],
        "unknown",
        [value("x", onnx.TensorProto.FLOAT, ["n", 3, 8, 8])],
        [value("y", onnx.TensorProto.FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "unknown.onnx")
    assert [layer.op_type for layer in inspect_file(tmp_path / "unknown.onnx").stats.layers] == [
        "FastGelu",
        "ReduceMean",
    ]

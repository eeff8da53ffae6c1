"""The smaller passes, and the proof that every pass goes through."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.inference import run_model
from pfld_edge_convert.passes import (
    ConvToGemm,
    GraphPass,
    MakeBatchDynamic,
    MeanToPool,
    UpgradeOpset,
    default_passes,
    run_passes,
)
from pfld_edge_convert.passes.upgrade_opset import OPSET

Build = Callable[..., onnx.ModelProto]
node = helper.make_node


@settings(max_examples=20, deadline=None)
@given(
    side=st.integers(1, 7),
    channels=st.integers(1, 5),
    outputs=st.integers(1, 6),
    bias=st.booleans(),
    relu=st.booleans(),
)
def test_a_convolution_over_its_whole_input_becomes_a_gemm(
    build: Build, side: int, channels: int, outputs: int, bias: bool, relu: bool
) -> None:
    random = np.random.default_rng(side)
    constants = {
        "w": random.normal(size=(outputs, channels, side, side)).astype(np.float32),
        "b": random.normal(size=outputs).astype(np.float32),
    }
    nodes = [node("Conv", ["x", "w", "b"] if bias else ["x", "w"], ["c"])]
    nodes += [node("Relu", ["c"], ["r"])] if relu else []
    nodes += [node("Flatten", ["r" if relu else "c"], ["y"], axis=1)]
    model = build(nodes, constants, ["batch", channels, side, side])
    result = ConvToGemm()(model).model
    assert [item.op_type for item in result.graph.node] == ["Flatten", "Gemm", *(["Relu"] if relu else [])]
    for batch in (1, 3):
        inputs = random.normal(size=(batch, channels, side, side)).astype(np.float32)
        np.testing.assert_allclose(run_model(result, inputs), run_model(model, inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("attributes", "shape"),
    [({"pads": [1, 1, 1, 1]}, (2, 2, 5, 5)), ({"group": 2}, (2, 1, 4, 4)), ({}, (2, 2, 3, 3))],
    ids=["padded", "grouped", "smaller than its input"],
)
def test_other_convolutions_stay(build: Build, attributes: dict[str, object], shape: tuple[int, ...]) -> None:
    nodes = [node("Conv", ["x", "w"], ["c"], **attributes), node("Flatten", ["c"], ["y"], axis=1)]
    model = build(nodes, {"w": np.ones(shape, np.float32)}, ["batch", 2, 4, 4])
    assert not ConvToGemm()(model).modified


AXES = {"axes": np.array([-1, 2], np.int64)}


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([node("AveragePool", ["x"], ["y"], kernel_shape=[6, 6], strides=[6, 6])], {}),
        ([node("ReduceMean", ["x", "axes"], ["y"], keepdims=1)], AXES),
        ([node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)], AXES),
    ],
    ids=["pool", "mean", "flat mean"],
)
def test_every_average_over_the_map_becomes_one_operator(
    build: Build, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]
) -> None:
    model = build(nodes, constants, ["batch", 3, 6, 6])
    result = MeanToPool()(model).model
    assert result.graph.node[0].op_type == "GlobalAveragePool"
    inputs = np.random.default_rng(0).normal(size=(3, 3, 6, 6)).astype(np.float32)
    found, expected = run_model(result, inputs), run_model(model, inputs)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_mean_over_channels_stays(build: Build) -> None:
    model = build([node("ReduceMean", ["x", "a"], ["y"])], {"a": np.array([1], np.int64)}, ["batch", 3, 6, 6])
    assert not MeanToPool()(model).modified


@pytest.mark.parametrize("target", [[1, -1], [0, -1], [-1, 12], [1, 12]])
def test_flattening_to_a_fixed_batch_becomes_flatten(build: Build, target: list[int]) -> None:
    model = build([node("Reshape", ["x", "s"], ["y"])], {"s": np.array(target, np.int64)}, [1, 3, 2, 2])
    result = MakeBatchDynamic()(model).model
    assert result.graph.node[0].op_type == "Flatten"
    inputs = np.random.default_rng(0).normal(size=(5, 3, 2, 2)).astype(np.float32)
    assert (run_model(result, inputs) == inputs.reshape(5, 12)).all()


def test_any_other_reshape_keeps_the_batch_it_is_given(build: Build) -> None:
    model = build([node("Reshape", ["x", "s"], ["y"])], {"s": np.array([1, 2, 2, 3], np.int64)}, [1, 3, 2, 2])
    inputs = np.arange(60, dtype=np.float32).reshape(5, 3, 2, 2)
    assert (run_model(MakeBatchDynamic()(model).model, inputs) == inputs.reshape(5, 2, 2, 3)).all()


def test_old_files_come_to_the_new_opset(published: Callable[[str], onnx.ModelProto], faces: np.ndarray) -> None:
    model, _ = run_passes(published("slim"), [UpgradeOpset()], faces[:1])
    assert [item.version for item in model.opset_import] == [OPSET]
    assert model.ir_version == 8
    assert not UpgradeOpset()(model).modified


class Broken(GraphPass):
    name = "broken"

    def rewrite(self, model: onnx.ModelProto) -> str:
        model.graph.node[0].op_type = "Sigmoid"
        return "mischief"


def test_a_pass_that_changes_the_output_is_named(build: Build) -> None:
    model = build([node("Relu", ["x"], ["y"])], {}, ["batch", 2])
    with pytest.raises(ConvertError, match="broken changed the output by"):
        run_passes(model, [Broken()], np.ones((2, 2), np.float32))


@pytest.mark.parametrize("kind", ["ghostone", "ghostnet", "slim"])
def test_all_passes_keep_a_published_file_s_landmarks_and_run_twice_to_no_effect(
    published: Callable[[str], onnx.ModelProto], faces: np.ndarray, kind: str
) -> None:
    original = published(kind)
    model, _ = run_passes(original, default_passes(), faces[:4])
    assert np.abs(run_model(model, faces) - run_model(original, faces)).max() < 1e-5
    _, again = run_passes(model, default_passes(), faces[:1])
    assert not any(report.modified for report in again)

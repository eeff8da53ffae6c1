"""Canonical form and operator rewrites, and the check on sample inputs that every pass goes through."""

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
    EliminateIdentity,
    FoldBatchNorm,
    GraphPass,
    MakeBatchDynamic,
    MeanToPool,
    UpgradeOpset,
    default_passes,
    run_passes,
)
from pfld_edge_convert.passes.canonical_form import OPSET

Build = Callable[..., onnx.ModelProto]


node = helper.make_node
INT = np.int64
SHAPE = ["batch", 4, 2, 2]


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


@pytest.mark.parametrize(
    ("nothing", "constants"),
    [
        (node("Identity", ["a"], ["b"]), {}),
        (node("Dropout", ["a"], ["b"]), {}),
        (node("Relu", ["a"], ["b"]), {}),
        (node("Concat", ["a"], ["b"], axis=1), {}),
        (node("Transpose", ["a"], ["b"], perm=[0, 1, 2, 3]), {}),
        (node("Reshape", ["a", "s"], ["b"]), {"s": np.array([0, 4, 2, 2], INT)}),
        (node("Pad", ["a", "p"], ["b"]), {"p": np.zeros(8, INT)}),
        (node("AveragePool", ["a"], ["b"], kernel_shape=[1, 1]), {}),
        (
            node("Slice", ["a", "from", "to", "axis"], ["b"]),
            {"from": np.array([0], INT), "to": np.array([99], INT), "axis": np.array([1], INT)},
        ),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else "",
)
def test_a_node_that_does_nothing_goes(build: Build, nothing: onnx.NodeProto, constants: dict[str, np.ndarray]) -> None:
    model = build([node("Relu", ["x"], ["a"]), nothing, node("Sigmoid", ["b"], ["y"])], constants, SHAPE)
    result = EliminateIdentity()(model)
    assert [item.op_type for item in result.model.graph.node] == ["Relu", "Sigmoid"]
    inputs = np.random.default_rng(0).normal(size=(3, 4, 2, 2)).astype(np.float32)
    assert (run_model(result.model, inputs) == run_model(model, inputs)).all()


@pytest.mark.parametrize(
    ("something", "constants"),
    [
        (
            node("Slice", ["a", "from", "to", "axis", "step"], ["b"]),
            {
                "from": np.array([3], INT),
                "to": np.array([-99], INT),
                "axis": np.array([1], INT),
                "step": np.array([-1], INT),
            },
        ),
        (node("Transpose", ["a"], ["b"], perm=[0, 1, 3, 2]), {}),
        (node("MaxPool", ["a"], ["b"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]), {}),
    ],
    ids=["a slice that runs backwards", "a transpose of equal sides", "a pool that keeps the size"],
)
def test_a_node_that_keeps_the_shape_but_moves_values_stays(
    build: Build, something: onnx.NodeProto, constants: dict[str, np.ndarray]
) -> None:
    model = build([node("Relu", ["x"], ["a"]), something, node("Sigmoid", ["b"], ["y"])], constants, SHAPE)
    assert not EliminateIdentity()(model).modified


def test_names_of_input_and_output_survive(build: Build) -> None:
    model = build([node("Relu", ["x"], ["a"]), node("Identity", ["a"], ["y"])], {}, SHAPE)
    result = EliminateIdentity()(model).model
    assert [(item.op_type, list(item.input), list(item.output)) for item in result.graph.node] == [
        ("Relu", ["x"], ["y"])
    ]
    only = build([node("Identity", ["x"], ["y"])], {}, SHAPE)
    assert not EliminateIdentity()(only).modified


def test_the_published_ghostnet_loses_its_22_slices(
    published: Callable[[str], onnx.ModelProto], faces: np.ndarray
) -> None:
    passes = [UpgradeOpset(), MakeBatchDynamic(), EliminateIdentity()]
    model, reports = run_passes(published("ghostnet"), passes, faces[:2])
    assert "Slice" not in {item.op_type for item in model.graph.node}
    assert [report.max_difference for report in reports] == [0, 0, 0]
    assert reports[-1].detail == "22 Slice removed"


def graph(build: Build, random: np.random.Generator, bias: bool, epsilon: float, shared: bool) -> onnx.ModelProto:
    constants = {
        "w": random.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "b": random.normal(size=4).astype(np.float32),
        "gamma": random.normal(size=4).astype(np.float32),
        "beta": random.normal(size=4).astype(np.float32),
        "mean": random.normal(size=4).astype(np.float32),
        "var": random.uniform(0.1, 3, size=4).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"] if bias else ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"], epsilon=epsilon),
        helper.make_node("Add", ["n", "c"], ["y"]) if shared else helper.make_node("Relu", ["n"], ["y"]),
    ]
    return build(nodes, constants, ["batch", 3, 6, 6])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), bias=st.booleans(), epsilon=st.sampled_from([1e-5, 1e-3, 0.1]))
def test_the_sum_stays_the_same(build: Build, seed: int, bias: bool, epsilon: float) -> None:
    random = np.random.default_rng(seed)
    model = graph(build, random, bias, epsilon, shared=False)
    result = FoldBatchNorm()(model)
    assert [node.op_type for node in result.model.graph.node] == ["Conv", "Relu"]
    inputs = random.normal(size=(2, 3, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(run_model(result.model, inputs), run_model(model, inputs), rtol=1e-5, atol=1e-4)


def test_a_convolution_that_something_else_reads_is_left_alone(build: Build) -> None:
    assert not FoldBatchNorm()(graph(build, np.random.default_rng(0), True, 1e-5, shared=True)).modified

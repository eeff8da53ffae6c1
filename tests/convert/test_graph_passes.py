"""Canonical form and operator rewrites, and the check on sample inputs that every pass goes through."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.model_file import run_model
from pfld_edge_convert.passes.base import GraphIndex, GraphPass, check_equivalence, run_passes, slice_places
from pfld_edge_convert.passes.canonical_form import (
    OPSET,
    EliminateIdentity,
    FoldConstants,
    MakeBatchDynamic,
    SpellLayers,
    UpgradeOpset,
    canonical_form,
    default_passes,
)
from pfld_edge_convert.passes.operator_rewrites import (
    ConvToGemm,
    FoldBatchNorm,
    MeanToPool,
    MergeBranches,
    RecognizeHardActivations,
)

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


def test_a_reshape_that_joins_a_fixed_batch_with_other_axes_is_freed(build: Build) -> None:
    nodes = [node("Reshape", ["x", "joined"], ["j"]), node("Reshape", ["j", "apart"], ["y"], allowzero=1)]
    constants = {"joined": np.array([3, 4], np.int64), "apart": np.array([1, 2, 6], np.int64)}
    inputs = np.arange(60, dtype=np.float32).reshape(5, 3, 2, 2)
    result = MakeBatchDynamic()(build(nodes, constants, [1, 3, 2, 2])).model
    assert (run_model(result, inputs) == inputs.reshape(5, 2, 6)).all()


TOKEN = {"token": np.full((1, 1, 2, 2), 9, np.float32), "last": np.full((1, 2, 2, 2), 7, np.float32)}
VIEW = {"flat": np.array([-1], INT), "order": np.arange(12).reshape(1, 3, 2, 2)}


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([node("Resize", ["x", "", "", "size"], ["y"], mode="linear")], {"size": np.array([1, 3, 5, 3], INT)}),
        ([node("Concat", ["token", "x", "last"], ["y"], axis=1)], TOKEN),
        (
            [node("Reshape", ["x", "flat"], ["f"]), node("Gather", ["f", "order"], ["g"]), node("Neg", ["g"], ["y"])],
            VIEW,
        ),
    ],
    ids=["resize", "class token", "as_strided"],
)
def test_what_was_exported_for_one_image_takes_any_number(
    build: Build, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]
) -> None:
    fixed = build(nodes, constants, [1, 3, 2, 2])
    inputs = np.random.default_rng(0).normal(size=(5, 3, 2, 2)).astype(np.float32)
    found = run_model(canonical_form(fixed), inputs)
    assert (found == run_model(fixed, inputs)).all()  # which takes them one by one


def test_a_resize_to_a_size_that_is_computed_from_a_free_batch_knows_it(build: Build) -> None:
    nodes = [node("Shape", ["x"], ["s"], end=2), node("Concat", ["s", "size"], ["t"], axis=0)]
    nodes.append(node("Resize", ["x", "", "", "t"], ["y"], mode="nearest"))
    model = build(nodes, {"size": np.array([4, 6], INT)}, ["batch", 3, 2, 2])
    result = canonical_form(model)
    assert [item.op_type for item in result.graph.node] == ["Resize"]
    inputs = np.random.default_rng(0).normal(size=(5, 3, 2, 2)).astype(np.float32)
    assert (run_model(result, inputs) == run_model(model, inputs)).all()


def test_old_files_come_to_the_new_opset(published: Callable[[str], onnx.ModelProto], faces: np.ndarray) -> None:
    model, _ = run_passes(published("slim"), [UpgradeOpset()], faces[:1])
    assert [item.version for item in model.opset_import] == [OPSET]
    assert model.ir_version == 8
    assert not UpgradeOpset()(model).modified


class Broken(GraphPass):
    name = "broken"

    def _rewrite(self, model: onnx.ModelProto) -> str:
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
        (node("Cast", ["a"], ["b"], to=onnx.TensorProto.FLOAT), {}),
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
        (node("Cast", ["a"], ["b"], to=onnx.TensorProto.FLOAT16), {}),
        (node("MaxPool", ["a"], ["b"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]), {}),
    ],
    ids=["a slice that runs backwards", "a transpose of equal sides", "a cast", "a pool that keeps the size"],
)
def test_a_node_that_keeps_the_shape_but_moves_values_stays(
    build: Build, something: onnx.NodeProto, constants: dict[str, np.ndarray]
) -> None:
    model = build([node("Relu", ["x"], ["a"]), something, node("Sigmoid", ["b"], ["y"])], constants, SHAPE)
    assert not EliminateIdentity()(model).modified


def test_a_slice_whose_steps_are_computed_stays(build: Build) -> None:
    constants = {"from": np.array([0], INT), "to": np.array([4], INT), "axis": np.array([1], INT)}
    cut = node("Slice", ["x", "from", "to", "axis", "steps"], ["b"])
    model = build([node("Shape", ["x"], ["steps"], start=3), cut, node("Relu", ["b"], ["y"])], constants, (4, 2, 1))
    assert slice_places(GraphIndex(model), cut) is None


@pytest.mark.parametrize(
    "constant",
    [{"value": onnx.numpy_helper.from_array(np.float32(2))}, {"value_float": 2.0}, {"value_floats": [2.0] * 2}],
    ids=lambda constant: next(iter(constant)),
)
def test_constant_nodes_and_what_follows_from_them_become_initializers(
    build: Build, constant: dict[str, object]
) -> None:
    nodes = [
        node("Constant", [], ["two"], **constant),
        node("Neg", ["two"], ["less"]),
        node("Add", ["x", "less"], ["y"]),
    ]
    result = FoldConstants()(build(nodes, {}, SHAPE)).model
    assert [item.op_type for item in result.graph.node] == ["Add"]
    inputs = np.random.default_rng(0).normal(size=(3, 4, 2, 2)).astype(np.float32)
    assert (run_model(result, inputs) == inputs - 2).all()


def shape_chain(target: list[str]) -> list[onnx.NodeProto]:
    """Reshape to a target that is joined from the batch of ``x`` and constants, as torch's exporter writes views."""
    return [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["n"]),
        node("Unsqueeze", ["n", "axis"], ["batch"]),
        node("Concat", target, ["target"], axis=0),
        node("Reshape", ["x", "target"], ["y"]),
    ]


@pytest.mark.parametrize(
    ("target", "constant", "shape"),
    [
        (["batch", "rest"], [-1], (5, 16)),
        (["batch", "rest"], [8, 2], (5, 8, 2)),
        (["rest", "batch"], [16], (16, 5)),
    ],
    ids=["flattened", "batch first", "batch last"],
)
def test_shapes_computed_from_the_batch_become_constants(
    build: Build, target: list[str], constant: list[int], shape: tuple[int, ...]
) -> None:
    constants = {"zero": np.array(0, INT), "axis": np.array([0], INT), "rest": np.array(constant, INT)}
    model = build(shape_chain(target), constants, SHAPE)
    result = FoldConstants()(model).model
    assert [item.op_type for item in result.graph.node] == ["Reshape"]
    inputs = np.random.default_rng(0).normal(size=(5, 4, 2, 2)).astype(np.float32)
    assert (run_model(result, inputs) == inputs.reshape(shape)).all()


def test_the_batch_is_no_copy_of_a_first_axis_that_holds_more(build: Build) -> None:
    constants = {"zero": np.array(0, INT), "axis": np.array([0], INT), "rest": np.array([2, -1], INT)}
    constants["four"] = np.array([-1, 4], INT)
    nodes = [node("Reshape", ["x", "four"], ["joined"]), *shape_chain(["batch", "rest"])]
    nodes[-1].input[0] = "joined"
    result = FoldConstants()(build(nodes, constants, SHAPE)).model
    assert [item.op_type for item in result.graph.node] == ["Reshape", "Reshape"]
    inputs = np.random.default_rng(0).normal(size=(5, 4, 2, 2)).astype(np.float32)
    assert (run_model(result, inputs) == inputs.reshape(5, 2, 8)).all()


def test_shapes_that_use_the_batch_twice_stay_computed(build: Build) -> None:
    constants = {"zero": np.array(0, INT), "axis": np.array([0], INT), "rest": np.array([-1], INT)}
    nodes = shape_chain(["batch", "rest", "batch"])
    assert not FoldConstants()(build(nodes, constants, ["batch", "batch", 2, 2])).modified


EXPECTED = {
    "ghostone_raw_export": {"Conv", "Relu", "Concat", "Flatten", "AveragePool", "Gemm"},
    "lite106_two_outputs": {"Conv", "Relu", "Concat", "Flatten", "GlobalAveragePool", "Gemm"},
    "pfld17_relu6": {"Conv", "Clip", "Add", "Concat", "Flatten", "AveragePool", "Gemm"},
    "pfld68_dynamic_batch": {"Conv", "Relu", "Add", "Concat", "Flatten", "AveragePool", "Gemm"},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_public_files_keep_their_outputs_in_canonical_form(shared: Path, name: str, faces: np.ndarray) -> None:
    path = shared / f"models/public/{name}.onnx"
    original = onnx.load(str(path))
    result = canonical_form(original)
    assert {item.op_type for item in result.graph.node} == EXPECTED[name]
    assert [item.version for item in result.opset_import] == [OPSET]
    assert result.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # files of IR version 3 make it warn of each weight
    sessions = [onnxruntime.InferenceSession(data, options) for data in (str(path), result.SerializeToString())]
    source = sessions[0].get_inputs()[0].name
    expected = [sessions[0].run(None, {source: face[None]}) for face in faces[:4]]
    found = sessions[1].run(None, {source: faces[:4]})
    for parts, values in zip(zip(*expected, strict=True), found, strict=True):
        largest = max(1.0, float(np.abs(values).max()))
        assert np.abs(np.concatenate(parts) - values).max() < 1e-5 * largest
    assert canonical_form(result) == result


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning")
@pytest.mark.parametrize("opset", [9, 11, 13, 17, 18])
def test_a_torch_network_keeps_its_outputs_in_canonical_form(opset: int, tmp_path: Path) -> None:
    """Legacy exports, batch norm and dropout not folded, views computed from the batch."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU6(),
        torch.nn.ZeroPad2d(0),
        torch.nn.AvgPool2d(4),
        torch.nn.Dropout(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 4 * 4, 10),
    ).eval()
    network[1].running_mean.uniform_(-1, 1)
    network[1].running_var.uniform_(0.5, 2)
    path, sample = tmp_path / "network.onnx", torch.rand(2, 3, 32, 32)
    torch.onnx.export(
        network, (sample,), str(path), dynamo=False, opset_version=opset, do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE, input_names=["x"], dynamic_axes={"x": {0: "n"}},
    )  # fmt: skip
    result = canonical_form(onnx.load(str(path)))
    assert {item.op_type for item in result.graph.node} == {"Conv", "Clip", "AveragePool", "Flatten", "Gemm"}
    inputs = torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        expected = network(inputs).numpy()
    np.testing.assert_allclose(run_model(result, inputs.numpy()), expected, atol=1e-5)


def test_a_network_of_two_inputs_is_refused(build: Build) -> None:
    model = build([node("Relu", ["x"], ["y"])], {}, SHAPE)
    model.graph.input.append(onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, SHAPE))
    with pytest.raises(ConvertError, match="expected one input, found 2: x, mask"):
        canonical_form(model)


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


def test_a_normalization_of_what_others_read_becomes_a_convolution_of_its_own(build: Build) -> None:
    random = np.random.default_rng(0)
    model = graph(build, random, True, 1e-5, shared=True)
    result = FoldBatchNorm()(model).model
    assert [node.op_type for node in result.graph.node] == ["Conv", "Conv", "Add"]
    inputs = random.normal(size=(2, 3, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(run_model(result, inputs), run_model(model, inputs), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("behind", [True, False])
def test_operations_by_channel_are_folded_or_become_a_convolution(build: Build, kind: str, behind: bool) -> None:
    random = np.random.default_rng(0)
    constants = {
        "w": random.normal(size=(3, 3, 1, 1)).astype(np.float32),
        "s": random.uniform(1, 2, size=(1, 3, 1, 1)).astype(np.float32),
    }
    nodes = [node("Conv", ["x", "w"], ["c"]), node(kind, ["c" if behind else "x", "s"], ["y"])][0 if behind else 1 :]
    model = build(nodes, constants if behind else {"s": constants["s"]}, ["batch", 3, 4, 4])
    result = FoldBatchNorm()(model).model
    assert [item.op_type for item in result.graph.node] == ["Conv"]
    inputs = random.normal(size=(2, 3, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(run_model(result, inputs), run_model(model, inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("groups", "kernel"), [(1, 1), (2, 3), (4, 1), (4, 5)])
def test_branches_of_a_sum_become_one_convolution(build: Build, groups: int, kernel: int) -> None:
    random = np.random.default_rng(0)
    sizes = {"v": (4, 4, 3, 3), "w": (4, 4 // groups, kernel, kernel), "a": (4,)}
    constants = {name: random.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    nodes = [
        node("Conv", ["x", "w"], ["p"], group=groups, pads=[kernel // 2] * 4, strides=[2, 2]),
        node("Conv", ["x", "v", "a"], ["q"], pads=[1] * 4, strides=[2, 2]),
        node("Add", ["p", "q"], ["y"]),
    ]
    model = build(nodes, constants, ["batch", 4, 7, 7])
    result = MergeBranches()(model).model
    # A sum of 5 x 5 weights would have more of them.
    assert len(result.graph.node) == (1 if kernel < 5 else 3)
    inputs = random.normal(size=(2, 4, 7, 7)).astype(np.float32)
    np.testing.assert_allclose(run_model(result, inputs), run_model(model, inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", ["SAME_UPPER", "SAME_LOWER", "VALID", "Pad"])
@pytest.mark.parametrize("strides", [[1, 2], [3, 1]])
def test_paddings_are_spelled_as_numbers(build: Build, padding: str, strides: list[int]) -> None:
    random = np.random.default_rng(0)
    constants = {"w": random.normal(size=(2, 3, 4, 3)).astype(np.float32), "pads": np.array([0, 0, 1, 0, 0, 0, 2, 1])}
    nodes = [node("Conv", ["x", "w"], ["y"], strides=strides, auto_pad=padding)]
    if padding == "Pad":
        conv = node("Conv", ["p", "w"], ["y"], strides=strides, dilations=[1, 2], pads=[0, 1, 2, 0])
        nodes = [node("Pad", ["x", "pads"], ["p"]), conv]
    model = build(nodes, constants, ["batch", 3, 9, 8])
    result = SpellLayers()(model).model
    (found,) = result.graph.node
    names = {item.name for item in found.attribute}
    assert found.op_type == "Conv"
    assert "auto_pad" not in names
    assert "kernel_shape" in names
    inputs = random.normal(size=(2, 3, 9, 8)).astype(np.float32)
    np.testing.assert_allclose(run_model(result, inputs), run_model(model, inputs), rtol=1e-5, atol=1e-5)


class HardSwishByHand(nn.Module):
    """As in implementations of MobileNetV3 that are older than torch's, with the division last or first."""

    def __init__(self, *, product_first: bool) -> None:
        super().__init__()
        self.product_first = product_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = nn.functional.relu6(x + 3)
        return x * gate / 6 if self.product_first else x * (gate / 6)


ACTIVATIONS: dict[str, tuple[nn.Module, list[str]]] = {
    "hard-swish": (nn.Hardswish(), ["HardSwish"]),
    "hard-swish by hand, product first": (HardSwishByHand(product_first=True), ["HardSwish"]),
    "hard-swish by hand": (HardSwishByHand(product_first=False), ["HardSwish"]),
    "hard-sigmoid": (nn.Hardsigmoid(), ["Clip"]),
    "one slope": (nn.PReLU(), ["LeakyRelu"]),
    "a slope for each channel": (nn.PReLU(8), ["PRelu"]),
}


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_hard_activations_are_recognized(name: str, opset: int) -> None:
    activation, expected = ACTIVATIONS[name]
    if isinstance(activation, nn.PReLU) and activation.num_parameters > 1:
        nn.init.uniform_(activation.weight, 0.1, 0.4)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 1), activation, nn.Conv2d(8, 4, 1)).eval()
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.zeros(1, 3, 8, 8),), content, dynamo=False, opset_version=opset)
    inputs = np.random.default_rng(0).normal(scale=3, size=(4, 3, 8, 8)).astype(np.float32)
    model, _ = run_passes(onnx.load_from_string(content.getvalue()), default_passes(), inputs[:1])
    assert [item.op_type for item in model.graph.node] == ["Conv", *expected, "Conv"]
    with torch.inference_mode():
        np.testing.assert_allclose(run_model(model, inputs), network(torch.from_numpy(inputs)).numpy(), atol=1e-5)


def test_a_gate_of_another_slope_is_no_hard_swish(build: Build) -> None:
    nodes = [node("HardSigmoid", ["x"], ["g"], alpha=0.2, beta=0.5), node("Mul", ["x", "g"], ["y"])]
    result = RecognizeHardActivations()(build(nodes, {}, ["n", 3, 2, 2]))
    assert result.detail == ""
    assert [item.op_type for item in result.model.graph.node] == ["HardSigmoid", "Mul"]


@pytest.mark.parametrize("sizes", [[3, 1, 2], None])
def test_splits_and_linear_layers_are_spelled_as_slices_and_gemm(build: Build, sizes: list[int] | None) -> None:
    random = np.random.default_rng(0)
    constants = {
        "sizes": np.array(sizes or [2, 2, 2]),
        "w": random.normal(size=(6, 4)).astype(np.float32),
        "b": random.normal(size=4).astype(np.float32),
    }
    split = node("Split", ["x", "sizes"] if sizes else ["x"], ["p", "q", "r"], axis=1)
    if sizes is None:
        split.attribute.append(helper.make_attribute("num_outputs", 3))
    nodes = [
        split,
        node("Concat", ["r", "p", "q"], ["c"], axis=1),
        node("MatMul", ["c", "w"], ["m"]),
        node("Add", ["b", "m"], ["y"]),
    ]
    model = build(nodes, constants, ["batch", 6])
    result = SpellLayers()(model).model
    assert [item.op_type for item in result.graph.node] == ["Slice"] * 3 + ["Concat", "Gemm"]
    inputs = random.normal(size=(5, 6)).astype(np.float32)
    np.testing.assert_allclose(run_model(result, inputs), run_model(model, inputs), rtol=1e-5, atol=1e-6)


def test_a_constant_of_rank_0_keeps_its_rank(build: Build) -> None:
    nodes = [
        node("Constant", [], ["row"], value=onnx.numpy_helper.from_array(np.array(1, INT))),
        node("Gather", ["x", "row"], ["y"], axis=1),
    ]
    result = FoldConstants()(build(nodes, {}, ["batch", 3])).model
    assert [tuple(item.dims) for item in result.graph.initializer] == [()]
    assert run_model(result, np.ones((2, 3), np.float32)).shape == (2,)


def branches(then: list[onnx.NodeProto], other: list[onnx.NodeProto]) -> dict[str, onnx.GraphProto]:
    """Branches of an If; the last node of each gives its output ``r``."""
    result = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
    half = numpy_helper.from_array(np.float32(0.5), "half")
    named = (("then_branch", then), ("else_branch", other))
    return {name: helper.make_graph(nodes, name, [], [result], [half]) for name, nodes in named}


@pytest.mark.parametrize("sign", [1, -1])
def test_what_a_branch_reads_from_around_it_stays(build: Build, sign: int) -> None:
    """A constant, a tensor whose producer is removed, and one of a convolution whose BatchNormalization is folded."""
    chosen = branches([node("Add", ["same", "c"], ["r"])], [node("Mul", ["conv", "half"], ["r"])])
    norm = {name: np.full(4, value, np.float32) for name, value in (("s", 2), ("b", 1), ("m", 0), ("v", 1))}
    nodes = [
        node("Identity", ["x"], ["same"]),
        node("Conv", ["x", "w"], ["conv"]),
        node("BatchNormalization", ["conv", *norm], ["bn"]),
        node("ReduceMax", ["x"], ["most"], keepdims=0),
        node("Greater", ["most", "zero"], ["positive"]),
        node("If", ["positive"], ["taken"], **chosen),
        node("Add", ["taken", "bn"], ["y"]),
    ]
    weight = np.random.default_rng(0).normal(size=(4, 4, 1, 1)).astype(np.float32)
    constants = {**norm, "w": weight, "c": np.full(1, 3, np.float32), "zero": np.float32(0)}
    model = build(nodes, constants, SHAPE)
    inputs = sign * np.random.default_rng(1).uniform(0.1, 1, (3, 4, 2, 2)).astype(np.float32)
    result, _ = run_passes(canonical_form(model), default_passes(), inputs)
    np.testing.assert_allclose(run_model(result, inputs), run_model(model, inputs), atol=1e-5)
    assert "If" in {item.op_type for item in result.graph.node}


def test_an_if_of_a_known_condition_becomes_its_branch(build: Build) -> None:
    """As torch writes `squeeze` where it doesn't know the rank; tensors inside have the same names in both."""
    inner = branches([node("Relu", ["t"], ["r"])], [node("Neg", ["t"], ["r"])])
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "one"], ["channels"]),
        node("Equal", ["channels", "four"], ["is_four"]),
        node("Equal", ["channels", "one"], ["is_one"]),
    ]
    for place, (source, result) in enumerate((("x", "first"), ("first", "y"))):
        outer = branches(
            [node("Mul", [source, "half"], ["t"]), node("If", ["is_one"], ["r"], **inner)],
            [node("Exp", [source], ["r"])],
        )
        nodes.append(node("If", ["is_four"], [result], name=f"if{place}", **outer))
    model = build(nodes, {"one": np.array(1, INT), "four": np.array(4, INT)}, SHAPE)
    result = canonical_form(model)
    assert [item.op_type for item in result.graph.node] == ["Mul", "Neg"] * 2
    inputs = np.random.default_rng(0).normal(size=(3, 4, 2, 2)).astype(np.float32)
    np.testing.assert_array_equal(run_model(result, inputs), inputs / 4)


def test_weights_of_old_files_are_among_the_inputs(build: Build) -> None:
    """IR version 3, up to 2018: every initializer is an input of the graph too."""
    model = build([node("Conv", ["x", "w"], ["y"])], {"w": np.ones((2, 4, 1, 1), np.float32)}, ["n", 4, 2, 2], opset=8)
    model.ir_version = 3
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 4, 1, 1]))
    inputs = np.random.default_rng(0).normal(size=(3, 4, 2, 2)).astype(np.float32)
    np.testing.assert_allclose(run_model(canonical_form(model), inputs)[:, 0], inputs.sum(axis=1), atol=1e-6)


def test_what_onnx_cannot_convert_is_refused(build: Build) -> None:
    model = build([node("Add", ["x", "nowhere"], ["y"])], {}, SHAPE, opset=13)
    with pytest.raises(ConvertError, match="can't be brought to opset 18"):
        UpgradeOpset()(model)


def test_a_fixed_batch_is_freed_behind_operators_without_shape_inference(build: Build) -> None:
    """onnx doesn't infer the shape of GroupNormalization of opset 21."""
    nodes = [
        node("GroupNormalization", ["x", "s", "b"], ["norm"], num_groups=2),
        node("Reshape", ["norm", "flat"], ["y"]),
    ]
    constants = {"s": np.ones(4, np.float32), "b": np.zeros(4, np.float32), "flat": np.array([1, 16])}
    model = build(nodes, constants, [1, 4, 2, 2], opset=21)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16]))
    result = canonical_form(model)
    inputs = np.random.default_rng(0).normal(size=(3, 4, 2, 2)).astype(np.float32)
    expected = torch.nn.functional.group_norm(torch.from_numpy(inputs), 2).flatten(1)
    np.testing.assert_allclose(run_model(result, inputs), expected.numpy(), atol=1e-5)


def test_a_network_that_multiplies_rounding_errors_is_held_to_what_they_make_of_it(build: Build) -> None:
    """The sine of sums of products in another order; half a thousandth more is a wrong rewrite."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(32, 32, 3, 3)).astype(np.float32)
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Mul", ["a", "k"], ["b"]), node("Sin", ["b"], ["y"])]

    def network(values: np.ndarray) -> onnx.ModelProto:
        return build(nodes, {"w": values, "k": np.float32(1.5)}, ["n", 32, 8, 8])

    inputs = random.normal(size=(2, 32, 8, 8)).astype(np.float32)
    order = random.permutation(32)
    rounded = build(
        [node("Gather", ["x", "order"], ["g"], axis=1), node("Conv", ["g", "v"], ["a"]), *nodes[1:]],
        {"v": weight[:, order], "order": order, "k": np.float32(1.5)},
        ["n", 32, 8, 8],
    )
    check_equivalence(network(weight), rounded, inputs, 1e-5, "reorder")
    with pytest.raises(ConvertError, match="scale changed the output"):
        check_equivalence(network(weight), network(weight * np.float32(1.0005)), inputs, 1e-5, "scale")

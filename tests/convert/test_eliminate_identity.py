"""Nodes that do nothing go; nodes that only look as if they did nothing stay."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper

from pfld_edge_convert.inference import run_model
from pfld_edge_convert.passes import EliminateIdentity, MakeBatchDynamic, UpgradeOpset, run_passes

Build = Callable[..., onnx.ModelProto]
node = helper.make_node
INT = np.int64
SHAPE = ["batch", 4, 2, 2]


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

"""Dead channels go, and the output stays."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pfld_edge_convert.model_file import run_model
from pfld_edge_convert.passes.base import run_passes
from pfld_edge_convert.passes.canonical_form import EliminateIdentity, MakeBatchDynamic, UpgradeOpset
from pfld_edge_convert.passes.channels import EliminateDeadChannels
from pfld_edge_runtime.arrays import Float32Array

Build = Callable[..., onnx.ModelProto]


def shape_of(model: onnx.ModelProto, name: str) -> tuple[int, ...]:
    return next(tuple(tensor.dims) for tensor in model.graph.initializer if tensor.name == name)


def ghost_graph(
    random: np.random.Generator, dead: float
) -> tuple[list[onnx.NodeProto], dict[str, NDArray[np.generic]]]:
    """A stem, Concat[x, DW(x)], a residual, two heads: every shape that the networks have, with random dead parts."""

    def weight(*shape: int, depthwise: bool = False) -> Float32Array:
        values = random.normal(size=shape).astype(np.float32)
        values[random.random(shape[0]) < dead] = 0
        if not depthwise:
            values[:, random.random(shape[1]) < dead] = 0
        return values

    def bias(count: int) -> Float32Array:
        values = random.normal(size=count).astype(np.float32)
        values[random.random(count) < 0.5] = 0
        return values

    c = int(random.integers(2, 6))
    constants: dict[str, NDArray[np.generic]] = {
        "w1": weight(c, 3, 3, 3), "b1": bias(c),
        "wd": weight(c, 1, 3, 3, depthwise=True), "bd": bias(c),
        "w2": weight(4, 2 * c, 1, 1), "b2": bias(4),
        "w3": weight(4, 4, 1, 1), "b3": bias(4),
        "w4": weight(3, 4, 4, 4), "b4": bias(3),
        "wf": weight(5, 3 + 4 + 4 * 16), "bf": bias(5),
    }  # fmt: skip
    node = helper.make_node
    padded = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], strides=[2, 2], **padded),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "wd", "bd"], ["d1"], group=c, **padded),
        node("Relu", ["d1"], ["rd"]),
        node("Concat", ["r1", "rd"], ["ghost"], axis=1),
        node("Conv", ["ghost", "w2", "b2"], ["c2"]),
        node("Conv", ["c2", "w3", "b3"], ["c3"]),
        node("Relu", ["c3"], ["r3"]),
        node("Add", ["c2", "r3"], ["sum"]),
        node("Conv", ["sum", "w4", "b4"], ["c4"], kernel_shape=[4, 4]),
        node("Flatten", ["c4"], ["f4"], axis=1),
        node("GlobalAveragePool", ["sum"], ["mean"]),
        node("Flatten", ["mean"], ["fm"], axis=1),
        node("Flatten", ["sum"], ["all"], axis=1),
        node("Concat", ["f4", "fm", "all"], ["features"], axis=1),
        node("Gemm", ["features", "wf", "bf"], ["y"], transB=1),
    ]
    return nodes, constants


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), dead=st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]))
def test_the_output_never_changes_and_no_weights_are_added(build: Build, seed: int, dead: float) -> None:
    random = np.random.default_rng(seed)
    nodes, constants = ghost_graph(random, dead)
    model = build(nodes, constants, ["batch", 3, 8, 8])
    before = model.SerializeToString()
    result = EliminateDeadChannels()(model)
    assert model.SerializeToString() == before
    onnx.checker.check_model(result.model, full_check=True)
    for batch in (1, 3):
        inputs = random.normal(size=(batch, 3, 8, 8)).astype(np.float32)
        expected = run_model(model, inputs)
        scale = max(1.0, float(np.abs(expected).max()))
        assert np.abs(run_model(result.model, inputs) - expected).max() <= 1e-5 * scale
    count = {
        name: sum(int(np.prod(tensor.dims)) for tensor in item.graph.initializer)
        for name, item in (("before", model), ("after", result.model))
    }
    assert count["after"] <= count["before"]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_exactly_the_channels_with_zero_rows_go(build: Build, data: st.DataObject) -> None:
    channels = data.draw(st.integers(2, 12))
    dead = data.draw(st.sets(st.integers(0, channels - 1), max_size=channels - 1))
    random = np.random.default_rng(len(dead))
    first = random.normal(size=(channels, 3, 3, 3)).astype(np.float32)
    first[list(dead)] = 0
    second = random.normal(size=(2, channels * 36)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"], axis=1),
        helper.make_node("Gemm", ["f", "w2"], ["y"], transB=1),
    ]
    result = EliminateDeadChannels()(build(nodes, {"w1": first, "w2": second}, ["batch", 3, 8, 8]))
    assert result.modified == bool(dead)
    assert shape_of(result.model, "w1")[0] == channels - len(dead)
    assert shape_of(result.model, "w2")[1] == (channels - len(dead)) * 36


def constant_channel_graph(pads: int) -> tuple[list[onnx.NodeProto], dict[str, NDArray[np.generic]]]:
    """Channel 1 of three is 2 everywhere: no weights, and a bias."""
    random = np.random.default_rng(5)
    first = random.normal(size=(3, 3, 1, 1)).astype(np.float32)
    first[1] = 0
    constants: dict[str, NDArray[np.generic]] = {
        "w1": first,
        "b1": np.array([0.1, 2, -0.3], np.float32),
        "w2": random.normal(size=(4, 3, 3, 3)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["y"], pads=[pads] * 4, kernel_shape=[3, 3]),
    ]
    return nodes, constants


def test_a_constant_channel_folds_into_the_bias_of_an_unpadded_convolution(build: Build) -> None:
    model = build(*constant_channel_graph(pads=0), ["batch", 3, 8, 8])
    inputs = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    result, (report,) = run_passes(model, [EliminateDeadChannels()], inputs)
    assert shape_of(result, "w2") == (4, 2, 3, 3)
    assert report.modified


def test_a_constant_channel_under_padding_stays_since_its_border_is_zero(build: Build) -> None:
    model = build(*constant_channel_graph(pads=1), ["batch", 3, 8, 8])
    assert not EliminateDeadChannels()(model).modified


def test_a_constant_is_constant_no_more_behind_a_padded_depthwise_convolution(build: Build) -> None:
    nodes, constants = constant_channel_graph(pads=0)
    constants["wd"] = np.random.default_rng(6).normal(size=(3, 1, 3, 3)).astype(np.float32)
    depthwise = helper.make_node("Conv", ["r", "wd"], ["d"], group=3, pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    nodes = [*nodes[:2], depthwise, helper.make_node("Conv", ["d", "w2"], ["y"], kernel_shape=[3, 3])]
    assert not EliminateDeadChannels()(build(nodes, constants, ["batch", 3, 8, 8])).modified


def test_a_channel_that_an_addition_keeps_alive_stays(build: Build) -> None:
    random = np.random.default_rng(1)
    dead_row = random.normal(size=(3, 3, 1, 1)).astype(np.float32)
    dead_row[0] = 0
    constants = {"w1": dead_row, "w2": random.normal(size=(3, 3, 1, 1)).astype(np.float32), "w3": dead_row + 1}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"]),
        helper.make_node("Conv", ["x", "w2"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["s"]),
        helper.make_node("Conv", ["s", "w3"], ["y"]),
    ]
    assert not EliminateDeadChannels()(build(nodes, constants, ["batch", 3, 4, 4])).modified


def test_small_is_not_dead_where_a_consumer_makes_it_large(build: Build) -> None:
    first = np.ones((2, 3, 1, 1), np.float32)
    first[1] *= 1e-12
    second = np.array([[1, 0], [0, 1e12]], np.float32).reshape(2, 2, 1, 1)
    nodes = [helper.make_node("Conv", ["x", "w1"], ["c"]), helper.make_node("Conv", ["c", "w2"], ["y"])]
    assert not EliminateDeadChannels()(build(nodes, {"w1": first, "w2": second}, ["batch", 3, 4, 4])).modified


# 92 and 66 by counting rows under 1e-6; GhostNet's rows fade gradually, at least 39 of them are below 1e-6.
@pytest.mark.parametrize(("kind", "dead"), [("ghostone", 92), ("ghostnet", 39), ("slim", 66)])
def test_dead_channels_of_the_published_7x7_convolution_go(
    published: Callable[[str], onnx.ModelProto], faces: Float32Array, kind: str, dead: int
) -> None:
    original = published(kind)
    before = [UpgradeOpset(), MakeBatchDynamic(), EliminateIdentity()]
    model, reports = run_passes(original, [*before, EliminateDeadChannels()], faces)
    assert reports[-1].max_difference <= 1e-6
    remaining = max(
        (numpy_helper.to_array(tensor) for tensor in model.graph.initializer if list(tensor.dims[2:]) == [7, 7]),
        key=len,
    )
    assert 128 - len(remaining) >= dead
    if kind != "ghostnet":
        assert 128 - len(remaining) == dead
    if kind == "ghostone":
        assert len(model.SerializeToString()) < 0.8 * len(original.SerializeToString())


def test_a_head_behind_shape_and_reshape_keeps_its_channels(build: Build) -> None:
    random, node = np.random.default_rng(0), helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("Shape", ["r"], ["shape"]),
        node("Gather", ["shape", "zero"], ["batch"]),
        node("Unsqueeze", ["batch", "axis"], ["first"]),
        node("Concat", ["first", "rest"], ["target"], axis=0),
        node("Reshape", ["r", "target"], ["flat"]),
        node("Gemm", ["flat", "g"], ["y"], transB=1),
    ]
    constants: dict[str, NDArray[np.generic]] = {
        "w": random.normal(size=(4, 3, 1, 1)).astype(np.float32),
        "g": random.normal(size=(5, 64)).astype(np.float32),
        "zero": np.array(0, np.int64),
        "axis": np.array([0], np.int64),
        "rest": np.array([-1], np.int64),
    }
    constants["w"][1] = 0  # type: ignore[index]
    model = build(nodes, constants, ["batch", 3, 4, 4])
    result = EliminateDeadChannels()(model).model
    inputs = random.normal(size=(2, 3, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(run_model(result, inputs), run_model(model, inputs), rtol=1e-6)

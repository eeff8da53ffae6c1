"""Pixels instead of normalized values, and four of them at a time."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_convert.model_file import run_model
from pfld_edge_convert.passes.int8_preparation import FoldNormalization, SpaceToDepthStem
from pfld_edge_runtime.arrays import Uint8Array
from pfld_edge_runtime.device_check import INT8_DOT_PRODUCTS, cpu_features

Build = Callable[..., onnx.ModelProto]
Array = NDArray[np.generic]


def first_layer(build: Build, *, pads: int = 0, bias: bool = True, readers: int = 1) -> onnx.ModelProto:
    """Convolutions that read the input; with two, their sum is the output."""
    random = np.random.default_rng(0)
    constants: dict[str, Array] = {}
    nodes = []
    for number in range(readers):
        constants[f"w{number}"] = random.normal(0, 0.2, (4, 3, 3, 3)).astype(np.float32)
        inputs = ["x", f"w{number}"]
        if bias:
            constants[f"b{number}"] = random.normal(size=4).astype(np.float32)
            inputs.append(f"b{number}")
        output = "y" if readers == 1 else f"c{number}"
        nodes.append(helper.make_node("Conv", inputs, [output], kernel_shape=[3, 3], pads=[pads] * 4, strides=[2, 2]))
    if readers == 2:
        nodes.append(helper.make_node("Add", ["c0", "c1"], ["y"]))
    return build(nodes, constants, ["n", 3, 9, 9])


def pixels(*shape: int) -> Uint8Array:
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


LEVELS = st.tuples(*[st.floats(0, 255)] * 3)
DIVISORS = st.tuples(*[st.floats(20, 255)] * 3)


@settings(max_examples=25, deadline=None)
@given(mean=LEVELS, scale=DIVISORS, bias=st.booleans(), readers=st.sampled_from([1, 2]))
def test_folding_is_exact_without_padding(
    build: Build, mean: tuple[float, ...], scale: tuple[float, ...], bias: bool, readers: int
) -> None:
    model = first_layer(build, bias=bias, readers=readers)
    fold = FoldNormalization(mean, scale)
    assert fold.applies(model)
    result = fold(model)
    assert result.detail == f"{readers} convolutions read pixels"
    onnx.checker.check_model(result.model, full_check=True)
    grey = pixels(2, 3, 9, 9).astype(np.float64)
    normalized = (grey - np.reshape(mean, (1, 3, 1, 1))) / np.reshape(scale, (1, 3, 1, 1))
    expected = run_model(model, normalized.astype(np.float32))
    found = run_model(result.model, (grey - fold.zero_point).astype(np.float32))
    assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


def test_one_tap_by_hand(build: Build) -> None:
    weight = np.array([2, 3, 5], np.float32).reshape(1, 3, 1, 1)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[1, 1])]
    model = build(nodes, {"w": weight}, ["n", 3, 1, 1])
    folded = FoldNormalization([100, 128, 130], [2, 3, 10])(model).model
    found = {tensor.name: numpy_helper.to_array(tensor).ravel() for tensor in folded.graph.initializer}
    np.testing.assert_allclose(found["w"], [1, 1, 0.5])
    # The mean of the means is 119 1/3: 1 * 19 + 1 * -9 + 0.5 * -11
    np.testing.assert_allclose(found[folded.graph.node[0].input[2]], [4.5])


@settings(max_examples=25, deadline=None)
@given(level=st.integers(0, 255), scale=DIVISORS)
def test_folding_one_mean_is_exact_where_the_convolution_pads(
    build: Build, level: int, scale: tuple[float, ...]
) -> None:
    """Of networks that take pixels of 0..1 too, whose padding is black."""
    model = first_layer(build, pads=1)
    folded = FoldNormalization([level] * 3, scale)(model).model
    grey = pixels(2, 3, 9, 9).astype(np.float32)
    expected = run_model(model, (grey - level) / np.reshape(scale, (1, 3, 1, 1)).astype(np.float32))
    np.testing.assert_allclose(run_model(folded, grey - level), expected, atol=1e-5 * np.abs(expected).max())


def test_padding_is_the_grey_level_nearest_to_the_means(build: Build) -> None:
    model, mean, scale = first_layer(build, pads=1), [127.5, 120.0, 140.0], [127.5] * 3
    folded = FoldNormalization(mean, scale)(model).model
    grey = pixels(2, 3, 9, 9).astype(np.float32)
    wider = np.pad(grey, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=129)
    normalized = (wider - np.reshape(mean, (1, 3, 1, 1))) / np.reshape(scale, (1, 3, 1, 1))
    unpadded = first_layer(build)
    unpadded.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 11
    unpadded.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 11
    unpadded.graph.ClearField("value_info")
    unpadded.graph.output[0].type.tensor_type.ClearField("shape")
    expected = run_model(unpadded, normalized.astype(np.float32))
    np.testing.assert_allclose(run_model(folded, grey - 129), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("other", ["Relu", "MaxPool", "grouped Conv"])
def test_folding_does_not_apply_where_something_else_reads_the_input(build: Build, other: str) -> None:
    random = np.random.default_rng(2)
    constants = {
        "w": random.normal(size=(3, 3, 3, 3)).astype(np.float32),
        "v": random.normal(size=(3, 1, 3, 3)).astype(np.float32),
    }
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    node = helper.make_node
    second = {
        "Relu": node("Relu", ["x"], ["b"]),
        "MaxPool": node("MaxPool", ["x"], ["b"], **same),
        "grouped Conv": node("Conv", ["x", "v"], ["b"], group=3, **same),
    }[other]
    nodes = [node("Conv", ["x", "w"], ["a"], **same), second, node("Add", ["a", "b"], ["y"])]
    model = build(nodes, constants, ["n", 3, 9, 9])
    fold = FoldNormalization([127.5] * 3, [127.5] * 3)
    assert not fold.applies(model)
    assert fold(model).model is model


def pixel_model(
    height: int = 16,
    width: int = 16,
    *,
    kernel: int = 3,
    stride: int = 2,
    per_channel: bool = True,
    weight_zero: NDArray[np.int8] | np.int8 | None = None,
    seed: int = 0,
) -> onnx.ModelProto:
    """Transpose and QLinearConv of uint8 pixels, 5 outputs, and a Relu-like clipping grid."""
    random = np.random.default_rng(seed)
    # x86 without VNNI clips the sum of two products at 16 bits, and which two are a pair depends on the layout: there
    # weights stay within 64, so that no pair clips.
    largest = 127 if INT8_DOT_PRODUCTS & {*(cpu_features() or ())} else 64
    constants: dict[str, Array] = {
        "sx": np.array(1, np.float32), "zx": np.array(128, np.uint8),
        "w": random.integers(-largest, largest + 1, (5, 3, kernel, kernel)).astype(np.int8),
        "sw": random.uniform(0.001, 0.01, 5).astype(np.float32) if per_channel else np.array(0.004, np.float32),
        "zw": np.asarray(np.int8(0) if weight_zero is None else weight_zero),
        "sy": np.array(1.5, np.float32), "zy": np.array(90, np.uint8),
        "b": random.integers(-30000, 30000, 5).astype(np.int32),
    }  # fmt: skip
    edge = kernel // 2
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "QLinearConv", ["t", "sx", "zx", "w", "sw", "zw", "sy", "zy", "b"], ["y"],
            kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[edge] * 4,
        ),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "pixels",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", height, width, 3])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


@settings(max_examples=15, deadline=None)
@given(
    height=st.integers(1, 8).map(lambda half: 2 * half),
    width=st.integers(1, 5).map(lambda fourth: 4 * fourth),
    batch=st.integers(1, 3),
    per_channel=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_four_pixels_at_a_time_give_the_same_bits(
    height: int, width: int, batch: int, per_channel: bool, seed: int
) -> None:
    model = pixel_model(height, width, per_channel=per_channel, seed=seed)
    before = model.SerializeToString()
    result = SpaceToDepthStem()(model)
    assert result.modified
    assert model.SerializeToString() == before
    onnx.checker.check_model(result.model, full_check=True)
    inputs = np.random.default_rng(seed).integers(0, 256, (batch, height, width, 3), np.uint8)
    for optimize in (False, True):
        found = run_model(result.model, inputs, optimize=optimize)
        expected = run_model(model, inputs, optimize=optimize)
        assert found.shape == (batch, 5, height // 2, width // 2)
        np.testing.assert_array_equal(found, expected)


def test_the_convolution_reads_twelve_channels() -> None:
    result = SpaceToDepthStem()(pixel_model()).model
    (convolution,) = (node for node in result.graph.node if node.op_type == "QLinearConv")
    shapes = {tensor.name: tuple(tensor.dims) for tensor in result.graph.initializer}
    assert shapes[convolution.input[3]] == (10, 12, 3, 2)
    assert "4 groups of four pixels a row" in SpaceToDepthStem()(pixel_model()).detail


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(pixel_model(width=18), id="width not a multiple of four"),
        pytest.param(pixel_model(height=15), id="odd height"),
        pytest.param(pixel_model(stride=1), id="stride 1"),
        pytest.param(pixel_model(kernel=5), id="5x5"),
    ],
)
def test_other_first_layers_stay(model: onnx.ModelProto) -> None:
    result = SpaceToDepthStem()(model)
    assert result.model is model
    assert not result.modified


def test_pixels_that_two_layers_read_stay_single() -> None:
    model = pixel_model()
    model.graph.node.append(helper.make_node("MaxPool", ["t"], ["m"], kernel_shape=[2, 2]))
    model.graph.output.append(helper.make_tensor_value_info("m", TensorProto.UINT8, None))
    assert SpaceToDepthStem()(model).model is model


@pytest.mark.parametrize("zero", [np.int8(3), np.zeros(5, np.int8)], ids=["not zero", "one a channel"])
def test_weights_with_zero_points_stay(zero: NDArray[np.int8] | np.int8) -> None:
    model = pixel_model(weight_zero=zero)
    assert SpaceToDepthStem()(model).model is model

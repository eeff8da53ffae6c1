"""Passes that get a float network ready for 8 bits: equal ranges, aligned channels, pixels."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_convert.inference import run_model
from pfld_edge_convert.passes.align_channels import AlignChannels
from pfld_edge_convert.passes.equalize_channels import EqualizeChannels
from pfld_edge_convert.passes.fold_normalization import CENTER, FoldNormalization
from pfld_edge_convert.passes.graph_index import attribute
from pfld_edge_convert.passes.group_pixels import GroupPixels
from pfld_edge_convert.quantization.observe import showing

Build = Callable[..., onnx.ModelProto]
Array = np.ndarray


def network(build: Build, seed: int = 0, *, gate: str = "Relu", channels: int = 12) -> onnx.ModelProto:
    """Stem, depthwise convolution, Concat[x, DW(x)] twice with an addition, pooled and flattened heads."""
    random, node = np.random.default_rng(seed), helper.make_node
    half, shapes = channels // 2, {}
    shapes["w0"], shapes["w1"] = (channels, 3, 3, 3), (channels, 1, 3, 3)
    shapes["w2"], shapes["w3"] = (half, 2 * channels, 1, 1), (half, 1, 3, 3)
    shapes["w4"], shapes["w5"] = (2 * half, channels, 1, 1), (7, 2 * half)
    constants = {
        name: random.normal(size=shape) * 10.0 ** random.uniform(-1, 1, (shape[0], *[1] * (len(shape) - 1)))
        for name, shape in shapes.items()
    }
    constants |= {f"b{i}": random.normal(size=shapes[f"w{i}"][0]) for i in range(6)}
    same = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c0"], strides=[2, 2], **same),
        node(gate, ["c0"], ["r0"]),
        node("Conv", ["r0", "w1", "b1"], ["c1"], group=channels, **same),
        node("Relu", ["c1"], ["r1"]),
        node("Concat", ["r0", "r1"], ["cat"], axis=1),
        node("Conv", ["cat", "w2", "b2"], ["c2"], kernel_shape=[1, 1]),
        node("Conv", ["c2", "w3", "b3"], ["c3"], group=half, **same),
        node("Concat", ["c2", "c3"], ["cat2"], axis=1),
        node("Conv", ["r1", "w4", "b4"], ["c4"], kernel_shape=[1, 1]),
        node("Add", ["cat2", "c4"], ["sum"]),
        node("GlobalAveragePool", ["sum"], ["mean"]),
        node("Flatten", ["mean"], ["flat"]),
        node("Gemm", ["flat", "w5", "b5"], ["y"], transB=1),
    ]
    return build(nodes, {name: value.astype(np.float32) for name, value in constants.items()}, ["n", 3, 16, 16])


def inputs(seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(4, 3, 16, 16)).astype(np.float32)


def ranges_of(model: onnx.ModelProto, names: list[str]) -> dict[str, Array]:
    return {
        name: np.abs(run_model(showing(model, name), inputs())).max(axis=(0, 2, 3)).astype(np.float64) for name in names
    }


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), strength=st.sampled_from([0.25, 0.75, 1.0]))
def test_equalizing_changes_no_output(build: Build, seed: int, strength: float) -> None:
    model = network(build, seed)
    result = EqualizeChannels(ranges_of(model, ["r0", "r1", "c2", "c3", "sum"]), strength)(model)
    assert result.modified
    expected = run_model(model, inputs())
    np.testing.assert_allclose(run_model(result.model, inputs()), expected, atol=1e-5 * np.abs(expected).max())


def test_equalizing_levels_both_halves_of_a_concat_each_for_itself(build: Build) -> None:
    model = network(build)
    names = ["r0", "r1", "c2", "c3"]
    before = ranges_of(model, names)
    equalize = EqualizeChannels(before)
    after = ranges_of(equalize(model).model, names)
    for name in ("r0", "r1"):
        assert before[name].max() / before[name].min() > 5
        # A channel that hardly moves is blown up 64 times, no further.
        np.testing.assert_allclose(after[name], np.minimum(before[name].max(), 64 * before[name]), rtol=1e-3)
    for name in names:
        np.testing.assert_allclose(before[name] / equalize.divisors[name], after[name], rtol=1e-3)
    # An addition ties both of its inputs.
    np.testing.assert_array_equal(equalize.divisors["cat2"], equalize.divisors["c4"])
    assert (equalize.divisors["y"] == 1).all()


@pytest.mark.parametrize("gate", ["Sigmoid", "HardSwish"])
def test_channels_of_a_nonlinear_gate_stay(build: Build, gate: str) -> None:
    model = network(build, gate=gate)
    equalize = EqualizeChannels(ranges_of(model, ["r0", "r1"]))
    result = equalize(model).model
    assert (equalize.divisors["r0"] == 1).all()
    assert not (equalize.divisors["r1"] == 1).all()
    expected = run_model(model, inputs())
    np.testing.assert_allclose(run_model(result, inputs()), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("channels", "multiple", "aligned"), [(12, 16, [16, 16]), (20, 8, [24, 16]), (24, 8, [24, 16])]
)
def test_aligned_depthwise_convolutions_compute_the_same(
    build: Build, channels: int, multiple: int, aligned: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pfld_edge_convert.passes.align_channels._WORTH", 0.01)
    model = network(build, channels=channels)
    result = AlignChannels(multiple)(model)
    assert result.modified
    onnx.checker.check_model(result.model, full_check=True)
    groups = [attribute(node, "group", 1) for node in result.model.graph.node if node.op_type == "Conv"]
    assert [group for group in groups if group > 1] == aligned
    expected = run_model(model, inputs())
    np.testing.assert_allclose(run_model(result.model, inputs()), expected, atol=1e-5 * np.abs(expected).max())
    again = AlignChannels(multiple)(result.model)
    assert again.model is result.model


def test_padding_that_costs_more_than_it_saves_is_left_out(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pfld_edge_convert.passes.align_channels._WORTH", 1e9)
    model = network(build)
    assert AlignChannels(16)(model).model is model


def test_channels_that_a_flatten_spreads_over_pixels_are_not_padded(build: Build) -> None:
    node = helper.make_node
    constants = {"w": np.ones((6, 1, 3, 3), np.float32), "v": np.ones((4, 6 * 64), np.float32)}
    constants["u"] = np.ones((6, 3, 1, 1), np.float32)
    nodes = [
        node("Conv", ["x", "u"], ["a"], kernel_shape=[1, 1]),
        node("Conv", ["a", "w"], ["c"], group=6, pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        node("Flatten", ["c"], ["f"]),
        node("Gemm", ["f", "v"], ["y"], transB=1),
    ]
    model = build(nodes, constants, ["n", 3, 8, 8])
    assert AlignChannels(16)(model).model is model


def test_pixels_instead_of_normalized_ones(build: Build) -> None:
    random = np.random.default_rng(2)
    mean, scale = (120.0, 101.5, 127.5), (127.5, 60.0, 55.25)
    constants = {"w": random.normal(size=(5, 3, 3, 3)), "b": random.normal(size=5)}
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], kernel_shape=[3, 3], strides=[2, 2])]
    model = build(nodes, {name: value.astype(np.float32) for name, value in constants.items()}, ["n", 3, 17, 17])
    pixels = random.integers(0, 256, (2, 3, 17, 17)).astype(np.float32)
    normalized = (pixels - np.reshape(mean, (1, 3, 1, 1))) / np.reshape(scale, (1, 3, 1, 1))
    fold = FoldNormalization(mean, scale)
    assert fold.applies(model)
    found = run_model(fold(model).model, pixels - CENTER)
    np.testing.assert_allclose(found, run_model(model, normalized.astype(np.float32)), atol=2e-4)


def test_an_input_that_something_else_reads_keeps_its_normalization(build: Build) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    model = build(nodes, {}, ["n", 3, 8, 8])
    assert not FoldNormalization((127.5,) * 3, (127.5,) * 3).applies(model)


def pixel_network(width: int, kernel: int = 3, stride: int = 2) -> onnx.ModelProto:
    random = np.random.default_rng(3)
    values = {
        "one": np.float32(1),
        "zp": np.uint8(128),
        "w": random.integers(-127, 128, (6, 3, kernel, kernel)).astype(np.int8),
        "ws": random.uniform(0.5, 2, 6).astype(np.float32),
        "wz": np.int8(0),
        "ys": np.float32(250),
        "yz": np.uint8(7),
        "b": random.integers(-9999, 9999, 6).astype(np.int32),
    }
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "QLinearConv",
            ["t", "one", "zp", "w", "ws", "wz", "ys", "yz", "b"],
            ["y"],
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[kernel // 2] * 4,
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "pixels",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 8, width, 3])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_four_pixels_at_a_time_give_the_same_bits() -> None:
    model = pixel_network(16)
    result = GroupPixels()(model)
    assert result.modified
    images = np.random.default_rng(4).integers(0, 256, (3, 8, 16, 3), np.uint8)
    for optimize in (True, False):
        assert (run_model(result.model, images, optimize=optimize) == run_model(model, images)).all()


@pytest.mark.parametrize(("width", "kernel", "stride"), [(18, 3, 2), (16, 5, 2), (16, 3, 1)])
def test_other_first_convolutions_stay(width: int, kernel: int, stride: int) -> None:
    model = pixel_network(width, kernel, stride)
    assert GroupPixels()(model).model is model

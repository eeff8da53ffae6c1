"""Channels of one range: the output stays, and what the pass says of each channel is true."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pfld_edge_convert.model_file import run_model
from pfld_edge_convert.passes.int8_preparation import EqualizeChannels
from pfld_edge_convert.quantization.ranges import activations
from pfld_edge_runtime.arrays import Float32Array, Float64Array

Build = Callable[..., onnx.ModelProto]
Array = NDArray[np.generic]

MADE = ["c1", "r1", "d1", "rd", "ghost", "c2", "c3", "r3", "sum", "mean"]
SEEN = ["r1", "rd", "c2", "r3", "sum"]
SAME = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}


def ghost(build: Build, seed: int, activation: str = "Relu") -> onnx.ModelProto:
    """Stem, depthwise convolution, Concat[x, DW(x)], 1x1, a residual, pooled head; channels of unlike size."""
    random, node = np.random.default_rng(seed), helper.make_node
    shapes = {"w1": (5, 3, 3, 3), "wd": (5, 1, 3, 3), "w2": (4, 10, 1, 1), "w3": (4, 4, 1, 1), "wf": (6, 4)}
    constants: dict[str, Array] = {}
    for name, shape in shapes.items():
        sizes = 5.0 ** random.uniform(-1, 1, shape[0])
        constants[name] = (random.normal(size=shape) * sizes.reshape(-1, *[1] * (len(shape) - 1))).astype(np.float32)
        constants[f"b{name[1]}"] = (random.uniform(0.1, 1, shape[0]) * sizes).astype(np.float32)
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], strides=[2, 2], **SAME),
        node(activation, ["c1"], ["r1"]),
        node("Conv", ["r1", "wd", "bd"], ["d1"], group=5, **SAME),
        node("Relu", ["d1"], ["rd"]),
        node("Concat", ["r1", "rd"], ["ghost"], axis=1),
        node("Conv", ["ghost", "w2", "b2"], ["c2"], kernel_shape=[1, 1]),
        node("Conv", ["c2", "w3", "b3"], ["c3"], kernel_shape=[1, 1]),
        node("Relu", ["c3"], ["r3"]),
        node("Add", ["c2", "r3"], ["sum"]),
        node("GlobalAveragePool", ["sum"], ["mean"]),
        node("Flatten", ["mean"], ["flat"]),
        node("Gemm", ["flat", "wf", "bf"], ["y"], transB=1),
    ]
    return build(nodes, constants, ["n", 3, 10, 10])


def samples(seed: int = 1) -> Float32Array:
    return np.random.default_rng(seed).normal(size=(6, 3, 10, 10)).astype(np.float32)


def shown(model: onnx.ModelProto, names: list[str]) -> dict[str, Float32Array]:
    (tensors,) = activations(model, names, [samples()])
    return tensors


def reach(model: onnx.ModelProto, names: list[str]) -> dict[str, Float64Array]:
    return {
        name: np.abs(values).max(axis=(0, *range(2, values.ndim))).astype(np.float64)
        for name, values in shown(model, names).items()
    }


def assert_same_output(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    expected = run_model(before, samples(7))
    np.testing.assert_allclose(run_model(after, samples(7)), expected, atol=1e-5 * max(1, np.abs(expected).max()))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), strength=st.floats(0, 1), dead=st.booleans())
def test_the_output_stays_and_the_divisors_are_true(build: Build, seed: int, strength: float, dead: bool) -> None:
    model = ghost(build, seed)
    ranges = reach(model, SEEN)
    if dead:
        ranges["r1"][0] = 0.0
    before = model.SerializeToString()
    equalize = EqualizeChannels(ranges, strength)
    result = equalize(model)
    assert result.modified
    assert model.SerializeToString() == before
    onnx.checker.check_model(result.model, full_check=True)
    assert_same_output(model, result.model)
    old, new = shown(model, MADE), shown(result.model, MADE)
    for name in MADE:
        divisor = equalize.divisors[name].reshape(-1, *[1] * (old[name].ndim - 2))
        assert (divisor > 0).all()
        expected = old[name] / divisor
        np.testing.assert_allclose(new[name], expected, atol=2e-5 * np.abs(expected).max())


def test_ranges_are_levelled_each_half_of_a_concat_for_itself(build: Build) -> None:
    model = ghost(build, 11)
    levelled = ["r1", "rd", "sum"]
    before = reach(model, levelled)
    after = reach(EqualizeChannels(before)(model).model, levelled)
    for name in levelled:
        assert before[name].max() > 3 * before[name].min()
        # Nobody is made larger than the largest was.
        np.testing.assert_allclose(after[name], before[name].max(), rtol=1e-4)


def test_less_strength_levels_less(build: Build) -> None:
    model = ghost(build, 11)
    ranges = reach(model, ["r1"])
    spreads = []
    for strength in (1.0, 0.75, 0.5):
        found = reach(EqualizeChannels(ranges, strength)(model).model, ["r1"])["r1"]
        spreads.append(found.max() / found.min())
    assert 1 <= spreads[0] < spreads[1] < spreads[2]


def two_channels(build: Build, activation: str = "Relu") -> onnx.ModelProto:
    """A channel of size 8, read with weight 2, and one of size 1, read with weight 3."""
    constants = {
        "w1": np.array([8, 1], np.float32).reshape(2, 1, 1, 1),
        "b1": np.array([4, 0.5], np.float32),
        "w2": np.array([[2, 3]], np.float32).reshape(1, 2, 1, 1),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c"], kernel_shape=[1, 1]),
        helper.make_node(activation, ["c"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["y"], kernel_shape=[1, 1]),
    ]
    return build(nodes, constants, ["n", 1, 2, 2])


@pytest.mark.parametrize("activation", ["Identity", "Relu"])
def test_channels_of_negative_values_are_negated_unless_an_operator_tells_signs_apart(
    build: Build, activation: str
) -> None:
    model = two_channels(build, activation)
    equalize = EqualizeChannels({"r": np.array([8.0, -1.0])})
    result = equalize(model).model
    inputs = np.random.default_rng(0).normal(size=(3, 1, 2, 2)).astype(np.float32)
    np.testing.assert_allclose(run_model(result, inputs), run_model(model, inputs), rtol=1e-5)
    np.testing.assert_allclose(equalize.divisors["r"], [1, 1 / 8 if activation == "Relu" else -1 / 8])


@pytest.mark.parametrize(
    ("seen", "strength", "share"),
    [
        ([8, 1], 1.0, 1 / 8),
        # Square roots: range over weight is 8 / 2 against 1 / 3, so 1 / 12.
        ([8, 1], 0.5, 12**-0.5),
        # No channel is blown up more than 64 times.
        ([1000, 1], 1.0, 1 / 64),
        ([5, 0], 1.0, 1 / 64),
    ],
)
def test_two_channels_by_hand(build: Build, seen: list[float], strength: float, share: float) -> None:
    equalize = EqualizeChannels({"r": np.array(seen, np.float64)}, strength)
    model = equalize(two_channels(build)).model
    found = {tensor.name: numpy_helper.to_array(tensor).ravel() for tensor in model.graph.initializer}
    np.testing.assert_allclose(equalize.divisors["r"], [1, share])
    np.testing.assert_allclose(found["w1"], [8, 1 / share], rtol=1e-6)
    np.testing.assert_allclose(found["b1"], [4, 0.5 / share], rtol=1e-6)
    np.testing.assert_allclose(found["w2"], [2, 3 * share], rtol=1e-6)


@pytest.mark.parametrize("activation", ["Sigmoid", "HardSwish", "Tanh"])
def test_an_operator_that_is_not_linear_keeps_its_channels(build: Build, activation: str) -> None:
    lone = two_channels(build, activation)
    assert not EqualizeChannels({"r": np.array([8.0, 1.0])})(lone).modified
    model = ghost(build, 3, activation)
    equalize = EqualizeChannels(reach(model, SEEN))
    result = equalize(model)
    assert (equalize.divisors["c1"] == 1).all()
    assert (equalize.divisors["r1"] == 1).all()
    # What is behind the depthwise convolution may still be scaled.
    assert (equalize.divisors["rd"] != 1).any()
    assert (equalize.divisors["ghost"][:5] == 1).all()
    assert_same_output(model, result.model)


def test_leaky_relu_and_mean_pooling_pass_factors_on(build: Build) -> None:
    constants = {
        "w1": np.array([[4, 1, 0], [0, 1, 0.5]], np.float32).reshape(2, 3, 1, 1),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], kernel_shape=[1, 1]),
        helper.make_node("LeakyRelu", ["c"], ["r"], alpha=0.2),
        helper.make_node("AveragePool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w2s"], ["y"], transB=1),
    ]
    constants["w2s"] = np.random.default_rng(0).normal(size=(3, 2 * 25)).astype(np.float32)
    model = build(nodes, constants, ["n", 3, 10, 10])
    equalize = EqualizeChannels({"r": np.array([10.0, 2.5])})
    result = equalize(model)
    np.testing.assert_allclose(equalize.divisors["f"], np.repeat([1, 0.25], 25))
    assert_same_output(model, result.model)


def test_outputs_of_the_graph_are_not_touched(build: Build) -> None:
    model = ghost(build, 5)
    model.graph.output.append(helper.make_tensor_value_info("r1", 1, ["n", 5, 5, 5]))
    equalize = EqualizeChannels(reach(model, SEEN))
    result = equalize(model).model
    for name in ("x", "r1", "c1", "y"):
        assert (equalize.divisors[name] == 1).all()
    np.testing.assert_allclose(shown(result, ["r1"])["r1"], shown(model, ["r1"])["r1"], rtol=1e-6)
    assert_same_output(model, result)


def test_a_weight_that_two_layers_share_becomes_two(build: Build) -> None:
    weight = np.random.default_rng(8).normal(size=(3, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], kernel_shape=[1, 1]),
        helper.make_node("Relu", ["a"], ["ra"]),
        helper.make_node("Conv", ["ra", "w"], ["b"], kernel_shape=[1, 1]),
        helper.make_node("Relu", ["b"], ["rb"]),
        helper.make_node("Conv", ["rb", "w"], ["y"], kernel_shape=[1, 1]),
    ]
    model = build(nodes, {"w": weight}, ["n", 3, 10, 10])
    result = EqualizeChannels({"ra": np.array([1.0, 2.0, 4.0]), "rb": np.array([3.0, 1.0, 2.0])})(model)
    assert len({node.input[1] for node in result.model.graph.node if node.op_type == "Conv"}) == 3
    assert_same_output(model, result.model)


def test_without_ranges_nothing_changes(build: Build) -> None:
    model = ghost(build, 2)
    assert EqualizeChannels({})(model).model is model
    assert EqualizeChannels({"unheard of": np.ones(3)})(model).model is model

"""The last Gemm takes uint8 features by int8 weights, and answers in float."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from pfld_edge_convert.inference import run_model
from pfld_edge_convert.integer_head import use_integer_head

Build = Callable[..., onnx.ModelProto]


def network(build: Build, random: np.random.Generator, weight: np.ndarray, order: str) -> onnx.ModelProto:
    constants = {
        "scale": np.array(random.uniform(0.005, 0.05), np.float32),
        "zero": np.array(random.integers(0, 256), np.uint8),
        "w": weight.astype(np.float32),
        "b": (random.normal(size=len(weight)) * random.choice([0, 1, 100])).astype(np.float32),
    }
    node, scale = helper.make_node, ["scale", "zero"]
    dequantize = [node("DequantizeLinear", ["q", *scale], ["d"]), node("Flatten", ["d"], ["f"], axis=1)]
    if order == "flatten first":
        dequantize = [node("Flatten", ["q"], ["d"], axis=1), node("DequantizeLinear", ["d", *scale], ["f"])]
    nodes = [node("QuantizeLinear", ["x", *scale], ["q"]), *dequantize, node("Gemm", ["f", "w", "b"], ["y"], transB=1)]
    return build(nodes, constants, ["batch", 3, 2, 2])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    order=st.sampled_from(["flatten first", "flatten last"]),
    magnitude=st.sampled_from([1e-4, 1.0, 30.0]),
    largest=st.sampled_from([127, 63]),
)
def test_only_the_rounding_of_weights_is_felt(
    build: Build, seed: int, order: str, magnitude: float, largest: int
) -> None:
    random = np.random.default_rng(seed)
    weight = random.normal(size=(5, 12)) * magnitude
    weight[2] = 0
    model = network(build, random, weight, order)
    result = use_integer_head(model, largest)
    onnx.checker.check_model(result)
    assert [node.op_type for node in result.graph.node] == ["QuantizeLinear", "Flatten", "QGemm"]
    inputs = random.normal(size=(3, 3, 2, 2)).astype(np.float32)
    found, expected = run_model(result, inputs), run_model(model, inputs)
    # Half a step of each weight times the largest feature, and half a step of the bias.
    steps = np.abs(weight).max(axis=1) / largest
    allowed = 0.5 * steps * 12 * 255 * 0.05 + 1e-3
    assert (np.abs(found - expected) <= allowed).all()


def test_a_head_that_reads_anything_else_stays(build: Build) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Gemm", ["r", "w"], ["y"], transB=1)]
    model = build(nodes, {"w": np.ones((2, 4), np.float32)}, ["batch", 4])
    assert use_integer_head(model) is model


def test_seven_bit_weights_stay_within_63(build: Build) -> None:
    random = np.random.default_rng(0)
    result = use_integer_head(network(build, random, random.normal(size=(5, 12)), "flatten last"), 63)
    integers = next(onnx.numpy_helper.to_array(item) for item in result.graph.initializer if "weight_int8" in item.name)
    assert np.abs(integers.astype(int)).max() == pytest.approx(63)

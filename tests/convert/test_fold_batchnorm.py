"""BatchNorm disappears into the convolution before it."""

from collections.abc import Callable

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from pfld_edge_convert.inference import run_model
from pfld_edge_convert.passes import FoldBatchNorm

Build = Callable[..., onnx.ModelProto]


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

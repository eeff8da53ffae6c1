"""Additions of 8-bit tensors: exact in float32, and so the same on every processor."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_convert.inference import run_model
from pfld_edge_convert.passes.graph_index import GraphIndex
from pfld_edge_convert.quantization.exact_sums import exact_sums
from pfld_edge_convert.quantization.grid import LEVELS, Grid

Build = Callable[..., onnx.ModelProto]

SUMS = {"y1": ("cat", "c"), "y2": ("d", "y1"), "y3": ("y2", "e"), "y4": ("f", "y3")}
TENSORS = ["a", "b", "cat", "c", "d", "e", "f", *SUMS]


def chain(build: Build) -> onnx.ModelProto:
    """Four sums one after the other, the first of a concatenation."""
    names = ["a", "b", "c", "d", "e", "f"]
    outputs = {"a": 2, "b": 2}
    constants = {f"w{name}": np.ones((outputs.get(name, 4), 3, 1, 1), np.float32) for name in names}
    nodes = [helper.make_node("Conv", ["x", f"w{name}"], [name], kernel_shape=[1, 1]) for name in names]
    nodes.append(helper.make_node("Concat", ["a", "b"], ["cat"], axis=1))
    nodes += [helper.make_node("Add", list(pair), [name]) for name, pair in SUMS.items()]
    nodes.append(helper.make_node("Relu", ["y4"], ["y"]))
    return build(nodes, constants, ["n", 3, 4, 4])


def random_grids(random: np.random.Generator) -> dict[str, Grid]:
    ends = 10.0 ** random.uniform(-2, 2, (len(TENSORS), 2))
    grids = {
        name: Grid.covering(-low * random.integers(0, 2), high) for name, (low, high) in zip(TENSORS, ends, strict=True)
    }
    return grids | {"a": grids["cat"], "b": grids["cat"]}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_ratios_are_short_and_grids_hardly_wider(build: Build, seed: int) -> None:
    before = random_grids(np.random.default_rng(seed))
    after = exact_sums(GraphIndex(chain(build)), before)
    assert after["a"] == after["b"] == after["cat"]
    for name, grid in after.items():
        assert 1 <= grid.scale / before[name].scale <= 1.126
        assert grid.scale == float(np.float32(grid.scale))
        # Rounding the zero point may take half a step from one end.
        assert grid.low <= before[name].low + grid.scale / 2
        assert grid.high >= before[name].high - grid.scale / 2
        assert (grid.low < 0) == (before[name].low < 0)
    for name, pair in SUMS.items():
        for summand in pair:
            ratio = Fraction(after[summand].scale) / Fraction(after[name].scale)
            assert Fraction(float(np.float32(after[summand].scale) / np.float32(after[name].scale))) == ratio
            numerator = ratio.numerator
            while numerator % 2 == 0:
                numerator //= 2
            assert numerator < 64


@pytest.mark.parametrize("seed", range(4))
def test_onnxruntime_adds_as_rational_numbers_say(build: Build, seed: int) -> None:
    grids = exact_sums(GraphIndex(chain(build)), random_grids(np.random.default_rng(seed)))
    for name, pair in SUMS.items():
        left, right, result = (grids[tensor] for tensor in (*pair, name))
        found = run_model(addition(left, right, result), np.arange(256, dtype=np.uint8)[:, None])
        unit = Fraction(result.scale)
        ratios = [Fraction(grid.scale) / unit for grid in (left, right)]
        expected = [
            round(ratios[0] * (a - left.zero_point) + ratios[1] * (b - right.zero_point) + result.zero_point)
            for a in range(0, 256, 5)
            for b in range(256)
        ]
        np.testing.assert_array_equal(found[::5].ravel(), np.clip(expected, 0, LEVELS))


def addition(left: Grid, right: Grid, result: Grid) -> onnx.ModelProto:
    """All of 0..255 on the right for each input on the left."""
    constants = {"all": np.arange(256, dtype=np.uint8)[None]}
    for name, grid in (("a", left), ("b", right), ("y", result)):
        constants |= {f"s{name}": np.float32(grid.scale), f"z{name}": np.uint8(grid.zero_point)}
    node = helper.make_node(
        "QLinearAdd", ["x", "sa", "za", "all", "sb", "zb", "sy", "zy"], ["y"], domain="com.microsoft"
    )
    graph = helper.make_graph(
        [node],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 1])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_a_graph_without_sums_keeps_its_grids(build: Build) -> None:
    model = build([helper.make_node("Relu", ["x"], ["y"])], {}, ["n", 3, 4, 4])
    grids = {"x": Grid.covering(-1, 3)}
    assert exact_sums(GraphIndex(model), grids) == grids

"""Additions of 8-bit tensors: never near the border of two steps, and so the same on every processor."""

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
from pfld_edge_convert.quantization.clear_sums import PARTS, clear_sums
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
    # A summand that is ten times its sum would need more digits than float32 has; networks have none.
    ends = 10.0 ** random.uniform(-0.4, 0.4, (len(TENSORS), 2))
    grids = {
        name: Grid.covering(-low * random.integers(0, 2), high) for name, (low, high) in zip(TENSORS, ends, strict=True)
    }
    return grids | {"a": grids["cat"], "b": grids["cat"]}


def parts(summand: Grid, result: Grid) -> int:
    """How many parts of a step of the sum a step of the summand is; close to a whole number."""
    exact = Fraction(summand.scale) / Fraction(result.scale) * PARTS
    assert abs(exact - round(exact)) < exact * Fraction(1, 10**6)
    return round(exact)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_ratios_are_whole_parts_and_grids_hardly_wider(build: Build, seed: int) -> None:
    before = random_grids(np.random.default_rng(seed))
    after = clear_sums(GraphIndex(chain(build)), before)
    assert after["a"] == after["b"] == after["cat"]
    assert after["y4"] == before["y4"]
    for name, grid in after.items():
        assert grid.scale == float(np.float32(grid.scale))
        # Rounding the zero point may take half a step from one end.
        assert grid.low <= before[name].low + grid.scale / 2
        assert grid.high >= before[name].high - grid.scale / 2
        assert (grid.low < 0) == (before[name].low < 0)
    for name, pair in SUMS.items():
        for summand in pair:
            assert parts(after[summand], after[name]) >= 1
            more = after[summand].scale - before[summand].scale
            assert -1e-6 * after[name].scale <= more <= 1.001 * after[name].scale / PARTS


@pytest.mark.parametrize("seed", range(8))
def test_onnxruntime_adds_as_whole_numbers_say(build: Build, seed: int) -> None:
    grids = clear_sums(GraphIndex(chain(build)), random_grids(np.random.default_rng(seed)))
    steps = np.arange(256)
    for name, pair in SUMS.items():
        left, right, result = (grids[tensor] for tensor in (*pair, name))
        found = run_model(addition(left, right, result), steps.astype(np.uint8)[:, None])
        sums = parts(left, result) * (steps[:, None] - left.zero_point) + parts(right, result) * (
            steps[None] - right.zero_point
        )
        # Whole numbers: (2 s + n) // 2 n is s / n, rounded; halves do not occur, for n is odd.
        rounded = (2 * sums + PARTS) // (2 * PARTS) + result.zero_point
        np.testing.assert_array_equal(found, np.clip(rounded, 0, LEVELS))


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
    assert clear_sums(GraphIndex(model), grids) == grids

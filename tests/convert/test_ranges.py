"""Grids, histograms, range methods and the scales of additions, against numpy and onnxruntime."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_convert.model_file import run_model
from pfld_edge_convert.passes.base import GraphIndex
from pfld_edge_convert.quantization.plan import LEVELS, Grid
from pfld_edge_convert.quantization.ranges import (
    ADDITION_PARTS,
    BINS,
    RANGE_METHODS,
    ChannelHistogram,
    align_addition_scales,
    estimate_range,
)

Array = np.ndarray
Build = Callable[..., onnx.ModelProto]


@settings(max_examples=60, deadline=None)
@given(low=st.floats(-1e4, 1e4), high=st.floats(-1e4, 1e4))
def test_a_grid_holds_zero_and_both_ends(low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    grid = Grid.covering(low, high)
    slack = 1e-6 * (grid.high - grid.low)
    assert grid.low <= min(low, 0) + slack
    assert grid.high >= max(high, 0) - slack
    assert grid.dequantize(grid.quantize(np.zeros(1, np.float32)))[0] == 0
    values = np.linspace(min(low, 0), max(high, 0), 999).astype(np.float32)
    assert np.abs(grid.dequantize(grid.quantize(values)) - values).max() <= grid.scale * 0.5001 + slack


def test_a_grid_rounds_as_onnxruntime_does() -> None:
    grid = Grid.covering(-1.3, 2.9)
    values = np.random.default_rng(0).normal(0, 2, (1, 5000)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])],
        "round",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5000])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, ["n", 5000])],
        [
            numpy_helper.from_array(np.float32(grid.scale), "s"),
            numpy_helper.from_array(np.uint8(grid.zero_point), "z"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    assert (run_model(model, values) == grid.quantize(values)).all()


def counted(batches: list[Array]) -> ChannelHistogram:
    histogram = ChannelHistogram(batches[0].shape[1])
    for batch in batches:
        histogram.add(batch)
    return histogram


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), magnitudes=st.lists(st.floats(0, 1e3), min_size=1, max_size=5))
def test_nothing_that_was_seen_is_lost(seed: int, magnitudes: list[float]) -> None:
    random = np.random.default_rng(seed)
    batches = [(random.normal(size=(2, 3, 4, 5)) * size).astype(np.float32) for size in magnitudes]
    histogram, values = counted(batches), np.concatenate(batches)
    assert histogram.counts.shape == (3, BINS)
    assert (histogram.counts.sum(axis=1) == values[:, 0].size).all()
    np.testing.assert_array_equal(histogram.low, values.min(axis=(0, 2, 3)))
    np.testing.assert_array_equal(histogram.high, values.max(axis=(0, 2, 3)))
    # Each value lies in its bin: sums agree to half a bin a value.
    sums = (histogram.counts * histogram.centers()).sum(axis=1)
    error = np.abs(sums - values.sum(axis=(0, 2, 3), dtype=np.float64))
    assert (error <= values[:, 0].size * (0.51 * histogram.width) + 1e-9).all()


def test_dividing_a_histogram_is_dividing_the_values() -> None:
    values = np.random.default_rng(3).normal(size=(6, 4, 5, 5)).astype(np.float32)
    scales = np.array([0.5, -1, 2, -8.0])
    found = counted([values]).divided(scales)
    expected = counted([(values / scales.reshape(1, 4, 1, 1)).astype(np.float32)])
    np.testing.assert_array_equal(found.counts, expected.counts)
    for method in ("minmax", "mse", "percentile:99", "faces:80"):
        np.testing.assert_allclose(estimate_range(found, method), estimate_range(expected, method), rtol=1e-5)


def test_methods_against_numpy() -> None:
    random = np.random.default_rng(4)
    batches = [random.normal(size=(8, 2, 9, 9)).astype(np.float32) for _ in range(4)]
    histogram, values = counted(batches), np.concatenate(batches)
    rows = values.transpose(1, 0, 2, 3).reshape(2, -1)
    np.testing.assert_allclose(estimate_range(histogram, "minmax"), [rows.min(axis=1), rows.max(axis=1)])
    low, high = estimate_range(histogram, "percentile:98")
    np.testing.assert_allclose(low, np.quantile(rows, 0.01, axis=1), atol=4 * histogram.width.max())
    np.testing.assert_allclose(high, np.quantile(rows, 0.99, axis=1), atol=4 * histogram.width.max())
    average = batches[0].max(axis=(0, 2, 3)).astype(np.float64)
    for batch in batches[1:]:
        average += 0.1 * (batch.max(axis=(0, 2, 3)) - average)
    np.testing.assert_allclose(estimate_range(histogram, "moving-average")[1], average, rtol=1e-6)


def test_mse_clips_a_heavy_tail_where_that_is_better() -> None:
    values = np.random.default_rng(5).normal(size=(300, 1, 28, 28)).astype(np.float32)
    values[3, 0, 4, 5] = 30
    histogram = counted([values])

    def error(method: str) -> float:
        (low,), (high,) = estimate_range(histogram, method)
        grid = Grid.covering(low, high)
        return float(np.square(grid.dequantize(grid.quantize(values)) - values).mean())

    assert error("mse") < 0.8 * error("minmax")
    (low,), (high,) = estimate_range(histogram, "entropy")
    assert values.min() <= low < 0 < high <= values.max()


def test_one_odd_face_does_not_widen_what_the_faces_hold() -> None:
    values = np.random.default_rng(6).uniform(0, 1, (100, 3, 4, 4)).astype(np.float32)
    values[17] *= 60
    histogram = counted([values])
    assert estimate_range(histogram, "minmax")[1].min() > 40
    assert estimate_range(histogram, "faces:98")[1].max() < 2.3
    with pytest.raises(ValueError, match="knows no faces"):
        estimate_range(histogram.merged(), "faces:98")


def test_a_merged_histogram_counts_all_channels() -> None:
    values = np.random.default_rng(7).normal(size=(5, 6, 7, 7)).astype(np.float32)
    values[:, 3] *= 40
    merged = counted([values]).merged()
    assert merged.counts.sum() == values.size
    assert estimate_range(merged, "minmax")[1][0] == values.max()


def test_an_unknown_method_is_refused_and_all_known_work_on_zeros() -> None:
    histogram = counted([np.zeros((2, 3, 2, 2), np.float32)])
    for method in RANGE_METHODS:
        assert all((np.abs(end) == 0).all() for end in estimate_range(histogram, method))
    with pytest.raises(ValueError, match="unknown; known are minmax"):
        estimate_range(histogram, "guess")


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
    exact = Fraction(summand.scale) / Fraction(result.scale) * ADDITION_PARTS
    assert abs(exact - round(exact)) < exact * Fraction(1, 10**6)
    return round(exact)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_ratios_are_whole_parts_and_grids_hardly_wider(build: Build, seed: int) -> None:
    before = random_grids(np.random.default_rng(seed))
    after = align_addition_scales(GraphIndex(chain(build)), before)
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
            assert -1e-6 * after[name].scale <= more <= 1.001 * after[name].scale / ADDITION_PARTS


@pytest.mark.parametrize("seed", range(8))
def test_onnxruntime_adds_as_whole_numbers_say(build: Build, seed: int) -> None:
    grids = align_addition_scales(GraphIndex(chain(build)), random_grids(np.random.default_rng(seed)))
    steps = np.arange(256)
    for name, pair in SUMS.items():
        left, right, result = (grids[tensor] for tensor in (*pair, name))
        found = run_model(addition(left, right, result), steps.astype(np.uint8)[:, None])
        sums = parts(left, result) * (steps[:, None] - left.zero_point) + parts(right, result) * (
            steps[None] - right.zero_point
        )
        # Whole numbers: (2 s + n) // 2 n is s / n, rounded; halves do not occur, for n is odd.
        rounded = (2 * sums + ADDITION_PARTS) // (2 * ADDITION_PARTS) + result.zero_point
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
    assert align_addition_scales(GraphIndex(model), grids) == grids

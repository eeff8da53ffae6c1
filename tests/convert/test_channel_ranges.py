"""Grids, histograms and range methods against numpy and onnxruntime."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_convert.inference import run_model
from pfld_edge_convert.quantization.grid import Grid
from pfld_edge_convert.quantization.histogram import BINS, ChannelHistogram
from pfld_edge_convert.quantization.ranges import RANGE_METHODS, estimate

Array = np.ndarray


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
    scales = np.array([0.5, 1, 2, 8.0])
    found = counted([values]).divided(scales)
    expected = counted([(values / scales.reshape(1, 4, 1, 1)).astype(np.float32)])
    np.testing.assert_array_equal(found.counts, expected.counts)
    for method in ("minmax", "mse", "percentile:99", "faces:80"):
        np.testing.assert_allclose(estimate(found, method), estimate(expected, method), rtol=1e-5)


def test_methods_against_numpy() -> None:
    random = np.random.default_rng(4)
    batches = [random.normal(size=(8, 2, 9, 9)).astype(np.float32) for _ in range(4)]
    histogram, values = counted(batches), np.concatenate(batches)
    rows = values.transpose(1, 0, 2, 3).reshape(2, -1)
    np.testing.assert_allclose(estimate(histogram, "minmax"), [rows.min(axis=1), rows.max(axis=1)])
    low, high = estimate(histogram, "percentile:98")
    np.testing.assert_allclose(low, np.quantile(rows, 0.01, axis=1), atol=4 * histogram.width.max())
    np.testing.assert_allclose(high, np.quantile(rows, 0.99, axis=1), atol=4 * histogram.width.max())
    average = batches[0].max(axis=(0, 2, 3)).astype(np.float64)
    for batch in batches[1:]:
        average += 0.1 * (batch.max(axis=(0, 2, 3)) - average)
    np.testing.assert_allclose(estimate(histogram, "moving-average")[1], average, rtol=1e-6)


def test_mse_clips_a_heavy_tail_where_that_is_better() -> None:
    values = np.random.default_rng(5).normal(size=(300, 1, 28, 28)).astype(np.float32)
    values[3, 0, 4, 5] = 30
    histogram = counted([values])

    def error(method: str) -> float:
        (low,), (high,) = estimate(histogram, method)
        grid = Grid.covering(low, high)
        return float(np.square(grid.dequantize(grid.quantize(values)) - values).mean())

    assert error("mse") < 0.8 * error("minmax")
    (low,), (high,) = estimate(histogram, "entropy")
    assert values.min() <= low < 0 < high <= values.max()


def test_one_odd_face_does_not_widen_what_the_faces_hold() -> None:
    values = np.random.default_rng(6).uniform(0, 1, (100, 3, 4, 4)).astype(np.float32)
    values[17] *= 60
    histogram = counted([values])
    assert estimate(histogram, "minmax")[1].min() > 40
    assert estimate(histogram, "faces:98")[1].max() < 2.3
    with pytest.raises(ValueError, match="knows no faces"):
        estimate(histogram.merged(), "faces:98")


def test_a_merged_histogram_counts_all_channels() -> None:
    values = np.random.default_rng(7).normal(size=(5, 6, 7, 7)).astype(np.float32)
    values[:, 3] *= 40
    merged = counted([values]).merged()
    assert merged.counts.sum() == values.size
    assert estimate(merged, "minmax")[1][0] == values.max()


def test_an_unknown_method_is_refused_and_all_known_work_on_zeros() -> None:
    histogram = counted([np.zeros((2, 3, 2, 2), np.float32)])
    for method in RANGE_METHODS:
        assert all((np.abs(end) == 0).all() for end in estimate(histogram, method))
    with pytest.raises(ValueError, match="unknown; known are minmax"):
        estimate(histogram, "guess")

"""Integer weights: within their limits, and rounded to the output's advantage."""

from fractions import Fraction

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from pfld_edge_convert.model_file import run_model
from pfld_edge_convert.quantization.plan import odd_fraction
from pfld_edge_convert.quantization.reconstruction import (
    Moments,
    in_memory_order,
    input_patches,
    round_nearest,
    round_with_feedback,
)
from pfld_edge_convert.quantization.settings import FULL_RANGE, SATURATION_FREE, WeightLimits

Array = np.ndarray


def largest_pair(integers: Array) -> int:
    """Largest sum of one sign of two neighbours, as VPMADDUBSW sees them: channels fastest, from an even place on."""
    rows = np.moveaxis(integers.astype(int), 1, -1).reshape(len(integers), -1)
    sums = []
    for left, right in zip(rows.T[::2], [*rows.T[1::2], np.zeros(len(rows), int)], strict=False):
        sums += [np.maximum(left, 0) + np.maximum(right, 0), np.maximum(-left, 0) + np.maximum(-right, 0)]
    return int(np.max(sums))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    channels=st.integers(1, 7),
    kernel=st.sampled_from([1, 3]),
    limits=st.sampled_from([FULL_RANGE, SATURATION_FREE]),
    feedback=st.booleans(),
)
def test_weights_stay_within_their_limits(
    seed: int, channels: int, kernel: int, limits: WeightLimits, feedback: bool
) -> None:
    random = np.random.default_rng(seed)
    weight = random.standard_t(2, (5, channels, kernel, kernel))
    weight[2] = 0
    bias = random.normal(size=5) * 10.0 ** random.integers(-3, 9)
    if feedback:
        samples = random.normal(size=(50, channels * kernel**2)) @ random.normal(size=(channels * kernel**2,) * 2)
        result = round_with_feedback(weight, bias, 0.02, limits, samples.T @ samples / 50)
    else:
        result = round_nearest(weight, bias, 0.02, limits)
    assert np.abs(result.integers.astype(int)).max() <= 127
    if limits is SATURATION_FREE:
        assert largest_pair(result.integers) <= 128
        # oneDNN fills the channels of each position up to 4.
        assert largest_pair(np.pad(result.integers, ((0, 0), (0, -channels % 4), (0, 0), (0, 0)))) <= 128
    assert (result.integers[2] == 0).all()
    whole = np.rint(bias / (0.02 * result.scales.astype(np.float64)))
    assert (np.abs(whole) < 2**31).all()
    np.testing.assert_array_equal(result.integer_bias(0.02), whole)
    if not feedback:
        steps = result.scales.reshape(-1, 1, 1, 1)
        assert (np.abs(result.real() - weight) <= 0.5001 * steps).all()


@pytest.mark.parametrize("depthwise", [False, True])
def test_feedback_makes_the_output_closer_than_nearest(depthwise: bool) -> None:
    random = np.random.default_rng(0)
    size = 9 if depthwise else 24
    weight = random.normal(size=(16, 1, 3, 3) if depthwise else (16, 24, 1, 1))
    mixing = random.normal(size=(size, 3))
    samples = random.normal(size=(400, 3)) @ mixing.T + 0.05 * random.normal(size=(400, size))
    moments = samples.T @ samples / 400
    limits = WeightLimits(largest=15)
    fed = np.broadcast_to(moments, (16, 9, 9)) if depthwise else moments
    results = (
        round_nearest(weight, np.zeros(16), 1.0, limits),
        round_with_feedback(weight, np.zeros(16), 1.0, limits, fed),
    )
    exact = in_memory_order(weight) @ samples.T
    nearest, feedback = (np.square(in_memory_order(item.real()) @ samples.T - exact).mean() for item in results)
    assert feedback < 0.3 * nearest


@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "groups", "dilation"),
    [
        *((1, 1, 0, 1, 1), (3, 1, 1, 1, 1), (3, 2, 1, 1, 1), (3, 1, 1, 4, 1), (3, 2, 1, 4, 1)),
        *((3, 1, 1, 2, 1), (3, 2, 2, 1, 2), (3, 1, 2, 2, 2)),
    ],
)
def test_patches_times_weights_is_the_convolution(
    kernel: int, stride: int, pads: int, groups: int, dilation: int
) -> None:
    random = np.random.default_rng(1)
    values = random.normal(size=(2, 4, 6, 6)).astype(np.float32)
    weight = random.normal(size=(4, 4 // groups, kernel, kernel)).astype(np.float32)
    node = helper.make_node(
        "Conv",
        ["x", "w"],
        ["y"],
        kernel_shape=[kernel] * 2,
        strides=[stride] * 2,
        pads=[pads] * 4,
        dilations=[dilation] * 2,
        group=groups,
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", 1, ["n", 4, 6, 6])],
        [helper.make_tensor_value_info("y", 1, None)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    expected = run_model(model, values)
    cut = input_patches(node, values, 10**6, np.random.default_rng(2))
    rows = in_memory_order(weight.astype(np.float64)).reshape(groups, 4 // groups, -1)
    found = np.einsum("gsk,gck->sgc", cut, rows).reshape(-1, 4)
    # All positions in some order: the sums of each face's outputs, and of their squares, agree.
    for power in (1, 2):
        mine = (found**power).reshape(2, -1, 4).sum(axis=1)
        np.testing.assert_allclose(mine, (expected.astype(np.float64) ** power).sum(axis=(2, 3)), rtol=1e-4, atol=1e-4)


def test_moments_are_means_and_covariance_shrunk_where_samples_are_few() -> None:
    random = np.random.default_rng(3)
    found, wanted = (random.normal(size=(300, 5)).astype(np.float32) for _ in range(2))
    moments = Moments()
    for start in range(0, 300, 100):
        moments.add(found[start : start + 100], wanted[start : start + 100])
    mean, expected, covariance, errors = moments.centered()
    np.testing.assert_allclose(mean, found.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(expected, wanted.mean(axis=0), atol=1e-6)
    plain = np.cov(found.T, bias=True)
    np.testing.assert_allclose(np.diag(covariance), np.diag(plain), atol=1e-5)
    off = ~np.eye(5, dtype=bool)
    np.testing.assert_allclose(covariance[off], plain[off] * 300 / 305, atol=1e-5)
    crossed = np.cov((wanted - found).T, found.T, bias=True)[:5, 5:]
    np.testing.assert_allclose(errors, crossed * 300 / 325, atol=1e-5)


@pytest.mark.parametrize(("columns", "mean"), [(32, 1000), (64, 300)])
def test_inputs_that_hardly_vary_about_a_large_mean_are_rounded(columns: int, mean: float) -> None:
    random = np.random.default_rng(0)
    samples = (mean + 1e-3 * random.normal(size=(500, columns))).astype(np.float32)
    moments = Moments()
    moments.add(samples, samples)
    second = moments.centered()[2]
    # What float32 sums leave of it is no covariance.
    assert np.linalg.eigvalsh(second).min() < 0
    weight = random.normal(size=(8, columns, 1, 1))
    result = round_with_feedback(weight, np.zeros(8), 1.0, FULL_RANGE, second)
    steps = result.scales.reshape(-1, 1, 1, 1)
    assert np.abs(result.real() - weight).max() < 3 * steps.max()


def test_weights_that_weight_decay_drove_to_the_smallest_float_become_zero() -> None:
    weight = np.full((2, 4, 1, 1), float(np.float32(1e-45)))
    weight[0] = 1
    result = round_nearest(weight, np.array([0, 0.5]), 1.0, FULL_RANGE)
    assert (result.scales > 0).all()
    np.testing.assert_array_equal(result.integers[:, 0, 0, 0], [127, 0])
    np.testing.assert_allclose(result.integer_bias(1.0) * result.scales, [0, 0.5])


@given(st.floats(2.0**-13, 4))
def test_multiples_of_an_odd_fraction_stay_away_from_halves(least: float) -> None:
    fraction = float(odd_fraction(least))
    assert least <= fraction * (1 + 1e-12)
    assert fraction <= (1.021 * least if least > 1 / 12 else least / (1 - 2 * least) * (1 + 1e-12))
    exact = Fraction(fraction).limit_denominator(2**13)
    assert exact.denominator % 2 == 1
    assert abs(float(exact) - fraction) < 1e-12
    assert exact.numerator == 1 or fraction > 1 / 13
    multiples = np.arange(-4000, 4000) * fraction
    apart = np.abs(multiples - np.floor(multiples) - 0.5)
    assert apart.min() > 0.499 / max(1023, 1 / least)
    assert odd_fraction(1e-9) == 1 / (2**14 - 1)


@pytest.mark.parametrize("feedback", [False, True])
def test_a_layer_rescales_by_odd_fractions(feedback: bool) -> None:
    random = np.random.default_rng(0)
    weight, bias = random.normal(size=(8, 16, 1, 1)), random.normal(size=8)
    if feedback:
        found = round_with_feedback(weight, bias, 0.02, SATURATION_FREE, np.eye(16), 0.05)
    else:
        found = round_nearest(weight, bias, 0.02, SATURATION_FREE, 0.05)
    ratios = found.scales.astype(np.float64) * 0.02 / 0.05
    np.testing.assert_allclose(ratios, odd_fraction(ratios * (1 - 1e-6)), rtol=1e-6)

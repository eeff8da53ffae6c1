"""Narrow tensors are copied, pooled features get products and scales of their own, and the float output stays."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from pfld_edge_convert.model_file import run_model
from pfld_edge_convert.passes.base import GraphIndex
from pfld_edge_convert.passes.features import AveragesAsConvolutions, ConvolvedFeatures, SplitProducts
from pfld_edge_convert.passes.int8_preparation import CopyChannels
from pfld_edge_convert.quantization.plan import copy_offsets, integer_tensors, weighted_layers

Build = Callable[..., onnx.ModelProto]
node = helper.make_node


def bottleneck(build: Build, wide: int, narrow: int = 2) -> onnx.ModelProto:
    """A wide map, `narrow` channels with a depthwise convolution of them beside, two averages of maps."""
    random, pooled = np.random.default_rng(0), wide + 2 * narrow
    shapes: dict[str, tuple[int, ...]] = {
        "a": (wide, 3, 3, 3),
        "b": (wide, wide, 1, 1),
        "c": (narrow, wide, 1, 1),
        "d": (narrow, 1, 3, 3),
    }
    shapes["e"] = (5, pooled)
    constants = {f"w{name}": random.normal(size=shape).astype(np.float32) / 8 for name, shape in shapes.items()}
    constants |= {f"b{name}": random.normal(size=shape[0]).astype(np.float32) for name, shape in shapes.items()}
    same: dict[str, Any] = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    nodes = [
        node("Conv", ["x", "wa", "ba"], ["a"], **same),
        node("Relu", ["a"], ["r"]),
        node("Conv", ["r", "wb", "bb"], ["b"]),
        node("Conv", ["b", "wc", "bc"], ["c"]),
        node("Conv", ["c", "wd", "bd"], ["d"], group=narrow, **same),
        node("Concat", ["c", "d"], ["both"], axis=1),
        *(node("GlobalAveragePool", [name], [f"{name}_mean"]) for name in ("b", "both")),
        *(node("Flatten", [f"{name}_mean"], [f"{name}_flat"]) for name in ("b", "both")),
        node("Concat", ["b_flat", "both_flat"], ["features"], axis=1),
        node("Gemm", ["features", "we", "be"], ["y"], transB=1),
    ]
    return build(nodes, constants, ["n", 3, 4, 4])


SAMPLES = np.random.default_rng(1).normal(size=(7, 3, 4, 4)).astype(np.float32)


def test_narrow_channels_are_there_four_times_and_the_output_stays(build: Build) -> None:
    model = bottleneck(build, 320)
    result = CopyChannels()(model)
    assert result.modified
    onnx.checker.check_model(result.model, full_check=True)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in result.model.graph.initializer}
    assert (shapes["wc"], shapes["wd"], shapes["we"]) == ((8, 320, 1, 1), (8, 1, 3, 3), (5, 336))
    np.testing.assert_allclose(run_model(result.model, SAMPLES), run_model(model, SAMPLES), atol=1e-5)


@pytest.mark.parametrize(("wide", "narrow"), [(320, 17), (20, 2)], ids=["no narrow tensor", "too costly"])
def test_nothing_is_copied(build: Build, wide: int, narrow: int) -> None:
    assert not CopyChannels()(bottleneck(build, wide, narrow)).modified


def test_the_mean_of_copies_is_four_times_as_fine() -> None:
    weight, bias = np.array([[2.0], [2.0], [0.0], [2.0], [0.0], [2.0], [2.0]]), np.array([1.0, 1, 0, 1, 0, 1, 3])
    offsets = copy_offsets(weight, bias)
    assert offsets.tolist() == [-0.375, -0.125, 0, 0.125, 0, 0.375, 0]
    values = np.linspace(-3, 3, 1001)
    rounded = np.rint(values[:, None] + offsets[[0, 1, 3, 5]])
    assert np.abs(rounded.mean(axis=1) - values).max() <= 1 / 8 + 1e-9


def test_each_source_of_features_gets_a_product_and_each_small_average_a_convolution(build: Build) -> None:
    model = bottleneck(build, 320)
    split = SplitProducts()(model).model
    result = AveragesAsConvolutions()(split).model
    onnx.checker.check_model(result, full_check=True)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in result.graph.initializer}
    assert (shapes["y.part0_w"], shapes["y.part1_w"], shapes["both_mean_w"]) == ((5, 320), (5, 4), (4, 1, 4, 4))
    # 320 x 4 x 4 weights are more than a twenty-fifth of all.
    kinds = {item.output[0]: item.op_type for item in result.graph.node}
    assert (kinds["b_mean"], kinds["both_mean"], kinds["y"]) == ("GlobalAveragePool", "Conv", "Sum")
    np.testing.assert_allclose(run_model(result, SAMPLES), run_model(model, SAMPLES), atol=1e-5)
    assert not SplitProducts()(split).modified
    model.graph.output.append(onnx.ValueInfoProto(name="features"))
    assert not SplitProducts()(model).modified
    split.graph.output.append(onnx.ValueInfoProto(name="both_mean"))
    assert not AveragesAsConvolutions()(split).modified


@pytest.mark.parametrize(("outputs", "kept"), [(5, ["a", "c"]), (120, ["a", "c", "r"])], ids=["small", "large"])
def test_a_small_last_product_reads_features_in_float(build: Build, outputs: int, kept: list[str]) -> None:
    random, shapes = np.random.default_rng(0), {"a": (40, 3, 3, 3), "c": (9, 640), "e": (8, 9), "f": (outputs, 8)}
    constants = {f"w{name}": random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        node("Conv", ["x", "wa"], ["a"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        node("Flatten", ["a"], ["b"]),
        *(node("Gemm", names, [made], transB=1) for names, made in ((["b", "wc"], "c"), (["c", "we"], "e"))),
        node("Relu", ["e"], ["r"]),
        node("Gemm", ["r", "wf"], ["y"], transB=1),
    ]
    index = GraphIndex(build(nodes, constants, ["n", 3, 4, 4]))
    assert integer_tensors(index, weighted_layers(index)) == kept


def features_of_a_pixel(build: Build, outputs: int, activations: Sequence[str], kernel: int = 1) -> onnx.ModelProto:
    """The head of MobileNetV3: an average, a convolution of it, activations, a product."""
    random, width = np.random.default_rng(0), 24
    shapes = {"a": (8, 3, 3, 3), "c": (width, 8, kernel, kernel), "g": (outputs, width)}
    constants = {f"w{name}": random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    constants["bc"] = random.normal(size=width).astype(np.float32)
    names = ["c", *(f"{kind}_{place}" for place, kind in enumerate(activations))]
    nodes = [
        node("Conv", ["x", "wa"], ["a"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        node("GlobalAveragePool", ["a"], ["mean"]),
        node("Conv", ["mean", "wc", "bc"], ["c"], kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4),
        *(node(kind, [read], [made]) for kind, (read, made) in zip(activations, pairwise(names), strict=True)),
        node("Flatten", [names[-1]], ["flat"]),
        node("Gemm", ["flat", "wg"], ["y"], transB=1),
    ]
    return build(nodes, constants, ["n", 3, 4, 4])


@given(activations=st.lists(st.sampled_from(["HardSwish", "Relu", "LeakyRelu", "Sigmoid"]), max_size=2))
@settings(max_examples=20, deadline=None)
def test_features_that_a_convolution_makes_of_one_pixel_come_from_a_product(
    build: Build, activations: list[str]
) -> None:
    model = features_of_a_pixel(build, 2, activations)
    result = ConvolvedFeatures()(model).model
    onnx.checker.check_model(result, full_check=True)
    kinds = [item.op_type for item in result.graph.node]
    assert kinds == ["Conv", "GlobalAveragePool", "Flatten", "Gemm", *activations, "Gemm"]
    np.testing.assert_allclose(run_model(result, SAMPLES), run_model(model, SAMPLES), atol=1e-5)
    assert not ConvolvedFeatures()(features_of_a_pixel(build, 2, activations, kernel=3)).modified
    model.graph.output.append(onnx.ValueInfoProto(name="c"))
    assert not ConvolvedFeatures()(model).modified


@pytest.mark.parametrize(("outputs", "quantized"), [(1, []), (40, ["HardSwish_0"])], ids=["small", "large"])
def test_an_activation_between_the_last_products_is_computed_in_float(
    build: Build, outputs: int, quantized: list[str]
) -> None:
    index = GraphIndex(ConvolvedFeatures()(features_of_a_pixel(build, outputs, ["HardSwish"])).model)
    assert integer_tensors(index, weighted_layers(index)) == ["a", "mean", *quantized]

"""Depthwise convolutions get as many channels as registers hold, and the output stays."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pfld_edge_convert.model_file import run_model
from pfld_edge_convert.passes.base import run_passes
from pfld_edge_convert.passes.int8_preparation import AlignChannels

Build = Callable[..., onnx.ModelProto]
Array = NDArray[np.generic]

SAME = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
node = helper.make_node


def weights(random: np.random.Generator, **shapes: tuple[int, ...]) -> dict[str, Array]:
    """Weights by name, and to each ``w...`` a bias ``b...``."""
    found: dict[str, Array] = {}
    for name, shape in shapes.items():
        found[name] = random.normal(size=shape).astype(np.float32)
        found[f"b{name[1:]}"] = random.normal(size=shape[0]).astype(np.float32)
    return found


def ghost(build: Build, channels: int, seed: int = 0, size: int = 32) -> onnx.ModelProto:
    """Concat[x, DW(x)], a depthwise convolution over it, and a residual over another depthwise convolution."""
    c = channels
    constants = weights(
        np.random.default_rng(seed), w1=(c, 3, 3, 3), wd=(c, 1, 3, 3), we=(2 * c, 1, 3, 3), w2=(5, 2 * c, 1, 1),
        wr=(5, 1, 3, 3), wf=(4, 5),
    )  # fmt: skip
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], **SAME),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "wd", "bd"], ["d1"], group=c, **SAME),
        node("Relu", ["d1"], ["rd"]),
        node("Concat", ["r1", "rd"], ["ghost"], axis=1),
        node("Conv", ["ghost", "we", "be"], ["e"], group=2 * c, **SAME),
        node("Conv", ["e", "w2", "b2"], ["c2"], kernel_shape=[1, 1]),
        node("Conv", ["c2", "wr", "br"], ["dr"], group=5, **SAME),
        node("Add", ["c2", "dr"], ["sum"]),
        node("GlobalAveragePool", ["sum"], ["mean"]),
        node("Flatten", ["mean"], ["flat"]),
        node("Gemm", ["flat", "wf", "bf"], ["y"], transB=1),
    ]
    return build(nodes, constants, ["n", 3, size, size])


def depthwise_groups(model: onnx.ModelProto) -> dict[str, int]:
    found = {}
    for item in model.graph.node:
        group = next((entry.i for entry in item.attribute if entry.name == "group"), 1)
        if group > 1:
            found[item.output[0]] = group
    return found


def constants_of(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def assert_same_output(before: onnx.ModelProto, after: onnx.ModelProto, size: int = 32) -> None:
    inputs = np.random.default_rng(3).normal(size=(2, 3, size, size)).astype(np.float32)
    onnx.checker.check_model(after, full_check=True)
    expected = run_model(before, inputs, optimize=False)
    found = run_model(after, inputs, optimize=False)
    assert np.abs(found - expected).max() <= 1e-6 * max(1, np.abs(expected).max())


@settings(max_examples=20, deadline=None)
@given(channels=st.integers(4, 40), multiple=st.sampled_from([8, 16]), seed=st.integers(0, 2**32 - 1))
def test_every_depthwise_convolution_that_pays_has_a_multiple(
    build: Build, channels: int, multiple: int, seed: int
) -> None:
    model = ghost(build, channels, seed)
    before = model.SerializeToString()
    result = AlignChannels(multiple)(model)
    assert model.SerializeToString() == before
    assert result.modified
    found, old = depthwise_groups(result.model), depthwise_groups(model)
    assert found.keys() == old.keys()
    for name, group in found.items():
        assert group % multiple == 0
        # The residual's own pads can't be more than the multiple asks for.
        assert group >= old[name]
    assert found["dr"] == multiple
    assert found["e"] == 2 * found["d1"]
    assert_same_output(model, result.model)


def test_nothing_but_zeros_is_added_and_partners_have_the_same_layout(build: Build) -> None:
    model = ghost(build, 12)
    result, (report,) = run_passes(
        model, [AlignChannels(16)], np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    )
    assert "3 depthwise convolutions" in report.detail
    old, new = constants_of(model), constants_of(result)
    # What the stem makes, what the depthwise convolution makes of it, and both halves of the concatenation.
    real = np.r_[0:12, 16:28]
    padding = np.setdiff1d(np.arange(32), real)
    assert new["w1"].shape == (16, 3, 3, 3)
    assert new["wd"].shape == (16, 1, 3, 3)
    for name in ("w1", "wd", "b1", "bd"):
        np.testing.assert_array_equal(new[name][:12], old[name])
        assert not new[name][12:].any()
    np.testing.assert_array_equal(new["we"][real], old["we"])
    assert not new["we"][padding].any()
    # Five sums become sixteen, in both of an addition's inputs.
    assert new["w2"].shape == (16, 32, 1, 1)
    np.testing.assert_array_equal(new["w2"][:5][:, real], old["w2"])
    assert not new["w2"][5:].any()
    assert not new["w2"][:, padding].any()
    assert new["wr"].shape == (16, 1, 3, 3)
    assert new["wf"].shape == (4, 16)
    np.testing.assert_array_equal(new["wf"][:, :5], old["wf"])
    assert not new["wf"][:, 5:].any()


def test_a_multiple_stays_the_very_same_model(build: Build) -> None:
    constants = weights(np.random.default_rng(0), w1=(16, 3, 3, 3), wd=(16, 1, 3, 3), w2=(2, 16, 1, 1))
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], **SAME),
        node("Conv", ["c1", "wd", "bd"], ["d1"], group=16, **SAME),
        node("Conv", ["d1", "w2", "b2"], ["y"], kernel_shape=[1, 1]),
    ]
    model = build(nodes, constants, ["n", 3, 32, 32])
    result = AlignChannels(16)(model)
    assert result.model is model
    assert not result.modified
    assert AlignChannels(8)(model).model is model
    aligned = AlignChannels(16)(ghost(build, 12)).model
    assert AlignChannels(16)(aligned).model is aligned


def plain(build: Build, channels: int, size: int, *, flatten: bool) -> onnx.ModelProto:
    """Stem, depthwise convolution, and a head that pools or sees every pixel."""
    columns = channels * size**2 if flatten else channels
    constants = weights(np.random.default_rng(1), w1=(channels, 3, 1, 1), wd=(channels, 1, 3, 3), wf=(2, columns))
    pooled = [] if flatten else [node("GlobalAveragePool", ["d"], ["p"])]
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], kernel_shape=[1, 1]),
        node("Conv", ["c1", "wd", "bd"], ["d"], group=channels, **SAME),
        *pooled,
        node("Flatten", ["d" if flatten else "p"], ["f"]),
        node("Gemm", ["f", "wf", "bf"], ["y"], transB=1),
    ]
    return build(nodes, constants, ["n", 3, size, size])


@pytest.mark.parametrize("channels", [10, 20])
def test_multiple_of_eight(build: Build, channels: int) -> None:
    model = plain(build, channels, 32, flatten=False)
    result = AlignChannels(8)(model).model
    assert depthwise_groups(result) == {"d": -(-channels // 8) * 8}
    assert_same_output(model, result)


def test_a_flatten_over_pixels_forbids(build: Build) -> None:
    assert AlignChannels(16)(plain(build, 12, 32, flatten=False)).modified
    assert AlignChannels(16)(plain(build, 12, 32, flatten=True)).model is not None
    assert not AlignChannels(16)(plain(build, 12, 32, flatten=True)).modified


def test_few_pixels_do_not_pay(build: Build) -> None:
    # Four more channels cost 4 * (3 + 9 + 2) = 56 bytes: 224 values would pay, 12 * 4 * 4 = 192 do not, 300 do.
    assert not AlignChannels(16)(plain(build, 12, 4, flatten=False)).modified
    assert AlignChannels(16)(plain(build, 12, 5, flatten=False)).modified


def test_channels_of_the_signature_stay(build: Build) -> None:
    constants = weights(np.random.default_rng(2), wa=(3, 1, 3, 3), wb=(3, 1, 3, 3))
    nodes = [
        node("Conv", ["x", "wa", "ba"], ["a"], group=3, **SAME),
        node("Conv", ["a", "wb", "bb"], ["y"], group=3, **SAME),
    ]
    model = build(nodes, constants, ["n", 3, 32, 32])
    assert AlignChannels(16)(model).model is model


def test_an_operator_not_understood_forbids(build: Build) -> None:
    constants = weights(np.random.default_rng(2), w1=(12, 3, 1, 1), wd=(12, 1, 3, 3), w2=(2, 12, 1, 1))
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], kernel_shape=[1, 1]),
        node("Conv", ["c1", "wd", "bd"], ["d"], group=12, **SAME),
        node("Softmax", ["d"], ["s"], axis=1),
        node("Conv", ["s", "w2", "b2"], ["y"], kernel_shape=[1, 1]),
    ]
    model = build(nodes, constants, ["n", 3, 32, 32])
    assert AlignChannels(16)(model).model is model


def test_a_convolution_without_bias_gets_none(build: Build) -> None:
    constants = {
        name: value for name, value in constants_of(plain(build, 12, 32, flatten=False)).items() if name != "bd"
    }
    model = plain(build, 12, 32, flatten=False)
    del model.graph.node[1].input[2]
    kept = [tensor for tensor in model.graph.initializer if tensor.name in constants]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    result = AlignChannels(16)(model).model
    assert depthwise_groups(result) == {"d": 16}
    assert_same_output(model, result)


def test_a_later_convolution_does_not_undo_what_suits_an_earlier_one(build: Build) -> None:
    constants = weights(
        np.random.default_rng(4), w1=(5, 3, 1, 1), w2=(16, 3, 1, 1), wd=(16, 1, 3, 3), we=(21, 1, 3, 3),
        w3=(2, 21, 1, 1), w4=(2, 16, 1, 1),
    )  # fmt: skip
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["a"], kernel_shape=[1, 1]),
        node("Conv", ["x", "w2", "b2"], ["b"], kernel_shape=[1, 1]),
        node("Conv", ["b", "wd", "bd"], ["d"], group=16, **SAME),
        node("Concat", ["a", "b"], ["joined"], axis=1),
        node("Conv", ["joined", "we", "be"], ["e"], group=21, **SAME),
        node("Conv", ["e", "w3", "b3"], ["g"], kernel_shape=[1, 1]),
        node("Conv", ["d", "w4", "b4"], ["h"], kernel_shape=[1, 1]),
        node("Add", ["g", "h"], ["y"]),
    ]
    model = build(nodes, constants, ["n", 3, 32, 32])
    result = AlignChannels(16)(model).model
    assert_same_output(model, result)
    assert depthwise_groups(result)["d"] % 16 == 0

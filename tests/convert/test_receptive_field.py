"""Receptive fields against what networks really look at: pixels are changed, and outputs that change have seen them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pfld_edge_convert.inference import open_model, run_model
from pfld_edge_convert.receptive_field import receptive_fields

Build = Callable[..., onnx.ModelProto]

SIDE = 56


def seen(model: onnx.ModelProto, side: int = SIDE) -> NDArray[np.bool_]:
    """``(side, positions down the map)``: which rows of the picture each row of the output ``y`` depends on."""
    picture = np.random.default_rng(0).uniform(1, 2, (1, 3, side, side)).astype(np.float32)
    changed = np.repeat(picture, side, axis=0)
    changed[np.arange(side), :, np.arange(side)] += 1e3
    before, after = run_model(model, picture), run_model(model, changed)
    moved: NDArray[np.bool_] = (after != before).reshape(side, after.shape[1], after.shape[2], -1).any(axis=(1, 3))
    return moved


def conv(weights: dict[str, NDArray[Any]], source: str, result: str, kernel: int, **geometry: Any) -> onnx.NodeProto:
    """A convolution of 3 to 3 channels whose weights are all positive, so that no change can cancel out."""
    weights[f"w_{result}"] = (
        np.random.default_rng(1).uniform(0.5, 1, (3, 3, kernel, kernel)).astype(np.float32) / kernel**2
    )
    return helper.make_node("Conv", [source, f"w_{result}"], [result], **geometry)


@st.composite
def layers(draw: st.DrawFn) -> tuple[list[onnx.NodeProto], dict[str, NDArray[Any]]]:
    """Up to four layers: convolutions with strides, dilations and uneven padding, pools, branches."""
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, NDArray[Any]] = {}
    source = "x"
    for place in range(draw(st.integers(1, 4))):
        result = f"t{place}"
        kind = draw(st.sampled_from(["conv", "max", "mean", "branches", "concat"]))
        kernel, stride = draw(st.integers(1, 4)), draw(st.integers(1, 2))
        if kind in ("conv", "max", "mean"):
            pads = [draw(st.integers(0, kernel // 2)) for _ in range(4)]
            geometry: dict[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": pads}
            if kind == "conv":
                geometry["dilations"] = [draw(st.integers(1, 2))] * 2
                nodes.append(conv(weights, source, result, kernel, **geometry))
            else:
                op_type = "MaxPool" if kind == "max" else "AveragePool"
                nodes.append(helper.make_node(op_type, [source], [result], **geometry))
        else:
            reach = draw(st.integers(1, 3))
            same = {"pads": [reach] * 4}
            nodes.append(conv(weights, source, f"{result}a", 2 * reach + 1, **same))
            if kind == "branches":
                nodes.append(helper.make_node("Add", [source, f"{result}a"], [result]))
            else:
                nodes.append(conv(weights, source, f"{result}b", 1))
                nodes.append(helper.make_node("Concat", [f"{result}b", f"{result}a"], [f"{result}c"], axis=1))
                weights[f"w_{result}"] = np.ones((3, 6, 1, 1), np.float32)
                nodes.append(helper.make_node("Conv", [f"{result}c", f"w_{result}"], [result]))
        source = result
    nodes.append(helper.make_node("Relu", [source], ["y"]))
    return nodes, weights


def assert_seen(model: onnx.ModelProto, side: int = SIDE) -> None:
    """Compare the field of ``y`` with the outermost rows that it depends on, at every position.

    At the picture's edge padding hides some of a field, so that it is only a bound there.
    """
    field, rows = receptive_fields(model)["y"], seen(model, side)
    assert field.exact
    for position in range(rows.shape[1]):
        first = field.first[0] + position * field.steps[0]
        last = first + field.height - 1
        found = np.flatnonzero(rows[:, position])
        if first >= 0 and last < side:
            assert (found.min(), found.max()) == (first, last)
        else:
            assert len(found) == 0 or (first <= found.min() and found.max() <= last)


@settings(max_examples=40, deadline=None)
@given(layers())
def test_a_map_sees_the_rows_that_change_it(build: Build, drawn: tuple[list[onnx.NodeProto], dict[str, Any]]) -> None:
    nodes, weights = drawn
    assert_seen(build(nodes, weights, ["n", 3, SIDE, SIDE]))


def test_a_space_to_depth_and_a_resize_are_followed(build: Build) -> None:
    weights = {
        "w": np.ones((3, 12, 3, 3), np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "starts": np.array([1, 1]),
        "ends": np.array([100, 100]),
        "axes": np.array([2, 3]),
        "steps": np.array([2, 2]),
    }
    node = helper.make_node
    nodes = [
        node("SpaceToDepth", ["x"], ["a"], blocksize=2),
        node("Conv", ["a", "w"], ["b"], pads=[1, 1, 1, 1]),
        node("Slice", ["b", "starts", "ends", "axes", "steps"], ["c"]),
        node(
            "Resize",
            ["c", "", "scales"],
            ["y"],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
    ]
    model = build(nodes, weights, ["n", 3, SIDE, SIDE])
    rows, field = seen(model), receptive_fields(model)["y"]
    assert field.exact
    for position in range(1, rows.shape[1] - 1):
        first = field.first[0] + position * field.steps[0]
        found = np.flatnonzero(rows[:, position])
        # Positions that share a source share its rows; the field of either covers them.
        assert first <= found.min()
        assert found.max() <= first + field.height
    assert field.height <= (2 * 3) + 2


def test_pixels_in_groups_are_followed(build: Build) -> None:
    weights = {"four": np.array([0, SIDE, SIDE // 4, 12]), "w": np.ones((1, 12, 1, 1), np.float32)}
    nodes = [
        helper.make_node("Transpose", ["x"], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["last", "four"], ["grouped"]),
        helper.make_node("Transpose", ["grouped"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["first", "w"], ["y"]),
    ]
    field = receptive_fields(build(nodes, weights, ["n", 3, SIDE, SIDE]))["y"]
    assert (field.height, field.width, field.steps, field.exact) == (1, 4, (1.0, 4.0), True)


def test_a_fully_connected_layer_sees_all_that_its_maps_see(build: Build) -> None:
    weights: dict[str, NDArray[Any]] = {"fc": np.ones((3 * 36, 4), np.float32)}
    nodes = [
        conv(weights, "x", "map", 5, strides=[3, 3]),
        helper.make_node("Slice", ["map", "starts", "ends", "axes"], ["part"]),
        helper.make_node("Flatten", ["part"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc"], ["y"]),
    ]
    weights |= {"starts": np.array([0, 0]), "ends": np.array([6, 6]), "axes": np.array([2, 3])}
    field = receptive_fields(build(nodes, weights, ["n", 3, SIDE, SIDE]))["y"]
    # Six positions, 3 pixels apart, 5 pixels each.
    assert (field.height, field.width, field.whole, field.is_map) == (20, 20, False, False)


def test_a_squeezed_and_excited_map_sees_everything(build: Build) -> None:
    weights: dict[str, NDArray[Any]] = {}
    nodes = [
        conv(weights, "x", "map", 3),
        helper.make_node("GlobalAveragePool", ["map"], ["mean"]),
        helper.make_node("Mul", ["map", "mean"], ["y"]),
    ]
    model = build(nodes, weights, ["n", 3, SIDE, SIDE])
    assert receptive_fields(model)["y"].whole
    assert seen(model).all()


def test_an_unknown_operator_is_taken_to_mix_everything(build: Build) -> None:
    weights: dict[str, NDArray[Any]] = {"s": np.ones(3, np.float32), "b": np.zeros(3, np.float32)}
    nodes = [conv(weights, "x", "map", 3), helper.make_node("InstanceNormalization", ["map", "s", "b"], ["y"])]
    fields = receptive_fields(build(nodes, weights, ["n", 3, SIDE, SIDE]))
    assert (fields["map"].exact, fields["y"].exact, fields["y"].describe()) == (True, False, "all?")


@pytest.mark.parametrize("shape", [["n", 3, "h", "w"], ["n", 12]])
def test_a_picture_of_unknown_size_has_no_fields(build: Build, shape: list[int | str]) -> None:
    assert receptive_fields(build([helper.make_node("Relu", ["x"], ["y"])], {}, shape)) == {}


@pytest.mark.parametrize("kind", ["ghostone", "slim"])
def test_the_published_networks_see_what_their_fields_say(
    published: Callable[[str], onnx.ModelProto], kind: str
) -> None:
    model = published(kind)
    fields = receptive_fields(model)
    random = np.random.default_rng(0)
    for tensor in model.graph.initializer:  # positive weights: nothing cancels out, no ReLU is silent
        if len(tensor.dims) == 4:
            values = random.uniform(0.5, 1, tuple(tensor.dims)) / np.prod(tensor.dims[1:])
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
        elif len(tensor.dims) == 1 and tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(tuple(tensor.dims), np.float32), tensor.name))
    # The largest field that the picture holds.
    maps = [(fields[node.output[0]].height, node.output[0]) for node in model.graph.node if node.op_type == "Conv"]
    height, name = max(pair for pair in maps if pair[0] < 100)
    field = fields[name]
    model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = open_model(model)
    picture = random.uniform(1, 2, (1, 3, 112, 112)).astype(np.float32)
    before = session.run([name], {"input": picture})[0]
    position = before.shape[2] // 2
    found = []
    for row in range(112):
        changed = picture.copy()
        changed[:, :, row] += 1e4
        found.append((session.run([name], {"input": changed})[0] != before)[:, :, position].any())
    first = field.first[0] + position * field.steps[0]
    rows = np.flatnonzero(found)
    assert (rows.min(), rows.max()) == (first, first + height - 1)

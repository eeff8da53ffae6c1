"""A stranger's network, whatever its input's layout and its output's form, gives its landmarks as ours do."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.landmark_graph import Reading, landmark_graph
from pfld_edge_convert.landmark_models import open_reference
from pfld_edge_convert.model_file import run_model

SIZE, POINTS = 16, 7
TOLD = {"color_order": "rgb", "mean": "0", "scale": "255", "margin": "1.2", "landmarks": str(POINTS)}
TRUTH = np.random.default_rng(3).uniform(0.15, 0.85, (POINTS, 2))
TRUTH[:2] = [[0.1, 0.1], [0.9, 0.9]]


def network(
    answer: NDArray[Any], nodes: Sequence[onnx.NodeProto] = (), more: Sequence[onnx.NodeProto] = ()
) -> onnx.ModelProto:
    """A network whose flat output `raw` is `answer` and some of the image's pixels; `nodes` make `y` of it."""
    random = np.random.default_rng(0).uniform(-1e-3, 1e-3, (3 * SIZE * SIZE, answer.size)).astype(np.float32)
    constants = {"w": random, "b": answer.ravel().astype(np.float32), "shape": np.array([-1, *answer.shape])}
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w", "b"], ["raw" if nodes else "y"]),
            *nodes,
            *more,
        ],
        "stranger",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "side")[: 1 + len(more)]],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)


RESHAPED = [helper.make_node("Reshape", ["raw", "shape"], ["y"])]
INPUTS = np.random.default_rng(1).uniform(0, 1, (3, 3, SIZE, SIZE)).astype(np.float32)


@pytest.mark.parametrize(("space", "factor", "offset"), [("0..1", 1, 0), ("-1..1", 2, -1), ("pixels", SIZE, 0)])
@pytest.mark.parametrize("order", ["x0 y0 x1 y1", "x0 x1 y0 y1", "x0 y0 z0"])
@pytest.mark.parametrize("folded", [True, False])
def test_coordinates_become_fractions(space: str, factor: float, offset: float, order: str, folded: bool) -> None:
    points = factor * TRUTH + offset
    answer = {"x0 y0 x1 y1": points, "x0 x1 y0 y1": points.T, "x0 y0 z0": np.c_[points, np.full(POINTS, 9.0)]}[order]
    # Behind a Relu or so, the last Gemm can't take the factor.
    bent = [helper.make_node("Elu", ["raw"], ["bent"]), helper.make_node("Reshape", ["bent", "shape"], ["y"])]
    if not folded and space == "-1..1":
        bent[0].op_type = "LeakyRelu"
        bent[0].attribute.append(helper.make_attribute("alpha", 1.0))
    model = network(answer, RESHAPED if folded else bent)
    found = landmark_graph(model, "a.onnx", TOLD)
    raw = run_model(model, INPUTS)
    read = {"x0 x1 y0 y1": raw.swapaxes(1, 2) if raw.shape[1] == 2 else raw}.get(order, raw[..., :2])
    expected = ((read - offset) / factor).reshape(len(INPUTS), -1)
    np.testing.assert_allclose(run_model(found.model, INPUTS), expected, atol=1e-6)
    assert len(found.model.graph.node) == 2 or not folded
    assert ("read as coordinates in" in "".join(found.notes)) == (space != "0..1")
    ends = found.contract.landmarks.normalizing_points
    assert {*TRUTH[list(ends), 0]} == {TRUTH[:, 0].min(), TRUTH[:, 0].max()}


@pytest.mark.parametrize("kind", ["logits", "peaks", "probabilities", "channels last"])
def test_a_soft_argmax_reads_heat_maps(kind: str) -> None:
    height, width = 24, 20
    rows, columns = (np.arange(size) + 0.5 for size in (height, width))
    truth = 0.2 + 0.6 * TRUTH
    across = (columns - width * truth[:, :1]) ** 2 / 2
    down = (rows - height * truth[:, 1:]) ** 2 / 2
    logits = -(down[:, :, None] + across[:, None])
    maps = {"logits": logits, "channels last": logits.transpose(1, 2, 0)}.get(kind, np.exp(logits))
    if kind == "probabilities":
        maps /= maps.sum(axis=(1, 2), keepdims=True)
    model = network(maps, RESHAPED)
    for tensor in model.graph.initializer:
        if tensor.name == "w":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros((3 * SIZE * SIZE, maps.size), np.float32), "w"))
    found = landmark_graph(model, "a.onnx", TOLD)
    answer = run_model(found.model, INPUTS).reshape(len(INPUTS), POINTS, 2)
    # The mean of a Gaussian's pixels is its centre; a sharpened peak is found to half a pixel, as by its maximum.
    bound = 0.5 / width if kind == "peaks" else 1e-3
    np.testing.assert_allclose(answer, np.broadcast_to(truth, answer.shape), atol=bound)
    assert "soft-argmax" in found.notes[0]
    assert ("times" in found.notes[0]) == (kind == "peaks")


def test_channels_last_and_raw_pixels_are_fed_as_ours() -> None:
    model, planes = network(TRUTH), network(TRUTH)
    for graph in (model.graph, planes.graph):
        weight = numpy_helper.to_array(graph.initializer[0]) / 255
        graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("u", TensorProto.UINT8, [1, SIZE, SIZE, 3]))
    for place, node in enumerate(
        [
            helper.make_node("Cast", ["u"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["f"], ["x"], perm=[0, 3, 1, 2]),
        ]
    ):
        model.graph.node.insert(place, node)
    told = {name: value for name, value in TOLD.items() if name not in ("mean", "scale")}
    found = landmark_graph(model, "a.onnx", told)
    assert (found.contract.layout, found.contract.input_dtype, found.contract.scale) == ("NCHW", "float32", (1, 1, 1))
    pixels = np.round(INPUTS * 255).astype(np.float32)
    np.testing.assert_allclose(run_model(found.model, pixels), run_model(planes, pixels), atol=1e-6)
    assert [node.op_type for node in found.model.graph.node] == ["Flatten", "Gemm"]


def half(model: onnx.ModelProto, precision: np.dtype[Any], outside: bool) -> onnx.ModelProto:
    """The same network in another precision, with casts at its ends unless these have it too."""
    graph, kind = model.graph, helper.np_dtype_to_tensor_dtype(precision)
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(precision), tensor.name))
    if outside:
        for value in (*graph.input, *graph.output):
            value.type.tensor_type.elem_type = kind
    else:
        graph.node[0].input[0], graph.node[-1].output[0] = "x_half", "y_half"
        graph.node.insert(0, helper.make_node("Cast", ["x"], ["x_half"], to=kind))
        graph.node.append(helper.make_node("Cast", ["y_half"], ["y"], to=TensorProto.FLOAT))
    return model


@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize("precision", [np.dtype(np.float16), np.dtype(np.float64)])
def test_networks_of_another_precision_compute_in_float32(precision: np.dtype[Any], outside: bool) -> None:
    found = landmark_graph(half(network(TRUTH, RESHAPED), precision, outside), "a.onnx", TOLD)
    assert [node.op_type for node in found.model.graph.node] == ["Flatten", "Gemm"]
    assert {tensor.data_type for tensor in found.model.graph.initializer} == {TensorProto.FLOAT}
    expected = run_model(network(TRUTH, RESHAPED), INPUTS).reshape(len(INPUTS), -1)
    np.testing.assert_allclose(run_model(found.model, INPUTS), expected, atol=1e-3)


def with_function(body: list[onnx.NodeProto], opset: int = 13) -> onnx.ModelProto:
    """A network whose output `y` is that of a function of its own, with the body from `a` to `b`, of `raw`."""
    model = network(TRUTH, [helper.make_node("Own", ["raw"], ["y"], domain="own")])
    model.functions.append(helper.make_function("own", "Own", ["a"], ["b"], body, [helper.make_opsetid("", opset)]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.ir_version = 8
    return model


@pytest.mark.parametrize("opset", [11, 13])
def test_a_files_own_functions_become_their_nodes(opset: int) -> None:
    model = with_function([helper.make_node("Add", ["a", "a"], ["b"])], opset)
    found = landmark_graph(model, "a.onnx", TOLD, reading=Reading(space="0..1"))
    np.testing.assert_allclose(run_model(found.model, INPUTS), 2 * run_model(network(TRUTH), INPUTS), atol=1e-6)


HALF = [helper.make_node("Cast", ["a"], ["h"], to=TensorProto.FLOAT16), helper.make_node("Cast", ["h"], ["b"], to=1)]


@pytest.mark.parametrize(
    ("body", "opset", "says"),
    [
        ([helper.make_node("Dropout", ["a", "", "yes"], ["b"])], 13, r"computes as in training.*model.eval\(\)"),
        ([helper.make_node("QuantizeLinear", ["a", "one"], ["b"])], 13, "is quantized already"),
        ([helper.make_node("ReduceSum", ["a"], ["b"], keepdims=1)], 99, "the functions Own can't be brought to opset"),
    ],
)
def test_what_is_refused_is_refused_in_functions_too(body: list[onnx.NodeProto], opset: int, says: str) -> None:
    constants = [helper.make_node("Constant", [], ["one"], value_float=1.0)]
    constants.append(helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))))
    with pytest.raises(ConvertError, match=says):
        landmark_graph(with_function(constants + body, opset), "a.onnx", TOLD)


def test_functions_compute_in_float32_too() -> None:
    found = landmark_graph(with_function(HALF), "a.onnx", TOLD)
    assert [node.op_type for node in found.model.graph.node] == ["Flatten", "Gemm"]


def test_free_colours_are_three() -> None:
    model = network(TRUTH)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "c", "h", "w"]))
    found = landmark_graph(model, "a.onnx", {**TOLD, "input_size": str(SIZE)})
    assert found.contract.input_size == SIZE


def test_a_reference_is_fed_as_its_own_input_says(tmp_path: Path) -> None:
    """Raw pixels, channels last: not as the file that was made from it."""
    model = network(TRUTH)
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(model.graph.initializer[0]) / 255, "w")
    )
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("u", TensorProto.UINT8, ["n", SIZE, SIZE, 3]))
    for place, (kind, names, more) in enumerate(
        (("Cast", "uf", {"to": TensorProto.FLOAT}), ("Transpose", "fx", {"perm": [0, 3, 1, 2]}))
    ):
        model.graph.node.insert(place, helper.make_node(kind, [names[0]], [names[1]], **more))
    told = {name: value for name, value in TOLD.items() if name not in ("mean", "scale")}
    contract = landmark_graph(model, "a.onnx", told).contract
    onnx.save(model, tmp_path / "a.onnx")
    crops = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    found = open_reference(tmp_path / "a.onnx", 1, contract).predict(crops)
    np.testing.assert_allclose(found.reshape(2, -1), run_model(model, crops), atol=1e-6)


TRAINING = {
    "Dropout": [helper.make_node("Dropout", ["raw", "", "yes"], ["y"])],
    "BatchNormalization": [
        helper.make_node("BatchNormalization", ["raw", *"bbbb"], ["y", "mean", "var"], training_mode=1)
    ],
    "RandomNormalLike": [
        helper.make_node("RandomNormalLike", ["raw"], ["noise"]),
        helper.make_node("Add", ["raw", "noise"], ["y"]),
    ],
}


@pytest.mark.parametrize("kind", TRAINING)
def test_a_network_in_training_mode_is_refused(kind: str) -> None:
    model = network(TRUTH, TRAINING[kind])
    model.opset_import[0].version = 15
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    with pytest.raises(ConvertError, match=rf"a.onnx: {kind} \w+ computes as in training.*model.eval\(\)"):
        landmark_graph(model, "a.onnx", TOLD)


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ([helper.make_node("MyRelu", ["raw"], ["y"], domain="own")], "replace MyRelu by operators of ONNX"),
        (
            [helper.make_node("Conv", ["raw", "w"], ["y"], domain="com.microsoft.nchwc")],
            "optimized by onnxruntime (Conv)",
        ),
        ([helper.make_node("Squeeze", ["raw"], ["y"])], "no output has an axis for the images (y (14,))"),
    ],
)
def test_what_onnxs_operators_cannot_say_is_refused(nodes: list[onnx.NodeProto], says: str) -> None:
    with pytest.raises(ConvertError) as caught:
        landmark_graph(network(TRUTH, nodes), "a.onnx", TOLD)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_outputs_and_what_served_them_are_cut_off() -> None:
    side = [helper.make_node("Softmax", ["flat"], ["side"])]
    found = landmark_graph(network(TRUTH, more=side), "a.onnx", TOLD)
    assert [node.op_type for node in found.model.graph.node] == ["Flatten", "Gemm"]


@pytest.mark.parametrize(
    ("changes", "reading", "says"),
    [
        ({"landmarks": None, "mean": None}, Reading(), "give --mean, --landmarks too"),
        ({"landmarks": None}, Reading(), "(outputs: y (14,), side (14,))"),
        ({"landmarks": "9"}, Reading(), "none of them has the shape of 9 landmarks: give the right --landmarks"),
        ({"landmarks": "1"}, Reading(), "at least 2 landmarks"),
        ({}, Reading(), "2 of them could be 7 landmarks: give --output-name"),
        ({}, Reading("z"), "none is named 'z'"),
        ({}, Reading("y", "heat maps"), "y can't be 'heat maps' of 7 landmarks"),
        ({}, Reading("side"), "no face's landmarks on the bundled portraits"),
        ({"layout": "NHWC"}, Reading("y"), "not (N, [16, 16, 3])"),
        ({"input_size": "32"}, Reading("y"), "not (N, [3, 32, 32])"),
    ],
)
def test_what_is_missing_or_ambiguous_is_refused(changes: dict[str, str | None], reading: Reading, says: str) -> None:
    side = [helper.make_node("Sub", ["y", "b"], ["side"])]
    told = {name: value for name, value in {**TOLD, **changes}.items() if value is not None}
    with pytest.raises(ConvertError) as caught:
        landmark_graph(network(TRUTH, more=side), "a.onnx", told, reading=reading)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)

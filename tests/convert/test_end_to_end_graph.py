"""One graph from photograph and boxes to pixels: the runtime's crops bit for bit, the plain file's network inside."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_calib import portraits, read_photo
from pfld_edge_convert import pipeline
from pfld_edge_convert.end_to_end import (
    end_to_end_contract,
    end_to_end_model,
    end_to_end_path,
    largest_difference,
    pixel_fingerprint,
)
from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.landmark_models import EndToEndModel, open_landmark_model
from pfld_edge_convert.model_file import attach_contract, open_model, read_contract, write_model
from pfld_edge_convert.passes import base
from pfld_edge_runtime import (
    BUNDLED_MODEL,
    Contract,
    CropRule,
    FaceAnalyzer,
    FaceLandmarker,
    FaceTracker,
    ModelContractError,
    crop_faces,
    crop_windows,
    fingerprint_image,
)
from pfld_edge_runtime.arrays import Float32Array, Uint8Array
from pfld_edge_train.models import ModelConfig, build_model

SIZE = 16
CONTRACT = Contract(model="tiny", input_size=SIZE)


def linear(
    contract: Contract = CONTRACT, *, name: str = "w", batch: int | str = "batch", opset: int = 18
) -> onnx.ModelProto:
    """A network of one linear layer that looks at every pixel; its names are those of the whole graph's inputs too."""
    size, points = contract.input_size, contract.landmarks.num_landmarks
    weights = np.random.default_rng(0).normal(0, 0.02, (3 * size * size, 2 * points)).astype(np.float32)
    if contract.input_dtype == "uint8":
        weights /= 128
    shape = [batch, 3, size, size] if contract.layout == "NCHW" else [batch, size, size, 3]
    kind = TensorProto.FLOAT if contract.input_dtype == "float32" else TensorProto.UINT8
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["real"], ["boxes"]),
            helper.make_node("Gemm", ["boxes", name, "b"], ["landmarks"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info("landmarks", TensorProto.FLOAT, [batch, 2 * points])],
        [
            numpy_helper.from_array(weights, name),
            numpy_helper.from_array(np.full(2 * points, 0.5, np.float32), "b"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def opened(graph: onnx.ModelProto, *shown: str) -> Callable[[Uint8Array, Float32Array], list[NDArray[np.generic]]]:
    """Run a graph; tensors in its middle can be shown."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in shown)
    session = open_model(copy)
    return lambda image, boxes: session.run(None, {"image": image, "boxes": np.asarray(boxes, np.float32)})


def photo_of(height: int, width: int, seed: int = 0) -> Uint8Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def plain(contract: Contract) -> bytes:
    return attach_contract(linear(contract), contract).SerializeToString()


def bundled() -> onnx.ModelProto:
    model = onnx.load(BUNDLED_MODEL)
    contract = read_contract(model)
    assert contract is not None
    return end_to_end_model(model, contract)


SHOWN = opened(end_to_end_model(linear(), CONTRACT), "crop/crops", "crop/corner", "crop/side")
RUNTIME = FaceLandmarker(plain(CONTRACT))
BUNDLED = opened(bundled())
PLAIN_BUNDLED = FaceLandmarker()

edges = st.floats(-150, 250, width=32)
extents = st.one_of(st.integers(1, 300).map(float), st.floats(0.015625, 300, width=32))
box_lists = st.lists(st.tuples(edges, edges, extents, extents), min_size=1, max_size=5)
roll_lists = st.lists(st.one_of(st.just(0.0), st.floats(-400, 400, width=32)), min_size=5, max_size=5)


def with_rolls(boxes: Float32Array, rolls: NDArray[np.floating]) -> Float32Array:
    return np.column_stack([boxes, np.full(len(boxes), 0.9), rolls]).astype(np.float32)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 5), box_lists, roll_lists)
def test_crops_and_landmarks_are_the_runtimes_for_every_photograph_and_box_and_roll(
    height: int, width: int, seed: int, boxes: list[tuple[float, float, float, float]], rolls: list[float]
) -> None:
    image = photo_of(height, width, seed)
    given_boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in boxes], np.float32)
    # A small extent can vanish beside a large coordinate in float32; such a box has no area.
    given_boxes = given_boxes[(given_boxes[:, 2:] > given_boxes[:, :2]).all(axis=1)]
    turns = np.array(rolls[: len(given_boxes)])
    windows = crop_windows(given_boxes, 1.2, turns)
    expected = crop_faces(image, windows, SIZE)
    found, crops, corner, side = SHOWN(image, with_rolls(given_boxes, turns))
    np.testing.assert_array_equal(corner, windows.corners)
    np.testing.assert_array_equal(side[:, 0], windows.sizes)
    np.testing.assert_array_equal(crops[turns == 0], expected[turns == 0])
    assert np.abs(crops.astype(int) - expected).max(initial=0) <= 1  # another sine may round otherwise
    assert np.abs(found - RUNTIME(image, given_boxes, roll=turns)).max(initial=0) < 0.05
    # Without the columns of the score and the roll, and with that of the score alone, all crops are upright.
    for columns in (4, 5):
        upright = SHOWN(image, with_rolls(given_boxes, turns)[:, :columns])
        np.testing.assert_array_equal(upright[1], crop_faces(image, crop_windows(given_boxes, 1.2), SIZE))
        assert np.abs(upright[0] - RUNTIME(image, given_boxes)).max(initial=0) < 0.05


@pytest.mark.parametrize(("x", "y", "side"), [(10, 5, 40), (-20, -30, 80), (60, 40, 80), (-500, 3, 20), (79, 59, 1)])
def test_a_crop_is_that_of_opencv(x: int, y: int, side: int) -> None:
    contract = CONTRACT.replace(crop=CropRule(margin=1.0))
    image = cv2.blur(photo_of(60, 80), (5, 5))
    _, crops = opened(end_to_end_model(linear(contract), contract), "crop/crops")(image, [[x, y, x + side, y + side]])
    padded = cv2.copyMakeBorder(image, 600, 600, 600, 600, cv2.BORDER_CONSTANT, value=0)
    window = padded[y + 600 : y + 600 + side, x + 600 : x + 600 + side]
    expected = cv2.resize(window, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    assert np.abs(crops[0].astype(int) - expected).max() <= 1


def test_window_sides_near_whole_numbers_are_those_of_double_precision() -> None:
    # 5 * 1.2 is 6 in double precision, and above or below in others.
    widths = np.arange(1, 3001)
    boxes = np.stack([widths * 0, widths * 0, widths, np.ones_like(widths)], axis=1)
    side = SHOWN(photo_of(4, 4), boxes)[3]
    assert side[:, 0].tolist() == [int(width * 1.2) for width in widths.tolist()]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("order", ["bgr", "rgb"])
def test_every_kind_of_network_sees_what_the_runtime_shows_it(layout: str, dtype: str, order: str) -> None:
    contract = CONTRACT.replace(
        layout=layout, input_dtype=dtype, color_order=order, mean=(100.0, 120.0, 140.0), scale=(50.0, 60.0, 70.0)
    )
    image, boxes = photo_of(60, 80), np.array([[10, 10, 50, 55], [-30, -5, 20, 40], [60, 40, 300, 200]], np.float32)
    (found,) = opened(end_to_end_model(linear(contract), contract))(image, boxes)
    np.testing.assert_allclose(found, FaceLandmarker(plain(contract))(image, boxes, "rgb"), atol=0.01)


@pytest.mark.parametrize(
    "bad",
    [
        (np.nan, 0, 9, 9),
        (0, 0, np.inf, 9),
        (-np.inf, 0, 9, 9),
        (0, 0, 9, 2e9),
        (-2e9, 0, 9, 9),
        (9, 0, 9, 9),
        (9, 9, 1, 1),
        (3, 4, 30, 33, 0.9, np.nan),
        (3, 4, 30, 33, 0.9, -np.inf),
    ],
    ids=str,
)
def test_a_box_that_cannot_be_used_gives_nan_and_harms_no_other(bad: tuple[float, ...]) -> None:
    image, good = photo_of(40, 40), (3, 4, 30, 33, 0.9, 70)[: len(bad)]
    found = SHOWN(image, [good, bad, good])[0]
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[[0, 2]], SHOWN(image, [good, good])[0])


def test_no_boxes_give_no_faces() -> None:
    for graph in (end_to_end_model(linear(), CONTRACT), bundled()):
        for columns in (4, 6):
            found = opened(graph)(photo_of(40, 40), np.zeros((0, columns), np.float32))
            assert (found[0].shape, found[0].dtype) == ((0, 98, 2), np.float32)
            assert [confidence.shape for confidence in found[1:]] in ([], [(0, 98)])


@settings(max_examples=20, deadline=None)
@given(st.integers(30, 300), st.integers(30, 300), box_lists)
def test_the_bundled_int8_network_finds_the_very_same_landmarks_and_their_confidence(
    height: int, width: int, boxes: list[tuple[float, float, float, float]]
) -> None:
    image = cv2.blur(photo_of(height, width), (9, 9))
    given_boxes = np.array([(x, y, x + 5 + w, y + 5 + h) for x, y, w, h in boxes], np.float32)
    found, confidence = BUNDLED(image, given_boxes)
    expected = PLAIN_BUNDLED.with_confidence(image, given_boxes)
    np.testing.assert_array_equal(found, expected[0])
    np.testing.assert_allclose(confidence, expected[1], rtol=1e-5)


def test_the_networks_nodes_and_weights_are_the_plain_files() -> None:
    network, graph = onnx.load(BUNDLED_MODEL), bundled()
    inside = [node for node in graph.graph.node if not node.name.startswith("crop/")]
    assert [(node.op_type, node.domain, node.name) for node in inside] == [
        (node.op_type, node.domain, node.name) for node in network.graph.node
    ]
    for ours, theirs in zip(inside, network.graph.node, strict=True):
        assert list(ours.attribute) == list(theirs.attribute)
    weights = {tensor.name: tensor.SerializeToString() for tensor in graph.graph.initializer}
    for tensor in network.graph.initializer:
        assert weights[tensor.name] == tensor.SerializeToString()
    assert list(graph.opset_import) == list(network.opset_import)


def test_what_is_added_is_standard_and_reads_the_photograph_as_bytes() -> None:
    graph = bundled()
    (turned,) = (node for node in graph.graph.node if node.op_type == "If")
    for branch in turned.attribute:
        graph.graph.node.extend(branch.g.node)
    index = base.GraphIndex(graph)
    added = [node for node in graph.graph.node if node.name.startswith("crop/")]
    assert {node.domain for node in added} == {""}
    assert {node.op_type for node in added} == {
        "Abs", "Add", "And", "Cast", "Concat", "ConstantOfShape", "Div", "Exp", "Expand", "Floor", "Gather", "Greater",
        "GreaterOrEqual", "Identity", "If", "Less", "LessOrEqual", "MatMul", "Max", "Min", "Mul", "Neg", "Pow",
        "ReduceMax", "ReduceSum", "Reshape", "Shape", "Sin", "Sub", "Transpose", "Unsqueeze", "Where",
    }  # fmt: skip
    readers = {node.op_type for name in ("image", "crop/pixels") for node in index.consumers[name]} - {"If"}
    assert readers == {"Shape", "Reshape", "Gather"}


def test_names_that_a_network_shares_with_the_crop_do_no_harm() -> None:
    image, boxes = photo_of(60, 80), np.array([[10, 10, 50, 55]], np.float32)
    (expected,) = opened(end_to_end_model(linear(), CONTRACT))(image, boxes)
    for name in ("crop/crops", "network/boxes"):
        (found,) = opened(end_to_end_model(linear(name=name), CONTRACT))(image, boxes)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("opset", [20, 23])
def test_a_network_of_a_newer_opset_gives_the_same_landmarks(opset: int) -> None:
    image, boxes = photo_of(60, 80), np.array([[10, 10, 50, 55]], np.float32)
    (expected,) = opened(end_to_end_model(linear(), CONTRACT))(image, boxes)
    (found,) = opened(end_to_end_model(linear(opset=opset), CONTRACT))(image, boxes)
    np.testing.assert_array_equal(found, expected)


def test_what_cannot_be_wrapped_is_refused() -> None:
    with pytest.raises(ConvertError, match="any number of faces; this one's is fixed"):
        end_to_end_model(linear(batch=1), CONTRACT)
    with pytest.raises(ConvertError, match="opset 18, this one has 17"):
        end_to_end_model(linear(opset=17), CONTRACT)
    with pytest.raises(ConvertError, match="end-to-end graph already"):
        end_to_end_model(end_to_end_model(linear(), CONTRACT), end_to_end_contract(CONTRACT))


def test_the_file_says_what_it_is_and_the_runtime_refuses_it(tmp_path: Path) -> None:
    path = end_to_end_path(tmp_path / "face.int8.onnx")
    write_model(end_to_end_model(linear(), CONTRACT), end_to_end_contract(CONTRACT), path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["face.int8.e2e.json", "face.int8.e2e.onnx"]
    with pytest.raises(ModelContractError, match=r"end-to-end graph.*`image` and `boxes`.*without \.e2e"):
        FaceLandmarker(path)
    carried = read_contract(onnx.load(path))
    assert carried is not None
    assert (carried.end_to_end, carried.layout, carried.color_order) == (True, "HWC", "rgb")
    assert carried.landmarks == CONTRACT.landmarks


def test_analyzer_and_tracker_find_turned_faces_with_it_as_with_the_plain_file(tmp_path: Path) -> None:
    path = tmp_path / "face.e2e.onnx"
    write_model(bundled(), end_to_end_contract(PLAIN_BUNDLED.contract), path)
    model, face = open_landmark_model(path), portraits()[0]
    frame, box = np.rot90(read_photo(face.image), 2), face.bbox_xyxy
    places = (np.array(frame.shape)[[1, 0, 1, 0]] - box[[2, 3, 0, 1]])[None]
    for finder in (FaceAnalyzer, FaceTracker):
        found, expected = (finder(lambda _: places, landmarker)(frame, color="bgr") for landmarker in (model, None))
        assert abs(abs(found.rolls[0]) - 180) < 30
        np.testing.assert_array_equal(found.rolls, expected.rolls)
        np.testing.assert_array_equal(found.landmarks, expected.landmarks)
        np.testing.assert_allclose(found.landmark_confidence, expected.landmark_confidence, rtol=1e-5)
    with pytest.raises(ModelContractError, match="turns no crops"):
        EndToEndModel(model.contract, model.function, name="old").locate(frame, places, roll=90)  # type: ignore[attr-defined]


@pytest.mark.parametrize("changes", [{"layout": "HWC"}, {"output_space": "image-pixels"}], ids=str)
def test_a_contract_that_is_half_end_to_end_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(ModelContractError, match="contradict each other"):
        CONTRACT.replace(**changes)


def test_a_graph_that_cuts_otherwise_is_an_error() -> None:
    wider = CONTRACT.replace(crop=replace(CONTRACT.crop, margin=1.25))
    assert largest_difference(end_to_end_model(linear(), CONTRACT), plain(CONTRACT)) < 0.01
    with pytest.raises(ConvertError, match=r"differs from the plain file by .* px on the bundled portraits"):
        largest_difference(end_to_end_model(linear(), wider), plain(CONTRACT))


def test_a_device_can_check_itself_with_a_picture_that_it_draws() -> None:
    graph = end_to_end_model(linear(), CONTRACT)
    fingerprint = pixel_fingerprint(graph, CONTRACT, 1e-4)
    assert fingerprint.tolerance == pytest.approx(1e-4 * int(SIZE * 1.2))
    image = fingerprint_image(fingerprint.seed, SIZE)
    expected = RUNTIME(image, [[0, 0, SIZE, SIZE]], "rgb")
    np.testing.assert_allclose(expected.ravel(), fingerprint.output, atol=fingerprint.tolerance)


def test_a_conversion_writes_all_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(ModelConfig("pfld-edge-s", width_factor=0.25, input_size=32))
    contract, crops = Contract(model="pfld-edge-s", input_size=32), photo_of(64, 32).reshape(2, 32, 32, 3)
    exported = pipeline.export_onnx(pipeline.reparameterize(model), 32)
    monkeypatch.setattr(pipeline, "export_onnx", lambda *_: exported)

    def differ(*_: object) -> float:
        raise ConvertError("differs")

    monkeypatch.setattr(pipeline, "largest_difference", differ)
    with pytest.raises(ConvertError, match="differs"):
        pipeline.convert(model, contract, tmp_path / "face.onnx", crops, end_to_end=True)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(pipeline, "largest_difference", largest_difference)
    report = pipeline.convert(model, contract, tmp_path / "face.onnx", crops, end_to_end=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "face.e2e.json", "face.e2e.onnx", "face.json", "face.onnx",
    ]  # fmt: skip
    assert [file.path.name for file in report.files] == ["face.onnx", "face.e2e.onnx"]
    assert report.files[0].pixel_difference is None
    assert report.files[1].pixel_difference is not None
    assert report.files[1].pixel_difference < 0.05
    found = onnxruntime.InferenceSession(str(report.files[1].path), providers=["CPUExecutionProvider"])
    assert [(item.name, item.type) for item in found.get_inputs()] == [
        ("image", "tensor(uint8)"),
        ("boxes", "tensor(float)"),
    ]

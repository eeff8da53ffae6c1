"""The contract that `search_contract` finds for networks whose contract is known."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_calib import Face, FaceSetError, portraits
from pfld_edge_convert.contract_search import ContractSearch, search_contract
from pfld_edge_convert.contract_trial import Hypothesis, Network, Subject, cut_crops
from pfld_edge_convert.errors import ConvertError
from pfld_edge_runtime import BUNDLED_MODEL, FAST_MODEL, IBUG_68, WFLW_98, crop_faces, crop_windows, landmarks_68
from pfld_edge_runtime.arrays import Float64Array

Disguise = Callable[..., Path]
FEED = ("layout", "color_order", "normalization", "output", "order", "space", "scheme")


def values(found: ContractSearch) -> dict[str, str]:
    return {finding.field: finding.value for finding in found.findings}


def told(found: ContractSearch) -> set[str]:
    return {finding.field for finding in found.findings if finding.sure}


@pytest.fixture
def disguised(tmp_path: Path) -> Disguise:
    """A bundled network (BGR, uint8, NHWC, fractions) behind nodes that give it another contract: that which colours
    matter to."""

    def build(
        color: str, mean: float, scale: float, *, layout: str = "NCHW", planar: bool = False, signed: bool = False
    ) -> Path:
        model = onnx.load(str(FAST_MODEL))
        graph = model.graph
        inner, outer = graph.input[0].name, graph.output[0].name
        constants: dict[str, NDArray[np.generic]] = {
            "d_scale": np.array(scale, np.float32),
            "d_mean": np.array(mean, np.float32),
            "d_low": np.array(0, np.float32),
            "d_high": np.array(255, np.float32),
            "d_channels": np.array([0, 1, 2] if color == "bgr" else [2, 1, 0], np.int64),
            "d_two": np.array(2, np.float32),
            "d_one": np.array(1, np.float32),
            "d_points": np.array([0, -1, 2], np.int64),
            "d_flat": np.array([0, -1], np.int64),
        }
        before = [
            helper.make_node("Mul", ["d_input", "d_scale"], ["d_levels"]),
            helper.make_node("Add", ["d_levels", "d_mean"], ["d_shifted"]),
            helper.make_node("Round", ["d_shifted"], ["d_rounded"]),
            helper.make_node("Clip", ["d_rounded", "d_low", "d_high"], ["d_clipped"]),
            helper.make_node("Cast", ["d_clipped"], ["d_bytes"], to=TensorProto.UINT8),
            helper.make_node("Transpose", ["d_bytes"], ["d_nhwc"], perm=[0, 2, 3, 1] if layout == "NCHW" else range(4)),
            helper.make_node("Gather", ["d_nhwc", "d_channels"], [inner], axis=3),
        ]
        after, last = [], outer
        if signed:
            after += [
                helper.make_node("Mul", [last, "d_two"], ["d_doubled"]),
                helper.make_node("Sub", ["d_doubled", "d_one"], ["d_signed"]),
            ]
            last = "d_signed"
        if planar:
            after += [
                helper.make_node("Reshape", [last, "d_points"], ["d_pairs"]),
                helper.make_node("Transpose", ["d_pairs"], ["d_planes"], perm=[0, 2, 1]),
                helper.make_node("Reshape", ["d_planes", "d_flat"], ["d_planar"]),
            ]
            last = "d_planar"
        nodes = [*before, *graph.node, *after]
        shape: list[str | int] = ["n", 3, 112, 112] if layout == "NCHW" else ["n", 112, 112, 3]
        made = helper.make_graph(
            nodes,
            "disguised",
            [helper.make_tensor_value_info("d_input", TensorProto.FLOAT, shape)],
            [
                helper.make_tensor_value_info("d_channels_seen", TensorProto.FLOAT, None),
                helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", 196]),
            ],
            [*graph.initializer, *(numpy_helper.from_array(value, name) for name, value in constants.items())],
        )
        # An output that is no landmarks, as networks with a training output have.
        made.node.append(helper.make_node("GlobalAveragePool", ["d_input"], ["d_channels_seen"]))
        path = tmp_path / "disguised.onnx"
        onnx.save(helper.make_model(made, opset_imports=model.opset_import, ir_version=model.ir_version), str(path))
        return path

    return build


@pytest.mark.parametrize(
    ("normalization", "mean", "scale"), [("0..1", 0, 255), ("-1..1", 127.5, 127.5), ("0..255", 0, 1)]
)
def test_a_disguised_network_is_recognized(disguised: Disguise, normalization: str, mean: float, scale: float) -> None:
    found = search_contract(disguised("rgb", mean, scale))
    expected = ("NCHW", "rgb", normalization, found.output, "x0 y0 x1 y1", "0..1", "wflw-98")
    assert tuple(values(found)[name] for name in FEED) == expected
    assert set(FEED) <= told(found)
    contract = found.contract
    assert contract is not None
    assert (contract.color_order, contract.mean, contract.scale) == ("rgb", (mean,) * 3, (scale,) * 3)
    assert contract.landmarks == WFLW_98


def test_layout_and_output_are_recognized(disguised: Disguise) -> None:
    found = search_contract(disguised("bgr", 0, 255, layout="NHWC", planar=True, signed=True))
    expected = ("NHWC", "bgr", "0..1", "d_planar", "x0 x1 y0 y1", "-1..1", "wflw-98")
    assert tuple(values(found)[name] for name in FEED) == expected
    assert set(FEED) <= told(found)
    assert found.contract is None


@pytest.mark.parametrize("model", [BUNDLED_MODEL, FAST_MODEL])
def test_the_bundled_networks_are_recognized(model: Path) -> None:
    """The contract in the file isn't read: the search sees pixels and points alone."""
    found = search_contract(model)
    assert tuple(values(found)[name] for name in FEED if name not in ("color_order", "output")) == (
        ("NHWC", "uint8", "x0 y0 x1 y1", "0..1", "wflw-98")
    )
    # pfld-edge-m finds nearly the same points in either order of colours: "can't tell" is a right answer.
    assert set(FEED) - told(found) <= ({"color_order"} if model == BUNDLED_MODEL else set())
    assert values(found)["color_order"] == "bgr" or "color_order" not in told(found)
    margin = next(finding for finding in found.findings if finding.field == "margin")
    assert "1.2" in (margin.value, *margin.rivals)


def test_faces_with_68_points_serve_a_network_with_98() -> None:
    faces = [Face(face.image, face.bbox_xyxy, landmarks_68(face.landmarks)[0]) for face in portraits()]
    found = search_contract(FAST_MODEL, faces)
    assert values(found)["color_order"] == "bgr"
    assert values(found)["scheme"] == WFLW_98.name


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("reference/PFLD_GhostOne_112_1_opt_sim.onnx", ("bgr", "-1..1", WFLW_98.name, {"1.2"})),
        ("reference/PFLD_GhostNet_112_1_opt_sim.onnx", ("bgr", "-1..1", WFLW_98.name, {"1.2"})),
        ("reference/PFLD_GhostNet_Slim_112_1_opt_sim.onnx", ("bgr", "-1..1", WFLW_98.name, {"1.2"})),
        ("public/pfld68_dynamic_batch.onnx", ("rgb", "0..1", IBUG_68.name, {"1.0", "1.1"})),
    ],
)
def test_no_wrong_answer_is_called_sure(shared: Path, name: str, truth: tuple[str, str, str, set[str]]) -> None:
    found = search_contract(shared / "models" / name)
    assert found.plausible
    for finding in found.findings:
        known = dict(zip(("color_order", "normalization", "scheme", "margin"), truth, strict=True)).get(finding.field)
        right = known if isinstance(known, set) else {known}
        assert known is None or right & {finding.value, *finding.rivals}, finding
    assert values(found)["normalization"] == truth[1]
    assert {"scheme", "order", "space"} <= told(found)


def test_points_of_unknown_order_are_recognized_by_symmetry(shared: Path) -> None:
    found = search_contract(shared / "models/public/lite106_two_outputs.onnx")
    assert (found.num_landmarks, found.output, found.plausible) == (106, "output", True)
    assert "scheme" not in told(found)
    contract = found.contract
    assert contract is not None
    mirror = np.array(contract.landmarks.mirror)
    np.testing.assert_array_equal(mirror[mirror], np.arange(106))
    # InsightFace's order of the contour: the chin, 16 points of one side, 16 points of the other.
    np.testing.assert_array_equal(mirror[:33], [0, *range(17, 33), *range(1, 17)])


def test_crops_are_those_of_the_runtime() -> None:
    """Without chance, a crop shows what `crop_faces` shows, and its map is that of the crop window."""

    class Still(np.random.Generator):
        def uniform(self, *arguments: float) -> Float64Array | float:  # type: ignore[override]
            return np.zeros(int(arguments[2])) if len(arguments) > 2 else 0.0

    subject = replace(Subject.of(portraits()[0]), box=np.array([160.0, 150.0, 360.0, 340.0]))
    window = crop_windows(subject.box, 1.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "default_rng", lambda _: Still(np.random.PCG64(0)))
        crops = cut_crops([subject], 112, 1.2, "landmarks-tight", 2, 0, 0)
    expected = crop_faces(subject.photo, window, 112)[0].astype(float)
    assert np.abs(crops.images[0, 0] - expected).max() <= 8  # cv2.warpAffine rounds positions to 1/32 pixel
    np.testing.assert_allclose(crops.linear[0, 0], np.eye(2) * window.sizes[0])
    np.testing.assert_allclose(crops.offset[0, 0], window.corners[0])
    np.testing.assert_array_equal(crops.images[0, 1], crops.images[0, 0, :, ::-1])


def test_faces_without_landmarks_are_refused() -> None:
    faces = [Face(face.image, face.bbox_xyxy) for face in portraits()]
    with pytest.raises(FaceSetError, match="no landmarks"):
        search_contract(BUNDLED_MODEL, faces)


@pytest.mark.parametrize(
    ("shape", "says"), [(["n", 1, 16, 16], "three colours"), (["n", 3, "h", "w"], "--input-size"), (["n", 9], "four")]
)
def test_an_input_that_is_no_image_is_refused(tmp_path: Path, shape: list[int | str], says: str) -> None:
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["y"])],
        "other",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    path = tmp_path / "other.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    with pytest.raises(ConvertError, match=says):
        search_contract(path)


def test_outputs_that_are_as_good_are_told_by_their_names(disguised: Disguise) -> None:
    path = disguised("bgr", 127.5, 127.5)
    model = onnx.load(path)
    graph, landmarks = model.graph, model.graph.output[1].name
    graph.node.append(helper.make_node("Identity", [landmarks], ["again"]))
    graph.output.append(helper.make_tensor_value_info("again", TensorProto.FLOAT, None))
    onnx.save(model, path)
    output = next(finding for finding in search_contract(path).findings if finding.field == "output")
    assert (output.value, output.rivals) == (landmarks, ("again",))


def test_outputs_without_numbers_are_left_out_and_a_fixed_batch_is_filled_up(tmp_path: Path) -> None:
    """Of ten crops the third batch of four holds two."""
    said = helper.make_node("Constant", [], ["words"], value_strings=["a", "b"])
    nodes = [
        helper.make_node("Flatten", ["x"], ["y"]),
        helper.make_node("SequenceConstruct", ["y"], ["sequence"]),
        said,
    ]
    outputs = [
        helper.make_tensor_value_info("words", TensorProto.STRING, [2]),
        helper.make_tensor_sequence_value_info("sequence", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 3, 2, 2])
    model = helper.make_model(
        helper.make_graph(nodes, "n", [image], outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model, tmp_path / "a.onnx")
    crops = np.random.default_rng(0).integers(0, 256, (10, 2, 2, 3), np.uint8)
    trial = Hypothesis("NCHW", "bgr", "0..255", "landmarks-tight", 1.2, 0, "", "", "")
    found = Network(tmp_path / "a.onnx", None).run(crops, trial, None)
    np.testing.assert_array_equal(found[0], crops.transpose(0, 3, 1, 2).reshape(10, -1))
    assert list(found) == [0]

"""Networks whose answers are known beforehand: every detector reads them as its public project does."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_runtime import SCRFD, DetectorError, FaceDetector, ModelFileError, UltraFace, YuNet, open_detector

Outputs = dict[str, NDArray[np.float32]]

STRIDES = (8, 16, 32)
PHOTO = np.zeros((48, 64, 3), np.uint8)


@pytest.fixture
def constant(tmp_path: Path) -> Callable[..., Path]:
    """Write a network that gives the same answer to every image."""

    def write(outputs: Outputs, height: int | str = 64, width: int | str = 64) -> Path:
        graph = helper.make_graph(
            [helper.make_node("Identity", [f"{name}_value"], [name]) for name in outputs],
            "constant",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, height, width])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in outputs.items()],
            [numpy_helper.from_array(array, f"{name}_value") for name, array in outputs.items()],
        )
        path = tmp_path / "constant.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        return path

    return write


def yunet_outputs() -> Outputs:
    """One face of stride 16 in row 1, column 2 of 4: score sqrt(0.81 * 1), centre (2.5, 1.25) cells, 2 x 1 cells."""
    outputs = {}
    for stride in STRIDES:
        cells = (64 // stride) ** 2
        outputs[f"cls_{stride}"] = np.full((1, cells, 1), 0.01, np.float32)
        outputs[f"obj_{stride}"] = np.full((1, cells, 1), 1.7, np.float32)
        outputs[f"bbox_{stride}"] = np.zeros((1, cells, 4), np.float32)
        outputs[f"kps_{stride}"] = np.zeros((1, cells, 10), np.float32)
    outputs["cls_16"][0, 1 * 4 + 2] = 0.81
    outputs["bbox_16"][0, 1 * 4 + 2] = [0.5, 0.25, np.log(2), 0]
    return outputs


def scrfd_outputs() -> Outputs:
    """One face of stride 32, second prediction of row 0, column 1 of 2: 0.5, 0, 0.25, 1 strides from (32, 0)."""
    outputs = {}
    for kind, columns in (("score", 1), ("box", 4), ("points", 10)):
        for stride in STRIDES:
            outputs[f"{kind}{stride}"] = np.full((1, 2 * (64 // stride) ** 2, columns), 0.01, np.float32)
    outputs["score32"][0, 2 * 1 + 1] = 0.75
    outputs["box32"][0, 2 * 1 + 1] = [0.5, 0, 0.25, 1]
    return outputs


def ultraface_outputs() -> Outputs:
    """One face over a quarter of the picture."""
    return {
        "scores": np.array([[[0.9, 0.1], [0.2, 0.8]]], np.float32),
        "boxes": np.array([[[0, 0, 1, 1], [0.5, 0.5, 1, 1]]], np.float32),
    }


def test_yunet_boxes_lie_about_their_cell(constant: Callable[..., Path]) -> None:
    found = YuNet(constant(yunet_outputs()))(PHOTO)
    # 64 x 64 holds the 64 x 48 photograph as it is: centre (40, 20), 32 x 16 pixels.
    np.testing.assert_allclose(found, [[24, 12, 56, 28, 0.9]], atol=1e-4)


def test_yunet_shrinks_what_is_larger_and_enlarges_nothing(constant: Callable[..., Path]) -> None:
    detector = YuNet(constant(yunet_outputs()))
    np.testing.assert_allclose(detector(PHOTO.repeat(2, 0).repeat(2, 1))[0, :4], [48, 24, 112, 56], atol=1e-3)
    np.testing.assert_allclose(detector(PHOTO[:10, :20])[0, :4], [24, 12, 56, 28], atol=1e-3)


def test_scrfd_boxes_are_distances_from_their_point(constant: Callable[..., Path]) -> None:
    found = SCRFD(constant(scrfd_outputs()))(PHOTO)
    np.testing.assert_allclose(found, [[16, 0, 40, 32, 0.75]], atol=1e-4)


def test_scrfd_outputs_may_come_stride_by_stride_and_without_key_points(constant: Callable[..., Path]) -> None:
    outputs = scrfd_outputs()
    by_stride = {f"{kind}{stride}": outputs[f"{kind}{stride}"] for stride in STRIDES for kind in ("box", "score")}
    np.testing.assert_allclose(SCRFD(constant(by_stride))(PHOTO), [[16, 0, 40, 32, 0.75]], atol=1e-4)


def test_scrfd_enlarges_a_small_photograph(constant: Callable[..., Path]) -> None:
    found = SCRFD(constant(scrfd_outputs()))(PHOTO[:24, :32])
    np.testing.assert_allclose(found[0, :4], [8, 0, 20, 16], atol=1e-4)


def test_ultraface_boxes_are_fractions_of_the_stretched_photograph(constant: Callable[..., Path]) -> None:
    found = UltraFace(constant(ultraface_outputs()))(PHOTO)
    np.testing.assert_allclose(found, [[32, 24, 64, 48, 0.8]], atol=1e-4)


def test_hopeless_candidates_are_dropped(constant: Callable[..., Path]) -> None:
    outputs = yunet_outputs()
    outputs["cls_8"][0, :3] = 1
    outputs["bbox_8"][0, :3] = [[0, 0, 1e4, 0], [np.nan, 0, 0, 0], [0, 0, -1e4, 0]]
    assert len(YuNet(constant(outputs))(PHOTO)) == 1


def test_the_score_threshold_and_max_faces_are_obeyed(constant: Callable[..., Path]) -> None:
    path = constant(yunet_outputs())
    assert len(YuNet(path, score_threshold=0.95)(PHOTO)) == 0
    every = YuNet(path, score_threshold=0.05, nms_threshold=1)(PHOTO)
    assert len(every) == 64 + 16 + 4
    np.testing.assert_array_equal(YuNet(path, score_threshold=0.05, nms_threshold=1, max_faces=3)(PHOTO), every[:3])
    assert (np.diff(every[:, 4]) <= 0).all()


def test_no_face_gives_an_empty_array(constant: Callable[..., Path]) -> None:
    found = UltraFace(constant(ultraface_outputs()), score_threshold=1)(PHOTO)
    assert (found.shape, found.dtype) == ((0, 5), np.float32)


KINDS = [(YuNet, yunet_outputs), (SCRFD, scrfd_outputs), (UltraFace, ultraface_outputs)]


@pytest.mark.parametrize(("kind", "outputs"), KINDS)
def test_a_file_is_opened_as_what_it_holds(
    kind: type[FaceDetector], outputs: Callable[[], Outputs], constant: Callable[..., Path]
) -> None:
    path = constant(outputs())
    assert type(open_detector(path)) is kind
    assert type(open_detector(str(path), max_faces=1)) is kind
    for other, _ in KINDS:
        if other is not kind:
            with pytest.raises(ModelFileError, match=f"is not a {other.__name__} network"):
                other(path)  # type: ignore[call-arg]


def test_another_network_is_no_detector(constant: Callable[..., Path]) -> None:
    with pytest.raises(ModelFileError, match=r"not a detector of a kind known here .*YuNet, SCRFD, UltraFace"):
        open_detector(constant({"y": np.zeros((1, 196), np.float32)}))


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"score_threshold": 1.5}, "score_threshold must be from 0 to 1"),
        ({"score_threshold": float("nan")}, "score_threshold must be from 0 to 1"),
        ({"nms_threshold": -1}, "nms_threshold must be from 0 to 1"),
        ({"max_faces": 0}, "max_faces must be 1 or more"),
        ({"largest_side": 320}, "sees every photograph at 64 x 64: leave largest_side out"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, float], says: str, constant: Callable[..., Path]) -> None:
    with pytest.raises(DetectorError, match=says):
        YuNet(constant(yunet_outputs()), **setting)  # type: ignore[arg-type]


def test_a_free_input_needs_a_positive_largest_side(constant: Callable[..., Path]) -> None:
    with pytest.raises(DetectorError, match="largest_side must be 1 or more"):
        YuNet(constant(yunet_outputs(), "height", "width"), largest_side=0)

"""The published detectors on real photographs, and their decoders on networks of known outputs."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_calib import read_wflw
from pfld_edge_runtime import (
    SCRFD,
    DetectorError,
    FaceDetector,
    ImageError,
    ModelFileError,
    UltraFace,
    YuNet,
    find_boxes,
    open_detector,
)
from pfld_edge_runtime.arrays import Float32Array, Uint8Array
from pfld_edge_runtime.detection.catalogue import DETECTOR_FILES, is_intact

SHARED = Path(os.environ.get("PFLD_EDGE_SHARED", ""))


pytestmark = pytest.mark.usefixtures("shared")


MODELS = SHARED / "models/detectors"


YUNET = MODELS / "yunet_n_dynamic.onnx"


FILES = (
    "yunet_n_dynamic.onnx",
    "yunet_n_320_320.onnx",
    "scrfd_500m_kps.onnx",
    "scrfd_2.5g_kps.onnx",
    "version-RFB-320.onnx",
)


OPEN = {name: cache(lambda name=name: open_detector(MODELS / name)) for name in FILES}


def photographs() -> list[Uint8Array]:
    """The three photographs, and every twentieth of WFLW's."""
    paths = sorted((SHARED / "photos").glob("*.jpg")) + sorted((SHARED / "data/WFLW/WFLW_images").rglob("*.jpg"))[::20]
    assert len(paths) > 20
    return [np.asarray(cv2.imread(str(path)), np.uint8) for path in paths]


def corners(boxes: NDArray[Any]) -> NDArray[Any]:
    """From x, y, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:4]], axis=1)


def assert_same_faces(ours: Float32Array, boxes: NDArray[Any], scores: NDArray[Any], pixels: float) -> None:
    """Both give the same boxes; nearly equal scores may come in either order."""
    assert len(ours) == len(boxes)
    if len(ours):
        nearest = np.abs(ours[:, None, :4] - boxes).max(axis=2).argmin(axis=1)
        assert sorted(nearest) == list(range(len(boxes)))
        np.testing.assert_allclose(ours[:, :4], boxes[nearest], atol=pixels)
        np.testing.assert_allclose(ours[:, 4], scores[nearest], atol=0.02)
        assert (np.diff(ours[:, 4]) <= 0).all()


def test_the_files_are_the_published_ones() -> None:
    for entry in DETECTOR_FILES.values():
        assert (MODELS / entry.file).stat().st_size == entry.size
        assert is_intact(entry, MODELS / entry.file)


def test_yunet_finds_what_opencv_finds() -> None:
    ours = YuNet(YUNET, largest_side=10_000)
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    reference = cv2.FaceDetectorYN.create(str(YUNET), "", (320, 320), 0.7, 0.3)
    cv2.utils.logging.setLogLevel(level)
    faces = 0
    for photo in photographs():
        reference.setInputSize((photo.shape[1], photo.shape[0]))
        _, found = reference.detect(photo)
        found = np.zeros((0, 15)) if found is None else found
        assert_same_faces(ours(photo, "bgr"), corners(found), found[:, 14], 0.01)
        faces += len(found)
    assert faces > 40


@pytest.mark.parametrize("name", ["yunet_n_dynamic.onnx", "yunet_n_320_320.onnx"])
def test_yunet_sees_a_large_photograph_as_opencv_sees_the_shrunk_one(name: str) -> None:
    ours = YuNet(MODELS / name, largest_side=320 if "dynamic" in name else None)
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    reference = cv2.FaceDetectorYN.create(str(YUNET), "", (320, 320), 0.7, 0.3)
    cv2.utils.logging.setLogLevel(level)
    for photo in photographs()[:3]:
        scale = 320 / max(photo.shape[:2])
        width, height = round(photo.shape[1] * scale), round(photo.shape[0] * scale)
        reference.setInputSize((width, height))
        _, found = reference.detect(cv2.resize(photo, (width, height)))
        factors = np.tile([photo.shape[1] / width, photo.shape[0] / height], 2)
        assert_same_faces(ours(photo, "bgr"), corners(found) * factors, found[:, 14], 2)


def scrfd_by_hand(session: onnxruntime.InferenceSession, photo: Uint8Array) -> tuple[NDArray[Any], NDArray[Any]]:
    """InsightFace's protocol, one cell at a time: OpenCV's resize, blob and suppression."""
    scale = 640 / max(photo.shape[:2])
    size = (round(photo.shape[1] * scale), round(photo.shape[0] * scale))
    canvas = np.zeros((640, 640, 3), np.uint8)
    canvas[: size[1], : size[0]] = cv2.resize(photo, size)
    blob = cv2.dnn.blobFromImage(canvas, 1 / 128, (640, 640), (127.5, 127.5, 127.5), swapRB=True)
    outputs = session.run(None, {session.get_inputs()[0].name: blob})
    boxes, scores = [], []
    for level, stride in enumerate((8, 16, 32)):
        for index in np.flatnonzero(outputs[level][0, :, 0] >= 0.5):
            row, column = divmod(int(index) // 2, 640 // stride)
            left, top, right, bottom = outputs[level + 3][0, index]
            box = np.array([column - left, row - top, column + right, row + bottom]) * stride
            boxes.append(box * np.tile([photo.shape[1] / size[0], photo.shape[0] / size[1]], 2))
            scores.append(float(outputs[level][0, index, 0]))
    return _suppressed(boxes, scores, 0.4)


def ultraface_by_hand(session: onnxruntime.InferenceSession, photo: Uint8Array) -> tuple[NDArray[Any], NDArray[Any]]:
    """Linzaer's protocol."""
    blob = (cv2.resize(cv2.cvtColor(photo, cv2.COLOR_BGR2RGB), (320, 240)).astype(np.float32) - 127) / 128
    scores, boxes = session.run(None, {session.get_inputs()[0].name: blob.transpose(2, 0, 1)[None]})
    likely = scores[0, :, 1] >= 0.7
    height, width = photo.shape[:2]
    return _suppressed(list(boxes[0][likely] * (width, height, width, height)), list(scores[0, likely, 1]), 0.3)


def _suppressed(boxes: list[NDArray[Any]], scores: list[float], threshold: float) -> tuple[NDArray[Any], NDArray[Any]]:
    plain = [[*box[:2], *(box[2:] - box[:2])] for box in boxes]
    chosen = np.ravel(cv2.dnn.NMSBoxes(plain, scores, 0.0, threshold)).astype(int)
    return np.reshape(boxes, (-1, 4))[chosen], np.array(scores)[chosen]


@pytest.mark.parametrize(
    ("kind", "file", "by_hand"),
    [
        (SCRFD, "scrfd_500m_kps.onnx", scrfd_by_hand),
        (SCRFD, "scrfd_2.5g_kps.onnx", scrfd_by_hand),
        (UltraFace, "version-RFB-320.onnx", ultraface_by_hand),
    ],
)
def test_others_find_what_their_projects_protocol_finds(
    kind: type[SCRFD | UltraFace], file: str, by_hand: Callable[..., tuple[NDArray[Any], NDArray[Any]]]
) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(MODELS / file), options)
    detector, faces = kind(MODELS / file), 0
    for photo in photographs()[:15]:
        boxes, scores = by_hand(session, photo)
        # The resizes differ by a grey level here and there: faces at the very threshold may come or go.
        clear = [found[found[:, 4] > 0.75] for found in (detector(photo, "bgr"), np.column_stack([boxes, scores]))]
        assert_same_faces(clear[0], clear[1][:, :4], clear[1][:, 4], 2)
        faces += len(clear[0])
    assert faces > 15


@pytest.mark.parametrize("file", ["scrfd_500m_kps.onnx", "scrfd_2.5g_kps.onnx"])
def test_scrfd_finds_faces_that_fill_the_photograph(file: str) -> None:
    paths = sorted((SHARED / "data/lfw/images").glob("*.jpg"))[::220]
    assert len(paths) == 21
    assert all(len(OPEN[file]()(np.asarray(cv2.imread(str(path)), np.uint8), "bgr")) for path in paths)


@pytest.mark.parametrize(("file", "misses"), [*zip(FILES, (2, 6, 3, 1, 10), strict=True)])
def test_the_labelled_faces_of_wflw_are_found(file: str, misses: int) -> None:
    """The counts are those of benchmarks/detector_boxes.py, and one more: they must not grow."""
    detector = OPEN[file]()
    missed = 0
    for face in read_wflw(SHARED / "data/WFLW"):
        boxes, _ = find_boxes(detector, np.asarray(cv2.imread(str(face.image))), "bgr")
        shared = np.maximum(
            np.minimum(boxes[:, 2:], face.bbox_xyxy[2:]) - np.maximum(boxes[:, :2], face.bbox_xyxy[:2]), 0
        ).prod(axis=1)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (face.bbox_xyxy[2:] - face.bbox_xyxy[:2]).prod()
        missed += not (shared / (areas - shared) > 0.3).any()
    assert missed <= misses


@pytest.mark.parametrize("file", FILES)
def test_every_kind_of_image_gives_the_same_faces(file: str) -> None:
    detector, photo = OPEN[file](), np.asarray(cv2.imread(str(SHARED / "photos/duo.jpg")), np.uint8)
    expected = detector(photo, "bgr")
    assert len(expected) == 2
    rgb = np.ascontiguousarray(photo[:, :, ::-1])
    for same in (rgb, photo[:, :, ::-1], np.dstack([rgb, rgb[:, :, 0]]), np.asfortranarray(rgb)):
        np.testing.assert_array_equal(detector(same), expected)
    np.testing.assert_allclose(detector(rgb / 255.0)[:, :4], expected[:, :4], atol=1)
    grey = rgb[:, :, 1]
    np.testing.assert_array_equal(detector(grey), detector(np.repeat(grey[:, :, None], 3, axis=2)))
    assert not np.array_equal(detector(photo), expected)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 4000, 3), (4000, 1, 3), (2, 3), (33, 31, 4), (5, 7, 1)])
def test_small_and_odd_photographs_hold_no_face(file: str, shape: tuple[int, ...]) -> None:
    found = OPEN[file]()(np.full(shape, 90, np.uint8))
    assert (found.shape, found.dtype) == ((0, 5), np.float32)


@pytest.mark.parametrize("file", FILES)
def test_images_that_cannot_be_used_are_refused(file: str) -> None:
    detector = OPEN[file]()
    for shape in ((0, 5, 3), (5, 0, 3), (0,)):
        with pytest.raises(ImageError):
            detector(np.zeros(shape, np.uint8))
    with pytest.raises(ImageError, match="divide by 255"):
        detector(np.full((50, 50, 3), 128.0))
    with pytest.raises(ImageError, match="'rgb' or 'bgr'"):
        detector(np.zeros((9, 9, 3), np.uint8), "gbr")


def test_names_open_what_lies_in_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "pfld-edge/detectors"
    folder.mkdir(parents=True)
    kinds = {"yunet": YuNet, "scrfd": SCRFD, "scrfd-2.5g": SCRFD, "ultraface": UltraFace}
    for name, kind in kinds.items():
        (folder / DETECTOR_FILES[name].file).symlink_to((MODELS / DETECTOR_FILES[name].file).resolve())
        assert type(open_detector(name)) is kind
    assert open_detector("yunet", largest_side=320)
    with pytest.raises(DetectorError, match="leave largest_side out"):
        open_detector("ultraface", largest_side=320)


Outputs = dict[str, Float32Array]


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

"""Runtimes other than onnxruntime: the landmarks of the ONNX file, threads, and files that can't be used."""

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from pfld_edge_convert.formats.litert import write_litert
from pfld_edge_convert.quantization.plan import Plan
from pfld_edge_runtime import (
    Contract,
    DeviceError,
    DeviceWarning,
    FaceLandmarker,
    LandmarkModel,
    MissingPackageError,
    ModelContractError,
    ModelFileError,
    PfldEdgeError,
    networks,
    session,
)
from pfld_edge_runtime.arrays import Uint8Array

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")

Build = Callable[..., Path]
BOXES = [[10, 10, 50, 55], [-30, -5, 20, 40], [60, 40, 300, 200]]


@pytest.fixture
def file(build: Build, contract: Contract, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.tflite"
    model = onnx.load(build(contract))
    path.write_bytes(write_litert(Plan(model, {}), contract.replace(layout="NHWC")))
    return path


def test_a_litert_file_gives_the_landmarks_of_the_onnx_file(
    file: Path, build: Build, contract: Contract, photo: Uint8Array
) -> None:
    landmarker = FaceLandmarker(file)
    assert landmarker.device == "cpu"
    assert landmarker.contract == contract.replace(layout="NHWC")
    np.testing.assert_allclose(landmarker(photo, BOXES), FaceLandmarker(build(contract))(photo, BOXES), atol=1e-3)
    np.testing.assert_array_equal(FaceLandmarker(file.read_bytes())(photo, BOXES), landmarker(photo, BOXES))


def test_threads_may_share_a_model_and_a_copy_opens_its_file_again(file: Path) -> None:
    model = LandmarkModel.open(file)
    crops = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)
    expected = model.predict(crops)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda crop: model.predict(crop[None]), crops))
    np.testing.assert_array_equal(np.concatenate(found), expected)
    copy = pickle.loads(pickle.dumps(model))  # noqa: S301 - our own
    np.testing.assert_array_equal(copy.predict(crops), expected)


def test_a_truncated_file_is_an_error_in_one_line(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    for length in range(0, len(content), 997):
        broken = tmp_path / "broken.tflite"
        broken.write_bytes(content[:length])
        with pytest.raises(PfldEdgeError) as raised:
            LandmarkModel.open(broken)
        assert "\n" not in str(raised.value)


def test_what_cannot_be_used_is_refused(file: Path, contract: Contract) -> None:
    with pytest.raises(ModelFileError, match="no such model file"):
        LandmarkModel.open("nowhere.tflite")
    with pytest.raises(DeviceError, match="not on 'cuda'"):
        LandmarkModel.open(file, "cuda")
    with pytest.raises(ModelContractError, match="carries its own contract"):
        LandmarkModel.open(file, contract=contract)


@pytest.mark.parametrize("change", [{"input_size": 32}, {"input_dtype": "uint8"}, {"layout": "NCHW"}])
def test_a_contract_that_the_network_contradicts_is_refused(
    build: Build, contract: Contract, change: dict[str, object]
) -> None:
    model = onnx.load(build(contract))
    claimed = contract.replace(**{"layout": "NHWC", **change})
    with pytest.raises(ModelContractError, match="the network has"):
        LandmarkModel.open(write_litert(Plan(model, {}), claimed))


def test_without_a_package_one_sentence_names_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "find_spec", lambda _: None)
    with pytest.raises(MissingPackageError, match="pip install ai-edge-litert"):
        LandmarkModel.open(file)


def test_openvino_gives_the_landmarks_of_onnxruntime(build: Build, contract: Contract, photo: Uint8Array) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    path = build(contract)
    landmarker = FaceLandmarker(path, device="openvino", strict=True)
    assert (landmarker.device, landmarker.model.runtime) == ("openvino", "OpenVINO")
    np.testing.assert_allclose(landmarker(photo, BOXES), FaceLandmarker(path)(photo, BOXES), atol=1e-3)
    copy = pickle.loads(pickle.dumps(landmarker.model))  # noqa: S301 - our own
    assert copy.runtime == "OpenVINO"


def test_what_openvino_refuses_and_where_it_is_missing_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    with pytest.raises(DeviceError, match="give it the float file or the qdq file") as raised:
        FaceLandmarker(device="openvino")  # the bundled model's QLinearConv has scales per channel
    assert "\n" not in str(raised.value)
    monkeypatch.setattr(session, "find_spec", lambda _: None)
    with pytest.raises(DeviceError, match="run `pip install openvino`"):
        FaceLandmarker(device="openvino", strict=True)
    with pytest.warns(DeviceWarning, match="'cpu' does.*pip install openvino"):
        assert FaceLandmarker(device="openvino").device == "cpu"

"""`FaceLandmarker` and `LandmarkModel`: batches, colours, threads, callables, and invalid arguments."""

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pfld_edge_runtime import (
    DEVICES,
    BoxError,
    Contract,
    DeviceError,
    FaceLandmarker,
    ImageError,
    LandmarkModel,
    ModelContractError,
    ModelFileError,
    crop_faces,
    crop_windows,
    prepare_input,
)
from pfld_edge_runtime.arrays import Float32Array, Uint8Array

Build = Callable[..., Path]

BOXES = [[10, 10, 50, 55], [-30, -5, 20, 40], [60, 40, 300, 200], [200, 200, 201, 201], [3, 3, 4, 4]]


def test_landmarks_come_in_photograph_pixels(build: Build, contract: Contract, photo: Uint8Array) -> None:
    found = FaceLandmarker(build(contract))(photo, [[10, 10, 30, 30]])
    assert (found.shape, found.dtype) == ((1, 98, 2), np.float32)
    # The bias says 0.5 and the weights add little: points near the centre of a 24 pixel crop at (8, 8).
    assert np.abs(found - 20).max() < 24


def test_all_faces_in_one_batch_equal_one_by_one(build: Build, contract: Contract, photo: Uint8Array) -> None:
    landmarker = FaceLandmarker(build(contract))
    together = landmarker(photo, BOXES)
    alone = np.concatenate([landmarker(photo, [box]) for box in BOXES])
    np.testing.assert_allclose(together, alone, atol=1e-3)


def test_a_network_of_fixed_batch_takes_many_faces(build: Build, contract: Contract, photo: Uint8Array) -> None:
    expected = FaceLandmarker(build(contract).read_bytes())(photo, BOXES)
    np.testing.assert_allclose(FaceLandmarker(build(contract, batch=1))(photo, BOXES), expected, atol=1e-3)


@pytest.mark.parametrize("batch", ["n", 1])
def test_zero_boxes_give_no_faces(build: Build, contract: Contract, photo: Uint8Array, batch: int | str) -> None:
    found = FaceLandmarker(build(contract, batch=batch))(photo, [])
    assert (found.shape, found.dtype) == ((0, 98, 2), np.float32)


@pytest.mark.parametrize("order", ["bgr", "rgb"])
def test_rgb_and_bgr_photographs_give_the_same_landmarks(build: Build, photo: Uint8Array, order: str) -> None:
    landmarker = FaceLandmarker(build(Contract(input_size=16, color_order=order)))
    rgb = landmarker(photo, BOXES, "rgb")
    np.testing.assert_array_equal(landmarker(photo[:, :, ::-1], BOXES, "bgr"), rgb)
    assert not np.allclose(landmarker(photo, BOXES, "bgr"), rgb, atol=0.01)


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_threads_change_no_landmark(build: Build, contract: Contract, photo: Uint8Array, threads: int) -> None:
    path = build(contract)
    found = FaceLandmarker(path, threads=threads)(photo, BOXES)
    np.testing.assert_allclose(found, FaceLandmarker(path)(photo, BOXES), atol=1e-3)


def test_one_landmarker_serves_many_threads(build: Build, contract: Contract, photo: Uint8Array) -> None:
    landmarker = FaceLandmarker(build(contract))
    expected = landmarker(photo, BOXES)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: landmarker(photo, BOXES), range(32)):
            np.testing.assert_array_equal(found, expected)


def test_a_contract_can_be_given_for_a_file_without(build: Build, contract: Contract, photo: Uint8Array) -> None:
    expected = FaceLandmarker(build(contract))(photo, BOXES)
    np.testing.assert_array_equal(FaceLandmarker(build(), contract=contract)(photo, BOXES), expected)


def test_the_input_is_normalized_as_the_contract_says() -> None:
    crops = np.arange(2 * 16 * 16 * 3).reshape(2, 16, 16, 3).astype(np.uint8)
    contract = Contract(input_size=16, mean=(1, 2, 3), scale=(10, 20, 30))
    batch = prepare_input(crops, contract)
    expected = (crops.astype(np.float64) - (1, 2, 3)) / (10, 20, 30)
    np.testing.assert_allclose(batch, expected.transpose(0, 3, 1, 2), atol=1e-5)
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    raw = prepare_input(crops, contract.replace(input_dtype="uint8", layout="NHWC"))
    np.testing.assert_array_equal(raw, crops)


def test_a_file_without_a_contract_is_refused(build: Build) -> None:
    with pytest.raises(ModelContractError, match=r"carries no contract.*convert it with pfld-edge, or pass `contract`"):
        FaceLandmarker(build())


def test_a_second_contract_is_refused(build: Build, contract: Contract) -> None:
    with pytest.raises(ModelContractError, match="its own contract"):
        FaceLandmarker(build(contract), contract=contract.replace(color_order="rgb"))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format_version": 99}'])
def test_a_file_with_a_damaged_contract_is_refused(build: Build, text: str) -> None:
    with pytest.raises(ModelContractError, match="contract"):
        FaceLandmarker(build(text or " "))


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        ({"size": 24}, "promises an input"),
        ({"points": 68}, "promises 196 outputs"),
        ({"batch": 4}, "exactly 4 faces a call"),
    ],
)
def test_a_contract_that_the_network_contradicts_is_refused(
    build: Build, contract: Contract, spoilt: dict[str, int], reason: str
) -> None:
    with pytest.raises(ModelContractError, match=reason):
        FaceLandmarker(build(contract, **spoilt))


@pytest.mark.parametrize("changes", [{"layout": "NHWC"}, {"input_dtype": "uint8"}], ids=repr)
def test_layout_and_dtype_are_checked_against_the_network(
    build: Build, contract: Contract, changes: dict[str, str]
) -> None:
    with pytest.raises(ModelContractError, match="promises"):
        FaceLandmarker(build(contract.replace(**changes)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"none\.onnx: no such model file"):
        FaceLandmarker(tmp_path / "none.onnx")


@pytest.mark.parametrize("spoil", [lambda data: data[: len(data) // 2], lambda _: b"", lambda _: b"PNG" * 99])
def test_a_damaged_file_is_refused_in_one_line(
    build: Build, contract: Contract, tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    data = spoil(build(contract).read_bytes())
    path = tmp_path / "damaged.onnx"
    path.write_bytes(data)
    for model in (path, data):
        with pytest.raises(ModelFileError, match="is not an ONNX model") as caught:
            FaceLandmarker(model)
        assert "\n" not in str(caught.value)


def test_unknown_devices_and_threads_are_refused(build: Build, contract: Contract) -> None:
    path = build(contract)
    with pytest.raises(DeviceError, match="unknown device 'tpu'; known: cpu"):
        FaceLandmarker(path, "tpu")
    for threads in (-1, 1.5, "2", True, None):
        with pytest.raises(DeviceError, match="threads"):
            FaceLandmarker(path, threads=threads)  # type: ignore[arg-type]


def test_auto_opens_on_any_machine(build: Build, contract: Contract, photo: Uint8Array) -> None:
    landmarker = FaceLandmarker(build(contract), "auto")
    assert landmarker.providers[-1] == "CPUExecutionProvider"
    assert landmarker.device in DEVICES
    assert landmarker(photo, BOXES).shape == (5, 98, 2)


def test_what_cannot_be_used_is_refused(build: Build, contract: Contract, photo: Uint8Array) -> None:
    landmarker = FaceLandmarker(build(contract))
    with pytest.raises(BoxError):
        landmarker(photo, [[np.nan, 0, 1, 1]])
    with pytest.raises(ImageError):
        landmarker(photo[:0], [[0, 0, 9, 9]])
    with pytest.raises(ImageError):
        landmarker(photo[:0], [])
    with pytest.raises(ImageError, match="'rgb' or 'bgr'"):
        landmarker(photo, BOXES, "grb")


def test_a_landmark_model_of_a_callable_is_the_network_that_it_calls(
    build: Build, contract: Contract, photo: Uint8Array
) -> None:
    opened = LandmarkModel.open(build(contract))
    seen: list[int] = []

    def function(crops: Uint8Array) -> Float32Array:
        seen.append(len(crops))
        return opened.predict(crops).reshape(len(crops), -1)

    model = LandmarkModel(contract, function, batch_size=2)
    expected = FaceLandmarker(build(contract))(photo, BOXES)
    np.testing.assert_allclose(FaceLandmarker(model)(photo, BOXES), expected, atol=1e-3)
    assert seen == [2, 2, 1]
    assert (model.device, model.providers, model.contract) == ("callable", [], contract)


def test_a_landmark_model_of_a_file_can_be_pickled(build: Build, contract: Contract, photo: Uint8Array) -> None:
    model = LandmarkModel.open(build(contract))
    crops = crop_faces(photo, crop_windows(BOXES, 1.2), 16)
    copy = pickle.loads(pickle.dumps(model))  # noqa: S301 - bytes of our own
    assert copy.contract == contract
    np.testing.assert_array_equal(copy.predict(crops), model.predict(crops))


def test_a_landmark_model_refuses_other_crops_and_other_outputs(contract: Contract, photo: Uint8Array) -> None:
    model = LandmarkModel(contract, lambda crops: np.zeros((len(crops), 68, 2)))
    with pytest.raises(ImageError, match=r"uint8 \(N, 16, 16, 3\)"):
        model.predict(photo[None])
    with pytest.raises(ModelContractError, match="98 points a face"):
        model.predict(np.zeros((3, 16, 16, 3), np.uint8))

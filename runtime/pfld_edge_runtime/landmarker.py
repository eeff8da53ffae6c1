"""Photograph and boxes in, landmarks in photograph pixels out."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.contract import Contract
from pfld_edge_runtime.crop import crop_faces, crop_windows
from pfld_edge_runtime.devices import running_device
from pfld_edge_runtime.errors import ImageError, ModelContractError
from pfld_edge_runtime.session import check_signature, open_session, session_contract

__all__ = ["BUNDLED_MODEL", "FaceLandmarker", "prepare_input"]

BUNDLED_MODEL = Path(__file__).parent / "models" / "pfld-edge-s.int8.onnx"
"""The INT8 network that comes with the package."""

# The network's memory grows with the batch, its speed no more: a crowd in one batch would only hold memory for good.
_FACES_A_RUN = 16


class FaceLandmarker:
    """Finds the landmarks of faces whose boxes are known.

    Thread-safe: a call keeps nothing in the object.

    Example:
        >>> landmarker = FaceLandmarker()
        >>> landmarks = landmarker(image, [[120, 80, 260, 240]])  # (1, 98, 2), photograph pixels
    """

    def __init__(
        self,
        model: str | Path | bytes | None = None,
        device: str = "cpu",
        threads: int = 1,
        *,
        contract: Contract | None = None,
        strict: bool = False,
        spinning: bool = False,
    ) -> None:
        """Open a model.

        Args:
            model: An ONNX file that carries its contract, or its bytes; None for the bundled model.
            device: ``cpu``, ``cuda``, ``tensorrt``, ``openvino``, ``coreml``, ``xnnpack``, or ``auto`` for the first of
                them that really runs the model (never TensorRT).
            threads: Threads of one call; 0 for onnxruntime's own choice.
            contract: For files that carry none; must be None where the file has its own.
            strict: Fail where `device` can't run the model; otherwise another one runs it and a `DeviceWarning` says
                which.
            spinning: Let idle threads wait in a loop, for speed with several threads and at the battery's cost.

        Raises:
            ModelFileError: The file is missing or not an ONNX model.
            ModelContractError: The file carries no contract, a damaged one, or one that its network contradicts.
            DeviceError: The device is unknown; or it can't run the model, and `strict` is set.
        """
        source = BUNDLED_MODEL if model is None else model
        self._session = open_session(source, device, threads, strict=strict, spinning=spinning)
        self._contract = _agreed(session_contract(self._session), contract)
        check_signature(self._session, self._contract)
        self._input = self._session.get_inputs()[0].name
        # A network with a fixed batch of one (the published files) takes one face a call.
        self._fixed_batch = self._session.get_inputs()[0].shape[0] == 1

    @property
    def contract(self) -> Contract:
        """What the model promises: crop rule, colour order, landmark scheme."""
        return self._contract

    @property
    def device(self) -> str:
        """The device that really runs the model (most of its layers, where onnxruntime tells), never ``auto``."""
        return running_device(self._session)

    @property
    def providers(self) -> list[str]:
        """The onnxruntime execution providers that loaded, first choice first."""
        return list(self._session.get_providers())

    def __call__(self, image: NDArray[np.generic], boxes: object, color: str = "rgb") -> NDArray[np.float32]:
        """Find the landmarks of every boxed face, all in one batch.

        Args:
            image: ``(H, W, 3)``, ``(H, W, 4)``, ``(H, W, 1)`` or ``(H, W)``; uint8, or floating point in 0..1.
            boxes: ``(N, 4)`` x0, y0, x1, y1 in pixels, tight around the face's landmarks; may leave the photograph.
            color: Channel order of `image`: ``rgb`` or ``bgr``.

        Returns:
            ``(N, P, 2)`` float32, x and y in photograph pixels, P points in the contract's order. No boxes give
            ``(0, P, 2)``.

        Raises:
            ImageError: The image can't be used.
            BoxError: A box can't be used.
        """
        if color not in ("rgb", "bgr"):
            raise ImageError(f"color must be 'rgb' or 'bgr', not {color!r}")
        windows = crop_windows(boxes, self._contract.crop.margin)
        swap = color != self._contract.color_order
        crops = crop_faces(image, windows, self._contract.input_size, swap_channels=swap)
        return windows.to_image(self.predict_crops(crops))

    def predict_crops(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run the network on faces that are already cut.

        Args:
            crops: ``(N, S, S, 3)`` uint8 in the contract's colour order and size.

        Returns:
            ``(N, P, 2)`` float32, fractions of the crop.
        """
        points = self._contract.landmarks.num_landmarks
        if len(crops) == 0:
            return np.zeros((0, points, 2), np.float32)
        outputs = []
        step = 1 if self._fixed_batch else _FACES_A_RUN
        for start in range(0, len(crops), step):
            batch = prepare_input(crops[start : start + step], self._contract)
            outputs.append(self._session.run(None, {self._input: batch})[0])
        return np.asarray(np.concatenate(outputs), np.float32).reshape(-1, points, 2)


def prepare_input(crops: NDArray[np.uint8], contract: Contract) -> NDArray[np.generic]:
    """Turn cut faces into what the network takes: normalized, in its layout and dtype.

    Args:
        crops: ``(N, S, S, 3)`` uint8 in the contract's colour order.
        contract: The network's contract.

    Returns:
        ``(N, 3, S, S)`` or ``(N, S, S, 3)``, contiguous, float32 ``(pixel - mean) / scale`` or the raw uint8.
    """
    batch: NDArray[np.generic] = crops
    if contract.input_dtype == "float32":
        factor = 1 / np.array(contract.scale, np.float32)
        batch = crops * factor - np.array(contract.mean, np.float32) * factor
    if contract.layout == "NCHW":
        batch = batch.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(batch)


def _agreed(carried: Contract | None, given: Contract | None) -> Contract:
    """Choose the contract: the file's own, or the caller's where the file has none."""
    if carried is not None and given is not None and carried != given:
        raise ModelContractError("the model carries its own contract: leave `contract` out")
    chosen = carried or given
    if chosen is None:
        raise ModelContractError(
            "the model carries no contract, so its colour order and crop are unknown: convert it with pfld-edge, "
            "or pass `contract`"
        )
    return chosen

"""`LandmarkModel`, a landmark network and its contract, whatever runs it; `FaceLandmarker`, which users call."""

import copyreg
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike, NDArray

from pfld_edge_runtime.arrays import Float32Array, Float64Array, Uint8Array
from pfld_edge_runtime.contract import CONTRACT_KEY, LOG_VARIANCES, Contract, LandmarkScheme
from pfld_edge_runtime.crop import contract_crops
from pfld_edge_runtime.errors import (
    ImageError,
    LandmarkError,
    ModelContractError,
    ModelFileError,
    PfldEdgeError,
    naming,
)
from pfld_edge_runtime.session import absolute, check_model, has_openvino, is_litert, open_session, running_device

if TYPE_CHECKING:
    from pfld_edge_runtime.networks import Network

Called = TypeVar("Called")

BUNDLED_MODEL = Path(__file__).parent / "models" / "pfld-edge-m.int8.onnx"
"""The INT8 network that is opened where no model is given: pfld-edge-m, the more accurate of the two in the package."""

FAST_MODEL = BUNDLED_MODEL.with_name("pfld-edge-s.int8.onnx")
"""The other one, pfld-edge-s: half the time of pfld-edge-m, less accurate. `FaceAnalyzer(landmarker=FAST_MODEL)`."""

# The network's memory grows with the batch, its speed no more: a crowd in one batch would only hold memory for good.
_BATCH_SIZE = 16

FARTHEST_LANDMARK = 1e4
"""Crop sides from which on a coordinate is damage: no photograph (65,535 pixels in JPEG) is as many faces wide."""


class LandmarkModel:
    """A landmark network with its contract: from cropped faces to landmarks as fractions of the crop.

    `open` and `from_session` run an ONNX network; the constructor takes any callable, such as a PyTorch network or
    another runtime. Thread-safe where the callable is; onnxruntime's sessions are. A model from `open` can be pickled:
    the copy opens its file again.

    Attributes:
        contract: What the network promises: crop rule, colour order, landmark scheme.
        name: For tables and messages: the file's name.
        path: The file; None where there is none.
        kind: ``onnx fp32``, ``onnx int8``, ``torch``, ...; ``callable`` where the maker of the object names none.
        assumed: True where the file carries no contract, and the caller's was taken.
        runtime: ``onnxruntime``, ``LiteRT``, ``TFLite Micro``, ``OpenVINO``; empty for a callable.
        takes_roll: Whether `locate` can turn crops; False for an end-to-end graph of an older version.

    Example:
        >>> model = LandmarkModel.open("pfld-edge-s.onnx")
        >>> model.predict(crops)  # (N, 98, 2), fractions of the crop
    """

    runtime = ""
    takes_roll = True
    _device = "callable"
    _layers: Callable[[], tuple[int, int]] | None = None

    def __init__(
        self,
        contract: Contract,
        function: Callable[[Uint8Array], ArrayLike],
        *,
        batch_size: int = _BATCH_SIZE,
        name: str = "",
        path: Path | None = None,
        kind: str = "callable",
        assumed: bool = False,
    ) -> None:
        """Make a model of a callable.

        `function` maps ``(n, S, S, 3)`` uint8 crops in the contract's colour order and size, `batch_size` at most, to
        ``(n, P, 2)`` or ``(n, 2 * P)`` fractions of the crop; `prepare_input` does the contract's normalization. For
        the other arguments see the class.
        """
        self.name, self.path, self.kind, self.assumed = name, path, kind, assumed
        self.contract = contract
        self._function = function
        self._batch_size = batch_size
        self._session: onnxruntime.InferenceSession | None = None
        self._reopen: Callable[[], LandmarkModel] | None = None

    @classmethod
    def open(
        cls,
        model: str | Path | bytes | None = None,
        device: str = "cpu",
        threads: int = 1,
        *,
        contract: Contract | None = None,
        strict: bool = False,
        spinning: bool = False,
    ) -> "LandmarkModel":
        """Open an ONNX file, or a LiteRT file where the package ai-edge-litert or tflite-runtime is installed.

        ``openvino`` is onnxruntime's provider where it has that, else the package openvino, which must be installed.

        Args:
            model: A file (``.tflite`` or ONNX) that carries its contract, or its bytes; None for the bundled model.
            device: ``cpu``, ``cuda``, ``tensorrt``, ``openvino``, ``coreml``, ``xnnpack``, or ``auto`` for the first of
                them that really runs the model (never TensorRT). Of a LiteRT file ``cpu``, or ``tflite-micro``.
            threads: Threads of one call; 0 for onnxruntime's own choice.
            contract: For files that carry none; must be None where the file has its own.
            strict: Fail where `device` can't run the model; otherwise another one runs it and a `DeviceWarning` says
                which.
            spinning: Let idle threads wait in a loop, for speed with several threads and at the battery's cost.

        Raises:
            ModelFileError: The file is missing or not an ONNX model or LiteRT file.
            ModelContractError: The file carries no contract, a damaged one, or one that its network contradicts.
            MissingPackageError: Neither package for LiteRT files is installed.
            DeviceError: The device is unknown; or it can't run the model, and `strict` is set.
        """
        source = BUNDLED_MODEL if model is None else model
        check_model(source)
        if is_litert(source):
            with naming(Path(source)) if isinstance(source, str | Path) else nullcontext():
                return cls._open_litert(source, device, threads, contract)
        in_package = device == "openvino" and has_openvino()
        where = "cpu" if in_package else device
        session = open_session(source, where, threads, strict=strict, spinning=spinning)
        with naming(Path(source)) if isinstance(source, str | Path) else nullcontext():
            opened = cls.from_session(session, contract)
            if in_package:
                from pfld_edge_runtime.networks import open_openvino

                opened._run_by(open_openvino(source if isinstance(source, bytes) else str(source), threads), device)
        if isinstance(source, str | Path):
            opened.path = Path(source)
            opened.name = opened.path.name
        again = absolute(source)
        opened._reopen = partial(cls.open, again, device, threads, contract=contract, strict=strict, spinning=spinning)
        return opened

    @classmethod
    def from_session(cls, session: onnxruntime.InferenceSession, contract: Contract | None = None) -> "LandmarkModel":
        """Make a model of an open onnxruntime session of a network with one input and one output.

        `contract` is for files that carry none, and None otherwise; a `ModelContractError` says that there is none, a
        damaged one, or one that the network contradicts.
        """
        carried = session_contract(session)
        agreed = _agreed(carried, contract)
        check_signature(session, agreed)
        name, shape = session.get_inputs()[0].name, session.get_inputs()[0].shape
        outputs = [output.name for output in session.get_outputs()]

        def run(crops: Uint8Array) -> Float32Array:
            found: list[Float32Array] = session.run(outputs, {name: prepare_input(crops, agreed)})
            return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

        # A network with a fixed batch of one (the published files) takes one face a call.
        batch_size = 1 if shape[0] == 1 else _BATCH_SIZE
        kind = "onnx fp32" if agreed.quantization == "none" else "onnx int8"
        model = cls(agreed, run, batch_size=batch_size, kind=kind, assumed=carried is None)
        model._session, model.runtime = session, "onnxruntime"
        return model

    @classmethod
    def _open_litert(
        cls, source: str | Path | bytes, device: str, threads: int, contract: Contract | None
    ) -> "LandmarkModel":
        from pfld_edge_runtime.networks import TFLITE_MICRO, litert_contract, open_litert

        path = None if isinstance(source, bytes) else Path(source)
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        carried = litert_contract(content)
        agreed = _agreed(carried, contract)
        network = open_litert(content, agreed, device, threads)
        name = "" if path is None else path.name
        model = cls(agreed, network.run, name=name, path=path, kind="litert int8", assumed=carried is None)
        model._run_by(network, TFLITE_MICRO if device == TFLITE_MICRO else "cpu")
        model._reopen = partial(cls.open, absolute(source), device, threads, contract=contract)
        return model

    def _run_by(self, network: "Network", device: str) -> None:
        """Take a network of another runtime, which takes one face a call, in place of a session."""
        contract = self.contract
        self._function = lambda crops: network.run(prepare_input(crops, contract))
        self._session, self._batch_size, self._device = None, 1, device
        self.runtime, self._layers = network.runtime, network.layers

    def integer_layers(self) -> tuple[int, int] | None:
        """Count the convolutions and products in integers, and all of them; None where the runtime doesn't tell."""
        return None if self._layers is None else self._layers()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments of `open`, not the session; a model of a callable pickles the callable."""
        if self._reopen is not None:
            return self._reopen, ()
        if self._session is not None:
            raise TypeError("a LandmarkModel of an open session can't be pickled: make it with LandmarkModel.open")
        return copyreg.__newobj__, (type(self),), vars(self)  # type: ignore[attr-defined]

    @property
    def sha256(self) -> str:
        """Hash of the file, hexadecimal; empty where there is none."""
        import hashlib  # OpenSSL takes milliseconds to load, and few callers ask

        return "" if self.path is None else hashlib.sha256(self.path.read_bytes()).hexdigest()

    @property
    def device(self) -> str:
        """The device that really runs most of the network, never ``auto``; ``callable`` for a callable."""
        return self._device if self._session is None else running_device(self._session)

    @property
    def providers(self) -> list[str]:
        """The onnxruntime execution providers that loaded, first choice first; none for a callable."""
        return [] if self._session is None else list(self._session.get_providers())

    def locate(
        self, image: NDArray[np.generic], boxes: object, color: str = "rgb", roll: object = None
    ) -> Float32Array:
        """Find the landmarks of every boxed face: crop, predict, map back to the photograph; see `FaceLandmarker`.

        A damaged network may give NaN.
        """
        windows, crops = contract_crops(image, boxes, self.contract, color, roll)
        return windows.to_image(self.predict(crops))

    def locate_with_confidence(
        self, image: NDArray[np.generic], boxes: object, color: str = "rgb", roll: object = None
    ) -> tuple[Float32Array, Float32Array]:
        """`locate`, and each point's confidence, ``(N, P)`` float32 in 0..1: the contract's `spread_curve`.

        NaN where the contract has none.
        """
        windows, crops = contract_crops(image, boxes, self.contract, color, roll)
        found, spreads = self.predict_with_spread(crops)
        curve = self.contract.spread_curve
        return windows.to_image(found), np.full_like(spreads, np.nan) if curve is None else curve(spreads)

    def predict(self, crops: Uint8Array) -> Float32Array:
        """Predict landmarks of ``(N, S, S, 3)`` uint8 crops in the contract's colour order and size; see `crop_faces`.

        Gives ``(N, P, 2)`` float32, fractions of the crop's side, P points in the contract's order; NaN where a damaged
        network gives NaN, infinity, or a number beyond any photograph.

        Raises:
            ImageError: The crops have another shape or dtype.
            ModelContractError: The callable returned another number of values than the contract promises.
        """
        return self._run(crops)[0]

    def predict_with_spread(self, crops: Uint8Array) -> tuple[Float32Array, Float32Array]:
        """`predict`, and the spread of each point's heat map, ``(N, P)`` float32 fractions of the crop's side.

        NaN where the network has no output `LOG_VARIANCES`.
        """
        found, log_variances = self._run(crops)
        if log_variances.shape != found.shape[:2]:
            return found, np.full(found.shape[:2], np.nan, np.float32)
        return found, np.exp(np.minimum(log_variances / 2, 0))

    def _run(self, crops: Uint8Array) -> tuple[Float32Array, Float32Array]:
        """Landmarks, and `LOG_VARIANCES`, ``(N, 0)`` where unknown."""
        size, values = self.contract.input_size, 2 * self.contract.landmarks.num_landmarks
        if crops.dtype != np.uint8 or crops.shape[1:] != (size, size, 3):
            raise ImageError(f"crops must be uint8 (N, {size}, {size}, 3); found {crops.dtype} {crops.shape}")
        outputs = [np.zeros((0, values), np.float32)] if len(crops) == 0 else []
        for start in range(0, len(crops), self._batch_size):
            batch = crops[start : start + self._batch_size]
            output = np.asarray(self._function(batch), np.float32)
            known = self._session is not None and output.shape[1] > values  # with variances
            if output.size != len(batch) * values and not known:
                raise ModelContractError(
                    f"the contract promises {values // 2} points a face; the network gave {output.shape} for "
                    f"{len(batch)}"
                )
            outputs.append(output.reshape(len(batch), -1))
        found = outputs[0] if len(outputs) == 1 else np.concatenate(outputs)
        landmarks = found[:, :values]
        # False where a sum of NaN tells damage too; one product is cheaper than a look at each.
        if not np.vdot(landmarks, landmarks) < FARTHEST_LANDMARK:
            landmarks = np.where(np.abs(landmarks) < FARTHEST_LANDMARK, landmarks, np.float32(np.nan))
        return landmarks.reshape(len(crops), values // 2, 2), found[:, values:]


class FaceLandmarker:
    """Finds the landmarks of faces whose boxes are known: crops them, runs a `LandmarkModel`, maps its output back.

    Thread-safe: a call keeps nothing in the object.

    Attributes:
        model: The network that is run on the crops.

    Example:
        >>> landmarker = FaceLandmarker()
        >>> landmarks = landmarker(image, [[120, 80, 260, 240]])  # (1, 98, 2), photograph pixels
    """

    def __init__(
        self,
        model: str | Path | bytes | LandmarkModel | None = None,
        device: str = "cpu",
        threads: int = 1,
        *,
        contract: Contract | None = None,
        strict: bool = False,
        spinning: bool = False,
    ) -> None:
        """Open a model: arguments and errors are those of `LandmarkModel.open`; a `LandmarkModel` is taken as it is."""
        if not isinstance(model, LandmarkModel):
            model = LandmarkModel.open(model, device, threads, contract=contract, strict=strict, spinning=spinning)
        self.model = model

    @property
    def contract(self) -> Contract:
        """See `LandmarkModel.contract`."""
        return self.model.contract

    @property
    def device(self) -> str:
        """See `LandmarkModel.device`."""
        return self.model.device

    @property
    def providers(self) -> list[str]:
        """See `LandmarkModel.providers`."""
        return self.model.providers

    def __call__(
        self, image: NDArray[np.generic], boxes: object, color: str = "rgb", roll: object = None
    ) -> Float32Array:
        """Find the landmarks of every boxed face, all in one batch.

        Args:
            image: ``(H, W, 3)``, ``(H, W, 4)``, ``(H, W, 1)`` or ``(H, W)``; uint8, or floating point in 0..1.
            boxes: ``(N, 4)`` x0, y0, x1, y1 in pixels, tight around the face's landmarks; may leave the photograph.
            color: Channel order of `image`: ``rgb`` or ``bgr``.
            roll: Degrees by which each face leans, for faces that lie or stand on their head; see `crop_windows`.

        Returns:
            ``(N, P, 2)`` float32, x and y in photograph pixels, P points in the contract's order. No boxes give
            ``(0, P, 2)``.

        Raises:
            ImageError: The image can't be used.
            BoxError: A box can't be used.
            ModelFileError: The network gave NaN or infinity.
        """
        return self._finite(self.model.locate(image, boxes, color, roll))

    def with_confidence(
        self, image: NDArray[np.generic], boxes: object, color: str = "rgb", roll: object = None
    ) -> tuple[Float32Array, Float32Array]:
        """Find landmarks as a call does, and each point's confidence; see `LandmarkModel.locate_with_confidence`."""
        landmarks, confidence = self.model.locate_with_confidence(image, boxes, color, roll)
        return self._finite(landmarks), confidence

    def _finite(self, landmarks: Float32Array) -> Float32Array:
        if not isfinite(np.vdot(landmarks, landmarks)):  # one product is cheaper than a look at each
            name = self.model.name or "the model"
            raise ModelFileError(
                f"{name} gave landmarks that are not finite numbers, or far outside of the photograph: its contract "
                "doesn't fit the network (`pfld-edge contract --find` tells), or the file is damaged"
            )
        return landmarks

    def predict_crops(self, crops: Uint8Array) -> Float32Array:
        """See `LandmarkModel.predict`."""
        return self.model.predict(crops)


def as_landmarker(landmarker: Called | str | Path | bytes | LandmarkModel | None) -> "Called | FaceLandmarker":
    """Open what `FaceLandmarker` takes, and leave a callable as it is; a `ModelContractError` says it is neither."""
    if landmarker is None or isinstance(landmarker, str | Path | bytes | LandmarkModel):
        return FaceLandmarker(landmarker)
    if not callable(landmarker) or isinstance(landmarker, type):
        raise ModelContractError(f"a landmarker is an ONNX file, a LandmarkModel or a callable; found {landmarker!r}")
    return landmarker


def locate_points(
    landmarker: Callable[..., object],
    image: NDArray[np.generic],
    boxes: Float64Array,
    color: str,
    rolls: Float64Array,
    scheme: LandmarkScheme,
    error: type[PfldEdgeError] = LandmarkError,
) -> Float64Array:
    """Find landmarks with any landmarker: ``(N, P, 3)`` x, y and confidence, NaN where it doesn't tell that.

    Crops are turned where a roll is not 0. `error` is raised where a callable returns something other than ``(N, P,
    2)`` landmarks of the scheme.
    """
    turned = {"roll": rolls} if np.count_nonzero(rolls) else {}
    if isinstance(landmarker, FaceLandmarker):
        landmarks, confidence = landmarker.with_confidence(image, boxes, color, **turned)
    else:
        expected = len(boxes), scheme.num_landmarks, 2
        landmarks, confidence = np.zeros(expected, np.float32), np.full(expected[:2], np.nan, np.float32)
        if len(boxes):
            landmarks = np.asarray(landmarker(image, boxes, color, **turned))
        if landmarks.shape != expected:
            raise error(
                f"the landmarker gave {landmarks.shape} for {len(boxes)} boxes; its scheme {scheme.name} asks for "
                f"{expected}"
            )
    points = np.empty((*landmarks.shape[:2], 3))
    points[..., :2], points[..., 2] = landmarks, confidence
    return points


def takes_roll(landmarker: Callable[..., object]) -> bool:
    """Whether a landmarker can turn its crops: it has the argument `roll` of `FaceLandmarker`'s call."""
    if isinstance(landmarker, FaceLandmarker):
        return landmarker.model.takes_roll
    try:
        return "roll" in inspect.signature(landmarker).parameters
    except (TypeError, ValueError):
        return False


def prepare_input(crops: Uint8Array, contract: Contract) -> NDArray[np.generic]:
    """Turn ``(N, S, S, 3)`` uint8 crops in the contract's colour order into the network's input.

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
    if not isinstance(given, Contract | None):
        raise ModelContractError(
            f"contract must be a Contract, as Contract.from_json reads it, not {type(given).__name__}"
        )
    if carried is not None and given is not None and carried != given:
        raise ModelContractError("the model carries its own contract: leave `contract` out")
    agreed = carried or given
    if agreed is None:
        raise ModelContractError(
            "the model carries no contract, so its colour order and crop are unknown: convert it with pfld-edge, "
            "or pass `contract`"
        )
    return agreed


def session_contract(session: onnxruntime.InferenceSession) -> Contract | None:
    """Read the contract from an open model's metadata; None where it carries none, an error where it is damaged."""
    try:
        text = session.get_modelmeta().custom_metadata_map.get(CONTRACT_KEY)
    except UnicodeDecodeError as error:
        raise ModelContractError(f"the contract is damaged, its file's metadata is not UTF-8: {error}") from error
    return None if text is None else Contract.from_json(text)


def check_signature(session: onnxruntime.InferenceSession, contract: Contract) -> None:
    """Raise a `ModelContractError` if input or output differ from what the contract promises, or crop by themselves."""
    if contract.end_to_end:
        raise ModelContractError(
            "the model is an end-to-end graph, which crops faces itself: feed onnxruntime its `image` and `boxes`, or "
            "open the file without .e2e in its name"
        )
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or [output.name for output in outputs[1:]] not in ([], [LOG_VARIANCES]):
        raise ModelContractError(
            f"the network must have one input and one output; found {len(inputs)} and {len(outputs)} "
            "(`pfld-edge convert` keeps one output)"
        )
    dtype = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}.get(inputs[0].type, inputs[0].type)
    contract.check_signature(inputs[0].shape, dtype, outputs[0].shape)
    batch = inputs[0].shape[0]
    if isinstance(batch, int) and batch != 1:
        raise ModelContractError(f"the network takes exactly {batch} faces a call: export it with a dynamic batch")

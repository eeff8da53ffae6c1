"""Opens checkpoints, ONNX and LiteRT files and end-to-end graphs as `LandmarkModel`: for all that runs networks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pfld_edge_convert.errors import ConvertError
from pfld_edge_runtime import (
    Contract,
    ImageError,
    LandmarkModel,
    ModelContractError,
    ModelFileError,
    PfldEdgeError,
    prepare_input,
)
from pfld_edge_runtime.arrays import Float32Array, Uint8Array
from pfld_edge_runtime.crop import check_boxes, crop_windows
from pfld_edge_runtime.errors import naming
from pfld_edge_runtime.landmark_model import FARTHEST_LANDMARK, session_contract
from pfld_edge_runtime.networks import TFLITE_MICRO
from pfld_edge_runtime.session import is_litert, open_session

if TYPE_CHECKING:
    import onnxruntime
    from torch import nn

    from pfld_edge_calib.evaluation.verification import Verification
    from pfld_edge_convert.landmark_graph import Reading

RUNTIMES = {"onnxruntime": "cpu", "openvino": "openvino", "litert": "cpu", TFLITE_MICRO: TFLITE_MICRO}
"""Names of runtimes, and the device of `LandmarkModel.open` that each is."""

_TORCH_BATCH = 64
_ROUNDS = 30


class EndToEndModel(LandmarkModel):
    """A graph that crops faces itself: `locate` runs it on the whole photograph, `predict` raises."""

    def __init__(
        self,
        contract: Contract,
        function: Callable[[Uint8Array, Float32Array], Sequence[Float32Array]],
        *,
        takes_roll: bool = False,
        **told: Any,  # noqa: ANN401 - the arguments of `LandmarkModel`
    ) -> None:
        """Take a callable from an RGB photograph ``(H, W, 3)`` uint8 and boxes ``(N, 4)`` float32 to its outputs.

        They are landmarks, ``(N, P, 2)`` in pixels as the boxes are, and their confidence, ``(N, P)``, where it tells
        that. Where it takes rolls, boxes may be ``(N, 6)``, see `end_to_end_model`.
        """
        super().__init__(contract, self.predict, **told)
        self.function, self.takes_roll = function, takes_roll

    def locate(
        self, image: NDArray[np.generic], boxes: object, color: str = "rgb", roll: object = None
    ) -> Float32Array:
        """Find the landmarks of every boxed face of a ``(H, W, 3)`` uint8 photograph; see `LandmarkModel.locate`."""
        return self.locate_with_confidence(image, boxes, color, roll)[0]

    def locate_with_confidence(
        self, image: NDArray[np.generic], boxes: object, color: str = "rgb", roll: object = None
    ) -> tuple[Float32Array, Float32Array]:
        """See `LandmarkModel.locate_with_confidence`.

        Raises:
            ModelContractError: A roll other than 0 is given, and the graph is of a version that turns no crops.
        """
        if color not in ("rgb", "bgr"):
            raise ImageError(f"color must be 'rgb' or 'bgr', not {color!r}")
        # The graph takes RGB, whatever the network inside was trained on.
        photo = np.ascontiguousarray(image if color == "rgb" else image[:, :, ::-1], np.uint8)
        table = places = check_boxes(boxes)
        windows = crop_windows(places, self.contract.crop.margin, roll)
        if windows.rolls is not None:
            if not self.takes_roll:
                raise ModelContractError(f"{self.name} is an end-to-end graph that turns no crops: convert it again")
            table = np.column_stack([places, np.zeros(len(places)), windows.rolls])
        landmarks, *confidence = self.function(photo, table.astype(np.float32))
        found = np.array(landmarks, np.float32)
        found[~(np.abs(windows.to_crop(found)) < FARTHEST_LANDMARK)] = np.nan
        return found, confidence[0] if confidence else np.full(found.shape[:2], np.nan, np.float32)

    def predict(self, crops: Uint8Array) -> Float32Array:  # noqa: ARG002 - whatever they are
        """Refuse crops.

        Raises:
            ModelContractError: Always.
        """
        raise ModelContractError(
            f"{self.name} is an end-to-end graph, which takes whole photographs: give the file without .e2e in its name"
        )


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint by its name (``.pth``, ``.pt``, ``.pth.tar``)."""
    return path.suffix.lower() in (".pth", ".pt", ".tar")


def open_landmark_model(path: Path, threads: int = 1, *, fused: bool = False, device: str = "cpu") -> LandmarkModel:
    """Open a checkpoint (``.pth``, ``.pt``), an ONNX or LiteRT file, or an end-to-end graph.

    A published PFLD file carries no contract; those files all follow the published protocol (BGR, box x 1.2), which
    is what `Contract`'s defaults say, and `LandmarkModel.assumed` tells that it was assumed.

    Args:
        path: The file.
        threads: Of onnxruntime; 0 for its own choice.
        fused: Of a checkpoint: merge its branches and batch norms, as conversion begins.
        device: Of an ONNX or LiteRT file; see `LandmarkModel.open`.

    Raises:
        ModelFileError: The file is missing or not a model.
        ModelContractError: The contract is damaged or contradicts the network.
        ConvertError: A checkpoint without contract has other points than WFLW's 98 or 300-W's 68.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: {'a folder, ' if path.is_dir() else ''}no such model file")
    if is_litert(path):
        return LandmarkModel.open(path, device, threads)
    if path.suffix.lower() != ".onnx":
        return _checkpoint_model(path, fused=fused)
    session = open_session(path, threads=threads)
    with naming(path):
        contract = session_contract(session)
    if contract is None or not contract.end_to_end:
        try:
            model = LandmarkModel.open(path, device, threads, contract=None if contract else Contract(), strict=True)
        except ModelContractError as error:
            if contract is not None:
                raise
            raise ModelContractError(
                f"{path} carries no contract, and that of the published PFLD files doesn't fit ({error}): write one "
                "with `pfld-edge contract --set`, or convert it"
            ) from error
        model.kind = model.kind if contract else f"onnx {_bits(path)}"
        return model
    kind = "end-to-end fp32" if contract.quantization == "none" else "end-to-end int8"
    function, columns = _photo_function(path, session), session.get_inputs()[1].shape[1]
    return EndToEndModel(contract, function, takes_roll=columns != 4, name=path.name, path=path, kind=kind)


def devices_of(path: Path, runtimes: Sequence[str], contract: Contract | None) -> tuple[str, ...]:
    """Devices on which the named runtimes (`RUNTIMES`) run a file: of those that read it, else of its own.

    Only onnxruntime reads end-to-end graphs and QOperator files; torch runs checkpoints.
    """
    told = contract is not None and (contract.end_to_end or "QOperator" in contract.quantization)
    reads: tuple[str, ...] = ("onnxruntime", "openvino")
    if is_litert(path):
        reads = ("litert", TFLITE_MICRO)
    if told or is_checkpoint(path):
        reads = ("onnxruntime",)
    return tuple(RUNTIMES[name] for name in dict.fromkeys(runtimes) if name in reads) or ("cpu",)


def open_in_runtimes(path: Path, threads: int, runtimes: Sequence[str]) -> list[LandmarkModel]:
    """Open a file in each of `devices_of`; names tell the runtime where some were asked for."""
    own = open_landmark_model(path, threads)
    opened = [
        own if device == "cpu" else open_landmark_model(path, threads, device=device)
        for device in devices_of(path, runtimes, own.contract)
    ]
    for model in opened if runtimes and own.runtime else ():
        model.name = f"{model.name} ({model.runtime})"
    return opened


def open_reference(path: Path, threads: int, contract: Contract, reading: "Reading | None" = None) -> LandmarkModel:
    """Open what a model was made from; a stranger's ONNX file without contract is read by the model's contract.

    `reading` tells its output, as for `landmark_graph`; ConvertError where it can't be told or a contract tells it.
    """
    from pfld_edge_convert.contract_fields import carried_contract
    from pfld_edge_convert.landmark_graph import Reading, landmark_graph
    from pfld_edge_convert.model_file import load_onnx, onnx_bytes
    from pfld_edge_convert.passes.base import graph_inputs

    if path.suffix.lower() != ".onnx" or not path.is_file() or carried_contract(path) is not None:
        model = open_landmark_model(path, threads)
        if reading not in (None, Reading()):
            raise ConvertError(
                f"{path} tells its output itself: --output-name, --output-order and --output-space are for ONNX files "
                "without contract"
            )
        return model
    network, size = load_onnx(path), contract.input_size
    shapes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]] for value in graph_inputs(network)]
    layout = "NHWC" if shapes == [[size, size, 3]] else "NCHW"
    plain = contract.replace(input_dtype="float32", layout=layout, quantization="none", target="", fingerprint=None)
    found = landmark_graph(network, path.name, {"input_size": str(size)}, plain, reading)
    model = LandmarkModel.open(onnx_bytes(found.model, found.contract), threads=threads)
    model.name, model.path = path.name, path
    return model


@dataclass(frozen=True, slots=True)
class RuntimeResult:
    """How a runtime ran a file: layers in integers and in all, processor milliseconds a face, landmark deviation.

    That is from the QOperator file `reference`, in eye distances; None where there is no such file.
    """

    name: str
    runtime: str
    quantized: bool
    integer_layers: int | None
    layers: int | None
    milliseconds: float | None
    reference: str | None = None
    mean_deviation: float | None = None
    largest_deviation: float | None = None


def compare_runtimes(models: Sequence[LandmarkModel], found: "Verification") -> list[RuntimeResult]:
    """Compare the ONNX and LiteRT files among models that `verify_models` ran, in the same order."""
    from pfld_edge_calib.evaluation.metrics import measure_deviation
    from pfld_edge_convert.benchmark.timing import take_turns

    pairs = [(model, own) for model, own in zip(models, found.models, strict=True) if model.runtime]
    first = next((own for model, own in pairs if "QOperator" in model.contract.quantization), None)
    sizes = [model.contract.input_size for model, _ in pairs]
    calls = {i: partial(pairs[i][0].predict, np.zeros((1, side, side, 3), np.uint8)) for i, side in enumerate(sizes)}
    times = take_turns(calls, _ROUNDS)
    results = []
    for place, (model, own) in enumerate(pairs):
        layers, taken = integer_layers(model) or (None, None), times[place].processor_ms
        quantized = model.contract.quantization != "none"
        result = RuntimeResult(model.name, model.runtime, quantized, layers[0], layers[1], taken)
        if first is not None:
            moved = measure_deviation(own.landmarks, first.landmarks, found.truth, found.scheme)
            result = replace(result, reference=first.name, mean_deviation=moved.mean, largest_deviation=moved.largest)
        results.append(result)
    return results


def integer_layers(model: LandmarkModel) -> tuple[int, int] | None:
    """Count the convolutions and products of an open file that compute in integers there, and all of them."""
    told = model.integer_layers()
    if told is not None or model.path is None or model.runtime != "onnxruntime":
        return told
    from pfld_edge_convert.quantization.mixed_precision import fusion_coverage

    found = fusion_coverage(model.path)
    return len(found.integer), len(found.integer) + len(found.floating)


def largest_answer_difference(first: Path, second: Path) -> float | None:
    """Run two files on crops of the bundled portraits, each as its contract says.

    Gives the largest difference of a coordinate, in fractions of the crop; None where one is no landmark network that
    takes crops, or they find different numbers of points.
    """
    from pfld_edge_convert.calibration import sample_crops

    try:
        models = [open_landmark_model(path) for path in (first, second)]
        found = [model.predict(sample_crops(model.contract)) for model in models]
    except PfldEdgeError:
        return None
    if found[0].shape != found[1].shape:
        return None
    return float(np.abs(found[0].astype(np.float64) - found[1]).max())


def _checkpoint_model(path: Path, *, fused: bool) -> LandmarkModel:
    # Here: torch takes seconds to import, and an ONNX file needs none of it.
    from pfld_edge_convert.model_file import checkpoint_contract
    from pfld_edge_train.checkpoint import load_model

    network, checkpoint = load_model(path)
    module: nn.Module = network
    with naming(path):
        contract, assumed = checkpoint_contract(checkpoint), not checkpoint.contract
    name, kind = path.name, "torch"
    if fused:
        from pfld_edge_convert.reparameterize import reparameterize

        module, name, kind = reparameterize(network), f"{path.name} (fused)", "fused torch"
    function = _torch_function(module, contract)
    return LandmarkModel(contract, function, batch_size=_TORCH_BATCH, name=name, path=path, kind=kind, assumed=assumed)


def _torch_function(network: "nn.Module", contract: Contract) -> Callable[[Uint8Array], Float32Array]:
    import torch

    def run(crops: Uint8Array) -> Float32Array:
        with torch.inference_mode():
            output: Float32Array = network(torch.from_numpy(prepare_input(crops, contract))).numpy()
        return output

    return run


def _photo_function(
    path: Path, session: "onnxruntime.InferenceSession"
) -> Callable[[Uint8Array, Float32Array], Sequence[Float32Array]]:
    image, boxes = (value.name for value in session.get_inputs())

    def run(photo: Uint8Array, places: Float32Array) -> Sequence[Float32Array]:
        try:
            found: Sequence[Float32Array] = session.run(None, {image: photo, boxes: places})
            return found
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelFileError(f"{path}: the end-to-end graph can't run: {reason}") from error

    return run


def _bits(path: Path) -> str:
    """``int8`` where a file without contract stores 8-bit weights of any layer, else ``fp32``."""
    from pfld_edge_convert.model_file import load_onnx
    from pfld_edge_convert.model_stats import layer_weights

    return "int8" if any(layer.integer for layer in layer_weights(load_onnx(path))) else "fp32"

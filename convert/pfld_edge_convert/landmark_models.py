"""Opens checkpoints, ONNX files and end-to-end graphs as models that map crops, or photographs, to landmarks."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib import CropPredictor
from pfld_edge_calib.evaluation import EvaluatedModel, PhotoPredictor
from pfld_edge_runtime import Contract, FaceLandmarker, ModelFileError, PfldEdgeError, prepare_input
from pfld_edge_runtime.landmark_model import session_contract
from pfld_edge_runtime.session import open_session

if TYPE_CHECKING:
    import onnxruntime
    from torch import nn

__all__ = ["Network", "fused_form", "largest_answer_difference", "open_network", "open_proof_model"]


@dataclass(frozen=True, slots=True)
class Network:
    """A network that maps crops to landmarks.

    Attributes:
        name: The file's name.
        predict: ``(N, S, S, 3)`` uint8 crops to ``(N, P, 2)`` fractions of the crop, see
            `pfld_edge_calib.CropPredictor`.
        contract: Its input size, normalization, crop rule and landmark scheme.
        assumed: True where the file carries no contract and the published PFLD protocol was taken for it.
    """

    name: str
    predict: CropPredictor
    contract: Contract
    assumed: bool


def open_network(path: Path, threads: int = 1) -> Network:
    """Open a checkpoint (``.pth``, ``.pt``) or an ONNX file that takes crops.

    A published PFLD file carries no contract; those files all follow the published protocol (BGR, box x 1.2), which
    is what `Contract`'s defaults say, and `Network.assumed` tells that it was assumed.

    Raises:
        ModelFileError: The file is missing or not a model.
        CheckpointError: The checkpoint can't be read.
        ModelContractError: The contract is damaged or contradicts the network.
        ConvertError: A checkpoint without contract has another number of points than WFLW's.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file")
    if path.suffix.lower() == ".onnx":
        carried = session_contract(open_session(path, threads=threads))
        landmarker = FaceLandmarker(path, threads=threads, contract=None if carried else Contract())
        return Network(path.name, landmarker.predict_crops, landmarker.contract, carried is None)
    # Here: torch takes seconds to import, and an ONNX file needs none of it.
    from pfld_edge_convert.model_file import checkpoint_contract
    from pfld_edge_train.checkpoint import load_model

    model, checkpoint = load_model(path)
    contract = checkpoint_contract(checkpoint)
    return Network(path.name, _torch_predictor(model, contract), contract, not checkpoint.contract)


def open_proof_model(path: Path, threads: int = 1) -> EvaluatedModel:
    """Open a checkpoint, an ONNX file, or an end-to-end graph for evaluation.

    Raises:
        ModelFileError: The file is missing or not a model.
        CheckpointError: The checkpoint can't be read.
        ModelContractError: The contract is damaged or contradicts the network.
        ConvertError: A checkpoint without contract has another number of points than WFLW's.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file")
    digest, kind = hashlib.sha256(path.read_bytes()).hexdigest(), "torch"
    if path.suffix.lower() == ".onnx":
        session = open_session(path, threads=threads)
        contract, bits = session_contract(session), _bits(path)
        if contract is not None and contract.end_to_end:
            locate = _photo_predictor(path, session)
            return EvaluatedModel(path.name, str(path), f"end-to-end {bits}", digest, contract, locate=locate)
        kind = f"onnx {bits}"
    network = open_network(path, threads)
    return EvaluatedModel(path.name, str(path), kind, digest, network.contract, network.assumed, network.predict)


def fused_form(checkpoint: Path) -> EvaluatedModel:
    """Open a checkpoint and merge its branches and batch norms, as conversion begins.

    Raises:
        CheckpointError: The checkpoint can't be read.
    """
    from pfld_edge_convert.reparameterize import reparameterize
    from pfld_edge_train.checkpoint import load_model

    plain = open_proof_model(checkpoint)
    predict = _torch_predictor(reparameterize(load_model(checkpoint)[0]), plain.contract)
    return replace(plain, name=f"{plain.name} (fused)", kind="fused torch", predict=predict)


def largest_answer_difference(first: Path, second: Path) -> float | None:
    """Run two files on crops of the bundled portraits, each as its contract says.

    Returns:
        The largest difference of a coordinate, in fractions of the crop; None where one is no landmark network that
        takes crops, or they find different numbers of points.
    """
    from pfld_edge_convert.calibration import sample_crops

    try:
        networks = [open_network(path) for path in (first, second)]
    except PfldEdgeError:
        return None
    found = [network.predict(sample_crops(network.contract)) for network in networks]
    if found[0].shape != found[1].shape:
        return None
    return float(np.abs(found[0].astype(np.float64) - found[1]).max())


def _torch_predictor(model: "nn.Module", contract: Contract) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    import torch

    points = contract.landmarks.num_landmarks

    def predict(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            output = model(torch.from_numpy(prepare_input(crops, contract)))
        return np.asarray(output.numpy(), np.float32).reshape(len(crops), points, 2)

    return predict


def _photo_predictor(path: Path, session: "onnxruntime.InferenceSession") -> PhotoPredictor:
    image, boxes = (value.name for value in session.get_inputs())

    def locate(photo: NDArray[np.uint8], places: NDArray[np.float64]) -> NDArray[np.float32]:
        # The graph takes RGB, whatever the network inside was trained on.
        feed = {image: np.ascontiguousarray(photo[:, :, ::-1]), boxes: places.astype(np.float32)}
        try:
            return np.asarray(session.run(None, feed)[0], np.float32)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelFileError(f"{path}: the end-to-end graph can't run: {reason}") from error

    return locate


def _bits(path: Path) -> str:
    """``int8`` where the file stores 8-bit weights of any layer, else ``fp32``."""
    from pfld_edge_convert.model_file import load_onnx
    from pfld_edge_convert.quantized_models import layer_weights

    return "int8" if any(layer.integer for layer in layer_weights(load_onnx(path))) else "fp32"

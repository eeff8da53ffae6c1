"""Opens files as networks to be proven: checkpoints, their fused form, ONNX files of every kind."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from pfld_edge_calib.proof import PhotoPredictor, ProofModel
from pfld_edge_convert.layer_weights import layer_weights
from pfld_edge_convert.network import open_network
from pfld_edge_convert.onnx_file import load_onnx
from pfld_edge_runtime import Contract, ModelFileError, prepare_input
from pfld_edge_runtime.session import open_session, session_contract

__all__ = ["fused_form", "open_proof_model"]


def open_proof_model(path: Path, threads: int = 1) -> ProofModel:
    """Open a checkpoint, an ONNX file, or an end-to-end graph.

    Raises:
        ModelFileError: The file is missing or not a model.
        CheckpointError: The checkpoint can't be read.
        ModelContractError: The contract is damaged or contradicts the network.
        ConvertError: A checkpoint without contract has another number of points than WFLW's.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if path.suffix.lower() == ".onnx":
        session = open_session(path, threads=threads)
        contract = session_contract(session)
        bits = "int8" if _has_integers(load_onnx(path)) else "fp32"
        if contract is not None and contract.end_to_end:
            locate = _photo_predictor(path, session)
            return ProofModel(path.name, str(path), f"end-to-end {bits}", digest, contract, locate=locate)
        kind = f"onnx {bits}"
    else:
        kind = "torch"
    network = open_network(path, threads)
    return ProofModel(path.name, str(path), kind, digest, network.contract, network.assumed, network.predict)


def fused_form(checkpoint: Path) -> ProofModel:
    """Open a checkpoint with its branches and batch norms merged, as conversion begins.

    Raises:
        CheckpointError: The checkpoint can't be read.
    """
    import torch

    from pfld_edge_convert.fuse import reparameterize
    from pfld_edge_train.checkpoint import load_model

    plain = open_proof_model(checkpoint)
    fused = reparameterize(load_model(checkpoint)[0])

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(fused(torch.from_numpy(batch)).numpy(), np.float32)

    return replace(
        plain, name=f"{plain.name} (fused)", kind="fused torch", predict=_crop_predictor(run, plain.contract)
    )


def _crop_predictor(
    run: Callable[[NDArray[np.float32]], NDArray[np.float32]], contract: Contract
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    points = contract.landmarks.num_landmarks
    return lambda crops: run(np.asarray(prepare_input(crops, contract), np.float32)).reshape(len(crops), points, 2)


def _photo_predictor(path: Path, session: onnxruntime.InferenceSession) -> PhotoPredictor:
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


def _has_integers(model: onnx.ModelProto) -> bool:
    return any(layer.integer for layer in layer_weights(model))

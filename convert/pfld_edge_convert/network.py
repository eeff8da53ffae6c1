"""Opens whatever a user calls a model, checkpoint or ONNX file, as one thing that predicts crops."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib import CropPredictor
from pfld_edge_runtime import Contract, FaceLandmarker, ModelFileError
from pfld_edge_runtime.session import open_session, session_contract

__all__ = ["Network", "open_network"]


@dataclass(frozen=True, slots=True)
class Network:
    """A network that can be measured.

    Attributes:
        name: The file's name.
        predict: Crops to landmarks, see `pfld_edge_calib.CropPredictor`.
        contract: How to feed it.
        assumed: True where the file carries no contract and the published PFLD protocol was taken for it.
    """

    name: str
    predict: CropPredictor
    contract: Contract
    assumed: bool


def open_network(path: Path, threads: int = 1) -> Network:
    """Open a checkpoint (``.pth``, ``.pt``) or an ONNX file.

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
    return _open_checkpoint(path)


def _open_checkpoint(path: Path) -> Network:
    import torch

    from pfld_edge_convert.checkpoint_contract import contract_of
    from pfld_edge_runtime import prepare_input
    from pfld_edge_train.checkpoint import load_model

    model, checkpoint = load_model(path)
    contract = contract_of(checkpoint)
    points = contract.landmarks.num_landmarks

    def predict(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            output = model(torch.from_numpy(prepare_input(crops, contract)))
        return np.asarray(output.numpy(), np.float32).reshape(len(crops), points, 2)

    return Network(path.name, predict, contract, not checkpoint.contract)

"""Opens checkpoints, ONNX files and end-to-end graphs as `LandmarkModel`: what evaluates, labels, times or predicts."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime import (
    Contract,
    ImageError,
    LandmarkModel,
    ModelContractError,
    ModelFileError,
    PfldEdgeError,
    prepare_input,
)
from pfld_edge_runtime.crop import check_boxes, crop_windows
from pfld_edge_runtime.errors import naming
from pfld_edge_runtime.landmark_model import FARTHEST_LANDMARK, session_contract
from pfld_edge_runtime.session import open_session

if TYPE_CHECKING:
    import onnxruntime
    from torch import nn

_TORCH_BATCH = 64


class EndToEndModel(LandmarkModel):
    """A graph that crops faces itself: `locate` runs it on the whole photograph, `predict` raises."""

    def __init__(
        self,
        contract: Contract,
        function: Callable[[NDArray[np.uint8], NDArray[np.float32]], NDArray[np.float32]],
        **told: Any,  # noqa: ANN401 - the arguments of `LandmarkModel`
    ) -> None:
        """Take a callable from an RGB photograph ``(H, W, 3)`` uint8 and boxes ``(N, 4)`` float32 to landmarks.

        These are ``(N, P, 2)``, in pixels as the boxes are.
        """
        super().__init__(contract, self.predict, **told)
        self.function = function

    def locate(
        self, image: NDArray[np.generic], boxes: object, color: str = "rgb", roll: object = None
    ) -> NDArray[np.float32]:
        """Find the landmarks of every boxed face of a ``(H, W, 3)`` uint8 photograph; see `LandmarkModel.locate`.

        Raises:
            ModelContractError: A roll other than 0 is given: the graph's crops are never turned.
        """
        if roll is not None and np.asarray(roll, np.float64).any():
            raise ModelContractError(f"{self.name} is an end-to-end graph, whose crops can't be turned: leave out roll")
        if color not in ("rgb", "bgr"):
            raise ImageError(f"color must be 'rgb' or 'bgr', not {color!r}")
        # The graph takes RGB, whatever the network inside was trained on.
        photo = np.ascontiguousarray(image if color == "rgb" else image[:, :, ::-1], np.uint8)
        places = check_boxes(boxes)
        found = np.array(self.function(photo, places.astype(np.float32)), np.float32)
        fractions = crop_windows(places, self.contract.crop.margin).to_crop(found)
        found[~(np.abs(fractions) < FARTHEST_LANDMARK)] = np.nan
        return found

    def predict(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:  # noqa: ARG002 - whatever they are
        """Refuse crops.

        Raises:
            ModelContractError: Always.
        """
        raise ModelContractError(
            f"{self.name} is an end-to-end graph, which takes whole photographs: give the file without .e2e in its name"
        )


def open_landmark_model(path: Path, threads: int = 1, *, fused: bool = False) -> LandmarkModel:
    """Open a checkpoint (``.pth``, ``.pt``), an ONNX file, or an end-to-end graph.

    A published PFLD file carries no contract; those files all follow the published protocol (BGR, box x 1.2), which
    is what `Contract`'s defaults say, and `LandmarkModel.assumed` tells that it was assumed.

    Args:
        path: The file.
        threads: Of onnxruntime; 0 for its own choice.
        fused: Of a checkpoint: merge its branches and batch norms, as conversion begins.

    Raises:
        ModelFileError: The file is missing or not a model.
        ModelContractError: The contract is damaged or contradicts the network.
        ConvertError: A checkpoint without contract has other points than WFLW's 98 or 300-W's 68.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file")
    if path.suffix.lower() != ".onnx":
        return _checkpoint_model(path, fused=fused)
    session = open_session(path, threads=threads)
    with naming(path):
        contract = session_contract(session)
    if contract is None or not contract.end_to_end:
        model = LandmarkModel.open(path, threads=threads, contract=None if contract else Contract())
        model.kind = model.kind if contract else f"onnx {_bits(path)}"
        return model
    kind = "end-to-end fp32" if contract.quantization == "none" else "end-to-end int8"
    return EndToEndModel(contract, _photo_function(path, session), name=path.name, path=path, kind=kind)


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


def _torch_function(network: "nn.Module", contract: Contract) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    import torch

    def run(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            output: NDArray[np.float32] = network(torch.from_numpy(prepare_input(crops, contract))).numpy()
        return output

    return run


def _photo_function(
    path: Path, session: "onnxruntime.InferenceSession"
) -> Callable[[NDArray[np.uint8], NDArray[np.float32]], NDArray[np.float32]]:
    image, boxes = (value.name for value in session.get_inputs())

    def run(photo: NDArray[np.uint8], places: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            return np.asarray(session.run(None, {image: photo, boxes: places})[0], np.float32)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelFileError(f"{path}: the end-to-end graph can't run: {reason}") from error

    return run


def _bits(path: Path) -> str:
    """``int8`` where a file without contract stores 8-bit weights of any layer, else ``fp32``."""
    from pfld_edge_convert.model_file import load_onnx
    from pfld_edge_convert.model_stats import layer_weights

    return "int8" if any(layer.integer for layer in layer_weights(load_onnx(path))) else "fp32"

"""`FaceLandmarker`: photograph and face boxes in, landmarks in photograph pixels out."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.contract import Contract
from pfld_edge_runtime.errors import ModelContractError, ModelFileError
from pfld_edge_runtime.landmark_model import LandmarkModel

Called = TypeVar("Called")


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
    ) -> NDArray[np.float32]:
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
        landmarks = self.model.locate(image, boxes, color, roll)
        if not np.isfinite(landmarks).all():
            name = self.model.name or "the model"
            raise ModelFileError(f"{name} gave landmarks that are not finite numbers: the file is damaged")
        return landmarks

    def predict_crops(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `LandmarkModel.predict`."""
        return self.model.predict(crops)


def as_landmarker(landmarker: Called | str | Path | bytes | LandmarkModel | None) -> "Called | FaceLandmarker":
    """Open what `FaceLandmarker` takes, and leave a callable as it is; a `ModelContractError` says it is neither."""
    if landmarker is None or isinstance(landmarker, str | Path | bytes | LandmarkModel):
        return FaceLandmarker(landmarker)
    if not callable(landmarker):
        raise ModelContractError(f"a landmarker is an ONNX file, a LandmarkModel or a callable; found {landmarker!r}")
    return landmarker


def takes_roll(landmarker: Callable[..., object]) -> bool:
    """Whether a landmarker can turn its crops: it has the argument `roll` of `FaceLandmarker`'s call."""
    if isinstance(landmarker, FaceLandmarker):
        return not landmarker.contract.end_to_end
    try:
        return "roll" in inspect.signature(landmarker).parameters
    except (TypeError, ValueError):
        return False

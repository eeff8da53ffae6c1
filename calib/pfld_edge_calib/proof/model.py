"""A network as a proof needs it: something that answers crops or photographs, and what it is."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.evaluate import CropPredictor
from pfld_edge_runtime import Contract

__all__ = ["KINDS", "PhotoPredictor", "ProofModel"]

KINDS = ("torch", "fused torch", "onnx fp32", "onnx int8", "end-to-end fp32", "end-to-end int8")

PhotoPredictor = Callable[[NDArray[np.uint8], NDArray[np.float64]], NDArray[np.float32]]
"""A photograph ``(H, W, 3)`` uint8 BGR and boxes ``(N, 4)`` in pixels to landmarks ``(N, P, 2)`` in pixels."""


@dataclass(frozen=True, slots=True)
class ProofModel:
    """A network that is to be measured; it answers crops or photographs, one of the two.

    Attributes:
        name: For tables; the file's name, with ``(fused)`` where it is the checkpoint's fused form.
        path: The file, as it was given.
        kind: One of `KINDS`.
        sha256: Of the file, hexadecimal.
        contract: How it is fed.
        assumed: True where the file carries no contract and the published PFLD protocol was taken for it.
        predict: Crops to fractions of the crop.
        locate: Photograph and boxes to pixels, of an end-to-end graph.
    """

    name: str
    path: str
    kind: str
    sha256: str
    contract: Contract
    assumed: bool = False
    predict: CropPredictor | None = None
    locate: PhotoPredictor | None = None

    def __post_init__(self) -> None:
        """Refuse a network that answers nothing, or both ways."""
        if (self.predict is None) == (self.locate is None):
            raise ValueError(f"{self.name}: a network answers crops or photographs, one of the two")

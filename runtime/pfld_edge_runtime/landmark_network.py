"""What analysis and readings need of a network: what a `FaceLandmarker` offers, whoever offers it."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.contract import Contract

__all__ = ["LandmarkNetwork"]


class LandmarkNetwork(Protocol):
    """A `FaceLandmarker`, or anything that answers like one."""

    @property
    def contract(self) -> Contract:
        """What the network promises."""
        ...

    def __call__(self, image: NDArray[np.generic], boxes: object, color: str = "rgb") -> NDArray[np.float32]:
        """Give ``(N, P, 2)`` pixels for ``(N, 4)`` boxes that are tight around landmarks."""
        ...

    def predict_crops(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Give ``(N, P, 2)`` fractions of the crop for ``(N, S, S, 3)`` uint8 crops."""
        ...
